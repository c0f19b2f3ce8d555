/* tier-pack quantize: a copy of a model with weights in INT8 or INT4, and what that cost. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "engine/perplexity.h"
#include "tools/pack.h"
#include "tools/pack_quantize.h"

static const size_t text_bytes_max = (size_t)64 << 20;

/* Relative RMS error of one layer's matrices of one kind, or of all. */
static double rms(const struct kern_quant_error *errors, size_t count, size_t step)
{
    double energy = 0, error = 0;
    for (size_t i = 0; i < count; i++) {
        energy += errors[i * step].energy;
        error += errors[i * step].error;
    }
    return energy > 0 ? sqrt(error / energy) : 0;
}

static uint32_t layer_of(const struct model_shape *shape, uint32_t moe_layer)
{
    return model_shape_moe_first(shape) + moe_layer * model_shape_moe_step(shape);
}

struct quality {
    bool measured;
    struct eng_perplexity before, after;
};

static int reading_stops(void *context, uint64_t done, uint64_t total)
{
    const struct tier_store_progress *progress = context;
    progress->report(progress->context, done, total);
    return progress->stop(progress->context);
}

/* The same settings for both: what tier-run does without any. */
static int measure(struct eng_perplexity *out, const char *model, const char *text, size_t size,
                   const char *what, struct base_err *err)
{
    static struct eng_stack_config config;
    struct base_option_group groups[ENG_STACK_GROUPS];
    struct cli_progress bar;
    base_option_defaults(groups, eng_stack_groups(&config, groups));
    config.engine.threads = pack_flags.threads;
    struct eng_stack_args args = { .model_dir = model, .config = &config, .quiet = true };
    struct tier_store_progress progress = pack_progress(&bar, what);
    int rc = eng_perplexity(out, &args, text, size, 0, reading_stops, &progress, err);
    cli_progress_end(&bar);
    return rc;
}

static int measure_both(struct quality *quality, const struct quantize *q, const char *text,
                        size_t size, struct base_err *err)
{
    int rc = measure(&quality->before, q->from, text, size, "reading with MODEL", err);
    if (rc == 0) rc = measure(&quality->after, q->to, text, size, "reading with OUT", err);
    quality->measured = rc == 0;
    return rc;
}

static double change(const struct quality *quality)
{
    return quality->after.perplexity / quality->before.perplexity - 1.0;
}

static struct quantize_dense dense_at(uint32_t layer, uint32_t part)
{
    return (struct quantize_dense){ .layer = layer, .part = (enum quantize_part)part };
}

/* Nothing was quantised where it is 0. */
static double dense_rms(const struct quantize *q, uint32_t layer, uint32_t part)
{
    const struct quantize_dense dense = dense_at(layer, part);
    return rms(quantize_dense_error(q, &dense), 1, 1);
}

static double dense_rms_all(const struct quantize *q)
{
    return rms(q->dense_errors, (q->shape.layers + (size_t)1) * QUANTIZE_PART_COUNT, 1);
}

static void dense_json(const struct quantize *q, struct base_buf *out)
{
    base_buf_printf(out,
                    ",\"dense\":{\"bytes_before\":%" PRIu64 ",\"bytes\":%" PRIu64
                    ",\"rms\":%.6f,\"head\":%.6f,\"layers\":[",
                    q->dense_bytes_before, q->dense_bytes, dense_rms_all(q),
                    dense_rms(q, q->shape.layers, QUANTIZE_HEAD));
    for (uint32_t l = 0; l < q->shape.layers; l++) {
        base_buf_printf(out, "%s{\"layer\":%u", l ? "," : "", l);
        for (uint32_t p = 0; p < QUANTIZE_PART_COUNT; p++) {
            base_buf_printf(out, ",\"%s\":%.6f", quantize_part_name((enum quantize_part)p),
                            dense_rms(q, l, p));
        }
        base_buf_puts(out, "}");
    }
    base_buf_puts(out, "]}");
}

static void dense_text(const struct quantize *q)
{
    char before[16], after[16];
    printf("%s: dense weights of %s, %s before (%.3f); relative RMS error %.3f%%, of the head "
           "%.3f%%\n",
           q->to, base_str_bytes(after, sizeof after, q->dense_bytes),
           base_str_bytes(before, sizeof before, q->dense_bytes_before),
           (double)q->dense_bytes / (double)q->dense_bytes_before, 100 * dense_rms_all(q),
           100 * dense_rms(q, q->shape.layers, QUANTIZE_HEAD));
    if (dense_rms_all(q) == dense_rms(q, q->shape.layers, QUANTIZE_HEAD)) return;   /* alone */
    printf("layer");
    for (uint32_t p = 0; p < QUANTIZE_PART_COUNT; p++) {
        printf(" %7s", quantize_part_name((enum quantize_part)p));
    }
    printf("\n");
    for (uint32_t l = 0; l < q->shape.layers; l++) {
        printf("%5u", l);
        for (uint32_t p = 0; p < QUANTIZE_PART_COUNT; p++) {
            const double error = dense_rms(q, l, p);
            if (error > 0) printf(" %6.3f%%", 100 * error);
            else printf(" %7s", "-");
        }
        printf("\n");
    }
}

