/* Good checkpoints open and read back; every lie of a header or an index gets one sentence. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/le.h"
#include "base/rng.h"
#include "model/safetensors.h"
#include "port/hash.h"

enum { LENGTH_AS_IS = -1 };

static char dir[] = "/tmp/check_safetensors_XXXXXX";

static void setup(void)
{
    strcpy(dir + strlen(dir) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void folder_clear(void)
{
    DIR *d = opendir(dir);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *entry; (entry = readdir(d));) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (entry->d_name[0] != '.' && unlink(path) < 0) rmdir(path);
    }
    closedir(d);
}

static void teardown(void)
{
    folder_clear();
    rmdir(dir);
}

static void file_write(const char *name, const void *bytes, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

/* Length, header, then data bytes 0, 1, 2 ...; the length may lie. */
static void shard_write(const char *name, const char *header, size_t data_bytes, int64_t length)
{
    size_t size = strlen(header);
    unsigned char *file = calloc(1, 8 + size + data_bytes);
    base_le_store64(file, length == LENGTH_AS_IS ? size : (uint64_t)length);
    memcpy(file + 8, header, size);
    for (size_t i = 0; i < data_bytes; i++) file[8 + size + i] = (unsigned char)i;
    file_write(name, file, 8 + size + data_bytes);
    free(file);
}

static int open_folder(struct model_files **files, struct base_err *err)
{
    *err = (struct base_err){ 0 };
    return model_files_open(files, dir, err);
}

static void open_good(struct model_files **files)
{
    struct base_err err;
    int rc = open_folder(files, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
}

START_TEST(single_file_is_read)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
        "\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]},"
        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
        "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[16,20]}}   ";
    struct model_files *files;
    shard_write("model.safetensors", header, 20, LENGTH_AS_IS);
    open_good(&files);
    ck_assert_uint_eq(model_files_shards(files), 1);
    ck_assert_uint_eq(model_files_count(files), 4);
    ck_assert_str_eq(model_files_at(files, 0)->name, "a");
    ck_assert_str_eq(model_files_at(files, 1)->name, "empty");
    ck_assert_str_eq(model_files_at(files, 2)->name, "b");
    const struct model_tensor *b = model_files_find(files, "b");
    ck_assert_ptr_eq(b, model_files_at(files, 2));
    ck_assert_int_eq(b->dtype, MODEL_BF16);
    ck_assert_uint_eq(b->dims, 2);
    ck_assert_uint_eq(b->shape[1], 3);
    ck_assert_uint_eq(b->bytes, 12);
    ck_assert_uint_eq(b->offset, 8 + strlen(header) + 4);
    unsigned char bytes[12];
    struct base_err err = { 0 };
    ck_assert_int_eq(model_files_read(files, b, bytes, &err), 0);
    for (unsigned i = 0; i < 12; i++) ck_assert_uint_eq(bytes[i], 4 + i);
    ck_assert_uint_eq(model_files_find(files, "scalar")->bytes, 4);
    ck_assert_ptr_null(model_files_find(files, "c"));
    const struct model_shard *shard = model_files_shard(files, 0);
    ck_assert_uint_eq(shard->bytes, 8 + strlen(header) + 20);
    unsigned char whole[8 + sizeof header];
    base_le_store64(whole, strlen(header));
    memcpy(whole + 8, header, strlen(header));
    ck_assert_uint_eq(shard->header_hash, port_hash64(whole, 8 + strlen(header)));
    /* A file that shrinks after it was opened is noticed by the read. */
    ck_assert_int_eq(truncate(shard->path, (off_t)b->offset + 5), 0);
    ck_assert_int_eq(model_files_read(files, b, bytes, &err), BASE_EFORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "ends inside tensor 'b'"));
    model_files_close(files);
}
END_TEST

