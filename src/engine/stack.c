#include "engine/stack.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/must.h"
#include "base/str.h"
#include "engine/cards.h"
#include "engine/cuda/cuda.h"
#include "engine/ledger.h"
#include "engine/limits.h"
#include "port/hash.h"

/* How often a running trace is given the live counters, in steps. */
enum { COUNTS_EVERY = 256 };

/* Ranks wait so long for the slowest of them to open its part. */
static const uint64_t start_patience_ns = UINT64_C(1800) * 1000000000;

size_t eng_stack_groups(struct eng_stack_config *config, struct base_option_group *groups)
{
    struct base_option_group all[] = {
        { "tiers", tier_options, tier_option_count, &config->tier },
        { "io", tier_io_options, tier_io_option_count, &config->io },
        { "engine", eng_options, eng_option_count, &config->engine },
        { "predictor", eng_advice_options, eng_advice_option_count, &config->advice },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config->tier },
        { "trace", pred_trace_options, pred_trace_option_count, &config->trace },
        { "ranks", eng_rank_options, eng_rank_option_count, &config->ranks },
        { "comm", comm_options, comm_option_count, &config->comm },
    };
    size_t count = sizeof all / sizeof all[0];
    _Static_assert(sizeof all / sizeof all[0] <= ENG_STACK_GROUPS, "room for the programs' arrays");
    memcpy(groups, all, sizeof all);
    return count;
}

/* The engine computes on a card. */
static bool on_card(const struct eng_stack_config *config)
{
    return config->tier.hbm_device == TIER_DEVICE_CUDA;
}

/* Settings of the device that contradict each other. */
static int check_device(const struct tier_config *config, struct base_err *err)
{
    uint64_t capacity = 1;
    base_str_bytes_parse(config->hbm_capacity, &capacity);
    if (config->hbm_device != TIER_DEVICE_CUDA && config->hbm_headroom > 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.hbm.headroom: %g%% cannot take effect: only tiers.hbm.device "
                            "cuda has memory of its own; leave it at 0%%",
                            100 * config->hbm_headroom);
    }
    if (config->hbm_device != TIER_DEVICE_CUDA) return 0;
    if (capacity == 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.hbm.device: cuda cannot take effect: tiers.hbm.capacity is 0, "
                            "and a card computes with experts in its slots; give it a size");
    }
    if (config->hbm_faults > 0) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.hbm.sim_faults: %g%% cannot take effect: tiers.hbm.device is "
                            "cuda; leave it at 0%%",
                            100 * config->hbm_faults);
    }
    if (config->warm_experts == TIER_WARM_COMPUTE) {
        return base_err_set(err, BASE_ECONFIG,
                            "tiers.warm_experts: compute cannot take effect with tiers.hbm.device: "
                            "cuda: the engine's step on a card computes all experts there; take "
                            "copy");
    }
    return 0;
}

/* What this build cannot do though others can: not asked where settings are only checked. */
static int check_built(const struct eng_stack_config *config, struct base_err *err)
{
    if (!on_card(config) || (dev_find("cuda") && eng_cuda_built())) return 0;
    return base_err_set(err, BASE_ECONFIG,
                        "tiers.hbm.device: cuda cannot take effect: this build has no CUDA "
                        "kernels; configure one with -Dcuda=enabled where the CUDA toolkit is, or "
                        "take sim or host");
}

