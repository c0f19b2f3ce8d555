/* Shows that the reference op set computes what its names say: each operation against a naive one
 * in double precision, within a bound that the order of summation explains. The other op sets equal
 * the reference bit for bit (tests/kernels/kcheck). */
#include <check.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kern.h"
#include "kernels/tile.h"
#include "kernels/x16.h"

static const struct kern_ops *ops;

static float normal(struct base_rng *rng)
{
    return (float)base_rng_normal(rng);
}

/* Units in the last place of `exact`, in float. */
static double ulps(float got, double exact)
{
    const float near = (float)exact;
    if (isinf(near) || isinf(got))
        return got == near ? 0 : 1e9;
    int exponent;
    frexp(exact, &exponent);
    const int unit = exponent - 24 < -149 ? -149 : exponent - 24;
    return fabs((double)got - exact) / ldexp(1, unit);
}

START_TEST(exp_is_within_two_ulp)
{
    double worst = 0, worst_at = 0;
    for (double x = -104; x <= 89; x += 1.0 / 4099) {
        const float at = (float)x;
        const double error = ulps(kern_exp(at), exp((double)at));
        if (error > worst) {
            worst = error;
            worst_at = x;
        }
    }
    ck_assert_msg(worst <= 2, "exp is off by %.3f ulp at %.6f", worst, worst_at);
    ck_assert_float_eq(kern_exp(0.0f), 1.0f);
    ck_assert_float_eq(kern_exp(-0.0f), 1.0f);
    ck_assert(isinf(kern_exp(88.7229f)) && isinf(kern_exp(INFINITY)) && isinf(kern_exp(3e38f)));
    ck_assert(isfinite(kern_exp(88.7228f)));
    ck_assert_float_eq(kern_exp(-104.0f), 0.0f);
    ck_assert_float_eq(kern_exp(-INFINITY), 0.0f);
    ck_assert_float_eq(kern_exp(-103.9f), 0x1p-149f);
    ck_assert(isnan(kern_exp(NAN)));
}
END_TEST

/* e4m3fn by its definition. */
static double fp8_value(uint8_t code)
{
    const int exponent = code >> 3 & 15, fraction = code & 7;
    if ((code & 0x7f) == 0x7f)
        return NAN;
    const double magnitude =
        exponent ? ldexp(1 + fraction / 8.0, exponent - 7) : ldexp(fraction, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

START_TEST(fp8_decodes_by_its_definition)
{
    for (int code = 0; code < 256; code++) {
        const uint8_t byte = (uint8_t)code;
        float value;
        ops->to_f32(&value, &byte, KERN_FP8_E4M3, 1);
        if (isnan(fp8_value(byte))) {
            ck_assert(isnan(value));
        } else {
            ck_assert(value == (float)fp8_value(byte));
            ck_assert(!!signbit(value) == code >> 7);
        }
    }
}
END_TEST

/* kern.h's layout, written out: two's complement, and of a nibble block the columns that each byte
 * holds. */
START_TEST(int8_and_int4_decode_by_their_layout)
{
    enum { COLS = 150, BYTES = 96 };
    uint8_t bytes[BYTES + COLS];
    float values[COLS];
    ck_assert_uint_eq(kern_row_bytes(KERN_INT4, COLS), BYTES);
    ck_assert_uint_eq(kern_row_bytes(KERN_INT8, COLS), COLS);
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 151 + 77);
    ops->to_f32(values, bytes, KERN_INT8, COLS);
    for (int i = 0; i < COLS; i++)
        ck_assert(values[i] == (float)(bytes[i] > 127 ? bytes[i] - 256 : bytes[i]));
    ops->to_f32(values, bytes, KERN_INT4, COLS);
    for (int i = 0; i < COLS; i++) {
        const uint8_t byte = bytes[i / 64 * 32 + i % 32];
        const int nibble = i % 64 < 32 ? byte & 15 : byte >> 4;
        ck_assert(values[i] == (float)(nibble > 7 ? nibble - 16 : nibble));
    }
}
END_TEST

START_TEST(f16_decodes_as_the_compiler_does)
{
    for (uint32_t code = 0; code < 0x10000; code++) {
        const uint16_t bits = (uint16_t)code;
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float value;
        ops->to_f32(&value, &bits, KERN_F16, 1);
        if (exponent == 31) {
            ck_assert(fraction ? isnan(value) : isinf(value));
        } else {
            const double magnitude =
                exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
            ck_assert(value == (float)(bits & 0x8000 ? -magnitude : magnitude));
        }
    }
}
END_TEST

START_TEST(bf16_rounds_to_nearest_even)
{
    struct base_rng rng;
    base_rng_init(&rng, 11);
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)base_rng_u64(&rng);
        if (i % 4 == 0)
            bits = (bits & 0xffff0000u) | 0x8000u;      /* ties */
        float value, back;
        uint16_t code;
        memcpy(&value, &bits, 4);
        ops->to_bf16(&code, &value, 1);
        ops->to_f32(&back, &code, KERN_BF16, 1);
        if (isnan(value)) {
            ck_assert(isnan(back));
            continue;
        }
        const uint32_t low = bits & 0xffff0000u, high = low + 0x10000u;
        float floor_value, ceil_value;
        memcpy(&floor_value, &low, 4);
        memcpy(&ceil_value, &high, 4);
        const uint32_t rest = bits & 0xffffu;
        const bool up = rest > 0x8000u || (rest == 0x8000u && (low >> 16 & 1));
        ck_assert(up ? !memcmp(&back, &ceil_value, 4) : !memcmp(&back, &floor_value, 4));
    }
}
END_TEST

