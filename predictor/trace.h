/* The trace: everything that decided residency, and the routing behind it, in one append-only file.
 *
 *   header   model shape, effective YAML, configuration of the decision core
 *   then, in the order in which they happened
 *     events   acquire, release, hint, setting, restore, forget (tiering/event.h)
 *     steps    tokens, sequences, phases and the routing of one forward pass; a step stands after
 *              the events that it caused
 *     counts   what the live server had counted up to that place: exact replay is checked on them
 *     gaps     how many records were lost there
 *
 * Bytes: docs/formats.md. Chunks carry an XXH3 each; an incomplete tail is dropped and reported, a
 * damaged middle is an error.
 *
 * Writing: the calls of one writer come from one thread (the engine's). They encode into a ring
 * that was allocated at open, and return; a thread of the writer's own turns the ring into chunks
 * and files. They never block, never allocate and never fail: what the ring or the disk cannot take
 * is lost, counted, and leaves a gap record at its place. About 1 us a record.
 *
 * Reading: one thread a reader. Input is hostile: every length is checked against the header's
 * shape and hard limits before it is used.
 */
#ifndef PREDICTOR_TRACE_H
#define PREDICTOR_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/option.h"
#include "tiering/decide.h"
#include "tiering/event.h"
#include "tiering/tiering.h"

#define PRED_TRACE_OPTIONS(O)                                                                     \
    O(path, TEXTLINE, "trace.path", "", "", "",                                                   \
      "file to record routing and cache events in; empty = do not record")                        \
    O(tokens, ENUM, "trace.tokens", "id", "id|hash|none", "",                                     \
      "what is kept of each token; ids reveal prompts, hashes are keyed with trace.token_key")    \
    O(token_key, UINT, "trace.token_key", "0", "", "",                                            \
      "key of the token hashes; 0 = drawn at each start, so that two traces do not compare")      \
    O(weights, ENUM, "trace.weights", "u16", "none|u16|f32", "",                                  \
      "how gate weights are kept; u16 is exact to 1/65535 of the largest of a step")              \
    O(sample, SHARE, "trace.sample", "100%", "", "",                                              \
      "share of the sequences whose routing is kept; below 100% no events are kept, and exact "   \
      "replay refuses the trace")                                                                 \
    O(size_max, BYTES, "trace.size_max", "0", "", "bytes",                                        \
      "stop recording when all files of the trace together have this size; 0 = no limit")         \
    O(rotate_bytes, BYTES, "trace.rotate_bytes", "0", "", "bytes",                                \
      "begin a new file (PATH.1, PATH.2, ...) beyond this size; 0 = one file")                    \
    O(buffer, BYTES, "trace.buffer", "8MiB", "1MiB..1GiB", "bytes",                               \
      "memory between the engine and the disk; records that find it full are lost and counted")

struct pred_trace_config {
    BASE_OPTION_STRUCT(PRED_TRACE_OPTIONS)
};
extern const struct base_option pred_trace_options[];
extern const size_t pred_trace_option_count;

enum pred_trace_tokens { PRED_TOKENS_ID, PRED_TOKENS_HASH, PRED_TOKENS_NONE };
enum pred_trace_weights { PRED_WEIGHTS_NONE, PRED_WEIGHTS_U16, PRED_WEIGHTS_F32 };

/* A token that nobody knows: imports without ids, trace.tokens: none. */
#define PRED_NO_TOKEN UINT32_MAX
/* All ids of a (layer, token) whose routing was never computed: engines that need only the last
 * prompt token's output leave the others out of the last layer. */
#define PRED_NO_EXPERT UINT32_MAX

/* Hard limits of the format; a reader refuses what lies beyond. */
enum {
    PRED_LAYERS_MAX = 1024,
    PRED_EXPERTS_MAX = 65536,
    PRED_TOP_K_MAX = 256,
    PRED_STEP_TOKENS_MAX = 1 << 20,
    PRED_YAML_BYTES_MAX = 1 << 20,
};

struct pred_trace_header {
    char model[64];
    char source[32];            /* "server", or where it was imported from: "jsonl", "csv"; what was
                                 * made of one says so: "part of server" */
    uint32_t layers;            /* with experts: "moe layers" */
    uint32_t first_moe_layer;   /* the model's number of moe layer 0 */
    uint32_t experts, top_k;
    uint64_t slot_bytes;        /* of the top tier; 0 = unknown */
    const uint64_t *expert_bytes;   /* [layers]; NULL = all as slot_bytes, or unknown */
    const char *yaml;           /* effective configuration; NULL or "" = none */
    /* What the core ran with; .tier_count = 0 when no core ran (imports). next_use is ignored. */
    struct tier_decide_config decide;
    /* Set by the reader. The writer takes the weights from its options; tokens and sample say what
     * the steps that it will be given hold already (0 = all), and its options come on top. */
    enum pred_trace_weights weights;
    enum pred_trace_tokens tokens;
    double sample;
    uint32_t part;              /* 0 = the first file of a rotated trace */
    uint64_t trace_id;          /* the same in all parts */
};

/* One forward pass, as struct eng_step_record gives it. Arrays live during the call (writer) or
 * until the next call on the reader. Routing of moe layer l, token i:
 * expert_ids[(l * token_count + i) * top_k ...], strongest first, weights alike;
 * PRED_NO_EXPERT in the first of them: none. */
