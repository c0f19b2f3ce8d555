/* Repacks a checkpoint's experts into records of their own.
 *
 *   DIR/experts.pack.part     under construction, full length from the start
 *   DIR0/experts.pack.state   how many records are on disk for good, and their hashes
 *   DIR/experts.pack          renamed when all records are
 *   DIR0/expertier.index      last of all; then the state goes
 *
 * Work goes on in batches: write the records, fdatasync, then say so in the state. A kill loses at
 * most a batch, which is written again with the same bytes. All folders are locked meanwhile, from
 * before anything in them is looked at or thrown away.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/must.h"
#include "base/str.h"
#include "tiering/store_files.h"
#include "tiering/store_image.h"
#include "tiering/store_scan.h"

static const uint64_t sync_bytes_default = UINT64_C(256) << 20;
static const size_t state_bytes_max = (size_t)1 << 28;

struct packer {
    const struct tier_store *source;
    const struct tier_image *image;
    const struct tier_pack_options *options;
    const struct tier_store_progress *progress;
    uint32_t stripes;           /* files of one copy */
    uint32_t files;             /* over all copies: one a folder */
    uint64_t count;             /* of experts */
    uint64_t layout[TIER_PARTS], record_bytes;
    uint64_t experts_hash, plan_hash;
    char *index_path, *state_path;
    char *paths[TIER_COPIES_MAX], *parts[TIER_COPIES_MAX];      /* final, under construction */
    int fds[TIER_COPIES_MAX];
    int dir_fds[TIER_COPIES_MAX];       /* held for their locks */
    int *source_fds;
    struct tier_format_state *state;    /* with the record hashes behind it */
    size_t state_bytes;
    uint64_t *record_hashes;
    uint64_t batch_first;
};

static uint64_t records_in(const struct packer *p, uint32_t file)
{
    uint32_t stripe = file % p->stripes;
    return p->count / p->stripes + (stripe < p->count % p->stripes);
}

static uint64_t file_bytes(const struct packer *p, uint32_t file)
{
    return TIER_PAGE + records_in(p, file) * p->record_bytes;
}

static uint64_t record_offset(const struct packer *p, uint64_t expert)
{
    return TIER_PAGE + expert / p->stripes * p->record_bytes;
}