int eng_stack_check(const struct eng_stack_config *config, struct base_err *err)
{
    struct eng_stack_config copy = *config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    size_t count = eng_stack_groups(&copy, groups);
    int rc = check_device(&copy.tier, err);
    if (rc == 0) rc = eng_ranks_check(&copy.ranks, err);
    if (rc == 0 && copy.comm.kind == COMM_NCCL && !on_card(&copy)) {
        return base_err_set(err, BASE_ECONFIG,
                            "ranks.comm: nccl cannot take effect: it is between cards that "
                            "compute, which takes tiers.hbm.device: cuda; take mpi");
    }
    const char *asks = eng_advice_ahead(&copy.advice, true) > 0 ? "" :
                       copy.advice.ahead_own ? "_own" : copy.advice.ahead_shared ? "_shared" : NULL;
    if (rc == 0 && on_card(&copy) && asks) {
        return base_err_set(err, BASE_ECONFIG, "predictor.lookahead%s cannot take effect with "
                            "tiers.hbm.device: cuda: gates are asked ahead where the CPU computes; "
                            "leave it at %s", asks, asks[0] ? "false" : "auto");
    }
    return rc < 0 ? rc : eng_advice_check(&copy.advice, groups, count, err);
}

/* ------------------------------------------------------------------------------------ index -- */

struct progress {
    uint64_t last_ns;
    bool terminal, quiet;
};

/* A bar that is drawn over on a terminal; elsewhere a line every few seconds. */
static void show_progress(void *context, uint64_t done, uint64_t total)
{
    struct progress *progress = context;
    uint64_t now = base_now_ns(), gap = progress->terminal ? 100000000u : 5000000000u;
    if (progress->quiet || (done < total && now - progress->last_ns < gap)) return;
    progress->last_ns = now;
    char have[16], all[16], bar[31];
    unsigned filled = total > 0 ? (unsigned)(30.0 * (double)done / (double)total) : 30;
    for (unsigned i = 0; i < 30; i++) {
        bar[i] = i < filled ? '#' : '.';
    }
    bar[30] = '\0';
    base_str_bytes(have, sizeof have, done);
    base_str_bytes(all, sizeof all, total);
    if (progress->terminal) {
        fprintf(stderr, "\rindexing experts [%s] %s of %s%s", bar, have, all,
                done < total ? "" : "\n");
    } else {
        base_log(BASE_LOG_INFO, "stack", "indexing experts [%s] %s of %s", bar, have, all);
    }
}

static const char *index_path(const struct eng_stack_config *config)
{
    return config->tier.nvme_index[0] ? config->tier.nvme_index : NULL;
}

static int make_index(const struct eng_stack_args *args, const struct model_shape *shape,
                      struct base_err *err)
{
    struct progress state = { .terminal = isatty(STDERR_FILENO), .quiet = args->quiet };
    struct tier_store_progress progress = { .report = show_progress, .context = &state };
    const char *path = index_path(args->config);
    if (!args->quiet) {
        base_log(BASE_LOG_INFO, "stack",
                 "%s has no expert index yet: reading every expert once to make it",
                 args->model_dir);
    }
    int rc = tier_store_index(args->model_dir, path, shape, 2, &progress, err);
    if (rc == -EACCES || rc == -EROFS || rc == -EPERM) {
        base_err_prefix(
            err, "the expert index cannot be written; set tiers.nvme.index to a path that can be");
    }
    return rc;
}

static int open_store_here(struct tier_store **store, const struct eng_stack_args *args,
                           const struct model_shape *shape, struct base_err *err)
{
    const char *path = index_path(args->config);
    struct base_err first = { 0 };
    if (shape->experts == 0 || model_shape_moe_layers(shape) == 0) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s has no routed experts: there is nothing to keep in tiers",
                            args->model_dir);
    }
    int rc = tier_store_open(store, args->model_dir, path, shape, &first);
    if (rc == -ENOENT) {
        rc = make_index(args, shape, err);
        if (rc < 0) return rc;
        return tier_store_open(store, args->model_dir, path, shape, err);
    }
    if (rc < 0) base_err_set(err, rc, "%s", first.text);
    return rc;
}

/* The effective configuration as YAML, for the trace's header. */
static char *effective_yaml(struct eng_stack_config *config)
{
    struct base_option_group groups[ENG_STACK_GROUPS];
    size_t count = eng_stack_groups(config, groups), size = 0;
    char *text = NULL;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    base_option_print_yaml(to, groups, count, false);
    return fclose(to) == 0 ? text : NULL;
}

