#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/le.h"
#include "base/must.h"
#include "model/show.h"
#include "port/hash.h"
#include "port/json.h"

enum {
    FILES_MAGIC = 0x4d46494c,
    HEADER_BYTES_MAX = 100000000,       /* the limit of the format's own library */
    NAME_BYTES_MAX = 1024,
};

static const char index_name[] = "model.safetensors.index.json";
static const char single_name[] = "model.safetensors";

struct model_files {
    uint32_t magic;
    uint32_t shard_count;
    struct model_shard *shards;
    char **names;                       /* one block a shard: its tensors' names */
    uint32_t tensor_count;
    struct model_tensor *tensors;       /* in (shard, offset) order */
    uint32_t slot_mask;
    uint32_t *slots;                    /* hash table: tensor index + 1, 0 = free */
};

static const struct dtype {
    const char *name;
    size_t bytes;
} dtypes[MODEL_DTYPE_COUNT] = {
    [MODEL_F32] = { "F32", 4 },
    [MODEL_F16] = { "F16", 2 },
    [MODEL_BF16] = { "BF16", 2 },
    [MODEL_F8_E4M3] = { "F8_E4M3", 1 },
    [MODEL_I8] = { "I8", 1 },
    [MODEL_U8] = { "U8", 1 },
    [MODEL_I32] = { "I32", 4 },
};

size_t model_dtype_bytes(enum model_dtype dtype)
{
    MUST((unsigned)dtype < MODEL_DTYPE_COUNT);
    return dtypes[dtype].bytes;
}

const char *model_dtype_name(enum model_dtype dtype)
{
    MUST((unsigned)dtype < MODEL_DTYPE_COUNT);
    return dtypes[dtype].name;
}

static bool name_is_plain(const char *name, size_t size)
{
    if (size == 0 || size > NAME_BYTES_MAX) return false;
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    }
    return true;
}

static char *path_join(const char *dir, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

/* Reads exactly `size` bytes at `offset`; 0, -errno, or -ENODATA when the file ends early. */
static int read_at(int fd, void *to, uint64_t size, uint64_t offset)
{
    char *at = to;
    while (size > 0) {
        ssize_t got = pread(fd, at, size < 1u << 30 ? size : 1u << 30, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) return -ENODATA;
        at += got;
        offset += (uint64_t)got;
        size -= (uint64_t)got;
    }
    return 0;
}

/* What the members of one header are read into. */
struct header_reader {
    struct model_files *files;
    struct base_err *err;
    const char *path;
    uint32_t shard;
    uint64_t data_begin;                /* absolute */
    uint64_t data_bytes;
    char *name_at;                      /* next free byte of the shard's name block */
};

static int tensor_fault(const struct header_reader *r, const char *name, int code, const char *what)
{
    return base_err_set(r->err, code, "%s: tensor '%s': %s", r->path, model_show(name).text, what);
}

static int dtype_read(const struct header_reader *r, const char *name,
                      const struct port_json *entry, enum model_dtype *dtype)
{
    const char *text = port_json_text(port_json_get(entry, "dtype"), NULL);
    if (!text) return tensor_fault(r, name, BASE_EFORMAT, "dtype is missing or no string");
    for (unsigned i = 0; i < MODEL_DTYPE_COUNT; i++) {
        if (strcmp(dtypes[i].name, text) == 0) {
            *dtype = (enum model_dtype)i;
            return 0;
        }
    }
    return base_err_set(r->err, BASE_EVERSION,
                        "%s: tensor '%s' has dtype '%s', which is not supported (F32, F16, BF16, "
                        "F8_E4M3, I8, U8 and I32 are)",
                        r->path, model_show(name).text, model_show(text).text);
}

/* Shape and the bytes that it asks for. */
static int shape_read(const struct header_reader *r, const struct port_json *entry,
                      struct model_tensor *tensor, uint64_t *bytes)
{
    const struct port_json *shape = port_json_get(entry, "shape");
    if (!shape || port_json_type(shape) != PORT_JSON_ARRAY) {
        return tensor_fault(r, tensor->name, BASE_EFORMAT, "shape is missing or no array");
    }
    if (port_json_count(shape) > MODEL_DIMS_MAX) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: tensor '%s' has %zu dimensions, at most %d are supported", r->path,
                            model_show(tensor->name).text, port_json_count(shape), MODEL_DIMS_MAX);
    }
    tensor->dims = (uint32_t)port_json_count(shape);
    *bytes = model_dtype_bytes(tensor->dtype);
    for (uint32_t i = 0; i < tensor->dims; i++) {
        const struct port_json *value = port_json_at(shape, i);
        if (port_json_type(value) != PORT_JSON_INT || port_json_as_i64(value) < 0) {
            return tensor_fault(r, tensor->name, BASE_EFORMAT,
                                "shape holds something that is no whole number from 0 up");
        }
        tensor->shape[i] = (uint64_t)port_json_as_i64(value);
        if (__builtin_mul_overflow(*bytes, tensor->shape[i], bytes)) {
            return tensor_fault(r, tensor->name, BASE_EFORMAT,
                                "the product of its shape exceeds 64 bits");
        }
    }
    return 0;
}

