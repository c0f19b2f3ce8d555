#include "predictor/trace.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "base/clock.h"
#include "base/must.h"
#include "port/hash.h"
#include "predictor/trace_file.h"
#include "predictor/trace_format.h"

#define BASE_OPTION_OWNER struct pred_trace_config
const struct base_option pred_trace_options[] = { PRED_TRACE_OPTIONS(BASE_OPTION_ROW) };
#undef BASE_OPTION_OWNER
const size_t pred_trace_option_count = sizeof pred_trace_options / sizeof pred_trace_options[0];

#define BASE_METRIC_OWNER struct pred_trace_metrics
const struct base_metric pred_trace_metrics[] = { PRED_TRACE_METRICS(BASE_METRIC_ROW) };
#undef BASE_METRIC_OWNER
const size_t pred_trace_metric_count = sizeof pred_trace_metrics / sizeof pred_trace_metrics[0];

enum {
    WRITER_MAGIC = 0x77747270,
    RECORD_HEAD_MAX = 6,            /* kind and a varint of at most 5 bytes */
    WAKE_MS = 200,                  /* the thread looks at least this often */
    CHUNK_AGE_MAX_NS = 1000000000,  /* a record is in the file after a second or so */
};

/* The ring holds frames: u32 size, then that many bytes of a whole record. head and tail count
 * bytes since the begin; the engine's thread moves head, the writer's thread tail. */
struct pred_trace_writer {
    uint32_t magic;
    uint32_t layers, experts, top_k, id_bits;
    enum pred_trace_tokens tokens;
    enum pred_trace_weights weights;
    double sample;
    uint64_t token_key, trace_id;
    /* engine's thread */
    uint64_t lost_pending;
    uint64_t lost_ring;
    uint64_t lost_before;                   /* where the steps come from */
    uint32_t last_layer, last_granted;      /* the last acquire, for short release records */
    uint32_t *last_ids;
    bool last_valid;
    bool patient;                           /* waits for room instead of losing */
    /* shared */
    uint8_t *ring;
    size_t ring_bytes;
    _Atomic uint64_t head, tail;
    _Atomic uint64_t done;                  /* bytes of the ring that are in the file, or lost */
    _Atomic uint64_t records, lost;
    _Atomic bool stop, flush;
    sem_t wake;
    pthread_t thread;
    bool thread_runs;
    struct pred_trace_file *file;           /* the writer's thread, between open and close */
    uint8_t scratch[RECORD_HEAD_MAX + PRED_RECORD_MAX];
};

/* ----------------------------------------------------------------------------- the ring -- */

static void ring_copy_in(struct pred_trace_writer *w, uint64_t at, const void *bytes, size_t size)
{
    size_t place = (size_t)(at % w->ring_bytes);
    size_t first = size < w->ring_bytes - place ? size : w->ring_bytes - place;
    memcpy(w->ring + place, bytes, first);
    memcpy(w->ring, (const uint8_t *)bytes + first, size - first);
}

static void ring_copy_out(const struct pred_trace_writer *w, uint64_t at, void *bytes, size_t size)
{
    size_t place = (size_t)(at % w->ring_bytes);
    size_t first = size < w->ring_bytes - place ? size : w->ring_bytes - place;
    memcpy(bytes, w->ring + place, first);
    memcpy((uint8_t *)bytes + first, w->ring, size - first);
}

static bool ring_put(struct pred_trace_writer *w, const uint8_t *record, uint32_t size)
{
    uint64_t head = atomic_load_explicit(&w->head, memory_order_relaxed);
    uint64_t used = head - atomic_load_explicit(&w->tail, memory_order_acquire);
    while (used + sizeof size + size > w->ring_bytes) {
        if (!w->patient || sizeof size + size > w->ring_bytes) return false;
        sem_post(&w->wake);
        nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
        used = head - atomic_load_explicit(&w->tail, memory_order_acquire);
    }
    ring_copy_in(w, head, &size, sizeof size);
    ring_copy_in(w, head + sizeof size, record, size);
    atomic_store_explicit(&w->head, head + sizeof size + size, memory_order_release);
    atomic_fetch_add_explicit(&w->records, 1, memory_order_relaxed);
    if (used > w->ring_bytes / 4) {
        int waiting = 0;
        if (sem_getvalue(&w->wake, &waiting) == 0 && waiting == 0) sem_post(&w->wake);
    }
    return true;
}