/* Names, sizes and hashes: everything that is known before the first byte moves. */
static int plan(struct packer *p, struct base_err *err)
{
    const struct tier_format_header *h = p->image->header;
    const struct tier_pack_options *o = p->options;
    struct port_hash hash;
    if (h->kind != TIER_INDEX_CHECKPOINT) {
        return base_err_set(err, BASE_EMISMATCH, "%s: points into a pack already; repack reads a "
                            "checkpoint's index", tier_store_index_path(p->source));
    }
    if (o->dir_count < 1 || o->dir_count > TIER_COPIES_MAX) {
        return base_err_set(err, -EINVAL, "a pack lies in 1 to %d folders, not %u", TIER_COPIES_MAX,
                            o->dir_count);
    }
    for (unsigned part = 0; part < TIER_PARTS; part += 2) {
        if (tier_image_order_fits(h, part, (uint32_t)o->order)) continue;
        if (o->order == TIER_ORDER_WOVEN) {
            return base_err_set(err, BASE_EMISMATCH, "%s: its experts cannot be packed woven: "
                                "FP8 ones can, with scales of blocks of 128 columns and rows of "
                                "whole blocks",
                                tier_store_index_path(p->source));
        }
        return base_err_set(err, BASE_EMISMATCH, "%s: experts of %s cannot be packed in tiles: "
                            "INT8 and INT4 ones can, which `tier-pack quantize` makes",
                            tier_store_index_path(p->source),
                            model_dtype_name(tier_store_parts(p->source)[part].dtype));
    }
    MUST(o->order == TIER_ORDER_ROWS || o->arrange);
    p->files = o->dir_count;
    p->stripes = o->mode == TIER_PACK_STRIPE ? o->dir_count : 1;
    p->count = (uint64_t)h->layers * h->experts;
    p->record_bytes = tier_image_pack_layout(p->image->kind.part_bytes, p->layout);
    port_hash_begin(&hash);
    for (uint64_t i = 0; i < p->count; i++) {
        struct tier_format_expert expert;
        tier_store_expert(p->source, i, &expert);
        port_hash_add(&hash, &expert.hash, sizeof expert.hash);
    }
    p->experts_hash = port_hash_end(&hash);
    uint64_t facts[] = { p->experts_hash, h->checksum, p->files, p->stripes, p->record_bytes,
                         TIER_INDEX_VERSION_PACK, (uint64_t)o->order };
    p->plan_hash = port_hash64(facts, sizeof facts);

    p->state_bytes = sizeof *p->state + p->count * sizeof *p->record_hashes;
    p->state = calloc(1, p->state_bytes);
    p->source_fds = calloc(h->data_files, sizeof *p->source_fds);
    if (!p->state || !p->source_fds) return base_err_set(err, -ENOMEM, "out of memory");
    for (uint32_t f = 0; f < h->data_files; f++) {
        p->source_fds[f] = -1;
    }
    p->record_hashes = (uint64_t *)(p->state + 1);
    bool named = asprintf(&p->index_path, "%s/expertier.index", o->dirs[0]) > 0 &&
                 asprintf(&p->state_path, "%s/experts.pack.state", o->dirs[0]) > 0;
    for (uint32_t f = 0; named && f < p->files; f++) {
        named = asprintf(&p->paths[f], "%s/experts.pack", o->dirs[f]) > 0 &&
                asprintf(&p->parts[f], "%s.part", p->paths[f]) > 0;
    }
    return named ? 0 : base_err_set(err, -ENOMEM, "out of memory");
}

static int check_folders(const struct packer *p, struct base_err *err)
{
    struct stat st[TIER_COPIES_MAX];
    for (uint32_t f = 0; f < p->files; f++) {
        const char *dir = p->options->dirs[f];
        if (mkdir(dir, 0777) < 0 && errno != EEXIST) {
            return base_err_set(err, -errno, "%s: cannot be made: %s", dir, strerror(errno));
        }
        if (stat(dir, &st[f]) < 0 || !S_ISDIR(st[f].st_mode)) {
            return base_err_set(err, -ENOTDIR, "%s: is no folder", dir);
        }
        for (uint32_t other = 0; other < f; other++) {
            if (st[f].st_dev == st[other].st_dev && st[f].st_ino == st[other].st_ino) {
                return base_err_set(err, -EINVAL, "%s and %s are the same folder", dir,
                                    p->options->dirs[other]);
            }
        }
    }
    return 0;
}

/* The folders themselves: a file to lock would be left in them, or could be thrown away by another
 * run that opened it before. */
static int lock_folders(struct packer *p, struct base_err *err)
{
    for (uint32_t f = 0; f < p->files; f++) {
        const char *dir = p->options->dirs[f];
        p->dir_fds[f] = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (p->dir_fds[f] >= 0 && flock(p->dir_fds[f], LOCK_EX | LOCK_NB) == 0) continue;
        if (p->dir_fds[f] >= 0 && errno == EWOULDBLOCK) {
            return base_err_set(err, -EBUSY, "%s: another tier-pack is packing into it", dir);
        }
        /* Network file systems lock no folders; the files have locks of their own. */
        if (p->dir_fds[f] >= 0 && base_file_no_locks(errno)) continue;
        return base_err_set(err, -errno, "%s: cannot be locked: %s", dir, strerror(errno));
    }
    return 0;
}

