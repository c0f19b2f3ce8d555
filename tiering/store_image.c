#include "tiering/store_image.h"

#include <string.h>

#include "base/must.h"
#include "port/hash.h"

enum {
    LAYERS_MAX = 4096,
    EXPERTS_MAX = 65536,        /* per layer */
    EXPERTS_ALL_MAX = 1 << 24,
    DIM_MAX = 1 << 20,
};
static const uint64_t file_bytes_max = UINT64_C(1) << 50;
/* Places in a slot have 32 bits, and each part may touch two pages more than it has. */
static const uint64_t expert_bytes_max = UINT32_MAX - 2 * TIER_PARTS * TIER_PAGE;

_Static_assert((int)TIER_FORMAT_PARTS == (int)TIER_PARTS, "the format's parts are the store's");
_Static_assert((int)TIER_FORMAT_PAGE == (int)TIER_PAGE, "the format's pages are the store's");
_Static_assert((int)TIER_FORMAT_STRETCHES == (int)TIER_STRETCHES, "the format's are the store's");
_Static_assert((int)TIER_FORMAT_ROWS == (int)TIER_ORDER_ROWS &&
                   (int)TIER_FORMAT_TILES == (int)TIER_ORDER_TILES &&
                   (int)TIER_FORMAT_WOVEN == (int)TIER_ORDER_WOVEN,
               "the format's orders are the store's");

static const struct {
    int dtype;
    uint32_t bytes;
} types[TIER_TYPE_COUNT] = {
    [TIER_TYPE_NONE] = { -1, 0 },
    [TIER_TYPE_F32] = { MODEL_F32, 4 },
    [TIER_TYPE_F16] = { MODEL_F16, 2 },
    [TIER_TYPE_BF16] = { MODEL_BF16, 2 },
    [TIER_TYPE_F8_E4M3] = { MODEL_F8_E4M3, 1 },
    [TIER_TYPE_I8] = { MODEL_I8, 1 },
    [TIER_TYPE_U8] = { MODEL_U8, 1 },
    [TIER_TYPE_I32] = { MODEL_I32, 4 },
};

int tier_image_dtype(uint32_t type)
{
    return type < TIER_TYPE_COUNT ? types[type].dtype : -1;
}

uint32_t tier_image_type(enum model_dtype dtype)
{
    for (uint32_t type = TIER_TYPE_F32; type < TIER_TYPE_COUNT; type++) {
        if (types[type].dtype == (int)dtype) return type;
    }
    return TIER_TYPE_NONE;
}

uint32_t tier_image_type_bytes(uint32_t type)
{
    return type < TIER_TYPE_COUNT ? types[type].bytes : 0;
}

uint32_t tier_image_row_elements(uint32_t type, uint32_t cols)
{
    return type == TIER_TYPE_U8 ? (cols + 63) / 64 * 32 : cols;
}

uint32_t tier_image_scale_type(uint32_t type)
{
    switch (type) {
    case TIER_TYPE_F8_E4M3:
        return TIER_TYPE_F32;
    case TIER_TYPE_I8:
    case TIER_TYPE_U8:
        return TIER_TYPE_BF16;
    default:
        return TIER_TYPE_NONE;
    }
}

bool tier_image_block_fits(uint32_t type, uint32_t block_rows, uint32_t block_cols)
{
    if (type == TIER_TYPE_I8 || type == TIER_TYPE_U8)
        return block_rows == 1 && (block_cols == 32 || block_cols == 128);
    return block_rows > 0 && block_cols > 0;
}

bool tier_image_order_fits(const struct tier_format_header *h, unsigned p, uint32_t order)
{
    enum { CUT = 128 }; /* columns of a woven row that share a scale (kernels/weave.h) */
    const struct tier_format_part *matrix = &h->parts[p];
    switch (order) {
    case TIER_FORMAT_ROWS:
        return true;
    case TIER_FORMAT_TILES:
        return matrix->type == TIER_TYPE_I8 || matrix->type == TIER_TYPE_U8;
    case TIER_FORMAT_WOVEN:
        return matrix->type == TIER_TYPE_F8_E4M3 && matrix->cols > 0 && matrix->cols % CUT == 0 &&
               h->parts[p + 1].type != TIER_TYPE_NONE && h->block_rows > 0 && h->block_cols == CUT;
    default:
        return false;
    }
}

