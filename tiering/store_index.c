/* Builds the index of a checkpoint: finds the experts' tensors, hashes their bytes, writes. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/must.h"
#include "tiering/store_files.h"
#include "tiering/store_image.h"
#include "tiering/store_scan.h"

static const char *const matrix_names[] = { "gate_proj", "up_proj", "down_proj" };

struct builder {
    const char *dir;
    const struct model_shape *shape;
    struct model_files *files;
    unsigned char *bytes;       /* the index under construction, NULL until laid out */
    size_t size;
    struct tier_format_header *header;
    struct tier_format_file *file_table;
    struct tier_format_expert *experts;
    char *names;
    uint64_t part_bytes[TIER_PARTS];
    uint64_t *order;            /* experts by place of their first byte */
    int *fds;
};

static const struct model_tensor *find(const struct builder *b, uint64_t at, unsigned part,
                                       char *name, size_t size)
{
    const struct tier_format_header *h = b->header;
    uint32_t layer = h->layer_first + (uint32_t)(at / h->experts) * h->layer_step;
    snprintf(name, size, "model.layers.%u.mlp.experts.%u.%s.weight%s", layer,
             (uint32_t)(at % h->experts), matrix_names[part / 2], part % 2 ? "_scale_inv" : "");
    return model_files_find(b->files, name);
}

static int lay_out(struct builder *b, struct base_err *err)
{
    const struct model_shape *shape = b->shape;
    uint32_t files = model_files_shards(b->files);
    uint32_t layers = model_shape_moe_layers(shape);
    if (layers == 0) {
        return base_err_set(err, BASE_EMISMATCH, "%s: the model has no layer with experts, there "
                            "is nothing to index", b->dir);
    }
    if (files > TIER_FILES_MAX) {
        return base_err_set(err, BASE_EFORMAT, "%s: has %u shards, an index holds at most %d",
                            b->dir, files, TIER_FILES_MAX);
    }
    size_t names = 0;
    for (uint32_t i = 0; i < files; i++) {
        names += strlen(model_files_shard(b->files, i)->name);
    }
    uint64_t count = (uint64_t)layers * shape->experts;
    b->size =
        sizeof *b->header + files * sizeof *b->file_table + count * sizeof *b->experts + names;
    b->bytes = calloc(1, b->size);
    b->order = calloc(count, sizeof *b->order);
    b->fds = calloc(files, sizeof *b->fds);
    if (!b->bytes || !b->order || !b->fds) {
        return base_err_set(err, -ENOMEM, "%s: out of memory for the index", b->dir);
    }
    for (uint32_t i = 0; i < files; i++) {
        b->fds[i] = -1;
    }
    b->header = (void *)b->bytes;
    b->file_table = (void *)(b->header + 1);
    b->experts = (void *)(b->file_table + files);
    b->names = (char *)(b->experts + count);
    *b->header = (struct tier_format_header){
        .version = TIER_INDEX_VERSION,
        .header_bytes = sizeof *b->header,
        .index_bytes = b->size,
        .kind = TIER_INDEX_CHECKPOINT,
        .layer_first = model_shape_moe_first(shape),
        .layer_step = model_shape_moe_step(shape),
        .layers = layers,
        .experts = shape->experts,
        .top_k = shape->top_k,
        .hidden = shape->hidden,
        .expert_width = shape->expert_width,
        .file_count = files,
        .copies = 1,
        .data_files = files,
        .names_bytes = (uint32_t)names,
    };
    memcpy(b->header->magic, TIER_INDEX_MAGIC, sizeof b->header->magic);
    return 0;
}

static void fill_files(struct builder *b)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < b->header->file_count; i++) {
        const struct model_shard *shard = model_files_shard(b->files, i);
        uint32_t bytes = (uint32_t)strlen(shard->name);
        b->file_table[i] = (struct tier_format_file){
            .role = TIER_FILE_DATA,
            .name_at = at,
            .name_bytes = bytes,
            .bytes = shard->bytes,
            .mtime_ns = shard->mtime_ns,
            .header_hash = shard->header_hash,
        };
        memcpy(b->names + at, shard->name, bytes);
        at += bytes;
    }
}

