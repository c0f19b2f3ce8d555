/* The folder of a quantised checkpoint: its shards, their index, what is copied beside them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "engine/weights.h"
#include "tools/pack_quantize.h"

enum { COPY_BYTES = 1 << 20, SMALL_FILE_MAX = 1 << 28, HEADER_ALIGN = 8 };

/* What a model folder holds beside its weights; those that are there are copied. */
static const char *const small_files[] = {
    "config.json",           "generation_config.json",  "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
};

/* In a folder under construction: that it is ours, whatever it is called. */
static const char unfinished[] = "quantize.unfinished";

/* One tensor of the new shard. */
struct piece {
    const struct model_tensor *from;
    enum kern_dtype dtype; /* of its codes, followed by its scales; KERN_DTYPE_COUNT: as it was */
    bool expert;
    struct quantize_name name;
    struct quantize_dense dense;
};

static bool quantised(const struct piece *piece)
{
    return piece->dtype != KERN_DTYPE_COUNT;
}

struct writer {
    struct quantize *q;
    char *dir;                      /* under construction */
    int lock;                       /* held on it */
    struct base_buf map;            /* weight_map of the new index */
    uint64_t total_bytes;           /* of tensors */
    uint64_t done_bytes, all_bytes; /* of the source */
    unsigned char *buffer;          /* COPY_BYTES */
};

static int write_fault(const char *path, int code, struct base_err *err)
{
    return base_err_set(err, code, "%s: cannot be written: %s", path, strerror(-code));
}

static int put(FILE *to, const char *path, const void *bytes, size_t size, struct base_err *err)
{
    if (fwrite(bytes, 1, size, to) == size) return 0;
    return write_fault(path, errno ? -errno : -EIO, err);
}

/* Closes a file that is to stay. */
static int finish(FILE *to, const char *path, struct base_err *err)
{
    int rc = fflush(to) != 0 || fsync(fileno(to)) < 0 ? -errno : 0;
    if (fclose(to) != 0 && rc == 0) rc = -errno;
    return rc < 0 ? write_fault(path, rc, err) : 0;
}

static char *path_of(const struct writer *w, const char *name, struct base_err *err)
{
    char *path;
    if (asprintf(&path, "%s/%s", w->dir, name) >= 0) return path;
    base_err_set(err, -ENOMEM, "out of memory");
    return NULL;
}

static int write_file(const struct writer *w, const char *name, const void *bytes, size_t size,
                      struct base_err *err)
{
    char *path = path_of(w, name, err);
    if (!path) return -ENOMEM;
    FILE *to = fopen(path, "wbe");
    int rc = to ? put(to, path, bytes, size, err) : write_fault(path, -errno, err);
    if (rc < 0 && to) fclose(to);
    if (rc == 0) rc = finish(to, path, err);
    free(path);
    return rc;
}

static int copy_small(const struct writer *w, struct base_err *err)
{
    for (size_t i = 0; i < sizeof small_files / sizeof *small_files; i++) {
        char *path, *bytes = NULL;
        size_t size;
        /* Of its own: that a file is not there must not be what a later failure is told as. */
        struct base_err why = { 0 };
        if (asprintf(&path, "%s/%s", w->q->from, small_files[i]) < 0) return -ENOMEM;
        int rc = base_file_read(&bytes, &size, path, SMALL_FILE_MAX, &why);
        if (rc == 0)
            rc = write_file(w, small_files[i], bytes, size, err);
        else
            rc = rc == -ENOENT ? 0 : base_err_set(err, rc, "%s", why.text);
        free(bytes);
        free(path);
        if (rc < 0) return rc;
    }
    return 0;
}

/* Experts behind the rest, each one's parts together: one read brings them. */
static int by_place(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->expert != y->expert) return x->expert ? 1 : -1;
    if (x->expert) {
        if (x->name.moe_layer != y->name.moe_layer)
            return x->name.moe_layer < y->name.moe_layer ? -1 : 1;
        if (x->name.expert != y->name.expert) return x->name.expert < y->name.expert ? -1 : 1;
        return x->name.matrix < y->name.matrix ? -1 : x->name.matrix > y->name.matrix;
    }
    return x->from->offset < y->from->offset ? -1 : x->from->offset > y->from->offset;
}

