/* Any bytes as a shard or as an index: opened with every tensor inside its file, or one sentence.
 *
 * The first byte chooses: even, the rest is model.safetensors; odd, the rest is an index beside one
 * good shard. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/le.h"
#include "base/must.h"
#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

const char *const fuzz_words[] = {
    "\"dtype\":\"F8_E4M3\"", "\"BF16\"", "\"shape\":[", "\"data_offsets\":[0,4]",
    "\"__metadata__\":{",
    "\"a_scale_inv\":", "\"weight_map\":{", "\"x.safetensors\"", "\"../x\"", "18446744073709551615",
    "-1", ",", "{", "}", "]", NULL,
};

/* A shard of two tensors, and an index that names the good shard. */
size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[4,8]}}";
    static const char map[] = "{\"metadata\":{\"total_size\":4},"
                              "\"weight_map\":{\"a\":\"x.safetensors\"}}";
    MUST(room >= 1 + 8 + sizeof header + 8);
    if (index > 1) return 0;
    to[0] = (uint8_t)index;
    if (index == 1) {
        memcpy(to + 1, map, sizeof map - 1);
        return sizeof map;
    }
    base_le_store64(to + 1, sizeof header - 1);
    memcpy(to + 9, header, sizeof header - 1);
    memset(to + 9 + sizeof header - 1, 0, 8);
    return 9 + sizeof header - 1 + 8;
}

static char dir[64];

static void file_write(const char *name, const void *bytes, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    MUST(write(fd, bytes, size) == (ssize_t)size);
    close(fd);
}

static void file_remove(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static void folder_remove(void)
{
    file_remove("model.safetensors");
    file_remove("model.safetensors.index.json");
    file_remove("x.safetensors");
    rmdir(dir);
}

static void folder_make(void)
{
    static const char header[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    char shard[8 + sizeof header - 1 + 4] = { sizeof header - 1 };
    memcpy(shard + 8, header, sizeof header - 1);
    /* In memory where the system has it: tens of thousands of small files a second. */
    snprintf(dir, sizeof dir, "/dev/shm/fuzz_safetensors_XXXXXX");
    if (!mkdtemp(dir)) {
        snprintf(dir, sizeof dir, "/tmp/fuzz_safetensors_XXXXXX");
        MUST(mkdtemp(dir) != NULL);
    }
    atexit(folder_remove);
    file_write("x.safetensors", shard, sizeof shard);
}

static void opened_check(const struct model_files *files)
{
    for (uint32_t i = 0; i < model_files_count(files); i++) {
        const struct model_tensor *tensor = model_files_at(files, i);
        const struct model_shard *shard = model_files_shard(files, tensor->file);
        MUST(tensor->offset <= shard->bytes && tensor->bytes <= shard->bytes - tensor->offset);
        MUST(model_files_find(files, tensor->name) == tensor);
        uint64_t bytes = model_dtype_bytes(tensor->dtype);
        for (uint32_t d = 0; d < tensor->dims; d++) bytes *= tensor->shape[d];
        MUST(bytes == tensor->bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    if (!dir[0]) folder_make();
    if (data[0] % 2 == 0) {
        file_remove("model.safetensors.index.json");
        file_write("model.safetensors", data + 1, size - 1);
    } else {
        file_write("model.safetensors.index.json", data + 1, size - 1);
    }
    struct model_files *files;
    struct base_err err = { 0 };
    int rc = model_files_open(&files, dir, &err);
    if (rc == 0) {
        opened_check(files);
    } else {
        MUST(!files && err.code == rc && err.text[0] && !strchr(err.text, '\n'));
    }
    model_files_close(files);
    return 0;
}