/* |error| <= (K/16 + 8) eps sum |w x| bounds 16 running sums, the tree and the scales. */
START_TEST(matmul_is_within_its_bound)
{
    enum { ROWS = 5, M = 2 };
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        const uint32_t cols = 1 + (uint32_t)base_rng_below(&rng, 700);
        const uint32_t scale_cols = 1 + (uint32_t)base_rng_below(&rng, 200);
        const uint32_t scale_stride = (cols + scale_cols - 1) / scale_cols;
        uint8_t *data = malloc((size_t)ROWS * cols);
        float *scales = malloc(ROWS * scale_stride * sizeof *scales);
        float *x = malloc(M * cols * sizeof *x), y[M * ROWS];
        for (uint32_t i = 0; i < ROWS * cols; i++)
            data[i] = (uint8_t)(base_rng_below(&rng, 0x7f) | (base_rng_u64(&rng) & 0x80));
        for (uint32_t i = 0; i < ROWS * scale_stride; i++)
            scales[i] = 0.001f * fabsf(normal(&rng));
        for (uint32_t i = 0; i < M * cols; i++)
            x[i] = normal(&rng);
        const struct kern_matrix w = { .dtype = KERN_FP8_E4M3, .rows = ROWS, .cols = cols,
                                       .data = data, .scales = scales, .scale_rows = 2,
                                       .scale_cols = scale_cols };
        const struct kern_matmul args = { .w = &w, .x = x, .y = y, .m = M, .x_stride = cols,
                                          .y_stride = ROWS, .k_blocks = seed % 2 ? 1 : 8 };
        ops->matmul(&args, 0, ROWS);
        for (uint32_t m = 0; m < M; m++) {
            for (uint32_t n = 0; n < ROWS; n++) {
                double exact = 0, size = 0;
                for (uint32_t k = 0; k < cols; k++) {
                    const double term = fp8_value(data[n * cols + k]) *
                                        scales[n / 2 * scale_stride + k / scale_cols] *
                                        x[m * cols + k];
                    exact += term;
                    size += fabs(term);
                }
                const double bound = (cols / 16.0 + 8) * FLT_EPSILON * size;
                ck_assert_msg(fabs(y[m * ROWS + n] - exact) <= bound, "seed %llu: %g, not %g",
                              (unsigned long long)seed, y[m * ROWS + n], exact);
            }
        }
        float *t = malloc(cols * sizeof *t);
        ops->matmul_t(&w, 1, ROWS, x, t);
        for (uint32_t c = 0; c < cols; c++) {
            double exact = 0, size = 0;
            for (uint32_t d = 1; d < ROWS; d++) {
                const double term = fp8_value(data[d * cols + c]) * x[d - 1] *
                                    scales[d / 2 * scale_stride + c / scale_cols];
                exact += term;
                size += fabs(term);
            }
            ck_assert(fabs(t[c] - exact) <= 8 * FLT_EPSILON * size);
        }
        free(t);
        free(data);
        free(scales);
        free(x);
    }
}
END_TEST

