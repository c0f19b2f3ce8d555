/* Memory is zeroed, aligned and counted by tag; after the freeze only cold tags may take more. */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/asan.h"
#include "base/mem.h"
#include "base/rng.h"

static struct base_mem_tag warm = { .name = "warm" };
static struct base_mem_tag cold = { .name = "cold", .cold = true };
static struct base_mem_tag twin = { .name = "warm" };

START_TEST(blocks_are_zeroed_aligned_and_counted)
{
    struct base_rng rng;
    base_rng_init(&rng, (uint64_t)_i);
    enum { BLOCKS = 40 };
    char *block[BLOCKS];
    size_t size[BLOCKS], sum = 0;
    for (int i = 0; i < BLOCKS; i++) {
        size[i] = base_rng_below(&rng, 5) ? base_rng_below(&rng, 3000)
                                          : base_rng_below(&rng, 9u << 20);
        size_t align = (size_t)1 << base_rng_below(&rng, 13);
        block[i] = base_mem_alloc(&warm, size[i], align);
        ck_assert_ptr_nonnull(block[i]);
        ck_assert_uint_eq((size_t)block[i] % align, 0);
        size_t at = 0;
        while (at < size[i] && block[i][at] == 0) {
            at += 97;
        }
        ck_assert_uint_ge(at, size[i]);
        if (size[i]) memset(block[i], 0xaa, size[i]);
        sum += size[i];
        ck_assert_uint_eq(warm.bytes, sum);
        ck_assert_uint_eq(base_mem_total(), sum);
    }
    for (int i = 0; i < BLOCKS; i++) {
        base_mem_free(&warm, block[i], size[i]);
    }
    base_mem_free(&warm, NULL, 5);
    ck_assert_uint_eq(warm.bytes, 0);
    ck_assert_uint_eq(warm.bytes_max, sum);
    ck_assert_uint_eq(base_mem_total(), 0);
}
END_TEST

START_TEST(large_blocks_begin_at_huge_pages)
{
#if !BASE_ASAN
    char *memory = base_mem_alloc(&warm, 5u << 20, 64);
    ck_assert_uint_eq((size_t)memory % (2u << 20), 0);
    base_mem_free(&warm, memory, 5u << 20);
    ck_assert_ptr_null(base_mem_alloc(&warm, SIZE_MAX - 5, 64));   /* ASan would stop here */
#endif
    ck_assert_uint_eq(warm.bytes, 0);
}
END_TEST

static void remember(void *context, const char *name, uint64_t bytes, uint64_t bytes_max)
{
    char *text = context;
    sprintf(text + strlen(text), "%s %llu %llu;", name, (unsigned long long)bytes,
            (unsigned long long)bytes_max);
}

START_TEST(tags_are_listed)
{
    char text[200] = "";
    void *a = base_mem_alloc(&warm, 100, 8), *b = base_mem_alloc(&cold, 50, 8);
    base_mem_free(&warm, a, 100);
    base_mem_each(remember, text);
    ck_assert_str_eq(text, "warm 0 100;cold 50 50;");
    base_mem_free(&cold, b, 50);
}
END_TEST

START_TEST(cold_tags_pass_the_freeze)
{
    void *early = base_mem_alloc(&warm, 10, 8);
    base_mem_freeze();
    ck_assert(base_mem_frozen());
    void *late = base_mem_alloc(&cold, 10, 8);
    ck_assert_ptr_nonnull(late);
    base_mem_free(&cold, late, 10);
    base_mem_free(&warm, early, 10);
    base_mem_thaw();
    early = base_mem_alloc(&warm, 10, 8);
    base_mem_free(&warm, early, 10);
}
END_TEST

START_TEST(other_tags_abort_after_the_freeze)
{
    base_mem_freeze();
    base_mem_alloc(&warm, 10, 8);
}
END_TEST

START_TEST(two_tags_of_one_name_abort)
{
    base_mem_alloc(&warm, 10, 8);
    base_mem_alloc(&twin, 10, 8);
}
END_TEST

START_TEST(freeing_more_than_there_is_aborts)
{
    void *memory = base_mem_alloc(&warm, 10, 8);
    base_mem_free(&warm, memory, 11);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("mem");
    tcase_add_loop_test(tcase, blocks_are_zeroed_aligned_and_counted, 0, 5);
    tcase_add_test(tcase, large_blocks_begin_at_huge_pages);
    tcase_add_test(tcase, tags_are_listed);
    tcase_add_test(tcase, cold_tags_pass_the_freeze);
    tcase_add_test_raise_signal(tcase, other_tags_abort_after_the_freeze, SIGABRT);
    tcase_add_test_raise_signal(tcase, two_tags_of_one_name_abort, SIGABRT);
    tcase_add_test_raise_signal(tcase, freeing_more_than_there_is_aborts, SIGABRT);
    Suite *suite = suite_create("base/mem");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