/* Of the ranks of one machine the first makes an index that is missing. */
static int open_store(struct tier_store **store, const struct eng_stack_args *args,
                      const struct model_shape *shape, struct base_err *err)
{
    struct comm *comm = args->comm;
    bool first = !comm || comm->local_rank == 0;
    int rc = first ? open_store_here(store, args, shape, err) : 0;
    if (rc == 0 && comm) comm_barrier(comm);
    return first ? rc : open_store_here(store, args, shape, err);
}

/* ------------------------------------------------------------------------------------ ranks -- */

/* Rank 0 reads what was measured, so that all have the same. */
static int measured_placement(struct eng_stack *stack, uint32_t layers, struct base_err *err)
{
    const struct eng_rank_config *config = &stack->config.ranks;
    uint32_t experts = stack->shape.experts;
    size_t count = (size_t)layers * experts;
    uint64_t *load = calloc(count, sizeof *load);
    if (!load) return -ENOMEM;
    int rc = 0;
    if (config->replicas > experts) {
        rc = base_err_set(err, BASE_ECONFIG, "ranks.replicas: %" PRIu64 " are more than the %"
                          PRIu32 " experts of a layer", config->replicas, experts);
    }
    if (rc == 0 && stack->ranks.rank == 0) {
        rc = eng_placement_read_load(config->placement + 5, load, layers, experts, err);
    }
    if (rc == 0) {
        comm_broadcast(stack->ranks.comm, load, count * sizeof *load, 0);
        rc = eng_placement_by_load(&stack->placement, layers, experts, stack->ranks.count,
                                   (uint32_t)config->replicas, load);
    }
    free(load);
    return rc;
}

/* Which part of the model is this rank's: its store, threads and files follow from it. */
static int settle_ranks(struct eng_stack *stack, struct base_err *err)
{
    struct eng_ranks *r = &stack->ranks;
    uint32_t layers = tier_store_layers(stack->store), cores, held = stack->shape.experts;
    int rc = 0;
    stack->top_k = stack->shape.top_k;
    if (r->count == 1) return 0;
    if (r->expert > 1) {
        bool plain = strcmp(stack->config.ranks.placement, "round_robin") == 0;
        rc = plain ? eng_placement_round_robin(&stack->placement, layers, stack->shape.experts,
                                               r->count)
                   : measured_placement(stack, layers, err);
        if (rc < 0) return rc;
        r->placement = &stack->placement;
        held = stack->placement.held;
    }
    tier_store_share(stack->store, held, r->comm->local_size);
    if (stack->top_k > held) stack->top_k = held;
    eng_ranks_cores(r->comm, &stack->core_first, &cores);
    if (stack->config.engine.threads == 0) stack->config.engine.threads = cores;
    return 0;
}

/* Each rank has files of its own. Residents of one placement are of no use to another. */
static int rank_paths(struct eng_stack *stack, struct base_err *err)
{
    struct eng_stack_config *c = &stack->config;
    char *warm = c->tier.warm_path;
    int rc = eng_ranks_path(&stack->ranks, c->trace.path, err);
    if (rc == 0) rc = eng_ranks_path(&stack->ranks, c->advice.path, err);
    if (rc == 0) rc = eng_ranks_path(&stack->ranks, warm, err);
    size_t used = strlen(warm);
    if (rc < 0 || used == 0 || !stack->ranks.placement) return rc;
    uint64_t hash = eng_placement_hash(stack->ranks.placement);
    if (base_str_format(warm + used, sizeof c->tier.warm_path - used, ".%08" PRIx32,
                        (uint32_t)hash) < 0) {
        return base_err_set(err, -ENAMETOOLONG, "tiers.warm.path: too long");
    }
    return 0;
}