const char *tier_store_order_name(enum tier_order order)
{
    static const char *const names[] = { "rows", "tiles", "woven" };
    MUST((unsigned)order < sizeof names / sizeof *names);
    return names[order];
}

const char *tier_store_part_name(unsigned part)
{
    static const char *const names[] = { "gate", "gate scales", "up",
                                         "up scales", "down", "down scales" };
    MUST(part < TIER_PARTS);
    return names[part];
}

uint64_t tier_image_checksum(const void *bytes, size_t size)
{
    static const unsigned char zeros[8];
    size_t at = offsetof(struct tier_format_header, checksum);
    struct port_hash hash;
    MUST(size >= sizeof(struct tier_format_header));
    port_hash_begin(&hash);
    port_hash_add(&hash, bytes, at);
    port_hash_add(&hash, zeros, sizeof zeros);
    port_hash_add(&hash, (const char *)bytes + at + sizeof zeros, size - at - sizeof zeros);
    return port_hash_end(&hash);
}

uint64_t tier_image_stretch(uint64_t record_bytes)
{
    uint64_t pages = (record_bytes + TIER_PAGE - 1) / TIER_PAGE;
    return (pages + TIER_FORMAT_STRETCHES - 1) / TIER_FORMAT_STRETCHES * TIER_PAGE;
}

uint64_t tier_image_pack_layout(const uint64_t part_bytes[TIER_PARTS], uint64_t at[TIER_PARTS])
{
    uint64_t end = 0;
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        end = (end + TIER_FORMAT_PART_ALIGN - 1) / TIER_FORMAT_PART_ALIGN * TIER_FORMAT_PART_ALIGN;
        at[p] = end;
        end += part_bytes[p];
    }
    return (end + TIER_PAGE - 1) / TIER_PAGE * TIER_PAGE;
}

/* The frame: magic, version, size and checksum. */
static int check_frame(const struct tier_format_header *header, size_t size, const char *name,
                       struct base_err *err)
{
    if (size < sizeof *header) {
        return base_err_set(err, BASE_EFORMAT, "%s: is %zu bytes long, an index has at least %zu",
                            name, size, sizeof *header);
    }
    if (memcmp(header->magic, TIER_INDEX_MAGIC, sizeof header->magic) != 0) {
        return base_err_set(err, BASE_EFORMAT, "%s: is no expert index: it does not begin with %s",
                            name, TIER_INDEX_MAGIC);
    }
    if (header->version < TIER_INDEX_VERSION || header->version > TIER_INDEX_VERSION_PACK ||
        header->header_bytes != sizeof *header) {
        return base_err_set(err, BASE_EVERSION, "%s: has index version %u, this build reads %u "
                            "and, of packs, %u: run `tier-pack %s` again", name, header->version,
                            TIER_INDEX_VERSION, TIER_INDEX_VERSION_PACK,
                            header->kind == TIER_INDEX_PACK ? "repack" : "index");
    }
    if (header->index_bytes != size) {
        return base_err_set(err, BASE_EFORMAT, "%s: is %zu bytes long, its header says %llu: it "
                            "was cut or grew; run `tier-pack index` again", name, size,
                            (unsigned long long)header->index_bytes);
    }
    uint64_t checksum = tier_image_checksum(header, size);
    if (checksum != header->checksum) {
        return base_err_set(err, BASE_ECHECKSUM, "%s: its checksum is %016llx, its header says "
                            "%016llx: the file is damaged; run `tier-pack index` again", name,
                            (unsigned long long)checksum, (unsigned long long)header->checksum);
    }
    return 0;
}

struct limit {
    const char *name;
    uint32_t value, min, max;
};

