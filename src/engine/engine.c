#include "engine/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "engine/coding.h"
#include "engine/core.h"
#include "engine/cuda/cuda.h"
#include "engine/forward.h"
#include "engine/landing.h"
#include "engine/limits.h"
#include "port/topo.h"

enum { ENG_MAGIC = 0x656e6731, WAITING_MAX = 4096 };

static struct base_mem_tag activation_tag = { .name = "activations" };

#define BASE_OPTION_OWNER struct eng_config
const struct base_option eng_options[] = { ENG_OPTIONS(BASE_OPTION_ROW) };
const size_t eng_option_count = sizeof eng_options / sizeof eng_options[0];
#undef BASE_OPTION_OWNER

#define BASE_METRIC_OWNER struct eng_metrics
const struct base_metric eng_metrics[] = { ENG_METRICS(BASE_METRIC_ROW) };
const size_t eng_metric_count = sizeof eng_metrics / sizeof eng_metrics[0];
#undef BASE_METRIC_OWNER

struct eng {
    uint32_t magic;
    struct eng_core core;
    struct eng_scheduler scheduler;
    struct eng_limits limits;
    struct eng_seq_limits seq_limits;
    const struct model_tokenizer *tokenizer;
    struct eng_hooks hooks;
    struct eng_landing *landing;
    struct port_topo *topo;
    uint32_t core_first;
    void *plan_memory;
    size_t plan_bytes;
    bool plan_registered;       /* with the device */
    uint64_t next_id, step;
    bool listening;             /* a rank that waits for an order */
    uint64_t collective_ns;     /* of the steps so far */
    bool opened;                /* the others listen */
    bool in_step;               /* callbacks may cancel; the sequence goes when the step is over */
    struct eng_metrics metrics;
    struct eng_metrics published;
    pthread_mutex_t published_lock;
    bool lock_made;
};

int eng_footprint(const struct eng_config *config, const struct model_shape *shape,
                  const struct model_files *files, const struct tier_store *store,
                  const struct eng_ranks *ranks, bool on_device, struct eng_footprint *out,
                  struct base_err *err)
{
    enum { DEVICE_ALIGN = 4096, DEVICE_BLOCKS = 3 };
    struct eng_limits limits;
    struct eng_plan plan;
    *out = (struct eng_footprint){ 0 };
    int rc = eng_limits_of(&limits, config, shape, err);
    struct eng_weights_need need;
    if (rc == 0) rc = eng_weights_plan(shape, files, ranks, &need, err);
    if (rc < 0) return rc;
    out->dense_bytes = need.bytes;
    limits.plan.ranks = ranks;
    limits.plan.on_device = on_device;
    rc = eng_limits_check(&limits, shape, err);
    if (rc < 0) return rc;
    if (!on_device) eng_coding_choose(&limits.plan, config, shape, store, need.grouped > 0);
    out->kv_bytes = limits.kv_bytes;
    out->activation_bytes = eng_plan_layout(&plan, shape, &limits.plan, NULL);
    if (limits.kv_shares) {
        out->activation_bytes += eng_prefix_bytes(limits.kv_blocks, limits.kv_block_tokens);
    }
    if (!on_device) {
        out->activation_bytes += eng_landing_bytes(store, shape, config);
        return 0;
    }
    struct eng_cuda_bytes bytes;
    eng_cuda_bytes(&bytes, &limits, shape);
    out->activation_bytes += bytes.staging;
    out->device_work_bytes = bytes.work;
    out->device_bytes =
        out->dense_bytes + out->kv_bytes + bytes.work + DEVICE_BLOCKS * DEVICE_ALIGN;
    return 0;
}

/* ------------------------------------------------------------------------------ open, close -- */

static void bind_worker(void *context, unsigned index)
{
    /* A container may forbid it; then the scheduler places the thread. */
    const struct eng *eng = context;
    port_topo_bind_thread(eng->topo, eng->core_first + index);
}

