/* The loops of lanes.h, written for compilers to turn into vector code; lanes_plain.c and
 * lanes_avx2.c include them under different compiler flags. */
#ifndef PREDICTOR_LANES_SET_H
#define PREDICTOR_LANES_SET_H

#include <string.h>

#include "predictor/lanes.h"

/* Sums are kept in 16 lanes: two of these, written out because compilers do not find them by
 * themselves. Where the processor's vectors are shorter each becomes two. */
enum { LANES = 16, LANES_HALF = 8 };
struct lanes_half {
    float v __attribute__((vector_size(LANES_HALF * sizeof(float))));
};

static inline struct lanes_half lanes_load(const float *from)
{
    struct lanes_half half;
    memcpy(&half, from, sizeof half);
    return half;
}

/* Natural logarithm to about 2e-5; x > 0. */
static inline float lanes_log(float x)
{
    union {
        float f;
        uint32_t u;
    } bits = { x };
    float exponent = (float)((int32_t)(bits.u >> 23) - 127);
    bits.u = (bits.u & 0x7fffffu) | 0x3f800000u;
    float m = bits.f;
    /* log(m) on [1, 2): Chebyshev fit of degree 5. */
    float p = -1.93166699f +
              m * (3.49821366f +
                   m * (-2.42079517f + m * (1.10479788f + m * (-0.28062954f + m * 0.03010229f))));
    return exponent * 0.69314718f + p;
}

static inline float lanes_log_odds(float p)
{
    p = p < 1e-4f ? 1e-4f : p;
    p = p > 0.9999f ? 0.9999f : p;
    return lanes_log(p / (1.0f - p));
}

/* exp to about 2e-7 of its value, for |x| <= 80; beyond it is held there. */
static inline float lanes_exp(float x)
{
    x = x < -80.0f ? -80.0f : x;
    x = x > 80.0f ? 80.0f : x;
    float t = x * 1.44269504f;
    /* Adding and taking away 1.5 * 2^23 rounds to the nearest whole number. */
    float whole = (t + 12582912.0f) - 12582912.0f;
    float r = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f +
                                                  r * (0.0416666667f + r * (0.00833333333f +
                                                                            r * 0.00138888889f)))));
    union {
        uint32_t u;
        float f;
    } power = { (uint32_t)((int32_t)whole + 127) << 23 };
    return p * power.f;
}

static inline void lanes_odds(float *restrict p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        p[i] = lanes_log_odds(p[i]);
}

static inline void lanes_sigmoid(float *restrict x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = 1.0f / (1.0f + lanes_exp(-x[i]));
}

static inline void lanes_scale(float *restrict x, float factor, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] *= factor;
}

static inline void lanes_affine(float *restrict to, float a, float b, const float *restrict x,
                                uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] = a + b * x[i];
}

static inline void lanes_frequency(float *restrict to, const float *restrict count, float unit,
                                   const float *restrict p, float belief, float factor, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        to[i] = lanes_log_odds((count[i] * unit + belief * p[i]) * factor);
    }
}

static inline void lanes_add_rows(float *restrict sums, const float *restrict table,
                                  const uint32_t *restrict given, uint32_t count, uint32_t n)
{
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        struct lanes_half low = lanes_load(sums + i), high = lanes_load(sums + i + LANES_HALF);
        for (uint32_t j = 0; j < count; j++) {
            const float *row = table + (uint64_t)given[j] * n + i;
            low.v += lanes_load(row).v;
            high.v += lanes_load(row + LANES_HALF).v;
        }
        memcpy(sums + i, &low, sizeof low);
        memcpy(sums + i + LANES_HALF, &high, sizeof high);
    }
    for (; i < n; i++) {
        for (uint32_t j = 0; j < count; j++)
            sums[i] += table[(uint64_t)given[j] * n + i];
    }
}

static inline void lanes_descend(float *restrict to, float step, const float *restrict x,
                                 uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        to[i] -= step * x[i];
}

static inline void lanes_add_lifts(float *restrict sums, float *restrict lifts,
                                   const float *restrict base, float weight, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        lifts[i] -= base[i];
        sums[i] += weight * lifts[i];
    }
}

static inline void lanes_blend_counts(float *restrict p, float weight,
                                      const uint16_t *restrict counts, float unit, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        p[i] = p[i] * weight + (float)counts[i] * unit;
}

/* lane j += lane j + 8, j + 4, j + 2, j + 1 */
static inline float lanes_total(const struct lanes_half *low, const struct lanes_half *high)
{
    float lane[LANES_HALF];
    struct lanes_half sum = { low->v + high->v };
    memcpy(lane, &sum, sizeof lane);
    for (int j = 0; j < 4; j++)
        lane[j] += lane[j + 4];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

static inline float lanes_sum(const float *restrict x, uint32_t n)
{
    struct lanes_half low = { { 0 } }, high = { { 0 } };
    float rest[LANES] = { 0 };
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low.v += lanes_load(x + i).v;
        high.v += lanes_load(x + i + LANES_HALF).v;
    }
    if (i < n) {
        for (uint32_t j = 0; i + j < n; j++)
            rest[j] = x[i + j];
        low.v += lanes_load(rest).v;
        high.v += lanes_load(rest + LANES_HALF).v;
    }
    return lanes_total(&low, &high);
}

static inline float lanes_dot(const float *restrict x, const float *restrict y, uint32_t n)
{
    struct lanes_half low = { { 0 } }, high = { { 0 } };
    float rest[LANES] = { 0 };
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low.v += lanes_load(x + i).v * lanes_load(y + i).v;
        high.v += lanes_load(x + i + LANES_HALF).v * lanes_load(y + i + LANES_HALF).v;
    }
    if (i < n) {
        for (uint32_t j = 0; i + j < n; j++)
            rest[j] = x[i + j] * y[i + j];
        low.v += lanes_load(rest).v;
        high.v += lanes_load(rest + LANES_HALF).v;
    }
    return lanes_total(&low, &high);
}

static inline int lanes_find(const uint16_t *restrict ids, const uint16_t *restrict counts,
                             uint16_t id, uint32_t n)
{
    int16_t found = -1;
    for (uint32_t i = 0; i < n; i++) {
        int16_t here = ((ids[i] == id) & (counts[i] != 0)) ? (int16_t)i : -1;
        found = here > found ? here : found;
    }
    return found;
}

#define LANES_TABLE(set) \
    { \
        .name = set, .odds = lanes_odds, .sigmoid = lanes_sigmoid, .scale = lanes_scale, \
        .affine = lanes_affine, .frequency = lanes_frequency, .add_rows = lanes_add_rows, \
        .descend = lanes_descend, .add_lifts = lanes_add_lifts, .sum = lanes_sum, \
        .dot = lanes_dot, .find = lanes_find, .blend_counts = lanes_blend_counts \
    }

#endif
