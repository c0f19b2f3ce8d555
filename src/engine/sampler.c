#include "engine/sampler.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* Stronger first; the lower id wins among equals. */
static bool before(struct eng_candidate a, struct eng_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static bool behind(struct eng_candidate a, struct eng_candidate b)
{
    return before(b, a);
}

typedef bool order(struct eng_candidate a, struct eng_candidate b);

static inline void sift_down(struct eng_candidate *heap, uint32_t count, uint32_t at, order *first)
{
    struct eng_candidate moving = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && first(heap[child + 1], heap[child])) child++;
        if (!first(heap[child], moving)) break;
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
    if (*count > 0) sift_down(heap, *count, 0, before);
    return top;
}

/* What drawing works on: shares and their sums lie in the room that candidates have otherwise. */
struct field {
    const struct kern_ops *ops;
    const float *logits;
    uint32_t vocab;
    float best;
    float *shares;      /* [vocab] */
    float *sums;        /* [blocks] */
};

static double sum_up(const struct field *f, float scale)
{
    double sum = 0.0;
    f->ops->shares(f->shares, f->logits, f->vocab, f->best, scale, f->sums);
    for (uint32_t b = 0; b * KERN_SHARE_BLOCK < f->vocab; b++)
        sum += (double)f->sums[b];
    return sum;
}

/* Everybody takes part, by ascending id: no order of strength is needed. `sum` is that of the
 * shares in place. */
static uint32_t draw_all(const struct field *f, double target, double sum)
{
    double passed = 0.0;
    uint32_t first = 0, last = 0;
    target *= sum;
    while (f->vocab - first > KERN_SHARE_BLOCK) {
        const double next = passed + (double)f->sums[first / KERN_SHARE_BLOCK];
        if (next > target) break;
        passed = next;
        first += KERN_SHARE_BLOCK;
    }
    for (uint32_t i = first; i < f->vocab; i++) {
        if (f->shares[i] > 0.0f) last = i;
        passed += (double)f->shares[i];
        if (passed > target) return i;
    }
    /* The sum by blocks was a little more. Before `first` there is a share, or last is one. */
    while (last == 0 && first > 0) {
        if (f->shares[--first] > 0.0f) last = first;
    }
    return last;
}

/* The `most` strongest, in no order: a heap with the weakest of them on top. */
static uint32_t collect_most(const struct field *f, uint32_t most, struct eng_candidate *heap)
{
    for (uint32_t i = 0; i < most; i++)
        heap[i] = (struct eng_candidate){ f->logits[i], i };
    for (uint32_t i = most / 2; i-- > 0;)
        sift_down(heap, most, i, behind);
    for (uint32_t i = most; i < f->vocab; i++) {
        /* Among equals the lower id is the stronger, so a later one needs more. */
        if (f->logits[i] <= heap[0].logit) continue;
        heap[0] = (struct eng_candidate){ f->logits[i], i };
        sift_down(heap, most, 0, behind);
    }
    return most;
}

/* Those that a nucleus may need. All whose share is below (1 - top_p) / vocab of the sum have less
 * than 1 - top_p of it together: the others reach top_p without them. */
static uint32_t collect_nucleus(const struct field *f, double sum, float top_p, float temperature,
                                struct eng_candidate *heap)
{
    enum { LENIENT = 2 };       /* for what rounding does to shares and sums */
    const double least = (1.0 - (double)top_p) * sum / (LENIENT * (double)f->vocab);
    const double cut = (double)f->best + (double)temperature * log(least);
    const float threshold = least > 0.0 && cut > -FLT_MAX ? (float)cut : -FLT_MAX;
    uint32_t count = 0;
    for (uint32_t i = 0; i < f->vocab; i++) {
        if (f->logits[i] < threshold) continue;
        heap[count++] = (struct eng_candidate){ f->logits[i], i };
    }
    return count;
}

/* Strongest first from a heap: a nucleus is usually a few dozen tokens of a large vocabulary. */
static uint32_t draw_strongest(const struct field *f, const struct eng_sampling *sampling,
                               double target, float scale, struct eng_candidate *heap)
{
    const bool cut = sampling->top_k > 0 && sampling->top_k < f->vocab;
    const uint32_t most = cut ? sampling->top_k : f->vocab;
    double sum = cut ? 0.0 : sum_up(f, scale);
    const uint32_t count = cut ? collect_most(f, most, heap)
                               : collect_nucleus(f, sum, sampling->top_p, sampling->temperature,
                                                 heap);
    uint32_t left = count;
    for (uint32_t i = count / 2; i-- > 0;)
        sift_down(heap, count, i, before);
    /* With top-k the nucleus is a share of those k; they end up, strongest last, behind `left`. */
    while (cut && left > 0)
        sum += (double)kern_exp((pop(heap, &left).logit - f->best) * scale);
    double nucleus = 0.0;
    uint32_t kept = 0;
    while (kept < count && (kept == 0 || nucleus < (double)sampling->top_p * sum)) {
        if (count - left <= kept) pop(heap, &left);
        nucleus += (double)kern_exp((heap[count - 1 - kept].logit - f->best) * scale);
        kept++;
    }
    target *= nucleus;
    double passed = 0.0;
    for (uint32_t i = 0; i < kept; i++) {
        passed += (double)kern_exp((heap[count - 1 - i].logit - f->best) * scale);
        if (passed > target) return heap[count - 1 - i].id;
    }
    return heap[count - kept].id;
}

int64_t eng_sample(const struct kern_ops *ops, const struct eng_sampling *sampling,
                   struct base_rng *rng, const float *logits, uint32_t vocab,
                   struct eng_candidate *room, float *logprob)
{
    float *shares = (float *)(void *)room;
    const struct field f = { ops, logits, vocab, ops->highest(logits, vocab), shares,
                             shares + vocab };
    if (isnan(f.best)) return -EDOM;
    /* Shares at temperature 1 are what the log-probability is made of. */
    const double whole = sum_up(&f, 1.0f);
    uint32_t token = 0;
    if (sampling->temperature > 0.0f) {
        const float inverse = 1.0f / sampling->temperature;
        const float scale = inverse < FLT_MAX ? inverse : FLT_MAX;
        const double target = base_rng_unit(rng);
        if (sampling->top_p < 1.0f || (sampling->top_k > 0 && sampling->top_k < vocab))
            token = draw_strongest(&f, sampling, target, scale, room);
        else
            token = draw_all(&f, target, scale == 1.0f ? whole : sum_up(&f, scale));
    } else {
        while (logits[token] != f.best)
            token++;
    }
    *logprob = (float)((double)logits[token] - (double)f.best - log(whole));
    return token;
}