/* The tensors of shard `file`, without the scales that go. */
static uint32_t list_pieces(const struct writer *w, uint32_t file, struct piece *pieces)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < model_files_count(w->q->files); i++) {
        const struct model_tensor *tensor = model_files_at(w->q->files, i);
        struct piece piece = { .from = tensor, .dtype = KERN_DTYPE_COUNT };
        const struct quantize *q = w->q;
        if (tensor->file != file) continue;
        piece.expert = q->dtype != KERN_DTYPE_COUNT &&
                       quantize_name_of(&q->shape, tensor->name, &piece.name);
        if (piece.expert && piece.name.scales) continue;
        if (piece.expert) piece.dtype = q->dtype;
        else if (quantize_dense_of(q, tensor, &piece.dense)) piece.dtype = KERN_INT8;
        if (!piece.expert && quantised(&piece) && piece.dense.scales) continue;
        pieces[count++] = piece;
    }
    qsort(pieces, count, sizeof *pieces, by_place);
    return count;
}

static void describe(struct writer *w, struct base_buf *header, const char *shard, const char *name,
                     const char *suffix, enum model_dtype dtype, const uint64_t *shape,
                     uint32_t dims, uint64_t bytes, uint64_t *at)
{
    base_buf_puts(header, ",\"");
    base_buf_json_escape(header, name, strlen(name));
    base_buf_printf(header, "%s\":{\"dtype\":\"%s\",\"shape\":[", suffix, model_dtype_name(dtype));
    for (uint32_t i = 0; i < dims; i++) {
        base_buf_printf(header, "%s%" PRIu64, i ? "," : "", shape[i]);
    }
    base_buf_printf(header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", *at, *at + bytes);
    base_buf_puts(&w->map, w->map.size ? ",\n    \"" : "    \"");
    base_buf_json_escape(&w->map, name, strlen(name));
    base_buf_printf(&w->map, "%s\": \"", suffix);
    base_buf_json_escape(&w->map, shard, strlen(shard));
    base_buf_puts(&w->map, "\"");
    *at += bytes;
    w->total_bytes += bytes;
}

static void write_header(struct writer *w, struct base_buf *header, const char *shard,
                         const struct piece *pieces, uint32_t count)
{
    const struct quantize *q = w->q;
    uint64_t at = 0;
    base_buf_puts(header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < count; i++) {
        const struct model_tensor *from = pieces[i].from;
        const enum kern_dtype dtype = pieces[i].dtype;
        if (!quantised(&pieces[i])) {
            describe(w, header, shard, from->name, "", from->dtype, from->shape, from->dims,
                     from->bytes, &at);
            continue;
        }
        uint64_t rows = from->shape[0], codes = quantize_code_bytes(dtype, from);
        uint64_t scales = quantize_scale_bytes(q, from);
        describe(w, header, shard, from->name, "", dtype == KERN_INT8 ? MODEL_I8 : MODEL_U8,
                 (uint64_t[]){ rows, codes / rows }, 2, codes, &at);
        describe(w, header, shard, from->name, "_scale_inv", MODEL_BF16,
                 (uint64_t[]){ rows, scales / rows / 2 }, 2, scales, &at);
    }
    base_buf_puts(header, "}");
    while (header->size % HEADER_ALIGN != 0 && base_buf_error(header) == 0) {
        base_buf_puts(header, " ");
    }
}

static int account(struct writer *w, uint64_t bytes, struct base_err *err)
{
    const struct tier_store_progress *progress = w->q->progress;
    w->done_bytes += bytes;
    if (progress && progress->report) {
        progress->report(progress->context, w->done_bytes, w->all_bytes);
    }
    if (progress && progress->stop && progress->stop(progress->context)) {
        return base_err_set(err, -ECANCELED, "stopped on request");
    }
    return 0;
}

static int copy_tensor(struct writer *w, const struct model_tensor *tensor, FILE *from, FILE *to,
                       const char *path, struct base_err *err)
{
    const char *name = model_files_shard(w->q->files, tensor->file)->path;
    if (fseeko(from, (off_t)tensor->offset, SEEK_SET) < 0) {
        return base_err_set(err, -errno, "%s: %s", name, strerror(errno));
    }
    for (uint64_t left = tensor->bytes; left > 0;) {
        size_t part = left < COPY_BYTES ? (size_t)left : COPY_BYTES;
        if (fread(w->buffer, 1, part, from) != part) {
            return base_err_set(err, -EIO, "%s: ends within tensor %s", name, tensor->name);
        }
        int rc = put(to, path, w->buffer, part, err);
        if (rc == 0) rc = account(w, part, err);
        if (rc < 0) return rc;
        left -= part;
    }
    return 0;
}

static int write_quantised(struct writer *w, const struct piece *piece, FILE *to, const char *path,
                           struct base_err *err)
{
    struct quantize *q = w->q;
    uint64_t codes = quantize_code_bytes(piece->dtype, piece->from);
    uint64_t scales = quantize_scale_bytes(q, piece->from);
    uint8_t *bytes = malloc(codes + scales);
    if (!bytes) return base_err_set(err, -ENOMEM, "out of memory");
    struct kern_quant_error *error =
        piece->expert ? &q->errors[piece->name.moe_layer * MODEL_MATRIX_COUNT + piece->name.matrix]
                      : quantize_dense_error(q, &piece->dense);
    int rc = quantize_matrix(q, piece->from, piece->dtype, bytes, bytes + codes, error, err);
    if (rc == 0) rc = put(to, path, bytes, codes + scales, err);
    if (rc == 0) rc = account(w, piece->from->bytes, err);
    free(bytes);
    return rc;
}

static int write_shard(struct writer *w, uint32_t file, struct piece *pieces, struct base_err *err)
{
    const struct model_shard *shard = model_files_shard(w->q->files, file);
    uint32_t count = list_pieces(w, file, pieces);
    struct base_buf header;
    base_buf_init(&header);
    write_header(w, &header, shard->name, pieces, count);
    uint64_t size = header.size;
    char *path = path_of(w, shard->name, err);
    FILE *from = fopen(shard->path, "rbe"), *to = path ? fopen(path, "wbe") : NULL;
    int rc = base_buf_error(&header);
    if (rc < 0) base_err_set(err, rc, "out of memory");
    if (rc == 0 && !from) rc = base_err_set(err, -errno, "%s: %s", shard->path, strerror(errno));
    if (rc == 0 && !to) rc = path ? write_fault(path, -errno, err) : -ENOMEM;
    if (rc == 0) rc = put(to, path, &size, sizeof size, err);
    if (rc == 0) rc = put(to, path, header.data, header.size, err);
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        rc = quantised(&pieces[i]) ? write_quantised(w, &pieces[i], to, path, err)
                                   : copy_tensor(w, pieces[i].from, from, to, path, err);
    }
    if (from) fclose(from);
    if (rc < 0 && to) fclose(to);
    if (rc == 0) rc = finish(to, path, err);
    free(path);
    base_buf_fini(&header);
    return rc;
}

