/* The expert store: where each expert's bytes lie on disk, and what they must hash to.
 *
 * An index (docs/formats.md) maps (layer, expert, rung) to extents and one XXH3 over exactly the
 * expert's bytes in part order. It points into the checkpoint's own safetensors shards (no second
 * copy), or into packed files made by `tier-pack repack`. It records size, mtime and header hash of
 * each file it points into; opening it against a changed file is BASE_ESTALE.
 *
 *   parts of an expert, always in this order (a part of 0 bytes does not exist):
 *     gate, gate scales, up, up scales, down, down scales
 *
 *   slot with direct IO: each extent is read at 4 KiB granularity and lands where its first byte
 *   keeps its offset modulo 4096:
 *
 *     |pad| gate .......|pad|pad| gate scales |pad| ...
 *     ^ 4096-aligned        ^ 4096-aligned
 *
 * Parts that lie next to each other in a file (in whatever order) share one extent. Each part
 * begins at a multiple of its element's size. Immutable after open; any thread. Memory: 24 bytes an
 * expert, 32 in a pack (store_table.h), while open reads the index 80 more.
 */
#ifndef TIERING_STORE_H
#define TIERING_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/expert.h"
#include "model/safetensors.h"
#include "model/shape.h"
#include "tiering/libtiering.h"

enum { TIER_PAGE = 4096 };

struct tier_extent {
    uint32_t file;              /* index into the store's files */
    uint64_t offset;
    uint64_t bytes;
    uint64_t slot_offset;       /* 4096-aligned place in the slot where its first page lands */
};

/* The read that brings an extent under direct IO: whole pages. The file may end inside the last
 * one, so at least `need` bytes must come back. It lands at slot + extent->slot_offset. */
struct tier_extent_read {
    uint64_t offset, bytes, need;
};

static inline struct tier_extent_read tier_extent_read(const struct tier_extent *extent)
{
    uint64_t first = extent->offset & ~(uint64_t)(TIER_PAGE - 1);
    uint64_t need = extent->offset + extent->bytes - first;
    uint64_t bytes = (need + TIER_PAGE - 1) & ~(uint64_t)(TIER_PAGE - 1);
    return (struct tier_extent_read){ first, bytes, need };
}

/* One expert as the store knows it. */
struct tier_record {
    uint32_t layer, index;
    uint32_t extent_count;                  /* 1..6 */
    struct tier_extent extents[TIER_PARTS];
    uint64_t part_offset[TIER_PARTS];       /* where each part begins in the slot */
    uint64_t part_bytes[TIER_PARTS];
    uint64_t bytes;                         /* sum of the parts */
    uint64_t hash;                          /* XXH3-64 over the parts, in rows, in order */
    /* Of a pack: the whole record, which begins where the slot does, padding and all, and its
     * checksum by stretches. 0: the parts have to match `hash`. */
    uint64_t record_bytes, record_hash;
};

/* The order of a matrix's weights in memory, and that of its scales. */
enum tier_order {
    TIER_ORDER_ROWS,
    TIER_ORDER_TILES,           /* kernels/tile.h: INT8 and INT4 as the CPU multiplies them */
    TIER_ORDER_WOVEN,           /* kernels/weave.h: FP8 as the CPU multiplies it by f32 */
};

/* Shape and type of one part, the same for every expert of the store; `cols` counts elements: a
 * matrix of MODEL_U8 (INT4 weights) has fewer than it has weights in a row. */
struct tier_part {
    enum model_dtype dtype;
    uint32_t rows, cols;
    uint32_t block_rows, block_cols; /* of scales: weights that share one; else 0 */
    enum tier_order order;
};

/* Opens an index and checks it against the files it points into. `path` may be NULL or empty: the
 * default place DIR/expertier.index. `shape` may be NULL: not compared with a model then. 0;
 * -ENOENT when there is none; BASE_EFORMAT, BASE_EVERSION, BASE_ECHECKSUM, BASE_ESTALE,
 * BASE_EMISMATCH with a sentence. */
int tier_store_open(struct tier_store **out, const char *dir, const char *path,
                    const struct model_shape *shape, struct base_err *err);

/* Makes the index of a checkpoint: finds the experts' tensors, reads every byte once for its hash,
 * writes temp + fsync + rename. FP8 NaN codes in an expert are refused by name. `progress` may be
 * NULL; its calls come from one thread at a time, but not always the same; `stop` returns non-zero
 * to stop (-ECANCELED, nothing left behind). */
struct tier_store_progress {
    void (*report)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    int (*stop)(void *context);
    void *context;
};
int tier_store_index(const char *dir, const char *path, const struct model_shape *shape,
                     unsigned threads, const struct tier_store_progress *progress,
                     struct base_err *err);

/* Packs: every expert one record that begins on a page and is read at once (docs/formats.md). */
enum tier_pack_mode {
    TIER_PACK_STRIPE,           /* experts dealt out over the folders: their bandwidths add up */
    TIER_PACK_MIRROR,           /* each folder has all: a bad record is read from another one */
};