/* bf16 activations: against the same rounded activations in double, what the order explains. */
START_TEST(rounded_activations_lose_nothing_more)
{
    enum { ROWS = 5, COLS = 384 };
    static uint8_t codes[ROWS * COLS * 2];
    static uint16_t row[COLS], rounded[COLS];
    static float scales[ROWS * COLS / 64], x[COLS], got[ROWS], all[COLS], values[COLS];
    for (uint64_t seed = 1; seed <= 80; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        struct kern_matrix w = { .dtype = seed % 2 ? KERN_FP8_E4M3 : KERN_BF16, .rows = ROWS,
                                 .cols = COLS, .data = codes, .scale_rows = 1, .scales = scales,
                                 .scale_cols = seed % 4 < 2 ? 64 : 128 };
        for (size_t i = 0; i < sizeof codes; i++)
            codes[i] = (uint8_t)base_rng_u64(&rng) & 0xbf; /* no NaN in any type */
        const uint32_t per_row = COLS / w.scale_cols;
        for (uint32_t i = 0; i < ROWS * per_row; i++)
            scales[i] = normal(&rng);
        for (int k = 0; k < COLS; k++)
            x[k] = normal(&rng);
        ck_assert_uint_eq(kern_x16_elements(COLS, 1), COLS);
        ops->to_x16(row, x, &w, 1);
        ops->to_bf16(rounded, x, COLS);
        ops->to_f32(values, rounded, KERN_BF16, COLS);
        ops->matmul_x16(&(struct kern_matmul){ .w = &w, .y = got, .m = 1, .y_stride = ROWS,
                                               .k_blocks = 1, .x16 = row, .x16_stride = COLS },
                        0, ROWS);
        for (uint32_t n = 0; n < ROWS; n++) {
            double exact = 0, size = 0;
            ops->to_f32(all, codes + n * kern_row_bytes(w.dtype, COLS), w.dtype, COLS);
            for (uint32_t k = 0; k < COLS; k++) {
                const float scale = scales[n * per_row + k / w.scale_cols];
                const double term = (double)all[k] * scale * values[k];
                exact += term;
                size += fabs(term);
            }
            ck_assert_msg(fabs(got[n] - exact) <= (COLS / 16 + 8) * FLT_EPSILON * size,
                          "seed %llu row %u: %g, not %g", (unsigned long long)seed, n,
                          (double)got[n], exact);
        }
    }
}
END_TEST

/* A result that is subnormal after rounding is a zero, one that rounds to the least normal number
 * is not: 2^-126 less 1.5 and less 0.75 of 2^-151. Subnormal operands are zeros. */
START_TEST(subnormal_sums_are_zeros)
{
    const float weights[32] = { [1] = 0x1p-63f, [0] = -0x1.8p-75f, [3] = 0x1p-130f };
    const float lower[32] = { [1] = 0x1p-63f, [0] = 0x1p-76f, [3] = 0x1p+127f };
    const float upper[32] = { [1] = 0x1p-63f, [0] = 0x1p-77f };
    uint16_t codes[32], row[128];
    ops->to_bf16(codes, weights, 32);
    const struct kern_matrix w = { .dtype = KERN_BF16, .rows = 1, .cols = 32, .data = codes };
    for (int variant = KERN_CPU_REFERENCE; variant <= KERN_CPU_AVX512; variant++) {
        const struct kern_ops *set = kern_ops_variant((enum kern_cpu)variant);
        for (int i = 0; set && i < 2; i++) {
            float got = 1;
            set->to_x16(row, i ? upper : lower, &w, 1);
            set->matmul_x16(&(struct kern_matmul){ .w = &w, .y = &got, .m = 1, .y_stride = 1,
                                                   .k_blocks = 1, .x16 = row, .x16_stride = 128 },
                            0, 1);
            ck_assert_msg(got == (i ? 0x1p-126f : 0.0f), "%s %d: %a", set->name, i, (double)got);
        }
    }
}
END_TEST

/* INT8 and INT4 against activations of three digits: each is off by at most 2^-23 of its group's
 * largest (half a unit of 127 * 254^2, and a rounding before), and beyond that what the order
 * explains. */
