/* tier-bench prefill: prompt tokens a second, and how much of the floor that is.
 *
 * The floor of a prompt is its multiply-adds at the peak of the cores (f32, and those with 8-bit
 * integers or bf16 at the peak of these), or its missed bytes at the rate of the disk, whichever
 * takes longer. The peak of a round is the best sample of those before and after it. Their medians
 * tell what others left of the cores: of a core that two share each has little more than half.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "model/safetensors.h"
#include "tools/bench.h"
#include "tools/bench_stack.h"

static struct bench_flags flags = { .model = "models/pebble", .rounds = 5, .seed = 1 };
static uint64_t tokens = 512;

struct result {
    double rate, spread, missed, waits;
    double work[BENCH_KINDS], peak[BENCH_KINDS];    /* multiply-adds a token; a second */
    double usual;               /* share of the peak that samples beside the rounds have, medians */
    double disk_rate, floor_rate, fraction, fraction_spread;
    bool floor;                 /* the CPU computes: its cores' peak is what bounds */
};

/* Multiply-adds of one prompt token that sees `seen` tokens before it. */
static double token_work(const struct model_shape *s, double seen)
{
    double hidden = s->hidden, heads = s->heads, lora = s->kv_lora_rank, sum = 0;
    double q = heads * (s->qk_nope_dim + s->qk_rope_dim);
    double attention = hidden * (lora + s->qk_rope_dim) +
                       heads * (s->qk_nope_dim + s->v_dim) * lora + heads * s->v_dim * hidden +
                       heads * seen * (2 * lora + s->qk_rope_dim);
    attention += s->q_lora_rank ? s->q_lora_rank * (hidden + q) : hidden * q;
    for (uint32_t i = 0; i < s->layers; i++) {
        double width =
            model_shape_is_moe(s, i)
                ? (double)(s->top_k + s->shared_experts) * s->expert_width + s->experts / 3.0
                : s->dense_width;
        sum += attention + 3 * hidden * width;
    }
    return sum;
}

/* Of these, what attention takes and what carries queries into the latent space: f32 always. */
static double attention_work(const struct model_shape *s, double seen)
{
    double heads = s->heads, lora = s->kv_lora_rank;
    return s->layers * heads * (s->qk_nope_dim * lora + seen * (2 * lora + s->qk_rope_dim));
}

static double floor_seconds(const struct result *r, const double peak[BENCH_KINDS])
{
    double seconds = 0;
    for (int kind = 0; kind < BENCH_KINDS; kind++) {
        if (r->work[kind] > 0) seconds += r->work[kind] / peak[kind];
    }
    return seconds;
}

static enum bench_arithmetic arithmetic(const struct bench_stack *b)
{
    switch (b->stack.config.engine.activations) {
    case ENG_ACTIVATIONS_BF16:
        return BENCH_BF16;
    case ENG_ACTIVATIONS_INT8:
        return BENCH_INT8;
    default:
        return BENCH_F32;
    }
}

/* Multiply-adds of a token with INT8 and INT4 matrices: of routed experts those that it goes to. */
static double int8_work(const struct model_files *files, const struct model_shape *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < model_files_count(files); i++) {
        const struct model_tensor *tensor = model_files_at(files, i);
        const bool routed = strstr(tensor->name, ".mlp.experts.") != NULL;
        const bool head = strncmp(tensor->name, "lm_head.", 8) == 0;    /* once a prompt */
        const bool int4 = tensor->dtype == MODEL_U8;
        if ((tensor->dtype != MODEL_I8 && !int4) || tensor->dims != 2 || head) continue;
        const double codes = (double)tensor->shape[0] * (double)tensor->shape[1] * (int4 ? 2 : 1);
        sum += routed ? codes * s->top_k / s->experts : codes;
    }
    return sum;
}

/* By what they are multiplied as. Fast modes round what goes into products to bf16, but 8-bit
 * integers are made for INT8 and INT4 matrices with `int8`; of F32 and F16 matrices, whose inputs
 * stay, models that one measures have no large ones. */
static void work_by_kind(const struct bench_stack *b, double work[BENCH_KINDS])
{
    const struct model_shape *s = &b->stack.shape;
    const enum bench_arithmetic kind = arithmetic(b);
    const double seen = (double)tokens / 2, all = token_work(s, seen);
    work[BENCH_F32] = kind == BENCH_F32 ? all : attention_work(s, seen);
    work[BENCH_INT8] = kind == BENCH_INT8 ? int8_work(b->stack.files, s) : 0;
    work[BENCH_BF16] = all - work[BENCH_F32] - work[BENCH_INT8];
}

