/* The timeline of a run is valid JSON in the shape that viewers want, tells as many reads and hints
 * as the counters do, and says how many events it had no room for. */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "port/json.h"
#include "tests/support/run_stack.h"

struct told {
    uint64_t steps, layers, operations, waits, flights_open, reads, ahead, marks;
    uint64_t useful, late, wasted, cancelled;
    double step_us, parts_us;
};

static bool is(const struct port_json *event, const char *key, const char *text)
{
    size_t size;
    const char *value = port_json_text(port_json_get(event, key), &size);
    return value && strcmp(value, text) == 0;
}

static double number(const struct port_json *event, const char *key)
{
    const struct port_json *value = port_json_get(event, key);
    ck_assert_ptr_nonnull(value);
    return port_json_as_double(value);
}

static bool is_operation(const struct port_json *event)
{
    for (int op = 0; op < ENG_OP_COUNT; op++) {
        if (is(event, "name", eng_op_name((enum eng_op)op))) return true;
    }
    return false;
}

static void count_span(struct told *told, const struct port_json *event)
{
    double us = number(event, "dur");
    ck_assert(us >= 0 && number(event, "ts") >= 0);
    size_t size;
    const char *name = port_json_text(port_json_get(event, "name"), &size);
    if (is(event, "name", "step")) {
        told->steps++;
        told->step_us += us;
    } else if (is(event, "name", "layer")) {
        told->layers++;
        ck_assert_ptr_nonnull(port_json_get(port_json_get(event, "args"), "layer"));
    } else if (strncmp(name, "wait for ", 9) == 0) {
        told->waits++;
        told->parts_us += us;
    } else if (is_operation(event)) {
        told->operations++;
        told->parts_us += us;
    } else {
        ck_assert_msg(is(event, "name", "check") || is(event, "name", "repack"),
                      "a span of no known kind: %s", name);
    }
}

static void count_flight(struct told *told, const struct port_json *event)
{
    const struct port_json *args = port_json_get(event, "args");
    told->flights_open++;
    told->reads += is(event, "name", "read");
    if (!is(event, "name", "hint")) return;
    told->ahead++;
    told->useful += is(args, "fate", "useful");
    told->late += is(args, "fate", "late");
    told->wasted += is(args, "fate", "wasted");
    told->cancelled += is(args, "fate", "cancelled");
}