START_TEST(integer_activations_keep_24_bits)
{
    enum { ROWS = 101, COLS = 384 };    /* whole tiles and not */
    static uint8_t codes[ROWS * COLS], tiles[ROWS * COLS], scratch[8 * ROWS * COLS];
    static uint8_t row[8 * COLS];
    static uint16_t scales[ROWS * COLS / KERN_GROUP_SMALL];
    static uint16_t tile_scales[ROWS * COLS / KERN_GROUP_SMALL];
    static float x[COLS], got[ROWS];
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        const uint32_t group = seed % 2 ? KERN_GROUP_SMALL : KERN_GROUP_LARGE;
        const uint32_t groups = COLS / group;
        struct kern_matrix w = { .dtype = seed % 4 < 2 ? KERN_INT8 : KERN_INT4,
                                 .rows = ROWS,
                                 .cols = COLS,
                                 .data = tiles,
                                 .scales = tile_scales,
                                 .scale_rows = 1,
                                 .scale_cols = group };
        for (size_t i = 0; i < sizeof codes; i++)
            codes[i] = (uint8_t)base_rng_u64(&rng);
        for (uint32_t i = 0; i < ROWS * groups; i++) {
            const float scale = normal(&rng);
            ops->to_bf16(&scales[i], &scale, 1);
        }
        for (int k = 0; k < COLS; k++)
            x[k] = ldexpf(normal(&rng), (int)base_rng_below(&rng, 30) - 15);
        memcpy(tiles, codes, sizeof tiles);
        memcpy(tile_scales, scales, sizeof tile_scales);
        ck_assert(kern_tile_scratch(&w) <= sizeof scratch);
        kern_tile(&w, tiles, tile_scales, scratch);
        w.tiled = true;
        ck_assert(kern_x8_bytes(COLS, KERN_X8_FULL) <= sizeof row);
        ops->to_x8(row, x, COLS, w.dtype, group, KERN_X8_FULL);
        ops->matmul_x8(&(struct kern_matmul){ .w = &w, .y = got, .m = 1, .y_stride = ROWS,
                                              .k_blocks = 1, .x8 = row,
                                              .x8_digits = KERN_X8_FULL,
                                              .x8_stride = sizeof row }, 0, ROWS);
        for (uint32_t n = 0; n < ROWS; n++) {
            double exact = 0, size = 0, rounded = 0;
            for (uint32_t g = 0; g < groups; g++) {
                float values[KERN_GROUP_LARGE], scale;
                double largest = 0, weights = 0;
                static float all[COLS];
                ops->to_f32(all, codes + n * kern_row_bytes(w.dtype, COLS), w.dtype, COLS);
                memcpy(values, all + (size_t)g * group, group * sizeof *values);
                ops->to_f32(&scale, &scales[n * groups + g], KERN_BF16, 1);
                for (uint32_t i = 0; i < group; i++) {
                    const double at = x[g * group + i], weight = (double)values[i] * scale;
                    exact += weight * at;
                    size += fabs(weight * at);
                    weights += fabs(weight);
                    largest = fmax(largest, fabs(at));
                }
                rounded += weights * largest * 0x1p-23;
            }
            const double bound = rounded + (COLS / 16.0 + 8) * FLT_EPSILON * size;
            ck_assert_msg(fabs(got[n] - exact) <= bound, "seed %llu: %g, not %g",
                          (unsigned long long)seed, got[n], exact);
        }
    }
}
END_TEST