START_TEST(small_model_is_read)
{
    char path[4096];
    const char *root = getenv("EXPERTIER_SOURCE");
    snprintf(path, sizeof path, "%s/models/pebble", root ? root : ".");
    struct model_files *files;
    struct base_err err = { 0 };
    ck_assert_msg(model_files_open(&files, path, &err) == 0, "%s", err.text);
    ck_assert_uint_eq(model_files_shards(files), 3);
    uint64_t total = 0;
    for (uint32_t i = 0; i < model_files_count(files); i++) {
        const struct model_tensor *t = model_files_at(files, i);
        ck_assert_ptr_eq(model_files_find(files, t->name), t);
        total += t->bytes;
    }
    ck_assert_uint_eq(total, 32581016);     /* metadata.total_size of its index */
    model_files_close(files);
}
END_TEST

#define T(dtype, shape, begin, end) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static const struct broken {
    const char *header;
    size_t data_bytes;
    int64_t length;
    int code;
    const char *says;
} brokens[] = {
    { "", 0, 0, BASE_EFORMAT, "must begin with '{'" },
    { "{}", 0, 3, BASE_EFORMAT, "claims 3 bytes" },
    { "{}", 0, 100000001, BASE_EFORMAT, "at most 100000000" },
    { "{}", 0, INT64_MIN, BASE_EFORMAT, "at most 100000000" },
    { "{}", 5, LENGTH_AS_IS, BASE_EFORMAT, "5 bytes at the end belong to no tensor" },
    { "[]", 0, LENGTH_AS_IS, BASE_EFORMAT, "must begin with '{'" },
    { " {}", 0, LENGTH_AS_IS, BASE_EFORMAT, "must begin with '{'" },
    { "{\"a\":" T("F32", "[1]", 0, 4), 4, LENGTH_AS_IS, BASE_EFORMAT, "model.safetensors:1:" },
    { "{\"a\":" T("F32", "[1]", 0, 4) "}x", 4, LENGTH_AS_IS, BASE_EFORMAT, "model.safetensors:1:" },
    { "{\"a\":" T("F32", "[1]", 0, 4) ",\"a\":" T("F32", "[1]", 4, 8) "}", 8, LENGTH_AS_IS,
      BASE_EFORMAT, "a" },
    { "{\"a\xff\":" T("F32", "[1]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "model.safetensors:1:" },
    { "{\"\":" T("F32", "[1]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "tensor name" },
    { "{\"a\\nb\":" T("F32", "[1]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "'a?b'" },
    { "{\"__metadata__\":[]}", 0, LENGTH_AS_IS, BASE_EFORMAT, "__metadata__" },
    { "{\"a\":7}", 0, LENGTH_AS_IS, BASE_EFORMAT, "'a': its entry must be an object" },
    { "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, LENGTH_AS_IS, BASE_EFORMAT, "dtype" },
    { "{\"a\":" T("F64", "[1]", 0, 8) "}", 8, LENGTH_AS_IS, BASE_EVERSION, "'F64'" },
    { "{\"a\":" T("F8_E5M2", "[1]", 0, 1) "}", 1, LENGTH_AS_IS, BASE_EVERSION, "'F8_E5M2'" },
    { "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "shape is missing" },
    { "{\"a\":" T("F32", "[-1]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "no whole number" },
    { "{\"a\":" T("F32", "[1.0]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "no whole number" },
    { "{\"a\":" T("F32", "[1,1,1,1,1]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "5 dimensions" },
    { "{\"a\":" T("F32", "[4294967296,4294967296]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "exceeds 64 bits" },
    { "{\"a\":" T("F32", "[9223372036854775807]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "exceeds 64 bits" },
    { "{\"a\":" T("F32", "[99999999999999999999]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "model.safetensors:1:" },
    { "{\"a\":" T("F32", "[2]", 0, 4) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "need 8" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, LENGTH_AS_IS, BASE_EFORMAT,
      "data_offsets must be two" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, LENGTH_AS_IS,
      BASE_EFORMAT, "data_offsets must be two" },
    { "{\"a\":" T("F32", "[1]", 4, 0) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "must rise from 0" },
    { "{\"a\":" T("F32", "[1]", -4, 0) "}", 4, LENGTH_AS_IS, BASE_EFORMAT, "must rise from 0" },
    { "{\"a\":" T("F32", "[2]", 0, 8) "}", 7, LENGTH_AS_IS, BASE_EFORMAT, "truncated" },
    { "{\"a\":" T("F32", "[1]", 9223372036854775803, 9223372036854775807) "}", 4, LENGTH_AS_IS,
      BASE_EFORMAT, "holds only 4" },
    { "{\"a\":" T("F32", "[2]", 0, 8) ",\"b\":" T("F32", "[2]", 4, 12) "}", 12, LENGTH_AS_IS,
      BASE_EFORMAT, "'a' and 'b' overlap" },
    { "{\"a\":" T("F32", "[1]", 0, 4) ",\"b\":" T("F32", "[1]", 0, 4) "}", 4, LENGTH_AS_IS,
      BASE_EFORMAT, "'a' and 'b' overlap" },
    { "{\"a\":" T("F32", "[1]", 0, 4) ",\"b\":" T("F32", "[1]", 8, 12) "}", 12, LENGTH_AS_IS,
      BASE_EFORMAT, "4 bytes before tensor 'b'" },
};

static void refused(int code, const char *says)
{
    struct model_files *files;
    struct base_err err;
    int rc = open_folder(&files, &err);
    ck_assert_msg(rc == code, "code %d, not %d: '%s' should say '%s'", rc, code, err.text, says);
    ck_assert_ptr_null(files);
    ck_assert_int_eq(err.code, rc);
    ck_assert_msg(strstr(err.text, says) && strstr(err.text, dir), "'%s' does not say '%s'",
                  err.text, says);
    ck_assert_ptr_null(strchr(err.text, '\n'));
}

START_TEST(broken_headers_get_one_sentence)
{
    for (size_t i = 0; i < sizeof brokens / sizeof brokens[0]; i++) {
        const struct broken *b = &brokens[i];
        shard_write("model.safetensors", b->header, b->data_bytes, b->length);
        refused(b->code, b->says);
    }
}
END_TEST

#define INDEX "model.safetensors.index.json"
#define A "{\"a\":" T("F32", "[1]", 0, 4) "}"
#define B "{\"b\":" T("U8", "[4]", 0, 4) "}"

static const struct broken_index {
    const char *index;
    const char *first, *second;         /* headers of x.safetensors and y.safetensors, or NULL */
    int code;
    const char *says;
} broken_indexes[] = {
    { "{\"weight_map\":", A, B, BASE_EFORMAT, INDEX ":1" },
    { "{}", A, B, BASE_EFORMAT, "weight_map" },
    { "{\"weight_map\":[]}", A, B, BASE_EFORMAT, "weight_map" },
    { "{\"weight_map\":{}}", A, B, BASE_EFORMAT, "weight_map" },
    { "{\"weight_map\":{\"a\":1}}", A, B, BASE_EFORMAT, "'a' must name its shard" },
    { "{\"weight_map\":{\"a\":\"../x.safetensors\"}}", A, B, BASE_EFORMAT, "no plain file name" },
    { "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", A, B, BASE_EFORMAT, "no plain file name" },
    { "{\"weight_map\":{\"a\":\"..\"}}", A, B, BASE_EFORMAT, "no plain file name" },
    { "{\"weight_map\":{\"a\":\"x\\u0000y\"}}", A, B, BASE_EFORMAT, INDEX },
    { "{\"weight_map\":{\"a\":\"\"}}", A, B, BASE_EFORMAT, "no plain file name" },
    { "{\"weight_map\":{\"a\":\"z.safetensors\"}}", A, B, -ENOENT, "z.safetensors: cannot open" },
    { "{\"weight_map\":{\"a\":\"folder\"}}", A, B, BASE_EFORMAT, "not a regular file" },
    { "{\"weight_map\":{\"a\":\"short\"}}", A, B, BASE_EFORMAT, "at least 8" },
    { "{\"weight_map\":{\"a\":\"x.safetensors\",\"c\":\"y.safetensors\"}}", A, B, BASE_EMISMATCH,
      "'c' should be in 'y.safetensors', but is not there" },
    { "{\"weight_map\":{\"a\":\"y.safetensors\",\"b\":\"x.safetensors\"}}", A, B, BASE_EMISMATCH,
      "but is in 'x.safetensors'" },
    { "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}", A, A, BASE_EFORMAT,
      "'a' is also in x.safetensors" },
    { "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}}", A, B, BASE_EFORMAT,
      INDEX ":1" },
};

START_TEST(broken_indexes_get_one_sentence)
{
    char path[512];
    snprintf(path, sizeof path, "%s/folder", dir);
    for (size_t i = 0; i < sizeof broken_indexes / sizeof broken_indexes[0]; i++) {
        const struct broken_index *b = &broken_indexes[i];
        folder_clear();
        mkdir(path, 0700);
        file_write("short", "1234567", 7);
        file_write(INDEX, b->index, strlen(b->index));
        shard_write("x.safetensors", b->first, 4, LENGTH_AS_IS);
        shard_write("y.safetensors", b->second, 4, LENGTH_AS_IS);
        refused(b->code, b->says);
    }
}
END_TEST

START_TEST(shards_and_missing_files)
{
    struct model_files *files;
    refused(-ENOENT, "neither");
    static const char index[] =
        "{\"weight_map\":{\"b\":\"y.safetensors\",\"a\":\"x.safetensors\"}}";
    file_write(INDEX, index, strlen(index));
    shard_write("x.safetensors", A, 4, LENGTH_AS_IS);
    shard_write("y.safetensors", B, 4, LENGTH_AS_IS);
    open_good(&files);
    ck_assert_uint_eq(model_files_shards(files), 2);
    ck_assert_str_eq(model_files_shard(files, 1)->name, "y.safetensors");
    ck_assert_uint_eq(model_files_find(files, "b")->file, 1);
    model_files_close(files);
}
END_TEST

/* A valid shard with random bytes changed opens or is refused with a sentence; it never crashes. */
START_TEST(damaged_headers_never_crash)
{
    static const char header[] = "{\"a\":" T("F32", "[2,3]", 0, 24) ",\"b\":" T(
        "BF16", "[4]", 24, 32) ",\"c\":" T("F8_E4M3", "[8]", 32, 40) "}";
    for (uint64_t seed = 1; seed <= 2000; seed++) {
        struct base_rng rng;
        base_rng_init(&rng, seed);
        unsigned char file[8 + sizeof header - 1 + 40] = { 0 };
        base_le_store64(file, sizeof header - 1);
        memcpy(file + 8, header, sizeof header - 1);
        size_t size = base_rng_below(&rng, 4) ? sizeof file : base_rng_below(&rng, sizeof file);
        for (uint64_t changes = base_rng_below(&rng, 4); changes > 0; changes--) {
            uint64_t at = base_rng_below(&rng, sizeof file);
            static const char digits[] = "0123456789-[]{}\",:";
            file[at] = base_rng_below(&rng, 2) ? (unsigned char)base_rng_u64(&rng)
                                               : (unsigned char)digits[base_rng_below(&rng, 18)];
        }
        file_write("model.safetensors", file, size);
        struct model_files *files;
        struct base_err err;
        int rc = open_folder(&files, &err);
        ck_assert_msg(rc == 0 || (rc == err.code && err.text[0] && !strchr(err.text, '\n')),
                      "seed %llu: code %d, '%s'", (unsigned long long)seed, rc, err.text);
        for (uint32_t i = 0; rc == 0 && i < model_files_count(files); i++) {
            const struct model_tensor *t = model_files_at(files, i);
            ck_assert_uint_le(t->offset + t->bytes, size);
        }
        model_files_close(files);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("safetensors");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 110);
    tcase_add_test(tcase, single_file_is_read);
    tcase_add_test(tcase, small_model_is_read);
    tcase_add_test(tcase, broken_headers_get_one_sentence);
    tcase_add_test(tcase, broken_indexes_get_one_sentence);
    tcase_add_test(tcase, shards_and_missing_files);
    tcase_add_test(tcase, damaged_headers_never_crash);
    Suite *suite = suite_create("safetensors");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