static void experts_json(const struct quantize *q, struct base_buf *out)
{
    uint32_t layers = model_shape_moe_layers(&q->shape);
    size_t step = MODEL_MATRIX_COUNT;
    base_buf_printf(out,
                    ",\"expert_bytes_before\":%" PRIu64 ",\"expert_bytes\":%" PRIu64
                    ",\"rms\":%.6f,\"layers\":[",
                    q->expert_bytes_before, q->expert_bytes, rms(q->errors, layers * step, 1));
    for (uint32_t l = 0; l < layers; l++) {
        const struct kern_quant_error *e = &q->errors[l * step];
        base_buf_printf(out, "%s{\"layer\":%u,\"gate\":%.6f,\"up\":%.6f,\"down\":%.6f}",
                        l ? "," : "", layer_of(&q->shape, l), rms(e, 1, 1), rms(e + 1, 1, 1),
                        rms(e + 2, 1, 1));
    }
    base_buf_puts(out, "]");
}

static void report_json(const struct quantize *q, const struct quality *quality)
{
    const bool experts = q->dtype != KERN_DTYPE_COUNT;
    struct base_buf out;
    base_buf_init(&out);
    base_buf_puts(&out, "{\"out\":\"");
    base_buf_json_escape(&out, q->to, strlen(q->to));
    base_buf_puts(&out, "\"");
    if (experts) base_buf_printf(&out, ",\"to\":\"%s\"", pack_flags.rung);
    base_buf_printf(&out, ",\"group\":%u", q->group);
    if (experts) experts_json(q, &out);
    if (q->dense) dense_json(q, &out);
    if (quality->measured) {
        base_buf_printf(&out,
                        ",\"perplexity\":{\"tokens\":%" PRIu64 ",\"before\":%.6f,\"after\":"
                        "%.6f,\"change\":%.6f}",
                        quality->before.tokens, quality->before.perplexity,
                        quality->after.perplexity, change(quality));
    }
    base_buf_puts(&out, "}");
    if (base_buf_error(&out) == 0) puts(out.data);
    base_buf_fini(&out);
}

static void experts_text(const struct quantize *q)
{
    uint32_t layers = model_shape_moe_layers(&q->shape);
    size_t step = MODEL_MATRIX_COUNT;
    char before[16], after[16];
    printf("%s: experts of %s, %s before (%.3f); relative RMS error %.3f%%\n", q->to,
           base_str_bytes(after, sizeof after, q->expert_bytes),
           base_str_bytes(before, sizeof before, q->expert_bytes_before),
           (double)q->expert_bytes / (double)q->expert_bytes_before,
           100 * rms(q->errors, layers * step, 1));
    printf("layer    gate      up    down\n");
    for (uint32_t l = 0; l < layers; l++) {
        const struct kern_quant_error *e = &q->errors[l * step];
        printf("%5u %6.3f%% %6.3f%% %6.3f%%\n", layer_of(&q->shape, l), 100 * rms(e, 1, 1),
               100 * rms(e + 1, 1, 1), 100 * rms(e + 2, 1, 1));
    }
}

static void report_text(const struct quantize *q, const struct quality *quality)
{
    if (q->dtype != KERN_DTYPE_COUNT) experts_text(q);
    if (q->dense) dense_text(q);
    if (!quality->measured) return;
    printf("perplexity %.4f, %.4f before (%+.3f%%) over %" PRIu64 " tokens of %s\n",
           quality->after.perplexity, quality->before.perplexity, 100 * change(quality),
           quality->before.tokens, pack_flags.text);
}

int pack_quantize(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct cli_progress bar;
    struct quality quality = { 0 };
    pack_trim(arguments[1]);
    char *text = NULL;
    size_t text_size = 0;
    struct quantize q = { .from = arguments[0],
                          .to = arguments[1],
                          .group = (uint32_t)pack_flags.group,
                          .allow_larger = pack_flags.allow_larger,
                          .dense = pack_flags.dense,
                          .threads = pack_threads() };
    (void)count;
    const char *rung = pack_flags.rung;
    if (!rung && !pack_flags.dense) {
        return cli_misuse("quantize: --to int8 or --to int4 says what the experts become; --dense "
                          "alone leaves them");
    }
    if (rung && strcmp(rung, "int8") != 0 && strcmp(rung, "int4") != 0) {
        return cli_misuse("--to %s: wanted int8 or int4", rung);
    }
    if (pack_flags.group != KERN_GROUP_SMALL && pack_flags.group != KERN_GROUP_LARGE) {
        return cli_misuse("--group %" PRIu64 ": groups have 32 or 128 weights", pack_flags.group);
    }
    q.dtype = !rung ? KERN_DTYPE_COUNT : strcmp(rung, "int8") == 0 ? KERN_INT8 : KERN_INT4;
    base_log_level_set(BASE_LOG_WARN);
    int rc = pack_flags.text
                 ? base_file_read(&text, &text_size, pack_flags.text, text_bytes_max, &err)
                 : 0;
    if (rc == 0 && text) rc = eng_perplexity_check(q.from, text, text_size, &err);
    struct tier_store_progress progress = pack_progress(&bar, "quantising");
    q.progress = &progress;
    if (rc == 0) rc = quantize_run(&q, &err);
    cli_progress_end(&bar);
    const bool written = rc == 0;
    if (rc == 0 && text) rc = measure_both(&quality, &q, text, text_size, &err);
    /* The model is there even when it could not be measured: say what is known of it. */
    if (written) {
        if (pack_flags.json)
            report_json(&q, &quality);
        else
            report_text(&q, &quality);
    }
    quantize_fini(&q);
    free(text);
    return rc < 0 ? cli_fail(1, &err) : 0;
}
