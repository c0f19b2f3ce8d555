#include "tools/bench_stack.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "kernels/kern.h"
#include "port/yaml.h"
#include "tiering/io.h"

/* ------------------------------------------------------------------------------------ stack -- */

static void read_counters(const struct bench_stack *b, struct bench_counters *out)
{
    static struct tier_snapshot snapshot;
    tier_snapshot(b->stack.tier, &snapshot);
    const struct tier_tier_metrics *top = &snapshot.tiers[0];
    *out = (struct bench_counters){
        .missed_bytes = snapshot.io.demand_bytes,
        .ahead_bytes = snapshot.io.prefetch_bytes,
        .wasted_bytes = snapshot.io.prefetch_wasted_bytes,
        .lookups = top->lookups,
        .hits = top->hits,
        .late = top->late,
    };
}

static uint64_t demand_bytes(const struct bench_stack *b)
{
    struct bench_counters counters;
    read_counters(b, &counters);
    return counters.missed_bytes;
}

/* sum += now - before */
static void add_difference(struct bench_counters *sum, const struct bench_counters *now,
                           const struct bench_counters *before)
{
    sum->missed_bytes += now->missed_bytes - before->missed_bytes;
    sum->ahead_bytes += now->ahead_bytes - before->ahead_bytes;
    sum->wasted_bytes += now->wasted_bytes - before->wasted_bytes;
    sum->lookups += now->lookups - before->lookups;
    sum->hits += now->hits - before->hits;
    sum->late += now->late - before->late;
}

static void on_step_end(void *context, const struct eng_step_record *record)
{
    struct bench_stack *b = context;
    const struct model_shape *s = &b->stack.shape;
    static uint8_t seen[65536];
    bool full = record->token_count == b->batch;
    for (uint32_t i = 0; i < record->token_count; i++) {
        full &= record->phases[i] == TIER_DECODE;
    }
    struct bench_counters last = b->last;
    read_counters(b, &b->last);
    if (b->batch > 0 && !full) {
        bench_loads_note(b);
        return;
    }
    add_difference(&b->counters, &b->last, &last);
    b->steps++;
    b->step_tokens += record->token_count;
    b->step_ns += record->step_ns;
    b->account_step_ns += record->step_ns;
    for (int op = 0; op < ENG_OP_COUNT; op++) b->account_op_ns[op] += record->op_ns[op];
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) {
        b->wait_ns += record->wait_ns[cause];
        b->account_wait_ns[cause] += record->wait_ns[cause];
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

static void route(void *context, uint32_t moe_layer, uint64_t seq, uint32_t position,
                  uint32_t *ids)
{
    struct bench_stack *b = context;
    bench_routing_choose(&b->routing, moe_layer, seq, position, ids);
}

static uint32_t take_token(void *context, uint64_t seq, uint32_t position, uint32_t token)
{
    struct bench_stack *b = context;
    return bench_routing_token(&b->routing, seq, position, token);
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
                                   .profile_path = flags->profile,
                                   .account = true,
                                   .hooks = { .step_end = on_step_end,
                                              .route = flags->routing ? route : NULL,
                                              .token = flags->routing ? take_token : NULL,
                                              .context = b } };
    rc = eng_stack_open(&b->stack, &args, err);
    if (rc == 0 && flags->routing) {
        rc = b->stack.device ? base_err_set(err, BASE_ECONFIG,
                                            "--routing: the card's gates take no orders")
                             : bench_routing_open(&b->routing, flags->routing, &b->stack.shape,
                                                  flags->seed, err);
    }
    if (rc == 0) {
        rc = eng_footprint(&config.engine, &b->stack.shape, b->stack.files, b->stack.store,
                           &b->stack.ranks, b->stack.device != NULL, &footprint, err);
    }
    if (rc == 0 && bench_loads_note(b) < 0) rc = base_err_set(err, -ENOMEM, "no memory");
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
    bench_routing_close(&b->routing);
    free(b->loads);
    b->loads = NULL;
}

void bench_reset(struct bench_stack *b)
{
    b->steps = b->step_tokens = b->step_ns = b->wait_ns = b->expert_bytes = b->kv_bytes = 0;
    b->counters = (struct bench_counters){ 0 };
    b->tokens = 0;
    b->first_ns = b->last_ns = 0;
    read_counters(b, &b->last);
    bench_loads_note(b);
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

/* ---------------------------------------------------------------------------------- account -- */

static double share_of(const struct bench_stack *b, uint64_t ns)
{
    return b->account_step_ns > 0 ? (double)ns / (double)b->account_step_ns : 0;
}

double bench_accounted(const struct bench_stack *b)
{
    uint64_t known = 0;
    for (int op = 0; op < ENG_OP_COUNT; op++) known += b->account_op_ns[op];
    for (int cause = 0; cause < TIER_WAIT_CAUSE_COUNT; cause++) known += b->account_wait_ns[cause];
    return share_of(b, known);
}

void bench_print_model(const struct bench_stack *b)
{
    struct base_buf name;
    base_buf_init(&name);
    base_buf_json_escape(&name, b->stack.shape.name, strlen(b->stack.shape.name));
    printf("\"model\":\"%s\"", name.data && base_buf_error(&name) == 0 ? name.data : "");
    base_buf_fini(&name);
}

void bench_print_account(const struct bench_stack *b, bool json)
{
    static const char *const causes[] = { "wait for demand", "wait for late prefetch",
                                          "wait for copy", "wait for slot" };
    _Static_assert(sizeof causes / sizeof *causes == TIER_WAIT_CAUSE_COUNT, "a name for each");
    const double least = json ? 0 : 0.01;
    const char *between = "";
    printf(json ? "\"accounted\":%.5f,\"account\":{" : "  %.2f%% of the steps' time is known:",
           (json ? 1 : 100) * bench_accounted(b));
    for (int i = 0; i < ENG_OP_COUNT + TIER_WAIT_CAUSE_COUNT; i++) {
        bool op = i < ENG_OP_COUNT;
        const char *name = op ? eng_op_name((enum eng_op)i) : causes[i - ENG_OP_COUNT];
        double share = share_of(b, op ? b->account_op_ns[i] : b->account_wait_ns[i - ENG_OP_COUNT]);
        if (share <= least) continue;
        if (json) printf("%s\"%s\":%.5f", between, name, share);
        else printf("%s %s %.1f%%", between, name, 100 * share);
        between = ",";
    }
    fputs(json ? "}" : "\n", stdout);
}

int bench_warm(struct bench_stack *b, struct base_err *err)
{
    int rc = 0;
    uint32_t prompt = 256;
    if (prompt + 2 > b->stack.config.engine.max_model_len &&
        b->stack.config.engine.max_model_len > 0) {
        prompt = (uint32_t)b->stack.config.engine.max_model_len - 2;
    }
    /* Until a prompt finds everything that it needs, or misses about as much as the one before it
     * did: then there is no room for more. */
    uint64_t last = UINT64_MAX;
    for (int i = 0; i < 6 && rc == 0; i++) {
        uint64_t before = demand_bytes(b), missed;
        rc = bench_generate(b, 1, prompt, 2, b->flags->seed + 1000 + (uint64_t)i, err);
        missed = demand_bytes(b) - before;
        if (missed == 0 || (double)missed > 0.8 * (double)last) break;
        last = missed;
    }
    /* Of what is measured alone. */
    memset(b->account_op_ns, 0, sizeof b->account_op_ns);
    memset(b->account_wait_ns, 0, sizeof b->account_wait_ns);
    b->account_step_ns = 0;
    return rc;
}