/* What dense tensors are and how they begin: all of their bytes would take minutes to read, and
 * another training has other ones everywhere. In any order, since a pack has them elsewhere. */
static int dense_hash(const struct model_files *files, uint64_t *out, struct base_err *err)
{
    enum { BEGINNING = 4096 };
    char bytes[BEGINNING];
    int rc = 0;
    *out = 0;
    for (uint32_t i = 0; i < model_files_count(files) && rc == 0; i++) {
        const struct model_tensor *tensor = model_files_at(files, i);
        const uint64_t size = tensor->bytes < BEGINNING ? tensor->bytes : BEGINNING;
        struct port_hash hash;
        if (strstr(tensor->name, ".mlp.experts.")) continue;
        rc = model_files_read_part(files, tensor, 0, size, bytes, err);
        if (rc < 0) break;
        port_hash_begin(&hash);
        port_hash_add(&hash, tensor->name, strlen(tensor->name));
        port_hash_add(&hash, &tensor->dtype, sizeof tensor->dtype);
        port_hash_add(&hash, tensor->shape, tensor->dims * sizeof *tensor->shape);
        port_hash_add(&hash, bytes, size);
        *out += port_hash_end(&hash);
    }
    return rc;
}

/* Machines may have another revision, or another build, at the same path. */
static int agree(struct eng_stack *stack, struct base_err *err)
{
    static const char version[] = EXPERTIER_VERSION;
    struct comm *comm = stack->ranks.comm;
    if (stack->ranks.count == 1) return 0;
    struct eng_stack_config plain = stack->config;
    char *yaml = effective_yaml(&plain);
    if (!yaml) return -ENOMEM;
    uint64_t config = port_hash64(yaml, strlen(yaml)), dense;
    free(yaml);
    int rc = dense_hash(stack->files, &dense, err);
    if (rc < 0) return rc;
    const struct {
        const char *what;
        uint64_t hash;
    } all[] = {
        { "version of Expertier", port_hash64(version, sizeof version) },
        { "configuration", config },
        { "model", port_hash64(stack->shape.name, strlen(stack->shape.name)) },
        { "config.json of the model", model_shape_hash(&stack->shape) },
        { "revision of the model's experts", tier_store_weights_hash(stack->store) },
        { "revision of the model's dense weights", dense },
        { "tokenizer", model_tokenizer_hash(stack->tokenizer) },
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0] && rc == 0; i++) {
        rc = eng_ranks_agree(comm, all[i].what, all[i].hash, err);
    }
    return rc;
}

/* ------------------------------------------------------------------------------------ trace -- */

static void on_event(void *context, const struct tier_event *event)
{
    struct eng_stack *stack = context;
    if (stack->trace) pred_trace_writer_event(stack->trace, event);
    if (stack->observer.event) stack->observer.event(stack->observer.context, event);
}

/* Of this moment, not of the last snapshot: replay compares with what all events before it make. */
static void trace_counts(struct eng_stack *stack)
{
    struct pred_trace_counts counts = {
        .tier_count = tier_decide_config_of(stack->tier)->tier_count,
    };
    tier_counts_now(stack->tier, counts.cells);
    pred_trace_writer_counts(stack->trace, &counts);
}

static void on_step_begin(void *context, uint64_t step)
{
    struct eng_stack *stack = context;
    if (stack->hooks.step_begin) stack->hooks.step_begin(stack->hooks.context, step);
}

static void on_step_end(void *context, const struct eng_step_record *record)
{
    struct eng_stack *stack = context;
    if (stack->trace) {
        struct pred_step step = {
            .step = record->step,
            .token_count = record->token_count,
            .seqs = record->seqs,
            .tokens = record->tokens,
            .positions = record->positions,
            .phases = record->phases,
            .expert_ids = record->expert_ids,
            .expert_weights = record->expert_weights,
            .step_ns = record->step_ns,
            .compute_ns = record->compute_ns,
        };
        memcpy(step.wait_ns, record->wait_ns, sizeof step.wait_ns);
        pred_trace_writer_step(stack->trace, &step);
        if (record->step % COUNTS_EVERY == COUNTS_EVERY - 1) trace_counts(stack);
    }
    if (stack->hooks.step_end) stack->hooks.step_end(stack->hooks.context, record);
}

