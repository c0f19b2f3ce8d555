#include "engine/report.h"

#include <inttypes.h>
#include <string.h>

#include "base/str.h"
#include "engine/limits.h"
#include "kernels/kern.h"

static const char *choice_of(const char *key, int value, char *to, size_t size)
{
    to[0] = '\0';
    for (size_t i = 0; i < eng_option_count; i++) {
        if (strcmp(eng_options[i].key, key) != 0) continue;
        base_option_choice(&eng_options[i], value, to, size);
    }
    return to;
}

void eng_report_trace(struct tier_report *report, const struct pred_trace_config *config,
                      const struct pred_trace_metrics *m, bool recording)
{
    struct tier_report_row *row = tier_report_add(report, "trace.path", config->path);
    char bytes[16];
    if (!recording) {
        tier_report_note(row, TIER_OFF, "nothing is recorded");
        return;
    }
    base_str_bytes(bytes, sizeof bytes, m->written_bytes);
    row->counter = "lost_records";
    row->count = m->lost_records;
    if (m->lost_records > 0) {
        tier_report_note(row, TIER_DEGRADED, "%" PRIu64 " of %" PRIu64 " records lost: the disk is "
                         "full or too slow for trace.buffer, or trace.size_max is reached; exact "
                         "replay refuses a trace with gaps", m->lost_records,
                         m->records + m->lost_records);
    } else if (config->sample < 1) {
        tier_report_note(row, TIER_ACTIVE, "%s written; a sample, without cache events: no exact "
                         "replay", bytes);
    } else {
        tier_report_note(row, TIER_ACTIVE, "%s written, without gaps", bytes);
    }
}

void eng_report_ops(struct tier_report *report, const char *requested, const char *used)
{
    struct tier_report_row *row = tier_report_add(report, "engine.cpu_mask", requested);
    const bool best = strcmp(requested, "auto") == 0, less = strcmp(requested, used) != 0;
    tier_report_note(row, less && !best ? TIER_DEGRADED : TIER_ACTIVE, "%s%s", used,
                     less ? ": the best that this CPU and build have; the bits are the same" : "");
}

static void report_predictor(struct tier_report *report, struct eng_stack *stack,
                             const struct eng_stack_config *config,
                             const struct tier_snapshot *tier)
{
    char kind[64] = "";
    for (size_t i = 0; i < eng_advice_option_count; i++) {
        if (strcmp(eng_advice_options[i].key, "predictor.kind") != 0) continue;
        base_option_choice(&eng_advice_options[i], config->advice.kind, kind, sizeof kind);
    }
    struct tier_report_row *row = tier_report_add(report, "predictor.kind", kind);
    struct eng_advice_metrics m;
    eng_advice_snapshot(stack->advice, &m);
    if (!stack->advice) {
        tier_report_note(row, TIER_OFF, "nothing is predicted");
        return;
    }
    tier_report_note(row, m.failed_saves > 0 ? TIER_DEGRADED : TIER_ACTIVE, "%.200s%s%s",
                     eng_advice_note(stack->advice),
                     tier->holds_all ? "; rests: every expert has a slot" : "",
                     m.failed_saves > 0 ? "; it could not be saved" : "");
    row->counter = "failed_saves";
    row->count = m.failed_saves;
}

static void report_arithmetic(struct tier_report *report, const struct eng_config *config)
{
    char text[64];
    choice_of("engine.cpu_mask", config->cpu_mask, text, sizeof text);
    eng_report_ops(report, text, kern_ops_cpu((enum kern_cpu)config->cpu_mask)->name);
    struct tier_report_row *row = tier_report_add(
        report, "engine.activations",
        choice_of("engine.activations", config->activations, text, sizeof text));
    static const char *const rounded[] = {
        [ENG_ACTIVATIONS_F32] = "exact",
        [ENG_ACTIVATIONS_BF16] = "inputs of BF16 and FP8 matrices are rounded",
        [ENG_ACTIVATIONS_INT8] = "inputs of the routed experts and of BF16 and FP8 matrices are "
                                 "rounded",
    };
    bool slow = config->activations != ENG_ACTIVATIONS_F32 &&
                !kern_ops_has_dot_bf16(kern_ops_cpu((enum kern_cpu)config->cpu_mask));
    tier_report_note(row, slow ? TIER_DEGRADED : TIER_ACTIVE, "%s%s", rounded[config->activations],
                     slow ? "; without vdpbf16ps bf16 is no faster" : "");
    row = tier_report_add(report, "kv.dtype",
                          choice_of("kv.dtype", config->kv_dtype, text, sizeof text));
    tier_report_note(row, TIER_ACTIVE, "%s", config->kv_dtype ? "latent KV is rounded" : "exact");
}