START_TEST(mla_is_the_softmax_of_its_scores)
{
    enum { LORA = 40, ROPE = 12, WIDTH = LORA + ROPE, HEADS = 3, BLOCK = 8, TOKENS_MAX = 200 };
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        const uint32_t tokens = 1 + (uint32_t)base_rng_below(&rng, TOKENS_MAX);
        static float cache[TOKENS_MAX + BLOCK][WIDTH], q[HEADS][WIDTH], out[HEADS][LORA];
        const void *blocks[TOKENS_MAX / BLOCK + 1];
        for (uint32_t i = 0; i < TOKENS_MAX / BLOCK + 1; i++)
            blocks[i] = cache[i * BLOCK];
        for (uint32_t t = 0; t < tokens; t++) {
            for (uint32_t i = 0; i < WIDTH; i++)
                cache[t][i] = normal(&rng);
        }
        for (uint32_t i = 0; i < HEADS * WIDTH; i++)
            q[i / WIDTH][i % WIDTH] = normal(&rng);
        const struct kern_mla args = { .heads = HEADS, .lora = LORA, .rope = ROPE, .q = q[0],
                                       .blocks = blocks, .block_tokens = BLOCK, .tokens = tokens,
                                       .scale = 0.3f, .out = out[0] };
        ops->mla(&args, 0, HEADS);
        for (uint32_t h = 0; h < HEADS; h++) {
            double s[TOKENS_MAX], highest = -INFINITY, sum = 0;
            for (uint32_t t = 0; t < tokens; t++) {
                s[t] = 0;
                for (uint32_t i = 0; i < WIDTH; i++)
                    s[t] += (double)q[h][i] * cache[t][i];
                s[t] *= args.scale;
                highest = fmax(highest, s[t]);
            }
            for (uint32_t t = 0; t < tokens; t++)
                sum += exp(s[t] - highest);
            for (uint32_t i = 0; i < LORA; i++) {
                double exact = 0;
                for (uint32_t t = 0; t < tokens; t++)
                    exact += exp(s[t] - highest) / sum * cache[t][i];
                ck_assert_msg(fabs(out[h][i] - exact) < 2e-5, "seed %llu head %u: %g, not %g",
                              (unsigned long long)seed, h, out[h][i], exact);
            }
        }
    }
}
END_TEST

START_TEST(norm_activation_and_rotation)
{
    enum { N = 77 };
    struct base_rng rng;
    base_rng_init(&rng, 5);
    float x[N], weight[N], y[N], up[N];
    double mean = 0;
    for (int i = 0; i < N; i++) {
        x[i] = normal(&rng);
        up[i] = normal(&rng);
        weight[i] = normal(&rng);
        mean += (double)x[i] * x[i] / N;
    }
    ops->rmsnorm(y, x, weight, N, 1e-6f);
    for (int i = 0; i < N; i++)
        ck_assert(fabs(y[i] - x[i] / sqrt(mean + 1e-6) * weight[i]) <=
                  8 * FLT_EPSILON * fabs(y[i]));
    ops->swiglu(y, x, up, N);
    for (int i = 0; i < N; i++)
        ck_assert(fabs(y[i] - x[i] / (1 + exp(-x[i])) * up[i]) <= 8 * FLT_EPSILON * fabs(y[i]));

    const float cosine[2] = { 0.5f, 0.25f }, sine[2] = { 2, 3 };
    float pairs[4] = { 1, 2, 3, 4 }, halves[4] = { 1, 3, 2, 4 };
    ops->rope(pairs, cosine, sine, 4, true);
    ops->rope(halves, cosine, sine, 4, false);
    const float wanted[4] = { 0.5f - 4, 1 + 2, 0.75f - 12, 1 + 9 };
    ck_assert_mem_eq(pairs, wanted, sizeof pairs);
    for (int i = 0; i < 2; i++) {
        ck_assert(halves[i] == wanted[2 * i]);
        ck_assert(halves[i + 2] == wanted[2 * i + 1]);
    }
}
END_TEST

/* The gate by full sorting: choice score descending, then id ascending. */
static void gate_naive(const struct kern_gate *gate, const double *score, uint32_t *ids)
{
    const uint32_t size = gate->experts / gate->groups;
    double choice[64];
    bool used[64] = { false };
    for (uint32_t e = 0; e < gate->experts; e++) {
        choice[e] = score[e];
        if (gate->method == KERN_GATE_NOAUX && gate->bias)
            choice[e] = (float)((float)score[e] + gate->bias[e]);
    }
    if (gate->method != KERN_GATE_GREEDY) {
        double best[64];
        for (uint32_t g = 0; g < gate->groups; g++) {
            best[g] = -INFINITY;
            for (uint32_t i = g * size; i < (g + 1) * size; i++) {
                if (gate->method != KERN_GATE_NOAUX)
                    best[g] = fmax(best[g], choice[i]);
                for (uint32_t j = g * size; gate->method == KERN_GATE_NOAUX && j < i; j++)
                    best[g] = fmax(best[g], (float)choice[i] + (float)choice[j]);
            }
        }
        for (uint32_t g = 0; g < gate->groups; g++) {
            uint32_t better = 0;
            for (uint32_t other = 0; other < gate->groups; other++)
                better += best[other] > best[g] || (best[other] == best[g] && other < g);
            for (uint32_t i = g * size; better >= gate->top_groups && i < (g + 1) * size; i++)
                choice[i] = -INFINITY;
        }
    }
    for (uint32_t i = 0; i < gate->top_k; i++) {
        uint32_t best = gate->experts;
        for (uint32_t e = 0; e < gate->experts; e++) {
            if (!used[e] && (best == gate->experts || choice[e] > choice[best]))
                best = e;
        }
        used[best] = true;
        ids[i] = best;
    }
}

