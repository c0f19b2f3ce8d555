/* A step allocates nothing, and its time is accounted for: compute, measured by the engine, and the
 * waits by cause, measured by the tiers, add up to the whole within 2%. */
#include <check.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_stack.h"

enum { STEPS_MAX = 400 };

/* gcc says it with a macro, clang with a feature. */
#ifndef __has_feature
#define __has_feature(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define COUNTS_ALLOCATIONS 0
#else
#define COUNTS_ALLOCATIONS 1
#endif

static atomic_ulong allocations;

#if COUNTS_ALLOCATIONS
/* glibc's own entries, so that every allocation of the process passes by here. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t align, size_t size);

void *malloc(size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(memory, size);
}
void *aligned_alloc(size_t align, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_memalign(align, size);
}
#endif

static void say_nothing(void *context, const struct eng_piece *piece)
{
    (void)context;
    (void)piece;
}

static void submit(struct run *run, const char *text, uint32_t tokens, float temperature)
{
    struct base_err err = { 0 };
    uint32_t count;
    uint32_t *ids = run_encode(run, text, &count);
    static const char *const stops[] = { "never said \x01" };
    struct eng_request request = {
        .prompt = ids,
        .prompt_tokens = count,
        .max_tokens = tokens,
        .sampling = { .temperature = temperature, .top_p = 0.9f, .seed = 4 },
        .stops = stops,
        .stop_count = 1,
        .ignore_eos = true,
        .on_piece = say_nothing
    };
    int64_t id = eng_submit(run->stack.engine, &request, &err);
    ck_assert_msg(id > 0, "%s", err.text);
    free(ids);
}

/* Opens without the logits hook: its rows are the test's own allocations. */
static void open_plain(struct run *run, struct eng_stack_config *config,
                       const char *const *settings, const struct eng_hooks *hooks)
{
    struct base_option_group groups[ENG_STACK_GROUPS];
    struct base_err err = { 0 };
    size_t count = eng_stack_groups(config, groups);
    base_option_defaults(groups, count);
    char pair[300];
    *run = (struct run){ .folder = "/tmp/expertier-run-XXXXXX" };
    ck_assert_ptr_nonnull(mkdtemp(run->folder));
    snprintf(pair, sizeof pair, "tiers.nvme.index=%s/experts.index", run->folder);
    ck_assert_int_eq(base_option_set_pair(groups, count, pair, &err), 0);
    for (; *settings; settings++) {
        ck_assert_msg(base_option_set_pair(groups, count, *settings, &err) == 0, "%s", err.text);
    }
    struct eng_stack_args args = { .model_dir = run_pebble(), .config = config, .quiet = true,
                                   .hooks = *hooks };
    int rc = eng_stack_open(&run->stack, &args, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

START_TEST(steps_do_not_allocate)
{
    static const char *const settings[][4] = {
        { "tiers.dram.capacity=15%", "io.backend=threads", "engine.threads=2", NULL },
        { "tiers.dram.capacity=25%", "engine.threads=1", "scheduler.enable_prefix_caching=true",
          NULL },
    };
    static struct run run;
    static struct eng_stack_config config;
    if (!COUNTS_ALLOCATIONS) {
        printf("allocations are not counted under this sanitizer\n");
        return;
    }
    struct eng_hooks hooks = { 0 };
    open_plain(&run, &config, settings[_i], &hooks);
    submit(&run, "The kernel is the part of the system that", 60, 0.8f);
    submit(&run, "In the beginning God created", 90, 0.0f);
    unsigned long before = atomic_load(&allocations);
    int steps = 0;
    while (eng_step(run.stack.engine) > 0) {
        steps++;
    }
    unsigned long made = atomic_load(&allocations) - before;
    ck_assert_int_ge(steps, 89);        /* both prompts share the first */
    ck_assert_msg(before > 0, "allocations do not pass by this test's counter");
    ck_assert_msg(made == 0, "%lu allocations in %d steps", made, steps);
    run_close(&run);
}
END_TEST

struct account {
    uint32_t steps;
    double share[STEPS_MAX];    /* of the step's time that nobody accounts for */
    double whole, parts, waits;
};

static void keep_account(void *context, const struct eng_step_record *record)
{
    struct account *account = context;
    uint64_t waits = 0;
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        waits += record->wait_ns[cause];
    }
    ck_assert_uint_lt(account->steps, STEPS_MAX);
    double whole = (double)record->step_ns, parts = (double)(record->compute_ns + waits);
    account->share[account->steps++] = fabs(whole - parts) / whole;
    account->whole += whole;
    account->parts += parts;
    account->waits += (double)waits;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

START_TEST(parts_add_up_to_the_step)
{
    static const char *const settings[][4] = {
        { "tiers.dram.capacity=9.375%", "io.backend=auto", "engine.threads=1", NULL },
        { "tiers.dram.capacity=15%", "io.backend=threads", "io.throttle_latency=300us", NULL },
        { "tiers.dram.capacity=100%", "io.backend=auto", "engine.threads=2", NULL },
    };
    static struct run run;
    static struct eng_stack_config config;
    static struct account account;
    memset(&account, 0, sizeof account);
    struct eng_hooks hooks = { .step_end = keep_account, .context = &account };
    open_plain(&run, &config, settings[_i], &hooks);
    submit(&run, "The kernel is the part of the system that", 100, 0.8f);
    submit(&run, "In the beginning God created", 100, 0.0f);
    run_finish(&run);
    qsort(account.share, account.steps, sizeof *account.share, by_size);
    double off = fabs(account.whole - account.parts) / account.whole;
    printf("%s: %u steps, %.1f%% waiting, unaccounted %.3f%% of all, %.3f%% of the 95th percentile "
           "step\n",
           settings[_i][0], account.steps, 100.0 * account.waits / account.whole, 100.0 * off,
           100.0 * account.share[account.steps * 95 / 100]);
    if (_i < 2) ck_assert_double_gt(account.waits / account.whole, 0.05);
    ck_assert_double_lt(off, 0.02);
    ck_assert_double_lt(account.share[account.steps * 95 / 100], 0.02);
    run_close(&run);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("step");
    TCase *tests = tcase_create("step");
    tcase_add_loop_test(tests, steps_do_not_allocate, 0, 2);
    tcase_add_loop_test(tests, parts_add_up_to_the_step, 0, 3);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
