#include "predictor/predictor.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/le.h"
#include "base/must.h"
#include "port/hash.h"

enum { VERSION = 3, HEADER_BYTES = 168, HASH_AT = 152 };
#define SAVE_MAGIC "EXPTPRED"
#define SAVE_BYTES_MAX ((size_t)4 << 30)

static const struct pred_predictor_ops *const registry[] = {
    &pred_none_ops,       &pred_frequency_ops, &pred_previous_token_ops, &pred_token_table_ops,
    &pred_transition_ops, &pred_context_ops,   &pred_lookahead_ops,      &pred_blend_ops,
    &pred_oracle_ops,
};

const char *pred_predictor_name(size_t index)
{
    return index < sizeof registry / sizeof registry[0] ? registry[index]->name : NULL;
}

const struct pred_predictor_ops *pred_predictor_find(const char *name)
{
    for (size_t i = 0; i < sizeof registry / sizeof registry[0]; i++) {
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    }
    return NULL;
}

int pred_predictor_create(struct pred_predictor **out, const char *name,
                          const struct pred_shape *shape)
{
    *out = NULL;
    const struct pred_predictor_ops *ops = pred_predictor_find(name);
    struct pred_shape own = *shape;
    if (!ops) return -ENOENT;
    if (own.layers == 0 || own.layers > PRED_LAYERS_MAX || own.experts == 0 ||
        own.experts > PRED_EXPERTS_MAX || own.top_k == 0 || own.top_k > own.experts ||
        own.top_k > PRED_TOP_K_MAX) {
        return -EINVAL;
    }
    if (own.tokens_max == 0) own.tokens_max = 16384;
    if (!(own.half_life > 0)) own.half_life = 16;
    return ops->create(out, &own);
}

void pred_predictor_destroy(struct pred_predictor *p)
{
    if (p) p->ops->destroy(p);
}

size_t pred_predictor_bytes(struct pred_predictor *p)
{
    struct pred_block blocks[PRED_BLOCKS_MAX];
    size_t bytes = 0;
    unsigned n = p->ops->blocks(p, blocks);
    for (unsigned i = 0; i < n; i++) bytes += blocks[i].bytes;
    return bytes;
}

void pred_predictor_copy(struct pred_predictor *to, const struct pred_predictor *from)
{
    struct pred_block own[PRED_BLOCKS_MAX], others[PRED_BLOCKS_MAX];
    MUST(to->ops == from->ops);
    unsigned n = to->ops->blocks(to, own);
    MUST(from->ops->blocks((struct pred_predictor *)from, others) == n);
    for (unsigned i = 0; i < n; i++) {
        MUST(own[i].bytes == others[i].bytes);
        memcpy(own[i].memory, others[i].memory, own[i].bytes);
    }
}

void pred_predictor_settle(struct pred_predictor *p)
{
    struct pred_block blocks[PRED_BLOCKS_MAX];
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned n = p->ops->blocks(p, blocks);
    for (unsigned i = 0; i < n; i++) {
        volatile char *at = blocks[i].memory;
        for (size_t b = 0; b < blocks[i].bytes; b += page) at[b] = at[b];
    }
}

/* magic 8, version u32, layers, experts, top_k, tokens_max u32, 0 u32, name 32, model 64, half_life
 * f64, state bytes u64, weights u64, XXH3 of all before and of the state u64, 0 u64; the state. */
static void header_make(uint8_t *to, const struct pred_predictor *p, uint64_t state_bytes)
{
    memset(to, 0, HEADER_BYTES);
    memcpy(to, SAVE_MAGIC, 8);
    base_le_store32(to + 8, VERSION);
    base_le_store32(to + 12, p->shape.layers);
    base_le_store32(to + 16, p->shape.experts);
    base_le_store32(to + 20, p->shape.top_k);
    base_le_store32(to + 24, p->shape.tokens_max);
    snprintf((char *)to + 32, 32, "%s", p->ops->name);
    memcpy(to + 64, p->shape.model, 64);
    memcpy(to + 128, &p->shape.half_life, 8);
    base_le_store64(to + 136, state_bytes);
    base_le_store64(to + 144, p->shape.weights);
}

static uint64_t save_hash(const uint8_t *header, const struct pred_block *blocks, unsigned n)
{
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, header, HASH_AT);
    for (unsigned i = 0; i < n; i++) port_hash_add(&hash, blocks[i].memory, blocks[i].bytes);
    return port_hash_end(&hash);
}

