/* Loops over the experts of a layer, for predictors: compiled for the least processor and for AVX2,
 * chosen at run time.
 *
 * Both give the same bits: no fused operation, sums in 16 partial sums that are added in one fixed
 * tree, no library call. Tables learned on one machine go on learning the same way on another.
 *
 * n is any number >= 1; arrays do not overlap. No call allocates. Any thread.
 */
#ifndef PREDICTOR_LANES_H
#define PREDICTOR_LANES_H

#include <stdbool.h>
#include <stdint.h>

struct pred_lanes {
    const char *name;
    /* p -> log-odds of p, p first brought within [1e-4, 1 - 1e-4]. */
    void (*odds)(float *p, uint32_t n);
    /* x -> 1 / (1 + exp(-x)). */
    void (*sigmoid)(float *x, uint32_t n);
    /* x *= factor */
    void (*scale)(float *x, float factor, uint32_t n);
    /* to = a + b * x */
    void (*affine)(float *to, float a, float b, const float *x, uint32_t n);
    /* to = log-odds of (count * unit + belief * p) * factor */
    void (*frequency)(float *to, const float *count, float unit, const float *p, float belief,
                      float factor, uint32_t n);
    /* sums += table[given[j]] for all j in order; rows of the table have n entries. */
    void (*add_rows)(float *sums, const float *table, const uint32_t *given, uint32_t count,
                     uint32_t n);
    /* to -= step * x */
    void (*descend)(float *to, float step, const float *x, uint32_t n);
    /* lifts -= base, then sums += weight * lifts */
    void (*add_lifts)(float *sums, float *lifts, const float *base, float weight, uint32_t n);
    /* p = p * weight + counts * unit */
    void (*blend_counts)(float *p, float weight, const uint16_t *counts, float unit, uint32_t n);
    float (*sum)(const float *x, uint32_t n);
    float (*dot)(const float *x, const float *y, uint32_t n);
    /* Index of the last i with ids[i] == id and counts[i] > 0, or -1. n <= 32767. */
    int (*find)(const uint16_t *ids, const uint16_t *counts, uint16_t id, uint32_t n);
};

extern const struct pred_lanes pred_lanes_plain;
#if defined(__x86_64__)
extern const struct pred_lanes pred_lanes_avx2;
#endif

/* The best that this processor has. */
static inline const struct pred_lanes *pred_lanes(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return &pred_lanes_avx2;
#endif
    return &pred_lanes_plain;
}

#endif
