#include "tools/bench_products.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/must.h"
#include "base/rng.h"
#include "kernels/par.h"
#include "kernels/tile.h"
#include "kernels/weave.h"
#include "kernels/x16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { WORKS_MOST = 3, SAMPLES = 85, UNIT = 8 };
#define READ_BYTES ((size_t)4 << 20)
#define POOL_BYTES BENCH_POOL_BYTES
#define HUGE_BYTES ((size_t)2 << 20)
/* So that samples do not come back to what is still in a cache. */
#define SAMPLE_BYTES_MAX (POOL_BYTES / 8)

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct work {
    void (*run)(void *context, uint32_t sample);
    void *context;
};

/* Times several works in turns. */
static void timed_turns(const struct work *works, struct bench_timing *timings, unsigned count)
{
    static double seconds[WORKS_MOST][SAMPLES];
    MUST(count <= WORKS_MOST);
    for (unsigned w = 0; w < count; w++)
        works[w].run(works[w].context, SAMPLES);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        for (unsigned w = 0; w < count; w++) {
            const uint64_t begin = base_now_ns();
            works[w].run(works[w].context, i);
            seconds[w][i] = (double)(base_now_ns() - begin) * 1e-9;
        }
    }
    for (unsigned w = 0; w < count; w++) {
        qsort(seconds[w], SAMPLES, sizeof **seconds, by_value);
        timings[w] = (struct bench_timing){ seconds[w][0], seconds[w][SAMPLES / 2],
                                       seconds[w][SAMPLES * 3 / 4] - seconds[w][SAMPLES / 4] };
    }
}

struct bench_timing bench_timed(void (*run)(void *context, uint32_t sample), void *context)
{
    const struct work work = { run, context };
    struct bench_timing timing;
    timed_turns(&work, &timing, 1);
    return timing;
}

/* -- reading -- */

struct read_job {
    struct kern_par *par;
    const uint8_t *pool;
    size_t bytes; /* of a sample */
    uint32_t sample, shift, chunks;
    uint64_t (*read)(const uint8_t *from, size_t bytes);
    _Atomic(uint64_t) sink;
};

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_all(const uint8_t *from, size_t bytes)
{
    __m256i sum[8] = { 0 };
    for (size_t i = 0; i < bytes; i += 256) {
        for (size_t j = 0; j < 8; j++)
            sum[j] ^= _mm256_loadu_si256((const void *)(from + i + 32 * j));
    }
    for (size_t j = 1; j < 8; j++)
        sum[0] ^= sum[j];
    return (uint64_t)_mm256_extract_epi64(sum[0], 0);
}

__attribute__((target("avx2"))) static uint64_t read_quarters(const uint8_t *from, size_t bytes)
{
    const size_t quarter = bytes / 4;
    __m256i sum[8] = { 0 };
    for (size_t i = 0; i < quarter; i += 64) {
        for (size_t j = 0; j < 8; j++)
            sum[j] ^= _mm256_loadu_si256((const void *)(from + j / 2 * quarter + i + 32 * (j % 2)));
    }
    for (size_t j = 1; j < 8; j++)
        sum[0] ^= sum[j];
    return (uint64_t)_mm256_extract_epi64(sum[0], 0);
}

#else
static uint64_t read_all(const uint8_t *from, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 8)
        sum ^= *(const uint64_t *)(const void *)(from + i);
    return sum;
}

static uint64_t read_quarters(const uint8_t *from, size_t bytes)
{
    const size_t quarter = bytes / 4;
    uint64_t sum = 0;
    for (size_t i = 0; i < quarter; i += 8) {
        for (size_t j = 0; j < 4; j++)
            sum ^= *(const uint64_t *)(const void *)(from + j * quarter + i);
    }
    return sum;
}

#endif

/* One thread, two, and all that the machine has; 0 after the last. */
unsigned bench_threads_after(unsigned threads)
{
    const long all = sysconf(_SC_NPROCESSORS_ONLN);
    if (threads < BENCH_THREADS_HELD) return threads + 1;
    return all > (long)threads ? (unsigned)all : 0;
}

/* Times as much work a sample where many threads share it. */
static uint32_t crowd(unsigned threads)
{
    return (threads + BENCH_THREADS_HELD - 1) / BENCH_THREADS_HELD;
}

/* As the engine cuts a matrix (engine/work.c): on one thread it is a single range. */
static uint32_t chunks_of(unsigned threads)
{
    enum { A_THREAD = 4 };
    return threads == 1 ? 1 : A_THREAD * threads;
}

static void read_chunk(void *context, uint32_t chunk, unsigned thread)
{
    struct read_job *job = context;
    const size_t part = job->bytes / job->chunks / 1024 * 1024;
    (void)thread;
    job->sink ^= job->read(
        job->pool + (job->sample + job->shift) % (POOL_BYTES / job->bytes) * job->bytes +
            chunk * part,
        part);
}

static void read_run(void *context, uint32_t sample)
{
    struct read_job *job = context;
    job->sample = sample;
    kern_par_run(job->par, job->chunks, read_chunk, job);
}

