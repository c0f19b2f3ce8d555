/* The same ids as Hugging Face `tokenizers` on 10,000 awkward strings, and back to the same
 * bytes. */
#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/le.h"
#include "base/rng.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

/* tests/golden/make_tokenizer.py says how the strings and the .ids files are made. */
enum { POOLS_MAX = 64, RANGES_MAX = 1024, SNIPPETS_MAX = 64, IDS_HEADER = 28 };

struct pool {
    uint32_t firsts[RANGES_MAX];
    uint32_t counts[RANGES_MAX];
    unsigned range_count;
    uint64_t total;
    char snippets[SNIPPETS_MAX][128];
    unsigned snippet_count;
};
static struct pool pools[POOLS_MAX];
static unsigned pool_count;

static char *source_path(const char *name)
{
    static char path[4096];
    const char *root = getenv("EXPERTIER_SOURCE");
    snprintf(path, sizeof path, "%s/%s", root ? root : ".", name);
    return path;
}

static void snippet_read(struct pool *pool, const char *hex)
{
    ck_assert_uint_lt(pool->snippet_count, SNIPPETS_MAX);
    char *to = pool->snippets[pool->snippet_count++];
    unsigned byte;
    for (size_t i = 0; sscanf(hex + 2 * i, "%2x", &byte) == 1; i++) {
        ck_assert_uint_lt(i, sizeof pool->snippets[0] - 1);
        to[i] = (char)byte;
    }
}

static void pools_read(void)
{
    FILE *file = fopen(source_path("tests/golden/tokenizer_pools.txt"), "r");
    ck_assert_ptr_nonnull(file);
    char line[512];
    struct pool *pool = NULL;
    pool_count = 0;
    memset(pools, 0, sizeof pools);
    while (fgets(line, sizeof line, file)) {
        unsigned first, last;
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "pool ", 5) == 0) {
            ck_assert_uint_lt(pool_count, POOLS_MAX);
            pool = &pools[pool_count++];
        } else if (sscanf(line, "r %x %x", &first, &last) == 2) {
            ck_assert_uint_lt(pool->range_count, RANGES_MAX);
            pool->firsts[pool->range_count] = first;
            pool->counts[pool->range_count++] = last - first + 1;
            pool->total += last - first + 1;
        } else if (strncmp(line, "s ", 2) == 0) {
            snippet_read(pool, line + 2);
        }
    }
    fclose(file);
}

static void put_code_point(struct base_buf *buf, uint32_t cp)
{
    char c[4];
    size_t n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const unsigned char leads[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = n; i-- > 1; cp >>= 6) c[i] = (char)(0x80 | (cp & 0x3f));
    c[0] = (char)(leads[n] | cp);
    base_buf_append(buf, c, n);
}

static void string_make(struct base_buf *buf, uint64_t seed, bool is_long)
{
    struct base_rng rng;
    base_rng_init(&rng, seed);
    base_buf_clear(buf);
    uint64_t parts = is_long ? 300 : 1 + base_rng_below(&rng, 12);
    while (parts-- > 0) {
        const struct pool *pool = &pools[base_rng_below(&rng, pool_count)];
        if (pool->snippet_count > 0) {
            base_buf_puts(buf, pool->snippets[base_rng_below(&rng, pool->snippet_count)]);
            continue;
        }
        for (uint64_t run = 1 + base_rng_below(&rng, 6); run > 0; run--) {
            uint64_t pick = base_rng_below(&rng, pool->total);
            unsigned r = 0;
            while (pick >= pool->counts[r]) pick -= pool->counts[r++];
            put_code_point(buf, pool->firsts[r] + (uint32_t)pick);
        }
    }
}

static uint32_t fnv(uint32_t hash, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x01000193u;
    }
    return hash;
}

static bool is_whole_utf8(const char *text, size_t size)
{
    for (size_t at = 0, length; at < size; at += length) {
        if (model_utf8_next((const unsigned char *)text + at, size - at, &length) !=
            MODEL_UTF8_WHOLE) {
            return false;
        }
    }
    return true;
}