static int start_threads(struct eng *eng, const struct eng_config *config, struct base_err *err)
{
    struct eng_work *work = &eng->core.work;
    work->ops = kern_ops_cpu((enum kern_cpu)config->cpu_mask);
    work->threads = eng->limits.plan.threads;
    /* The engine thread itself stays where the system puts it: threads that it starts later would
     * inherit its binding. */
    bool pin = config->pin_threads && work->threads > 1;
    if (pin) {
        int rc = port_topo_open(&eng->topo, err);
        if (rc < 0) return rc;
    }
    int rc = kern_par_create(&work->par, work->threads, pin ? bind_worker : NULL, eng);
    if (rc < 0) return base_err_set(err, rc, "engine.threads: %u threads cannot be started: %s",
                                    work->threads, base_err_name(rc));
    return 0;
}

/* What an expert's matrices are, from the store's parts. */
static int learn_experts(struct eng *eng, const struct eng_open_args *args, struct base_err *err)
{
    const struct tier_store *store = args->store;
    const struct model_shape *s = eng->core.shape;
    const struct tier_part *parts = tier_store_parts(store);
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        const struct tier_part *part = &parts[2 * m], *scales = &parts[2 * m + 1];
        struct kern_matrix *w = &eng->core.expert[m];
        *w = eng_coding_expert(store, s, m);
        eng->core.expert_scaled[m] = scales->rows > 0;
        bool woven = w->dtype == KERN_FP8_WOVEN;
        bool needs_scales = w->dtype == KERN_FP8_E4M3 || woven || kern_dtype_grouped(w->dtype);
        bool bare = needs_scales && scales->rows == 0;
        if (w->dtype == KERN_DTYPE_COUNT || bare || part->rows != w->rows ||
            (size_t)part->cols * model_dtype_bytes(part->dtype) !=
                kern_row_bytes(w->dtype, w->cols)) {
            return base_err_set(
                err, BASE_EMISMATCH,
                "%s: part %d of its experts is %u x %u %s%s, the model needs %u x %u",
                tier_store_index_path(store), 2 * m, part->rows, part->cols,
                model_dtype_name(part->dtype), bare ? " without scales" : "", w->rows, w->cols);
        }
        if (args->device && (w->tiled || woven)) {
            return base_err_set(err, BASE_EMISMATCH,
                                "%s: its experts %s, as CPUs multiply them, and a card takes "
                                "rows: `tier-pack repack` without --order makes such a pack",
                                tier_store_index_path(store), woven ? "are woven" : "lie in tiles");
        }
        if (woven && args->config->activations != ENG_ACTIVATIONS_F32) {
            return base_err_set(err, BASE_EMISMATCH,
                                "%s: its experts are woven, for f32 activations, and others take "
                                "rows: leave engine.activations at f32, or make a pack with "
                                "`tier-pack repack` without --order",
                                tier_store_index_path(store));
        }
        if (!args->device) *w = args->landing->landed[m];
    }
    return 0;
}

static int prepare_rope(struct eng *eng)
{
    const struct model_shape *s = eng->core.shape;
    uint32_t half = s->qk_rope_dim / 2;
    double magnitude;
    double *exact = malloc((half + 1) * sizeof *exact);
    eng->core.rope_frequency = malloc((half + 1) * sizeof *eng->core.rope_frequency);
    if (!exact || !eng->core.rope_frequency) {
        free(exact);
        return -ENOMEM;
    }
    model_shape_rope(s, exact, &magnitude);
    for (uint32_t i = 0; i < half; i++) {
        eng->core.rope_frequency[i] = (float)exact[i];
    }
    free(exact);
    eng->core.rope_magnitude = (float)magnitude;
    eng->core.softmax_scale = (float)model_shape_softmax_scale(s);
    return 0;
}

static int make_blocks(struct eng *eng, struct base_err *err)
{
    struct eng_core *core = &eng->core;
    const struct eng_limits *l = &eng->limits;
    void *memory;
    if (!core->device) {
        return eng_kv_init(&core->kv, core->shape->layers, l->kv_width, l->kv_block_tokens,
                           l->kv_bf16, l->kv_blocks, l->kv_blocks_per_seq);
    }
    int rc = dev_memory_alloc(core->device, l->kv_bytes, &memory, err);
    if (rc < 0) return rc;
    /* What the device gives out lands in the plan: routing and logits. */
    rc = dev_host_register(core->device, eng->plan_memory, eng->plan_bytes);
    if (rc < 0) {
        return base_err_set(err, rc, "the device cannot pin %zu bytes that it copies to",
                            eng->plan_bytes);
    }
    eng->plan_registered = true;
    return eng_kv_init_at(&core->kv, core->shape->layers, l->kv_width, l->kv_block_tokens,
                          l->kv_bf16, l->kv_blocks, l->kv_blocks_per_seq, memory);
}

