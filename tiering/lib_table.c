/* Stores of tables that callers make: experts of any size at any place of any files. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tiering/lib_priv.h"
#include "tiering/store_files.h"
#include "tiering/store_priv.h"
#include "tiering/store_scan.h"

enum { KINDS_MAX = 4096, LAYERS_MAX = 1 << 16, EXPERTS_MAX = 1 << 20, EXPERTS_ALL_MAX = 1 << 24 };
static const uint64_t expert_bytes_max = UINT64_C(2) << 30;

static const char *name_of(const struct tier_lib_table *table)
{
    return table->name ? table->name : "(table of experts)";
}

static int table_check(const struct tier_lib_table *t, struct base_err *err)
{
    uint64_t count = (uint64_t)t->layers * t->experts;
    if (t->layers == 0 || t->experts == 0 || t->layers > LAYERS_MAX || t->experts > EXPERTS_MAX ||
        count > EXPERTS_ALL_MAX) {
        return base_err_set(err, -EINVAL, "%s: %" PRIu32 " layers of %" PRIu32 " experts: there "
                            "can be 1 to %d layers, 1 to %d experts in each, %d in all",
                            name_of(t), t->layers, t->experts, LAYERS_MAX, EXPERTS_MAX,
                            EXPERTS_ALL_MAX);
    }
    if (t->file_count == 0 || t->file_count > TIER_FILES_MAX || !t->files || !t->at) {
        return base_err_set(err, -EINVAL, "%s: %" PRIu32 " files: there should be 1 to %d, and "
                            "neither `files` nor `at` be NULL", name_of(t), t->file_count,
                            TIER_FILES_MAX);
    }
    return 0;
}

static int files_measure(const struct tier_lib_table *t, uint64_t *sizes, struct base_err *err)
{
    for (uint32_t f = 0; f < t->file_count; f++) {
        struct stat st;
        if (!t->files[f]) {
            return base_err_set(err, -EINVAL, "%s: file %" PRIu32 " has no path", name_of(t), f);
        }
        if (stat(t->files[f], &st) < 0) {
            return base_err_set(err, -errno, "%s: %s", t->files[f], strerror(errno));
        }
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
            return base_err_set(err, -EINVAL, "%s: is neither a file nor a block device",
                                t->files[f]);
        }
        /* Of a block device only the reads can tell. */
        sizes[f] = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : UINT64_MAX / 2;
    }
    return 0;
}

static int expert_check(const struct tier_lib_table *t, uint64_t at, const uint64_t *sizes,
                        struct tier_kind *kind, struct base_err *err)
{
    uint32_t layer = (uint32_t)(at / t->experts), index = (uint32_t)(at % t->experts);
    *kind = (struct tier_kind){ .bytes = 0 };
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        const struct tier_lib_piece *piece = &t->at[at].parts[p];
        if (piece->bytes == 0) continue;
        if (piece->file >= t->file_count) {
            return base_err_set(err, -EINVAL, "%s: expert %" PRIu32 " of layer %" PRIu32 ": part "
                                "%u is in file %" PRIu32 ", there are %" PRIu32, name_of(t), index,
                                layer, p, piece->file, t->file_count);
        }
        uint64_t room = sizes[piece->file];
        if (piece->bytes > room || piece->offset > room - piece->bytes) {
            return base_err_set(err, -EINVAL, "%s: expert %" PRIu32 " of layer %" PRIu32 ": part "
                                "%u lies at byte %" PRIu64 " with %" PRIu64 " bytes, but %s has %"
                                PRIu64, name_of(t), index, layer, p, piece->offset, piece->bytes,
                                t->files[piece->file], room);
        }
        kind->part_bytes[p] = piece->bytes;
        kind->bytes += piece->bytes;
        if (kind->bytes > expert_bytes_max) break;
    }
    if (kind->bytes == 0 || kind->bytes > expert_bytes_max) {
        return base_err_set(err, -EINVAL, "%s: expert %" PRIu32 " of layer %" PRIu32 " has %"
                            PRIu64 " bytes; it can have 1 to %" PRIu64, name_of(t), index, layer,
                            kind->bytes, expert_bytes_max);
    }
    return 0;
}

/* The number of that kind; a new one if there is none like it. Neighbours are mostly alike. */
static int kind_number(struct tier_store *store, const struct tier_kind *kind, uint32_t last)
{
    struct tier_image *image = &store->image;
    if (last < image->kind_count && memcmp(&store->kinds[last], kind, sizeof *kind) == 0) {
        return (int)last;
    }
    for (uint32_t k = 0; k < image->kind_count; k++) {
        if (memcmp(&store->kinds[k], kind, sizeof *kind) == 0) return (int)k;
    }
    if (image->kind_count == KINDS_MAX) return -E2BIG;
    if ((image->kind_count & (image->kind_count - 1)) == 0) {
        uint32_t room = image->kind_count ? 2 * image->kind_count : 1;
        struct tier_kind *more = realloc(store->kinds, room * sizeof *more);
        if (!more) return -ENOMEM;
        store->kinds = more;
    }
    store->kinds[image->kind_count] = *kind;
    if (kind->bytes > image->kind.bytes) image->kind = *kind;
    return (int)image->kind_count++;
}

