/* Checked iteration over a trace. Three layers: files and parts, chunks, records. A record is
 * decoded into buffers that grow with what the file really holds, never with what it claims. */
#include "predictor/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/must.h"
#include "base/out.h"
#include "port/hash.h"
#include "predictor/trace_format.h"

/* Zeros behind a chunk's payload, so that eight bytes can be read at any of its places. */
enum { CHUNK_SLACK = 8 };

/* A step while its records come in, and the arrays that the item shows. */
struct assembly {
    bool running;
    struct pred_step step;
    uint64_t rows, rows_got;
    uint32_t tokens_got;
    bool has_tokens, has_weights, sparse;
    size_t token_room, id_room;
    uint64_t *seqs;
    uint32_t *tokens, *positions, *ids;
    uint8_t *phases;
    float *weights;
};

/* How far a file is read. As of its first opening, so that every pass over a trace that a server
 * still writes reads the same. */
struct span {
    uint64_t bytes;
    uint64_t whole;                 /* up to where its chunks are whole, as far as is known */
};

struct pred_trace_reader {
    char path[PATH_MAX];            /* of part 0 */
    char first_path[PATH_MAX];      /* of the first part that is read, whatever it is called */
    char open_path[PATH_MAX];
    int fd;
    uint32_t first_part, part;
    uint64_t trace_id;
    uint64_t offset, file_bytes;    /* of the next chunk; of the open file */
    struct span *spans;             /* of the parts that were ever opened, from first_part on */
    uint32_t span_count;
    uint64_t chunk_number, record_number;
    uint8_t *chunk;
    size_t chunk_room;
    struct pred_in in;              /* records left in the chunk */
    uint64_t chunk_offset;
    bool at_end;
    bool orphans_allowed;           /* after a gap, and where a later part is read from: the rest of
                                     * a step may stand alone */
    struct pred_trace_header *header;
    uint64_t header_hash;
    unsigned id_bits;
    uint32_t *event_ids, *last_ids, *stamps, stamp;
    uint32_t last_layer, last_granted;
    bool last_valid;
    char text[4096];
    struct assembly step;
    struct pred_trace_health health;
};

static const char *const record_names[] = {
    [PRED_RECORD_HEADER] = "header",   [PRED_RECORD_ACQUIRE] = "acquire",
    [PRED_RECORD_RELEASE] = "release", [PRED_RECORD_HINT] = "hint",
    [PRED_RECORD_SETTING] = "setting", [PRED_RECORD_RESTORE] = "restore",
    [PRED_RECORD_FORGET] = "forget",   [PRED_RECORD_STEP] = "step",
    [PRED_RECORD_TOKENS] = "tokens",   [PRED_RECORD_ROUTES] = "routes",
    [PRED_RECORD_COUNTS] = "counts",   [PRED_RECORD_GAP] = "gap",
    [PRED_RECORD_NEXT] = "next",       [PRED_RECORD_END] = "end",
};

/* ------------------------------------------------------------------------ files and chunks -- */

