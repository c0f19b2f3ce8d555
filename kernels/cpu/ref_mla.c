/* Absorbed latent attention of one token, scalar: the order of kern.h written out. */
#include "base/must.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scalar.h"

static float cache_value(const struct kern_mla *args, const void *row, size_t index)
{
    return scalar_weight(args->blocks_bf16 ? KERN_BF16 : KERN_F32, row, index);
}

static float dot(const struct kern_mla *args, const float *q, const void *row, uint32_t n)
{
    float lanes[KERN_LANES] = { 0 };
    for (uint64_t k = 0; k < n; k += KERN_LANES) {
        for (uint32_t j = 0; j < KERN_LANES; j++) {
            const bool inside = k + j < n;
            lanes[j] = fmaf(inside ? cache_value(args, row, k + j) : 0.0f,
                            inside ? q[k + j] : 0.0f, lanes[j]);
        }
    }
    for (uint32_t width = KERN_LANES / 2; width > 0; width /= 2) {
        for (uint32_t j = 0; j < width; j++)
            lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

static void mla_head(const struct kern_mla *args, uint32_t head)
{
    const uint32_t width = args->lora + args->rope;
    const float *q = args->q + (size_t)head * width;
    float *out = args->out + (size_t)head * args->lora;
    float highest = -INFINITY, sum = 0;
    float s[KERN_MLA_RUN];
    for (uint32_t i = 0; i < args->lora; i++)
        out[i] = 0;
    for (uint32_t begin = 0; begin < args->tokens; begin += KERN_MLA_RUN) {
        const uint32_t left = args->tokens - begin;
        const uint32_t count = left < KERN_MLA_RUN ? left : KERN_MLA_RUN;
        float next = highest;
        for (uint32_t t = 0; t < count; t++) {
            s[t] = dot(args, q, cpu_mla_row(args, begin + t), width) * args->scale;
            next = s[t] > next ? s[t] : next;
        }
        const float shrink = scalar_exp(highest - next);
        highest = next;
        sum *= shrink;
        for (uint32_t t = 0; t < count; t++) {
            s[t] = scalar_exp(s[t] - highest);
            sum += s[t];
        }
        for (uint32_t i = 0; i < args->lora; i++) {
            float acc = out[i] * shrink;
            for (uint32_t t = 0; t < count; t++)
                acc = fmaf(s[t], cache_value(args, cpu_mla_row(args, begin + t), i), acc);
            out[i] = acc;
        }
    }
    for (uint32_t i = 0; i < args->lora; i++)
        out[i] = out[i] / sum;
}

void kern_ref_mla(const struct kern_mla *args, uint32_t head_begin, uint32_t head_end)
{
    MUST(head_begin <= head_end && head_end <= args->heads);
    MUST(args->tokens >= 1);
    MUST(args->block_tokens >= 1 && args->block_tokens <= KERN_MLA_BLOCK_MAX);
    for (uint32_t head = head_begin; head < head_end; head++)
        mla_head(args, head);
}