static void on_logits(void *context, uint64_t request, uint32_t position, const float *logits,
                      uint32_t vocab)
{
    struct eng_stack *stack = context;
    stack->hooks.logits(stack->hooks.context, request, position, logits, vocab);
}

static void on_route(void *context, uint32_t moe_layer, uint64_t seq, uint32_t position,
                     uint32_t *ids)
{
    struct eng_stack *stack = context;
    stack->hooks.route(stack->hooks.context, moe_layer, seq, position, ids);
}

static uint32_t on_token(void *context, uint64_t seq, uint32_t position, uint32_t token)
{
    struct eng_stack *stack = context;
    return stack->hooks.token(stack->hooks.context, seq, position, token);
}

static int open_trace(struct eng_stack *stack, struct base_err *err)
{
    const struct model_shape *shape = &stack->shape;
    if (stack->config.trace.path[0] == '\0') return 0;
    struct pred_trace_header header = {
        .layers = tier_store_layers(stack->store),
        .first_moe_layer = tier_store_layer_first(stack->store),
        .experts = shape->experts,
        .top_k = shape->top_k,
        .slot_bytes = tier_store_slot_bytes(stack->store),
        .decide = *tier_decide_config_of(stack->tier),
    };
    _Static_assert(sizeof header.model == sizeof shape->name, "names fit");
    memcpy(header.model, shape->name, sizeof header.model);
    snprintf(header.source, sizeof header.source, "server");
    char *yaml = effective_yaml(&stack->config);
    if (!yaml) return base_err_set(err, -ENOMEM, "no memory for the trace's header");
    header.yaml = yaml;
    int rc = pred_trace_writer_open(&stack->trace, &stack->config.trace, &header, false, err);
    free(yaml);
    return rc;
}

static void close_trace(struct eng_stack *stack)
{
    struct base_err err = { 0 };
    if (!stack->trace) return;
    trace_counts(stack);
    if (pred_trace_writer_close(stack->trace, &err) < 0) {
        base_log(BASE_LOG_WARN, "trace", "%s", err.text);
    }
    stack->trace = NULL;
}

/* ---------------------------------------------------------------------------------- profile -- */

static size_t profile_events(const struct eng_stack_args *args)
{
    return args->profile_events > 0 ? args->profile_events : ENG_PROFILE_EVENTS;
}

static int open_profile(struct eng_stack *stack, const struct eng_stack_args *args,
                        struct base_err *err)
{
    stack->profiles = args->account || args->profile_path;
    if (!args->profile_path) return 0;
    if (base_str_format(stack->profile_path, sizeof stack->profile_path, "%s",
                        args->profile_path) < 0) {
        return base_err_set(err, -ENAMETOOLONG, "profile: the path has more than %zu bytes",
                            sizeof stack->profile_path - 1);
    }
    int rc = eng_ranks_path(&stack->ranks, stack->profile_path, err);
    if (rc < 0) return rc;
    rc = base_timeline_create(&stack->profile.timeline, profile_events(args));
    if (rc < 0) return base_err_set(err, rc, "no memory for a timeline of %zu events",
                                    profile_events(args));
    /* What cannot be written is told now, not after hours. */
    return base_timeline_write(stack->profile.timeline, stack->profile_path, err);
}