static int offsets_read(const struct header_reader *r, const struct port_json *entry,
                        struct model_tensor *tensor, uint64_t expected_bytes)
{
    const struct port_json *pair = port_json_get(entry, "data_offsets");
    const struct port_json *first = port_json_at(pair, 0), *second = port_json_at(pair, 1);
    if (!pair || port_json_count(pair) != 2 || port_json_type(pair) != PORT_JSON_ARRAY ||
        port_json_type(first) != PORT_JSON_INT || port_json_type(second) != PORT_JSON_INT) {
        return tensor_fault(r, tensor->name, BASE_EFORMAT,
                            "data_offsets must be two whole numbers");
    }
    int64_t begin = port_json_as_i64(first), end = port_json_as_i64(second);
    if (begin < 0 || end < begin) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: tensor '%s': data_offsets [%lld, %lld] must rise from 0", r->path,
                            model_show(tensor->name).text, (long long)begin, (long long)end);
    }
    if ((uint64_t)end > r->data_bytes) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: tensor '%s' ends at data byte %lld, but the file holds only %llu "
                            "data bytes (is it truncated?)",
                            r->path, model_show(tensor->name).text, (long long)end,
                            (unsigned long long)r->data_bytes);
    }
    tensor->offset = r->data_begin + (uint64_t)begin;
    tensor->bytes = (uint64_t)(end - begin);
    if (tensor->bytes != expected_bytes) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: tensor '%s': data_offsets give %llu bytes, its shape and dtype %s "
                            "need %llu",
                            r->path, model_show(tensor->name).text,
                            (unsigned long long)tensor->bytes, model_dtype_name(tensor->dtype),
                            (unsigned long long)expected_bytes);
    }
    return 0;
}

static int metadata_check(const struct header_reader *r, const struct port_json *value)
{
    if (port_json_type(value) == PORT_JSON_OBJECT) return 0;
    return base_err_set(r->err, BASE_EFORMAT, "%s: __metadata__ must be an object", r->path);
}

static int member_read(void *context, const char *key, size_t key_size,
                       const struct port_json *entry)
{
    struct header_reader *r = context;
    if (strcmp(key, "__metadata__") == 0 && key_size == strlen(key)) {
        return metadata_check(r, entry);
    }
    if (strlen(key) != key_size || !name_is_plain(key, key_size)) {
        return base_err_set(r->err, BASE_EFORMAT,
                            "%s: tensor name '%s' is empty, longer than %d bytes or holds control "
                            "characters",
                            r->path, model_show(key).text, NAME_BYTES_MAX);
    }
    if (port_json_type(entry) != PORT_JSON_OBJECT) {
        return tensor_fault(r, key, BASE_EFORMAT,
                            "its entry must be an object with dtype, shape and data_offsets");
    }
    struct model_tensor *tensor = &r->files->tensors[r->files->tensor_count];
    *tensor = (struct model_tensor){ .name = memcpy(r->name_at, key, key_size + 1),
                                     .file = r->shard };
    uint64_t bytes = 0;
    int rc = dtype_read(r, key, entry, &tensor->dtype);
    if (rc == 0) rc = shape_read(r, entry, tensor, &bytes);
    if (rc == 0) rc = offsets_read(r, entry, tensor, bytes);
    if (rc < 0) return rc;
    r->name_at += key_size + 1;
    r->files->tensor_count++;
    return 0;
}