static int write_map(struct writer *w, struct base_err *err)
{
    struct base_buf index;
    base_buf_init(&index);
    base_buf_printf(&index,
                    "{\n  \"metadata\": {\"total_size\": %" PRIu64 "},\n  \"weight_map\": "
                    "{\n",
                    w->total_bytes);
    if (base_buf_error(&w->map) == 0) base_buf_append(&index, w->map.data, w->map.size);
    base_buf_puts(&index, "\n  }\n}\n");
    int rc = base_buf_error(&index) < 0 ? base_buf_error(&index) : base_buf_error(&w->map);
    if (rc < 0) base_err_set(err, rc, "out of memory");
    if (rc == 0) {
        rc = write_file(w, "model.safetensors.index.json", index.data, index.size, err);
    }
    base_buf_fini(&index);
    return rc;
}

static int write_weights(struct writer *w, struct base_err *err)
{
    uint32_t shards = model_files_shards(w->q->files);
    struct piece *pieces = calloc(model_files_count(w->q->files), sizeof *pieces);
    w->buffer = malloc(COPY_BYTES);
    int rc = pieces && w->buffer ? 0 : base_err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < model_files_count(w->q->files); i++) {
        w->all_bytes += model_files_at(w->q->files, i)->bytes;
    }
    for (uint32_t file = 0; rc == 0 && file < shards; file++) {
        rc = write_shard(w, file, pieces, err);
    }
    bool single =
        shards == 1 && strcmp(model_files_shard(w->q->files, 0)->name, "model.safetensors") == 0;
    if (rc == 0 && !single) rc = write_map(w, err);
    free(pieces);
    free(w->buffer);
    return rc;
}