/* Times reading in both orders in turns with `work`, or alone, and gives that of the faster one:
 * which it is hangs on the processor's prefetchers (README.md). */
static struct bench_timing reading_turns(const struct read_job *reading, const struct work *work,
                                   struct bench_timing *worked)
{
    struct read_job all = *reading, quarters = *reading;
    struct bench_timing times[WORKS_MOST];
    all.read = read_all;
    quarters.read = read_quarters;
    quarters.shift = (uint32_t)(POOL_BYTES / reading->bytes / 4); /* in no cache any more */
    const struct work works[WORKS_MOST] = { { read_run, &all }, { read_run, &quarters },
                                            work ? *work : (struct work){ 0 } };
    timed_turns(works, times, work ? WORKS_MOST : 2);
    if (work) *worked = times[2];
    return times[times[1].median < times[0].median];
}

double bench_reading(const struct bench_products *b, unsigned threads)
{
    struct read_job job = { .pool = b->pool, .chunks = chunks_of(threads),
                            .bytes = READ_BYTES * crowd(threads) };
    if (job.bytes > SAMPLE_BYTES_MAX) job.bytes = SAMPLE_BYTES_MAX;
    MUST(kern_par_create(&job.par, threads, NULL, NULL) == 0);
    const double best = reading_turns(&job, NULL, NULL).best;
    kern_par_destroy(job.par);
    return (double)job.bytes / best;
}

/* Products: the pool as a row of matrices of the same shape. */

/* What a product reads: weights and, where they count, scales. */
size_t bench_product_bytes(const struct kern_matrix *w)
{
    const size_t codes = w->rows * kern_row_bytes(w->dtype, w->cols);
    return kern_dtype_grouped(w->dtype) ? codes + (size_t)w->rows * w->cols / w->scale_cols * 2
                                        : codes;
}

static void product_chunk(void *context, uint32_t chunk, unsigned thread)
{
    const struct bench_product *job = context;
    struct kern_matrix w = job->w;
    w.data = job->bench->pool +
             (job->sample + job->shift) % job->matrices * bench_product_bytes(&w);
    /* Scales of groups follow their matrix: they are a good part of what is read. */
    if (kern_dtype_grouped(w.dtype))
        w.scales = (const uint8_t *)w.data + w.rows * kern_row_bytes(w.dtype, w.cols);
    const struct kern_matmul args = { .w = &w,
                                      .x = job->bench->x,
                                      .y = job->bench->y,
                                      .m = job->m,
                                      .x_stride = w.cols,
                                      .y_stride = w.rows,
                                      .k_blocks = 1,
                                      .x8 = job->x8,
                                      .x8_stride = kern_x8_bytes(w.cols, job->digits),
                                      .x8_digits = job->digits,
                                      .x16 = job->x16,
                                      .x16_stride = kern_x16_elements(w.cols, 1) };
    (void)thread;
    void (*const product)(const struct kern_matmul *, uint32_t, uint32_t) =
        job->x16 ? job->ops->matmul_x16 : job->x8 ? job->ops->matmul_x8 : job->ops->matmul;
    /* As many as the engine gives out at once, or copying their operands shows. */
    uint32_t unit = w.tiled ? kern_tile_rows(w.dtype) : UNIT;
    if (w.dtype == KERN_FP8_WOVEN) unit = job->m > 4 ? 4 * KERN_WOVEN_ROWS : KERN_WOVEN_ROWS;
    const uint32_t units = (w.rows + unit - 1) / unit;
    const uint32_t begin = units * chunk / job->chunks * unit;
    const uint32_t end = units * (chunk + 1) / job->chunks * unit;
    product(&args, begin, end < w.rows ? end : w.rows);
}

static void product_run(void *context, uint32_t sample)
{
    struct bench_product *job = context;
    job->sample = sample;
    kern_par_run(job->par, job->chunks, product_chunk, job);
}

enum { COLS = 2048, COLS_LONG = 7168, M_MAX = 128 };

/* COLS columns, or as many as is said. */
const struct bench_product_type bench_product_types[] = {
    { "fp8 128x128", KERN_FP8_E4M3, 128 },
    { "fp8 woven", KERN_FP8_WOVEN, 128 },
    { "fp8 7168", KERN_FP8_E4M3, 128, .cols = COLS_LONG },
    { "woven 7168", KERN_FP8_WOVEN, 128, .cols = COLS_LONG },
    { "int8 32", KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FULL },
    { "int8 128", KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FULL },
    { "int4 32", KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FULL },
    { "int4 128", KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FULL },
    { "int8 32 x8", KERN_INT8, KERN_GROUP_SMALL, KERN_X8_FAST },
    { "int8 128 x8", KERN_INT8, KERN_GROUP_LARGE, KERN_X8_FAST },
    { "int4 32 x8", KERN_INT4, KERN_GROUP_SMALL, KERN_X8_FAST },
    { "int4 128 x8", KERN_INT4, KERN_GROUP_LARGE, KERN_X8_FAST },
    { "fp8 x16", KERN_FP8_E4M3, 128, BENCH_BF16_DIGITS },
    { "bf16 x16", KERN_BF16, 0, BENCH_BF16_DIGITS },
    { "bf16", KERN_BF16, 0 },
    { "f16", KERN_F16, 0 },
    { "f32", KERN_F32, 0 },
};
const size_t bench_product_type_count = sizeof bench_product_types / sizeof *bench_product_types;

