#include "tiering/store_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/must.h"
#include "port/hash.h"
#include "tiering/store_files.h"

static const size_t index_bytes_max = (size_t)4 << 30;

/* Where a file of the table lies: shards in the model's folder, packs beside the index. */
static char *file_path(const struct tier_store *store, const char *dir, uint32_t file)
{
    const struct tier_format_file *entry = &store->image.files[file];
    const char *name = store->image.names + entry->name_at;
    int name_bytes = (int)entry->name_bytes;
    char *path = NULL;
    int rc;
    if (name[0] == '/') {
        rc = asprintf(&path, "%.*s", name_bytes, name);
    } else if (entry->role == TIER_FILE_DATA && store->image.header->kind == TIER_INDEX_PACK) {
        const char *slash = strrchr(store->index_path, '/');
        int folder = slash ? (int)(slash - store->index_path) + 1 : 0;
        rc = asprintf(&path, "%.*s%.*s", folder, store->index_path, name_bytes, name);
    } else {
        rc = asprintf(&path, "%s/%.*s", dir, name_bytes, name);
    }
    return rc < 0 ? NULL : path;
}

static int check_files(struct tier_store *store, const char *dir, struct base_err *err)
{
    const struct tier_format_header *h = store->image.header;
    store->paths = calloc(h->file_count, sizeof *store->paths);
    if (!store->paths) return base_err_set(err, -ENOMEM, "%s: out of memory", store->index_path);
    for (uint32_t i = 0; i < h->file_count; i++) {
        store->paths[i] = file_path(store, dir, i);
        if (!store->paths[i]) {
            return base_err_set(err, -ENOMEM, "%s: out of memory", store->index_path);
        }
        enum tier_file_kind kind = i >= h->data_files            ? TIER_KIND_SOURCE
                                   : h->kind == TIER_INDEX_PACK ? TIER_KIND_PACK
                                                                : TIER_KIND_SHARD;
        int rc = tier_store_file_check(store->paths[i], &store->image.files[i], kind,
                                       store->index_path, err);
        if (rc < 0) return rc;
    }
    return 0;
}

static int check_shape(const struct tier_store *store, const struct model_shape *shape,
                       struct base_err *err)
{
    const struct tier_format_header *h = store->image.header;
    const struct {
        const char *name;
        uint32_t ours, theirs;
    } pairs[] = {
        { "first layer with experts", h->layer_first, model_shape_moe_first(shape) },
        { "step between them", h->layer_step, model_shape_moe_step(shape) },
        { "number of them", h->layers, model_shape_moe_layers(shape) },
        { "experts per layer", h->experts, shape->experts },
        { "experts per token", h->top_k, shape->top_k },
        { "hidden size", h->hidden, shape->hidden },
        { "expert width", h->expert_width, shape->expert_width },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (pairs[i].ours == pairs[i].theirs) continue;
        return base_err_set(err, BASE_EMISMATCH, "%s: was made for another model: its %s is %u, "
                            "config.json says %u; run `tier-pack index` again", store->index_path,
                            pairs[i].name, pairs[i].ours, pairs[i].theirs);
    }
    return 0;
}

int tier_store_settle(struct tier_store *store)
{
    struct tier_image *image = &store->image;
    const struct tier_format_header *h = image->header;
    uint64_t count = (uint64_t)h->layers * h->experts;
    int rc = tier_table_make(&store->table, image->experts, count, h->kind == TIER_INDEX_PACK);
    if (rc < 0) return rc;
    /* Header and files, then what is behind the experts: the names. */
    size_t before = (size_t)((const char *)image->experts - store->bytes);
    size_t gone = count * sizeof *image->experts, names = store->size - before - gone;
    char *rest = malloc(before + names);
    if (!rest) return -ENOMEM;
    memcpy(rest, store->bytes, before);
    memcpy(rest + before, store->bytes + before + gone, names);
    free(store->bytes);
    store->bytes = rest;
    store->size = before + names;
    image->header = (const void *)rest;
    image->files = (const void *)(rest + sizeof *image->header);
    image->experts = NULL;
    image->names = rest + before;
    return 0;
}

void tier_store_expert(const struct tier_store *store, uint64_t at,
                       struct tier_format_expert *expert)
{
    tier_table_expert(&store->table, at, expert);
}

static void record_of(const struct tier_store *store, uint64_t at, uint32_t copy,
                      struct tier_record *record)
{
    struct tier_format_expert expert;
    tier_table_expert(&store->table, at, &expert);
    tier_image_record(&store->image, &expert, at, copy, record);
}

