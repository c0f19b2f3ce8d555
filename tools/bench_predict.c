/* tier-bench predict: what prediction and recording cost a generated token, against the floor of
 * that token's decode time.
 *
 * Routing is made up: each layer's experts follow from the token, a part of them at random; what it
 * costs does not depend on whether it can be predicted. The floor is the bytes of the model's
 * active parameters at the measured rate of this machine's memory: no decode of one token can be
 * faster, so the shares can only be smaller in truth.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/temp.h"
#include "kernels/kern.h"
#include "predictor/adviser.h"
#include "predictor/trace.h"
#include "tools/bench.h"
#include "tools/bench_stack.h"

static uint64_t layers = 58, experts = 256, top_k = 8, tokens = 64, warm = 128, rounds = 5;
static uint64_t lead = 2, ahead = 2, hidden = 7168, active_bytes = 37000000000, threads, seed = 1;
static const char *predictor = "blend";
static bool whole_pass, json;

enum { TOKENS = 2000, NOISE = 4 /* one expert in so many is random */ };

struct world {
    struct base_rng rng;
    struct pred_predictor *predictor;
    struct pred_adviser *adviser;
    struct pred_trace_writer *trace;
    uint32_t *ids;              /* [layers x top_k] */
    float *weights;
    uint64_t step;
};

struct cost {
    double predict_ns, learn_ns, record_ns;     /* a token */
    double gates_ns;            /* of gates asked ahead; not in predict_ns */
    double memory_rate, floor_ns;
    size_t bytes;
};

static uint32_t draw_token(struct world *w)
{
    uint32_t token = (uint32_t)base_rng_below(&w->rng, TOKENS);
    for (uint32_t l = 0; l < layers; l++) {
        uint32_t *ids = w->ids + l * top_k;
        for (uint32_t k = 0; k < top_k; k++) {
            uint64_t mixed = (token * 31 + l) * UINT64_C(0x9e3779b97f4a7c15) + k * 77;
            ids[k] = (uint32_t)((mixed >> 20) % experts);
            if (base_rng_below(&w->rng, NOISE) == 0) {
                ids[k] = (uint32_t)base_rng_below(&w->rng, experts);
            }
            for (uint32_t j = 0; j < k; j++) {
                if (ids[j] != ids[k]) continue;
                ids[k] = (uint32_t)((ids[k] + 1) % experts);
                j = UINT32_MAX;                 /* look again from the first */
            }
        }
    }
    return token;
}

static void record(struct world *w, uint64_t seq, uint32_t token, uint32_t position)
{
    const uint8_t phase = TIER_DECODE;
    struct pred_step step = {
        .step = w->step, .token_count = 1, .seqs = &seq, .tokens = &token, .positions = &position,
        .phases = &phase, .expert_ids = w->ids, .expert_weights = w->weights,
    };
    for (uint32_t l = 0; l < layers; l++) {
        struct tier_event event = {
            .kind = TIER_EVENT_ACQUIRE, .phase = TIER_DECODE, .layer = l, .count = (uint32_t)top_k,
            .granted = (uint32_t)top_k, .ids = w->ids + l * top_k,
        };
        pred_trace_writer_event(w->trace, &event);
        event.kind = TIER_EVENT_RELEASE;
        pred_trace_writer_event(w->trace, &event);
    }
    pred_trace_writer_step(w->trace, &step);
}

/* One token as the engine takes it: what it costs is added to `c`. */
static void one_token(struct world *w, struct cost *c)
{
    const struct tier_hint *hints;
    const uint8_t phase = TIER_DECODE;
    uint64_t seq = 1;
    uint32_t token = draw_token(w);
    uint64_t start = base_now_ns();
    pred_adviser_begin(w->adviser, &seq, &token, &phase, 1, &hints);
    for (uint32_t l = 0; l < layers; l++) {
        pred_adviser_routed(w->adviser, l, w->ids + l * top_k, &hints);
    }
    uint64_t predicted = base_now_ns();
    pred_adviser_end(w->adviser, PRED_LEARN);
    uint64_t learned = base_now_ns();
    record(w, seq, token, (uint32_t)w->step);
    c->predict_ns += (double)(predicted - start);
    c->learn_ns += (double)(learned - predicted);
    c->record_ns += (double)(base_now_ns() - learned);
    w->step++;
}

static int open_trace(struct world *w, const char *path, struct base_err *err)
{
    struct pred_trace_config config;
    struct base_option_group group = { "trace", pred_trace_options, pred_trace_option_count,
                                       &config };
    struct pred_trace_header header = {
        .model = "bench", .source = "server", .layers = (uint32_t)layers,
        .experts = (uint32_t)experts, .top_k = (uint32_t)top_k,
    };
    base_option_defaults(&group, 1);
    snprintf(config.path, sizeof config.path, "%s", path);
    return pred_trace_writer_open(&w->trace, &config, &header, true, err);
}

