/* Any bytes as an expert index: refused with a sentence, or every record lies inside its files.
 *
 * The first byte chooses: even, the rest is the index; odd, the rest are changes to a good one,
 * three bytes each (place, new value); with 2 a pack, with 4 of version 2, with all of 14 in tiles.
 * The frame (magic, version, size, checksum) is made right either way, since a fuzzer cannot guess
 * a checksum. */
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "tests/fuzz/fuzz.h"
#include "tiering/store_image.h"

enum { LAYERS = 2, EXPERTS = 3, NAME_BYTES = 5 };
enum { CHANGED = 1, PACKED = 2, VERSION_2 = 4, TILES = 14 };

struct good_index {
    struct tier_format_header header;
    struct tier_format_file file;
    struct tier_format_expert experts[LAYERS * EXPERTS];
    char names[NAME_BYTES + 3];
};

static void good_make(struct good_index *good, unsigned kind)
{
    const bool packed = kind & PACKED, tiles = (kind & TILES) == TILES;
    memset(good, 0, sizeof *good);
    good->header = (struct tier_format_header){
        .kind = packed ? TIER_INDEX_PACK : TIER_INDEX_CHECKPOINT,
        .layer_first = 1, .layer_step = 1, .layers = LAYERS, .experts = EXPERTS, .top_k = 2,
        .hidden = 64, .expert_width = 32, .block_rows = tiles ? 1 : 32, .block_cols = 32,
        .file_count = 1, .copies = 1, .data_files = 1, .names_bytes = sizeof good->names,
    };
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        uint32_t rows = p < 4 ? 32 : 64, cols = p < 4 ? 64 : 32;
        good->header.parts[p] =
            p % 2 == 0 ? (struct tier_format_part){ TIER_TYPE_F8_E4M3, rows, cols, 0 }
                       : (struct tier_format_part){ TIER_TYPE_F32, rows / 32, cols / 32, 0 };
        if (!tiles) continue;
        good->header.parts[p] =
            p % 2 == 0
                ? (struct tier_format_part){ TIER_TYPE_I8, rows, cols, TIER_FORMAT_TILES }
                : (struct tier_format_part){ TIER_TYPE_BF16, rows, cols / 32, TIER_FORMAT_TILES };
    }
    good->file = (struct tier_format_file){ .role = TIER_FILE_DATA, .name_bytes = NAME_BYTES,
                                            .bytes = 100000 };
    memcpy(good->names, "shard", NAME_BYTES);
    for (unsigned i = 0; i < LAYERS * EXPERTS; i++) {
        uint64_t at = 4096 + (uint64_t)i * 8192;
        for (unsigned p = 0; p < TIER_PARTS; p++) {
            at = (at + 63) / 64 * 64;
            good->experts[i].offset[p] = at;
            at += p % 2 == 0 ? 2048 : tiles ? 128 : 8;
        }
    }
}

const char *const fuzz_words[] = { "\xff\xff\xff\xff", "\x01", "\x80", NULL };

/* The good ones: as changes of which there are none, and byte for byte. */
size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    struct good_index good;
    MUST(room >= 1 + sizeof good);
    static const uint8_t kinds[] = { 0, PACKED, PACKED | VERSION_2, TILES };
    enum { KINDS = sizeof kinds };
    if (index >= 2 * KINDS) return 0;
    to[0] = (uint8_t)(kinds[index % KINDS] | (index < KINDS ? CHANGED : 0));
    if (index < KINDS) return 1;
    good_make(&good, to[0]);
    memcpy(to + 1, &good, sizeof good);
    return 1 + sizeof good;
}

static void records_check(const struct tier_image *image)
{
    const struct tier_format_header *h = image->header;
    struct tier_record record;
    for (uint32_t i = 0; i < h->layers && i < 64; i++) {
        for (uint32_t e = 0; e < h->experts && e < 64; e++) {
            uint64_t at = (uint64_t)i * h->experts + e;
            tier_image_record(image, &image->experts[at], at, (i + e) % h->copies, &record);
            uint64_t slot_bytes = tier_image_slot_bytes(&record);
            MUST(record.record_bytes <= slot_bytes);
            MUST(tier_store_stretches(&record) <= TIER_STRETCHES);
            MUST(record.extent_count >= 1 && record.extent_count <= TIER_PARTS);
            for (uint32_t x = 0; x < record.extent_count; x++) {
                const struct tier_extent *extent = &record.extents[x];
                MUST(extent->file < h->data_files);
                MUST(extent->bytes > 0 && extent->bytes <= image->files[extent->file].bytes);
                MUST(extent->offset <= image->files[extent->file].bytes - extent->bytes);
                MUST(extent->slot_offset + tier_extent_read(extent).bytes <= slot_bytes);
            }
            for (unsigned p = 0; p < TIER_PARTS; p++) {
                MUST(record.part_bytes[p] == 0 ||
                     record.part_offset[p] + record.part_bytes[p] <= slot_bytes);
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct good_index good;
    struct tier_image image;
    struct base_err err = { 0 };
    size_t bytes = sizeof good;
    if (size < 1) return 0;
    if (data[0] % 2 == 0) bytes = size - 1 < sizeof good.header ? sizeof good.header : size - 1;
    uint64_t *index = calloc(1, bytes + 8);
    MUST(index != NULL);
    if (data[0] % 2 == 0) {
        memcpy(index, data + 1, size - 1);
    } else {
        good_make(&good, data[0]);
        memcpy(index, &good, sizeof good);
        for (size_t at = 1; at + 3 <= size; at += 3) {
            size_t place = (data[at] | (size_t)data[at + 1] << 8) % sizeof good;
            ((unsigned char *)index)[place] = data[at + 2];
        }
    }
    struct tier_format_header *header = (void *)index;
    memcpy(header->magic, TIER_INDEX_MAGIC, sizeof header->magic);
    header->version = data[0] & VERSION_2 ? TIER_INDEX_VERSION_PACK : TIER_INDEX_VERSION;
    header->header_bytes = sizeof *header;
    header->index_bytes = bytes;
    header->checksum = tier_image_checksum(index, bytes);
    int rc = tier_image_check(&image, index, bytes, "index", &err);
    if (rc == 0) {
        records_check(&image);
    } else {
        MUST(err.code == rc && err.text[0]);
        MUST(size > 1 || data[0] % 2 == 0);     /* the good one, unchanged, is taken */
    }
    free(index);
    return 0;
}
