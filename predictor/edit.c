#include "predictor/edit.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/out.h"
#include "port/hash.h"
#include "predictor/compose.h"
#include "predictor/import_out.h"

enum {
    PROGRESS_EVERY = 256,           /* steps */
    COPIED = PRED_WANT_STEPS | 1 << PRED_ITEM_GAP,
};

/* A step's kept tokens, in arrays that grow with the largest step. */
struct kept {
    uint32_t room, count;
    uint64_t *seqs;
    uint32_t *tokens, *positions, *from;
    uint8_t *phases;
    size_t id_room;
    uint32_t *ids;
    float *weights;
};

static void kept_fini(struct kept *k)
{
    free(k->seqs);
    free(k->tokens);
    free(k->positions);
    free(k->from);
    free(k->phases);
    free(k->ids);
    free(k->weights);
}

static bool grow(void *array, size_t bytes)
{
    void **at = array;
    void *grown = realloc(*at, bytes);
    if (!grown) return false;
    *at = grown;
    return true;
}

static bool kept_reserve(struct kept *k, uint32_t tokens, size_t ids)
{
    if (tokens > k->room) {
        if (!grow(&k->seqs, tokens * sizeof k->seqs[0]) ||
            !grow(&k->from, tokens * sizeof k->from[0]) ||
            !grow(&k->tokens, tokens * sizeof k->tokens[0]) || !grow(&k->phases, tokens) ||
            !grow(&k->positions, tokens * sizeof k->positions[0])) {
            return false;
        }
        k->room = tokens;
    }
    if (ids > k->id_room) {
        if (!grow(&k->ids, ids * sizeof k->ids[0]) ||
            !grow(&k->weights, ids * sizeof k->weights[0])) {
            return false;
        }
        k->id_room = ids;
    }
    return true;
}

static bool is_kept(const struct pred_selection *s, uint64_t seq, int phase)
{
    if (s->modulo > 0 && seq % s->modulo != s->rest) return false;
    if (seq < s->seq_first || seq > s->seq_last) return false;
    if (s->phase >= 0 && phase != s->phase) return false;
    if (s->share >= 1) return true;
    uint64_t key[2] = { seq, s->seed };
    return (double)(port_hash64(key, sizeof key) >> 11) * 0x1p-53 < s->share;
}

/* Copies the kept tokens of a step. */
static int kept_take(struct kept *k, const struct pred_trace_header *h,
                     const struct pred_step *step, const struct pred_selection *s,
                     struct pred_step *out)
{
    uint32_t n = step->token_count, top_k = h->top_k;
    if (!kept_reserve(k, n, (size_t)h->layers * n * top_k)) return -ENOMEM;
    k->count = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!is_kept(s, step->seqs[i], step->phases[i])) continue;
        k->seqs[k->count] = step->seqs[i];
        k->tokens[k->count] = step->tokens[i];
        k->positions[k->count] = step->positions[i];
        k->phases[k->count] = step->phases[i];
        k->from[k->count++] = i;
    }
    for (uint32_t l = 0; l < h->layers; l++) {
        for (uint32_t i = 0; i < k->count; i++) {
            size_t to = ((size_t)l * k->count + i) * top_k,
                   from = ((size_t)l * n + k->from[i]) * top_k;
            memcpy(k->ids + to, step->expert_ids + from, top_k * sizeof k->ids[0]);
            if (!step->expert_weights) continue;
            memcpy(k->weights + to, step->expert_weights + from, top_k * sizeof k->weights[0]);
        }
    }
    *out = *step;
    out->token_count = k->count;
    out->seqs = k->seqs;
    out->tokens = k->tokens;
    out->positions = k->positions;
    out->phases = k->phases;
    out->expert_ids = k->ids;
    out->expert_weights = step->expert_weights ? k->weights : NULL;
    return 0;
}

static void show(struct pred_trace_reader *r, const struct pred_replay_progress *progress,
                 const char *what, uint64_t steps)
{
    struct pred_trace_health health;
    if (!progress || steps % PROGRESS_EVERY != 0) return;
    pred_trace_reader_health(r, &health);
    progress->report(progress->context, what, health.read_bytes, health.file_bytes);
}

static int begin(struct pred_import_out *out, const char *to,
                 const struct pred_trace_header *header, struct base_err *err)
{
    return pred_import_out_begin(out, to, header, header->weights != PRED_WEIGHTS_NONE, err);
}

/* The next step or gap; damage behind whole steps is the end where that was asked for. */
static int select_next(struct pred_trace_reader *from, const struct pred_selection *s,
                       struct pred_trace_item *item, struct pred_edit_stats *stats,
                       struct base_err *err)
{
    struct base_err why = { 0 };
    int rc = pred_trace_reader_next(from, COPIED, item, &why);
    if (rc >= 0) return rc;
    base_err_set(&why, rc, "the trace cannot be read: %s", base_err_name(rc));
    if (s->until_damage && rc != -ENOMEM && stats->steps_read > 0) {
        stats->damage = why;
        return 0;
    }
    return base_err_set(err, rc, "%s", why.text);
}

