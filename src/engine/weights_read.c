#include "engine/weights_read.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kernels/weave.h"
#include "model/shape.h"

/* More readers than cores: they wait for the disk most of the time. */
enum { READERS = 8, PIECE_BYTES = 8 << 20 };

struct reader_team {
    const struct eng_reads *reads;
    const struct model_files *files;
    const char *name;
    _Atomic uint64_t next;      /* piece */
    atomic_bool failed;
};

/* Each has a failure of its own: pieces are taken in order, so the least of them is the first. */
struct reader {
    struct reader_team *team;
    pthread_t thread;
    bool started;
    uint64_t piece;
    int rc;
    struct base_err err;
};

int eng_reads_add(struct eng_reads *reads, const struct eng_read *read)
{
    if (reads->count == reads->room) {
        uint32_t room = reads->room ? 2 * reads->room : 256;
        struct eng_read *at = realloc(reads->at, room * sizeof *at);
        if (!at) return -ENOMEM;
        reads->at = at;
        reads->room = room;
    }
    reads->at[reads->count++] = *read;
    return 0;
}

void eng_reads_free(struct eng_reads *reads)
{
    free(reads->at);
    *reads = (struct eng_reads){ 0 };
}

/* ------------------------------------------------------------------------------------ pieces -- */

static uint64_t row_bytes_of(const struct eng_read *read)
{
    return read->tensor->shape[1] * model_dtype_bytes(read->tensor->dtype);
}

/* Whole groups of woven rows. */
static uint64_t piece_rows(const struct eng_read *read)
{
    return PIECE_BYTES / (row_bytes_of(read) + 1) / KERN_WOVEN_ROWS * KERN_WOVEN_ROWS +
           KERN_WOVEN_ROWS;
}

static uint64_t pieces_of(const struct eng_read *read)
{
    return (read->part.row_end - read->part.row + piece_rows(read) - 1) / piece_rows(read);
}

/* Columns come row by row out of a buffer of whole rows. */
static int read_columns(const struct reader_team *team, const struct eng_read *read,
                        struct base_err *err)
{
    const struct eng_part *part = &read->part;
    const uint64_t size = model_dtype_bytes(read->tensor->dtype), row_bytes = row_bytes_of(read);
    const uint64_t wanted = (part->col_end - part->col) * size, rows = part->row_end - part->row;
    char *buffer = malloc(rows * row_bytes);
    if (!buffer) return base_err_set(err, -ENOMEM, "%s: no memory to read weights", team->name);
    int rc = model_files_read_part(team->files, read->tensor, part->row * row_bytes,
                                   rows * row_bytes, buffer, err);
    for (uint64_t i = 0; rc == 0 && i < rows; i++)
        memcpy(read->to + i * wanted, buffer + i * row_bytes + part->col * size, wanted);
    free(buffer);
    return rc;
}

/* Eight codes at a time: seven bits that are all set carry into the eighth. */
static bool has_nan(const char *codes, uint64_t bytes)
{
    const uint64_t seven = 0x7f7f7f7f7f7f7f7f, one = 0x0101010101010101;
    uint64_t found = 0, i = 0;
    for (; i + sizeof found <= bytes; i += sizeof found) {
        uint64_t eight;
        memcpy(&eight, codes + i, sizeof eight);
        found |= (eight & seven) + one;
    }
    for (; i < bytes; i++)
        found |= (uint64_t)((codes[i] & 0x7f) + 1);
    return found & ~seven;
}

static int check_fp8(const struct reader_team *team, const struct eng_read *read,
                     struct base_err *err)
{
    const struct eng_part *part = &read->part;
    const uint64_t cols = part->col_end - part->col, bytes = (part->row_end - part->row) * cols;
    uint64_t i = 0;
    if (!has_nan(read->to, bytes)) return 0;
    while ((read->to[i] & 0x7f) != 0x7f)
        i++;
    return base_err_set(err, BASE_EFORMAT,
                        "%s: tensor '%s' holds FP8 code 0x%02x (NaN) at element %" PRIu64
                        "; the checkpoint is damaged", team->name, read->tensor->name,
                        (unsigned char)read->to[i],
                        (part->row + i / cols) * read->tensor->shape[1] + part->col + i % cols);
}

static int weave(const struct reader_team *team, const struct eng_read *read, struct base_err *err)
{
    const uint32_t cols = read->part.col_end - read->part.col;
    void *scratch = malloc(kern_weave_scratch(cols));
    if (!scratch) return base_err_set(err, -ENOMEM, "%s: no memory to weave weights", team->name);
    kern_weave(read->to, read->part.row_end - read->part.row, cols, scratch);
    free(scratch);
    return 0;
}

static int read_piece(const struct reader_team *team, const struct eng_read *whole, uint64_t piece,
                      struct base_err *err)
{
    const uint64_t size = model_dtype_bytes(whole->tensor->dtype), rows = piece_rows(whole);
    const uint64_t cols = whole->part.col_end - whole->part.col;
    struct eng_read read = *whole;
    read.part.row += (uint32_t)(piece * rows);
    read.to += piece * rows * cols * size;
    if (read.part.row_end - read.part.row > rows)
        read.part.row_end = read.part.row + (uint32_t)rows;
    int rc = cols < read.tensor->shape[1]
                 ? read_columns(team, &read, err)
                 : model_files_read_part(team->files, read.tensor, read.part.row * cols * size,
                                         (read.part.row_end - read.part.row) * cols * size,
                                         read.to, err);
    if (rc == 0 && read.tensor->dtype == MODEL_F8_E4M3) rc = check_fp8(team, &read, err);
    if (rc == 0 && read.weave) rc = weave(team, &read, err);
    return rc;
}

/* ----------------------------------------------------------------------------------- readers -- */

static void *reader_run(void *context)
{
    struct reader *reader = context;
    struct reader_team *team = reader->team;
    uint64_t before = 0;        /* pieces of the reads before `at` */
    uint32_t at = 0;
    while (!atomic_load(&team->failed)) {
        reader->piece = atomic_fetch_add(&team->next, 1);
        while (at < team->reads->count &&
               reader->piece - before >= pieces_of(&team->reads->at[at])) {
            before += pieces_of(&team->reads->at[at++]);
        }
        if (at == team->reads->count) break;
        reader->rc = read_piece(team, &team->reads->at[at], reader->piece - before, &reader->err);
        if (reader->rc == 0) continue;
        atomic_store(&team->failed, true);
        break;
    }
    return NULL;
}

int eng_reads_run(const struct eng_reads *reads, const struct model_files *files, const char *name,
                  struct base_err *err)
{
    struct reader_team team = { .reads = reads, .files = files, .name = name };
    struct reader readers[READERS] = { 0 };
    const struct reader *first = NULL;
    for (int i = 0; i < READERS; i++) {
        readers[i].team = &team;
        /* This thread reads, too; with fewer others it only takes longer. */
        readers[i].started =
            i > 0 && pthread_create(&readers[i].thread, NULL, reader_run, &readers[i]) == 0;
    }
    reader_run(&readers[0]);
    for (int i = 0; i < READERS; i++) {
        if (readers[i].started) pthread_join(readers[i].thread, NULL);
        if (readers[i].rc < 0 && (!first || readers[i].piece < first->piece)) first = &readers[i];
    }
    if (!first) return 0;
    if (err) *err = first->err;
    return first->rc;
}