/* Every expert matrix must be there, of a type that can be read, and all alike. */
static int check_experts(struct quantize *q, struct base_err *err)
{
    const struct model_tensor *first[MODEL_MATRIX_COUNT] = { 0 };
    uint64_t found = 0;
    for (uint32_t i = 0; i < model_files_count(q->files); i++) {
        const struct model_tensor *t = model_files_at(q->files, i);
        struct quantize_name name;
        if (!quantize_name_of(&q->shape, t->name, &name) || name.scales) continue;
        bool down = name.matrix == MODEL_DOWN;
        uint32_t rows = down ? q->shape.hidden : q->shape.expert_width;
        uint32_t cols = down ? q->shape.expert_width : q->shape.hidden;
        enum kern_dtype dtype = eng_weights_dtype(t->dtype);
        if (dtype == KERN_DTYPE_COUNT || kern_dtype_grouped(dtype) || t->dims != 2 ||
            t->shape[0] != rows || t->shape[1] != cols) {
            return base_err_set(err, BASE_EMISMATCH,
                                "%s: tensor %s is %s; quantize reads F32, "
                                "F16, BF16 or F8_E4M3 of %u x %u",
                                q->from, t->name, model_dtype_name(t->dtype), rows, cols);
        }
        if (first[name.matrix] && first[name.matrix]->dtype != t->dtype) {
            return base_err_set(err, BASE_EMISMATCH, "%s: tensor %s is %s, %s is %s", q->from,
                                t->name, model_dtype_name(t->dtype), first[name.matrix]->name,
                                model_dtype_name(first[name.matrix]->dtype));
        }
        first[name.matrix] = t;
        found++;
    }
    uint64_t wanted =
        (uint64_t)model_shape_moe_layers(&q->shape) * q->shape.experts * MODEL_MATRIX_COUNT;
    if (found != wanted || wanted == 0) {
        return base_err_set(err, BASE_EMISMATCH,
                            "%s: has %" PRIu64 " matrices of routed experts, "
                            "config.json asks for %" PRIu64,
                            q->from, found, wanted);
    }
    for (int m = 0; m < MODEL_MATRIX_COUNT; m++) {
        char name[1100];
        snprintf(name, sizeof name, "%s_scale_inv", first[m]->name);
        const struct model_tensor *scales = model_files_find(q->files, name);
        q->expert_bytes_before += first[m]->bytes + (scales ? scales->bytes : 0);
        const uint64_t codes = quantize_code_bytes(q->dtype, first[m]);
        q->expert_bytes += codes + quantize_scale_bytes(q, first[m]);
        if (codes % 2 != 0) {
            return base_err_set(err, BASE_EMISMATCH,
                                "%s: %s has an odd number of weights, the "
                                "scales behind them would not be aligned",
                                q->from, first[m]->name);
        }
    }
    if (q->expert_bytes < q->expert_bytes_before || q->allow_larger) return 0;
    return base_err_set(err, BASE_EMISMATCH,
                        "%s: an expert of %s in groups of %u takes %" PRIu64
                        " bytes, as it is (%s) %" PRIu64 ": that is no smaller rung; "
                        "--allow-larger writes it all the same",
                        q->from, q->dtype == KERN_INT8 ? "int8" : "int4", q->group, q->expert_bytes,
                        model_dtype_name(first[MODEL_GATE]->dtype), q->expert_bytes_before);
}