static int make_room(struct eng *eng, struct base_err *err)
{
    struct eng_core *core = &eng->core;
    const struct eng_limits *l = &eng->limits;
    size_t bytes = eng_plan_layout(&core->plan, core->shape, &l->plan, NULL);
    eng->plan_memory = base_mem_alloc(&activation_tag, bytes, 64);
    eng->plan_bytes = bytes;
    int rc = eng->plan_memory ? 0 : -ENOMEM;
    if (rc == 0) {
        /* Touched now, so that a step neither waits for pages nor finds that there are none. */
        memset(eng->plan_memory, 0, bytes);
        eng_plan_layout(&core->plan, core->shape, &l->plan, eng->plan_memory);
        core->work.x16 = core->plan.x16;
        core->work.x16_elements = core->plan.x16_elements;
        core->work.x8 = core->plan.x8;
        core->work.x8_bytes = core->plan.x8_bytes;
        core->work.x8_digits = l->plan.dense_digits;
        rc = make_blocks(eng, err);
    }
    const bool schedules = !core->ranks.comm || core->ranks.comm->rank == 0;
    /* A card computes prompts with other products than generated tokens. */
    if (rc == 0 && l->kv_shares && schedules) rc = eng_kv_share(&core->kv, core->device != NULL);
    if (rc == 0) rc = eng_scheduler_init(&eng->scheduler, &l->scheduler, &core->kv);
    if (rc == 0) {
        rc = eng_lead_init(&core->lead, core->ranks.comm, l->plan.rows, l->plan.decode_rows + 1,
                           l->kv_blocks_per_seq);
    }
    if (rc == 0) rc = prepare_rope(eng);
    if (rc < 0) {
        return base_err_set(err, rc,
                            "%s: no memory for %zu bytes of activations and %" PRIu64
                            " bytes of KV cache (kv.capacity)",
                            core->shape->name, bytes, l->kv_bytes);
    }
    return 0;
}

static uint32_t longest_token(const struct model_tokenizer *tokenizer)
{
    size_t longest = 0;
    for (uint32_t id = 0; id < model_tokenizer_vocab(tokenizer); id++) {
        size_t size;
        bool special;
        model_tokenizer_bytes(tokenizer, id, &size, &special);
        if (size > longest) longest = size;
    }
    return (uint32_t)longest;
}

static void publish(struct eng *eng);

/* Other ranks keep this one waiting: the tiers may use the time. */
static void while_waiting(void *context)
{
    struct eng *eng = context;
    if (eng->listening) tier_idle(eng->core.tier);
    else tier_poll(eng->core.tier);
}

static void take_ranks(struct eng *eng, const struct eng_ranks *ranks)
{
    struct eng_core *core = &eng->core;
    core->ranks = (struct eng_ranks){ .count = 1, .tensor = 1, .expert = 1 };
    if (ranks) core->ranks = *ranks;
    struct eng_share heads = eng_ranks_share(&core->ranks, core->shape->heads);
    core->heads = heads.end - heads.begin;
    eng->limits.plan.ranks = &core->ranks;
    if (!core->ranks.comm) return;
    core->ranks.comm->idle = while_waiting;
    core->ranks.comm->idle_context = eng;
}

