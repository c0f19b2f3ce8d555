/* Measures a card and the kernels on it at the shapes of DeepSeek-V3, each row with its floor.
 *
 *   bench_card [--quick] [memory|copies|products|attention|rows]... [--only PART_OF_NAME] */
#include "tests/gpu/bench_card.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFERS_MAX = 4096, SAMPLES = 15 };

static void *buffers[BUFFERS_MAX];
static unsigned buffer_count;

void *bench_alloc(struct bench *b, size_t bytes, int fill)
{
    void *memory;
    bytes = (bytes + 255) / 256 * 256;
    if (buffer_count == BUFFERS_MAX) {
        printf("FAIL bench_card: too many buffers\n");
        exit(3);
    }
    CARD(cudaMalloc(&memory, bytes));
    buffers[buffer_count++] = memory;
    if (fill >= 0) card_fill(memory, bytes, (enum card_fill)fill, buffer_count, b->stream);
    return memory;
}

void *bench_upload(struct bench *b, const void *from, size_t bytes)
{
    void *memory = bench_alloc(b, bytes, CARD_FILL_BYTES);
    CARD(cudaMemcpyAsync(memory, from, bytes, cudaMemcpyHostToDevice, b->stream));
    CARD(cudaStreamSynchronize(b->stream));
    return memory;
}

void bench_release(struct bench *b)
{
    CARD(cudaStreamSynchronize(b->stream));
    for (unsigned i = 0; i < buffer_count; i++)
        CARD(cudaFree(buffers[i]));
    buffer_count = 0;
}

unsigned bench_sets(const struct bench *b, double bytes)
{
    const double enough = 4.0 * b->prop.l2CacheSize / (bytes > 4096 ? bytes : 4096);
    return b->quick ? 1 : enough < 1 ? 2 : enough > 48 ? 48 : 1 + (unsigned)enough;
}