static int check_counts(const struct tier_format_header *h, size_t size, const char *name,
                        struct base_err *err)
{
    const struct limit limits[] = {
        { "kind", h->kind, TIER_INDEX_CHECKPOINT, TIER_INDEX_PACK },
        { "layer_first", h->layer_first, 0, LAYERS_MAX },
        { "layer_step", h->layer_step, 1, LAYERS_MAX },
        { "layers", h->layers, 1, LAYERS_MAX },
        { "experts", h->experts, 1, EXPERTS_MAX },
        { "top_k", h->top_k, 1, h->experts },
        { "hidden", h->hidden, 1, DIM_MAX },
        { "expert_width", h->expert_width, 1, DIM_MAX },
        { "block_rows", h->block_rows, 0, DIM_MAX },
        { "block_cols", h->block_cols, 0, DIM_MAX },
        { "file_count", h->file_count, 1, TIER_FILES_MAX },
        { "copies", h->copies, 1, h->kind == TIER_INDEX_PACK ? TIER_COPIES_MAX : 1 },
        { "data_files", h->data_files, 1, h->file_count },
    };
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (limits[i].value < limits[i].min || limits[i].value > limits[i].max) {
            return base_err_set(err, BASE_EFORMAT, "%s: header field %s is %u, it can be %u to %u",
                                name, limits[i].name, limits[i].value, limits[i].min,
                                limits[i].max);
        }
    }
    if (h->data_files % h->copies != 0) {
        return base_err_set(err, BASE_EFORMAT, "%s: %u data files do not make %u equal copies",
                            name, h->data_files, h->copies);
    }
    uint64_t experts = (uint64_t)h->layers * h->experts;
    if (experts > EXPERTS_ALL_MAX) {
        return base_err_set(err, BASE_EFORMAT, "%s: says it has %llu experts, at most %d are "
                            "possible", name, (unsigned long long)experts, EXPERTS_ALL_MAX);
    }
    uint64_t wanted = sizeof *h + h->file_count * sizeof(struct tier_format_file) +
                      experts * sizeof(struct tier_format_expert) + h->names_bytes;
    if (wanted != size) {
        return base_err_set(err, BASE_EFORMAT, "%s: its tables take %llu bytes, the file has %zu",
                            name, (unsigned long long)wanted, size);
    }
    return 0;
}

/* All matrices have one order, scales that of theirs. */
static int check_order(const struct tier_format_header *h, const char *name, struct base_err *err)
{
    const uint32_t order = h->parts[0].order;
    const bool may = h->version >= TIER_INDEX_VERSION_PACK && h->kind == TIER_INDEX_PACK;
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        if (h->parts[p].order == order && (order == TIER_FORMAT_ROWS || may) &&
            tier_image_order_fits(h, p & ~1u, order)) {
            continue;
        }
        return base_err_set(err, BASE_EFORMAT, "%s: part %s of type %u has order %u", name,
                            tier_store_part_name(p), h->parts[p].type, h->parts[p].order);
    }
    return 0;
}

static uint32_t blocks(uint32_t size, uint32_t block)
{
    return block ? (size + block - 1) / block : 0;
}

int tier_image_check_bytes(uint64_t bytes, const char *name, struct base_err *err)
{
    if (bytes <= expert_bytes_max) return 0;
    return base_err_set(err, BASE_EFORMAT, "%s: an expert has %llu bytes, which is more than a "
                        "slot can have: %llu, a little less than 4 GiB", name,
                        (unsigned long long)bytes, (unsigned long long)expert_bytes_max);
}

static int check_parts(struct tier_image *image, const char *name, struct base_err *err)
{
    const struct tier_format_header *h = image->header;
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        const struct tier_format_part *part = &h->parts[p];
        const struct tier_format_part *matrix = &h->parts[p & ~1u];
        bool down = p >= 4;
        uint32_t rows = down ? h->hidden : h->expert_width;
        uint32_t cols = down ? h->expert_width : h->hidden;
        bool good;
        if (p % 2 == 0) {
            good = tier_image_type_bytes(part->type) > 0;
            cols = tier_image_row_elements(part->type, cols);
        } else if (part->type == TIER_TYPE_NONE) {
            good = tier_image_scale_type(matrix->type) == TIER_TYPE_NONE;
            rows = cols = 0;
        } else {
            good = part->type == tier_image_scale_type(matrix->type) &&
                   tier_image_block_fits(matrix->type, h->block_rows, h->block_cols);
            rows = blocks(rows, h->block_rows);
            cols = blocks(cols, h->block_cols);
        }
        if (!good || part->rows != rows || part->cols != cols) {
            return base_err_set(err, BASE_EFORMAT, "%s: part %s has type %u and is %u x %u; a "
                                "model of %u x %u experts wants %u x %u", name,
                                tier_store_part_name(p), part->type, part->rows, part->cols,
                                h->expert_width, h->hidden, rows, cols);
        }
        image->kind.part_bytes[p] =
            (uint64_t)part->rows * part->cols * tier_image_type_bytes(part->type);
        image->kind.bytes += image->kind.part_bytes[p];
    }
    return tier_image_check_bytes(image->kind.bytes, name, err);
}

