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
    struct port_hash hash;
    char why[256] = "";
    int rc = 0;
    (void)err;
    tier_store_expert(v->store, at, expert);
    port_hash_begin(&hash);
    for (unsigned p = 0; rc == 0 && p < TIER_PARTS; p++) {
        if (v->image->kind.part_bytes[p] == 0) continue;
        rc = tier_scan_range(v->fds[first_file + expert->file[p]], expert->offset[p],
                             v->image->kind.part_bytes[p], buffer, &hash, NULL);
    }
    const char *path = tier_store_file_path(v->store, first_file + expert->file[0]);
    if (rc < 0) {
        snprintf(why, sizeof why, "cannot be read from %.160s: %s", path, strerror(-rc));
    } else if (port_hash_end(&hash) != expert->hash) {
        snprintf(why, sizeof why, "its bytes in %.160s do not match their checksum", path);
    } else if (v->record_bytes > 0) {
        port_hash_begin(&hash);
        rc = tier_scan_range(v->fds[first_file + expert->file[0]], expert->offset[0],
                             v->record_bytes, buffer, &hash, NULL);
        if (rc < 0 || port_hash_end(&hash) != expert->record_hash) {
            snprintf(why, sizeof why, "the padding behind it in %.160s is damaged", path);
        }
    }
    if (why[0]) {
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
