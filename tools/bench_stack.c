#include "tools/bench_stack.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "kernels/kern.h"
#include "port/yaml.h"
#include "tiering/io.h"

enum { TRIES = 5 };

/* ------------------------------------------------------------------------------------ stack -- */

static void on_step_end(void *context, const struct eng_step_record *record)
{
    struct bench_stack *b = context;
    const struct model_shape *s = &b->stack.shape;
    static uint8_t seen[65536];
    bool full = record->token_count == b->batch;
    for (uint32_t i = 0; i < record->token_count; i++) {
        full &= record->phases[i] == TIER_DECODE;
    }
    if (b->batch > 0 && !full) return;
    b->steps++;
    b->step_tokens += record->token_count;
    b->step_ns += record->step_ns;
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        b->wait_ns += record->wait_ns[cause];
    }
    uint64_t distinct = 0, pairs = (uint64_t)record->token_count * record->top_k;
    for (uint32_t l = 0; l < record->moe_layers; l++) {
        memset(seen, 0, s->experts);
        for (uint64_t i = 0; i < pairs; i++) {
            uint32_t id = record->expert_ids[l * pairs + i];
            distinct += !seen[id];
            seen[id] = 1;
        }
    }
    b->expert_bytes += distinct * tier_store_expert_bytes(b->stack.store);
    uint64_t number = b->stack.config.engine.kv_dtype == 1 ? 2 : 4;
    for (uint32_t i = 0; i < record->token_count; i++) {
        b->kv_bytes += (record->positions[i] + UINT64_C(1)) * (s->kv_lora_rank + s->qk_rope_dim) *
                       s->layers * number;
    }
}

static int read_config(struct eng_stack_config *config, const struct bench_flags *flags,
                       struct base_err *err)
{
    struct base_option_group groups[ENG_STACK_GROUPS];
    size_t count = eng_stack_groups(config, groups);
    base_option_defaults(groups, count);
    int rc = base_option_set_pair(groups, count, "tiers.dram.capacity=100%", err);
    if (rc == 0 && flags->config) rc = port_yaml_load(flags->config, groups, count, err);
    for (unsigned i = 0; rc == 0 && i < flags->set.count; i++) {
        rc = base_option_set_pair(groups, count, flags->set.text[i], err);
    }
    return rc;
}

int bench_open(struct bench_stack *b, const struct bench_flags *flags, struct base_err *err)
{
    static struct eng_stack_config config;
    struct eng_footprint footprint;
    cpu_set_t cores;
    *b = (struct bench_stack){ .flags = flags };
    base_log_level_set(BASE_LOG_WARN);
    int rc = read_config(&config, flags, err);
    if (rc < 0) return rc;
    struct eng_stack_args args = { .model_dir = flags->model,
                                   .config = &config,
                                   .quiet = flags->quiet,
                                   .observer = flags->observer,
                                   .hooks = { .step_end = on_step_end, .context = b } };
    rc = eng_stack_open(&b->stack, &args, err);
    if (rc == 0) {
        rc = eng_footprint(&config.engine, &b->stack.shape, b->stack.files, b->stack.store,
                           &b->stack.ranks, b->stack.device != NULL, &footprint, err);
    }
    if (rc < 0) return rc;
    int online = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    b->threads = config.engine.threads > 0 ? (unsigned)config.engine.threads : (unsigned)online;
    /* Of the embeddings a token needs one row, unless they are the head as well. */
    const struct model_tensor *embed =
        model_files_find(b->stack.files, "model.embed_tokens.weight");
    b->dense_step_bytes =
        footprint.dense_bytes - (b->stack.shape.tied_embeddings || !embed ? 0 : embed->bytes);
    return 0;
}

void bench_close(struct bench_stack *b)
{
    eng_stack_close(&b->stack);
}

uint64_t bench_missed(struct bench_stack *b)
{
    static struct tier_snapshot snapshot;
    tier_snapshot(b->stack.tier, &snapshot);
    return snapshot.io.demand_bytes;
}