static void read_timeline(const char *path, struct told *told, uint64_t *events, uint64_t *dropped)
{
    struct base_err err = { 0 };
    struct port_json *root;
    int rc = port_json_load(&root, path, 1 << 28, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    const struct port_json *list = port_json_get(root, "traceEvents");
    const struct port_json *other = port_json_get(root, "otherData");
    *told = (struct told){ 0 };
    *events = (uint64_t)number(other, "events");
    *dropped = (uint64_t)number(other, "dropped");
    uint64_t ends = 0, all = 0;
    ck_assert_uint_gt(port_json_count(list), 0);
    for (size_t i = 0; i < port_json_count(list); i++) {
        const struct port_json *event = port_json_at(list, i);
        ck_assert_ptr_nonnull(port_json_get(event, "pid"));
        if (is(event, "ph", "M")) continue;
        ck_assert(number(event, "tid") >= 1);
        ends += is(event, "ph", "e");
        all += !is(event, "ph", "e");
        if (is(event, "ph", "X")) count_span(told, event);
        else if (is(event, "ph", "b")) count_flight(told, event);
        else if (is(event, "ph", "i")) told->marks++;
        else ck_assert(is(event, "ph", "e"));
    }
    ck_assert_uint_eq(ends, told->flights_open);
    ck_assert_uint_eq(all, *events);
    port_json_free(root);
}

/* Runs a prompt and an answer; what the counters said at the end. */
static void run_profiled(const char *path, size_t events, struct tier_snapshot *snapshot)
{
    static struct run run;
    static struct eng_stack_config config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    struct base_err err = { 0 };
    size_t count = eng_stack_groups(&config, groups);
    char index[128];
    snprintf(index, sizeof index, "tiers.nvme.index=%s.index", path);
    const char *const settings[] = { "tiers.dram.capacity=25%", "predictor.kind=blend",
                                     "prefetch.governor=fixed", "engine.threads=1", index };
    base_option_defaults(groups, count);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        ck_assert_msg(base_option_set_pair(groups, count, settings[i], &err) == 0, "%s", err.text);
    }
    memset(&run, 0, sizeof run);
    struct eng_stack_args args = { .model_dir = run_pebble(), .config = &config, .quiet = true,
                                   .profile_path = path, .profile_events = events };
    int rc = eng_stack_open(&run.stack, &args, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    uint32_t prompt_tokens;
    uint32_t *prompt = run_encode(&run, "In the beginning God created", &prompt_tokens);
    run_greedy(&run, prompt, prompt_tokens, 60);
    run_finish(&run);
    free(prompt);
    tier_snapshot(run.stack.tier, snapshot);
    eng_stack_close(&run.stack);
    unlink(strchr(index, '=') + 1);
}

START_TEST(tells_what_the_counters_tell)
{
    static struct tier_snapshot s;
    char path[] = "/tmp/check-profile-XXXXXX";
    struct told told;
    uint64_t events, dropped;
    close(mkstemp(path));
    run_profiled(path, 1 << 20, &s);
    read_timeline(path, &told, &events, &dropped);
    unlink(path);
    printf("%" PRIu64 " events: %" PRIu64 " steps, %" PRIu64 " operations, %" PRIu64 " waits, %"
           PRIu64 " reads, %" PRIu64 " experts hinted in (%" PRIu64 " useful, %" PRIu64 " late, %"
           PRIu64 " wasted), %" PRIu64 " other hints; parts are %.2f%% of the steps\n", events,
           told.steps, told.operations, told.waits, told.reads, told.ahead, told.useful, told.late,
           told.wasted, told.marks, 100 * told.parts_us / told.step_us);
    ck_assert_uint_eq(dropped, 0);
    ck_assert_uint_eq(told.steps, s.steps);
    ck_assert_uint_eq(told.layers, told.steps * 7);
    ck_assert_uint_gt(told.operations, told.layers * 10);
    ck_assert_uint_gt(told.waits, 0);
    ck_assert_uint_gt(told.marks, 0);
    ck_assert_uint_eq(told.reads, s.io.demand_reads + s.io.prefetch_reads);
    ck_assert_uint_gt(s.io.prefetch_useful, 0);
    ck_assert_uint_eq(told.useful, s.io.prefetch_useful);
    ck_assert_uint_ge(told.late, s.io.prefetch_late);   /* the queued are told as late, too */
    ck_assert_uint_eq(told.cancelled, s.io.prefetch_cancelled);
    ck_assert(told.parts_us <= told.step_us * 1.0001);
}
END_TEST

START_TEST(says_what_it_has_no_room_for)
{
    enum { MOST = 500 };
    static struct tier_snapshot s;
    char path[] = "/tmp/check-profile-XXXXXX";
    struct told told;
    uint64_t events, dropped;
    close(mkstemp(path));
    run_profiled(path, MOST, &s);
    read_timeline(path, &told, &events, &dropped);
    unlink(path);
    printf("%" PRIu64 " events kept, %" PRIu64 " dropped\n", events, dropped);
    ck_assert_uint_eq(events, MOST);
    ck_assert_uint_gt(dropped, 1000);
    ck_assert_uint_gt(told.steps, 0);       /* the newest ones */
    ck_assert_uint_lt(told.steps, s.steps);
}
END_TEST

START_TEST(a_path_that_cannot_be_written_is_told_at_once)
{
    static struct eng_stack stack;
    static struct eng_stack_config config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    struct base_err err = { 0 };
    base_option_defaults(groups, eng_stack_groups(&config, groups));
    struct eng_stack_args args = { .model_dir = run_pebble(), .config = &config, .quiet = true,
                                   .profile_path = "/nowhere/at/all.json" };
    ck_assert_int_lt(eng_stack_open(&stack, &args, &err), 0);
    ck_assert_msg(strstr(err.text, "/nowhere/at/all.json"), "%s", err.text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("profile");
    TCase *tests = tcase_create("profile");
    tcase_add_test(tests, tells_what_the_counters_tell);
    tcase_add_test(tests, says_what_it_has_no_room_for);
    tcase_add_test(tests, a_path_that_cannot_be_written_is_told_at_once);
    tcase_set_timeout(tests, 120);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