static void close_profile(struct eng_stack *stack)
{
    struct base_err err = { 0 };
    const struct base_timeline *timeline = stack->profile.timeline;
    if (!timeline) return;
    uint64_t dropped = base_timeline_dropped(timeline);
    if (base_timeline_write(timeline, stack->profile_path, &err) < 0) {
        base_log(BASE_LOG_WARN, "profile", "%s", err.text);
    } else if (dropped > 0) {
        base_log(BASE_LOG_WARN, "profile", "%s: the newest %" PRIu64 " events; %" PRIu64
                 " older ones were dropped", stack->profile_path,
                 base_timeline_count(timeline) - dropped, dropped);
    } else {
        base_log(BASE_LOG_INFO, "profile", "%s: all %" PRIu64 " events", stack->profile_path,
                 base_timeline_count(timeline));
    }
    base_timeline_destroy(stack->profile.timeline);
    stack->profile.timeline = NULL;
}

/* ------------------------------------------------------------------------------ open, close -- */

static int open_model(struct eng_stack *stack, const char *dir, struct base_err *err)
{
    int rc = model_shape_load(&stack->shape, dir, err);
    if (rc == 0) rc = model_files_open(&stack->files, dir, err);
    return rc;
}

static int open_words(struct eng_stack *stack, const char *dir, struct base_err *err)
{
    int rc = model_tokenizer_load(&stack->tokenizer, dir, err);
    if (rc == 0) rc = model_chat_load(&stack->chat, dir, stack->tokenizer, err);
    return rc;
}

static int open_tier(struct eng_stack *stack, struct base_err *err)
{
    /* Nobody gives hints: auto comes to false, and the effective settings say so. */
    if (stack->config.advice.kind == 0) stack->config.tier.prefetch = 0;
    if (!stack->device) {
        int rc = eng_landing_init(&stack->landing, stack->store, &stack->shape,
                                  &stack->config.engine, err);
        if (rc < 0) return rc;
    }
    struct tier_open_args args = {
        .config = &stack->config.tier,
        .io = &stack->config.io,
        .store = stack->store,
        .top_k = stack->top_k,
        .observer = { .event = on_event, .context = stack },
        .landing = eng_landing_hook(&stack->landing),
        .device = stack->device,
        .timeline = stack->profile.timeline,
    };
    return tier_open(&stack->tier, &args, err);
}

static int open_advice(struct eng_stack *stack, struct base_err *err)
{
    return eng_advice_open(&stack->advice, &stack->config.advice, on_card(&stack->config),
                           &stack->shape, stack->store, stack->tier, &stack->ranks, err);
}

static int open_engine(struct eng_stack *stack, struct base_err *err)
{
    struct eng_open_args args = {
        .config = &stack->config.engine,
        .shape = &stack->shape,
        .files = stack->files,
        .tokenizer = stack->tokenizer,
        .store = stack->store,
        .tier = stack->tier,
        .landing = &stack->landing,
        .advice = stack->advice,
        .profile = stack->profiles ? &stack->profile : NULL,
        .device = stack->device,
        .hooks = { .step_begin = on_step_begin, .step_end = on_step_end,
                   .logits = stack->hooks.logits ? on_logits : NULL,
                   .route = stack->hooks.route ? on_route : NULL,
                   .token = stack->hooks.token ? on_token : NULL, .context = stack },
        .ranks = &stack->ranks,
        .peers = &stack->peers,
        .core_first = stack->core_first,
    };
    return eng_open(&stack->engine, &args, err);
}

/* Model, store and this rank's part of them; then what all of it will take, checked against what
 * there is. */