int pred_edit_select(struct pred_trace_reader *from, const char *to,
                     const struct pred_selection *s, struct pred_edit_stats *stats,
                     const struct pred_replay_progress *progress, struct base_err *err)
{
    struct pred_import_out out = { 0 };
    struct kept kept = { 0 };
    struct pred_trace_item item;
    const struct pred_trace_header *h = pred_trace_reader_header(from);
    struct pred_trace_header header;
    memset(stats, 0, sizeof *stats);
    pred_import_out_derive(&header, "part", h);
    int rc = pred_trace_reader_spares(from, to, err);
    if (rc == 0) rc = begin(&out, to, &header, err);
    while (rc >= 0 && stats->steps_read <= s->step_last) {
        struct pred_step step;
        rc = select_next(from, s, &item, stats, err);
        if (rc <= 0) break;
        show(from, progress, "copying", stats->steps_read);
        bool inside = stats->steps_read >= s->step_first;
        if (item.kind == PRED_ITEM_GAP) {
            if (inside) pred_trace_writer_gap(out.writer, item.lost);
            continue;
        }
        stats->steps_read++;
        rc = kept_take(&kept, h, &item.step, s, &step);
        if (rc < 0) break;
        uint32_t tokens = inside ? step.token_count : 0;
        stats->tokens_left_out += item.step.token_count - tokens;
        if (tokens == 0) continue;
        pred_trace_writer_step(out.writer, &step);
        stats->steps++;
        stats->tokens += tokens;
    }
    kept_fini(&kept);
    return pred_import_out_end(&out, rc, err);
}

/* Sequences of all traces get numbers without holes, in the order in which they come up. */
static int renumber(struct pred_positions *numbers, struct kept *kept, uint32_t *sequences)
{
    for (uint32_t t = 0; t < kept->count; t++) {
        uint32_t number;
        int rc = pred_positions_number(numbers, kept->seqs[t], *sequences, &number);
        if (rc < 0) return rc;
        if (number == *sequences) ++*sequences;
        kept->seqs[t] = number;
    }
    return 0;
}

/* Says of the whole what holds of every trace: the least share of the sequences, weights where some
 * have them, token ids where some have those. */
static void merge_header(struct pred_trace_header *to, struct pred_trace_reader *const *from,
                         uint32_t count)
{
    struct pred_trace_header all = *pred_trace_reader_header(from[0]), made;
    pred_import_out_derive(to, "merge", &all);
    for (uint32_t i = 1; i < count; i++) {
        const struct pred_trace_header *h = pred_trace_reader_header(from[i]);
        if (h->sample < all.sample) all.sample = h->sample;
        if (h->weights > all.weights) all.weights = h->weights;
        if (h->tokens < all.tokens) all.tokens = h->tokens;
        pred_import_out_derive(&made, "merge", h);
        if (strcmp(made.source, to->source) != 0 && !pred_trace_composed(&all)) {
            snprintf(all.source, sizeof all.source, "%s",
                     pred_trace_composed(h) ? h->source : "several");
        }
        pred_import_out_derive(to, "merge", &all);
    }
}

int pred_edit_merge(struct pred_trace_reader *const *from, uint32_t count, const char *to,
                    struct pred_edit_stats *stats, const struct pred_replay_progress *progress,
                    struct base_err *err)
{
    struct pred_import_out out = { 0 };
    struct kept kept = { 0 };
    struct pred_trace_item item;
    const struct pred_trace_header *first = pred_trace_reader_header(from[0]);
    static const struct pred_selection all = { .seq_last = UINT64_MAX, .share = 1, .phase = -1 };
    struct pred_trace_header header;
    uint32_t sequences = 0;
    memset(stats, 0, sizeof *stats);
    for (uint32_t i = 1; i < count; i++) {
        const struct pred_trace_header *h = pred_trace_reader_header(from[i]);
        if (h->layers == first->layers && h->experts == first->experts &&
            h->top_k == first->top_k && strcmp(h->model, first->model) == 0) {
            continue;
        }
        return base_err_set(err, BASE_EMISMATCH,
                            "trace %" PRIu32 " is of another model (%s) than the first "
                            "(%s)",
                            i + 1, h->model, first->model);
    }
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        rc = pred_trace_reader_spares(from[i], to, err);
    }
    merge_header(&header, from, count);
    if (rc == 0) rc = begin(&out, to, &header, err);
    for (uint32_t i = 0; rc >= 0 && i < count; i++) {
        struct pred_positions numbers = { 0 };
        while ((rc = pred_trace_reader_next(from[i], COPIED, &item, err)) > 0) {
            struct pred_step step;
            if (item.kind == PRED_ITEM_GAP) {
                pred_trace_writer_gap(out.writer, item.lost);
                continue;
            }
            show(from[i], progress, "copying", stats->steps);
            rc = kept_take(&kept, first, &item.step, &all, &step);
            if (rc < 0) break;
            rc = renumber(&numbers, &kept, &sequences);
            if (rc < 0) break;
            step.step = stats->steps++;
            stats->tokens += step.token_count;
            pred_trace_writer_step(out.writer, &step);
        }
        pred_positions_fini(&numbers);
    }
    kept_fini(&kept);
    return pred_import_out_end(&out, rc, err);
}

