#include "predictor/import_out.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "predictor/trace_format.h"

uint32_t pred_import_step_tokens_max(const struct pred_trace_header *header)
{
    uint32_t most = PRED_STEP_IDS_MAX / (header->layers * header->top_k);
    return most < PRED_STEP_TOKENS_MAX ? most : PRED_STEP_TOKENS_MAX;
}

/* A trace is written at places of its file, which pipes and standard output do not have. */
static int target_find(struct base_out *out, const char *to, struct base_err *err)
{
    struct stat st;
    int rc = base_out_begin(out, to, err);
    if (rc < 0 || !out->direct) return rc;
    if (stat(out->path, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))) return 0;
    return base_err_set(err, -EINVAL, "%.500s: a trace needs a file: pipes and standard output "
                        "cannot take one", to);
}

int pred_import_out_check(const char *from, const char *to, struct base_err *err)
{
    struct base_out out;
    int rc = target_find(&out, to, err);
    return rc < 0 ? rc : base_out_spares(&out, from, err);
}

int pred_import_out_begin(struct pred_import_out *out, const char *to,
                          const struct pred_trace_header *header, bool weights,
                          struct base_err *err)
{
    struct pred_trace_config config;
    struct base_option_group group = { "trace", pred_trace_options, pred_trace_option_count,
                                       &config };
    base_option_defaults(&group, 1);
    out->writer = NULL;
    int rc = target_find(&out->out, to, err);
    if (rc == 0) rc = base_out_make(&out->out, err);
    if (rc < 0) return rc;
    const char *path = out->out.temporary;
    if (strlen(path) >= sizeof config.path) {
        rc = base_err_set(err, -ENAMETOOLONG, "%s: this path is too long", to);
    } else {
        memcpy(config.path, path, strlen(path) + 1);
        config.weights = weights ? PRED_WEIGHTS_F32 : PRED_WEIGHTS_NONE;
        rc = pred_trace_writer_open(&out->writer, &config, header, true, err);
    }
    if (rc < 0) return base_out_end(&out->out, rc, err);
    pred_trace_writer_patient(out->writer);
    return 0;
}

void pred_import_out_derive(struct pred_trace_header *to, const char *made,
                            const struct pred_trace_header *from)
{
    static const char between[] = " of ";
    const char *of = strstr(from->source, between);
    const char *origin = of ? of + sizeof between - 1 : from->source;
    *to = *from;
    to->decide = (struct tier_decide_config){ 0 };
    snprintf(to->source, sizeof to->source, "%s%s%.20s", made, between, origin);
}

int pred_import_out_end(struct pred_import_out *out, int rc, struct base_err *err)
{
    if (!out->writer) return rc;
    int closed = pred_trace_writer_close(out->writer, rc < 0 ? NULL : err);
    out->writer = NULL;
    return base_out_end(&out->out, rc >= 0 ? closed : rc, err);
}

static int positions_grow(struct pred_positions *p)
{
    uint32_t capacity = p->capacity ? p->capacity * 2 : 1024;
    if (capacity > 1u << 28) return -E2BIG;
    void *memory = malloc(base_map_bytes(capacity));
    if (!memory) return -ENOMEM;
    struct base_map grown;
    base_map_init(&grown, memory, capacity);
    uint32_t place = 0, value;
    uint64_t key;
    while (p->memory && base_map_next(&p->map, &place, &key, &value)) {
        base_map_put(&grown, key, value);
    }
    free(p->memory);
    p->map = grown;
    p->memory = memory;
    p->capacity = capacity;
    return 0;
}

int pred_positions_next(struct pred_positions *p, uint64_t seq, uint32_t *position)
{
    if (!p->memory || p->map.count == p->capacity) {
        int rc = positions_grow(p);
        if (rc < 0) return rc;
    }
    uint32_t seen = base_map_get(&p->map, seq);
    *position = seen == BASE_MAP_NONE ? 0 : seen;
    base_map_put(&p->map, seq, *position + 1);
    return 0;
}

int pred_positions_number(struct pred_positions *p, uint64_t seq, uint32_t fresh, uint32_t *number)
{
    if (!p->memory || p->map.count == p->capacity) {
        int rc = positions_grow(p);
        if (rc < 0) return rc;
    }
    *number = base_map_get(&p->map, seq);
    if (*number != BASE_MAP_NONE) return 0;
    *number = fresh;
    base_map_put(&p->map, seq, fresh);
    return 0;
}

void pred_positions_fini(struct pred_positions *p)
{
    free(p->memory);
    *p = (struct pred_positions){ 0 };
}

int pred_import_bad(const struct pred_text_in *in, struct base_err *err, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return base_err_set(err, BASE_EFORMAT, "%.200s:%" PRIu64 ": %s", pred_text_in_path(in),
                        pred_text_in_line(in), text);
}