/* Folders on one file system share its room. */
static int check_space(const struct packer *p, struct base_err *err)
{
    for (uint32_t f = 0; f < p->files; f++) {
        struct stat first, other;
        struct statvfs fs;
        uint64_t need = 0;
        const char *dir = p->options->dirs[f];
        if (stat(dir, &first) < 0 || statvfs(dir, &fs) < 0) {
            return base_err_set(err, -errno, "%s: %s", dir, strerror(errno));
        }
        for (uint32_t g = 0; g < p->files; g++) {
            struct stat there;
            if (stat(p->options->dirs[g], &other) < 0 || other.st_dev != first.st_dev) continue;
            uint64_t have = stat(p->parts[g], &there) == 0 || stat(p->paths[g], &there) == 0
                                ? (uint64_t)there.st_blocks * 512
                                : 0;
            uint64_t all = file_bytes(p, g);
            need += all > have ? all - have : 0;
        }
        uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
        if (need > room) {
            char need_text[16], room_text[16];
            return base_err_set(err, -ENOSPC, "%s: the pack takes %s more here, %s are free", dir,
                                base_str_bytes(need_text, sizeof need_text, need),
                                base_str_bytes(room_text, sizeof room_text, room));
        }
    }
    return 0;
}

/* The index of a checkpoint, which the pack's would take the place of, is not ours to replace. */
static int check_place(const struct packer *p, struct base_err *err)
{
    struct tier_format_header header = { 0 };
    FILE *file = fopen(p->index_path, "rbe");
    size_t got = file ? fread(&header, 1, sizeof header, file) : 0;
    if (file) fclose(file);
    if (got == sizeof header && memcmp(header.magic, TIER_INDEX_MAGIC, sizeof header.magic) == 0 &&
        header.kind == TIER_INDEX_CHECKPOINT) {
        return base_err_set(err, -EEXIST, "%s: is a checkpoint's index; a pack needs a folder of "
                            "its own", p->index_path);
    }
    return 0;
}

/* Takes everything of an earlier run away: index and state first and for good, so that neither ever
 * speaks of records that are gone. */
static int clear(const struct packer *p, struct base_err *err)
{
    unlink(p->index_path);
    unlink(p->state_path);
    int rc = tier_store_folder_sync(p->index_path);
    for (uint32_t f = 0; f < p->files; f++) {
        unlink(p->paths[f]);
        unlink(p->parts[f]);
    }
    return rc < 0 ? base_err_set(err, rc, "%s: %s", p->options->dirs[0], strerror(-rc)) : 0;
}

static uint64_t state_checksum(struct tier_format_state *state, size_t size)
{
    uint64_t kept = state->checksum;
    state->checksum = 0;
    uint64_t hash = port_hash64(state, size);
    state->checksum = kept;
    return hash;
}

/* Takes over an earlier run's state, or begins anew where there is none. */
static int load_state(struct packer *p, struct base_err *err)
{
    char *bytes = NULL;
    size_t size;
    struct base_err ignored = { 0 };
    int rc = base_file_read(&bytes, &size, p->state_path, state_bytes_max, &ignored);
    if (rc == -ENOENT) {
        memcpy(p->state->magic, TIER_STATE_MAGIC, sizeof p->state->magic);
        p->state->version = TIER_STATE_VERSION;
        p->state->plan_hash = p->plan_hash;
        p->state->count = p->count;
        return 0;
    }
    if (rc < 0) return base_err_set(err, rc, "%s", ignored.text);
    struct tier_format_state *state = (void *)bytes;
    bool good = size >= sizeof *state &&
                memcmp(state->magic, TIER_STATE_MAGIC, sizeof state->magic) == 0 &&
                state->version == TIER_STATE_VERSION &&
                state_checksum(state, size) == state->checksum;
    if (!good) {
        rc = base_err_set(err, BASE_EFORMAT, "%s: is damaged; --restart begins anew",
                          p->state_path);
    } else if (state->plan_hash != p->plan_hash || size != p->state_bytes ||
               state->count != p->count || state->done > p->count) {
        rc = base_err_set(err, BASE_EMISMATCH, "%s: is of another model, index or set of folders; "
                          "--restart throws that unfinished pack away", p->state_path);
    } else {
        memcpy(p->state, state, size);
        rc = 0;
    }
    free(bytes);
    return rc;
}