static int member_measure(void *context, const char *key, size_t key_size,
                          const struct port_json *entry)
{
    (void)key;
    (void)entry;
    *(size_t *)context += key_size + 1;
    return 0;
}

static int tensor_compare(const void *a, const void *b)
{
    const struct model_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The format knows no holes: sorted by offset, each tensor begins where the one before it ends, and
 * the last one ends with the file. */
static int layout_check(const struct header_reader *r, uint32_t first)
{
    const struct model_files *files = r->files;
    uint64_t at = r->data_begin;
    for (uint32_t i = first; i < files->tensor_count; i++) {
        const struct model_tensor *tensor = &files->tensors[i];
        if (tensor->offset < at) {
            return base_err_set(
                r->err, BASE_EFORMAT, "%s: tensors '%s' and '%s' overlap at data byte %llu",
                r->path, model_show(files->tensors[i - 1].name).text, model_show(tensor->name).text,
                (unsigned long long)(tensor->offset - r->data_begin));
        }
        if (tensor->offset > at) {
            return base_err_set(
                r->err, BASE_EFORMAT, "%s: %llu bytes before tensor '%s' belong to no tensor",
                r->path, (unsigned long long)(tensor->offset - at), model_show(tensor->name).text);
        }
        at += tensor->bytes;
    }
    if (at == r->data_begin + r->data_bytes) return 0;
    return base_err_set(r->err, BASE_EFORMAT, "%s: %llu bytes at the end belong to no tensor",
                        r->path, (unsigned long long)(r->data_begin + r->data_bytes - at));
}

static int header_parse(struct header_reader *r, const char *text, size_t size)
{
    struct model_files *files = r->files;
    struct port_json *root = NULL;
    if (size == 0 || text[0] != '{') {
        return base_err_set(r->err, BASE_EFORMAT, "%s: the header must begin with '{'", r->path);
    }
    int rc = port_json_parse(&root, text, size, r->path, r->err);
    if (rc < 0) return rc;
    size_t name_bytes = 0;
    port_json_each(root, member_measure, &name_bytes);
    rc = -ENOMEM;
    uint64_t count = files->tensor_count + (uint64_t)port_json_count(root);
    if (count >= UINT32_MAX / 4) goto end;
    struct model_tensor *grown = realloc(files->tensors, (count + 1) * sizeof *grown);
    if (grown) files->tensors = grown;
    files->names[r->shard] = malloc(name_bytes + 1);
    if (!grown || !files->names[r->shard]) goto end;
    r->name_at = files->names[r->shard];
    uint32_t first = files->tensor_count;
    rc = port_json_each(root, member_read, r);
    if (rc < 0) goto end;
    qsort(files->tensors + first, files->tensor_count - first, sizeof *files->tensors,
          tensor_compare);
    rc = layout_check(r, first);
end:
    port_json_free(root);
    return rc;
}

static int shard_check_size(const char *path, const struct stat *st, struct base_err *err)
{
    if (!S_ISREG(st->st_mode)) {
        return base_err_set(err, BASE_EFORMAT, "%s: not a regular file", path);
    }
    if (st->st_size >= 8) return 0;
    return base_err_set(err, BASE_EFORMAT,
                        "%s: the file has %lld bytes, a safetensors file has at least 8", path,
                        (long long)st->st_size);
}

static int header_read(struct model_files *files, uint32_t index, int fd, struct base_err *err)
{
    struct model_shard *shard = &files->shards[index];
    unsigned char length[8];
    int rc = read_at(fd, length, sizeof length, 0);
    if (rc < 0) return base_err_set(err, rc, "%s: cannot read: %s", shard->path, base_err_name(rc));
    uint64_t size = base_le_load64(length);
    if (size > HEADER_BYTES_MAX) {
        return base_err_set(err, BASE_EFORMAT,
                            "%s: the header claims %llu bytes, at most %d are allowed", shard->path,
                            (unsigned long long)size, HEADER_BYTES_MAX);
    }
    if (size > shard->bytes - 8) {
        return base_err_set(err, BASE_EFORMAT,
                            "%s: the header claims %llu bytes, the file has only %llu after its "
                            "length",
                            shard->path, (unsigned long long)size,
                            (unsigned long long)(shard->bytes - 8));
    }
    char *text = malloc(size + 1);
    if (!text) return -ENOMEM;
    rc = read_at(fd, text, size, 8);
    if (rc < 0) {
        base_err_set(err, rc, "%s: cannot read the header: %s", shard->path, base_err_name(rc));
        goto end;
    }
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, length, sizeof length);
    port_hash_add(&hash, text, size);
    shard->header_hash = port_hash_end(&hash);
    struct header_reader reader = {
        .files = files,
        .err = err,
        .path = shard->path,
        .shard = index,
        .data_begin = 8 + size,
        .data_bytes = shard->bytes - 8 - size,
    };
    rc = header_parse(&reader, text, size);
end:
    free(text);
    return rc;
}