int eng_open(struct eng **out, const struct eng_open_args *args, struct base_err *err)
{
    *out = NULL;
    struct eng *eng = calloc(1, sizeof *eng);
    if (!eng) return -ENOMEM;
    eng->magic = ENG_MAGIC;
    eng->core.shape = args->shape;
    eng->core.tier = args->tier;
    eng->core.advice = args->advice;
    eng->core.profile = args->profile;
    eng->core.device = args->device;
    eng->tokenizer = args->tokenizer;
    eng->hooks = args->hooks;
    eng->core.hooks = &eng->hooks;
    eng->next_id = 1;
    pthread_mutex_init(&eng->published_lock, NULL);
    eng->lock_made = true;
    int rc = eng_limits_of(&eng->limits, args->config, args->shape, err);
    if (rc == 0 && eng->limits.kv_shares && args->hooks.route) {
        rc = base_err_set(err, BASE_ECONFIG, "scheduler.enable_prefix_caching: true cannot take "
                          "effect: experts are imposed here, so that equal texts differ in KV");
    }
    eng->core_first = args->core_first;
    take_ranks(eng, args->ranks);
    eng->limits.plan.on_device = args->device != NULL;
    if (rc == 0 && args->shape->experts > 0) rc = learn_experts(eng, args, err);
    struct eng_weights_need need = { 0 };
    if (rc == 0) rc = eng_weights_plan(args->shape, args->files, &eng->core.ranks, &need, err);
    if (rc == 0) rc = eng_coding_check(&eng->core, args->config, need.grouped > 0, err);
    if (rc == 0 && !args->device) {
        eng_coding_choose(&eng->limits.plan, args->config, args->shape, args->store,
                          need.grouped > 0);
    }
    if (rc == 0) rc = start_threads(eng, args->config, err);
    if (rc == 0) {
        eng->landing = args->landing;
        eng_landing_share(eng->landing, &eng->core.work);
    }
    if (rc == 0) rc = make_room(eng, err);
    eng->core.lead.peers = args->peers;
    if (rc == 0) {
        const struct eng_weights_order order = {
            .weave = !args->device && eng_landing_weaves(args->config), .tile = !args->device,
            .par = eng->core.work.par,
        };
        rc = eng_weights_load(&eng->core.weights, args->shape, args->files, &eng->core.ranks,
                              &order, err);
    }
    if (rc == 0) rc = eng_coding_check_dense(&eng->core, &eng->limits.plan, err);
    if (rc == 0 && eng->core.weights.embed.dtype == KERN_FP8_E4M3) {
        rc = base_err_set(err, BASE_EMISMATCH, "%s: FP8 embeddings are not supported",
                          args->shape->name);
    }
    if (rc == 0 && args->device) rc = eng_cuda_open(&eng->core.cuda, &eng->core, &eng->limits, err);
    if (rc < 0) goto fail;
    eng->seq_limits = (struct eng_seq_limits){ .tokens_max = eng->limits.tokens_max,
                                               .blocks_max = eng->limits.kv_blocks_per_seq,
                                               .token_bytes_max = longest_token(args->tokenizer) };
    eng->metrics.kv_blocks = eng->limits.kv_blocks;
    base_hist_init(&eng->metrics.step_latency);
    base_hist_init(&eng->metrics.decode_latency);
    publish(eng);
    eng->opened = true;
    *out = eng;
    return 0;
fail:
    eng_close(eng);
    return rc;
}

void eng_close(struct eng *eng)
{
    if (!eng) return;
    MUST_MAGIC(eng, ENG_MAGIC);
    if (eng->opened) eng_lead_stop(&eng->core.lead);
    if (eng->core.ranks.comm) eng->core.ranks.comm->idle = NULL;
    eng_lead_fini(&eng->core.lead);
    eng_cuda_close(eng->core.cuda);
    eng_scheduler_fini(&eng->scheduler);
    eng_kv_fini(&eng->core.kv);
    eng_weights_free(&eng->core.weights);
    if (eng->landing) eng_landing_share(eng->landing, NULL);
    if (eng->core.work.par) kern_par_destroy(eng->core.work.par);
    port_topo_close(eng->topo);
    if (eng->lock_made) pthread_mutex_destroy(&eng->published_lock);
    free(eng->core.rope_frequency);
    if (eng->plan_registered) dev_host_unregister(eng->core.device, eng->plan_memory);
    base_mem_free(&activation_tag, eng->plan_memory, eng->plan_bytes);
    eng->magic = 0;
    free(eng);
}

/* --------------------------------------------------------------------------- submit, cancel -- */