static int save_state(struct packer *p, struct base_err *err)
{
    p->state->checksum = state_checksum(p->state, p->state_bytes);
    return tier_store_file_replace(p->state_path, p->state, p->state_bytes, err);
}

static int pwrite_whole(int fd, const unsigned char *bytes, uint64_t size, uint64_t offset)
{
    for (uint64_t done = 0; done < size;) {
        ssize_t put = pwrite(fd, bytes + done, size - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return -errno;
        done += (uint64_t)put;
    }
    return 0;
}

/* The first page, the same at every run. */
static int write_header(const struct packer *p, uint32_t file, struct base_err *err)
{
    unsigned char page[TIER_PAGE] = { 0 };
    struct tier_format_pack header = {
        .version = TIER_PACK_VERSION,
        .file = file % p->stripes,
        .file_count = p->stripes,
        .order = (uint32_t)p->options->order,
        .experts_hash = p->experts_hash,
        .record_bytes = p->record_bytes,
        .record_count = records_in(p, file),
    };
    memcpy(header.magic, TIER_PACK_MAGIC, sizeof header.magic);
    memcpy(page, &header, sizeof header);
    int rc = pwrite_whole(p->fds[file], page, sizeof page, 0);
    if (rc < 0) {
        base_err_set(err, rc, "%s: cannot be written: %s", p->parts[file], strerror(-rc));
    }
    return rc;
}

static uint64_t record_hash(const unsigned char *record, uint64_t bytes)
{
    uint64_t hashes[TIER_FORMAT_STRETCHES], stretch = tier_image_stretch(bytes);
    uint32_t count = 0;
    for (uint64_t at = 0; at < bytes; at += stretch) {
        hashes[count++] = port_hash64(record + at, bytes - at < stretch ? bytes - at : stretch);
    }
    return port_hash64(hashes, count * sizeof hashes[0]);
}

/* Whether the last record that the state counts is in this file. It is not where the file is not
 * the one that it was written to, but as long: left by a run that failed, or of a disk that was
 * away meanwhile. */
static bool has_counted(const struct packer *p, uint32_t f)
{
    uint64_t stripe = f % p->stripes, done = p->state->done;
    if (done <= stripe) return true;
    uint64_t last = done - 1 - (done - 1 - stripe) % p->stripes;
    unsigned char *record = malloc(p->record_bytes);
    bool same = record &&
                tier_store_pread(p->fds[f], record, p->record_bytes,
                                 record_offset(p, last)) == 0 &&
                record_hash(record, p->record_bytes) == p->record_hashes[last];
    free(record);
    return same;
}

/* Opens a file as it is; `whole` becomes false where it lacks what the state counts as written. A
 * run that was killed among the renames finds the final one. */
static int open_output(struct packer *p, uint32_t f, bool *whole, struct base_err *err)
{
    struct stat st;
    bool renamed = p->state->done == p->count && access(p->parts[f], F_OK) < 0 &&
                   access(p->paths[f], F_OK) == 0;
    const char *path = renamed ? p->paths[f] : p->parts[f];
    p->fds[f] = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (p->fds[f] < 0 || fstat(p->fds[f], &st) < 0) {
        return base_err_set(err, -errno, "%s: cannot be made: %s", path, strerror(errno));
    }
    if (flock(p->fds[f], LOCK_EX | LOCK_NB) < 0) {
        return base_err_set(err, -EBUSY, "%s: another tier-pack is writing it", path);
    }
    if ((uint64_t)st.st_size == file_bytes(p, f) && has_counted(p, f)) return 0;
    *whole = false;
    if (!renamed) return 0;
    return base_err_set(err, BASE_EMISMATCH, "%s: lacks records that %s counts; --restart begins "
                        "anew", path, p->state_path);
}

/* Nothing is counted any more. On disk, before any file gets the length that it is known by. */
static int start_over(struct packer *p, struct base_err *err)
{
    if (p->state->done == 0) return 0;
    base_log(BASE_LOG_WARN, "pack", "a file lacks records that the state counts: packing begins "
             "anew state=%s records=%" PRIu64, p->state_path, p->state->done);
    p->state->done = 0;
    return save_state(p, err);
}

/* Makes a file as long as it will be. */
static int extend_output(const struct packer *p, uint32_t f, struct base_err *err)
{
    uint64_t bytes = file_bytes(p, f);
    int rc = fallocate(p->fds[f], 0, 0, (off_t)bytes) < 0 ? -errno : 0;
    if (rc == -EOPNOTSUPP || rc == -ENOSYS) rc = 0;
    if (rc == 0 && ftruncate(p->fds[f], (off_t)bytes) < 0) rc = -errno;
    if (rc < 0) {
        return base_err_set(err, rc, "%s: no room for %llu bytes: %s", p->parts[f],
                            (unsigned long long)bytes, strerror(-rc));
    }
    return write_header(p, f, err);
}

static int open_outputs(struct packer *p, struct base_err *err)
{
    bool whole = true;
    int rc = 0;
    for (uint32_t f = 0; rc == 0 && f < p->files; f++) {
        rc = open_output(p, f, &whole, err);
    }
    if (rc == 0 && !whole) rc = start_over(p, err);
    for (uint32_t f = 0; rc == 0 && f < p->files; f++) {
        rc = extend_output(p, f, err);
    }
    return rc;
}

static int read_expert(const struct packer *p, uint64_t at, unsigned char *record,
                       struct base_err *err)
{
    const struct tier_format_header *h = p->image->header;
    struct tier_format_expert here, *expert = &here;
    struct port_hash hash;
    tier_store_expert(p->source, at, expert);
    memset(record, 0, p->record_bytes);
    port_hash_begin(&hash);
    for (unsigned part = 0; part < TIER_PARTS; part++) {
        uint64_t bytes = p->image->kind.part_bytes[part];
        uint32_t file = expert->file[part];
        if (bytes == 0) continue;
        int rc = tier_store_pread(p->source_fds[file], record + p->layout[part], bytes,
                                  expert->offset[part]);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: reading at byte %llu: %s",
                                tier_store_file_path(p->source, file),
                                (unsigned long long)expert->offset[part], strerror(-rc));
        }
        port_hash_add(&hash, record + p->layout[part], bytes);
    }
    if (port_hash_end(&hash) == expert->hash) return 0;
    return base_err_set(err, BASE_ECHECKSUM, "layer %u expert %u: its bytes in %s do not match "
                        "their checksum: run `tier-pack verify`",
                        h->layer_first + (uint32_t)(at / h->experts) * h->layer_step,
                        (uint32_t)(at % h->experts),
                        tier_store_file_path(p->source, expert->file[0]));
}