static int shard_open(struct model_files *files, uint32_t index, struct base_err *err)
{
    struct model_shard *shard = &files->shards[index];
    struct stat st;
    /* O_NONBLOCK: opening a FIFO that lies there by mistake must not hang. */
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int rc = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;
    if (rc < 0) {
        base_err_set(err, rc, "%s: cannot open: %s", shard->path, base_err_name(rc));
        goto end;
    }
    rc = shard_check_size(shard->path, &st, err);
    if (rc < 0) goto end;
    shard->bytes = (uint64_t)st.st_size;
    shard->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    rc = header_read(files, index, fd, err);
end:
    if (fd >= 0) close(fd);
    return rc;
}

/* The names of the shards, sorted and unique, from the index's weight_map. */
struct shard_names {
    const char **names;
    size_t count;
    const char *path;
    struct base_err *err;
};

static int weight_map_member(void *context, const char *key, size_t key_size,
                             const struct port_json *value)
{
    struct shard_names *list = context;
    size_t size;
    const char *name = port_json_text(value, &size);
    if (strlen(key) != key_size || !name_is_plain(key, key_size)) {
        return base_err_set(list->err, BASE_EFORMAT,
                            "%s: weight_map: tensor name '%s' is empty, longer than %d bytes or "
                            "holds control characters",
                            list->path, model_show(key).text, NAME_BYTES_MAX);
    }
    if (!name) {
        return base_err_set(list->err, BASE_EFORMAT,
                            "%s: weight_map: tensor '%s' must name its shard in a string",
                            list->path, model_show(key).text);
    }
    if (strlen(name) != size || !name_is_plain(name, size) || strchr(name, '/') || name[0] == '.' ||
        size > 255) {
        return base_err_set(list->err, BASE_EFORMAT,
                            "%s: weight_map: tensor '%s' lies in '%s', which is no plain file name "
                            "of this folder",
                            list->path, model_show(key).text, model_show(name).text);
    }
    list->names[list->count++] = name;
    return 0;
}

static int text_compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int shards_add(struct model_files *files, const char *dir, const char **names, size_t count)
{
    files->shards = calloc(count ? count : 1, sizeof *files->shards);
    files->names = calloc(count ? count : 1, sizeof *files->names);
    if (!files->shards || !files->names) return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct model_shard *shard = &files->shards[files->shard_count++];
        shard->name = strdup(names[i]);
        shard->path = path_join(dir, names[i]);
        if (!shard->name || !shard->path) return -ENOMEM;
    }
    return 0;
}