static int read_at(const struct pred_trace_reader *r, void *to, size_t size, uint64_t offset,
                   struct base_err *err)
{
    uint8_t *at = to;
    while (size > 0) {
        ssize_t n = pread(r->fd, at, size, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int rc = n < 0 ? -errno : -EIO;
            return base_err_set(err, rc, "%s: cannot read %zu bytes at offset %" PRIu64 ": %s",
                                r->open_path, size, offset,
                                n < 0 ? base_err_name(rc) : "the file became shorter");
        }
        at += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* After a crash a file may end in a hole: zeros up to the end count as a torn tail. 1, 0, or
 * -errno. */
static int is_zero_from(const struct pred_trace_reader *r, uint64_t offset, struct base_err *err)
{
    uint8_t bytes[4096];
    while (offset < r->file_bytes) {
        size_t size = r->file_bytes - offset < sizeof bytes ? (size_t)(r->file_bytes - offset)
                                                            : sizeof bytes;
        int rc = read_at(r, bytes, size, offset, err);
        if (rc < 0) return rc;
        for (size_t i = 0; i < size; i++) {
            if (bytes[i] != 0) return 0;
        }
        offset += size;
    }
    return 1;
}

static struct span *open_span(struct pred_trace_reader *r)
{
    MUST(r->health.parts > 0 && r->health.parts <= r->span_count);
    return &r->spans[r->health.parts - 1];
}

/* What stands here is no whole chunk, or nothing at all. It stays that for later passes: a server
 * may write over half a chunk. */
static int torn(struct pred_trace_reader *r)
{
    open_span(r)->whole = r->offset;
    r->health.torn_bytes += r->file_bytes - r->offset;
    r->at_end = true;
    return 0;
}

static int damaged(struct pred_trace_reader *r, int rc, const char *what, struct base_err *err)
{
    return base_err_set(err, rc,
                        "%s: chunk at offset %" PRIu64 ": %s; tier-replay cut keeps what "
                        "stands before it",
                        r->open_path, r->offset, what);
}

/* Reads the next chunk: 1, 0 at the end or at a torn tail, or a negative code. */
static int chunk_load(struct pred_trace_reader *r, struct base_err *err)
{
    uint8_t head[PRED_CHUNK_HEADER_BYTES];
    uint64_t left = r->file_bytes - r->offset;
    if (r->offset >= open_span(r)->whole || left < sizeof head) return torn(r);
    int rc = read_at(r, head, sizeof head, r->offset, err);
    if (rc < 0) return rc;
    uint32_t payload = base_le_load32(head + 4);
    if (base_le_load32(head) != PRED_CHUNK_MAGIC) {
        rc = is_zero_from(r, r->offset, err);
        if (rc != 0) return rc < 0 ? rc : torn(r);
        return damaged(r, BASE_EFORMAT, "its mark is missing", err);
    }
    if (payload == 0 || payload > PRED_CHUNK_PAYLOAD_MAX) {
        return damaged(r, BASE_EFORMAT, "it claims an impossible size", err);
    }
    if (left - sizeof head < payload) return torn(r);
    if (payload > r->chunk_room) {
        uint8_t *grown = realloc(r->chunk, payload + CHUNK_SLACK);
        if (!grown) return -ENOMEM;
        r->chunk = grown;
        r->chunk_room = payload;
    }
    rc = read_at(r, r->chunk, payload, r->offset + sizeof head, err);
    if (rc < 0) return rc;
    memset(r->chunk + payload, 0, CHUNK_SLACK);
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, head, 24);
    port_hash_add(&hash, r->chunk, payload);
    if (port_hash_end(&hash) != base_le_load64(head + 24)) {
        rc = is_zero_from(r, r->offset + sizeof head + payload, err);
        if (rc != 0) return rc < 0 ? rc : torn(r);
        return damaged(r, BASE_ECHECKSUM, "its bytes do not match their checksum", err);
    }
    if (base_le_load64(head + 8) != r->chunk_number) {
        return damaged(r, BASE_EFORMAT, "it is not the one that should stand here", err);
    }
    if (r->chunk_number > 0 && base_le_load64(head + 16) != r->record_number) {
        return damaged(r, BASE_EFORMAT, "records are missing or repeated before it", err);
    }
    r->chunk_number++;
    r->chunk_offset = r->offset;
    r->offset += sizeof head + payload;
    r->health.read_bytes += sizeof head + payload;
    r->in = (struct pred_in){ .at = r->chunk, .end = r->chunk + payload };
    return 1;
}

static int bad_file(const struct pred_trace_reader *r, int rc, const char *what,
                    struct base_err *err)
{
    return base_err_set(err, rc, "%s: %s", r->open_path, what);
}

/* The first chunk of a file: one header record. */
static int header_load(struct pred_trace_reader *r, struct base_err *err)
{
    int rc = chunk_load(r, err);
    if (rc < 0) return rc;
    if (rc == 0) return bad_file(r, BASE_ETORN, "the file ends inside its header", err);
    uint8_t kind = pred_get_u8(&r->in);
    uint64_t size = pred_get_varint(&r->in);
    if (r->in.bad || kind != PRED_RECORD_HEADER || size != (size_t)(r->in.end - r->in.at)) {
        return bad_file(r, BASE_EFORMAT, "its first chunk holds no header record", err);
    }
    uint64_t hash = port_hash64(r->in.at, size);
    if (r->header) {
        r->in.at = r->in.end;
        if (hash == r->header_hash) return 0;
        return bad_file(r, BASE_EMISMATCH, "this part's header differs from the first part's", err);
    }
    struct base_err inner = { 0 };
    rc = pred_header_decode(&r->header, r->in.at, size, &inner);
    if (rc < 0) {
        return bad_file(r, rc, inner.code ? inner.text : base_err_name(rc), err);
    }
    r->header_hash = hash;
    r->in.at = r->in.end;
    return 0;
}

/* What of the part that is being opened is read: what there was when it was opened first. */
static int span_take(struct pred_trace_reader *r, uint64_t bytes)
{
    if (r->health.parts == r->span_count) {
        struct span *grown = realloc(r->spans, (r->span_count + 1) * sizeof grown[0]);
        if (!grown) return -ENOMEM;
        r->spans = grown;
        r->spans[r->span_count++] = (struct span){ .bytes = bytes, .whole = bytes };
    }
    r->file_bytes = r->spans[r->health.parts++].bytes;
    r->health.file_bytes += r->file_bytes;
    return 0;
}

/* Opens r->open_path as part `part` of the trace (part UINT32_MAX: whatever it is). */
static int file_open(struct pred_trace_reader *r, uint32_t part, struct base_err *err)
{
    uint8_t head[PRED_FILE_HEADER_BYTES];
    struct stat st;
    if (r->fd >= 0) close(r->fd);
    r->fd = open(r->open_path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0 || fstat(r->fd, &st) < 0) {
        int rc = -errno;
        return base_err_set(err, rc, "%s: cannot open the trace: %s", r->open_path,
                            base_err_name(rc));
    }
    if (!S_ISREG(st.st_mode)) return bad_file(r, -EINVAL, "not a regular file", err);
    int rc = span_take(r, (uint64_t)st.st_size);
    if (rc < 0) return rc;
    if (r->file_bytes < sizeof head) {
        return bad_file(r, BASE_EFORMAT,
                        "too short for a trace: not even its first 32 bytes are there", err);
    }
    rc = read_at(r, head, sizeof head, 0, err);
    if (rc < 0) return rc;
    if (memcmp(head, PRED_TRACE_MAGIC, 8) != 0) {
        return bad_file(r, BASE_EFORMAT, "not a trace: a trace begins with EXPTRACE", err);
    }
    if (base_le_load32(head + 8) != PRED_TRACE_VERSION) {
        return base_err_set(err, BASE_EVERSION,
                            "%s: trace version %" PRIu32 ", this build reads %d", r->open_path,
                            base_le_load32(head + 8), PRED_TRACE_VERSION);
    }
    if (port_hash64(head, 24) != base_le_load64(head + 24)) {
        return bad_file(r, BASE_ECHECKSUM, "its first 32 bytes do not match their checksum", err);
    }
    uint32_t found = base_le_load32(head + 12);
    uint64_t trace_id = base_le_load64(head + 16);
    if (part != UINT32_MAX && (found != part || trace_id != r->trace_id)) {
        return bad_file(r, BASE_EMISMATCH, "it is not the next part of this trace", err);
    }
    r->part = found;
    r->trace_id = trace_id;
    r->offset = sizeof head;
    r->chunk_number = 0;
    r->health.read_bytes += sizeof head;
    return header_load(r, err);
}

static void part_path(const struct pred_trace_reader *r, uint32_t part, char to[PATH_MAX])
{
    if (part == r->first_part) {
        snprintf(to, PATH_MAX, "%s", r->first_path);
    } else {
        snprintf(to, PATH_MAX, "%.*s.%" PRIu32, PATH_MAX - 12, r->path, part);
    }
}

static int next_part(struct pred_trace_reader *r, struct base_err *err)
{
    if (r->in.at != r->in.end || r->offset != r->file_bytes) {
        return bad_file(r, BASE_EFORMAT, "records stand after the one that points to the next part",
                        err);
    }
    part_path(r, r->part + 1, r->open_path);
    return file_open(r, r->part + 1, err);
}

/* ---------------------------------------------------------------------------------- records -- */

/* `count` ids into `to`, each in range, no two the same. */
static bool get_ids(struct pred_trace_reader *r, struct pred_in *in, uint32_t *to, uint32_t count)
{
    struct pred_bits bits = { 0 };
    if ((uint64_t)(in->end - in->at) * 8 < (uint64_t)count * r->id_bits) return false;
    if (++r->stamp == 0) {
        memset(r->stamps, 0, r->header->experts * sizeof r->stamps[0]);
        r->stamp = 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = pred_get_bits(in, &bits, r->id_bits);
        if (id >= r->header->experts) return false;
        if (r->stamps[id] == r->stamp) return false;
        r->stamps[id] = r->stamp;
        to[i] = id;
    }
    return bits.held == 0 && !in->bad;
}

static bool get_acquire(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    event->kind = TIER_EVENT_ACQUIRE;
    event->phase = (enum tier_phase)pred_get_u8(in);
    event->layer = (uint32_t)pred_get_upto(in, r->header->layers - 1);
    event->count = (uint32_t)pred_get_upto(in, r->header->experts);
    event->granted = (uint32_t)pred_get_upto(in, event->count);
    event->ids = r->event_ids;
    if (in->bad || event->phase >= TIER_PHASE_COUNT) return false;
    if (!get_ids(r, in, r->event_ids, event->count)) return false;
    memcpy(r->last_ids, r->event_ids, event->granted * sizeof r->last_ids[0]);
    r->last_layer = event->layer;
    r->last_granted = event->granted;
    r->last_valid = true;
    return true;
}

static bool get_release(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    event->kind = TIER_EVENT_RELEASE;
    event->layer = (uint32_t)pred_get_upto(in, r->header->layers - 1);
    uint64_t coded = pred_get_upto(in, (uint64_t)r->header->experts << 1 | 1);
    event->count = (uint32_t)(coded >> 1);
    event->ids = r->event_ids;
    if (in->bad) return false;
    if ((coded & 1) == 0) return get_ids(r, in, r->event_ids, event->count);
    if (!r->last_valid || r->last_layer != event->layer || r->last_granted != event->count) {
        return false;
    }
    memcpy(r->event_ids, r->last_ids, event->count * sizeof r->last_ids[0]);
    return true;
}

static bool get_hint(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    event->kind = TIER_EVENT_HINT;
    event->layer = (uint32_t)pred_get_upto(in, r->header->layers - 1);
    r->event_ids[0] = (uint32_t)pred_get_upto(in, r->header->experts - 1);
    event->ids = r->event_ids;
    event->count = 1;
    event->probability = pred_get_f32(in);
    event->distance = (uint32_t)pred_get_upto(in, UINT32_MAX);
    event->admitted = pred_get_u8(in);
    return event->probability >= 0 && event->probability <= 1 && event->admitted <= 1;
}

static bool get_setting(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    size_t size = (size_t)(in->end - in->at);
    event->kind = TIER_EVENT_SETTING;
    event->text = r->text;
    if (size >= sizeof r->text) return false;
    const uint8_t *bytes = pred_get(in, size);
    if (!bytes || memchr(bytes, 0, size)) return false;
    memcpy(r->text, bytes, size);
    r->text[size] = '\0';
    return true;
}

static bool get_restore(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    event->kind = TIER_EVENT_RESTORE;
    event->tier = (uint32_t)pred_get_upto(in, TIER_RESIDENT_TIERS_MAX - 1);
    event->layer = (uint32_t)pred_get_upto(in, r->header->layers - 1);
    event->count = (uint32_t)pred_get_upto(in, r->header->experts);
    event->ids = r->event_ids;
    if (in->bad || !get_ids(r, in, r->event_ids, event->count)) return false;
    if (in->at < in->end) event->uses = pred_get(in, event->count);
    return true;
}

static bool get_forget(struct pred_trace_reader *r, struct pred_in *in, struct tier_event *event)
{
    event->kind = TIER_EVENT_FORGET;
    event->tier = (uint32_t)pred_get_upto(in, TIER_RESIDENT_TIERS_MAX - 1);
    event->layer = (uint32_t)pred_get_upto(in, r->header->layers - 1);
    r->event_ids[0] = (uint32_t)pred_get_upto(in, r->header->experts - 1);
    event->ids = r->event_ids;
    event->count = 1;
    return true;
}

static bool get_counts(struct pred_in *in, struct pred_trace_counts *counts)
{
    memset(counts, 0, sizeof *counts);
    counts->tier_count = (uint32_t)pred_get_upto(in, TIER_RESIDENT_TIERS_MAX);
    uint64_t fields = pred_get_varint(in);
    if (fields != PRED_COUNT_FIELDS && fields != PRED_COUNT_FIELDS - 1) return false;
    for (uint32_t t = 0; t < counts->tier_count; t++) {
        for (int c = 0; c < TIER_CELL_COUNT; c++) {
            struct tier_counts *cell = &counts->cells[t][c];
            cell->lookups = pred_get_varint(in);
            cell->resident = pred_get_varint(in);
            cell->misses = pred_get_varint(in);
            cell->evictions = pred_get_varint(in);
            cell->admissions = pred_get_varint(in);
            cell->prefetch_admissions = pred_get_varint(in);
            cell->prefetch_used = pred_get_varint(in);
            if (fields == PRED_COUNT_FIELDS) cell->in_place = pred_get_varint(in);
        }
    }
    return true;
}

static bool get_step(struct pred_trace_reader *r, struct pred_in *in)
{
    struct assembly *a = &r->step;
    const struct pred_trace_header *header = r->header;
    if (a->running) return false;
    memset(&a->step, 0, sizeof a->step);
    a->step.step = pred_get_varint(in);
    a->step.token_count = (uint32_t)pred_get_upto(in, PRED_STEP_TOKENS_MAX);
    uint8_t flags = pred_get_u8(in);
    a->step.step_ns = pred_get_varint(in);
    a->step.compute_ns = pred_get_varint(in);
    uint64_t causes = pred_get_upto(in, 16);
    for (uint64_t i = 0; i < causes; i++) {
        uint64_t ns = pred_get_varint(in);
        if (i < TIER_WAIT_CAUSE_COUNT) a->step.wait_ns[i] = ns;
    }
    if (in->bad || a->step.token_count == 0) return false;
    if (flags > (PRED_STEP_HAS_TOKENS | PRED_STEP_HAS_WEIGHTS | PRED_STEP_SPARSE)) return false;
    a->has_tokens = flags & PRED_STEP_HAS_TOKENS;
    a->has_weights = flags & PRED_STEP_HAS_WEIGHTS;
    a->sparse = flags & PRED_STEP_SPARSE;
    a->rows = (uint64_t)header->layers * a->step.token_count;
    if (a->rows * header->top_k > PRED_STEP_IDS_MAX) return false;
    if (a->has_weights && header->weights == PRED_WEIGHTS_NONE) return false;
    a->rows_got = 0;
    a->tokens_got = 0;
    a->running = true;
    r->orphans_allowed = false;
    return true;
}

static bool grow(void *array, size_t element, size_t count)
{
    void **at = array;
    void *grown = realloc(*at, element * count);
    if (!grown) return false;
    *at = grown;
    return true;
}

/* Room for what a record really brings; doubles, so that a step costs a few reallocations once. */
static bool tokens_reserve(struct assembly *a, size_t count)
{
    if (count <= a->token_room) return true;
    size_t room = count * 2 < 64 ? 64 : count * 2;
    if (!grow(&a->seqs, sizeof a->seqs[0], room) || !grow(&a->tokens, sizeof a->tokens[0], room) ||
        !grow(&a->positions, sizeof a->positions[0], room) ||
        !grow(&a->phases, sizeof a->phases[0], room)) {
        return false;
    }
    a->token_room = room;
    return true;
}

static bool ids_reserve(struct assembly *a, size_t count)
{
    if (count <= a->id_room) return true;
    size_t room = count * 2 < 1024 ? 1024 : count * 2;
    if (!grow(&a->ids, sizeof a->ids[0], room) || !grow(&a->weights, sizeof a->weights[0], room)) {
        return false;
    }
    a->id_room = room;
    return true;
}

static bool get_tokens(struct pred_trace_reader *r, struct pred_in *in)
{
    struct assembly *a = &r->step;
    uint64_t first = pred_get_varint(in);
    uint64_t count = pred_get_upto(in, PRED_RECORD_TOKENS_MAX);
    if (!a->running || in->bad || count == 0 || first != a->tokens_got) return false;
    if (count > a->step.token_count - a->tokens_got || a->rows_got > 0) return false;
    if (!tokens_reserve(a, a->tokens_got + count)) return false;
    uint64_t seq = 0, position = 0;
    for (uint64_t i = 0; i < count; i++) {
        seq += (uint64_t)pred_get_zigzag(in);
        position += (uint64_t)pred_get_zigzag(in);
        uint64_t coded = pred_get_upto(in, UINT64_C(1) << 33);
        uint32_t at = a->tokens_got++;
        if (position > UINT32_MAX || coded >> 1 > PRED_NO_TOKEN) return false;
        a->seqs[at] = seq;
        a->positions[at] = (uint32_t)position++;
        a->phases[at] = coded & 1 ? TIER_DECODE : TIER_PREFILL;
        a->tokens[at] = coded >> 1 ? (uint32_t)((coded >> 1) - 1) : PRED_NO_TOKEN;
    }
    return true;
}

static bool get_weights(const struct pred_trace_reader *r, struct pred_in *in, float *to,
                        size_t count)
{
    if (r->header->weights == PRED_WEIGHTS_F32) {
        const uint8_t *bytes = pred_get(in, count * sizeof to[0]);
        if (!bytes) return false;
        memcpy(to, bytes, count * sizeof to[0]);
        for (size_t i = 0; i < count; i++) {
            if (!isfinite(to[i])) return false;
        }
        return true;
    }
    float largest = pred_get_f32(in);
    const uint8_t *bytes = pred_get(in, count * 2);
    if (!bytes || !(largest >= 0 && isfinite(largest))) return false;
    for (size_t i = 0; i < count; i++) {
        to[i] = largest * (float)base_le_load16(bytes + i * 2) / 65535.0f;
    }
    return true;
}

/* A number of `width` bits, at most 32, that begins at this bit: of the chunk, whose slack makes
 * reading on beyond it harmless. */
static inline uint32_t bits_at(const uint8_t *from, uint64_t bit, unsigned width)
{
    uint64_t bytes = base_le_load64(from + bit / 8);
    return (uint32_t)(bytes >> bit % 8 & ((UINT64_C(1) << width) - 1));
}

/* One routing row: top_k different experts, or none at all where the step allows that. */
static inline bool get_row(const struct pred_trace_reader *r, const uint8_t *from, uint64_t bit,
                           unsigned width, uint32_t *to)
{
    uint32_t experts = r->header->experts, top_k = r->header->top_k;
    bool none = r->step.sparse && bits_at(from, bit, width) == experts;
    for (uint32_t k = 0; k < top_k; k++, bit += width) {
        uint32_t id = bits_at(from, bit, width);
        if (none ? id != experts : id >= experts) return false;
        for (uint32_t j = 0; j < k && !none; j++) {
            if (to[j] == id) return false;
        }
        to[k] = none ? PRED_NO_EXPERT : id;
    }
    return true;
}

/* The same for up to 64 experts and a step where all rows are there: what is wrong is looked for
 * once a row. */
static inline bool get_small_row(const struct pred_trace_reader *r, const uint8_t *from,
                                 uint64_t bit, unsigned width, uint32_t *to)
{
    uint32_t experts = r->header->experts, top_k = r->header->top_k, largest = 0;
    uint64_t seen = 0, twice = 0;
    for (uint32_t k = 0; k < top_k; k++, bit += width) {
        uint32_t id = bits_at(from, bit, width);
        uint64_t mark = UINT64_C(1) << id;
        largest = id > largest ? id : largest;
        twice |= seen & mark;
        seen |= mark;
        to[k] = id;
    }
    return largest < experts && twice == 0;
}

static bool get_rows(struct pred_trace_reader *r, struct pred_in *in, uint32_t *to, uint32_t rows)
{
    uint32_t experts = r->header->experts, top_k = r->header->top_k;
    unsigned width = r->step.sparse ? pred_id_bits(experts + 1) : r->id_bits;
    bool small = experts <= 64 && !r->step.sparse;
    uint64_t bits = (uint64_t)rows * top_k * width, bit = 0;
    const uint8_t *from = pred_get(in, (bits + 7) / 8);
    if (!from) return false;
    for (uint32_t row = 0; row < rows; row++, to += top_k, bit += (uint64_t)top_k * width) {
        bool good = small ? get_small_row(r, from, bit, width, to)
                          : get_row(r, from, bit, width, to);
        if (!good) return false;
    }
    return bits % 8 == 0 || from[bits / 8] >> bits % 8 == 0;
}

static bool get_routes(struct pred_trace_reader *r, struct pred_in *in)
{
    struct assembly *a = &r->step;
    uint32_t top_k = r->header->top_k;
    uint64_t first = pred_get_varint(in);
    const uint8_t *count_bytes = pred_get(in, 4);
    if (!a->running || !count_bytes || first != a->rows_got) return false;
    if (a->tokens_got != a->step.token_count) return false;
    uint32_t count = base_le_load32(count_bytes);
    if (count == 0 || count > PRED_RECORD_IDS_MAX || count > a->rows - a->rows_got) return false;
    size_t ids = (size_t)count * top_k, at = (size_t)a->rows_got * top_k;
    if (ids > PRED_RECORD_IDS_MAX || !ids_reserve(a, at + ids)) return false;
    if (!get_rows(r, in, a->ids + at, count)) return false;
    if (a->has_weights && !get_weights(r, in, a->weights + at, ids)) return false;
    a->rows_got += count;
    return true;
}

static void step_show(struct assembly *a, struct pred_trace_item *item)
{
    item->kind = PRED_ITEM_STEP;
    item->step = a->step;
    item->step.seqs = a->seqs;
    item->step.tokens = a->tokens;
    item->step.positions = a->positions;
    item->step.phases = a->phases;
    item->step.expert_ids = a->ids;
    item->step.expert_weights = a->has_weights ? a->weights : NULL;
    a->running = false;
}

static bool get_event(struct pred_trace_reader *r, enum pred_record kind, struct pred_in *in,
                      struct tier_event *event)
{
    if (r->step.running) return false;
    switch (kind) {
    case PRED_RECORD_ACQUIRE: return get_acquire(r, in, event);
    case PRED_RECORD_RELEASE: return get_release(r, in, event);
    case PRED_RECORD_HINT: return get_hint(r, in, event);
    case PRED_RECORD_SETTING: return get_setting(r, in, event);
    case PRED_RECORD_RESTORE: return get_restore(r, in, event);
    default: return get_forget(r, in, event);
    }
}

static bool get_end(struct pred_trace_reader *r, struct pred_in *in)
{
    if (r->step.running) return false;
    uint64_t records = pred_get_varint(in);
    r->health.lost_records = pred_get_varint(in);
    r->health.ended = true;
    r->at_end = true;
    /* The end mark is numbered like every record; this one is not yet counted. */
    return records <= r->record_number + 1 && r->in.at == r->in.end && r->offset == r->file_bytes;
}

/* Rest of a step, or of an acquire, whose begin was lost or stands in an earlier part. */
static bool is_orphan(const struct pred_trace_reader *r, enum pred_record kind)
{
    if (!r->orphans_allowed) return false;
    if (kind == PRED_RECORD_TOKENS || kind == PRED_RECORD_ROUTES) return !r->step.running;
    return kind == PRED_RECORD_RELEASE && !r->last_valid;
}

/* Decodes one record: 1 = item filled, 0 = nothing to show yet, BASE_EFORMAT. */
static int record_decode(struct pred_trace_reader *r, enum pred_record kind, struct pred_in *in,
                         struct pred_trace_item *item)
{
    bool good = true, shown = false;
    switch (kind) {
    case PRED_RECORD_ACQUIRE:
    case PRED_RECORD_RELEASE:
    case PRED_RECORD_HINT:
    case PRED_RECORD_SETTING:
    case PRED_RECORD_RESTORE:
    case PRED_RECORD_FORGET:
        memset(&item->event, 0, sizeof item->event);
        item->kind = PRED_ITEM_EVENT;
        good = get_event(r, kind, in, &item->event);
        shown = true;
        break;
    case PRED_RECORD_STEP:
        good = get_step(r, in);
        break;
    case PRED_RECORD_TOKENS:
        good = get_tokens(r, in);
        break;
    case PRED_RECORD_ROUTES:
        good = get_routes(r, in);
        if (good && r->step.rows_got == r->step.rows) {
            step_show(&r->step, item);
            shown = true;
        }
        break;
    case PRED_RECORD_COUNTS:
        item->kind = PRED_ITEM_COUNTS;
        good = !r->step.running && get_counts(in, &item->counts);
        shown = true;
        break;
    case PRED_RECORD_GAP:
        item->kind = PRED_ITEM_GAP;
        item->lost = pred_get_varint(in);
        r->health.lost_records += item->lost;
        r->step.running = false;
        r->last_valid = false;
        r->orphans_allowed = true;
        shown = true;
        break;
    case PRED_RECORD_END:
        good = get_end(r, in);
        break;
    default:
        good = false;
    }
    if (!good || in->bad || in->at != in->end) return BASE_EFORMAT;
    return shown;
}

int pred_trace_reader_next(struct pred_trace_reader *r, unsigned want, struct pred_trace_item *item,
                           struct base_err *err)
{
    while (!r->at_end) {
        if (r->in.at == r->in.end) {
            int rc = chunk_load(r, err);
            if (rc < 0) return rc;
            if (rc == 0) break;
        }
        uint64_t place =
            r->chunk_offset + PRED_CHUNK_HEADER_BYTES + (uint64_t)(r->in.at - r->chunk);
        uint8_t kind = pred_get_u8(&r->in);
        uint64_t size = pred_get_varint(&r->in);
        const uint8_t *bytes = pred_get(&r->in, size);
        const char *name = kind < sizeof record_names / sizeof record_names[0] && record_names[kind]
                               ? record_names[kind] : "unknown";
        if (!bytes) {
            return base_err_set(err, BASE_EFORMAT, "%s: %s record at offset %" PRIu64
                                " goes on beyond its chunk", r->open_path, name, place);
        }
        r->record_number++;
        r->health.records++;
        if (is_orphan(r, kind)) continue;
        int rc;
        if (kind == PRED_RECORD_NEXT) {
            rc = next_part(r, err);
            if (rc < 0) return rc;
            continue;
        }
        struct pred_in in = { .at = bytes, .end = bytes + size };
        rc = record_decode(r, kind, &in, item);
        if (rc < 0) {
            return base_err_set(err, rc, "%s: %s record at offset %" PRIu64 " (%" PRIu64
                                " bytes) does not follow the format or this trace's shape",
                                r->open_path, name, place, size);
        }
        if (rc > 0 && (want & (1u << item->kind)) != 0) return 1;
    }
    return 0;
}

/* --------------------------------------------------------------------------- open and close -- */

/* A part given by its own name (PATH.3) begins there; its successors are PATH.4 and on. */
static void base_path(struct pred_trace_reader *r)
{
    char suffix[16];
    snprintf(r->path, sizeof r->path, "%s", r->open_path);
    int length = snprintf(suffix, sizeof suffix, ".%" PRIu32, r->part);
    size_t size = strlen(r->path);
    if (r->part > 0 && size > (size_t)length &&
        strcmp(r->path + size - (size_t)length, suffix) == 0) {
        r->path[size - (size_t)length] = '\0';
    }
}

/* The record number that this file's first chunk begins with. Later parts carry on the count. */
static int first_record(struct pred_trace_reader *r, struct base_err *err)
{
    uint8_t head[PRED_CHUNK_HEADER_BYTES];
    r->record_number = 1;
    if (r->part == 0 || r->file_bytes - r->offset < sizeof head) return 0;
    int rc = read_at(r, head, sizeof head, r->offset, err);
    if (rc == 0) r->record_number = base_le_load64(head + 16);
    return rc;
}

int pred_trace_reader_open(struct pred_trace_reader **out, const char *path, struct base_err *err)
{
    *out = NULL;
    struct pred_trace_reader *r = calloc(1, sizeof *r);
    if (!r) return -ENOMEM;
    int rc = -ENAMETOOLONG;
    r->fd = -1;
    if ((size_t)snprintf(r->open_path, sizeof r->open_path, "%s", path) + 12 >= PATH_MAX) goto fail;
    rc = file_open(r, UINT32_MAX, err);
    if (rc < 0) goto fail;
    r->first_part = r->part;
    snprintf(r->first_path, sizeof r->first_path, "%s", r->open_path);
    r->orphans_allowed = r->part > 0;
    r->header->part = r->part;
    r->header->trace_id = r->trace_id;
    r->id_bits = pred_id_bits(r->header->experts);
    base_path(r);
    rc = first_record(r, err);
    if (rc < 0) goto fail;
    rc = -ENOMEM;
    r->event_ids = calloc(r->header->experts, sizeof r->event_ids[0]);
    r->last_ids = calloc(r->header->experts, sizeof r->last_ids[0]);
    r->stamps = calloc(r->header->experts, sizeof r->stamps[0]);
    if (!r->event_ids || !r->last_ids || !r->stamps) goto fail;
    *out = r;
    return 0;
fail:
    base_err_set(err, rc, "%s: cannot open the trace: %s", path, base_err_name(rc));
    pred_trace_reader_close(r);
    return rc;
}

void pred_trace_reader_close(struct pred_trace_reader *r)
{
    if (!r) return;
    if (r->fd >= 0) close(r->fd);
    pred_header_free(r->header);
    free(r->chunk);
    free(r->spans);
    free(r->event_ids);
    free(r->last_ids);
    free(r->stamps);
    free(r->step.seqs);
    free(r->step.tokens);
    free(r->step.positions);
    free(r->step.phases);
    free(r->step.ids);
    free(r->step.weights);
    free(r);
}

const struct pred_trace_header *pred_trace_reader_header(const struct pred_trace_reader *r)
{
    return r->header;
}

int pred_trace_reader_rewind(struct pred_trace_reader *r, struct base_err *err)
{
    part_path(r, r->first_part, r->open_path);
    memset(&r->health, 0, sizeof r->health);
    r->at_end = r->last_valid = r->step.running = false;
    r->orphans_allowed = r->first_part > 0;
    int rc = file_open(r, r->first_part, err);
    return rc < 0 ? rc : first_record(r, err);
}

/* Does this file say that it is that part of the trace? */
static bool is_part(const struct pred_trace_reader *r, const char *path, uint32_t part)
{
    uint8_t head[PRED_FILE_HEADER_BYTES];
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    bool whole = fd >= 0 && pread(fd, head, sizeof head, 0) == (ssize_t)sizeof head;
    if (fd >= 0) close(fd);
    return whole && memcmp(head, PRED_TRACE_MAGIC, 8) == 0 &&
           base_le_load32(head + 12) == part && base_le_load64(head + 16) == r->trace_id;
}

int pred_trace_reader_spares(const struct pred_trace_reader *r, const char *to,
                             struct base_err *err)
{
    struct base_out out;
    char path[PATH_MAX];
    int rc = base_out_begin(&out, to, err);
    for (uint32_t part = r->first_part; rc == 0; part++) {
        part_path(r, part, path);
        if (!is_part(r, path, part)) break;
        rc = base_out_spares(&out, path, err);
    }
    return rc;
}

void pred_trace_reader_health(const struct pred_trace_reader *r, struct pred_trace_health *out)
{
    *out = r->health;
}