static int check_request(const struct eng *eng, const struct eng_request *request,
                         struct base_err *err)
{
    const struct eng_sampling *sampling = &request->sampling;
    const struct eng_limits *l = &eng->limits;
    if (request->prompt_tokens == 0) return base_err_set(err, -EINVAL, "the prompt is empty");
    if (request->prompt_tokens >= l->tokens_max) {
        return base_err_set(err, -EINVAL,
                            "the prompt has %u tokens, and a sequence can have %u at most, "
                            "prompt and answer together (scheduler.max_model_len)",
                            request->prompt_tokens, l->tokens_max);
    }
    if (request->max_tokens == 0) return base_err_set(err, -EINVAL, "max_tokens must be 1 or more");
    for (uint32_t i = 0; i < request->prompt_tokens; i++) {
        if (request->prompt[i] >= eng->core.shape->vocab) {
            return base_err_set(err, -EINVAL,
                                "token %u of the prompt is %u, the model knows 0 to %u", i,
                                request->prompt[i], eng->core.shape->vocab - 1);
        }
    }
    if (!isfinite(sampling->temperature) || sampling->temperature < 0.0f) {
        return base_err_set(err, -EINVAL, "temperature must be 0 or more");
    }
    if (!(sampling->top_p > 0.0f && sampling->top_p <= 1.0f)) {
        return base_err_set(err, -EINVAL, "top_p must be above 0 and at most 1");
    }
    if (request->stop_count > ENG_STOPS_MAX) {
        return base_err_set(err, -EINVAL, "there are %u stop strings, %d are allowed",
                            request->stop_count, ENG_STOPS_MAX);
    }
    for (uint32_t i = 0; i < request->stop_count; i++) {
        size_t size = strlen(request->stops[i]);
        if (size == 0 || size > ENG_STOP_BYTES_MAX) {
            return base_err_set(err, -EINVAL, "stop string %u has %zu bytes, 1 to %d are allowed",
                                i, size, ENG_STOP_BYTES_MAX);
        }
    }
    return 0;
}

int64_t eng_submit(struct eng *eng, const struct eng_request *request, struct base_err *err)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    int rc = check_request(eng, request, err);
    if (rc < 0) return rc;
    if (eng->scheduler.waiting_count >= WAITING_MAX) {
        return base_err_set(err, -EAGAIN, "%d requests are waiting already", WAITING_MAX);
    }
    struct eng_seq *seq = eng_seq_create(request, eng->next_id, eng->tokenizer, &eng->seq_limits);
    if (!seq) return base_err_set(err, -ENOMEM, "no memory for one more request");
    eng->next_id++;
    for (uint32_t i = 0; eng->hooks.token && i < seq->token_count; i++) {
        seq->tokens[i] = eng->hooks.token(eng->hooks.context, seq->id, i, seq->tokens[i]);
    }
    eng_scheduler_add(&eng->scheduler, seq);
    publish(eng);
    return (int64_t)seq->id;
}

void eng_cancel(struct eng *eng, uint64_t request)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    struct eng_seq *seq = eng_scheduler_find(&eng->scheduler, request);
    if (!seq || seq->state == ENG_SEQ_OVER) return;
    seq->state = ENG_SEQ_OVER;
    eng->metrics.cancelled_requests++;
    if (eng->in_step) return;
    eng_scheduler_sweep(&eng->scheduler);
    publish(eng);
}

/* ------------------------------------------------------------------------------------- step -- */

static bool is_eos(const struct model_shape *shape, uint32_t token)
{
    for (uint32_t i = 0; i < shape->eos_count; i++) {
        if (shape->eos_ids[i] == (int64_t)token) return true;
    }
    return false;
}

static void finish_seq(struct eng *eng, struct eng_seq *seq)
{
    if (seq->error.code < 0) eng->metrics.failed_requests++;
    else eng->metrics.finished_requests++;
    seq->state = ENG_SEQ_OVER;
}

static void fail_seq(struct eng *eng, struct eng_seq *seq)
{
    if (seq->state == ENG_SEQ_OVER) return;
    /* Whatever failed first in the step, an expert's copy say: this is why. */
    if (eng_failure(eng)) {
        seq->error = (struct base_err){ 0 };
        base_err_set(&seq->error, BASE_EDEVICE, "%s: %s", eng->core.shape->name, eng_failure(eng));
    }
    finish_seq(eng, seq);
    eng_seq_fail(seq);
}

struct draws {
    struct eng *eng;
    const struct eng_batch *batch;
    const uint32_t *rows;
};

static struct eng_seq *owner_of(const struct eng_batch *batch, uint32_t row)
{
    return batch->members[batch->row_member[row]];
}