static int world_open(struct world *w, const char *path, struct base_err *err)
{
    struct pred_shape shape = {
        .layers = (uint32_t)layers, .experts = (uint32_t)experts, .top_k = (uint32_t)top_k,
        .model = "bench",
    };
    struct pred_adviser_options options = {
        .lead = (uint32_t)lead, .hints_max = 16, .probability_min = 0.02, .rows_max = 16,
        .whole_pass = whole_pass,
    };
    base_rng_init(&w->rng, seed);
    w->ids = calloc(layers * top_k, sizeof w->ids[0]);
    w->weights = calloc(layers * top_k, sizeof w->weights[0]);
    if (!w->ids || !w->weights) return base_err_set(err, -ENOMEM, "no memory");
    for (uint64_t i = 0; i < layers * top_k; i++) w->weights[i] = 1.0f / (float)top_k;
    int rc = pred_predictor_create(&w->predictor, predictor, &shape);
    if (rc == 0) rc = pred_adviser_create(&w->adviser, w->predictor, &options);
    if (rc < 0) {
        return base_err_set(err, rc, "predictor %s of %" PRIu64 " layers x %" PRIu64
                            " experts: %s", predictor, layers, experts, base_err_name(rc));
    }
    return open_trace(w, path, err);
}

/* The products of gates in BF16 with one row, on one thread: every layer's gate is asked by each of
 * the `ahead` layers before it, and lies in memory, not in a cache. */
static double measure_gates(void)
{
    const struct kern_ops *ops = kern_ops_cpu(KERN_CPU_BEST);
    double ns[BENCH_ROUNDS_MAX], spread;
    size_t each = experts * hidden;
    uint16_t *weights = calloc(layers * each, sizeof *weights);
    float *x = calloc(hidden, sizeof *x), *y = calloc(experts, sizeof *y);
    for (uint64_t i = 0; weights && i < layers * each; i++) {
        weights[i] = (uint16_t)(0x3c00 + i % 99);
    }
    for (uint64_t round = 0; weights && x && y && round < rounds; round++) {
        uint64_t begin = base_now_ns();
        for (uint64_t l = 0; l < layers; l++) {
            for (uint64_t n = 1; n <= ahead && l + n < layers; n++) {
                struct kern_matrix gate = {
                    .data = weights + (l + n) * each, .dtype = KERN_BF16,
                    .rows = (uint32_t)experts, .cols = (uint32_t)hidden,
                };
                struct kern_matmul product = {
                    .w = &gate, .x = x, .x_stride = hidden, .y = y, .y_stride = experts, .m = 1,
                    .k_blocks = 1,
                };
                ops->matmul(&product, 0, (uint32_t)experts);
            }
        }
        ns[round] = (double)(base_now_ns() - begin);
    }
    bool made = weights && x && y;
    free(weights);
    free(x);
    free(y);
    return made ? bench_median(ns, rounds, &spread) : 0;
}

