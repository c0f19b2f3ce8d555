/* What hits neither allocates nor locks nor calls the system: acquire, wait, poll, release, hints
 * for experts that are there, through one and two tiers and every policy, with all calls of the
 * allocator, of pthread and of syscall caught (the linker's --wrap). The same traps see what a miss
 * does, so a trap that catches nothing would show. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/support/tier_settings.h"
#include "tests/support/tiny_store.h"
#include "tiering/policy.h"
#include "tiering/tiering.h"

enum { EXPERTS = 16, TOP_K = 4, LAYERS = 3, ROUNDS = 2000 };

/* -- traps ------------------------------------------------------------------------------------ */

static _Thread_local volatile bool armed;       /* the engine thread only: lanes may lock */
static volatile uint64_t caught;      /* malloc may change it, whatever a compiler knows */
static const char *first_caught;

static void trap(const char *name)
{
    if (!armed) return;
    if (caught++ == 0) first_caught = name;
}

#define TRAP(type, name, parameters, arguments)                                                   \
    type __real_##name parameters;                                                                \
    type __wrap_##name parameters;                                                                \
    type __wrap_##name parameters                                                                 \
    {                                                                                             \
        trap(#name);                                                                              \
        return __real_##name arguments;                                                           \
    }

TRAP(void *, malloc, (size_t n), (n))
TRAP(void *, calloc, (size_t n, size_t m), (n, m))
TRAP(void *, realloc, (void *p, size_t n), (p, n))
TRAP(void *, aligned_alloc, (size_t a, size_t n), (a, n))
TRAP(char *, strdup, (const char *s), (s))
TRAP(void *, mmap64, (void *p, size_t n, int a, int b, int c, off_t d), (p, n, a, b, c, d))
TRAP(int, pthread_mutex_lock, (pthread_mutex_t * m), (m))
TRAP(int, pthread_mutex_trylock, (pthread_mutex_t * m), (m))
TRAP(int, pthread_cond_wait, (pthread_cond_t * c, pthread_mutex_t *m), (c, m))
TRAP(int, pthread_cond_signal, (pthread_cond_t * c), (c))
TRAP(int, pthread_cond_broadcast, (pthread_cond_t * c), (c))

void __real_free(void *p);
void __wrap_free(void *p);
void __wrap_free(void *p)
{
    trap("free");
    __real_free(p);
}

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    trap("syscall");
    return __real_syscall(number, a, b, c, d, e, f);
}

/* -- a model and its tiers -------------------------------------------------------------------- */

static char dir[3000];
static struct tier_store *store;

static void setup(void)
{
    struct tiny_options options = tiny_moe(LAYERS, EXPERTS, TOP_K);
    store = tiny_store_open(dir, sizeof dir, "check_hot", &options);
}

static void teardown(void)
{
    tier_store_close(store);
    tiny_remove(dir);
}

static struct tier *open_tiers(const char *const *pairs)
{
    static struct tier_config config;
    static struct tier_io_config io;
    struct base_err err = { 0 };
    struct tier *tier = NULL;
    tier_settings_default(&config, &io);
    for (; *pairs; pairs++) tier_settings_set(&config, &io, "%s", *pairs);
    struct tier_open_args args = { .config = &config, .io = &io, .store = store, .top_k = TOP_K };
    ck_assert_msg(tier_open(&tier, &args, &err) == 0, "%s", err.text);
    return tier;
}

/* One acquire of TOP_K experts from `first` on; waits only for what is not there. True if all were
 * there. */
static bool visit(struct tier *tier, uint32_t layer, uint32_t first, enum tier_phase phase)
{
    struct tier_lease leases[TOP_K];
    uint32_t ids[TOP_K];
    bool there = true;
    for (uint32_t i = 0; i < TOP_K; i++) ids[i] = (first + i) % EXPERTS;
    uint32_t k = tier_acquire(tier, layer, ids, TOP_K, phase, leases);
    for (uint32_t i = 0; i < k; i++) there &= leases[i].status == 0;
    tier_wait(tier, leases, k, TIER_WAIT_ALL, UINT64_MAX);
    tier_release(tier, leases, k);
    return there && k == TOP_K;
}

