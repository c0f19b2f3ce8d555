/* The bytes of an expert index and of a pack file (docs/formats.md says it in prose).
 *
 *   index:  | header | file 0 .. | expert 0 .. | names |
 *   pack:   | header, one page | record | record | ...        every record begins on a page
 *
 * Little-endian, every struct a multiple of 8 bytes, no pad that is not written as zero. The index
 * holds its own size and an XXH3 of all of it. On-disk structs only; includes nothing of ours.
 */
#ifndef TIERING_FORMAT_H
#define TIERING_FORMAT_H

#include <stdint.h>

#define TIER_INDEX_MAGIC "XPTINDEX"
#define TIER_PACK_MAGIC "XPTPACKS"
#define TIER_STATE_MAGIC "XPTSTATE"

enum {
    TIER_INDEX_VERSION = 1,     /* of a checkpoint */
    TIER_INDEX_VERSION_PACK = 2, /* parts have an order, record hashes are by stretches */
    TIER_PACK_VERSION = 2,
    TIER_STATE_VERSION = 1,
    TIER_FORMAT_PARTS = 6,
    TIER_FORMAT_PAGE = 4096,
    TIER_FORMAT_PART_ALIGN = 64,
    TIER_FORMAT_STRETCHES = 16,
    TIER_FILES_MAX = 65535,
    TIER_COPIES_MAX = 16,
};

/* What an index points into. */
enum { TIER_INDEX_CHECKPOINT = 1, TIER_INDEX_PACK = 2 };

/* What a file of the table is. Data files come first, copy by copy. A pack also names the shards it
 * was made from: they must still be the ones that the other weights are read from. */
enum { TIER_FILE_DATA = 1, TIER_FILE_SOURCE = 2 };

/* Element types on disk; never renumbered. A matrix of I8 holds INT8 weights, one of U8 INT4
 * weights, two a byte (docs/formats.md, "INT8 and INT4 weights"). */
enum {
    TIER_TYPE_NONE,
    TIER_TYPE_F32,
    TIER_TYPE_F16,
    TIER_TYPE_BF16,
    TIER_TYPE_F8_E4M3,
    TIER_TYPE_I8,
    TIER_TYPE_U8,
    TIER_TYPE_I32,
    TIER_TYPE_COUNT
};

/* In what order a matrix lies, its scales with it; never renumbered. */
enum {
    TIER_FORMAT_ROWS,
    TIER_FORMAT_TILES,          /* as CPUs multiply INT8 and INT4 (kernels/tile.h); in packs */
    TIER_FORMAT_WOVEN,          /* as some multiply FP8 (kernels/weave.h); in packs */
};

struct tier_format_part {
    uint32_t type;              /* TIER_TYPE_NONE: the part does not exist, rows = cols = 0 */
    uint32_t rows, cols;
    uint32_t order;             /* version 1: 0 */
};

struct tier_format_header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes;
    uint64_t index_bytes;       /* of the whole file */
    uint64_t checksum;          /* XXH3 of the whole file with these 8 bytes zero */
    uint32_t kind;
    uint32_t layer_first;       /* model layer of moe layer 0 */
    uint32_t layer_step;        /* from one moe layer to the next */
    uint32_t layers;            /* with experts */
    uint32_t experts;           /* per layer */
    uint32_t top_k;
    uint32_t hidden, expert_width;
    uint32_t block_rows, block_cols; /* weights that share a scale, 0 = none */
    uint32_t file_count;
    uint32_t copies;            /* of every record, 1 = no mirror */
    uint32_t data_files;        /* over all copies; a multiple of `copies` */
    uint32_t names_bytes;
    struct tier_format_part parts[TIER_FORMAT_PARTS];
};
_Static_assert(sizeof(struct tier_format_header) == 184, "on-disk size");

struct tier_format_file {
    uint32_t role;
    uint32_t name_at, name_bytes;       /* in the names; no NUL */
    uint32_t zero;
    uint64_t bytes;
    int64_t mtime_ns;           /* of shards that are pointed into; else 0, not compared */
    uint64_t header_hash;       /* XXH3: see tier_store_header_hash */
};
_Static_assert(sizeof(struct tier_format_file) == 40, "on-disk size");

/* Experts in the order (moe layer, expert). A part's bytes follow from its type, rows and cols. */
struct tier_format_expert {
    uint64_t hash;              /* XXH3 of the parts' bytes, each in rows, in order */
    uint64_t record_hash;       /* pack: of the record with its padding, tier_image_stretch; else
                                   0. Version 1: XXH3 of it in one */
    uint64_t offset[TIER_FORMAT_PARTS];
    uint16_t file[TIER_FORMAT_PARTS];   /* within the first copy */
    uint32_t zero;              /* in memory, of a caller's table: which sizes it has */
};
_Static_assert(sizeof(struct tier_format_expert) == 80, "on-disk size");

/* First page of a pack file; the rest of the page is zero. A record holds the parts in order, each
 * at a multiple of TIER_FORMAT_PART_ALIGN, then zeros up to the next page. */
struct tier_format_pack {
    char magic[8];
    uint32_t version;
    uint32_t file, file_count;  /* which stripe of how many: record i is in file i % file_count */
    uint32_t order;             /* of the matrices */
    uint64_t experts_hash;      /* XXH3 over the hashes of all experts: which weights these are */
    uint64_t record_bytes;      /* of each; a multiple of a page */
    uint64_t record_count;      /* in this file */
};
_Static_assert(sizeof(struct tier_format_pack) == 48, "on-disk size");

/* How far an unfinished repack is; beside the first pack file, gone when it is done. Then come the
 * record hashes of all experts, zero for those not yet written. */
struct tier_format_state {
    char magic[8];
    uint32_t version;
    uint32_t zero;
    uint64_t checksum;          /* XXH3 of the whole file with these 8 bytes zero */
    uint64_t plan_hash;         /* XXH3 of what is packed into what: another plan cannot go on */
    uint64_t done, count;       /* records that are on disk for good, and all */
};
_Static_assert(sizeof(struct tier_format_state) == 48, "on-disk size");

#endif
