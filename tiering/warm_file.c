#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/le.h"
#include "base/must.h"
#include "port/hash.h"
#include "tiering/warm.h"

enum {
    VERSION = 1,
    HEADER_BYTES = 64,
    HASH_AT = 56,               /* over the header before it and all rows */
    ROW_BYTES = 12,
    FILE_MAX = 1 << 30,
};

static const char magic[8] = { 'E', 'X', 'P', 'T', 'W', 'A', 'R', 'M' };

size_t tier_warm_file_bytes(uint32_t count)
{
    return HEADER_BYTES + (size_t)count * ROW_BYTES;
}

static uint64_t hash_of(const uint8_t *at, size_t size)
{
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, at, HASH_AT);
    port_hash_add(&hash, at + HEADER_BYTES, size - HEADER_BYTES);
    return port_hash_end(&hash);
}

void tier_warm_file_encode(const struct tier_warm_set *set, void *to)
{
    uint8_t *at = to;
    memset(at, 0, HEADER_BYTES);
    memcpy(at, magic, sizeof magic);
    base_le_store32(at + 8, VERSION);
    base_le_store32(at + 12, HEADER_BYTES);
    base_le_store64(at + 16, set->model);
    base_le_store32(at + 24, set->layers);
    base_le_store32(at + 28, set->experts);
    base_le_store32(at + 32, set->count);
    base_le_store32(at + 36, ROW_BYTES);
    base_le_store64(at + 40, set->saved_at);
    for (uint32_t i = 0; i < set->count; i++) {
        const struct tier_warm_row *row = &set->rows[i];
        uint8_t *into = at + HEADER_BYTES + (size_t)i * ROW_BYTES;
        base_le_store32(into, row->key);
        base_le_store32(into + 4, row->age);
        into[8] = row->hbm;
        into[9] = row->uses;
        base_le_store16(into + 10, 0);
    }
    base_le_store64(at + HASH_AT, hash_of(at, tier_warm_file_bytes(set->count)));
}

static int header_check(const uint8_t *at, size_t size, const char *path, struct base_err *err)
{
    if (memcmp(at, magic, size < sizeof magic ? size : sizeof magic) != 0) {
        return base_err_set(err, BASE_EFORMAT, "%s: no saved resident set: it should begin with "
                            "EXPTWARM", path);
    }
    if (size < HEADER_BYTES) {
        return base_err_set(err, BASE_ETORN, "%s: %zu bytes, the header of a saved resident set "
                            "has %d", path, size, HEADER_BYTES);
    }
    if (base_le_load32(at + 8) != VERSION) {
        return base_err_set(err, BASE_EVERSION, "%s: version %" PRIu32 " of the format, this "
                            "program reads %d", path, base_le_load32(at + 8), VERSION);
    }
    uint32_t count = base_le_load32(at + 32);
    if (base_le_load32(at + 12) != HEADER_BYTES || base_le_load32(at + 36) != ROW_BYTES ||
        size != tier_warm_file_bytes(count)) {
        return base_err_set(err, BASE_ETORN, "%s: %zu bytes with a header for %" PRIu32
                            " experts, which take %zu", path, size, count,
                            tier_warm_file_bytes(count));
    }
    if (base_le_load64(at + HASH_AT) != hash_of(at, size)) {
        return base_err_set(err, BASE_ECHECKSUM, "%s: its checksum is wrong: it was damaged", path);
    }
    return 0;
}

/* Every expert of the model, each at most once. */
static int rows_load(struct tier_warm_set *set, const uint8_t *at, const char *path,
                     struct base_err *err)
{
    uint64_t keys = (uint64_t)set->layers * set->experts;
    if (keys == 0 || keys > 1u << 30 || set->count > keys) {
        return base_err_set(err, BASE_EFORMAT, "%s: %" PRIu32 " of %" PRIu64 " experts", path,
                            set->count, keys);
    }
    uint8_t *seen = calloc(keys, 1);
    set->rows = calloc(set->count ? set->count : 1, sizeof *set->rows);
    int rc = seen && set->rows ? 0 : base_err_set(err, -ENOMEM, "%s: no memory for it", path);
    for (uint32_t i = 0; rc == 0 && i < set->count; i++) {
        const uint8_t *from = at + HEADER_BYTES + (size_t)i * ROW_BYTES;
        struct tier_warm_row *row = &set->rows[i];
        *row = (struct tier_warm_row){
            .key = base_le_load32(from), .age = base_le_load32(from + 4), .hbm = from[8],
            .uses = from[9],
        };
        if (row->key >= keys || row->hbm > 1 || seen[row->key]++) {
            rc = base_err_set(err, BASE_EFORMAT, "%s: row %" PRIu32 " names expert %" PRIu32
                              " of %" PRIu64 ", once again or in no tier there is", path, i,
                              row->key, keys);
        }
    }
    free(seen);
    return rc;
}

int tier_warm_file_load(struct tier_warm_set *set, const char *path, struct base_err *err)
{
    char *bytes;
    size_t size;
    *set = (struct tier_warm_set){ 0 };
    int rc = base_file_read(&bytes, &size, path, FILE_MAX, err);
    if (rc < 0) return rc;
    const uint8_t *at = (const uint8_t *)bytes;
    rc = header_check(at, size, path, err);
    if (rc == 0) {
        set->model = base_le_load64(at + 16);
        set->layers = base_le_load32(at + 24);
        set->experts = base_le_load32(at + 28);
        set->count = base_le_load32(at + 32);
        set->saved_at = base_le_load64(at + 40);
        rc = rows_load(set, at, path, err);
    }
    free(bytes);
    if (rc < 0) {
        free(set->rows);
        set->rows = NULL;
    }
    return rc;
}