/* ----------------------------------------------------------------------------------- export -- */

static void jsonl_lists(FILE *to, const struct pred_trace_header *h, const struct pred_step *step,
                        uint32_t token, bool weights)
{
    for (uint32_t l = 0; l < h->layers; l++) {
        size_t at = ((size_t)l * step->token_count + token) * h->top_k;
        if (step->expert_ids[at] == PRED_NO_EXPERT) {
            fputs(l > 0 ? ",null" : "null", to);
            continue;
        }
        fputs(l > 0 ? ",[" : "[", to);
        for (uint32_t k = 0; k < h->top_k; k++) {
            if (k > 0) fputc(',', to);
            if (weights) {
                fprintf(to, "%.9g",
                        step->expert_weights ? (double)step->expert_weights[at + k] : 0.0);
            } else {
                fprintf(to, "%" PRIu32, step->expert_ids[at + k]);
            }
        }
        fputc(']', to);
    }
}

/* Tokens of one step say so: they come back as one step. Where the trace has weights and the step
 * has none, they are zeros: every line has weights or none has. */
static int jsonl_step(FILE *to, const struct pred_trace_header *h, const struct pred_step *step,
                      uint64_t number, struct base_err *err)
{
    (void)err;
    for (uint32_t i = 0; i < step->token_count; i++) {
        int64_t token = step->tokens[i] == PRED_NO_TOKEN ? -1 : (int64_t)step->tokens[i];
        fputc('{', to);
        if (step->token_count > 1) fprintf(to, "\"step\":%" PRIu64 ",", number);
        fprintf(to, "\"seq\":%" PRIu64 ",\"phase\":\"%s\",\"token\":%" PRId64 ",\"experts\":[",
                step->seqs[i], step->phases[i] == TIER_DECODE ? "decode" : "prefill", token);
        jsonl_lists(to, h, step, i, false);
        if (h->weights != PRED_WEIGHTS_NONE) {
            fputs("],\"weights\":[", to);
            jsonl_lists(to, h, step, i, true);
        }
        fputs("]}\n", to);
    }
    return 0;
}

/* Of one expert of a layer, counted within those with experts; 0 = the trace does not say. */
static uint64_t csv_bytes(const struct pred_trace_header *h, uint32_t layer)
{
    return h->expert_bytes ? h->expert_bytes[layer] : h->slot_bytes;
}

static int csv_step(FILE *to, const struct pred_trace_header *h, const struct pred_step *step,
                    uint64_t number, struct base_err *err)
{
    (void)number;
    for (uint32_t i = 1; i < step->token_count; i++) {
        if (step->seqs[i] == step->seqs[0] && step->phases[i] == step->phases[0] &&
            step->phases[i] == TIER_PREFILL) {
            continue;
        }
        return base_err_set(err, BASE_EMISMATCH,
                            "step %" PRIu64 " is a batch of several sequences: the CSV "
                            "has no place for that, JSONL has",
                            step->step);
    }
    for (uint32_t l = 0; l < h->layers; l++) {
        for (uint32_t i = 0; i < step->token_count; i++) {
            size_t at = ((size_t)l * step->token_count + i) * h->top_k;
            if (step->expert_ids[at] == PRED_NO_EXPERT) continue;
            for (uint32_t k = 0; k < h->top_k; k++) {
                fprintf(to,
                        "%" PRIu64 ",%d,%" PRIu32 ",%" PRIu32 ",%" PRIu32 ",%" PRIu32
                        ",%.9g,0,%" PRIu64 "\n",
                        step->seqs[i], step->phases[i] == TIER_DECODE, step->positions[i],
                        l + h->first_moe_layer, k, step->expert_ids[at + k],
                        step->expert_weights ? (double)step->expert_weights[at + k] : 0.0,
                        csv_bytes(h, l));
            }
        }
    }
    return 0;
}