static uint64_t place_of(const struct tier_store *store, uint32_t moe_layer, uint32_t expert)
{
    const struct tier_format_header *h = store->image.header;
    MUST(moe_layer < h->layers && expert < h->experts);
    return (uint64_t)moe_layer * h->experts + expert;
}

void tier_store_slot_derive(struct tier_store *store)
{
    struct tier_record record;
    for (uint64_t at = 0; at < store->table.count; at++) {
        record_of(store, at, 0, &record);
        uint64_t bytes = tier_image_slot_bytes(&record);
        if (bytes > store->slot_bytes) store->slot_bytes = bytes;
    }
}

static void derive(struct tier_store *store)
{
    const struct tier_format_header *h = store->image.header;
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        int dtype = tier_image_dtype(h->parts[p].type);
        store->parts[p].dtype = dtype < 0 ? MODEL_DTYPE_COUNT : (enum model_dtype)dtype;
        store->parts[p].rows = h->parts[p].rows;
        store->parts[p].cols = h->parts[p].cols;
        store->parts[p].order = (enum tier_order)h->parts[p].order;
        if (p % 2 == 1 && h->parts[p].rows > 0) {
            store->parts[p].block_rows = h->block_rows;
            store->parts[p].block_cols = h->block_cols;
        }
    }
    tier_store_slot_derive(store);
}

int tier_store_open(struct tier_store **out, const char *dir, const char *path,
                    const struct model_shape *shape, struct base_err *err)
{
    struct tier_store *store = calloc(1, sizeof *store);
    int rc = -ENOMEM;
    *out = NULL;
    if (!store) goto fail;
    store->magic = TIER_STORE_MAGIC;
    store->index_path = tier_store_path(dir, path);
    if (!store->index_path) goto fail;
    rc = base_file_read(&store->bytes, &store->size, store->index_path, index_bytes_max, err);
    if (rc == -ENOENT && err) {
        snprintf(err->text, sizeof err->text, "%s: there is no expert index: run `tier-pack index "
                 "%s`", store->index_path, dir);
    }
    if (rc < 0) goto fail;
    rc = tier_image_check(&store->image, store->bytes, store->size, store->index_path, err);
    if (rc == 0 && shape) rc = check_shape(store, shape, err);
    if (rc == 0) rc = check_files(store, dir, err);
    if (rc == 0) rc = tier_store_settle(store);
    if (rc < 0) goto fail;
    derive(store);
    *out = store;
    return 0;
fail:
    if (rc == -ENOMEM) base_err_set(err, rc, "%s: out of memory for the expert index", dir);
    tier_store_close(store);
    return rc;
}

void tier_store_close(struct tier_store *store)
{
    if (!store) return;
    MUST_MAGIC(store, TIER_STORE_MAGIC);
    if (store->paths) {
        for (uint32_t i = 0; i < store->image.header->file_count; i++) {
            free(store->paths[i]);
        }
    }
    free(store->paths);
    free(store->kinds);
    tier_table_free(&store->table);
    free(store->bytes);
    free(store->index_path);
    store->magic = 0;
    free(store);
}

const struct tier_image *tier_store_image(const struct tier_store *store)
{
    return &store->image;
}

const char *tier_store_index_path(const struct tier_store *store)
{
    return store->index_path;
}

uint32_t tier_store_files(const struct tier_store *store)
{
    return store->image.header->data_files;
}

const char *tier_store_file_path(const struct tier_store *store, uint32_t file)
{
    MUST(file < store->image.header->file_count);
    return store->paths[file];
}

uint32_t tier_store_layer_first(const struct tier_store *store)
{
    return store->image.header->layer_first;
}

uint32_t tier_store_layers(const struct tier_store *store)
{
    return store->image.header->layers;
}

uint32_t tier_store_layer_of(const struct tier_store *store, uint32_t moe_layer)
{
    return store->image.header->layer_first + moe_layer * store->image.header->layer_step;
}

uint32_t tier_store_experts(const struct tier_store *store)
{
    return store->image.header->experts;
}

void tier_store_share(struct tier_store *store, uint32_t held, uint32_t sharers)
{
    MUST(held > 0 && held <= tier_store_experts(store) && sharers > 0);
    store->held = held;
    store->sharers = sharers;
}

uint32_t tier_store_held(const struct tier_store *store)
{
    return store->held ? store->held : tier_store_experts(store);
}

uint32_t tier_store_sharers(const struct tier_store *store)
{
    return store->sharers ? store->sharers : 1;
}

