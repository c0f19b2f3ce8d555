/* Samples of products fit the pool and the room for results, on machines of any size. */
#include <check.h>
#include <stdlib.h>

#include "tools/bench_products.h"

START_TEST(samples_fit_on_any_machine)
{
    static const uint32_t batches[] = { 1, 2, 4, 8, 32, 128 };
    static const struct bench_products bench;
    static float x[1];
    for (size_t t = 0; t < bench_product_type_count; t++) {
        const struct bench_product_type *type = &bench_product_types[t];
        for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
            struct bench_product p = { .bench = &bench, .m = batches[i] };
            const uint32_t rows = batches[i] < 32 ? BENCH_PRODUCT_ROWS : BENCH_PRODUCT_ROWS / 8;
            p.w = (struct kern_matrix){ .dtype = type->dtype, .scales = x,
                                        .cols = type->cols ? type->cols : 2048,
                                        .scale_cols = type->scale };
            for (unsigned threads = 1; threads <= 512; threads++) {
                bench_product_crowd(&p, rows, threads);
                ck_assert_uint_ge(p.w.rows, rows);
                ck_assert_uint_le(bench_product_bytes(&p.w), BENCH_POOL_BYTES / 8);
                ck_assert_uint_le((uint64_t)p.w.rows * p.m, BENCH_FLOATS);
                ck_assert_uint_gt(p.chunks, 0);
                ck_assert_uint_ge(p.w.rows / p.chunks, 8); /* of a row group each, at least */
                ck_assert_msg(p.chunks >= threads || p.chunks >= 64, "%s, m=%u, %u threads: %u "
                              "parts", type->name, p.m, threads, p.chunks);
            }
            bench_product_crowd(&p, rows, 2);
            ck_assert_uint_eq(p.w.rows, rows);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("products");
    TCase *cases = tcase_create("products");
    tcase_add_test(cases, samples_fit_on_any_machine);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