static int arrange(const struct packer *p, unsigned char *record, struct base_err *err)
{
    void *parts[TIER_PARTS];
    if (p->options->order == TIER_ORDER_ROWS) return 0;
    for (unsigned part = 0; part < TIER_PARTS; part++) {
        parts[part] = p->image->kind.part_bytes[part] > 0 ? record + p->layout[part] : NULL;
    }
    int rc = p->options->arrange(p->options->arrange_context, parts);
    return rc < 0 ? base_err_set(err, rc, "experts cannot be rearranged: %s", base_err_name(rc))
                  : 0;
}

static int64_t pack_one(void *context, uint64_t item, unsigned char *record, struct base_err *err)
{
    struct packer *p = context;
    uint64_t at = p->batch_first + item;
    int rc = read_expert(p, at, record, err);
    if (rc == 0) rc = arrange(p, record, err);
    if (rc < 0) return rc;
    p->record_hashes[at] = record_hash(record, p->record_bytes);
    for (uint32_t f = (uint32_t)(at % p->stripes); f < p->files; f += p->stripes) {
        rc = pwrite_whole(p->fds[f], record, p->record_bytes, record_offset(p, at));
        if (rc < 0) {
            return base_err_set(err, rc, "%s: cannot be written: %s; run the same command again to "
                                "go on", p->parts[f], strerror(-rc));
        }
    }
    return (int64_t)p->record_bytes;
}