static int prepare(struct eng_stack *stack, const struct eng_stack_args *args,
                   struct base_err *err)
{
    struct eng_stack_config *config = &stack->config;
    struct eng_footprint engine;
    struct tier_footprint tier;
    if (args->comm) comm_patience(args->comm, start_patience_ns);
    int rc = eng_stack_check(config, err);
    if (rc == 0) rc = eng_ranks_init(&stack->ranks, &config->ranks, args->comm, err);
    stack->ranks.rows_only = on_card(config);
    if (rc == 0) rc = open_model(stack, args->model_dir, err);
    if (rc == 0) rc = open_store(&stack->store, args, &stack->shape, err);
    if (rc == 0) rc = open_words(stack, args->model_dir, err);
    if (rc == 0) rc = agree(stack, err);
    if (rc == 0) rc = settle_ranks(stack, err);
    if (rc == 0) rc = rank_paths(stack, err);
    if (rc == 0) {
        rc = eng_footprint(&config->engine, &stack->shape, stack->files, stack->store,
                           &stack->ranks, on_card(config), &engine, err);
    }
    if (rc == 0) rc = tier_footprint(&config->tier, stack->store, stack->top_k, &tier, err);
    if (rc < 0) return rc;
    struct eng_ledger_parts parts = {
        config, &engine, &tier, stack->store,
        eng_advice_footprint(&config->advice, on_card(config), &stack->shape,
                             tier_store_layers(stack->store)),
    };
    eng_ledger_plan(&stack->ledger, &parts);
    if (args->beside) {
        struct base_ledger_row *program = &stack->ledger.rows[BASE_LEDGER_PROGRAM];
        program->planned += args->beside(args->beside_context, stack);
    }
    if (args->profile_path) {
        stack->ledger.rows[BASE_LEDGER_PROFILE].planned = base_timeline_bytes(profile_events(args));
    }
    eng_ledger_plan_card(&stack->card, &parts);
    stack->device_bytes = engine.device_bytes + tier.slots_bytes[0];
    base_ledger_limit(&stack->limit, "");
    /* Ranks of one machine have its memory together. */
    if (stack->ranks.comm && stack->limit.bytes != UINT64_MAX) {
        stack->limit.bytes /= stack->ranks.comm->local_size;
    }
    return 0;
}

/* One arena of the card's memory for weights, KV blocks, work space and slots. */
static int open_device(struct eng_stack *stack, struct base_err *err)
{
    if (!on_card(&stack->config)) return 0;
    struct comm *comm = stack->ranks.comm;
    const struct dev_config config = { .memory_bytes = stack->device_bytes,
                                       .headroom_share = stack->config.tier.hbm_headroom,
                                       /* A launcher may show each rank its own card alone. */
                                       .ordinal = comm ? comm->local_rank : 0,
                                       .ordinal_wraps = true };
    int rc = dev_create(&stack->device, dev_find("cuda"), &config, base_clock_real(), err);
    if (rc == BASE_EBUDGET) {
        char text[BASE_LEDGER_SUM];
        base_err_prefix(err, "tiers.hbm.capacity or kv.capacity is too large for the card: %s",
                        base_ledger_sum(&stack->card, text));
    }
    return rc < 0 ? rc : eng_cards_join(stack->device, comm, err);
}

int eng_stack_open(struct eng_stack *stack, const struct eng_stack_args *args, struct base_err *err)
{
    *stack = (struct eng_stack){ .config = *args->config, .hooks = args->hooks,
                                  .observer = args->observer };
    struct pred_trace_config *trace = &stack->config.trace;
    if (args->trace_path &&
        base_str_format(trace->path, sizeof trace->path, "%s", args->trace_path) < 0) {
        return base_err_set(err, -ENAMETOOLONG, "trace: the path has more than %zu bytes",
                            sizeof trace->path - 1);
    }
    int rc = eng_stack_check(&stack->config, err);
    if (rc == 0) rc = check_built(&stack->config, err);
    if (rc == 0) rc = prepare(stack, args, err);
    if (rc == 0) rc = base_ledger_check(&stack->ledger, &stack->limit, err);
    if (rc == 0) rc = open_profile(stack, args, err);
    if (rc == 0) rc = open_device(stack, err);
    if (rc == 0) rc = open_tier(stack, err);
    if (rc == 0) rc = open_trace(stack, err);
    if (rc == 0) tier_warm_restore(stack->tier);
    if (rc == 0) rc = open_advice(stack, err);
    if (rc == 0) rc = eng_peers_init(&stack->peers, stack, args->peers);
    if (rc == 0) rc = open_engine(stack, err);
    if (rc == 0) {
        if (!stack->ranks.comm) return 0;
        comm_barrier(stack->ranks.comm);        /* until all are here */
        comm_patience(stack->ranks.comm, 0);
        return 0;
    }
    base_err_set(err, rc, "%s: %s", args->model_dir, base_err_name(rc));
    eng_stack_close(stack);
    return rc;
}

