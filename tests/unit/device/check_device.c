/* Devices move the right bytes, in order per queue, at the speed they were given, and keep to their
 * memory; on real and on virtual time. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "device/device.h"

enum { SLOT = 8192, SLOTS = 32 };

static const char *const names[] = { "sim", "host", "sim" };
static struct base_clock_virtual virtual_clock;

/* 0: sim, 1: host, 2: sim on virtual time. */
static struct dev *make(int kind, const struct dev_config *config)
{
    struct dev *dev;
    struct base_err err = { 0 };
    base_clock_virtual_init(&virtual_clock, 1000);
    struct base_clock *clock = kind == 2 ? &virtual_clock.clock : base_clock_real();
    ck_assert_msg(dev_create(&dev, dev_find(names[kind]), config, clock, &err) == 0, "%s",
                  err.text);
    return dev;
}

START_TEST(bytes_go_up_and_come_back)
{
    struct dev_config config = { .memory_bytes = SLOT * SLOTS, .bandwidth = 1ull << 30,
                                 .latency_ns = 1000 };
    struct dev *dev = make(_i, &config);
    struct base_rng rng;
    struct dev_copy copies[2][SLOTS], *done[SLOTS];
    unsigned char *host = malloc(SLOT * SLOTS), *back = malloc(SLOT * SLOTS);
    void *memory;
    base_rng_init(&rng, (uint64_t)_i);
    ck_assert_int_eq(dev_memory_alloc(dev, SLOT * SLOTS, &memory, NULL), 0);
    ck_assert_uint_eq((uintptr_t)memory % 4096, 0);
    for (int i = 0; i < SLOT * SLOTS; i++) host[i] = (unsigned char)base_rng_u64(&rng);
    memset(back, 0, SLOT * SLOTS);
    for (int way = 0; way < 2; way++) {
        for (int i = 0; i < SLOTS; i++) {
            char *at = (char *)memory + i * SLOT;
            struct dev_copy *c = &copies[way][i];
            *c = (struct dev_copy){ .queue = way ? DEV_DOWN : DEV_UP, .piece_count = 2 };
            for (int p = 0; p < 2; p++) {
                c->pieces[p].to = (way ? (char *)back + i * SLOT : at) + p * SLOT / 2;
                c->pieces[p].from = (way ? at : (char *)host + i * SLOT) + p * SLOT / 2;
                c->pieces[p].bytes = SLOT / 2;
            }
            dev_submit(dev, c);
        }
        int count = 0;
        uint64_t last = 0;
        while (count < SLOTS) {
            int n = dev_reap(dev, done, SLOTS, 1, UINT64_MAX);
            ck_assert_int_gt(n, 0);
            for (int i = 0; i < n; i++) {
                ck_assert_ptr_eq(done[i], &copies[way][count++]);       /* in order */
                ck_assert_int_eq(done[i]->result, 0);
                ck_assert_uint_ge(done[i]->done_ns, last);
                last = done[i]->done_ns;
            }
        }
        ck_assert_uint_eq(dev->in_flight, 0);
        ck_assert_int_eq(dev_reap(dev, done, SLOTS, 1, UINT64_MAX), 0);
    }
    ck_assert_mem_eq(host, back, SLOT * SLOTS);
    dev_destroy(dev);
    free(host);
    free(back);
}
END_TEST

