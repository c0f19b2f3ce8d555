/* An index as it lies in memory: checked once, then read in place. For the store's own files.
 *
 * After tier_image_check every offset, name and count in the image may be trusted; before it none.
 * Pure: no files, no allocation. The bytes belong to the caller and must be 8-aligned.
 */
#ifndef TIERING_STORE_IMAGE_H
#define TIERING_STORE_IMAGE_H

#include "tiering/format.h"
#include "tiering/store.h"

/* Sizes that experts have; an index has one kind, a caller's table any number. */
struct tier_kind {
    uint64_t part_bytes[TIER_PARTS];
    uint64_t bytes;             /* their sum */
};

struct tier_image {
    const struct tier_format_header *header;
    const struct tier_format_file *files;
    const struct tier_format_expert *experts;
    const char *names;
    struct tier_kind kind;      /* of the largest experts; of all where kinds is NULL */
    const struct tier_kind *kinds; /* a table's: [kind_count]; its experts' `zero` says which */
    uint32_t kind_count;
};

static inline const struct tier_kind *tier_image_kind(const struct tier_image *image,
                                                      const struct tier_format_expert *expert)
{
    return image->kinds ? &image->kinds[expert->zero] : &image->kind;
}

/* `name` is used in messages only. 0, BASE_EFORMAT, BASE_EVERSION or BASE_ECHECKSUM. */
int tier_image_check(struct tier_image *image, const void *bytes, size_t size, const char *name,
                     struct base_err *err);

/* Of the expert at this place, `from` as on disk: the image itself need not have the experts. */
void tier_image_record(const struct tier_image *image, const struct tier_format_expert *from,
                       uint64_t at, uint32_t copy, struct tier_record *record);

/* Whether an expert of so many bytes, all its parts, fits a slot at all: BASE_EFORMAT. */
int tier_image_check_bytes(uint64_t bytes, const char *name, struct base_err *err);

/* Bytes of the slot that this record needs: the pages of its extents. */
uint64_t tier_image_slot_bytes(const struct tier_record *record);

/* Bytes of the stretches that a pack's record is hashed by: as many pages each, the last one what
 * is left. The record's hash is XXH3 over the hashes of all. */
uint64_t tier_image_stretch(uint64_t record_bytes);

/* Where the parts lie in a pack's record, from its begin; returns the record's bytes. */
uint64_t tier_image_pack_layout(const uint64_t part_bytes[TIER_PARTS], uint64_t at[TIER_PARTS]);

/* XXH3 of an index whose checksum field holds anything. */
uint64_t tier_image_checksum(const void *bytes, size_t size);

/* Types on disk and in memory; -1 for what an expert cannot have. */
int tier_image_dtype(uint32_t type);
/* Whether the matrix of part p, which is even, may lie in this order. */
bool tier_image_order_fits(const struct tier_format_header *h, unsigned p, uint32_t order);
uint32_t tier_image_type(enum model_dtype dtype);
/* Element size of a type on disk; 0 for none. */
uint32_t tier_image_type_bytes(uint32_t type);
/* Elements of a matrix row of `cols` weights: U8 holds blocks of 64 in 32 bytes. */
uint32_t tier_image_row_elements(uint32_t type, uint32_t cols);
/* Type of the scales that a matrix of this type must have; TIER_TYPE_NONE for none. */
uint32_t tier_image_scale_type(uint32_t type);
/* Whether scales of a matrix of this type may stand for blocks of so many rows and columns. */
bool tier_image_block_fits(uint32_t type, uint32_t block_rows, uint32_t block_cols);

#endif