/* Behind the last row of the sequence that this row is of. */
static uint32_t end_of(const struct eng_batch *batch, uint32_t row)
{
    const uint32_t member = batch->row_member[row];
    while (row < batch->count && batch->row_member[row] == member) {
        row++;
    }
    return row;
}

/* Chunk = one row of logits. Sequences have their own random numbers, so any thread may draw. */
static void row_draw(void *context, uint32_t chunk, unsigned thread)
{
    const struct draws *draws = context;
    struct eng_plan *plan = &draws->eng->core.plan;
    struct eng_seq *seq = owner_of(draws->batch, draws->rows[chunk]);
    uint32_t vocab = draws->eng->core.shape->vocab;
    if (seq->state == ENG_SEQ_OVER) return;
    if (!plan->head_whole[chunk]) {
        plan->drawn[chunk] = plan->head_best[chunk] < vocab ? (int64_t)plan->head_best[chunk]
                                                            : -EDOM;
        plan->logprobs[chunk] = 0.0f;
        return;
    }
    plan->drawn[chunk] = eng_sample(draws->eng->core.work.ops, &seq->sampling, &seq->rng,
                                    plan->logits + (size_t)chunk * vocab, vocab,
                                    plan->candidates + (size_t)thread * vocab,
                                    &plan->logprobs[chunk]);
}

static void push_token(struct eng *eng, struct eng_seq *seq, int64_t token, float logprob)
{
    if (token < 0) {
        base_err_set(&seq->error, (int)token, "%s: the logits after token %u are no finite numbers",
                     eng->core.shape->name, seq->token_count - 1);
        fail_seq(eng, seq);
        return;
    }
    eng->metrics.generated_tokens++;
    seq->state = ENG_SEQ_GENERATING;
    if (eng->hooks.token) {
        token = eng->hooks.token(eng->hooks.context, seq->id, seq->token_count, (uint32_t)token);
    }
    enum eng_finish finish = eng_seq_push(seq, (uint32_t)token, logprob,
                                          is_eos(eng->core.shape, (uint32_t)token));
    /* The client may have cancelled from inside the call: then it is over and counted already. */
    if (finish != ENG_RUNNING && seq->state != ENG_SEQ_OVER) finish_seq(eng, seq);
}

static void show_logits(struct eng *eng, const struct eng_batch *batch, const uint32_t *rows,
                        uint32_t count)
{
    if (!eng->hooks.logits) return;
    uint32_t vocab = eng->core.shape->vocab;
    for (uint32_t i = 0; i < count; i++) {
        eng->hooks.logits(eng->hooks.context, batch->seqs[rows[i]], batch->positions[rows[i]],
                          eng->core.plan.logits + (size_t)i * vocab, vocab);
    }
}

/* A prompt's rows before its last one, when somebody asked to see them. */
static void show_prompt_logits(struct eng *eng, const struct eng_batch *batch, uint32_t begin,
                               uint32_t end)
{
    uint32_t *rows = eng->core.plan.head_rows, most = eng->limits.plan.decode_rows + 1;
    for (uint32_t row = begin; row < end;) {
        uint32_t count = 0;
        while (count < most && row < end) {
            eng->core.plan.head_whole[count] = true;
            rows[count++] = row++;
        }
        if (eng_head(&eng->core, batch, rows, count) < 0) return;
        show_logits(eng, batch, rows, count);
    }
}

/* Returns how many of them the host has to have as they are. */
static uint32_t choose_whole(struct eng *eng, const struct eng_batch *batch, const uint32_t *rows,
                             uint32_t count)
{
    uint32_t whole = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct eng_seq *seq = owner_of(batch, rows[i]);
        eng->core.plan.head_whole[i] = !eng->core.cuda || eng->hooks.logits || seq->logprobs ||
                                       seq->sampling.temperature > 0.0f;
        whole += eng->core.plan.head_whole[i];
    }
    return whole;
}