/* An image like an index's, in memory of the store: header, then experts. */
static int image_make(struct tier_store *store, const struct tier_lib_table *t,
                      const uint64_t *sizes, struct base_err *err)
{
    uint64_t count = (uint64_t)t->layers * t->experts;
    struct tier_format_expert *experts;
    struct tier_format_header *header;
    store->size = sizeof *header + count * sizeof *experts;
    store->bytes = calloc(1, store->size);
    if (!store->bytes) return -ENOMEM;
    header = (void *)store->bytes;
    experts = (void *)(header + 1);
    *header = (struct tier_format_header){
        .kind = TIER_INDEX_CHECKPOINT, .layer_step = 1, .layers = t->layers,
        .experts = t->experts, .top_k = 1, .copies = 1,
    };
    store->image = (struct tier_image){ .header = header, .experts = experts };
    int last = 0;
    for (uint64_t at = 0; at < count; at++) {
        struct tier_kind kind;
        int rc = expert_check(t, at, sizes, &kind, err);
        if (rc < 0) return rc;
        last = kind_number(store, &kind, (uint32_t)last);
        if (last == -E2BIG) {
            return base_err_set(err, last, "%s: its experts have more than %d different sizes",
                                name_of(t), KINDS_MAX);
        }
        if (last < 0) return last;
        experts[at].zero = (uint32_t)last;
        experts[at].hash = t->at[at].hash;
        for (unsigned p = 0; p < TIER_PARTS; p++) {
            experts[at].file[p] = (uint16_t)t->at[at].parts[p].file;
            experts[at].offset[p] = t->at[at].parts[p].offset;
        }
    }
    store->image.kinds = store->kinds;
    return 0;
}

static int paths_copy(struct tier_store *store, const struct tier_lib_table *t)
{
    store->paths = calloc(t->file_count, sizeof *store->paths);
    if (!store->paths) return -ENOMEM;
    struct tier_format_header *header = (void *)store->bytes;
    header->file_count = header->data_files = t->file_count;
    for (uint32_t f = 0; f < t->file_count; f++) {
        store->paths[f] = strdup(t->files[f]);
        if (!store->paths[f]) return -ENOMEM;
    }
    return 0;
}

int tier_lib_table_open(struct tier_store **out, const struct tier_lib_table *table, char *why,
                        size_t why_bytes)
{
    struct base_err err = { 0 };
    struct tier_store *store = calloc(1, sizeof *store);
    uint64_t *sizes = NULL;
    *out = NULL;
    int rc = store ? table_check(table, &err) : -ENOMEM;
    if (rc < 0) goto fail;
    store->magic = TIER_STORE_MAGIC;
    for (unsigned p = 0; p < TIER_PARTS; p++) store->parts[p].dtype = MODEL_DTYPE_COUNT;
    store->index_path = strdup(name_of(table));
    sizes = calloc(table->file_count, sizeof *sizes);
    rc = store->index_path && sizes ? files_measure(table, sizes, &err) : -ENOMEM;
    if (rc == 0) rc = image_make(store, table, sizes, &err);
    if (rc == 0) rc = paths_copy(store, table);
    if (rc == 0) rc = tier_store_settle(store);
    if (rc < 0) goto fail;
    free(sizes);
    tier_store_slot_derive(store);
    *out = store;
    return tier_lib_why(0, &err, why, why_bytes);
fail:
    if (rc == -ENOMEM) base_err_set(&err, rc, "%s: out of memory", name_of(table));
    if (store && store->magic == TIER_STORE_MAGIC) {
        tier_store_close(store);
    } else {
        free(store);
    }
    free(sizes);
    return tier_lib_why(rc, &err, why, why_bytes);
}

/* -- hashes ----------------------------------------------------------------------------------- */

struct hasher {
    const struct tier_lib_table *table;
    int *fds;
};

static const char *table_path(void *context, uint32_t file)
{
    return ((struct hasher *)context)->table->files[file];
}

static int64_t hash_expert(void *context, uint64_t item, unsigned char *buffer,
                           struct base_err *err)
{
    struct hasher *h = context;
    struct tier_lib_expert *expert = &h->table->at[item];
    struct port_hash hash;
    int64_t bytes = 0;
    port_hash_begin(&hash);
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        const struct tier_lib_piece *piece = &expert->parts[p];
        if (piece->bytes == 0) continue;
        int rc = tier_scan_range(h->fds[piece->file], piece->offset, piece->bytes, buffer, &hash,
                                 NULL);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: reading at byte %" PRIu64 ": %s",
                                table_path(h, piece->file), piece->offset, strerror(-rc));
        }
        bytes += (int64_t)piece->bytes;
    }
    expert->hash = port_hash_end(&hash);
    return bytes;
}

int tier_lib_table_hash(const struct tier_lib_table *table, unsigned threads, char *why,
                        size_t why_bytes)
{
    struct base_err err = { 0 };
    struct tier_store *store = NULL;
    struct hasher hasher = { .table = table };
    /* The checks of a store are those that reading needs. */
    int rc = tier_lib_table_open(&store, table, why, why_bytes);
    if (rc < 0) return rc;
    tier_store_close(store);
    hasher.fds = calloc(table->file_count, sizeof *hasher.fds);
    if (!hasher.fds) {
        rc = base_err_set(&err, -ENOMEM, "%s: out of memory", name_of(table));
        return tier_lib_why(rc, &err, why, why_bytes);
    }
    rc = tier_scan_open(hasher.fds, table->file_count, table_path, &hasher, &err);
    if (rc == 0) {
        struct tier_scan scan = {
            .threads = threads < 1 ? 1 : threads > 64 ? 64 : threads,
            .count = (uint64_t)table->layers * table->experts,
            .visit = hash_expert,
            .context = &hasher,
        };
        rc = tier_scan_run(&scan, &err);
    }
    tier_scan_close(hasher.fds, table->file_count);
    free(hasher.fds);
    return tier_lib_why(rc, &err, why, why_bytes);
}