static void jsonl_head(FILE *to, const struct pred_trace_header *h)
{
    /* Layers are those with experts: the lists below are theirs alone. */
    char model[sizeof h->model];
    snprintf(model, sizeof model, "%s", h->model);
    for (char *c = model; *c; c++) {
        if (*c == '"' || *c == '\\' || (unsigned char)*c < 32) *c = '_';
    }
    fprintf(to, "{\"format\":\"routing-jsonl\",\"version\":1,\"model\":\"%s\",\"layers\":%" PRIu32
            ",\"first_moe_layer\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"top_k\":%" PRIu32, model,
            h->layers + h->first_moe_layer, h->first_moe_layer, h->experts, h->top_k);
    if (h->expert_bytes) {
        fputs(",\"expert_bytes\":[", to);
        for (uint32_t l = 0; l < h->layers; l++) {
            fprintf(to, "%s%" PRIu64, l > 0 ? "," : "", h->expert_bytes[l]);
        }
        fputs("]", to);
    } else if (h->slot_bytes > 0) {
        fprintf(to, ",\"expert_bytes\":%" PRIu64, h->slot_bytes);
    }
    fputs("}\n", to);
}

/* Lines of layers tell sizes, and by a size of 0 which layers have no experts. Where no size is
 * known there are none, lest one be made up, and the model's line says the latter. */
static void csv_head(FILE *to, const struct pred_trace_header *h)
{
    bool sized = csv_bytes(h, 0) > 0;
    fprintf(to,
            "# route_trace v1\n# model=%s n_layer=%" PRIu32 " n_expert=%" PRIu32
            " n_expert_used=%" PRIu32,
            h->model, h->layers + h->first_moe_layer, h->experts, h->top_k);
    if (!sized && h->first_moe_layer > 0) {
        fprintf(to, " first_moe_layer=%" PRIu32, h->first_moe_layer);
    }
    fputc('\n', to);
    for (uint32_t l = 0; l < h->layers + h->first_moe_layer && sized; l++) {
        uint64_t bytes = l < h->first_moe_layer ? 0 : csv_bytes(h, l - h->first_moe_layer);
        fprintf(to, "# layer=%" PRIu32 " expert_bytes=%" PRIu64 " dense_bytes=0\n", l, bytes);
    }
    fputs("turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n", to);
}

int pred_edit_export(struct pred_trace_reader *from, const char *to, enum pred_export_format format,
                     struct pred_edit_stats *stats, const struct pred_replay_progress *progress,
                     struct base_err *err)
{
    struct base_out out;
    struct pred_trace_item item;
    const struct pred_trace_header *h = pred_trace_reader_header(from);
    memset(stats, 0, sizeof *stats);
    int rc = pred_trace_reader_spares(from, to, err);
    if (rc == 0) rc = base_out_begin(&out, to, err);
    if (rc == 0) rc = base_out_open(&out, err);
    if (rc < 0) return rc;
    bool jsonl = format == PRED_EXPORT_JSONL;
    (jsonl ? jsonl_head : csv_head)(out.file, h);
    while ((rc = pred_trace_reader_next(from, PRED_WANT_STEPS, &item, err)) > 0) {
        rc = (jsonl ? jsonl_step : csv_step)(out.file, h, &item.step, stats->steps, err);
        if (rc < 0) break;
        stats->tokens += item.step.token_count;
        show(from, progress, "exporting", stats->steps++);
    }
    return base_out_end(&out, rc, err);
}

/* ------------------------------------------------------------------------------------- info -- */

int pred_trace_summarize(struct pred_trace_reader *from, struct pred_trace_summary *s,
                         const struct pred_replay_progress *progress, struct base_err *err)
{
    struct pred_trace_item item;
    struct pred_positions seen = { 0 };
    int rc;
    memset(s, 0, sizeof *s);
    while ((rc = pred_trace_reader_next(from, PRED_WANT_ALL, &item, err)) > 0) {
        if (item.kind == PRED_ITEM_EVENT) s->events[item.event.kind & 7]++;
        if (item.kind == PRED_ITEM_COUNTS) s->counts++;
        if (item.kind == PRED_ITEM_GAP) s->gaps++;
        if (item.kind != PRED_ITEM_STEP) continue;
        for (uint32_t i = 0; rc >= 0 && i < item.step.token_count; i++) {
            uint32_t position;
            rc = pred_positions_next(&seen, item.step.seqs[i], &position);
            s->tokens[item.step.phases[i]]++;
            s->unknown_tokens += item.step.tokens[i] == PRED_NO_TOKEN;
        }
        s->step_ns += item.step.step_ns;
        show(from, progress, "reading", s->steps++);
        if (rc < 0) break;
    }
    s->sequences = seen.map.count;
    pred_positions_fini(&seen);
    return rc < 0 ? base_err_set(err, rc, "cannot read the trace: %s", base_err_name(rc)) : 0;
}