void bench_product_crowd(struct bench_product *job, uint32_t rows, unsigned threads)
{
    uint32_t times = crowd(threads);
    for (job->w.rows = rows * times;
         times > 1 && (bench_product_bytes(&job->w) > SAMPLE_BYTES_MAX ||
                       (size_t)job->w.rows * job->m > BENCH_FLOATS);
         job->w.rows = rows * times) times--;
    job->chunks = chunks_of(threads);
    if (job->chunks > job->w.rows / UNIT) job->chunks = job->w.rows / UNIT;
}

/* Products in turns with reading as many bytes; cached: products alone. */
void bench_product_times(struct bench_product *job, unsigned threads, bool cached,
                          struct bench_timing times[2])
{
    const struct bench_products *b = job->bench;
    const size_t bytes = bench_product_bytes(&job->w);
    MUST(bytes <= SAMPLE_BYTES_MAX && (size_t)job->w.rows * job->m <= BENCH_FLOATS);
    if (cached) job->chunks = chunks_of(threads);
    job->matrices = cached ? 1 : (uint32_t)(POOL_BYTES / bytes);
    MUST(kern_par_create(&job->par, threads, NULL, NULL) == 0);
    /* Half the pool away: what one reads the other finds in no cache. */
    struct read_job reading = { .par = job->par, .pool = b->pool, .bytes = bytes,
                                .chunks = job->chunks };
    const struct work product = { product_run, job };
    job->shift = job->matrices / 2;
    if (cached) timed_turns(&product, times, 1);
    else times[1] = reading_turns(&reading, &product, &times[0]);
    kern_par_destroy(job->par);
}

/* Products of weight type t: what stays the same over row counts, and the activations. */
void bench_product_prepare(struct bench_product *job, size_t t)
{
    static float scales[BENCH_PRODUCT_ROWS * COLS / KERN_GROUP_SMALL]; /* bf16 pairs, for groups */
    static uint8_t x8[M_MAX * (COLS * 6 + COLS / 8)] __attribute__((aligned(64)));
    static uint16_t x16[M_MAX * COLS] __attribute__((aligned(64)));
    const struct bench_product_type *type = &bench_product_types[t];
    MUST(!type->cols || !type->digits);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        scales[i] = 0.01f;
    job->w = (struct kern_matrix){ .dtype = type->dtype, .rows = BENCH_PRODUCT_CACHED,
                                   .cols = type->cols ? type->cols : COLS };
    if (type->digits == BENCH_BF16_DIGITS) {
        const size_t elements = kern_x16_elements(COLS, 1);
        MUST(sizeof x16 >= job->m * elements * sizeof *x16);
        for (uint32_t m = 0; m < job->m; m++)
            job->ops->to_x16(x16 + m * elements, job->bench->x + (size_t)m * COLS, &job->w, 1);
        job->x16 = x16;
    } else if (type->digits) {
        const size_t bytes = kern_x8_bytes(COLS, type->digits);
        MUST(sizeof x8 >= job->m * bytes);
        for (uint32_t m = 0; m < job->m; m++)
            job->ops->to_x8(x8 + m * bytes, job->bench->x + (size_t)m * COLS, COLS,
                            type->dtype, type->scale, type->digits);
        job->x8 = x8;
        job->w.tiled = true;    /* any bytes are tiles */
        job->digits = type->digits;
    }
    if (type->scale) {
        job->w.scales = scales;
        job->w.scale_cols = type->scale;
        job->w.scale_rows = kern_dtype_grouped(job->w.dtype) ? 1 : job->w.scale_cols;
    }
}

void bench_products_open(struct bench_products *b)
{
    struct base_rng rng;
    *b = (struct bench_products){ .pool = aligned_alloc(HUGE_BYTES, POOL_BYTES),
                         .x = aligned_alloc(64, sizeof(float) * BENCH_FLOATS),
                         .y = aligned_alloc(64, sizeof(float) * BENCH_FLOATS) };
    base_rng_init(&rng, 1);
    MUST(b->pool && b->x && b->y);
    (void)madvise(b->pool, POOL_BYTES, MADV_HUGEPAGE); /* as the slots of a cache are */
    /* Codes that are ordinary numbers in every type. */
    for (size_t i = 0; i < POOL_BYTES; i += 8) {
        const uint64_t bits =
            (base_rng_u64(&rng) & UINT64_C(0xb737b737b737b737)) | UINT64_C(0x2808280828082808);
        memcpy(b->pool + i, &bits, sizeof bits);
    }
    for (size_t i = 0; i < BENCH_FLOATS; i++) {
        b->x[i] = (float)base_rng_normal(&rng);
        b->y[i] = 0;
    }
}

void bench_products_close(struct bench_products *b)
{
    free(b->pool);
    free(b->x);
    free(b->y);
}