static void report_batch(void *context, uint64_t done, uint64_t total)
{
    struct packer *p = context;
    (void)total;
    if (p->progress->report) {
        p->progress->report(p->progress->context, p->batch_first * p->record_bytes + done,
                            p->count * p->record_bytes);
    }
}

static int stop_batch(void *context)
{
    struct packer *p = context;
    return p->progress->stop ? p->progress->stop(p->progress->context) : 0;
}

static int sync_outputs(struct packer *p, struct base_err *err)
{
    for (uint32_t f = 0; f < p->files; f++) {
        if (fdatasync(p->fds[f]) < 0) {
            return base_err_set(err, -errno, "%s: cannot be written: %s", p->parts[f],
                                strerror(errno));
        }
        /* It will not be read soon: leave the page cache to others. */
        posix_fadvise(p->fds[f], 0, 0, POSIX_FADV_DONTNEED);
    }
    return 0;
}

static int pack_batches(struct packer *p, struct base_err *err)
{
    uint64_t sync_bytes = p->options->sync_bytes ? p->options->sync_bytes : sync_bytes_default;
    uint64_t batch = sync_bytes / p->record_bytes;
    struct tier_store_progress progress = { report_batch, stop_batch, p };
    if (batch == 0) batch = 1;
    int rc = 0;
    while (rc == 0 && p->state->done < p->count) {
        uint64_t left = p->count - p->state->done;
        p->batch_first = p->state->done;
        struct tier_scan scan = {
            .threads = p->options->threads,
            .count = left < batch ? left : batch,
            .progress = p->progress ? &progress : NULL,
            .buffer_bytes = p->record_bytes,
            .visit = pack_one,
            .context = p,
        };
        rc = tier_scan_run(&scan, err);
        if (rc == 0) rc = sync_outputs(p, err);
        if (rc == 0) {
            p->state->done += scan.count;
            rc = save_state(p, err);
        }
    }
    return rc;
}

static bool is_output(const struct packer *p, uint32_t f, const char *path)
{
    struct stat held, named;
    return fstat(p->fds[f], &held) == 0 && stat(path, &named) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

/* The locks keep other runs away, but not whoever moves files about: no file is given its last name
 * but the one that was written. */
static int rename_outputs(const struct packer *p, struct base_err *err)
{
    for (uint32_t f = 0; f < p->files; f++) {
        bool there = !is_output(p, f, p->paths[f]);
        if (there && !is_output(p, f, p->parts[f])) {
            return base_err_set(err, -ESTALE, "%s: was moved or replaced while it was written; "
                                "run the same command again", p->parts[f]);
        }
        int rc = there && rename(p->parts[f], p->paths[f]) < 0 ? -errno : 0;
        if (rc == 0) rc = tier_store_folder_sync(p->paths[f]);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: cannot be renamed to %s: %s", p->parts[f],
                                p->paths[f], strerror(-rc));
        }
    }
    return 0;
}

/* The index under construction. */
struct pack_index {
    unsigned char *bytes;
    size_t size;
    struct tier_format_header *header;
    struct tier_format_file *files;
    struct tier_format_expert *experts;
    char *names;
};