static int shards_from_index(struct model_files *files, const char *dir, const char *path,
                             const struct port_json *index, struct base_err *err)
{
    const struct port_json *map = port_json_get(index, "weight_map");
    if (!map || port_json_type(map) != PORT_JSON_OBJECT || port_json_count(map) == 0) {
        return base_err_set(err, BASE_EFORMAT,
                            "%s: weight_map must be an object that maps tensors to shards", path);
    }
    struct shard_names list = { .path = path, .err = err };
    list.names = calloc(port_json_count(map), sizeof *list.names);
    if (!list.names) return -ENOMEM;
    int rc = port_json_each(map, weight_map_member, &list);
    if (rc < 0) goto end;
    qsort(list.names, list.count, sizeof *list.names, text_compare);
    size_t unique = 0;
    for (size_t i = 0; i < list.count; i++) {
        if (i == 0 || strcmp(list.names[i], list.names[i - 1]) != 0) {
            list.names[unique++] = list.names[i];
        }
    }
    rc = shards_add(files, dir, list.names, unique);
end:
    free(list.names);
    return rc;
}

static const struct model_tensor *slot_find(const struct model_files *files, const char *name,
                                            uint32_t *slot)
{
    *slot = (uint32_t)port_hash64(name, strlen(name)) & files->slot_mask;
    for (; files->slots[*slot]; *slot = (*slot + 1) & files->slot_mask) {
        const struct model_tensor *tensor = &files->tensors[files->slots[*slot] - 1];
        if (strcmp(tensor->name, name) == 0) return tensor;
    }
    return NULL;
}

static int lookup_build(struct model_files *files, struct base_err *err)
{
    uint32_t slots = 16;
    while (slots / 2 < files->tensor_count) slots *= 2;
    files->slots = calloc(slots, sizeof *files->slots);
    if (!files->slots) return -ENOMEM;
    files->slot_mask = slots - 1;
    for (uint32_t i = 0; i < files->tensor_count; i++) {
        uint32_t slot;
        const struct model_tensor *twin = slot_find(files, files->tensors[i].name, &slot);
        if (twin) {
            return base_err_set(err, BASE_EFORMAT, "%s: tensor '%s' is also in %s",
                                files->shards[files->tensors[i].file].path,
                                model_show(twin->name).text, files->shards[twin->file].name);
        }
        files->slots[slot] = i + 1;
    }
    return 0;
}

struct index_check {
    const struct model_files *files;
    const char *path;
    struct base_err *err;
};

static int promise_check(void *context, const char *key, size_t key_size,
                         const struct port_json *value)
{
    (void)key_size;
    const struct index_check *check = context;
    const char *shard = port_json_text(value, NULL);
    const struct model_tensor *tensor = model_files_find(check->files, key);
    if (!tensor) {
        return base_err_set(check->err, BASE_EMISMATCH,
                            "%s: tensor '%s' should be in '%s', but is not there", check->path,
                            model_show(key).text, model_show(shard).text);
    }
    const char *actual = check->files->shards[tensor->file].name;
    if (strcmp(actual, shard) == 0) return 0;
    return base_err_set(check->err, BASE_EMISMATCH,
                        "%s: tensor '%s' should be in '%s', but is in '%s'", check->path,
                        model_show(key).text, model_show(shard).text, actual);
}

/* Reads the headers of the shards already listed; `index` may be NULL (a single file). */
static int files_read(struct model_files *files, const struct port_json *index, const char *path,
                      struct base_err *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < files->shard_count; i++) {
        rc = shard_open(files, i, err);
    }
    if (rc == 0) rc = lookup_build(files, err);
    if (rc < 0 || !index) return rc;
    /* A tensor that a shard holds and the index does not list is accepted: it was checked like any
     * other, and Hugging Face loads it too. */
    struct index_check check = { .files = files, .path = path, .err = err };
    return port_json_each(port_json_get(index, "weight_map"), promise_check, &check);
}