static void sample_batch(struct eng *eng, const struct eng_batch *batch)
{
    uint32_t *rows = eng->core.plan.head_rows, count = 0;
    for (uint32_t row = batch->decode_count, end; row < batch->count; row = end) {
        const struct eng_seq *seq = owner_of(batch, row);
        end = end_of(batch, row);
        if (eng->hooks.logits && seq->prompt_logits && seq->error.code == 0) {
            show_prompt_logits(eng, batch, row, end - (seq->computed == seq->token_count));
        }
    }
    /* The last row of each sequence whose tokens are all computed. */
    for (uint32_t row = 0, end; row < batch->count; row = end) {
        const struct eng_seq *seq = owner_of(batch, row);
        end = end_of(batch, row);
        if (seq->computed == seq->token_count) rows[count++] = end - 1;
    }
    /* Rows of sequences that failed have no logits. */
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (owner_of(batch, rows[i])->error.code == 0) rows[kept++] = rows[i];
    }
    const uint32_t whole = choose_whole(eng, batch, rows, kept);
    if (kept > 0 && eng_head(&eng->core, batch, rows, kept) < 0) kept = 0;
    show_logits(eng, batch, rows, kept);
    enum { DRAW_COST = 16 };    /* multiply-adds that a candidate's exponentials are worth */
    struct draws draws = { eng, batch, rows };
    uint64_t draw_ns = eng_op_begin(eng->core.profile);
    eng_work_run(&eng->core.work, kept, (uint64_t)whole * eng->core.shape->vocab * DRAW_COST,
                 row_draw, &draws);
    draw_ns = eng_op_next(eng->core.profile, ENG_OP_SAMPLE, draw_ns);
    for (uint32_t i = 0; i < kept; i++) {
        struct eng_seq *seq = owner_of(batch, rows[i]);
        if (seq->state == ENG_SEQ_OVER) continue;
        push_token(eng, seq, eng->core.plan.drawn[i], eng->core.plan.logprobs[i]);
    }
    for (uint32_t i = 0; i < batch->member_count; i++) {
        if (batch->members[i]->error.code < 0) fail_seq(eng, batch->members[i]);
    }
    eng_op_end(eng->core.profile, ENG_OP_ANSWER, draw_ns);
}

static void end_step(struct eng *eng, const struct eng_batch *batch, uint64_t start_ns)
{
    struct eng_core *core = &eng->core;
    struct eng_step_record record = {
        .step = eng->step,
        .token_count = batch->count,
        .seqs = batch->seqs,
        .tokens = batch->tokens,
        .positions = batch->positions,
        .phases = batch->phases,
        .moe_layers = model_shape_moe_layers(core->shape),
        .top_k = core->shape->top_k,
        .expert_ids = core->plan.route_ids,
        .expert_weights = core->plan.route_weights,
        .op_ns = core->profile ? core->profile->op_ns : NULL,
    };
    tier_step_waits(core->tier, record.wait_ns);
    uint64_t end_ns = base_now_ns();
    record.step_ns = end_ns - start_ns;
    if (core->profile) eng_profile_step(core->profile, start_ns, end_ns, batch->count);
    record.compute_ns = record.step_ns - core->wait_ns;
    if (eng->hooks.step_end) eng->hooks.step_end(eng->hooks.context, &record);
    if (core->advice) eng_advice_end(core->advice);
    tier_step_end(core->tier);
    struct eng_metrics *m = &eng->metrics;
    m->steps++;
    m->prompt_tokens += batch->count - batch->decode_count;
    m->compute_seconds += (double)record.compute_ns / 1e9;
    m->collective_seconds += (double)(comm_ns(core->ranks.comm) - eng->collective_ns) / 1e9;
    base_hist_add(&m->step_latency, record.step_ns);
    if (batch->count == batch->decode_count) base_hist_add(&m->decode_latency, record.step_ns);
    eng->step++;
}

static uint64_t begin_step(struct eng *eng, const struct eng_batch *batch)
{
    uint64_t start_ns = base_now_ns();
    eng->core.wait_ns = 0;
    if (eng->core.profile) eng_profile_begin(eng->core.profile);
    eng->collective_ns = comm_ns(eng->core.ranks.comm);
    if (eng->hooks.step_begin) eng->hooks.step_begin(eng->hooks.context, eng->step);
    uint64_t hints_ns = eng_op_begin(eng->core.profile);
    if (eng->core.advice) eng_advice_begin(eng->core.advice, batch);
    eng_op_end(eng->core.profile, ENG_OP_HINTS, hints_ns);
    eng_forward(&eng->core, batch);
    return start_ns;
}