static bool name_is_good(const char *text, uint32_t size, bool may_be_path)
{
    if (size == 0 || size > 4000 || memchr(text, '\0', size)) return false;
    if (text[0] == '/') return may_be_path;
    if (memchr(text, '/', size)) return false;
    return !(size == 1 && text[0] == '.') && !(size == 2 && memcmp(text, "..", 2) == 0);
}

static int check_files(const struct tier_image *image, const char *name, struct base_err *err)
{
    const struct tier_format_header *h = image->header;
    uint32_t per_copy = h->data_files / h->copies;
    for (uint32_t i = 0; i < h->file_count; i++) {
        const struct tier_format_file *file = &image->files[i];
        bool data = i < h->data_files;
        if (file->role != (data ? TIER_FILE_DATA : TIER_FILE_SOURCE)) {
            return base_err_set(err, BASE_EFORMAT, "%s: file %u has role %u, it should be %u", name,
                                i, file->role, data ? TIER_FILE_DATA : TIER_FILE_SOURCE);
        }
        bool inside = file->name_at <= h->names_bytes &&
                      file->name_bytes <= h->names_bytes - file->name_at;
        bool may_be_path = data && h->kind == TIER_INDEX_PACK;
        if (!inside || !name_is_good(image->names + file->name_at, file->name_bytes, may_be_path)) {
            return base_err_set(err, BASE_EFORMAT, "%s: the name of file %u is no plain file name",
                                name, i);
        }
        if (file->bytes > file_bytes_max) {
            return base_err_set(err, BASE_EFORMAT, "%s: says file %u has %llu bytes", name, i,
                                (unsigned long long)file->bytes);
        }
        if (data && file->bytes != image->files[i % per_copy].bytes) {
            return base_err_set(err, BASE_EFORMAT, "%s: file %u is a copy of file %u but differs "
                                "in size", name, i, i % per_copy);
        }
    }
    return 0;
}

static int check_expert(const struct tier_image *image, uint64_t at, const char *name,
                        struct base_err *err)
{
    const struct tier_format_header *h = image->header;
    const struct tier_format_expert *expert = &image->experts[at];
    unsigned layer = (unsigned)(at / h->experts), index = (unsigned)(at % h->experts);
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        uint64_t bytes = image->kind.part_bytes[p];
        uint32_t grain = tier_image_type_bytes(h->parts[p].type);
        if (bytes == 0) continue;
        if (expert->file[p] >= h->data_files / h->copies) {
            return base_err_set(err, BASE_EFORMAT, "%s: expert %u of moe layer %u: %s is in file "
                                "%u, there are %u", name, index, layer, tier_store_part_name(p),
                                expert->file[p], h->data_files / h->copies);
        }
        uint64_t room = image->files[expert->file[p]].bytes;
        if (bytes > room || expert->offset[p] > room - bytes || expert->offset[p] % grain != 0) {
            return base_err_set(err, BASE_EFORMAT, "%s: expert %u of moe layer %u: %s lies at %llu "
                                "with %llu bytes, its file has %llu", name, index, layer,
                                tier_store_part_name(p), (unsigned long long)expert->offset[p],
                                (unsigned long long)bytes, (unsigned long long)room);
        }
    }
    return 0;
}

/* In a pack, an expert is one record that begins on a page, its parts where the layout says. */
static int check_packed(const struct tier_image *image, uint64_t at, const char *name,
                        struct base_err *err)
{
    const struct tier_format_header *h = image->header;
    const struct tier_format_expert *expert = &image->experts[at];
    uint64_t layout[TIER_PARTS];
    uint64_t record_bytes = tier_image_pack_layout(image->kind.part_bytes, layout);
    uint64_t start = expert->offset[0];
    bool good = start % TIER_PAGE == 0 &&
                record_bytes <= image->files[expert->file[0]].bytes - start;
    for (unsigned p = 1; p < TIER_PARTS; p++) {
        if (image->kind.part_bytes[p] == 0) continue;
        good = good && expert->file[p] == expert->file[0] &&
               expert->offset[p] - start == layout[p];
    }
    if (good) return 0;
    return base_err_set(err, BASE_EFORMAT, "%s: expert %u of moe layer %u is no whole record of "
                        "%llu bytes that begins on a page", name, (unsigned)(at % h->experts),
                        (unsigned)(at / h->experts), (unsigned long long)record_bytes);
}