static void hot_rounds(struct tier *tier)
{
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t layer = round % LAYERS;
        struct tier_hint hint = { layer, round / 3 % 8, 0.5f, 1 };
        if (!visit(tier, layer, round / 7 % 4, round % 5 ? TIER_DECODE : TIER_PREFILL)) {
            armed = false;
            ck_abort_msg("round %u found an expert missing", round);
        }
        tier_hint(tier, &hint, 1);
        tier_poll(tier);
        if (round % LAYERS == LAYERS - 1) tier_step_end(tier);
    }
}

static const char *const tiers[][4] = {
    { "tiers.dram.capacity=50%" },
    { "tiers.dram.capacity=50%", "tiers.hbm.capacity=50%", "tiers.hbm.sim_bandwidth=0" },
    { "tiers.dram.capacity=100%", "tiers.hbm.capacity=50%", "tiers.inclusion=inclusive" },
};

START_TEST(hits_neither_allocate_nor_lock)
{
    unsigned policies = 0;
    for (size_t i = 0; tier_policy_name(i); i++) {
        const char *name = tier_policy_name(i);
        char eviction[64], warm[3100];
        if (tier_policy_find(name)->replay_only) continue;
        snprintf(warm, sizeof warm, "tiers.warm.path=%s/resident.warm", dir);
        snprintf(eviction, sizeof eviction, "policy.eviction=%s", name);
        const char *pairs[8] = { eviction, "policy.prefill_share=100%" };
        unsigned count = 2;
        for (int p = 0; p < 4 && tiers[_i][p]; p++) pairs[count++] = tiers[_i][p];
        if (strcmp(name, "pinned") == 0) pairs[count] = warm;
        struct tier *tier = open_tiers(pairs);
        /* Experts 0 to 7 of each layer come in; then all there is are hits. */
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            for (int again = 0; again < 2; again++) {
                visit(tier, layer, 0, TIER_DECODE);
                visit(tier, layer, 4, TIER_DECODE);
            }
        }
        caught = 0;
        armed = true;
        hot_rounds(tier);
        armed = false;
        ck_assert_msg(caught == 0, "%s: %llu calls, the first of %s", name,
                      (unsigned long long)caught, first_caught);
        policies++;
        tier_close(tier);
    }
    printf("%s: %u policies x %d acquires of %d hits: no call of the allocator, a lock or the "
           "system\n", _i == 0 ? "dram" : _i == 1 ? "hbm, exclusive" : "hbm, inclusive", policies,
           ROUNDS, TOP_K);
    ck_assert_uint_ge(policies, 8);
}
END_TEST

/* Misses go to the threads backend: it locks its queue, and the traps see that. Nor do they
 * allocate. */
START_TEST(the_traps_work)
{
    const char *const pairs[] = { "io.backend=threads", "tiers.dram.capacity=25%", NULL };
    struct tier *tier = open_tiers(pairs);
    visit(tier, 0, 0, TIER_DECODE);
    caught = 0;
    first_caught = NULL;
    armed = true;
    bool there = visit(tier, 0, 8, TIER_DECODE);
    armed = false;
    ck_assert(!there);
    ck_assert_uint_gt(caught, 0);
    ck_assert_str_eq(first_caught, "pthread_mutex_lock");
    caught = 0;
    armed = true;
    void *volatile memory = malloc(10);
    free(memory);
    armed = false;
    uint64_t both = caught;     /* Check's own assertions free memory too */
    ck_assert_uint_eq(both, 2);
    tier_close(tier);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("hot");
    tcase_set_timeout(tcase, 60);
    tcase_add_unchecked_fixture(tcase, setup, teardown);
    tcase_add_loop_test(tcase, hits_neither_allocate_nor_lock, 0, 3);
    tcase_add_test(tcase, the_traps_work);
    Suite *suite = suite_create("hot");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