struct tier_pack_options {
    const char *const *dirs;    /* where the pack files go; the index goes into the first */
    unsigned dir_count;
    enum tier_pack_mode mode;
    unsigned threads;
    uint64_t sync_bytes;        /* progress is made durable this often; 0 = 256 MiB */
    bool restart;               /* throw away what an earlier run left */
    /* What the matrices become. Other than rows: INT8 and INT4 experts only, and `arrange` makes
     * it of rows, in place, on any thread and several at once; 0 or a negative code. */
    enum tier_order order;
    int (*arrange)(void *context, void *const parts[TIER_PARTS]);
    void *arrange_context;
};

/* Packs a checkpoint's experts, checking each against its hash. Killed at any moment, it goes on
 * where it was when called again with the same folders, and ends with the same bytes. The index is
 * written last. 0 also when the pack is there already; -ENOSPC before anything is written when the
 * folders lack room. */
int tier_store_repack(const struct tier_store *source, const struct tier_pack_options *options,
                      const struct tier_store_progress *progress, struct base_err *err);

const char *tier_store_index_path(const struct tier_store *store);
uint32_t tier_store_files(const struct tier_store *store);
const char *tier_store_file_path(const struct tier_store *store, uint32_t file);
uint32_t tier_store_layer_first(const struct tier_store *store);    /* first layer with experts */
uint32_t tier_store_layer_of(const struct tier_store *store,
                             uint32_t moe_layer); /* model's layer */
uint32_t tier_store_top_k(const struct tier_store *store);
/* For one of several processes that serve the model together: it is asked for `held` experts of a
 * layer at most, and so many processes of this machine divide the bytes of tiers.dram.capacity.
 * Shares are then of those experts. Before any footprint is made or tiers are opened. */
void tier_store_share(struct tier_store *store, uint32_t held, uint32_t sharers);
uint32_t tier_store_held(const struct tier_store *store);       /* all, if nothing was said */
uint32_t tier_store_sharers(const struct tier_store *store);    /* 1, likewise */
bool tier_store_packed(const struct tier_store *store); /* into pack files, not the checkpoint */
const struct tier_part *tier_store_parts(const struct tier_store *store);   /* [TIER_PARTS] */
const char *tier_store_part_name(unsigned part);    /* "gate", "gate scales", ... */
enum tier_order tier_store_order(const struct tier_store *store);   /* of all matrices */
const char *tier_store_order_name(enum tier_order order);           /* "rows", "tiles", "woven" */

/* Record of an expert; layer counts from 0 over the layers WITH experts ("moe layer"). Fills the
 * caller's struct: records are stored compactly. */
void tier_store_record(const struct tier_store *store, uint32_t moe_layer, uint32_t expert,
                       struct tier_record *record);

/* XXH3 of the checksums of all experts in order: another layout of the weights has the same. */
uint64_t tier_store_weights_hash(const struct tier_store *store);

/* Mirrors: every record lies `copies` times (1 = no mirror), at the same offsets of other files.
 * The plain record is copy 0. */
uint32_t tier_store_copies(const struct tier_store *store);
void tier_store_record_copy(const struct tier_store *store, uint32_t moe_layer, uint32_t expert,
                            uint32_t copy, struct tier_record *record);

/* Bytes of a slot that can hold any expert of the store, pads included; a multiple of 4096. */
uint64_t tier_store_slot_bytes(const struct tier_store *store);
/* [TIER_PARTS]: the sizes of each kind of expert there is, from 0; NULL past the last. */
const uint64_t *tier_store_kind_bytes(const struct tier_store *store, uint32_t kind);
/* Largest expert without pads. */
uint64_t tier_store_expert_bytes(const struct tier_store *store);

/* Checks what lies in a slot against the record's checksum: 0 or BASE_ECHECKSUM. `between` is
 * called after each MiB or stretch; NULL: nothing is. */
int tier_store_check(const struct tier_record *record, const void *slot,
                     void (*between)(void *context), void *context);

/* The same by stretches, which several threads may take: at most TIER_STRETCHES, 0 where the record
 * has but one checksum for all of it. The hashes of all, in order, are what is checked. */
enum { TIER_STRETCHES = 16 };
uint32_t tier_store_stretches(const struct tier_record *record);
uint64_t tier_store_stretch_hash(const struct tier_record *record, const void *slot,
                                 uint32_t stretch);
int tier_store_stretches_check(const struct tier_record *record, const uint64_t *hashes);

/* Reads every expert back and compares hashes (tier-pack verify). Bad ones are reported one by one;
 * returns their number, or a negative code when it could not run. */
int64_t tier_store_verify(const struct tier_store *store,
                          void (*bad)(void *context, uint32_t moe_layer, uint32_t expert,
                                      const char *why),
                          void *context, const struct tier_store_progress *progress,
                          struct base_err *err);

#endif