static int measure(struct world *w, struct cost *best, struct base_err *err)
{
    double predict[BENCH_ROUNDS_MAX], learn[BENCH_ROUNDS_MAX], recorded[BENCH_ROUNDS_MAX], spread;
    struct cost c;
    for (uint64_t i = 0; i < warm; i++) one_token(w, &c);
    for (uint64_t round = 0; round < rounds; round++) {
        c = (struct cost){ 0 };
        for (uint64_t i = 0; i < tokens; i++) one_token(w, &c);
        predict[round] = c.predict_ns / (double)tokens;
        learn[round] = c.learn_ns / (double)tokens;
        recorded[round] = c.record_ns / (double)tokens;
    }
    unsigned crew = threads > 0 ? (unsigned)threads : (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    *best = (struct cost){
        .predict_ns = bench_median(predict, rounds, &spread),
        .learn_ns = bench_median(learn, rounds, &spread),
        .record_ns = bench_median(recorded, rounds, &spread),
        .memory_rate = bench_memory_rate(crew),
        .bytes = pred_predictor_bytes(w->predictor) + pred_adviser_bytes(w->adviser),
    };
    best->gates_ns = ahead > 0 ? measure_gates() : 0;
    if (best->memory_rate == 0) {
        return base_err_set(err, -ENOMEM, "no memory to measure the rate of memory with");
    }
    best->floor_ns = (double)active_bytes / best->memory_rate * 1e9;
    struct pred_trace_metrics metrics;
    pred_trace_writer_snapshot(w->trace, &metrics);
    if (metrics.lost_records == 0) return 0;
    return base_err_set(err, -ENOSPC, "%" PRIu64 " trace records were lost: what recording costs "
                        "was not measured", metrics.lost_records);
}

static void print(const struct cost *c)
{
    double predicting = c->predict_ns + c->learn_ns;
    if (json) {
        printf("{\"predictor\":\"%s\",\"layers\":%" PRIu64 ",\"experts\":%" PRIu64 ",\"top_k\":%"
               PRIu64 ",\"lead\":%" PRIu64 ",\"predict_ns\":%.0f,\"learn_ns\":%.0f,\"record_ns\":"
               "%.0f,\"bytes\":%zu,\"active_bytes\":%" PRIu64 ",\"memory_bytes_per_second\":%.0f,"
               "\"floor_ns\":%.0f,\"gates_ns\":%.0f,\"predictor_share\":%.6f,"
               "\"recording_share\":%.6f}\n",
               predictor, layers, experts, top_k, lead, c->predict_ns, c->learn_ns, c->record_ns,
               c->bytes, active_bytes, c->memory_rate, c->floor_ns, c->gates_ns,
               predicting / c->floor_ns, c->record_ns / c->floor_ns);
        return;
    }
    printf("%s, %" PRIu64 " layers x %" PRIu64 " experts, top-%" PRIu64 ": a token costs %.2f ms "
           "to predict, %.2f ms to learn from, %.3f ms to record; %.0f MiB of tables\n",
           predictor, layers, experts, top_k, c->predict_ns / 1e6, c->learn_ns / 1e6,
           c->record_ns / 1e6, (double)c->bytes / 1048576);
    printf("floor of its decode: %.1f GB at %.1f GB/s = %.0f ms; prediction is %.2f%% of that, "
           "recording %.3f%%\n", (double)active_bytes / 1e9, c->memory_rate / 1e9,
           c->floor_ns / 1e6, 100 * predicting / c->floor_ns, 100 * c->record_ns / c->floor_ns);
    if (ahead == 0) return;
    printf("%" PRIu64 " gates of %" PRIu64 " x %" PRIu64 " ahead of each layer: %.2f ms, %.2f%% of "
           "that\n", ahead, hidden, experts, c->gates_ns / 1e6, 100 * c->gates_ns / c->floor_ns);
}

static int run(int count, char **arguments)
{
    struct world w = { 0 };
    struct base_err err = { 0 };
    struct cost cost;
    char path[200];             /* trace.path takes no longer one */
    (void)count;
    (void)arguments;
    if (rounds < 1 || rounds > BENCH_ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", BENCH_ROUNDS_MAX);
    }
    if (tokens < 1 || top_k < 1 || top_k > experts || layers < 1) {
        return cli_misuse("--tokens, --layers and --top-k: 1 or more, --top-k up to --experts");
    }
    const char *dir = base_temp_folder();
    int size = snprintf(path, sizeof path, "%s/expertier-bench-XXXXXX", dir);
    int fd = size < (int)sizeof path ? mkstemp(path) : -1;
    if (fd < 0) {
        int code = size < (int)sizeof path ? -errno : -ENAMETOOLONG;
        base_err_set(&err, code, "%.80s: no temporary file can be made there: %s (TMPDIR names "
                     "another folder)", dir, base_err_name(code));
        return cli_fail(1, &err);
    }
    close(fd);
    int rc = world_open(&w, path, &err);
    unlink(path);               /* the writer has it open */
    if (rc == 0) rc = measure(&w, &cost, &err);
    if (rc == 0) print(&cost);
    if (w.trace) pred_trace_writer_close(w.trace, NULL);
    pred_adviser_destroy(w.adviser);
    pred_predictor_destroy(w.predictor);
    free(w.ids);
    free(w.weights);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag predict_flags[] = {
    { "predictor", CLI_TEXT, &predictor, "NAME", "as predictor.kind (blend)" },
    { "layers", CLI_UINT, &layers, "N", "layers with experts (58)" },
    { "experts", CLI_UINT, &experts, "N", "experts of a layer (256)" },
    { "top-k", CLI_UINT, &top_k, "N", "experts of a token (8)" },
    { "lead", CLI_UINT, &lead, "N", "as predictor.lead (2)" },
    { "lookahead", CLI_UINT, &ahead, "N", "gates asked ahead of each layer (2)" },
    { "hidden", CLI_UINT, &hidden, "N", "width of the state that they are asked with (7168)" },
    { "whole-pass", CLI_SWITCH, &whole_pass, NULL, "as predictor.whole_pass" },
    { "active-bytes", CLI_UINT, &active_bytes, "N",
      "bytes that a token's decode reads (37000000000: DeepSeek-V3's 37 B active parameters in "
      "FP8)" },
    { "threads", CLI_UINT, &threads, "N", "threads that read memory for the floor (all cores)" },
    { "tokens", CLI_UINT, &tokens, "N", "tokens of a round (64)" },
    { "warm", CLI_UINT, &warm, "N", "tokens before the first round (128)" },
    { "rounds", CLI_UINT, &rounds, "N", "rounds (5)" },
    { "seed", CLI_UINT, &seed, "N", "seed of the made-up routing (1)" },
    { "json", CLI_SWITCH, &json, NULL, "print the result as JSON" },
    { 0 },
};

const struct cli_command bench_predict_command = {
    .name = "predict",
    .arguments = "",
    .text = "what prediction and recording cost a token, against the floor of its decode",
    .details = "Runs predictor, adviser and trace writer as the engine does for one sequence. The "
               "floor is the time\n"
               "in which this machine's memory can give the bytes that the token's decode reads.",
    .flags = predict_flags,
    .run = run,
};