uint32_t tier_store_top_k(const struct tier_store *store)
{
    return store->image.header->top_k;
}

bool tier_store_packed(const struct tier_store *store)
{
    return store->image.header->kind == TIER_INDEX_PACK;
}

uint32_t tier_store_copies(const struct tier_store *store)
{
    return store->image.header->copies;
}

enum tier_order tier_store_order(const struct tier_store *store)
{
    return store->parts[0].order;
}

const struct tier_part *tier_store_parts(const struct tier_store *store)
{
    return store->parts;
}

void tier_store_record(const struct tier_store *store, uint32_t moe_layer, uint32_t expert,
                       struct tier_record *record)
{
    record_of(store, place_of(store, moe_layer, expert), 0, record);
}

uint64_t tier_store_weights_hash(const struct tier_store *store)
{
    uint32_t experts = tier_store_experts(store), keys = tier_store_layers(store) * experts;
    struct port_hash hash;
    port_hash_begin(&hash);
    for (uint32_t key = 0; key < keys; key++) {
        struct tier_record record;
        tier_store_record(store, key / experts, key % experts, &record);
        port_hash_add(&hash, &record.hash, sizeof record.hash);
    }
    return port_hash_end(&hash);
}

void tier_store_record_copy(const struct tier_store *store, uint32_t moe_layer, uint32_t expert,
                            uint32_t copy, struct tier_record *record)
{
    record_of(store, place_of(store, moe_layer, expert), copy, record);
}

uint64_t tier_store_slot_bytes(const struct tier_store *store)
{
    return store->slot_bytes;
}

uint64_t tier_store_expert_bytes(const struct tier_store *store)
{
    return store->image.kind.bytes;
}

const uint64_t *tier_store_part_bytes(const struct tier_store *store, uint32_t moe_layer,
                                      uint32_t expert)
{
    const struct tier_image *image = &store->image;
    uint64_t at = place_of(store, moe_layer, expert);
    if (!image->kinds) return image->kind.part_bytes;
    return image->kinds[store->table.layouts[store->table.entries[at].layout].kind].part_bytes;
}

const uint64_t *tier_store_kind_bytes(const struct tier_store *store, uint32_t kind)
{
    const struct tier_image *image = &store->image;
    if (kind >= image->kind_count) return kind == 0 ? image->kind.part_bytes : NULL;
    return image->kinds[kind].part_bytes;
}

uint32_t tier_store_stretches(const struct tier_record *record)
{
    if (record->record_bytes == 0) return 0;
    uint64_t stretch = tier_image_stretch(record->record_bytes);
    return (uint32_t)((record->record_bytes + stretch - 1) / stretch);
}

uint64_t tier_store_stretch_hash(const struct tier_record *record, const void *slot,
                                 uint32_t stretch)
{
    uint64_t bytes = tier_image_stretch(record->record_bytes), begin = stretch * bytes;
    MUST(begin < record->record_bytes);
    if (bytes > record->record_bytes - begin) bytes = record->record_bytes - begin;
    return port_hash64((const char *)slot + begin, bytes);
}

int tier_store_stretches_check(const struct tier_record *record, const uint64_t *hashes)
{
    uint64_t hash = port_hash64(hashes, tier_store_stretches(record) * sizeof *hashes);
    return hash == record->record_hash ? 0 : BASE_ECHECKSUM;
}

static int check_parts(const struct tier_record *record, const void *slot,
                       void (*between)(void *context), void *context)
{
    const uint64_t piece = UINT64_C(1) << 20;       /* some 60 us of XXH3 */
    struct port_hash hash;
    port_hash_begin(&hash);
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        const char *part = (const char *)slot + record->part_offset[p];
        for (uint64_t left = record->part_bytes[p], size; left > 0; left -= size, part += size) {
            size = left < piece ? left : piece;
            port_hash_add(&hash, part, size);
            if (between) between(context);
        }
    }
    return port_hash_end(&hash) == record->hash ? 0 : BASE_ECHECKSUM;
}

int tier_store_check(const struct tier_record *record, const void *slot,
                     void (*between)(void *context), void *context)
{
    uint64_t hashes[TIER_STRETCHES];
    const uint32_t count = tier_store_stretches(record);
    if (count == 0) return check_parts(record, slot, between, context);
    for (uint32_t i = 0; i < count; i++) {
        hashes[i] = tier_store_stretch_hash(record, slot, i);
        if (between) between(context);
    }
    return tier_store_stretches_check(record, hashes);
}
