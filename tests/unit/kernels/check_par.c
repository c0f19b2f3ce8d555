/* Shows that a pool runs every chunk exactly once, on a thread of the pool, whether its workers
 * spin or sleep, and that the submitter sees all they wrote. */
#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/rng.h"
#include "kernels/par.h"

enum { CHUNKS_MAX = 600 };

struct tally {
    uint32_t runs[CHUNKS_MAX];      /* plain memory: kern_par_run alone must order it */
    uint32_t threads;
    _Atomic(uint32_t) strangers;
    uint32_t burn;
};

static void tally_chunk(void *context, uint32_t chunk, unsigned thread)
{
    struct tally *tally = context;
    volatile uint32_t sink = 0;
    if (thread >= tally->threads)
        atomic_fetch_add(&tally->strangers, 1);
    for (uint32_t i = 0; i < tally->burn; i++)
        sink = sink + i;
    (void)sink;
    tally->runs[chunk]++;
}

static void rounds_run(unsigned threads, unsigned rounds, uint64_t seed)
{
    struct kern_par *par;
    struct base_rng rng;
    base_rng_init(&rng, seed);
    ck_assert_int_eq(kern_par_create(&par, threads, NULL, NULL), 0);
    ck_assert_uint_eq(kern_par_threads(par), threads);
    for (unsigned round = 0; round < rounds; round++) {
        struct tally tally = { .threads = threads };
        const uint32_t chunks = (uint32_t)base_rng_below(&rng, CHUNKS_MAX + 1);
        tally.burn = (uint32_t)base_rng_below(&rng, 200);
        if (base_rng_below(&rng, 50) == 0)
            usleep(200);            /* longer than the spin: the workers sleep */
        kern_par_run(par, chunks, tally_chunk, &tally);
        ck_assert_uint_eq(tally.strangers, 0);
        for (uint32_t i = 0; i < CHUNKS_MAX; i++) {
            ck_assert_msg(tally.runs[i] == (i < chunks),
                          "seed %llu round %u: chunk %u ran %u times",
                          (unsigned long long)seed, round, i, tally.runs[i]);
        }
    }
    kern_par_destroy(par);
}

START_TEST(every_chunk_runs_once)
{
    rounds_run(1, 50, 1);
    rounds_run(2, 2000, 2);
    rounds_run(3, 500, 3);
    rounds_run(8, 200, 4);
}
END_TEST

static void bind_note(void *context, unsigned index)
{
    atomic_fetch_or((_Atomic(uint32_t) *)context, UINT32_C(1) << index);
}

static void nothing(void *context, uint32_t chunk, unsigned thread)
{
    (void)context;
    (void)chunk;
    (void)thread;
}

START_TEST(bind_is_called_on_each_worker_but_not_the_caller)
{
    _Atomic(uint32_t) seen = 0;
    struct kern_par *par;
    ck_assert_int_eq(kern_par_create(&par, 5, bind_note, &seen), 0);
    kern_par_run(par, 100, nothing, NULL);
    kern_par_destroy(par);
    ck_assert_uint_eq(seen, 0x1e);
    kern_par_destroy(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("par");
    TCase *tests = tcase_create("par");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, every_chunk_runs_once);
    tcase_add_test(tests, bind_is_called_on_each_worker_but_not_the_caller);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