static int check_dense(struct quantize *q, struct base_err *err)
{
    for (uint32_t i = 0; i < model_files_count(q->files); i++) {
        const struct model_tensor *t = model_files_at(q->files, i);
        struct quantize_dense dense;
        if (!quantize_dense_of(q, t, &dense)) continue;
        q->dense_bytes_before += t->bytes;
        if (dense.scales) continue;
        q->dense_bytes += quantize_code_bytes(KERN_INT8, t) + quantize_scale_bytes(q, t);
    }
    if (!q->dense || q->dense_bytes_before > 0) return 0;
    return base_err_set(err, BASE_EMISMATCH,
                        "%s: --dense has nothing to make smaller: no projection of attention, "
                        "dense or shared part or head is F32, F16 or BF16",
                        q->from);
}

static bool is_name(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* Removes the plain files in a folder, the one that says it is ours last. */
static void empty_folder(const char *dir)
{
    DIR *open_dir = opendir(dir);
    for (struct dirent *entry; open_dir && (entry = readdir(open_dir));) {
        if (is_name(entry) && strcmp(entry->d_name, unfinished) != 0) {
            unlinkat(dirfd(open_dir), entry->d_name, 0);
        }
    }
    if (open_dir) unlinkat(dirfd(open_dir), unfinished, 0);
    if (open_dir) closedir(open_dir);
}

static int sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0) close(fd);
    return rc;
}

static int check_absent(const struct writer *w, struct base_err *err)
{
    struct stat st;
    if (lstat(w->q->to, &st) < 0) return 0;
    return base_err_set(err, -EEXIST, "%s: is there already; quantize writes a new folder",
                        w->q->to);
}

/* Opens the folder under construction and locks it, made where it is not there. */
static int lock_folder(struct writer *w, const char *dir, struct base_err *err)
{
    struct stat held, named;
    for (;;) {
        int rc = mkdir(dir, 0755) < 0 ? -errno : 0;
        const bool made = rc == 0;
        if (rc < 0 && rc != -EEXIST) {
            return base_err_set(err, rc, "%s: cannot be made: %s", dir, strerror(-rc));
        }
        w->lock = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (w->lock >= 0 && flock(w->lock, LOCK_EX | LOCK_NB) == 0) {
            /* Between open and lock, the one who had it may have given it its last name. */
            if (fstat(w->lock, &held) == 0 && lstat(dir, &named) == 0 &&
                held.st_dev == named.st_dev && held.st_ino == named.st_ino) return 0;
            close(w->lock);
            w->lock = -1;
            continue;
        }
        if (w->lock < 0 && errno == ENOENT) continue;
        if (w->lock >= 0 && errno == EWOULDBLOCK) {
            return base_err_set(err, -EBUSY, "%s: another tier-pack is writing it", dir);
        }
        /* Network file systems lock no folders: there only a new one is surely nobody else's. */
        if (w->lock >= 0 && base_file_no_locks(errno)) {
            return made ? 0
                        : base_err_set(err, -EEXIST, "%s: is there, and here nobody can tell "
                                       "whether a tier-pack writes it; remove it if none does",
                                       dir);
        }
        return base_err_set(err, -errno, "%s: cannot be locked: %s", dir, strerror(errno));
    }
}