/* --------------------------------------------------------------- encoding, engine's thread -- */

static struct pred_out record_begin(struct pred_trace_writer *w)
{
    uint8_t *payload = w->scratch + RECORD_HEAD_MAX;
    return (struct pred_out){ .at = payload, .end = payload + PRED_RECORD_MAX - RECORD_HEAD_MAX };
}

static bool record_lose(struct pred_trace_writer *w)
{
    w->lost_pending++;
    w->lost_ring++;
    w->last_valid = false;
    atomic_fetch_add_explicit(&w->lost, 1, memory_order_relaxed);
    return false;
}

/* Puts kind and length in front of the payload and hands the record over. */
static bool record_end(struct pred_trace_writer *w, enum pred_record kind,
                       const struct pred_out *out)
{
    if (out->full) return record_lose(w);
    if (w->lost_pending > 0) {
        uint8_t gap[16];
        struct pred_out gap_out = { .at = gap + 2, .end = gap + sizeof gap };
        pred_put_varint(&gap_out, w->lost_pending);
        gap[0] = PRED_RECORD_GAP;
        gap[1] = (uint8_t)(gap_out.at - gap - 2);
        if (!ring_put(w, gap, (uint32_t)(gap_out.at - gap))) return record_lose(w);
        w->lost_pending = 0;
    }
    uint8_t *payload = w->scratch + RECORD_HEAD_MAX;
    uint32_t payload_bytes = (uint32_t)(out->at - payload);
    uint8_t head[RECORD_HEAD_MAX];
    struct pred_out head_out = { .at = head, .end = head + sizeof head };
    pred_put_u8(&head_out, (uint8_t)kind);
    pred_put_varint(&head_out, payload_bytes);
    size_t head_bytes = (size_t)(head_out.at - head);
    memcpy(payload - head_bytes, head, head_bytes);
    if (!ring_put(w, payload - head_bytes, payload_bytes + (uint32_t)head_bytes)) {
        return record_lose(w);
    }
    return true;
}

static void put_ids(const struct pred_trace_writer *w, struct pred_out *out, const uint32_t *ids,
                    uint32_t count)
{
    struct pred_bits bits = { 0 };
    for (uint32_t i = 0; i < count; i++) {
        MUST(ids[i] < w->experts);
        pred_put_bits(out, &bits, ids[i], w->id_bits);
    }
    pred_put_bits_end(out, &bits);
}

static void event_acquire(struct pred_trace_writer *w, const struct tier_event *event)
{
    struct pred_out out = record_begin(w);
    pred_put_u8(&out, (uint8_t)event->phase);
    pred_put_varint(&out, event->layer);
    pred_put_varint(&out, event->count);
    pred_put_varint(&out, event->granted);
    put_ids(w, &out, event->ids, event->count);
    if (!record_end(w, PRED_RECORD_ACQUIRE, &out)) return;
    w->last_valid = true;
    w->last_layer = event->layer;
    w->last_granted = event->granted;
    memcpy(w->last_ids, event->ids, event->granted * sizeof event->ids[0]);
}

static void event_release(struct pred_trace_writer *w, const struct tier_event *event)
{
    struct pred_out out = record_begin(w);
    bool same = w->last_valid && w->last_layer == event->layer && w->last_granted == event->count &&
                memcmp(w->last_ids, event->ids, event->count * sizeof event->ids[0]) == 0;
    pred_put_varint(&out, event->layer);
    pred_put_varint(&out, (uint64_t)event->count << 1 | same);
    if (!same) put_ids(w, &out, event->ids, event->count);
    record_end(w, PRED_RECORD_RELEASE, &out);
}

