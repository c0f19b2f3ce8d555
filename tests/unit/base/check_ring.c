/* Rings hand every item over once, in order and whole, alone and with a thread on each end. */
#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/ring.h"
#include "base/rng.h"

enum { ITEMS = 100000, PUSHERS = 3 };

/* Odd size on purpose; every field follows from the first two, so that a torn item shows. */
struct item {
    uint32_t pusher, number;
    uint32_t check[3];
};

static struct item make_item(uint32_t pusher, uint32_t number)
{
    return (struct item){ pusher, number, { number * 3, ~number, number ^ pusher } };
}

static bool is_whole(const struct item *item)
{
    struct item expected = make_item(item->pusher, item->number);
    return memcmp(&expected, item, sizeof expected) == 0;
}

START_TEST(alone_it_is_a_queue)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    uint32_t capacity = 2u << base_rng_below(&rng, 5);
    struct base_ring one;
    struct base_ring_many many;
    void *one_memory = malloc(base_ring_bytes(capacity, sizeof(struct item)));
    void *many_memory = malloc(base_ring_many_bytes(capacity, sizeof(struct item)));
    base_ring_init(&one, one_memory, capacity, sizeof(struct item));
    base_ring_many_init(&many, many_memory, capacity, sizeof(struct item));
    uint32_t pushed = 0, popped = 0;
    for (int step = 0; step < 5000; step++) {
        if (base_rng_below(&rng, 2)) {
            struct item item = make_item(0, pushed);
            bool fits = pushed - popped < capacity;
            ck_assert_int_eq(base_ring_push(&one, &item), fits);
            ck_assert_int_eq(base_ring_many_push(&many, &item), fits);
            pushed += fits;
        } else {
            struct item a, b;
            bool some = pushed != popped;
            ck_assert_int_eq(base_ring_pop(&one, &a), some);
            ck_assert_int_eq(base_ring_many_pop(&many, &b), some);
            if (!some) continue;
            ck_assert(is_whole(&a) && is_whole(&b));
            ck_assert_uint_eq(a.number, popped);
            ck_assert_uint_eq(b.number, popped);
            popped++;
        }
        ck_assert_uint_eq(base_ring_count(&one), pushed - popped);
        ck_assert_uint_eq(base_ring_many_count(&many), pushed - popped);
    }
    free(one_memory);
    free(many_memory);
}
END_TEST

struct pusher {
    struct base_ring *one;
    struct base_ring_many *many;
    uint32_t index;
};

static void *push_all(void *context)
{
    struct pusher *pusher = context;
    for (uint32_t n = 0; n < ITEMS; n++) {
        struct item item = make_item(pusher->index, n);
        while (pusher->one ? !base_ring_push(pusher->one, &item)
                           : !base_ring_many_push(pusher->many, &item)) {
            sched_yield();
        }
    }
    return NULL;
}

START_TEST(two_threads)
{
    struct base_ring ring;
    void *memory = malloc(base_ring_bytes(64, sizeof(struct item)));
    base_ring_init(&ring, memory, 64, sizeof(struct item));
    struct pusher pusher = { .one = &ring };
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, push_all, &pusher), 0);
    for (uint32_t n = 0; n < ITEMS; n++) {
        struct item item;
        while (!base_ring_pop(&ring, &item)) {
            sched_yield();
        }
        ck_assert_msg(is_whole(&item) && item.number == n, "item %u", n);
    }
    pthread_join(thread, NULL);
    ck_assert_uint_eq(base_ring_count(&ring), 0);
    free(memory);
}
END_TEST

START_TEST(many_threads)
{
    struct base_ring_many ring;
    void *memory = malloc(base_ring_many_bytes(16, sizeof(struct item)));
    base_ring_many_init(&ring, memory, 16, sizeof(struct item));
    struct pusher pushers[PUSHERS];
    pthread_t threads[PUSHERS];
    uint32_t next[PUSHERS] = { 0 };
    for (uint32_t p = 0; p < PUSHERS; p++) {
        pushers[p] = (struct pusher){ .many = &ring, .index = p };
        ck_assert_int_eq(pthread_create(&threads[p], NULL, push_all, &pushers[p]), 0);
    }
    for (uint32_t n = 0; n < PUSHERS * ITEMS; n++) {
        struct item item;
        while (!base_ring_many_pop(&ring, &item)) {
            sched_yield();
        }
        ck_assert(is_whole(&item) && item.pusher < PUSHERS);
        ck_assert_uint_eq(item.number, next[item.pusher]);
        next[item.pusher]++;
    }
    for (uint32_t p = 0; p < PUSHERS; p++) {
        pthread_join(threads[p], NULL);
        ck_assert_uint_eq(next[p], ITEMS);
    }
    free(memory);
}
END_TEST

/* After 2^32 pushes the counters wrap; begin just before. */
START_TEST(counters_wrap)
{
    struct base_ring ring;
    uint64_t memory[4], value;
    base_ring_init(&ring, memory, 4, sizeof value);
    atomic_store(&ring.pushed, UINT32_MAX - 1);
    atomic_store(&ring.popped, UINT32_MAX - 1);
    ring.pushed_seen = ring.popped_seen = UINT32_MAX - 1;
    for (uint64_t n = 0; n < 40; n += 4) {
        for (uint64_t k = 0; k < 4; k++) {
            value = n + k;
            ck_assert(base_ring_push(&ring, &value));
        }
        ck_assert(!base_ring_push(&ring, &value));
        for (uint64_t k = 0; k < 4; k++) {
            ck_assert(base_ring_pop(&ring, &value));
            ck_assert_uint_eq(value, n + k);
        }
        ck_assert(!base_ring_pop(&ring, &value));
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("ring");
    tcase_set_timeout(tcase, 100);
    tcase_add_loop_test(tcase, alone_it_is_a_queue, 0, 10);
    tcase_add_test(tcase, two_threads);
    tcase_add_test(tcase, many_threads);
    tcase_add_test(tcase, counters_wrap);
    Suite *suite = suite_create("base/ring");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