void eng_follow(struct eng *eng)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    struct eng_lead *lead = &eng->core.lead;
    uint64_t start_ns = 0;
    for (;;) {
        eng->listening = true;
        enum eng_order order = eng_lead_listen(lead);
        eng->listening = false;
        switch (order) {
        case ENG_DO_STEP:
            eng->step = lead->step;
            start_ns = begin_step(eng, &lead->batch);
            break;
        case ENG_DO_HEAD:
            eng_head(&eng->core, &lead->batch, lead->rows, lead->row_count);
            break;
        case ENG_DO_END:
            end_step(eng, &lead->batch, start_ns);
            publish(eng);
            eng_lead_tell(lead);
            break;
        case ENG_DO_PING: break;
        case ENG_DO_STOP: return;
        }
    }
}

/* The device is gone, and everything with it. */
static int fail_everybody(struct eng *eng)
{
    struct eng_seq *const lists[] = { eng->scheduler.running, eng->scheduler.waiting };
    eng->in_step = true; /* who is told may cancel */
    for (int i = 0; i < 2; i++) {
        for (struct eng_seq *seq = lists[i]; seq; seq = seq->next) {
            fail_seq(eng, seq);
        }
    }
    eng->in_step = false;
    eng_scheduler_sweep(&eng->scheduler);
    publish(eng);
    return BASE_EDEVICE;
}

const char *eng_failure(const struct eng *eng)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    if (eng->core.device && eng->core.device->lost) return eng->core.device->lost_why;
    return eng->core.lost[0] ? eng->core.lost : NULL;
}

int eng_step(struct eng *eng)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    MUST(!eng->in_step);
    const struct eng_batch *batch = eng_scheduler_next(&eng->scheduler);
    if (batch->count > 0) {
        eng->in_step = true;
        eng_lead_step(&eng->core.lead, batch, eng->step);
        uint64_t start_ns = begin_step(eng, batch);
        for (uint32_t row = 0; row < batch->count; row++) {
            batch->members[batch->row_member[row]]->computed++;
        }
        sample_batch(eng, batch);
        for (uint32_t m = 0; m < batch->member_count; m++) {
            if (batch->members[m]->error.code == 0) {
                eng_seq_make_known(batch->members[m], &eng->core.kv);
            }
        }
        end_step(eng, batch, start_ns);
        eng_lead_end(&eng->core.lead);
        eng->in_step = false;
        eng_scheduler_sweep(&eng->scheduler);
    }
    if (eng_failure(eng)) return fail_everybody(eng);
    publish(eng);
    return (int)(eng->scheduler.running_count + eng->scheduler.waiting_count);
}

uint32_t eng_tokens_max(const struct eng *eng)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    return eng->limits.tokens_max;
}

uint32_t eng_idle(struct eng *eng)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    uint32_t ping_ms = eng_lead_ping(&eng->core.lead), tier_ms = tier_idle(eng->core.tier);
    return ping_ms < tier_ms ? ping_ms : tier_ms;
}

/* --------------------------------------------------------------------------------- counters -- */

/* A reader that is copying just now keeps the older numbers; the engine never waits for it. */
static void publish(struct eng *eng)
{
    struct eng_metrics *m = &eng->metrics;
    m->running_requests = eng->scheduler.running_count;
    m->waiting_requests = eng->scheduler.waiting_count;
    m->preempted_requests = eng->scheduler.preempted;
    m->reused_tokens = eng->scheduler.reused;
    m->kv_used_blocks = eng->limits.kv_blocks - eng_kv_room(&eng->core.kv);
    m->kv_idle_blocks = eng_kv_room(&eng->core.kv) - eng->core.kv.free_count;
    m->kv_touched_bytes = eng_kv_touched_bytes(&eng->core.kv);
    if (pthread_mutex_trylock(&eng->published_lock) != 0) return;
    eng->published = *m;
    pthread_mutex_unlock(&eng->published_lock);
}

void eng_snapshot(struct eng *eng, struct eng_metrics *out)
{
    MUST_MAGIC(eng, ENG_MAGIC);
    pthread_mutex_lock(&eng->published_lock);
    *out = eng->published;
    pthread_mutex_unlock(&eng->published_lock);
}