void pred_trace_writer_event(void *writer, const struct tier_event *event)
{
    struct pred_trace_writer *w = writer;
    MUST_MAGIC(w, WRITER_MAGIC);
    if (w->sample < 1) return;
    MUST(event->count <= w->experts);
    struct pred_out out = record_begin(w);
    switch (event->kind) {
    case TIER_EVENT_ACQUIRE:
        event_acquire(w, event);
        break;
    case TIER_EVENT_RELEASE:
        event_release(w, event);
        break;
    case TIER_EVENT_HINT:
        pred_put_varint(&out, event->layer);
        pred_put_varint(&out, event->ids[0]);
        pred_put_f32(&out, event->probability);
        pred_put_varint(&out, event->distance);
        pred_put_u8(&out, event->admitted != 0);
        record_end(w, PRED_RECORD_HINT, &out);
        break;
    case TIER_EVENT_SETTING:
        pred_put(&out, event->text, strlen(event->text));
        record_end(w, PRED_RECORD_SETTING, &out);
        break;
    case TIER_EVENT_RESTORE:
        pred_put_varint(&out, event->tier);
        pred_put_varint(&out, event->layer);
        pred_put_varint(&out, event->count);
        put_ids(w, &out, event->ids, event->count);
        if (event->uses) pred_put(&out, event->uses, event->count);
        record_end(w, PRED_RECORD_RESTORE, &out);
        break;
    case TIER_EVENT_FORGET:
        pred_put_varint(&out, event->tier);
        pred_put_varint(&out, event->layer);
        pred_put_varint(&out, event->ids[0]);
        record_end(w, PRED_RECORD_FORGET, &out);
        break;
    }
}

/* A sequence is kept or left out as a whole, by a hash of its number. */
static bool is_sampled(const struct pred_trace_writer *w, uint64_t seq)
{
    if (w->sample >= 1) return true;
    uint64_t key[2] = { seq, w->trace_id };
    return (double)(port_hash64(key, sizeof key) >> 11) * 0x1p-53 < w->sample;
}

static uint32_t token_kept(const struct pred_trace_writer *w, uint32_t token)
{
    if (w->tokens == PRED_TOKENS_ID || token == PRED_NO_TOKEN) return token;
    if (w->tokens == PRED_TOKENS_NONE) return PRED_NO_TOKEN;
    uint64_t key[2] = { token, w->token_key };
    return (uint32_t)(port_hash64(key, sizeof key) % PRED_NO_TOKEN);
}

/* Some (layer, token) of the step was not routed. */
static bool is_sparse(const struct pred_trace_writer *w, const struct pred_step *step)
{
    size_t rows = (size_t)w->layers * step->token_count;
    for (size_t i = 0; i < rows; i++) {
        if (step->expert_ids[i * w->top_k] == PRED_NO_EXPERT) return true;
    }
    return false;
}

static bool step_head(struct pred_trace_writer *w, const struct pred_step *step, uint32_t kept)
{
    struct pred_out out = record_begin(w);
    bool weights = step->expert_weights && w->weights != PRED_WEIGHTS_NONE;
    pred_put_varint(&out, step->step);
    pred_put_varint(&out, kept);
    pred_put_u8(&out, (uint8_t)((step->tokens ? PRED_STEP_HAS_TOKENS : 0) |
                                (weights ? PRED_STEP_HAS_WEIGHTS : 0) |
                                (is_sparse(w, step) ? PRED_STEP_SPARSE : 0)));
    pred_put_varint(&out, step->step_ns);
    pred_put_varint(&out, step->compute_ns);
    pred_put_varint(&out, TIER_WAIT_CAUSE_COUNT);
    for (int i = 0; i < TIER_WAIT_CAUSE_COUNT; i++) pred_put_varint(&out, step->wait_ns[i]);
    return record_end(w, PRED_RECORD_STEP, &out);
}

static void put_token(const struct pred_trace_writer *w, struct pred_out *out,
                      const struct pred_step *step, uint32_t i, uint64_t *seq, uint64_t *position)
{
    pred_put_zigzag(out, (int64_t)(step->seqs[i] - *seq));
    pred_put_zigzag(out, (int64_t)((uint64_t)step->positions[i] - *position));
    *seq = step->seqs[i];
    *position = (uint64_t)step->positions[i] + 1;
    uint32_t token = step->tokens ? token_kept(w, step->tokens[i]) : PRED_NO_TOKEN;
    uint64_t known = token == PRED_NO_TOKEN ? 0 : (uint64_t)token + 1;
    pred_put_varint(out, known << 1 | (step->phases[i] == TIER_DECODE));
}

static bool step_tokens(struct pred_trace_writer *w, const struct pred_step *step)
{
    uint32_t i = 0, written = 0;
    while (i < step->token_count) {
        uint32_t begin = i, count = 0;
        for (; i < step->token_count && count < PRED_RECORD_TOKENS_MAX; i++) {
            count += is_sampled(w, step->seqs[i]);
        }
        if (count == 0) break;
        struct pred_out out = record_begin(w);
        uint64_t seq = 0, position = 0;
        pred_put_varint(&out, written);
        pred_put_varint(&out, count);
        for (uint32_t t = begin; t < i; t++) {
            if (is_sampled(w, step->seqs[t])) put_token(w, &out, step, t, &seq, &position);
        }
        if (!record_end(w, PRED_RECORD_TOKENS, &out)) return false;
        written += count;
    }
    return true;
}

