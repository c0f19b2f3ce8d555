/* Reads every expert back and compares hashes: all copies, and in packs the padding too. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiering/store_files.h"
#include "tiering/store_image.h"
#include "tiering/store_scan.h"

struct verifier {
    const struct tier_store *store;
    const struct tier_image *image;
    uint32_t copies;
    uint64_t record_bytes;      /* of a pack's record with its padding, else 0 */
    int *fds;
    void (*bad)(void *context, uint32_t moe_layer, uint32_t expert, const char *why);
    void *context;
    pthread_mutex_t lock;       /* for `bad` and its count */
    int64_t bad_count;
};

static const char *data_path(void *context, uint32_t file)
{
    return tier_store_file_path(((struct verifier *)context)->store, file);
}

/* Of a record by stretches; `hash` is that of all. */
static int stretches_hash(int fd, uint64_t offset, uint64_t bytes, unsigned char *buffer,
                          uint64_t *all)
{
    uint64_t hashes[TIER_FORMAT_STRETCHES], stretch = tier_image_stretch(bytes);
    uint32_t count = 0;
    int rc = 0;
    for (uint64_t at = 0, size; rc == 0 && at < bytes; at += size) {
        struct port_hash hash;
        size = bytes - at < stretch ? bytes - at : stretch;
        port_hash_begin(&hash);
        rc = tier_scan_range(fd, offset + at, size, buffer, &hash, NULL);
        hashes[count++] = port_hash_end(&hash);
    }
    *all = port_hash64(hashes, count * sizeof hashes[0]);
    return rc;
}

/* Its parts, and of a pack of version 1 also the padding. */
static int verify_parts(const struct verifier *v, const struct tier_format_expert *expert,
                        uint32_t first_file, unsigned char *buffer)
{
    struct port_hash hash;
    int rc = 0;
    port_hash_begin(&hash);
    for (unsigned p = 0; rc == 0 && p < TIER_PARTS; p++) {
        if (v->image->kind.part_bytes[p] == 0) continue;
        rc = tier_scan_range(v->fds[first_file + expert->file[p]], expert->offset[p],
                             v->image->kind.part_bytes[p], buffer, &hash, NULL);
    }
    if (rc < 0) return rc;
    if (port_hash_end(&hash) != expert->hash) return BASE_ECHECKSUM;
    if (v->record_bytes == 0) return 0;
    port_hash_begin(&hash);
    rc = tier_scan_range(v->fds[first_file + expert->file[0]], expert->offset[0], v->record_bytes,
                         buffer, &hash, NULL);
    return rc == 0 && port_hash_end(&hash) != expert->record_hash ? BASE_ECHECKSUM : rc;
}

static int verify_record(const struct verifier *v, const struct tier_format_expert *expert,
                         uint32_t first_file, unsigned char *buffer)
{
    uint64_t hash;
    int rc = stretches_hash(v->fds[first_file + expert->file[0]], expert->offset[0],
                            v->record_bytes, buffer, &hash);
    return rc == 0 && hash != expert->record_hash ? BASE_ECHECKSUM : rc;
}

/* Item = expert x copy. */
static int64_t verify_item(void *context, uint64_t item, unsigned char *buffer,
                           struct base_err *err)
{
    struct verifier *v = context;
    const struct tier_format_header *h = v->image->header;
    uint64_t at = item / v->copies;
    uint32_t layer = (uint32_t)(at / h->experts), index = (uint32_t)(at % h->experts);
    uint32_t first_file = (uint32_t)(item % v->copies) * (h->data_files / h->copies);
    struct tier_format_expert here, *expert = &here;
    char why[256];
    (void)err;
    tier_store_expert(v->store, at, expert);
    bool whole = v->record_bytes > 0 && h->version >= TIER_INDEX_VERSION_PACK;
    int rc = (whole ? verify_record : verify_parts)(v, expert, first_file, buffer);
    const char *path = tier_store_file_path(v->store, first_file + expert->file[0]);
    if (rc == BASE_ECHECKSUM) {
        snprintf(why, sizeof why, "its bytes in %.160s do not match their checksum", path);
    } else if (rc < 0) {
        snprintf(why, sizeof why, "cannot be read from %.160s: %s", path, strerror(-rc));
    }
    if (rc < 0) {
        pthread_mutex_lock(&v->lock);
        v->bad_count++;
        if (v->bad) v->bad(v->context, layer, index, why);
        pthread_mutex_unlock(&v->lock);
    }
    return (int64_t)v->image->kind.bytes;
}

int64_t tier_store_verify(const struct tier_store *store,
                          void (*bad)(void *context, uint32_t moe_layer, uint32_t expert,
                                      const char *why),
                          void *context, const struct tier_store_progress *progress,
                          struct base_err *err)
{
    const struct tier_image *image = tier_store_image(store);
    const struct tier_format_header *h = image->header;
    struct verifier v = {
        .store = store,
        .image = image,
        .copies = h->copies,
        .fds = calloc(h->data_files, sizeof(int)),
        .bad = bad,
        .context = context,
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    if (h->kind == TIER_INDEX_PACK) {
        uint64_t layout[TIER_PARTS];
        v.record_bytes = tier_image_pack_layout(image->kind.part_bytes, layout);
    }
    if (!v.fds) return base_err_set(err, -ENOMEM, "out of memory");
    int rc = tier_scan_open(v.fds, h->data_files, data_path, &v, err);
    if (rc == 0) {
        uint64_t items = (uint64_t)h->layers * h->experts * h->copies;
        struct tier_scan scan = {
            .threads = 4,
            .count = items,
            .bytes_total = items * image->kind.bytes,
            .progress = progress,
            .visit = verify_item,
            .context = &v,
        };
        rc = tier_scan_run(&scan, err);
    }
    tier_scan_close(v.fds, h->data_files);
    free(v.fds);
    pthread_mutex_destroy(&v.lock);
    return rc < 0 ? rc : v.bad_count;
}