/* The block that the scales of this matrix stand for, found by their shape and checked against what
 * the matrices before it have. */
static int learn_block(struct builder *b, uint32_t type, const struct model_tensor *tensor,
                       uint32_t cols, const char *name, struct base_err *err)
{
    struct tier_format_header *h = b->header;
    uint32_t rows = b->shape->fp8_block_rows, group = b->shape->fp8_block_cols;
    if (type != TIER_TYPE_F8_E4M3) {
        rows = 1;
        group = tensor->dims == 2 && tensor->shape[1] == (cols + 31) / 32 ? 32 : 128;
        /* A short row has one scale whatever the group. */
        if (h->block_rows == 1 && cols <= 32) group = h->block_cols;
    }
    if (tier_image_type(tensor->dtype) != tier_image_scale_type(type) ||
        !tier_image_block_fits(type, rows, group)) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: scales %s of type %s: only F8_E4M3 matrices "
                            "have scales, in F32, with weight_block_size in config.json, and I8 "
                            "and U8 ones, in BF16",
                            b->dir, name, model_dtype_name(tensor->dtype));
    }
    if (h->block_rows && (h->block_rows != rows || h->block_cols != group)) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: scales %s stand for %u x %u weights, those "
                            "of the matrix before for %u x %u",
                            b->dir, name, rows, group, h->block_rows, h->block_cols);
    }
    h->block_rows = rows;
    h->block_cols = group;
    return 0;
}

/* What the first expert's tensor says about this part, checked against the model. */
static int learn_part(struct builder *b, unsigned part, struct base_err *err)
{
    char name[128];
    const struct model_shape *shape = b->shape;
    const struct tier_format_part *matrix = &b->header->parts[part & ~1u];
    const struct model_tensor *tensor = find(b, 0, part, name, sizeof name);
    bool scaled = tier_image_scale_type(matrix->type) != TIER_TYPE_NONE;
    if (part % 2 == 1 && !tensor && !scaled) return 0;
    if (!tensor) {
        return base_err_set(err, BASE_EFORMAT, "%s: tensor %s is missing", b->dir, name);
    }
    uint32_t rows = part >= 4 ? shape->hidden : shape->expert_width;
    uint32_t cols = part >= 4 ? shape->expert_width : shape->hidden;
    if (part % 2 == 1) {
        int rc = learn_block(b, matrix->type, tensor, cols, name, err);
        if (rc < 0) return rc;
        rows = (rows + b->header->block_rows - 1) / b->header->block_rows;
        cols = (cols + b->header->block_cols - 1) / b->header->block_cols;
    } else if (tensor->dtype == MODEL_I32) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: tensor %s has type %s; experts can be "
                            "F8_E4M3, BF16, F16, F32, I8 or U8 (INT4)",
                            b->dir, name, model_dtype_name(tensor->dtype));
    } else {
        cols = tier_image_row_elements(tier_image_type(tensor->dtype), cols);
    }
    b->header->parts[part] = (struct tier_format_part){ .type = tier_image_type(tensor->dtype),
                                                        .rows = rows, .cols = cols };
    b->part_bytes[part] =
        (uint64_t)rows * cols * tier_image_type_bytes(b->header->parts[part].type);
    return 0;
}