START_TEST(queues_run_beside_each_other)
{
    struct dev_config config = { .memory_bytes = 2 * SLOT, .bandwidth = SLOT * 100ull };
    struct dev *dev = make(2, &config);         /* 10 ms a slot */
    struct dev_copy up[2], down, *done[4];
    char host[SLOT] = { 0 };
    void *memory;
    ck_assert_int_eq(dev_memory_alloc(dev, 2 * SLOT, &memory, NULL), 0);
    for (int i = 0; i < 2; i++) {
        up[i] = (struct dev_copy){ .queue = DEV_UP, .piece_count = 1,
                                   .pieces = { { memory, host, SLOT } } };
        dev_submit(dev, &up[i]);
    }
    down = (struct dev_copy){ .queue = DEV_DOWN, .piece_count = 1,
                              .pieces = { { host, (char *)memory + SLOT, SLOT } } };
    dev_submit(dev, &down);
    ck_assert_int_eq(dev_reap(dev, done, 4, 1, 5000000), 0);    /* too early */
    ck_assert_uint_eq(virtual_clock.time_ns, 5000000);
    ck_assert_int_eq(dev_reap(dev, done, 4, 2, UINT64_MAX), 2);
    ck_assert_uint_eq(up[0].done_ns, 10001000);
    ck_assert_uint_eq(down.done_ns, 10001000);
    ck_assert_int_eq(dev_reap(dev, done, 4, 1, UINT64_MAX), 1);
    ck_assert_uint_eq(up[1].done_ns, 20001000);
    dev_destroy(dev);
}
END_TEST

START_TEST(memory_is_bounded)
{
    struct dev_config config = { .memory_bytes = 3 * SLOT };
    struct dev *dev = make(_i, &config);
    struct base_err err = { 0 };
    void *memory;
    ck_assert_int_eq(dev_memory_alloc(dev, 2 * SLOT, &memory, &err), 0);
    ck_assert_int_eq(dev_memory_alloc(dev, 2 * SLOT, &memory, &err), BASE_EBUDGET);
    ck_assert_ptr_nonnull(strstr(err.text, "8 KiB"));
    ck_assert_int_eq(dev_memory_alloc(dev, SLOT, &memory, NULL), 0);
    dev_destroy(dev);
}
END_TEST

START_TEST(faults_come_from_the_seed)
{
    struct dev_config config = { .memory_bytes = SLOT, .fault_share = 0.3, .seed = 7 };
    unsigned failed[2] = { 0 };
    for (int run = 0; run < 2; run++) {
        struct dev *dev = make(run ? 2 : 0, &config);
        struct dev_copy copy, *done;
        char byte = 1;
        void *memory;
        ck_assert_int_eq(dev_memory_alloc(dev, SLOT, &memory, NULL), 0);
        for (int i = 0; i < 32; i++) {
            copy = (struct dev_copy){ .queue = DEV_UP, .piece_count = 1,
                                      .pieces = { { (char *)memory + i, &byte, 1 } } };
            dev_submit(dev, &copy);
            ck_assert_int_eq(dev_reap(dev, &done, 1, 1, UINT64_MAX), 1);
            if (copy.result == BASE_EDEVICE) failed[run] |= 1u << i;
            ck_assert_int_eq(((char *)memory)[i], copy.result == 0);
        }
        dev_destroy(dev);
    }
    ck_assert_uint_ne(failed[0], 0);
    ck_assert_uint_eq(failed[0], failed[1]);
}
END_TEST

/* In a build with the CUDA toolkit: a card, or a sentence. Without: no such device. */
START_TEST(cuda_is_a_card_or_a_sentence)
{
    struct dev_config config = { .memory_bytes = SLOT };
    struct base_err err = { 0 };
    struct dev *dev = NULL;
    if (!dev_find("cuda")) return;
    int rc = dev_create(&dev, dev_find("cuda"), &config, base_clock_real(), &err);
    ck_assert(rc == 0 || (rc == BASE_EDEVICE && strstr(err.text, "device cuda: ") && !dev));
    printf("cuda: %s\n", rc == 0 ? dev->note : err.text);
    dev_destroy(dev);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device");
    TCase *all = tcase_create("all");
    tcase_add_loop_test(all, bytes_go_up_and_come_back, 0, 3);
    tcase_add_test(all, queues_run_beside_each_other);
    tcase_add_loop_test(all, memory_is_bounded, 0, 2);
    tcase_add_test(all, faults_come_from_the_seed);
    tcase_add_test(all, cuda_is_a_card_or_a_sentence);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