/* One record of routing rows in the making: ids are packed as they come, weights are kept aside and
 * follow them. */
struct rows {
    struct pred_out out;
    struct pred_bits bits;
    uint32_t first, count, room;
    unsigned id_bits;               /* one more value when the step is sparse: none */
    uint8_t *count_at;
    float weights[PRED_RECORD_IDS_MAX];
};

static bool rows_end(struct pred_trace_writer *w, struct rows *rows, bool weights)
{
    if (rows->count == 0) return true;
    base_le_store32(rows->count_at, rows->count);
    pred_put_bits_end(&rows->out, &rows->bits);
    uint32_t n = rows->count * w->top_k;
    if (weights && w->weights == PRED_WEIGHTS_F32) {
        pred_put(&rows->out, rows->weights, n * sizeof rows->weights[0]);
    } else if (weights) {
        float largest = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (rows->weights[i] > largest) largest = rows->weights[i];
        }
        float scale = largest > 0 ? 65535.0f / largest : 0;
        pred_put_f32(&rows->out, largest);
        for (uint32_t i = 0; i < n; i++) {
            float scaled = rows->weights[i] * scale;
            uint16_t value = scaled > 0 ? (uint16_t)(scaled + 0.5f) : 0;
            pred_put(&rows->out, &value, sizeof value);
        }
    }
    rows->first += rows->count;
    rows->count = 0;
    return record_end(w, PRED_RECORD_ROUTES, &rows->out);
}

static bool rows_add(struct pred_trace_writer *w, struct rows *rows, const uint32_t *ids,
                     const float *weights)
{
    if (rows->count == rows->room && !rows_end(w, rows, weights != NULL)) return false;
    if (rows->count == 0) {
        rows->out = record_begin(w);
        pred_put_varint(&rows->out, rows->first);
        rows->count_at = rows->out.at;
        pred_put(&rows->out, &(uint32_t){ 0 }, 4);
    }
    bool none = ids[0] == PRED_NO_EXPERT;
    for (uint32_t k = 0; k < w->top_k; k++) {
        MUST(none || ids[k] < w->experts);
        pred_put_bits(&rows->out, &rows->bits, none ? w->experts : ids[k], rows->id_bits);
    }
    if (weights && none) {
        memset(rows->weights + rows->count * w->top_k, 0, w->top_k * sizeof weights[0]);
    } else if (weights) {
        memcpy(rows->weights + rows->count * w->top_k, weights, w->top_k * sizeof weights[0]);
    }
    rows->count++;
    return true;
}

static bool step_routes(struct pred_trace_writer *w, const struct pred_step *step)
{
    struct rows rows;               /* 32 KiB, not cleared: only what rows_add filled is read */
    rows.bits = (struct pred_bits){ 0 };
    rows.first = 0;
    rows.count = 0;
    rows.room = PRED_RECORD_IDS_MAX / w->top_k;
    rows.id_bits = is_sparse(w, step) ? pred_id_bits(w->experts + 1) : w->id_bits;
    bool weights = step->expert_weights && w->weights != PRED_WEIGHTS_NONE;
    for (uint32_t l = 0; l < w->layers; l++) {
        for (uint32_t i = 0; i < step->token_count; i++) {
            if (!is_sampled(w, step->seqs[i])) continue;
            size_t at = ((size_t)l * step->token_count + i) * w->top_k;
            if (!rows_add(w, &rows, step->expert_ids + at,
                          weights ? step->expert_weights + at : NULL)) {
                return false;
            }
        }
    }
    return rows_end(w, &rows, weights);
}

void pred_trace_writer_step(struct pred_trace_writer *w, const struct pred_step *step)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < step->token_count; i++) kept += is_sampled(w, step->seqs[i]);
    if (kept == 0) return;
    if (kept > PRED_STEP_TOKENS_MAX ||
        (uint64_t)kept * w->layers * w->top_k > PRED_STEP_IDS_MAX) {
        record_lose(w);
        return;
    }
    /* When a record of a step is lost, the rest of it would only fill the ring. */
    if (step_head(w, step, kept) && step_tokens(w, step)) step_routes(w, step);
}