static int lay_out_index(const struct packer *p, char *const *names, struct pack_index *index)
{
    const struct tier_format_header *from = p->image->header;
    uint32_t file_count = p->files + from->data_files;
    size_t names_bytes = from->names_bytes;
    for (uint32_t f = 0; f < p->files; f++) {
        names_bytes += strlen(names[f]);
    }
    index->size = sizeof *from + file_count * sizeof *index->files +
                  p->count * sizeof *index->experts + names_bytes;
    index->bytes = calloc(1, index->size);
    if (!index->bytes) return -ENOMEM;
    index->header = (void *)index->bytes;
    index->files = (void *)(index->header + 1);
    index->experts = (void *)(index->files + file_count);
    index->names = (char *)(index->experts + p->count);
    *index->header = *from;
    index->header->index_bytes = index->size;
    index->header->version = TIER_INDEX_VERSION_PACK;
    index->header->kind = TIER_INDEX_PACK;
    for (unsigned part = 0; part < TIER_PARTS; part++) {
        index->header->parts[part].order = (uint32_t)p->options->order;
    }
    index->header->file_count = file_count;
    index->header->data_files = p->files;
    index->header->copies = p->files / p->stripes;
    index->header->names_bytes = (uint32_t)names_bytes;
    return 0;
}

/* The pack files, then the shards they came from. */
static int fill_index_files(const struct packer *p, char *const *names, struct pack_index *index,
                            struct base_err *err)
{
    uint32_t at = 0;
    for (uint32_t f = 0; f < index->header->file_count; f++) {
        struct tier_format_file *file = &index->files[f];
        bool pack = f < p->files;
        const struct tier_format_file *shard = pack ? NULL : &p->image->files[f - p->files];
        const char *name = pack ? names[f] : p->image->names + shard->name_at;
        file->role = pack ? TIER_FILE_DATA : TIER_FILE_SOURCE;
        file->name_at = at;
        file->name_bytes = pack ? (uint32_t)strlen(name) : shard->name_bytes;
        file->bytes = pack ? file_bytes(p, f) : shard->bytes;
        memcpy(index->names + at, name, file->name_bytes);
        at += file->name_bytes;
        int fd = pack ? p->fds[f] : p->source_fds[f - p->files];
        int rc = tier_store_header_hash(fd, file->bytes, pack ? TIER_KIND_PACK : TIER_KIND_SOURCE,
                                        &file->header_hash);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: cannot be read: %s",
                                pack ? p->paths[f] : tier_store_file_path(p->source, f - p->files),
                                strerror(-rc));
        }
    }
    MUST(at <= index->header->names_bytes);
    return 0;
}

static void fill_index_experts(const struct packer *p, struct pack_index *index)
{
    for (uint64_t i = 0; i < p->count; i++) {
        struct tier_format_expert *expert = &index->experts[i], from;
        tier_store_expert(p->source, i, &from);
        expert->hash = from.hash;
        expert->record_hash = p->record_hashes[i];
        for (unsigned part = 0; part < TIER_PARTS; part++) {
            if (p->image->kind.part_bytes[part] == 0) continue;
            expert->file[part] = (uint16_t)(i % p->stripes);
            expert->offset[part] = record_offset(p, i) + p->layout[part];
        }
    }
}

/* A pack in one folder is named without it, so that the folder may move; others by whole path. */
static int name_outputs(const struct packer *p, char **names)
{
    for (uint32_t f = 0; f < p->files; f++) {
        names[f] = f == 0 ? strdup("experts.pack") : realpath(p->paths[f], NULL);
        if (!names[f]) return -errno;
    }
    return 0;
}

static int write_index(const struct packer *p, struct base_err *err)
{
    struct pack_index index = { 0 };
    struct tier_image image;
    char *names[TIER_COPIES_MAX] = { 0 };
    int rc = name_outputs(p, names);
    if (rc == 0) rc = lay_out_index(p, names, &index);
    if (rc < 0) base_err_set(err, rc, "%s: %s", p->index_path, strerror(-rc));
    if (rc == 0) rc = fill_index_files(p, names, &index, err);
    if (rc == 0) {
        fill_index_experts(p, &index);
        index.header->checksum = tier_image_checksum(index.bytes, index.size);
        rc = tier_image_check(&image, index.bytes, index.size, p->index_path, err);
    }
    if (rc == 0) rc = tier_store_file_replace(p->index_path, index.bytes, index.size, err);
    for (uint32_t f = 0; f < p->files; f++) {
        free(names[f]);
    }
    free(index.bytes);
    return rc;
}