/* Through the streaming detokenizer, whose every output must be whole characters. */
static void decode_check(const struct model_tokenizer *t, const uint32_t *ids, size_t count,
                         const struct base_buf *expected, uint32_t index)
{
    struct model_detokenizer stream;
    struct base_buf got;
    char piece[4096];
    base_buf_init(&got);
    model_detokenizer_init(&stream, t);
    for (size_t i = 0; i < count; i++) {
        size_t size = model_detokenizer_add(&stream, ids[i], piece, sizeof piece);
        ck_assert_msg(is_whole_utf8(piece, size), "string %u: half a character", index);
        base_buf_append(&got, piece, size);
    }
    ck_assert_uint_eq(model_detokenizer_finish(&stream, piece, sizeof piece), 0);
    ck_assert_msg(got.size == expected->size && memcmp(got.data, expected->data, got.size) == 0,
                  "string %u: decode(encode(x)) differs from x", index);
    base_buf_fini(&got);
}

/* With added tokens the special ones count too: the tokens' bytes make up the text. */
static void bytes_check(const struct model_tokenizer *t, const uint32_t *ids, size_t count,
                        const struct base_buf *expected, uint32_t index)
{
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t size;
        bool special;
        const char *bytes = model_tokenizer_bytes(t, ids[i], &size, &special);
        ck_assert_msg(size <= expected->size - at && memcmp(bytes, expected->data + at, size) == 0,
                      "string %u: token %zu has other bytes than the text", index, i);
        at += size;
    }
    ck_assert_uint_eq(at, expected->size);
}

static void golden_check(const char *tokenizer_path, const char *ids_path)
{
    struct base_err err = { 0 };
    struct model_tokenizer *t;
    ck_assert_msg(model_tokenizer_load_file(&t, tokenizer_path, &err) == 0, "%s", err.text);
    FILE *file = fopen(source_path(ids_path), "rb");
    ck_assert_ptr_nonnull(file);
    unsigned char header[IDS_HEADER], record[8];
    ck_assert_uint_eq(fread(header, 1, sizeof header, file), sizeof header);
    ck_assert_mem_eq(header, "EXPTOKS1", 8);
    uint64_t seed = base_le_load64(header + 8);
    uint32_t count = base_le_load32(header + 16), long_every = base_le_load32(header + 20);
    ck_assert_uint_ge(count, 10000);
    uint32_t strings_hash = 0x811c9dc5u, wrong = 0;
    struct base_buf text;
    base_buf_init(&text);
    pools_read();
    for (uint32_t i = 0; i < count; i++) {
        string_make(&text, seed + i, i % long_every == 0);
        strings_hash = fnv(strings_hash, text.data, text.size);
        ck_assert_uint_eq(fread(record, 1, sizeof record, file), sizeof record);
        for (unsigned special = 0; special < 2; special++) {
            uint32_t *ids;
            size_t n;
            ck_assert_int_eq(model_tokenizer_encode(t, text.data, text.size, special, &ids, &n), 0);
            if (fnv(0x811c9dc5u, ids, 4 * n) != base_le_load32(record + 4 * special)) {
                if (wrong++ < 10) fprintf(stderr, "string %u special %u differs\n", i, special);
            }
            if (special) {
                bytes_check(t, ids, n, &text, i);
            } else {
                decode_check(t, ids, n, &text, i);
            }
            free(ids);
        }
    }
    ck_assert_msg(strings_hash == base_le_load32(header + 24),
                  "the strings differ from those of make_tokenizer.py");
    ck_assert_msg(wrong == 0, "%u of %u encodings differ (make_tokenizer.py show)", wrong,
                  2 * count);
    base_buf_fini(&text);
    fclose(file);
    model_tokenizer_free(t);
}

START_TEST(small_model_has_the_same_ids)
{
    char path[4096];
    snprintf(path, sizeof path, "%s", source_path("models/pebble/tokenizer.json"));
    golden_check(path, "tests/golden/tokenizer_pebble.ids");
}
END_TEST

START_TEST(deepseek_v3_has_the_same_ids)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer/deepseek_v3_tokenizer.json",
             getenv("EXPERTIER_DATA"));
    golden_check(path, "tests/golden/tokenizer_deepseek_v3.ids");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("golden");
    tcase_set_timeout(tcase, 280);
    tcase_add_test(tcase, small_model_has_the_same_ids);
    bool has_data = getenv("EXPERTIER_DATA") != NULL;
    if (has_data) tcase_add_test(tcase, deepseek_v3_has_the_same_ids);
    Suite *suite = suite_create("tokenizer_golden");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (failed) return EXIT_FAILURE;
    if (!has_data) {
        puts("skipped for DeepSeek-V3's tokenizer: EXPERTIER_DATA is not set");
        return 77;
    }
    return EXIT_SUCCESS;
}