int model_files_open(struct model_files **out, const char *dir, struct base_err *err)
{
    *out = NULL;
    struct port_json *index = NULL;
    struct model_files *files = calloc(1, sizeof *files);
    char *path = path_join(dir, index_name);
    int rc = -ENOMEM;
    if (!files || !path) goto fail;
    files->magic = FILES_MAGIC;
    if (access(path, F_OK) == 0) {
        rc = port_json_load(&index, path, HEADER_BYTES_MAX, err);
        if (rc == 0) rc = shards_from_index(files, dir, path, index, err);
    } else {
        const char *name = single_name;
        rc = shards_add(files, dir, &name, 1);
        if (rc == 0 && access(files->shards[0].path, F_OK) < 0) {
            rc = base_err_set(err, -errno, "%s: there is neither %s nor %s: %s", dir, index_name,
                              single_name, base_err_name(-errno));
        }
    }
    if (rc == 0) rc = files_read(files, index, path, err);
    if (rc < 0) goto fail;
    port_json_free(index);
    free(path);
    *out = files;
    return 0;
fail:
    if (rc == -ENOMEM) base_err_set(err, rc, "%s: out of memory while reading headers", dir);
    port_json_free(index);
    free(path);
    model_files_close(files);
    return rc;
}

void model_files_close(struct model_files *files)
{
    if (!files) return;
    for (uint32_t i = 0; i < files->shard_count; i++) {
        free(files->shards[i].path);
        free(files->shards[i].name);
        free(files->names[i]);
    }
    free(files->shards);
    free(files->names);
    free(files->tensors);
    free(files->slots);
    files->magic = 0;
    free(files);
}

uint32_t model_files_shards(const struct model_files *files)
{
    MUST_MAGIC(files, FILES_MAGIC);
    return files->shard_count;
}

const struct model_shard *model_files_shard(const struct model_files *files, uint32_t index)
{
    MUST_MAGIC(files, FILES_MAGIC);
    MUST(index < files->shard_count);
    return &files->shards[index];
}

const struct model_tensor *model_files_find(const struct model_files *files, const char *name)
{
    MUST_MAGIC(files, FILES_MAGIC);
    uint32_t slot;
    return slot_find(files, name, &slot);
}

uint32_t model_files_count(const struct model_files *files)
{
    MUST_MAGIC(files, FILES_MAGIC);
    return files->tensor_count;
}

const struct model_tensor *model_files_at(const struct model_files *files, uint32_t index)
{
    MUST_MAGIC(files, FILES_MAGIC);
    MUST(index < files->tensor_count);
    return &files->tensors[index];
}

int model_files_read(const struct model_files *files, const struct model_tensor *tensor, void *to,
                     struct base_err *err)
{
    return model_files_read_part(files, tensor, 0, tensor->bytes, to, err);
}

int model_files_read_part(const struct model_files *files, const struct model_tensor *tensor,
                          uint64_t offset, uint64_t bytes, void *to, struct base_err *err)
{
    MUST_MAGIC(files, FILES_MAGIC);
    MUST(tensor->file < files->shard_count);
    MUST(offset <= tensor->bytes && bytes <= tensor->bytes - offset);
    const char *path = files->shards[tensor->file].path;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return base_err_set(err, -errno, "%s: cannot open: %s", path, base_err_name(-errno));
    }
    int rc = read_at(fd, to, bytes, tensor->offset + offset);
    close(fd);
    if (rc == -ENODATA) {
        return base_err_set(err, BASE_EFORMAT, "%s: the file ends inside tensor '%s'", path,
                            model_show(tensor->name).text);
    }
    if (rc < 0) {
        return base_err_set(err, rc, "%s: cannot read tensor '%s': %s", path,
                            model_show(tensor->name).text, base_err_name(rc));
    }
    return 0;
}