/* 1 when a finished pack of the same weights lies there, 0 when none does. */
static int find_finished(const struct packer *p, struct base_err *err)
{
    if (access(p->state_path, F_OK) == 0) return 0;
    bool any = access(p->index_path, F_OK) == 0;
    for (uint32_t f = 0; f < p->files; f++) {
        any = any || access(p->paths[f], F_OK) == 0;
    }
    if (!any) return 0;

    char *bytes = NULL;
    size_t size;
    struct tier_image image;
    bool same = base_file_read(&bytes, &size, p->index_path, (size_t)4 << 30, NULL) == 0 &&
                tier_image_check(&image, bytes, size, p->index_path, NULL) == 0 &&
                image.header->kind == TIER_INDEX_PACK && image.header->data_files == p->files &&
                image.header->copies == p->files / p->stripes &&
                image.header->parts[0].order == (uint32_t)p->options->order &&
                (uint64_t)image.header->layers * image.header->experts == p->count;
    for (uint64_t i = 0; same && i < p->count; i++) {
        struct tier_format_expert expert;
        tier_store_expert(p->source, i, &expert);
        same = image.experts[i].hash == expert.hash;
    }
    for (uint32_t f = 0; same && f < p->files; f++) {
        same = tier_store_file_check(p->paths[f], &image.files[f], TIER_KIND_PACK, p->index_path,
                                     NULL) == 0;
    }
    free(bytes);
    if (same) return 1;
    return base_err_set(err, -EEXIST, "%s: holds an index or a pack of something else; --restart "
                        "replaces it", p->options->dirs[0]);
}

static const char *source_path(void *context, uint32_t file)
{
    return tier_store_file_path(((struct packer *)context)->source, file);
}

static int run_pack(struct packer *p, struct base_err *err)
{
    int rc = plan(p, err);
    if (rc == 0) rc = check_folders(p, err);
    if (rc == 0) rc = lock_folders(p, err);
    if (rc == 0) rc = check_place(p, err);
    if (rc == 0 && p->options->restart) rc = clear(p, err);
    if (rc == 0) rc = find_finished(p, err);
    if (rc != 0) return rc < 0 ? rc : 0;
    rc = load_state(p, err);
    if (rc == 0) rc = check_space(p, err);
    if (rc == 0) rc = open_outputs(p, err);
    if (rc == 0) {
        rc = tier_scan_open(p->source_fds, p->image->header->data_files, source_path, p, err);
    }
    /* From the state's first word on, a later run knows what it finds. */
    if (rc == 0) rc = save_state(p, err);
    if (rc == 0) rc = pack_batches(p, err);
    if (rc == 0) rc = rename_outputs(p, err);
    if (rc == 0) rc = write_index(p, err);
    if (rc == 0 && unlink(p->state_path) < 0) {
        rc = base_err_set(err, -errno, "%s: %s", p->state_path, strerror(errno));
    }
    return rc;
}

int tier_store_repack(const struct tier_store *source, const struct tier_pack_options *options,
                      const struct tier_store_progress *progress, struct base_err *err)
{
    struct packer p = { .source = source, .image = tier_store_image(source), .options = options,
                        .progress = progress };
    for (unsigned f = 0; f < TIER_COPIES_MAX; f++) {
        p.fds[f] = p.dir_fds[f] = -1;
    }
    uint32_t shards = p.image->header->data_files;
    int rc = run_pack(&p, err);
    for (unsigned f = 0; f < TIER_COPIES_MAX; f++) {
        if (p.fds[f] >= 0) close(p.fds[f]);
        if (p.dir_fds[f] >= 0) close(p.dir_fds[f]);
        free(p.paths[f]);
        free(p.parts[f]);
    }
    tier_scan_close(p.source_fds, shards);
    free(p.source_fds);
    free(p.state);
    free(p.index_path);
    free(p.state_path);
    return rc;
}