struct pred_step {
    uint64_t step;
    uint32_t token_count;
    const uint64_t *seqs;
    const uint32_t *tokens;     /* NULL (writer only) = unknown */
    const uint32_t *positions;
    const uint8_t *phases;      /* enum tier_phase of each token */
    const uint32_t *expert_ids;
    const float *expert_weights;    /* NULL = not known */
    uint64_t step_ns, compute_ns;
    uint64_t wait_ns[TIER_WAIT_CAUSE_COUNT];
};

/* Counters of a running core, by tier and cell. */
struct pred_trace_counts {
    uint32_t tier_count;
    struct tier_counts cells[TIER_RESIDENT_TIERS_MAX][TIER_CELL_COUNT];
};

/* ------------------------------------------------------------------------------- writing -- */

struct pred_trace_writer;

/* Creates config->path (an existing file is refused with -EEXIST: traces are never overwritten
 * unless `replace`) and starts the writer's thread. The header's arrays are copied. */
int pred_trace_writer_open(struct pred_trace_writer **out, const struct pred_trace_config *config,
                           const struct pred_trace_header *header, bool replace,
                           struct base_err *err);

/* Bytes of the buffer that were ever written. Any thread. */
uint64_t pred_trace_writer_touched(const struct pred_trace_writer *writer);

/* For tools that convert traces: from now on calls wait for room in the buffer instead of losing
 * records. A server never asks for this. */
void pred_trace_writer_patient(struct pred_trace_writer *writer);

/* A tier_observer's function: context is the writer. */
void pred_trace_writer_event(void *writer, const struct tier_event *event);

/* The end of a step, after its events. */
void pred_trace_writer_step(struct pred_trace_writer *writer, const struct pred_step *step);

/* So many records are missing at this place, in the trace that the steps are taken from. */
void pred_trace_writer_gap(struct pred_trace_writer *writer, uint64_t lost);

/* The live counters at this place; once before close, and as often between as one likes to have
 * exact replay checked (a crashed server's trace is checked up to the last). */
void pred_trace_writer_counts(struct pred_trace_writer *writer,
                              const struct pred_trace_counts *counts);

/* Waits until everything given so far is in the file, or was lost. Blocks: not for the step
 * path. */
void pred_trace_writer_flush(struct pred_trace_writer *writer);

#define PRED_TRACE_METRICS(M)                                                                     \
    M(records, COUNTER, "", "trace records taken")                                                \
    M(lost_records, COUNTER, "", "trace records lost because buffer or disk were full")           \
    M(written_bytes, COUNTER, "bytes", "bytes of trace written")                                  \
    M(files, COUNTER, "", "trace files begun")

struct pred_trace_metrics {
    BASE_METRIC_STRUCT(PRED_TRACE_METRICS)
};
extern const struct base_metric pred_trace_metrics[];
extern const size_t pred_trace_metric_count;

/* Any thread. */
void pred_trace_writer_snapshot(const struct pred_trace_writer *writer,
                                struct pred_trace_metrics *out);

/* Writes what is left and the end mark, closes, frees. 0, or the error that lost records, with its
 * sentence; the file is readable either way. Accepts NULL. */
int pred_trace_writer_close(struct pred_trace_writer *writer, struct base_err *err);

/* ------------------------------------------------------------------------------- reading -- */

struct pred_trace_reader;

enum pred_trace_item_kind {
    PRED_ITEM_EVENT,            /* .event */
    PRED_ITEM_STEP,             /* .step */
    PRED_ITEM_COUNTS,           /* .counts */
    PRED_ITEM_GAP,              /* .lost records are missing here */
};

/* Everything it points to lives until the next call on the reader. */
struct pred_trace_item {
    enum pred_trace_item_kind kind;
    struct tier_event event;
    struct pred_step step;
    struct pred_trace_counts counts;
    uint64_t lost;
};

/* Opens a trace; later parts of a rotated one are found beside it and read on as one stream. 0;
 * -errno; BASE_EFORMAT, BASE_EVERSION, BASE_ECHECKSUM, BASE_EMISMATCH with a sentence. */
int pred_trace_reader_open(struct pred_trace_reader **out, const char *path, struct base_err *err);
void pred_trace_reader_close(struct pred_trace_reader *reader);

const struct pred_trace_header *pred_trace_reader_header(const struct pred_trace_reader *reader);

/* Reads the next item. 1, 0 at the end, or a negative code with a sentence that names file and
 * offset. `want` is a mask of 1 << kind: other items are checked and skipped. */
enum { PRED_WANT_ALL = 15, PRED_WANT_STEPS = 1 << PRED_ITEM_STEP };
int pred_trace_reader_next(struct pred_trace_reader *reader, unsigned want,
                           struct pred_trace_item *item, struct base_err *err);

/* Back to the first item. What a server writes meanwhile is not read: each part ends where it ended
 * when it was opened first, so all passes have the same items. */
int pred_trace_reader_rewind(struct pred_trace_reader *reader, struct base_err *err);

/* -EINVAL with a sentence where writing to `to` would destroy a file that the reader reads: one of
 * the trace's parts, by whatever name; or why nothing can be written there. Touches nothing. */
int pred_trace_reader_spares(const struct pred_trace_reader *reader, const char *to,
                             struct base_err *err);

/* What the reader met so far; complete after next returned 0. */
struct pred_trace_health {
    uint64_t file_bytes, read_bytes;
    uint64_t records, lost_records;
    uint64_t torn_bytes;        /* dropped at the end of the last file */
    bool ended;                 /* the end mark is there: it was closed in order */
    uint32_t parts;
};
void pred_trace_reader_health(const struct pred_trace_reader *reader,
                              struct pred_trace_health *out);

#endif
