/* Rates of this machine that benchmarks hold their results against. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/kern.h"
#include "tools/bench_stack.h"

enum {
    TRIES = 5,
    SHARE = 128 << 20,          /* a thread's part of what is read: more than any cache */
    SPIN_ROUNDS = 2000000,
    CHAINS = 12,                /* sums at once: more than an addition takes cycles */
    FEW = 8,                    /* of integers, and room for operands in 16 registers */
};

static struct base_mem_tag pool_tag = { .name = "bench pool" };

struct crew_member {
    void (*work)(struct crew_member *member);
    pthread_t thread;
    pthread_barrier_t *start;
    const uint64_t *from;       /* memory */
    size_t words;
    uint64_t sum;
    double operations;          /* peaks */
    float sink;
    uint64_t begin_ns, end_ns;
};

static void *crew_main(void *argument)
{
    struct crew_member *member = argument;
    pthread_barrier_wait(member->start);
    member->begin_ns = base_now_ns();
    member->work(member);
    member->end_ns = base_now_ns();
    return NULL;
}

/* Seconds from the first start to the last end. */
static double crew_run(struct crew_member *members, unsigned count)
{
    pthread_barrier_t start;
    uint64_t begin = UINT64_MAX, end = 0;
    pthread_barrier_init(&start, NULL, count);
    for (unsigned i = 0; i < count; i++) {
        members[i].start = &start;
        if (pthread_create(&members[i].thread, NULL, crew_main, &members[i]) != 0) abort();
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(members[i].thread, NULL);
        if (members[i].begin_ns < begin) begin = members[i].begin_ns;
        if (members[i].end_ns > end) end = members[i].end_ns;
    }
    pthread_barrier_destroy(&start);
    return (double)(end - begin) / 1e9;
}

/* -- memory ----------------------------------------------------------------------------------- */

static void read_words(struct crew_member *member)
{
    uint64_t sums[8] = { 0 };
    for (size_t i = 0; i + 8 <= member->words; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] ^= member->from[i + (size_t)j];
    }
    for (int j = 0; j < 8; j++) member->sum ^= sums[j];
}

/* The same as four streams, a quarter each. */
static void read_quarters(struct crew_member *member)
{
    enum { STREAMS = 4, LINE = 8 };
    const size_t quarter = member->words / STREAMS;
    uint64_t sums[STREAMS] = { 0 };
    for (size_t i = 0; i + LINE <= quarter; i += LINE) {
        for (size_t s = 0; s < STREAMS; s++) {
            const uint64_t *line = member->from + s * quarter + i;
            for (int j = 0; j < LINE; j++) sums[s] ^= line[j];
        }
    }
    for (int s = 0; s < STREAMS; s++) member->sum ^= sums[s];
}

/* Bytes a second of all threads. */
static double read_once(const struct bench_memory *memory, struct crew_member *crew,
                        void (*work)(struct crew_member *member))
{
    for (unsigned t = 0; t < memory->threads; t++) {
        crew[t] = (struct crew_member){
            .work = work,
            .words = SHARE / 8,
            .from = (const uint64_t *)memory->at + (size_t)t * SHARE / 8,
        };
    }
    return (double)memory->bytes / crew_run(crew, memory->threads);
}

int bench_memory_open(struct bench_memory *memory, unsigned threads)
{
    memory->threads = threads;
    memory->bytes = (size_t)threads * SHARE;
    memory->at = base_mem_alloc(&pool_tag, memory->bytes, 64);
    if (!memory->at) return -1;
    memset(memory->at, 1, memory->bytes);
    return 0;
}

void bench_memory_close(struct bench_memory *memory)
{
    base_mem_free(&pool_tag, memory->at, memory->bytes);
    memory->at = NULL;
}

double bench_memory_read(struct bench_memory *memory, bool best)
{
    double rates[TRIES], spread;
    struct crew_member *crew = calloc(memory->threads, sizeof *crew);
    if (!crew) abort();
    for (int i = 0; i < TRIES; i++) {
        /* Which way is faster hangs on the processor's prefetchers (kernels/README.md). */
        const double words = read_once(memory, crew, read_words);
        const double quarters = read_once(memory, crew, read_quarters);
        rates[i] = words > quarters ? words : quarters;
    }
    free(crew);
    double median = bench_median(rates, TRIES, &spread);
    return best ? rates[TRIES - 1] : median;
}

double bench_memory_rate(unsigned threads)
{
    struct bench_memory memory;
    if (bench_memory_open(&memory, threads) < 0) return 0;
    double rate = bench_memory_read(&memory, true);
    bench_memory_close(&memory);
    return rate;
}

/* -- arithmetic ------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Unrolled everywhere, or sums are an array in memory and what is measured is that. */
#define EACH_SUM(j, first, count) \
    _Pragma("GCC unroll 12") for (int j = first; j < count; j++)

__attribute__((target("avx2,fma"))) static void spin_f32_avx2(struct crew_member *m)
{
    __m256 sum[CHAINS], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
    EACH_SUM(j, 0, CHAINS) sum[j] = _mm256_set1_ps((float)j);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        EACH_SUM(j, 0, CHAINS) sum[j] = _mm256_fmadd_ps(sum[j], a, b);
    }
    EACH_SUM(j, 1, CHAINS) sum[0] = _mm256_add_ps(sum[0], sum[j]);
    m->sink = _mm256_cvtss_f32(sum[0]);
    m->operations = (double)SPIN_ROUNDS * CHAINS * 8;
}