int tier_image_check(struct tier_image *image, const void *bytes, size_t size, const char *name,
                     struct base_err *err)
{
    const struct tier_format_header *h = bytes;
    MUST((uintptr_t)bytes % 8 == 0);
    memset(image, 0, sizeof *image);
    int rc = check_frame(h, size, name, err);
    if (rc == 0) rc = check_counts(h, size, name, err);
    if (rc < 0) return rc;
    image->header = h;
    image->files = (const void *)(h + 1);
    image->experts = (const void *)(image->files + h->file_count);
    uint64_t experts = (uint64_t)h->layers * h->experts;
    image->names = (const void *)(image->experts + experts);
    rc = check_parts(image, name, err);
    if (rc == 0) rc = check_order(h, name, err);
    if (rc == 0) rc = check_files(image, name, err);
    for (uint64_t i = 0; rc == 0 && i < experts; i++) {
        rc = check_expert(image, i, name, err);
        if (rc == 0 && h->kind == TIER_INDEX_PACK) rc = check_packed(image, i, name, err);
    }
    return rc;
}

/* Parts that exist, by place in the files. Returns their number. */
static unsigned order_parts(const struct tier_kind *kind, const struct tier_format_expert *expert,
                            unsigned order[TIER_PARTS])
{
    unsigned count = 0;
    for (unsigned p = 0; p < TIER_PARTS; p++) {
        if (kind->part_bytes[p] == 0) continue;
        unsigned at = count++;
        while (at > 0) {
            unsigned other = order[at - 1];
            bool before = expert->file[p] != expert->file[other]
                              ? expert->file[p] < expert->file[other]
                              : expert->offset[p] < expert->offset[other];
            if (!before) break;
            order[at--] = other;
        }
        order[at] = p;
    }
    return count;
}

static uint64_t page_of(uint64_t offset)
{
    return offset / TIER_PAGE;
}

/* Pages an extent touches, in bytes. */
static uint64_t span_of(const struct tier_extent *extent)
{
    return (page_of(extent->offset + extent->bytes - 1) - page_of(extent->offset) + 1) * TIER_PAGE;
}

uint64_t tier_image_slot_bytes(const struct tier_record *record)
{
    const struct tier_extent *last = &record->extents[record->extent_count - 1];
    return last->slot_offset + span_of(last);
}

void tier_image_record(const struct tier_image *image, const struct tier_format_expert *from,
                       uint64_t at, uint32_t copy, struct tier_record *record)
{
    const struct tier_format_header *h = image->header;
    uint32_t moe_layer = (uint32_t)(at / h->experts), expert = (uint32_t)(at % h->experts);
    MUST(moe_layer < h->layers && copy < h->copies);
    const struct tier_kind *kind = tier_image_kind(image, from);
    uint32_t first_file = copy * (h->data_files / h->copies);
    unsigned order[TIER_PARTS];
    unsigned count = order_parts(kind, from, order);
    unsigned extents = 0;

    *record = (struct tier_record){ .layer = h->layer_first + moe_layer * h->layer_step,
                                    .index = expert,
                                    .bytes = kind->bytes,
                                    .hash = from->hash };
    for (unsigned i = 0; i < count; i++) {
        unsigned p = order[i];
        uint64_t offset = from->offset[p], end = offset + kind->part_bytes[p];
        struct tier_extent *last = extents ? &record->extents[extents - 1] : NULL;
        /* Parts on the same page or on neighbouring ones: one read brings both. */
        if (last && last->file == first_file + from->file[p] &&
            page_of(offset) <= page_of(last->offset + last->bytes - 1) + 1) {
            if (end > last->offset + last->bytes) last->bytes = end - last->offset;
        } else {
            uint64_t slot_offset = last ? last->slot_offset + span_of(last) : 0;
            last = &record->extents[extents++];
            *last = (struct tier_extent){ first_file + from->file[p], offset, end - offset,
                                          slot_offset };
        }
        record->part_offset[p] =
            last->slot_offset + (offset - page_of(last->offset) * TIER_PAGE);
        record->part_bytes[p] = kind->part_bytes[p];
    }
    record->extent_count = extents;
    if (h->kind == TIER_INDEX_PACK && h->version >= TIER_INDEX_VERSION_PACK) {
        uint64_t layout[TIER_PARTS];
        record->record_bytes = tier_image_pack_layout(kind->part_bytes, layout);
        record->record_hash = from->record_hash;
    }
}