void eng_stack_close(struct eng_stack *stack)
{
    const bool in_order = stack->engine && !eng_failure(stack->engine);
    if (stack->engine) tier_warm_save(stack->tier);
    eng_close(stack->engine);
    eng_peers_fini(&stack->peers);
    eng_advice_close(stack->advice);
    close_trace(stack);
    tier_close(stack->tier);
    eng_landing_fini(&stack->landing);
    close_profile(stack);
    eng_cards_leave(stack->device, stack->ranks.comm, in_order);
    dev_destroy(stack->device);
    tier_store_close(stack->store);
    model_chat_free(stack->chat);
    model_tokenizer_free(stack->tokenizer);
    model_files_close(stack->files);
    eng_placement_fini(&stack->placement);
    *stack = (struct eng_stack){ 0 };
}

/* -------------------------------------------------------------------------------- footprint -- */

int eng_stack_check_growth(struct eng_stack *stack, const struct tier_config *config,
                           const struct base_ledger_limit *limit, struct base_err *err)
{
    static _Thread_local struct tier_snapshot now;      /* too large for a worker's stack */
    struct base_ledger ledger = stack->ledger;
    struct tier_footprint tier;
    int rc = tier_footprint(config, stack->store, stack->top_k, &tier, err);
    if (rc < 0) return rc;
    struct eng_ledger_parts parts = { .config = &stack->config, .tier = &tier,
                                      .store = stack->store };
    eng_ledger_plan_tiers(&ledger, &parts);
    tier_snapshot(stack->tier, &now);
    uint64_t held = 0;
    bool grows = false;
    for (uint32_t t = 0; t < now.tier_count; t++) {
        uint64_t have = now.tiers[t].capacity_bytes, want = tier.slots_bytes[t];
        grows |= want > have;
        if (want >= have) continue;
        held += have - want;
        bool hbm = now.tier_count == 2 && t == 0;
        if (hbm && stack->device) continue;     /* not of this memory */
        ledger.rows[hbm ? BASE_LEDGER_HBM : BASE_LEDGER_DRAM].planned += have - want;
    }
    if (!grows) return 0;
    rc = base_ledger_check(&ledger, limit, err);
    if (rc == BASE_EBUDGET && held > 0 && base_ledger_planned(&ledger) - held <= limit->bytes) {
        base_err_prefix(err, "a tier that becomes smaller gives its memory back bit by bit: make "
                             "it smaller first, then the other one larger");
    }
    return rc;
}

int eng_stack_print_footprint(const struct eng_stack_args *args, FILE *to, struct base_err *err)
{
    struct eng_stack *stack = calloc(1, sizeof *stack);
    if (!stack) return base_err_set(err, -ENOMEM, "no memory for the settings");
    stack->config = *args->config;
    int rc = prepare(stack, args, err);
    if (rc == 0 && stack->ranks.rank == 0) {
        if (stack->ranks.count > 1) fprintf(to, "rank 0 of %" PRIu32 ": ", stack->ranks.count);
        eng_ledger_print(to, &stack->ledger, &stack->limit);
        if (on_card(&stack->config)) eng_ledger_print_card(to, &stack->card, &stack->config);
    }
    if (rc == 0) rc = base_ledger_check(&stack->ledger, &stack->limit, err);
    eng_stack_close(stack);
    free(stack);
    return rc;
}