uint64_t bench_reset(struct bench_stack *b)
{
    b->steps = b->step_tokens = b->step_ns = b->wait_ns = b->expert_bytes = b->kv_bytes = 0;
    b->tokens = 0;
    b->first_ns = b->last_ns = 0;
    return bench_missed(b);
}

static void on_piece(void *context, const struct eng_piece *piece)
{
    struct bench_stack *b = context;
    if (piece->finish == ENG_FAILED && !b->failed) {
        b->failed = true;
        snprintf(b->why, sizeof b->why, "%s", piece->error);
    }
    if (piece->token < 0) return;
    b->last_ns = base_now_ns();
    if (b->tokens++ == 0) b->first_ns = b->last_ns;
}

int bench_generate(struct bench_stack *b, uint32_t count, uint32_t prompt_tokens,
                   uint32_t answer_tokens, uint64_t seed, struct base_err *err)
{
    uint32_t *prompt = malloc(prompt_tokens * sizeof *prompt);
    struct base_rng rng;
    if (!prompt) {
        return base_err_set(err, -ENOMEM, "no memory for a prompt of %u tokens", prompt_tokens);
    }
    base_rng_init(&rng, seed);
    int rc = 0;
    for (uint32_t r = 0; r < count && rc == 0; r++) {
        for (uint32_t i = 0; i < prompt_tokens; i++) {
            prompt[i] = (uint32_t)base_rng_below(&rng, b->stack.shape.vocab);
        }
        struct eng_request request = {
            .prompt = prompt,
            .prompt_tokens = prompt_tokens,
            .max_tokens = answer_tokens,
            .ignore_eos = true,
            .sampling = { .temperature = 1.0f, .top_p = 1.0f, .seed = seed + r },
            .on_piece = on_piece,
            .context = b
        };
        int64_t id = eng_submit(b->stack.engine, &request, err);
        if (id < 0) rc = (int)id;
    }
    free(prompt);
    int alive = rc == 0;
    while (alive > 0) {
        alive = eng_step(b->stack.engine);
    }
    if (rc == 0 && (alive < 0 || b->failed)) {
        rc = base_err_set(err, -EIO, "the engine failed a request: %s", b->why);
    }
    return rc;
}

int bench_warm(struct bench_stack *b, struct base_err *err)
{
    int rc = 0;
    uint32_t prompt = 256;
    if (prompt + 2 > b->stack.config.engine.max_model_len &&
        b->stack.config.engine.max_model_len > 0) {
        prompt = (uint32_t)b->stack.config.engine.max_model_len - 2;
    }
    /* Until a prompt finds everything that it needs, or a budget shows that it never will. */
    for (int i = 0; i < 6 && rc == 0; i++) {
        uint64_t before = bench_missed(b);
        rc = bench_generate(b, 1, prompt, 2, b->flags->seed + 1000 + (uint64_t)i, err);
        if (bench_missed(b) == before) break;
    }
    return rc;
}

/* ------------------------------------------------------------------------------------ rates -- */

