/* Files round the store: reading an index, checking what it points into, replacing a file whole.
 * For the store's own files. */
#ifndef TIERING_STORE_FILES_H
#define TIERING_STORE_FILES_H

#include "tiering/format.h"
#include "tiering/store.h"

struct tier_image;
/* Without its experts: those are had one by one. */
const struct tier_image *tier_store_image(const struct tier_store *store);
void tier_store_expert(const struct tier_store *store, uint64_t at,
                       struct tier_format_expert *expert);

/* malloc'ed: `path`, or DIR/expertier.index where it is NULL or empty. */
char *tier_store_path(const char *dir, const char *path);

/* Writes a file so that it is there whole or not at all: temp file, fsync, rename, fsync of the
 * folder. */
int tier_store_file_replace(const char *path, const void *bytes, size_t size,
                            struct base_err *err);

/* Whether that can be done to `path` at all, for whoever has much to do before: the same sentence.
 * Leaves nothing behind. */
int tier_store_file_probe(const char *path, struct base_err *err);

/* fsync of the folder that holds `path`. 0 or -errno. */
int tier_store_folder_sync(const char *path);

/* How a file of the table is recognised. */
enum tier_file_kind {
    TIER_KIND_SHARD,            /* size, mtime, header */
    TIER_KIND_PACK,             /* size, first page: packs may be copied */
    TIER_KIND_SOURCE,           /* size, header, a few pages of weights: so may checkpoints */
};

/* Compares a file with its line of the table; BASE_ESTALE names the file, what differs, and what to
 * run. */
int tier_store_file_check(const char *path, const struct tier_format_file *entry,
                          enum tier_file_kind kind, const char *index_path, struct base_err *err);

/* XXH3 of what identifies the file: a safetensors header with its 8 length bytes; for a source
 * also the first page of each quarter of the file, since all checkpoints of one architecture have
 * the same header; of a pack the first page. -ENODATA where the file ends too early. */
int tier_store_header_hash(int fd, uint64_t file_bytes, enum tier_file_kind kind, uint64_t *hash);

/* pread until all is there: 0, -errno, or -ENODATA where the file ends. */
int tier_store_pread(int fd, void *to, uint64_t bytes, uint64_t offset);

#endif