void pred_trace_writer_gap(struct pred_trace_writer *w, uint64_t lost)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    w->lost_pending += lost;
    w->lost_before += lost;
    w->last_valid = false;
}

void pred_trace_writer_counts(struct pred_trace_writer *w, const struct pred_trace_counts *counts)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    if (w->sample < 1) return;
    struct pred_out out = record_begin(w);
    pred_put_varint(&out, counts->tier_count);
    pred_put_varint(&out, PRED_COUNT_FIELDS);
    for (uint32_t t = 0; t < counts->tier_count; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            const struct tier_counts *cell = &counts->cells[t][c];
            pred_put_varint(&out, cell->lookups);
            pred_put_varint(&out, cell->resident);
            pred_put_varint(&out, cell->misses);
            pred_put_varint(&out, cell->evictions);
            pred_put_varint(&out, cell->admissions);
            pred_put_varint(&out, cell->prefetch_admissions);
            pred_put_varint(&out, cell->prefetch_used);
            pred_put_varint(&out, cell->in_place);
        }
    }
    record_end(w, PRED_RECORD_COUNTS, &out);
}

/* ---------------------------------------------------------------------- the writer's thread -- */

static void drain(struct pred_trace_writer *w)
{
    uint64_t tail = atomic_load_explicit(&w->tail, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&w->head, memory_order_acquire);
    while (tail != head) {
        uint32_t size;
        ring_copy_out(w, tail, &size, sizeof size);
        ring_copy_out(w, tail + sizeof size, pred_trace_file_reserve(w->file, size), size);
        pred_trace_file_commit(w->file, size);
        tail += sizeof size + size;
        atomic_store_explicit(&w->tail, tail, memory_order_release);
    }
}

static void *writer_thread(void *context)
{
    struct pred_trace_writer *w = context;
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAKE_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        sem_timedwait(&w->wake, &until);
        bool stop = atomic_load(&w->stop);
        bool flush = atomic_exchange(&w->flush, false);
        drain(w);
        uint64_t oldest_ns = pred_trace_file_oldest_ns(w->file);
        bool old = oldest_ns > 0 && base_now_ns() - oldest_ns > CHUNK_AGE_MAX_NS;
        if (stop || flush || old) pred_trace_file_flush(w->file);
        if (pred_trace_file_oldest_ns(w->file) == 0) {
            atomic_store(&w->done, atomic_load_explicit(&w->tail, memory_order_relaxed));
        }
        if (stop) return NULL;
    }
}

/* ------------------------------------------------------------------------- open and close -- */

static void writer_free(struct pred_trace_writer *w)
{
    sem_destroy(&w->wake);
    free(w->last_ids);
    free(w->ring);
    w->magic = 0;
    free(w);
}

static int file_open(struct pred_trace_writer *w, const struct pred_trace_config *config,
                     const struct pred_trace_header *header, bool replace, struct base_err *err)
{
    size_t yaml = header->yaml ? strlen(header->yaml) : 0;
    if (yaml > PRED_YAML_BYTES_MAX) {
        return base_err_set(err, -E2BIG,
                            "%s: the configuration text has %zu bytes, a trace takes %d",
                            config->path, yaml, PRED_YAML_BYTES_MAX);
    }
    size_t room = yaml + 4096 + (size_t)header->layers * 40;
    uint8_t *bytes = malloc(room);
    if (!bytes) return -ENOMEM;
    int size = pred_header_encode(bytes, room, header);
    MUST(size > 0);
    struct pred_trace_file_args args = {
        .path = config->path,
        .header = bytes,
        .header_size = (size_t)size,
        .trace_id = w->trace_id,
        .rotate_bytes = config->rotate_bytes,
        .size_max = config->size_max,
        .replace = replace,
    };
    int rc = pred_trace_file_open(&w->file, &args, err);
    free(bytes);
    return rc;
}