struct crew_member {
    void (*work)(struct crew_member *member);
    pthread_t thread;
    pthread_barrier_t *start;
    const uint64_t *from;       /* memory */
    size_t words;
    uint64_t sum;
    const struct kern_ops *ops; /* product */
    struct kern_matmul product;
    unsigned repeats;
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

static void read_words(struct crew_member *member)
{
    uint64_t sums[8] = { 0 };
    for (size_t i = 0; i + 8 <= member->words; i += 8) {
        for (int j = 0; j < 8; j++) {
            sums[j] += member->from[i + (size_t)j];
        }
    }
    for (int j = 0; j < 8; j++) {
        member->sum += sums[j];
    }
}

double bench_memory_rate(unsigned threads)
{
    enum { SHARE = 128 << 20 };     /* a thread's part: more than any cache */
    struct crew_member *crew = calloc(threads, sizeof *crew);
    unsigned char *memory = aligned_alloc(4096, (size_t)threads * SHARE);
    double best = 0;
    if (!crew || !memory) abort();
    memset(memory, 1, (size_t)threads * SHARE);
    for (int i = 0; i < TRIES; i++) {
        for (unsigned t = 0; t < threads; t++) {
            crew[t] = (struct crew_member){
                .work = read_words,
                .words = SHARE / 8,
                .from = (const uint64_t *)(const void *)(memory + (size_t)t * SHARE)
            };
        }
        double rate = (double)threads * SHARE / crew_run(crew, threads);
        if (rate > best) best = rate;
    }
    free(memory);
    free(crew);
    return best;
}

static void multiply(struct crew_member *member)
{
    for (unsigned i = 0; i < member->repeats; i++) {
        member->ops->matmul(&member->product, 0, member->product.w->rows);
    }
}

double bench_product_rate(struct bench_stack *b)
{
    enum { M = 64, N = 64, K = 512, REPEATS = 60 };
    struct crew_member *crew = calloc(b->threads, sizeof *crew);
    float *memory = calloc((size_t)b->threads, (M * K + N * K + M * N) * sizeof *memory);
    struct kern_matrix *weights = calloc(b->threads, sizeof *weights);
    double best = 0;
    if (!crew || !memory || !weights) abort();
    for (int i = 0; i < TRIES; i++) {
        for (unsigned t = 0; t < b->threads; t++) {
            float *x = memory + (size_t)t * (M * K + N * K + M * N);
            weights[t] =
                (struct kern_matrix){ .dtype = KERN_F32, .rows = N, .cols = K, .data = x + M * K };
            crew[t] = (struct crew_member){
                .work = multiply,
                .repeats = REPEATS,
                .ops = kern_ops_cpu((enum kern_cpu)b->stack.config.engine.cpu_mask),
                .product = { .w = &weights[t],
                             .x = x,
                             .y = x + M * K + N * K,
                             .m = M,
                             .x_stride = K,
                             .y_stride = N,
                             .k_blocks = 1 },
            };
        }
        double rate = (double)b->threads * REPEATS * M * N * K / crew_run(crew, b->threads);
        if (rate > best) best = rate;
    }
    free(weights);
    free(memory);
    free(crew);
    return best;
}

double bench_disk_rate(struct bench_stack *b)
{
    enum { DEPTH = 16 };
    const uint64_t part = UINT64_C(1) << 20, time_ns = 1000000000;
    struct base_err err = { 0 };
    struct tier_io *io;
    struct tier_io_req reqs[DEPTH], *done[DEPTH];
    struct base_rng rng;
    uint64_t file_bytes = 0;
    unsigned char *memory = aligned_alloc(4096, DEPTH * part);
    const char *path = tier_store_file_path(b->stack.store, 0);
    FILE *from = fopen(path, "rbe");
    if (from && fseeko(from, 0, SEEK_END) == 0) file_bytes = (uint64_t)ftello(from);
    if (from) fclose(from);
    uint64_t parts = file_bytes / part, bytes = 0;
    if (!memory || parts == 0 ||
        tier_io_create(&io, &b->stack.config.io, base_clock_real(), &err) < 0) {
        free(memory);
        return 0;
    }
    int handle = tier_io_file_add(io, path, &err);
    base_rng_init(&rng, b->flags->seed);
    uint64_t begin = base_now_ns(), now = begin;
    for (int i = 0; i < DEPTH && handle >= 0; i++) {
        struct tier_io_req *req = &reqs[i];
        *req = (struct tier_io_req){ .file = (uint32_t)handle,
                                     .to = memory + (uint64_t)i * part,
                                     .bytes = part,
                                     .offset = base_rng_below(&rng, parts) * part };
        tier_io_submit(io, &req, 1);
    }
    while (io->in_flight > 0) {
        int count = tier_io_reap(io, done, DEPTH, 1, UINT64_MAX);
        now = base_now_ns();
        for (int i = 0; i < count; i++) {
            if (done[i]->result > 0) bytes += (uint64_t)done[i]->result;
            done[i]->offset = base_rng_below(&rng, parts) * part;
        }
        if (now < begin + time_ns && count > 0) tier_io_submit(io, done, (unsigned)count);
    }
    tier_io_destroy(io);
    free(memory);
    return (double)bytes * 1e9 / (double)(now - begin);
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
