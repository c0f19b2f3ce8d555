/* A checkpoint folder on disk: which tensor lies where. Reads headers only, never weights.
 *
 * Opens `model.safetensors.index.json` with its shards, or one `model.safetensors`. The headers are
 * hostile input: every length and offset is checked against the file's size, tensors may not
 * overlap nor leave the file, shape x dtype must give the length, duplicates and tensors that the
 * index promises but no shard holds are named.
 *
 * Immutable after open; any thread may look up. Memory: about 150 bytes a tensor.
 */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum model_dtype {
    MODEL_F32,
    MODEL_F16,
    MODEL_BF16,
    MODEL_F8_E4M3,
    MODEL_I8,
    MODEL_U8,
    MODEL_I32,
    MODEL_DTYPE_COUNT
};

size_t model_dtype_bytes(enum model_dtype dtype);
const char *model_dtype_name(enum model_dtype dtype);   /* as in the header: "F8_E4M3" */

enum { MODEL_DIMS_MAX = 4 };

struct model_tensor {
    const char *name;
    uint32_t file;              /* index of the shard */
    enum model_dtype dtype;
    uint32_t dims;
    uint64_t shape[MODEL_DIMS_MAX];
    uint64_t offset;            /* in the file, absolute */
    uint64_t bytes;
};

struct model_shard {
    char *path;                 /* DIR/name */
    char *name;                 /* as the index calls it, no directory part allowed */
    uint64_t bytes;
    int64_t mtime_ns;
    uint64_t header_hash;       /* XXH3 of the 8 length bytes and the header */
};

struct model_files;

int model_files_open(struct model_files **out, const char *dir, struct base_err *err);
void model_files_close(struct model_files *files);

uint32_t model_files_shards(const struct model_files *files);
const struct model_shard *model_files_shard(const struct model_files *files, uint32_t index);

/* NULL if there is no such tensor. Constant time. */
const struct model_tensor *model_files_find(const struct model_files *files, const char *name);
/* All tensors, in (shard, offset) order. */
uint32_t model_files_count(const struct model_files *files);
const struct model_tensor *model_files_at(const struct model_files *files, uint32_t index);

/* Reads a whole tensor into memory of at least tensor->bytes (ordinary buffered reads). 0, -errno,
 * or BASE_EFORMAT when the file ends early. The shard is opened and closed in the call. */
int model_files_read(const struct model_files *files, const struct model_tensor *tensor, void *to,
                     struct base_err *err);
/* The same of `bytes` from `offset` on, which must lie in the tensor. */
int model_files_read_part(const struct model_files *files, const struct model_tensor *tensor,
                          uint64_t offset, uint64_t bytes, void *to, struct base_err *err);

#endif