/* Notes where a part lies, and that it is like the first expert's. */
static int place_part(struct builder *b, uint64_t at, unsigned part, struct base_err *err)
{
    char name[128];
    const struct tier_format_part *like = &b->header->parts[part];
    const struct model_tensor *tensor = find(b, at, part, name, sizeof name);
    if (!tensor && b->part_bytes[part] == 0) return 0;
    if (!tensor) {
        return base_err_set(err, BASE_EFORMAT, "%s: tensor %s is missing", b->dir, name);
    }
    if (tier_image_type(tensor->dtype) != like->type || tensor->dims != 2 ||
        tensor->shape[0] != like->rows || tensor->shape[1] != like->cols ||
        tensor->bytes != b->part_bytes[part]) {
        int dtype = tier_image_dtype(like->type);
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: tensor %s is %s with %u dimensions, %llu x "
                            "%llu; wanted %s, %u x %u",
                            b->dir, name, model_dtype_name(tensor->dtype), tensor->dims,
                            (unsigned long long)(tensor->dims > 0 ? tensor->shape[0] : 0),
                            (unsigned long long)(tensor->dims > 1 ? tensor->shape[1] : 0),
                            dtype < 0 ? "no such tensor"
                                      : model_dtype_name((enum model_dtype)dtype),
                            like->rows, like->cols);
    }
    if (tensor->offset % tier_image_type_bytes(like->type) != 0) {
        return base_err_set(err, BASE_EFORMAT, "%s: tensor %s begins at byte %llu, no multiple of "
                            "its element size", b->dir, name, (unsigned long long)tensor->offset);
    }
    b->experts[at].file[part] = (uint16_t)tensor->file;
    b->experts[at].offset[part] = tensor->offset;
    return 0;
}

static int by_place(const void *a, const void *b, void *experts)
{
    const struct tier_format_expert *x =
        (struct tier_format_expert *)experts + *(const uint64_t *)a;
    const struct tier_format_expert *y =
        (struct tier_format_expert *)experts + *(const uint64_t *)b;
    if (x->file[0] != y->file[0]) return x->file[0] < y->file[0] ? -1 : 1;
    return x->offset[0] < y->offset[0] ? -1 : x->offset[0] > y->offset[0];
}

static int place_all(struct builder *b, struct base_err *err)
{
    uint64_t count = (uint64_t)b->header->layers * b->header->experts;
    uint64_t bytes = 0;
    int rc = 0;
    for (unsigned part = 0; rc == 0 && part < TIER_PARTS; part++) {
        rc = learn_part(b, part, err);
        bytes += b->part_bytes[part];
    }
    if (rc == 0) rc = tier_image_check_bytes(bytes, b->dir, err);
    for (uint64_t at = 0; rc == 0 && at < count; at++) {
        b->order[at] = at;
        for (unsigned part = 0; rc == 0 && part < TIER_PARTS; part++) {
            rc = place_part(b, at, part, err);
        }
    }
    if (rc == 0) qsort_r(b->order, count, sizeof *b->order, by_place, b->experts);
    return rc;
}

/* A scale that is no number makes every product one. `buffer` still holds a part of this size. */
static uint64_t find_bad_scale(const unsigned char *buffer, uint64_t bytes, uint32_t type)
{
    for (uint64_t at = 0; type == TIER_TYPE_BF16 && at + 2 <= bytes; at += 2) {
        if ((buffer[at + 1] & 0x7f) == 0x7f && buffer[at] & 0x80) return at / 2;
    }
    for (uint64_t at = 0; type == TIER_TYPE_F32 && at + 4 <= bytes; at += 4) {
        float scale;
        memcpy(&scale, buffer + at, sizeof scale);
        if (!isfinite(scale)) return at / 4;
    }
    return UINT64_MAX;
}

static int refuse_value(const struct builder *b, uint64_t at, unsigned part, const char *what,
                        uint64_t element, struct base_err *err)
{
    char name[128];
    find(b, at, part, name, sizeof name);
    return base_err_set(err, BASE_EFORMAT, "%s: tensor %s: element %llu is %s; the checkpoint is "
                        "damaged or was badly converted", b->dir, name,
                        (unsigned long long)element, what);
}