bool bench_wanted(const struct bench *b, const char *name)
{
    return !b->only || strstr(name, b->only);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* `launches` between two events, so that what an event costs does not count. */
static float sample_ms(struct bench *b, void (*launch)(void *, unsigned), void *context,
                       unsigned first, unsigned launches)
{
    static cudaEvent_t begin, end;
    float ms;
    if (!begin) {
        CARD(cudaEventCreate(&begin));
        CARD(cudaEventCreate(&end));
    }
    CARD(cudaEventRecord(begin, b->stream));
    for (unsigned i = 0; i < launches; i++)
        launch(context, first + i);
    CARD(cudaEventRecord(end, b->stream));
    CARD(cudaEventSynchronize(end));
    CARD(cudaEventElapsedTime(&ms, begin, end));
    return ms;
}

double bench_time(struct bench *b, void (*launch)(void *context, unsigned i), void *context)
{
    float ms[SAMPLES];
    unsigned turn = 0;
    if (b->quick) {
        launch(context, 0);
        CARD(cudaStreamSynchronize(b->stream));
        return 0;
    }
    sample_ms(b, launch, context, turn, 2);
    const float once = sample_ms(b, launch, context, turn += 2, 2) / 2;
    /* About a millisecond a sample, so that the time between launches is a small part. */
    const unsigned launches = once > 1 ? 1 : once < 0.01f ? 100 : (unsigned)(1 / once) + 1;
    const unsigned samples = once > 20 ? 5 : SAMPLES;
    turn += 2;
    for (unsigned i = 0; i < samples; i++, turn += launches)
        ms[i] = sample_ms(b, launch, context, turn, launches) / (float)launches;
    qsort(ms, samples, sizeof *ms, by_value);
    return ms[samples / 2] * 1e-3;
}

/* ---- HBM and the units ---- */

struct memory_bench {
    struct bench *b;
    char *from, *to;
    size_t bytes;
};

static void read_launch(void *context, unsigned i)
{
    const struct memory_bench *m = context;
    card_read(i % 2 ? m->from : m->to, m->bytes, m->from, m->b->stream);
}

static void copy_launch(void *context, unsigned i)
{
    const struct memory_bench *m = context;
    (void)i;
    card_copy(m->to, m->from, m->bytes, m->b->stream);
}

void bench_memory(struct bench *b, bool say)
{
    struct memory_bench m = { .b = b, .bytes = (size_t)(b->quick ? 1 : 1024) << 20 };
    m.from = bench_alloc(b, m.bytes, CARD_FILL_BYTES);
    m.to = bench_alloc(b, m.bytes, CARD_FILL_BYTES);
    const double read_s = bench_time(b, read_launch, &m), copy_s = bench_time(b, copy_launch, &m);
    bench_release(b);
    if (b->quick) return;
    b->read_bps = (double)m.bytes / read_s;
    b->copy_bps = 2.0 * (double)m.bytes / copy_s;
    b->f32_peak = card_peak_f32(b->stream);
    b->mma_peak = card_peak_mma(b->stream);
    if (!say) return;
    struct card_row row = { .stage = "memory",
                            .name = "HBM read",
                            .ok = true,
                            .us = read_s * 1e6,
                            .bytes = (double)m.bytes };
    card_row_give(&row);
    row = (struct card_row){ .stage = "memory",
                             .name = "HBM copy (read + write)",
                             .ok = true,
                             .us = copy_s * 1e6,
                             .bytes = 2.0 * (double)m.bytes };
    card_row_give(&row);
    row = (struct card_row){ .stage = "memory",
                             .name = "f32 multiply-adds, measured",
                             .ok = true,
                             .us = 1,
                             .flops = b->f32_peak * 1e-6 };
    card_row_give(&row);
    row = (struct card_row){ .stage = "memory",
                             .name = "BF16 mma by warps, measured",
                             .ok = true,
                             .us = 1,
                             .flops = b->mma_peak * 1e-6 };
    card_row_give(&row);
}

/* ---- copies ---- */

/* Seconds for `count` pieces each way that is not NULL; the two ways on streams of their own. */
static double copies_time(cudaStream_t up, cudaStream_t down, char *card, char *host, size_t bytes,
                          unsigned count)
{
    cudaEvent_t begin, end[2];
    float longest = 0;
    cudaStream_t streams[2] = { up, down };
    CARD(cudaEventCreate(&begin));
    CARD(cudaDeviceSynchronize());
    CARD(cudaEventRecord(begin, up ? up : down));
    if (up && down) CARD(cudaStreamWaitEvent(down, begin, 0));
    for (int s = 0; s < 2; s++) {
        CARD(cudaEventCreate(&end[s]));
        if (!streams[s]) continue;
        for (unsigned i = 0; i < count; i++) {
            char *c = card + (s * count + i) * bytes, *h = host + (s * count + i) * bytes;
            CARD(cudaMemcpyAsync(s ? h : c, s ? c : h, bytes,
                                 s ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice, streams[s]));
        }
        CARD(cudaEventRecord(end[s], streams[s]));
    }
    for (int s = 0; s < 2; s++) {
        float ms;
        if (!streams[s]) continue;
        CARD(cudaEventSynchronize(end[s]));
        CARD(cudaEventElapsedTime(&ms, begin, end[s]));
        longest = ms > longest ? ms : longest;
    }
    for (int s = 0; s < 2; s++)
        CARD(cudaEventDestroy(end[s]));
    CARD(cudaEventDestroy(begin));
    return longest * 1e-3;
}

void bench_copies(struct bench *b)
{
    static const struct {
        const char *name;
        size_t bytes;
        unsigned count;
    } sizes[] = { { "256 MiB", (size_t)256 << 20, 1 },
                  { "an FP8 expert (44 MB)", 44 << 20, 5 },
                  { "1 MiB pieces", 1 << 20, 128 },
                  { "64 KiB pieces", 64 << 10, 512 } };
    static const char *const ways[] = { "host to card", "card to host", "both ways" };
    const size_t room = (size_t)512 << 20;
    cudaStream_t up, down;
    /* Pinned as the product pins: memory of ours, registered. */
    char *host = aligned_alloc(2 << 20, room), *card = bench_alloc(b, room, CARD_FILL_BYTES);
    if (!host) {
        printf("FAIL bench_card: no host memory\n");
        exit(3);
    }
    memset(host, 1, room);
    CARD(cudaHostRegister(host, room, cudaHostRegisterPortable));
    CARD(cudaStreamCreateWithFlags(&up, cudaStreamNonBlocking));
    CARD(cudaStreamCreateWithFlags(&down, cudaStreamNonBlocking));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int way = 0; way < 3; way++) {
            struct card_row row = { .stage = "copies", .ok = true };
            double s[5], best = 1e9;
            for (int r = 0; r < 5; r++) {
                s[r] = copies_time(way != 1 ? up : NULL, way != 0 ? down : NULL, card, host,
                                   sizes[i].bytes, sizes[i].count);
                best = s[r] < best ? s[r] : best;
            }
            snprintf(row.name, sizeof row.name, "%s, %s", ways[way], sizes[i].name);
            row.bytes = (way == 2 ? 2.0 : 1.0) * (double)sizes[i].bytes;
            row.us = best * 1e6 / sizes[i].count;
            card_row_give(&row);
        }
    }
    CARD(cudaHostUnregister(host));
    CARD(cudaStreamDestroy(up));
    CARD(cudaStreamDestroy(down));
    free(host);
    bench_release(b);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(struct bench *b);
    } parts[] = { { "copies", bench_copies },
                  { "products", bench_products },
                  { "attention", bench_attention },
                  { "rows", bench_rows } };
    struct bench b = { 0 };
    unsigned wanted = 0;
    for (int i = 1; i < argc; i++) {
        bool known = false;
        for (unsigned p = 0; p < sizeof parts / sizeof *parts; p++) {
            if (strcmp(argv[i], parts[p].name)) continue;
            wanted |= 1u << p;
            known = true;
        }
        if (!strcmp(argv[i], "--quick")) {
            b.quick = true;
        } else if (!strcmp(argv[i], "--only") && i + 1 < argc) {
            b.only = argv[++i];
        } else if (!known) {
            fprintf(stderr, "usage: bench_card [--quick] [--only PART] "
                            "[copies|products|attention|rows]...\n");
            return 2;
        }
    }
    card_open(&b.prop);
    CARD(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking));
    bench_memory(&b, !wanted || wanted & 1u);
    for (unsigned p = 0; p < sizeof parts / sizeof *parts; p++)
        if (!wanted || wanted >> p & 1u) parts[p].run(&b);
    return card_rows_bad() ? EXIT_FAILURE : EXIT_SUCCESS;
}
