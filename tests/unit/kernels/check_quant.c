/* Quantising: codes and scales give back what they were made from, within half a step for INT8 and
 * never worse than the plain range for INT4; tails, zeros, extremes and what is no number. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kern.h"
#include "kernels/quant.h"

enum { COLS_MAX = 700 };

static float row[COLS_MAX], back[COLS_MAX], scale[COLS_MAX];
static uint8_t codes[COLS_MAX + 64];
static uint16_t scales[COLS_MAX];

/* Decodes what kern_quant_row wrote. */
static void decode(enum kern_dtype dtype, uint32_t group, uint32_t cols)
{
    const struct kern_ops *ops = kern_ops_variant(KERN_CPU_REFERENCE);
    ops->to_f32(back, codes, dtype, cols);
    ops->to_f32(scale, scales, KERN_BF16, (cols + group - 1) / group);
    for (uint32_t k = 0; k < cols; k++)
        back[k] *= scale[k / group];
}

static float largest(uint32_t begin, uint32_t end)
{
    float most = 0;
    for (uint32_t k = begin; k < end; k++)
        most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
    return most;
}

START_TEST(rows_come_back)
{
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        const enum kern_dtype dtype = seed % 2 ? KERN_INT8 : KERN_INT4;
        const uint32_t group = seed / 2 % 2 ? 32 : 128;
        const uint32_t cols = 1 + (uint32_t)base_rng_below(&rng, COLS_MAX);
        /* Of any size whose scales are normal numbers. */
        const float size = ldexpf(1.0f, (int)base_rng_below(&rng, 200) - 100);
        for (uint32_t k = 0; k < cols; k++)
            row[k] = size * (float)base_rng_normal(&rng) * (k / group % 3 == 2 ? 0.001f : 1.0f);
        struct kern_quant_error error = { 0 };
        ck_assert(kern_quant_row(dtype, group, row, cols, codes, (uint8_t *)scales, &error));
        decode(dtype, group, cols);
        double wanted = 0, plain = 0, energy = 0;
        for (uint32_t k = 0; k < cols; k++) {
            const uint32_t begin = k / group * group;
            const uint32_t end = begin + group < cols ? begin + group : cols;
            const float most = largest(begin, end);
            /* Half a step of a scale that bf16 rounded up by at most 2^-7. */
            if (dtype == KERN_INT8)
                ck_assert_msg(fabsf(row[k] - back[k]) <= most / 127 * 0.5f * 1.0079f,
                              "seed %llu column %u: %g came back as %g", (unsigned long long)seed,
                              k, row[k], back[k]);
            const double off = (double)row[k] - (double)back[k];
            const double step = (double)most / 7;
            const double near = row[k] - step * nearbyint((double)row[k] / step);
            wanted += off * off;
            plain += most > 0 ? near * near : 0;
            energy += (double)row[k] * row[k];
        }
        if (dtype == KERN_INT4)
            ck_assert_msg(wanted <= plain * 1.02, "seed %llu: %g, symmetric range %g",
                          (unsigned long long)seed, wanted, plain);
        ck_assert(fabs(error.error - wanted) <= 1e-6 * wanted + 1e-300);
        ck_assert(fabs(error.energy - energy) <= 1e-9 * energy);
    }
}
END_TEST

START_TEST(zeros_stay_zero)
{
    for (int i = 0; i < 2; i++) {
        const enum kern_dtype dtype = i ? KERN_INT8 : KERN_INT4;
        struct kern_quant_error error = { 0 };
        memset(row, 0, sizeof row);
        memset(codes, 0xff, sizeof codes);
        ck_assert(kern_quant_row(dtype, 32, row, 70, codes, (uint8_t *)scales, &error));
        for (size_t k = 0; k < kern_row_bytes(dtype, 70); k++)
            ck_assert_uint_eq(codes[k], 0);
        decode(dtype, 32, 70);
        for (int k = 0; k < 70; k++)
            ck_assert(back[k] == 0.0f);
        ck_assert(error.energy == 0 && error.error == 0);
    }
}
END_TEST

START_TEST(what_is_no_number_is_refused)
{
    static const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 6; i++) {
        struct kern_quant_error error = { 0 };
        for (int k = 0; k < 100; k++)
            row[k] = 0.5f;
        row[17 + i * 13] = bad[i % 3];
        ck_assert(!kern_quant_row(i < 3 ? KERN_INT8 : KERN_INT4, 32, row, 100, codes,
                                  (uint8_t *)scales, &error));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quant");
    TCase *tests = tcase_create("rows");
    tcase_add_test(tests, rows_come_back);
    tcase_add_test(tests, zeros_stay_zero);
    tcase_add_test(tests, what_is_no_number_is_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
