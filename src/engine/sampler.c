#include "engine/sampler.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* Stronger first; the lower id wins among equals. */
static bool before(struct eng_candidate a, struct eng_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(struct eng_candidate *heap, uint32_t count, uint32_t at)
{
    struct eng_candidate moving = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* Moves the strongest candidate to the end of the heap, which shrinks by one. */
static struct eng_candidate pop(struct eng_candidate *heap, uint32_t *count)
{
    struct eng_candidate top = heap[0];
    heap[0] = heap[--*count];
    heap[*count] = top;
    if (*count > 0) sift_down(heap, *count, 0);
    return top;
}

static double share(float logit, float best, float temperature)
{
    return exp(((double)logit - (double)best) / (double)temperature);
}

/* Everybody takes part: no order is needed. `*whole` is the sum of all shares. */
static uint32_t draw_all(const struct eng_sampling *sampling, double target, const float *logits,
                         uint32_t vocab, float best, double *shares, double *whole)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += shares[i] = share(logits[i], best, sampling->temperature);
    }
    *whole = sum;
    target *= sum;
    double passed = 0.0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (shares[i] > 0.0) last = i;
        passed += shares[i];
        if (passed > target) return i;
    }
    return last;
}

/* Strongest first from a heap: a nucleus is usually a few dozen tokens of a large vocabulary. */
static uint32_t draw_strongest(const struct eng_sampling *sampling, double target,
                               const float *logits, uint32_t vocab, struct eng_candidate *heap)
{
    uint32_t most = sampling->top_k > 0 && sampling->top_k < vocab ? sampling->top_k : vocab;
    uint32_t left = vocab;
    for (uint32_t i = 0; i < vocab; i++) {
        heap[i] = (struct eng_candidate){ logits[i], i };
    }
    for (uint32_t i = vocab / 2; i-- > 0;) {
        sift_down(heap, vocab, i);
    }
    float best = heap[0].logit;
    /* With top-k the nucleus is a share of those k; they end up, strongest last, behind `left`. */
    double sum = 0.0;
    if (most < vocab) {
        while (vocab - left < most) {
            sum += share(pop(heap, &left).logit, best, sampling->temperature);
        }
    } else {
        for (uint32_t i = 0; i < vocab; i++) {
            sum += share(logits[i], best, sampling->temperature);
        }
    }
    double nucleus = 0.0;
    uint32_t kept = 0;
    while (kept < most && (kept == 0 || nucleus < (double)sampling->top_p * sum)) {
        if (vocab - left <= kept) pop(heap, &left);
        nucleus += share(heap[vocab - 1 - kept].logit, best, sampling->temperature);
        kept++;
    }
    target *= nucleus;
    double passed = 0.0;
    for (uint32_t i = 0; i < kept; i++) {
        passed += share(heap[vocab - 1 - i].logit, best, sampling->temperature);
        if (passed > target) return heap[vocab - 1 - i].id;
    }
    return heap[vocab - kept].id;
}

int64_t eng_sample(const struct eng_sampling *sampling, struct base_rng *rng, const float *logits,
                   uint32_t vocab, struct eng_candidate *room, float *logprob)
{
    uint32_t best = 0;
    bool numbers = true;
    for (uint32_t i = 0; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
        numbers &= isfinite(logits[i]) != 0;
    }
    if (!numbers) return -EDOM;
    uint32_t token = best;
    double sum = 0.0;
    if (sampling->temperature > 0.0f) {
        double target = base_rng_unit(rng);
        bool cut = sampling->top_p < 1.0f || (sampling->top_k > 0 && sampling->top_k < vocab);
        token =
            cut ? draw_strongest(sampling, target, logits, vocab, room)
                : draw_all(sampling, target, logits, vocab, logits[best], (double *)(void *)room,
                           &sum);
        /* Shares at temperature 1 are these very numbers. */
        if (sampling->temperature != 1.0f) sum = 0.0;
    }
    for (uint32_t i = 0; i < vocab && (i > 0 || sum == 0.0); i++) {
        sum += exp((double)logits[i] - (double)logits[best]);
    }
    *logprob = (float)((double)logits[token] - (double)logits[best] - log(sum));
    return token;
}