int pred_predictor_save(struct pred_predictor *p, const char *path, struct base_err *err)
{
    struct pred_block blocks[PRED_BLOCKS_MAX];
    uint8_t header[HEADER_BYTES];
    char temporary[4096];
    unsigned n = p->ops->blocks(p, blocks);
    MUST(n <= PRED_BLOCKS_MAX);
    header_make(header, p, pred_predictor_bytes(p));
    base_le_store64(header + HASH_AT, save_hash(header, blocks, n));
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary) {
        return base_err_set(err, -ENAMETOOLONG, "%s: this path is too long", path);
    }
    FILE *file = fopen(temporary, "wb");
    int rc = file ? 0 : -errno;
    if (rc == 0 && fwrite(header, 1, sizeof header, file) != sizeof header) rc = -EIO;
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        if (fwrite(blocks[i].memory, 1, blocks[i].bytes, file) != blocks[i].bytes) rc = -errno;
    }
    if (rc == 0 && (fflush(file) != 0 || fsync(fileno(file)) < 0)) rc = -errno;
    if (file && fclose(file) != 0 && rc == 0) rc = -errno;
    if (rc == 0 && rename(temporary, path) < 0) rc = -errno;
    if (rc < 0) {
        unlink(temporary);
        base_err_set(err, rc, "%s: cannot save the predictor: %s", path, base_err_name(rc));
    }
    return rc;
}

/* By the weights where both are known: a folder may be renamed, and two may have one name. */
static bool same_model(const uint8_t *x, const uint8_t *y)
{
    uint64_t of_x = base_le_load64(x + 144), of_y = base_le_load64(y + 144);
    return of_x && of_y ? of_x == of_y : memcmp(x + 64, y + 64, 64) == 0;
}

static int load_check(const struct pred_predictor *p, const char *path, const uint8_t *bytes,
                      size_t size, uint64_t state_bytes, struct base_err *err)
{
    uint8_t want[HEADER_BYTES];
    if (size < HEADER_BYTES || memcmp(bytes, SAVE_MAGIC, 8) != 0) {
        return base_err_set(err, BASE_EFORMAT, "%s: not a saved predictor", path);
    }
    if (base_le_load32(bytes + 8) != VERSION) {
        return base_err_set(err, BASE_EVERSION,
                            "%s: predictor version %" PRIu32 ", this build knows %d: move the "
                            "file away to learn anew", path,
                            base_le_load32(bytes + 8), VERSION);
    }
    header_make(want, p, state_bytes);
    if (memcmp(bytes, want, 64) != 0 || memcmp(bytes + 128, want + 128, 16) != 0 ||
        size != HEADER_BYTES + state_bytes) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: saved by predictor %.31s for model %.63s with other "
                            "dimensions or settings than %s for %s here",
                            path, (const char *)bytes + 32, (const char *)bytes + 64, p->ops->name,
                            p->shape.model);
    }
    if (!same_model(bytes, want)) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: saved for model %.63s, which is not %s here: another one, or one "
                            "with other weights", path, (const char *)bytes + 64, p->shape.model);
    }
    struct pred_block state = { (void *)(bytes + HEADER_BYTES), state_bytes };
    if (save_hash(bytes, &state, 1) != base_le_load64(bytes + HASH_AT)) {
        return base_err_set(err, BASE_ECHECKSUM, "%s: its bytes do not match their checksum", path);
    }
    return 0;
}

int pred_predictor_load(struct pred_predictor *p, const char *path, struct base_err *err)
{
    struct pred_block blocks[PRED_BLOCKS_MAX];
    char *bytes;
    size_t size;
    int rc = base_file_read(&bytes, &size, path, SAVE_BYTES_MAX, err);
    if (rc < 0) return rc;
    rc = load_check(p, path, (const uint8_t *)bytes, size, pred_predictor_bytes(p), err);
    if (rc == 0) {
        unsigned n = p->ops->blocks(p, blocks);
        const char *at = bytes + HEADER_BYTES;
        for (unsigned i = 0; i < n; i++) {
            memcpy(blocks[i].memory, at, blocks[i].bytes);
            at += blocks[i].bytes;
        }
    }
    free(bytes);
    return rc;
}
