#include "base/hist.h"

#include <string.h>

enum { OCTAVES = BASE_HIST_BUCKETS / BASE_HIST_SUB };

/* 2^63 * 2^(k/8), rounded up: where eighth k of an octave begins, for a value shifted so that its
 * highest bit is bit 63. */
static const uint64_t eighths[BASE_HIST_SUB] = {
    0x8000000000000000u, 0x8b95c1e3ea8bd6e7u, 0x9837f0518db8a970u, 0xa5fed6a9b15138ebu,
    0xb504f333f9de6485u, 0xc5672a115506dadeu, 0xd744fccad69d6af5u, 0xeac0c6e7dd24392fu,
};

static unsigned bucket_of(uint64_t value)
{
    if (value < 2) return 0;
    unsigned shift = (unsigned)__builtin_clzll(value);
    unsigned octave = 63 - shift;
    if (octave >= OCTAVES) return BASE_HIST_BUCKETS - 1;
    uint64_t mantissa = value << shift;
    unsigned sub = 0;
    for (unsigned k = 1; k < BASE_HIST_SUB; k++) {
        sub += mantissa >= eighths[k];
    }
    return octave * BASE_HIST_SUB + sub;
}

/* The writer is alone, but readers copy while it writes: whole words, no order between them. */
static uint64_t load(const uint64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

static void store(uint64_t *to, uint64_t value)
{
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

void base_hist_init(struct base_hist *hist)
{
    memset(hist, 0, sizeof *hist);
    hist->min = UINT64_MAX;
}

void base_hist_add(struct base_hist *hist, uint64_t value)
{
    uint32_t *bucket = &hist->buckets[bucket_of(value)];
    __atomic_store_n(bucket, *bucket + 1, __ATOMIC_RELAXED);
    store(&hist->count, hist->count + 1);
    store(&hist->sum, hist->sum + value);
    if (value < hist->min) store(&hist->min, value);
    if (value > hist->max) store(&hist->max, value);
}

void base_hist_copy(struct base_hist *to, const struct base_hist *from)
{
    to->count = load(&from->count);
    to->sum = load(&from->sum);
    to->min = load(&from->min);
    to->max = load(&from->max);
    for (unsigned i = 0; i < BASE_HIST_BUCKETS; i++) {
        to->buckets[i] = __atomic_load_n(&from->buckets[i], __ATOMIC_RELAXED);
    }
}

void base_hist_merge(struct base_hist *into, const struct base_hist *from)
{
    into->count += from->count;
    into->sum += from->sum;
    if (from->min < into->min) into->min = from->min;
    if (from->max > into->max) into->max = from->max;
    for (unsigned i = 0; i < BASE_HIST_BUCKETS; i++) {
        into->buckets[i] += from->buckets[i];
    }
}

uint64_t base_hist_edge(unsigned index)
{
    if (index >= BASE_HIST_BUCKETS - 1) return UINT64_MAX;
    unsigned octave = index / BASE_HIST_SUB, next = index % BASE_HIST_SUB + 1;
    if (next == BASE_HIST_SUB) return (2ull << octave) - 1;
    return (eighths[next] - 1) >> (63 - octave);
}

static uint64_t bucket_total(const struct base_hist *hist)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < BASE_HIST_BUCKETS; i++) {
        total += hist->buckets[i];
    }
    return total;
}

uint64_t base_hist_quantile(const struct base_hist *hist, double share)
{
    uint64_t total = bucket_total(hist);    /* `count` of a copy may be a few samples apart */
    if (total == 0) return 0;
    double wanted = share * (double)total;
    uint64_t rank = wanted <= 1.0 ? 1 : wanted >= (double)total ? total : (uint64_t)wanted;
    if ((double)rank < wanted && rank < total) rank++;
    uint64_t seen = 0;
    unsigned i = 0;
    for (; i < BASE_HIST_BUCKETS; i++) {
        seen += hist->buckets[i];
        if (seen >= rank) break;
    }
    uint64_t edge = base_hist_edge(i);
    if (edge < hist->min) edge = hist->min;
    if (edge > hist->max) edge = hist->max;
    return edge;
}

uint64_t base_hist_count_le(const struct base_hist *hist, uint64_t value)
{
    uint64_t total = 0;
    if (value >= hist->max) return bucket_total(hist);
    for (unsigned i = 0; i < BASE_HIST_BUCKETS && base_hist_edge(i) <= value; i++) {
        total += hist->buckets[i];
    }
    return total;
}