static int64_t hash_expert(void *context, uint64_t item, unsigned char *buffer,
                           struct base_err *err)
{
    struct builder *b = context;
    uint64_t at = b->order[item];
    struct tier_format_expert *expert = &b->experts[at];
    struct port_hash hash;
    int64_t bytes = 0;
    port_hash_begin(&hash);
    for (unsigned part = 0; part < TIER_PARTS; part++) {
        uint64_t size = b->part_bytes[part], nan_at = UINT64_MAX;
        bool fp8 = b->header->parts[part].type == TIER_TYPE_F8_E4M3;
        if (size == 0) continue;
        int rc = tier_scan_range(b->fds[expert->file[part]], expert->offset[part], size, buffer,
                                 &hash, fp8 ? &nan_at : NULL);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: reading at byte %llu: %s",
                                model_files_shard(b->files, expert->file[part])->path,
                                (unsigned long long)expert->offset[part], strerror(-rc));
        }
        if (nan_at != UINT64_MAX) {
            return refuse_value(b, at, part, "an FP8 NaN code", nan_at, err);
        }
        if (part % 2 == 1 && size <= TIER_SCAN_BUFFER) {
            uint64_t bad = find_bad_scale(buffer, size, b->header->parts[part].type);
            if (bad != UINT64_MAX) return refuse_value(b, at, part, "no finite number", bad, err);
        }
        bytes += (int64_t)size;
    }
    expert->hash = port_hash_end(&hash);
    return bytes;
}

/* A shard that was written to while it was read would get an index that never matches. */
static int check_unchanged(const struct builder *b, struct base_err *err)
{
    for (uint32_t i = 0; i < b->header->file_count; i++) {
        const struct model_shard *shard = model_files_shard(b->files, i);
        struct stat st;
        if (fstat(b->fds[i], &st) < 0) {
            return base_err_set(err, -errno, "%s: %s", shard->path, strerror(errno));
        }
        int64_t mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        if ((uint64_t)st.st_size != shard->bytes || mtime_ns != shard->mtime_ns) {
            return base_err_set(err, BASE_ESTALE, "%s: was written to while it was being indexed: "
                                "run `tier-pack index %s` again", shard->path, b->dir);
        }
    }
    return 0;
}

static const char *shard_path(void *context, uint32_t file)
{
    return model_files_shard(((struct builder *)context)->files, file)->path;
}

static int build(struct builder *b, unsigned threads, const struct tier_store_progress *progress,
                 struct base_err *err)
{
    int rc = lay_out(b, err);
    if (rc < 0) return rc;
    fill_files(b);
    rc = place_all(b, err);
    if (rc == 0) rc = tier_scan_open(b->fds, b->header->file_count, shard_path, b, err);
    if (rc < 0) return rc;

    struct tier_scan scan = {
        .threads = threads,
        .count = (uint64_t)b->header->layers * b->header->experts,
        .progress = progress,
        .visit = hash_expert,
        .context = b,
    };
    for (unsigned part = 0; part < TIER_PARTS; part++) {
        scan.bytes_total += scan.count * b->part_bytes[part];
    }
    rc = tier_scan_run(&scan, err);
    return rc < 0 ? rc : check_unchanged(b, err);
}

int tier_store_index(const char *dir, const char *path, const struct model_shape *shape,
                     unsigned threads, const struct tier_store_progress *progress,
                     struct base_err *err)
{
    struct builder b = { .dir = dir, .shape = shape };
    struct tier_image image;
    char *index_path = tier_store_path(dir, path);
    /* Before hours of reading. */
    int rc = index_path ? tier_store_file_probe(index_path, err)
                        : base_err_set(err, -ENOMEM, "%s: out of memory", dir);
    if (rc == 0) rc = model_files_open(&b.files, dir, err);
    if (rc == 0) rc = build(&b, threads, progress, err);
    if (rc == 0) {
        b.header->checksum = tier_image_checksum(b.bytes, b.size);
        /* What is written must be readable: the reader's own check says so. */
        rc = tier_image_check(&image, b.bytes, b.size, index_path, err);
    }
    if (rc == 0) rc = tier_store_file_replace(index_path, b.bytes, b.size, err);
    if (b.fds) tier_scan_close(b.fds, b.header ? b.header->file_count : 0);
    model_files_close(b.files);
    free(b.fds);
    free(b.order);
    free(b.bytes);
    free(index_path);
    return rc;
}
