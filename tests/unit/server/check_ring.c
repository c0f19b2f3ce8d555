/* A ring gives out every record in order with its text, whatever the sizes, and keeps room for the
 * last one. */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "server/ring.h"

enum { RECORDS = 4000 };

static uint32_t text_bytes_of(uint64_t seed, uint32_t i)
{
    struct base_rng rng;
    base_rng_init(&rng, seed + i);
    return (uint32_t)base_rng_below(&rng, i % 100 == 0 ? 1500 : 40);
}

struct putter {
    struct srv_ring *ring;
    uint64_t seed;
};

static void *put_all(void *context)
{
    struct putter *p = context;
    char text[2048];
    for (uint32_t i = 0; i < RECORDS; i++) {
        struct srv_record record = { .token = i, .text_bytes = text_bytes_of(p->seed, i) };
        memset(text, 'a' + (int)(i % 26), record.text_bytes);
        while (!srv_ring_put(p->ring, &record, text, false)) {
            sched_yield();
        }
    }
    return NULL;
}

START_TEST(order_and_text_survive_two_threads)
{
    uint64_t seed = 4711 + (uint64_t)_i;
    struct srv_ring ring;
    ck_assert_int_eq(srv_ring_init(&ring, 1), 0);
    struct putter putter = { &ring, seed };
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, put_all, &putter), 0);
    struct base_buf text;
    base_buf_init(&text);
    for (uint32_t i = 0; i < RECORDS; i++) {
        struct srv_record record;
        base_buf_clear(&text);
        while (!srv_ring_take(&ring, &record, &text)) {
            sched_yield();
        }
        ck_assert_msg(record.token == i, "seed %llu: record %u is %lld", (unsigned long long)seed,
                      i, (long long)record.token);
        ck_assert_uint_eq(text.size, text_bytes_of(seed, i));
        for (size_t k = 0; k < text.size; k++) {
            ck_assert_int_eq(text.data[k], 'a' + (int)(i % 26));
        }
    }
    pthread_join(thread, NULL);
    ck_assert_uint_eq(srv_ring_used(&ring), 0);
    base_buf_fini(&text);
    srv_ring_fini(&ring);
}
END_TEST

START_TEST(the_last_record_always_fits)
{
    struct srv_ring ring;
    ck_assert_int_eq(srv_ring_init(&ring, 8192), 0);
    struct srv_record record = { .text_bytes = 100 };
    char text[SRV_RING_RESERVE * 2];
    memset(text, 'x', sizeof text);
    unsigned put = 0;
    while (srv_ring_put(&ring, &record, text, false)) {
        put++;
    }
    ck_assert_uint_gt(put, 40);
    ck_assert(srv_ring_half_full(&ring));
    /* More text than there is room: cut, and never inside a character. */
    for (size_t i = 0; i + 1 < sizeof text; i += 2) {
        memcpy(text + i, "é", 2);
    }
    struct srv_record last = { .kind = 2, .text_bytes = sizeof text };
    ck_assert(srv_ring_put(&ring, &last, text, true));
    struct base_buf taken;
    base_buf_init(&taken);
    for (unsigned i = 0; i < put; i++) {
        ck_assert(srv_ring_take(&ring, &record, &taken));
    }
    base_buf_clear(&taken);
    ck_assert(srv_ring_take(&ring, &record, &taken));
    ck_assert_uint_eq(record.kind, 2);
    ck_assert_uint_ge(taken.size, SRV_RING_RESERVE - sizeof record - 1);
    ck_assert_uint_eq(taken.size % 2, 0);
    ck_assert(!srv_ring_take(&ring, &record, &taken));
    base_buf_fini(&taken);
    srv_ring_fini(&ring);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ring");
    TCase *cases = tcase_create("ring");
    tcase_set_timeout(cases, 60);
    tcase_add_loop_test(cases, order_and_text_survive_two_threads, 0, 4);
    tcase_add_test(cases, the_last_record_always_fits);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