__attribute__((target("avx512f"))) static void spin_f32_avx512(struct crew_member *m)
{
    __m512 sum[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
    EACH_SUM(j, 0, CHAINS) sum[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        EACH_SUM(j, 0, CHAINS) sum[j] = _mm512_fmadd_ps(sum[j], a, b);
    }
    EACH_SUM(j, 1, CHAINS) sum[0] = _mm512_add_ps(sum[0], sum[j]);
    m->sink = _mm512_cvtss_f32(sum[0]);
    m->operations = (double)SPIN_ROUNDS * CHAINS * 16;
}

__attribute__((target("avx512f,avx512vnni"))) static void spin_int8_avx512(struct crew_member *m)
{
    __m512i sum[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
    EACH_SUM(j, 0, CHAINS) sum[j] = _mm512_set1_epi32(j);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        EACH_SUM(j, 0, CHAINS) {
            sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
            __asm__("" : "+v"(sum[j]));     /* else it is seen to be a multiplication */
        }
    }
    EACH_SUM(j, 1, CHAINS) sum[0] = _mm512_add_epi32(sum[0], sum[j]);
    m->sink = (float)_mm512_cvtsi512_si32(sum[0]);
    m->operations = (double)SPIN_ROUNDS * CHAINS * 64;
}

__attribute__((target("avx2"))) static void spin_int8_avx2(struct crew_member *m)
{
    __m256i sum[FEW], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
    __m256i ones = _mm256_set1_epi16(1);
    EACH_SUM(j, 0, FEW) sum[j] = _mm256_set1_epi32(j);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        EACH_SUM(j, 0, FEW) {
            __asm__("" : "+x"(a));
            sum[j] = _mm256_add_epi32(sum[j],
                                      _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }
    EACH_SUM(j, 1, FEW) sum[0] = _mm256_add_epi32(sum[0], sum[j]);
    m->sink = (float)_mm256_extract_epi32(sum[0], 0);
    m->operations = (double)SPIN_ROUNDS * FEW * 32;
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void spin_bf16_avx512(
    struct crew_member *m)
{
    __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x3c00);
    __m512 sum[CHAINS];
    EACH_SUM(j, 0, CHAINS) sum[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        EACH_SUM(j, 0, CHAINS) {
            sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)a, (__m512bh)b);
        }
    }
    EACH_SUM(j, 1, CHAINS) sum[0] = _mm512_add_ps(sum[0], sum[j]);
    m->sink = _mm512_cvtss_f32(sum[0]);
    m->operations = (double)SPIN_ROUNDS * CHAINS * 32;
}

static void (*spin_of(enum bench_arithmetic kind, unsigned choice))(struct crew_member *m)
{
    static void (*const spins[][2])(struct crew_member *m) = {
        [BENCH_F32] = { spin_f32_avx2, spin_f32_avx512 },
        [BENCH_BF16] = { NULL, spin_bf16_avx512 },
        [BENCH_INT8] = { spin_int8_avx2, spin_int8_avx512 },
    };
    bool has[] = { [BENCH_F32] = __builtin_cpu_supports("avx512f"),
                   [BENCH_BF16] = __builtin_cpu_supports("avx512bf16"),
                   [BENCH_INT8] = __builtin_cpu_supports("avx512vnni") };
    return choice == 0 || has[kind] ? spins[kind][choice] : NULL;
}
#else
static void spin_plain(struct crew_member *m)
{
    float sum[CHAINS] = { 0 };
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        for (int j = 0; j < CHAINS; j++) sum[j] = sum[j] * 0.999f + 0.001f;
    }
    for (int j = 1; j < CHAINS; j++) sum[0] += sum[j];
    m->sink = sum[0];
    m->operations = (double)SPIN_ROUNDS * CHAINS;
}

static void (*spin_of(enum bench_arithmetic kind, unsigned choice))(struct crew_member *m)
{
    return kind != BENCH_F32 || choice > 0 ? NULL : spin_plain;
}
#endif

struct bench_peak bench_peak(unsigned threads, enum bench_arithmetic kind)
{
    struct bench_peak peak = { 0 };
    struct crew_member *crew = calloc(threads, sizeof *crew);
    if (!crew) abort();
    for (unsigned choice = 0; choice < 2; choice++) {
        void (*spin)(struct crew_member *m) = spin_of(kind, choice);
        double rates[TRIES], spread;
        if (!spin) continue;
        for (int i = 0; i < TRIES; i++) {
            for (unsigned t = 0; t < threads; t++) crew[t] = (struct crew_member){ .work = spin };
            const double seconds = crew_run(crew, threads);
            rates[i] = crew[0].operations * threads / seconds;
        }
        const double median = bench_median(rates, TRIES, &spread);
        if (rates[TRIES - 1] > peak.best) {
            peak = (struct bench_peak){ .best = rates[TRIES - 1], .median = median };
        }
    }
    free(crew);
    return peak.best > 0 ? peak : bench_peak(threads, BENCH_F32);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t count, double *spread)
{
    qsort(values, count, sizeof *values, ascending);
    double median = count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
    *spread = (values[count - 1] - values[0]) / median;
    return median;
}