START_TEST(gate_chooses_like_a_sort)
{
    for (uint64_t seed = 1; seed <= 600; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        float logits[64], bias[64], scratch[128], weights[64];
        uint32_t ids[64], wanted[64];
        struct kern_gate gate = { .normalize = seed & 1, .scaling = 2.5f };
        gate.groups = 1u << base_rng_below(&rng, 4);
        gate.experts = gate.groups * (2 + (uint32_t)base_rng_below(&rng, 7));
        gate.top_groups = 1 + (uint32_t)base_rng_below(&rng, gate.groups);
        const uint32_t eligible = gate.experts / gate.groups * gate.top_groups;
        gate.top_k = 1 + (uint32_t)base_rng_below(&rng, eligible);
        gate.method = base_rng_below(&rng, 3);
        gate.sigmoid = gate.method == KERN_GATE_NOAUX;
        gate.bias = base_rng_below(&rng, 4) ? bias : NULL;
        const bool coarse = base_rng_below(&rng, 2);    /* few values: many ties */
        for (uint32_t e = 0; e < gate.experts; e++) {
            logits[e] = coarse ? (float)base_rng_below(&rng, 4) : normal(&rng);
            /* Negative biases push chosen scores below zero, where a mask of 0 would win. */
            bias[e] = coarse ? -(float)base_rng_below(&rng, 3) : normal(&rng) - 2;
        }
        double score[64], sum = 0, chosen = 0;
        for (uint32_t e = 0; e < gate.experts; e++)
            sum += exp(logits[e]);
        ops->gate(&gate, logits, ids, weights, scratch);
        for (uint32_t e = 0; e < gate.experts; e++) {
            const double exact = gate.sigmoid ? 1 / (1 + exp(-logits[e])) : exp(logits[e]) / sum;
            ck_assert(fabs(scratch[e] - exact) <= 1e-6);
            score[e] = scratch[e];      /* the float, so that ties are the same ties */
        }
        gate_naive(&gate, score, wanted);
        for (uint32_t i = 0; i < gate.top_k; i++) {
            ck_assert_msg(ids[i] == wanted[i], "seed %llu: choice %u is %u, not %u",
                          (unsigned long long)seed, i, ids[i], wanted[i]);
            chosen += score[ids[i]];
        }
        for (uint32_t i = 0; i < gate.top_k; i++) {
            const double exact = score[ids[i]] / (gate.normalize ? chosen : 1) * 2.5;
            ck_assert(fabs(weights[i] - exact) <= 1e-5 * exact);
        }
    }
}
END_TEST

int main(void)
{
    ops = kern_ops_variant(KERN_CPU_REFERENCE);
    Suite *suite = suite_create("accuracy");
    TCase *tests = tcase_create("reference");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, exp_is_within_two_ulp);
    tcase_add_test(tests, fp8_decodes_by_its_definition);
    tcase_add_test(tests, int8_and_int4_decode_by_their_layout);
    tcase_add_test(tests, f16_decodes_as_the_compiler_does);
    tcase_add_test(tests, bf16_rounds_to_nearest_even);
    tcase_add_test(tests, matmul_is_within_its_bound);
    tcase_add_test(tests, integer_activations_keep_24_bits);
    tcase_add_test(tests, rounded_activations_lose_nothing_more);
    tcase_add_test(tests, subnormal_sums_are_zeros);
    tcase_add_test(tests, mla_is_the_softmax_of_its_scores);
    tcase_add_test(tests, norm_activation_and_rotation);
    tcase_add_test(tests, gate_chooses_like_a_sort);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