static void report_prefixes(struct tier_report *report, struct eng *engine, bool wanted)
{
    struct tier_report_row *row = tier_report_add(report, "scheduler.enable_prefix_caching",
                                                  wanted ? "true" : "false");
    struct eng_metrics m;
    eng_snapshot(engine, &m);
    tier_report_note(row, wanted ? TIER_ACTIVE : TIER_OFF, "%s", wanted ?
                     "beginnings that were computed before are not computed again" :
                     "every prompt is computed whole");
    row->counter = "reused_tokens";
    row->count = m.reused_tokens;
}

static void report_length(struct tier_report *report, const struct eng_stack *stack)
{
    const uint64_t asked = stack->config.engine.max_model_len;
    const uint32_t tokens = eng_tokens_max(stack->engine);
    char text[24] = "auto";
    if (asked > 0) snprintf(text, sizeof text, "%" PRIu64, asked);
    struct tier_report_row *row = tier_report_add(report, "scheduler.max_model_len", text);
    bool less = asked == 0 && eng_limits_length_auto(&stack->config.engine, &stack->shape) > tokens;
    tier_report_note(row, less ? TIER_DEGRADED : TIER_ACTIVE, "%u tokens of prompt and answer%s",
                     tokens, less ? ", as many as kv.capacity holds" : "");
}

static void report_chat(struct tier_report *report, const struct model_chat *chat)
{
    struct tier_report_row *row = tier_report_add(report, "chat_template", "the model's");
    const bool same = model_chat_as_model(chat);
    const bool plain = strcmp(model_chat_name(chat), "plain") == 0;
    tier_report_note(row, same ? TIER_ACTIVE : TIER_DEGRADED, "%s%s", model_chat_name(chat),
                     !same   ? ", though the model has another one: answers in chats are worse"
                     : plain ? ": it has none, messages are joined by newlines" : "");
}

static void report_ranks(struct tier_report *report, const struct eng_ranks *r)
{
    char text[24] = "1";
    if (r->count > 1) snprintf(text, sizeof text, "%u", r->count);
    struct tier_report_row *row = tier_report_add(report, "parallel", text);
    if (r->count <= 1) {
        tier_report_note(row, TIER_OFF, "one process serves the whole model");
    } else {
        tier_report_note(row, TIER_ACTIVE, "%.80s; attention and dense layers over %u, experts "
                         "over %u", r->comm->note, r->tensor, r->expert);
    }
}

void eng_report(struct tier_report *report, struct eng_stack *stack,
                const struct eng_stack_config *config, const struct tier_snapshot *tier)
{
    struct tier_report_args args = {
        .config = &config->tier, .io = &config->io, .snapshot = tier, .store = stack->store,
        .hints = stack->advice != NULL,
    };
    struct pred_trace_metrics trace = { 0 };
    report->count = 0;
    tier_report_tiers(report, &args);
    report_predictor(report, stack, config, tier);
    if (stack->trace) pred_trace_writer_snapshot(stack->trace, &trace);
    eng_report_trace(report, &stack->config.trace, &trace, stack->trace != NULL);
    report_arithmetic(report, &config->engine);
    report_prefixes(report, stack->engine, config->engine.prefix_caching);
    report_length(report, stack);
    report_chat(report, stack->chat);
    report_ranks(report, &stack->ranks);
}

void eng_report_print(FILE *to, const struct tier_report *report)
{
    fputs("what was asked for, and what became of it:\n", to);
    for (uint32_t i = 0; i < report->count; i++) {
        const struct tier_report_row *row = &report->rows[i];
        if (row->state == TIER_OFF) continue;
        fprintf(to, "  %-9s %s: %s%s%s\n", tier_state_name(row->state), row->feature,
                row->requested, row->note[0] ? ": " : "", row->note);
    }
}