/* What a killed run left is thrown away, but nothing that is not surely of one. */
static int clean_folder(const char *dir, struct base_err *err)
{
    char *mark;
    if (asprintf(&mark, "%s/%s", dir, unfinished) < 0) {
        return base_err_set(err, -ENOMEM, "out of memory");
    }
    bool ours = access(mark, F_OK) == 0, empty = true;
    free(mark);
    if (ours) empty_folder(dir);
    DIR *open_dir = opendir(dir);
    for (struct dirent *entry; open_dir && (entry = readdir(open_dir));) {
        if (is_name(entry)) empty = false;
    }
    if (open_dir) closedir(open_dir);
    if (open_dir && empty) return 0;
    return base_err_set(err, -EEXIST, "%s: has files that no unfinished quantize left; move it "
                        "away", dir);
}

/* The folder that will be renamed, beside its last name. Its own name is fixed, so that a killed
 * run leaves at most one behind, which the next run takes over. */
static int make_folder(struct writer *w, struct base_err *err)
{
    char *dir;
    int rc = check_absent(w, err);
    if (rc < 0) return rc;
    if (asprintf(&dir, "%s.part", w->q->to) < 0) {
        return base_err_set(err, -ENOMEM, "out of memory");
    }
    rc = lock_folder(w, dir, err);
    if (rc == 0) rc = clean_folder(dir, err);
    if (rc < 0) {
        free(dir);
        return rc;
    }
    w->dir = dir;
    rc = write_file(w, unfinished, "", 0, err);
    /* Who had the lock before may have finished. */
    return rc == 0 ? check_absent(w, err) : rc;
}

static int publish(struct writer *w, struct base_err *err)
{
    char *parent = strdup(w->q->to);
    char *slash = parent ? strrchr(parent, '/') : NULL;
    if (slash == parent) slash++;
    if (slash) *slash = '\0';
    int rc = unlinkat(w->lock, unfinished, 0) < 0 ? -errno : sync_folder(w->dir);
    if (rc == 0 && rename(w->dir, w->q->to) < 0) rc = -errno;
    if (rc == 0) {
        /* It stays, whatever comes. */
        free(w->dir);
        w->dir = NULL;
        rc = sync_folder(slash ? parent : ".");
    }
    free(parent);
    return rc < 0 ? write_fault(w->q->to, rc, err) : 0;
}

int quantize_run(struct quantize *q, struct base_err *err)
{
    struct writer w = { .q = q, .lock = -1 };
    base_buf_init(&w.map);
    int rc = model_shape_load(&q->shape, q->from, err);
    if (rc == 0) rc = model_files_open(&q->files, q->from, err);
    if (rc == 0 && q->dtype != KERN_DTYPE_COUNT) rc = check_experts(q, err);
    if (rc == 0) rc = check_dense(q, err);
    if (rc == 0) {
        q->errors = calloc((size_t)model_shape_moe_layers(&q->shape) * MODEL_MATRIX_COUNT,
                           sizeof *q->errors);
        q->dense_errors = calloc((size_t)(q->shape.layers + 1) * QUANTIZE_PART_COUNT,
                                 sizeof *q->dense_errors);
        rc = q->errors && q->dense_errors ? 0 : -ENOMEM;
        if (rc == 0) rc = kern_par_create(&q->par, q->threads, NULL, NULL);
        if (rc < 0) base_err_set(err, rc, "%s: %s", q->from, strerror(-rc));
    }
    if (rc == 0) rc = make_folder(&w, err);
    if (rc == 0) rc = copy_small(&w, err);
    if (rc == 0) rc = write_weights(&w, err);
    if (rc == 0) rc = tier_store_index(w.dir, NULL, &q->shape, q->threads, q->progress, err);
    if (rc == 0) rc = publish(&w, err);
    if (rc < 0 && w.dir) {
        empty_folder(w.dir);
        rmdir(w.dir);
    }
    if (w.lock >= 0) close(w.lock);
    base_buf_fini(&w.map);
    free(w.dir);
    return rc;
}

void quantize_fini(struct quantize *q)
{
    kern_par_destroy(q->par);
    model_files_close(q->files);
    free(q->errors);
    free(q->dense_errors);
}