static int writer_prepare(struct pred_trace_writer *w, const struct pred_trace_config *config)
{
    w->magic = WRITER_MAGIC;
    w->id_bits = pred_id_bits(w->experts);
    w->token_key = config->token_key;
    if (getrandom(&w->trace_id, sizeof w->trace_id, 0) != sizeof w->trace_id) return -EIO;
    if (w->token_key == 0 && getrandom(&w->token_key, sizeof w->token_key, 0) < 0) return -EIO;
    w->ring_bytes = config->buffer;
    w->ring = malloc(w->ring_bytes);
    w->last_ids = malloc(w->experts * sizeof w->last_ids[0]);
    if (!w->ring || !w->last_ids) return -ENOMEM;
    memset(w->ring, 0, w->ring_bytes);          /* its pages come now, not in a step */
    return 0;
}

int pred_trace_writer_open(struct pred_trace_writer **out, const struct pred_trace_config *config,
                           const struct pred_trace_header *header, bool replace,
                           struct base_err *err)
{
    *out = NULL;
    struct pred_trace_header own = *header;
    if ((int)own.tokens < config->tokens) own.tokens = (enum pred_trace_tokens)config->tokens;
    own.weights = (enum pred_trace_weights)config->weights;
    own.sample = config->sample * (header->sample > 0 ? header->sample : 1);
    int rc = pred_header_check(&own, err);
    if (rc < 0) return rc;
    struct pred_trace_writer *w = calloc(1, sizeof *w);
    if (!w) return -ENOMEM;
    if (sem_init(&w->wake, 0, 0) < 0) {
        free(w);
        return -errno;
    }
    w->layers = own.layers;
    w->experts = own.experts;
    w->top_k = own.top_k;
    w->tokens = (enum pred_trace_tokens)config->tokens;
    w->weights = own.weights;
    w->sample = config->sample;
    rc = writer_prepare(w, config);
    if (rc < 0) goto fail;
    rc = file_open(w, config, &own, replace, err);
    if (rc < 0) goto fail;
    rc = -pthread_create(&w->thread, NULL, writer_thread, w);
    if (rc < 0) goto fail;
    w->thread_runs = true;
    *out = w;
    return 0;
fail:
    base_err_set(err, rc, "%s: cannot start recording: %s", config->path, base_err_name(rc));
    pred_trace_file_close(w->file, 0, NULL);
    writer_free(w);
    return rc;
}

void pred_trace_writer_patient(struct pred_trace_writer *w)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    w->patient = true;
}

void pred_trace_writer_flush(struct pred_trace_writer *w)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    uint64_t head = atomic_load(&w->head);
    while (atomic_load(&w->done) < head) {
        atomic_store(&w->flush, true);
        sem_post(&w->wake);
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
}

void pred_trace_writer_snapshot(const struct pred_trace_writer *w, struct pred_trace_metrics *out)
{
    MUST_MAGIC(w, WRITER_MAGIC);
    const struct pred_trace_file_state *state = pred_trace_file_state(w->file);
    out->records = atomic_load_explicit(&w->records, memory_order_relaxed);
    out->lost_records = atomic_load_explicit(&w->lost, memory_order_relaxed) +
                        atomic_load_explicit(&state->lost_records, memory_order_relaxed);
    out->written_bytes = atomic_load_explicit(&state->written_bytes, memory_order_relaxed);
    out->files = atomic_load_explicit(&state->files, memory_order_relaxed);
}

int pred_trace_writer_close(struct pred_trace_writer *w, struct base_err *err)
{
    if (!w) return 0;
    MUST_MAGIC(w, WRITER_MAGIC);
    uint64_t lost_at_end = w->lost_pending;
    if (lost_at_end > 0) {
        /* Room for the gap record at the very end comes once the ring has drained. */
        struct pred_out out = record_begin(w);
        pred_trace_writer_flush(w);
        pred_put_varint(&out, lost_at_end);
        w->lost_pending = 0;
        record_end(w, PRED_RECORD_GAP, &out);
    }
    atomic_store(&w->stop, true);
    sem_post(&w->wake);
    pthread_join(w->thread, NULL);
    uint64_t lost = w->lost_ring;
    int rc = pred_trace_file_close(w->file, lost + w->lost_before, err);
    if (rc == 0 && lost > 0) {
        rc = base_err_set(err, -ENOBUFS,
                          "%llu trace records were lost: the disk was slower than the engine "
                          "(trace.buffer gives it more room)", (unsigned long long)lost);
    }
    writer_free(w);
    return rc;
}

uint64_t pred_trace_writer_touched(const struct pred_trace_writer *w)
{
    uint64_t head = atomic_load_explicit(&w->head, memory_order_relaxed);
    return head < w->ring_bytes ? head : w->ring_bytes;
}