/* The peaks before or after a round. */
struct peaks {
    struct bench_peak of[BENCH_KINDS];
};

static struct peaks peaks_of(const struct bench_stack *b, const struct result *r)
{
    struct peaks p = { 0 };
    for (int kind = 0; kind < BENCH_KINDS; kind++) {
        if (kind == BENCH_F32 || r->work[kind] > 0)
            p.of[kind] = bench_peak(b->threads, (enum bench_arithmetic)kind);
    }
    return p;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static int measure(struct bench_stack *b, struct result *r, struct base_err *err)
{
    double rates[BENCH_ROUNDS_MAX], shares[BENCH_ROUNDS_MAX];
    double peaks[BENCH_KINDS][BENCH_ROUNDS_MAX];
    double disks[BENCH_ROUNDS_MAX] = { 0 }, floors[BENCH_ROUNDS_MAX];
    double usual[BENCH_ROUNDS_MAX];
    double missed = 0, waits = 0, times = 0, spread;
    struct peaks before = { 0 };
    int rc = bench_warm(b, err);
    r->floor = !b->stack.device;
    work_by_kind(b, r->work);
    for (uint64_t round = 0; round < flags.rounds && rc == 0; round++) {
        if (r->floor) before = peaks_of(b, r);
        bench_reset(b);
        uint64_t begin = base_now_ns();
        rc = bench_generate(b, 1, (uint32_t)tokens, 1, flags.seed + round * 100, err);
        if (rc < 0) break;
        rates[round] = (double)tokens * 1e9 / (double)(b->first_ns - begin);
        if (r->floor) {
            const struct peaks after = peaks_of(b, r);
            double peak[BENCH_KINDS], disk = 0;
            for (int kind = 0; kind < BENCH_KINDS; kind++) {
                peak[kind] = larger(before.of[kind].best, after.of[kind].best);
                peaks[kind][round] = peak[kind];
            }
            usual[round] = (before.of[BENCH_F32].median + after.of[BENCH_F32].median) / 2 /
                           peak[BENCH_F32];
            double seconds = floor_seconds(r, peak);
            if (b->counters.missed_bytes > 0) disks[round] = bench_disk_rate(b);
            if (disks[round] > 0) {
                disk = (double)b->counters.missed_bytes / disks[round] / (double)tokens;
            }
            if (disk > seconds) seconds = disk;
            floors[round] = 1 / seconds;
            shares[round] = rates[round] / floors[round];
        }
        missed += (double)b->counters.missed_bytes;
        waits += (double)b->wait_ns;
        times += (double)b->step_ns;
    }
    if (rc < 0) return rc;
    r->rate = bench_median(rates, flags.rounds, &r->spread);
    r->missed = missed / (double)(flags.rounds * tokens);
    r->waits = waits / times;
    if (!r->floor) return 0;
    for (int kind = 0; kind < BENCH_KINDS; kind++)
        r->peak[kind] = bench_median(peaks[kind], flags.rounds, &spread);
    r->usual = bench_median(usual, flags.rounds, &spread);
    r->fraction = bench_median(shares, flags.rounds, &r->fraction_spread);
    r->floor_rate = bench_median(floors, flags.rounds, &spread);
    r->disk_rate = bench_median(disks, flags.rounds, &spread);
    return 0;
}

static double all_work(const struct result *r)
{
    return r->work[BENCH_F32] + r->work[BENCH_BF16] + r->work[BENCH_INT8];
}

static void print_json(const struct bench_stack *b, const struct result *r)
{
    putchar('{');
    bench_print_model(b);
    printf(",\"threads\":%u,\"tokens\":%llu,\"rounds\":%llu,"
           "\"tokens_per_second\":%.3f,\"spread\":%.4f,\"multiply_adds_per_token\":%.0f,"
           "\"bf16_multiply_adds_per_token\":%.0f,\"int8_multiply_adds_per_token\":%.0f,"
           "\"missed_bytes_per_token\":%.0f,\"wait_share\":%.4f,",
           b->threads, (unsigned long long)tokens, (unsigned long long)flags.rounds, r->rate,
           r->spread, all_work(r), r->work[BENCH_BF16], r->work[BENCH_INT8], r->missed, r->waits);
    if (r->floor) {
        printf("\"multiply_adds_per_second\":%.0f,\"bf16_multiply_adds_per_second\":%.0f,"
               "\"int8_multiply_adds_per_second\":%.0f,\"usual_share_of_peak\":%.4f,"
               "\"disk_bytes_per_second\":%.0f,\"floor_tokens_per_second\":%.3f,"
               "\"floor_fraction\":%.4f,\"floor_fraction_spread\":%.4f,",
               r->peak[BENCH_F32], r->peak[BENCH_BF16], r->peak[BENCH_INT8], r->usual,
               r->disk_rate, r->floor_rate, r->fraction, r->fraction_spread);
    } else {
        fputs("\"floor_tokens_per_second\":null,", stdout);
    }
    bench_print_account(b, true);
    puts("}");
}

static void print_text(const struct bench_stack *b, const struct result *r)
{
    static const char *const names[BENCH_KINDS] = { "f32", "bf16", "8 bits" };
    const char *before = " (";
    printf(
        "%s, %u threads, a prompt of %llu tokens: %.1f tokens/s, median of %llu (spread %.0f%%)\n",
        b->stack.shape.name, b->threads, (unsigned long long)tokens, r->rate,
        (unsigned long long)flags.rounds, 100 * r->spread);
    printf("  %.1f M multiply-adds a token", all_work(r) / 1e6);
    if (!r->floor) {
        printf(", %.1f MB missed, %.0f%% of the time waiting\n  floor: none: a card computes, "
               "whose peak is not measured here\n", r->missed / 1e6, 100 * r->waits);
        bench_print_account(b, false);
        return;
    }
    for (int kind = 0; kind < BENCH_KINDS; kind++) {
        if (r->work[kind] <= 0) continue;
        printf("%s%.1f M in %s: the cores can do %.1f G a second", before, r->work[kind] / 1e6,
               names[kind], r->peak[kind] / 1e9);
        before = "; ";
    }
    putchar(')');
    if (r->missed > 0) {
        printf("; %.1f MB missed a token, the disk reads %.2f GB/s; %.0f%% of the time waiting",
               r->missed / 1e6, r->disk_rate / 1e9, 100 * r->waits);
    }
    printf("\n  floor %.1f tokens/s: %.0f%% of it reached (median; spread %.0f%%)\n", r->floor_rate,
           100 * r->fraction, 100 * r->fraction_spread);
    printf("  before and after the rounds the cores gave %.0f%% of their peak (median)%s\n",
           100 * r->usual, r->usual < 0.9 ? ": others were at work on them" : "");
    bench_print_account(b, false);
}

static int run(int count, char **arguments)
{
    static struct bench_stack bench;
    struct base_err err = { 0 };
    struct result result = { 0 };
    (void)count;
    (void)arguments;
    if (flags.rounds < 1 || flags.rounds > BENCH_ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", BENCH_ROUNDS_MAX);
    }
    if (tokens < 2 || tokens > 1000000) return cli_misuse("--tokens: 2 to 1000000");
    int rc = bench_open(&bench, &flags, &err);
    if (rc == 0) rc = measure(&bench, &result, &err);
    if (rc == 0) (flags.json ? print_json : print_text)(&bench, &result);
    bench_close(&bench);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag prefill_flags[] = {
    { "model", CLI_TEXT, &flags.model, "DIR", "the model (models/pebble)" },
    { "tokens", CLI_UINT, &tokens, "N", "length of the prompt (512)" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "rounds (5)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of the prompts (1)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "YAML settings; see tier-server --options" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE",
      "one setting, over the file's; may be repeated" },
    { "routing", CLI_TEXT, &flags.routing, "uniform|TRACE",
      "experts that the gates are made to choose: drawn, or a recorded trace's" },
    { "profile", CLI_TEXT, &flags.profile, "FILE",
      "write where the time went, as Chrome trace events" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "show no progress" },
    { 0 },
};

const struct cli_command bench_prefill_command = {
    .name = "prefill",
    .arguments = "",
    .text = "prompt tokens a second, against the machine's floor",
    .details =
        "Opens the model as the server does, with all experts in DRAM unless a setting says "
        "otherwise, warms\n"
        "the cache, then computes random prompts. The floor is the longer of: multiply-adds over "
        "the peak\n"
        "of the cores (that of bf16 or of 8 bits for what is so multiplied; the best of samples "
        "before and\n"
        "after each round), bytes missed over the measured rate of the disk. On a card there is "
        "none here:\n"
        "its peak is not measured.",
    .flags = prefill_flags,
    .run = run,
};
