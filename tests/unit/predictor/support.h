/* Shared by the predictor's checks: temporary files, random traces. */
#ifndef TESTS_PREDICTOR_SUPPORT_H
#define TESTS_PREDICTOR_SUPPORT_H

#include <check.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "predictor/trace.h"
#include "predictor/trace_format.h"

static char support_dir[64];

static inline void support_begin(void)
{
    snprintf(support_dir, sizeof support_dir, "/tmp/expertier-check-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(support_dir));
}

static inline void support_end(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", support_dir);
    ck_assert_int_eq(system(command), 0);
}

static inline const char *support_path(const char *name)
{
    static char path[4][160];
    static unsigned next;
    char *to = path[next++ % 4];
    snprintf(to, sizeof path[0], "%s/%s", support_dir, name);
    return to;
}

/* How many there are. */
static inline unsigned support_files(void)
{
    unsigned count = 0;
    DIR *all = opendir(support_dir);
    ck_assert_ptr_nonnull(all);
    for (struct dirent *one; (one = readdir(all));) count += one->d_name[0] != '.';
    closedir(all);
    return count;
}

static inline struct pred_trace_config support_config(const char *path)
{
    struct pred_trace_config config;
    struct base_option_group group = { "trace", pred_trace_options, pred_trace_option_count,
                                       &config };
    base_option_defaults(&group, 1);
    snprintf(config.path, sizeof config.path, "%s", path);
    return config;
}

static inline uint8_t *support_read(const char *path, size_t *size)
{
    struct stat st;
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fstat(fileno(file), &st), 0);
    uint8_t *bytes = malloc((size_t)st.st_size + 1);
    *size = fread(bytes, 1, (size_t)st.st_size, file);
    ck_assert_uint_eq(*size, (size_t)st.st_size);
    fclose(file);
    return bytes;
}

static inline void support_write(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
}

/* The size of the trace's whole chunks that end within so many bytes. */
static inline size_t support_whole_chunks(const uint8_t *bytes, size_t within)
{
    size_t at = PRED_FILE_HEADER_BYTES;
    while (at + PRED_CHUNK_HEADER_BYTES <= within) {
        size_t end = at + PRED_CHUNK_HEADER_BYTES + base_le_load32(bytes + at + 4);
        if (end > within) break;
        at = end;
    }
    return at;
}

/* A trace that a server goes on writing while it is read: nine tenths of the file are there, and a
 * piece of a chunk. The rest comes with the first report of progress (support_grow's context). */
struct support_growing {
    const char *path;
    uint8_t *bytes;
    size_t size;
    unsigned reports;
};

static inline void support_growing_begin(struct support_growing *g, const char *path)
{
    *g = (struct support_growing){ .path = path };
    g->bytes = support_read(path, &g->size);
    size_t whole = support_whole_chunks(g->bytes, g->size * 9 / 10);
    ck_assert_uint_gt(whole, g->size * 8 / 10);
    support_write(path, g->bytes, whole + 100);
}

static inline void support_grow(void *context, const char *what, uint64_t done, uint64_t total)
{
    struct support_growing *g = context;
    (void)what, (void)done, (void)total;
    if (g->reports++ == 0) support_write(g->path, g->bytes, g->size);
}

static inline void support_growing_end(struct support_growing *g)
{
    ck_assert_uint_gt(g->reports, 0);
    free(g->bytes);
}

static inline struct pred_trace_reader *support_open(const char *path)
{
    struct pred_trace_reader *r;
    struct base_err err = { 0 };
    ck_assert_msg(pred_trace_reader_open(&r, path, &err) == 0, "%s", err.text);
    return r;
}

/* `count` different ids below `below`, in random order. */
static inline void support_ids(struct base_rng *rng, uint32_t *ids, uint32_t count, uint32_t below)
{
    for (uint32_t i = 0; i < count; i++) {
        bool seen;
        do {
            ids[i] = (uint32_t)base_rng_below(rng, below);
            seen = false;
            for (uint32_t j = 0; j < i; j++) seen |= ids[j] == ids[i];
        } while (seen);
    }
}

static inline int support_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
