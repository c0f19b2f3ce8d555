/* What is written to a trace is read back, whatever is cut off, lost, rotated or left out is said,
 * and no broken file does worse than one clear sentence. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

#include "port/hash.h"
#include "predictor/trace_format.h"
#include "tests/support/sanitized.h"
#include "tests/unit/predictor/support.h"

enum { LAYERS = 5, EXPERTS = 37, TOP_K = 4, TOKENS_MAX = 40, ITEMS_MAX = 400 };

static struct pred_trace_header plain_header(void)
{
    static const uint64_t expert_bytes[LAYERS] = { 100, 200, 300, 0, 1ull << 33 };
    return (struct pred_trace_header){
        .model = "tiny", .source = "server", .layers = LAYERS, .first_moe_layer = 1,
        .experts = EXPERTS, .top_k = TOP_K, .slot_bytes = 8192, .expert_bytes = expert_bytes,
        .yaml = "policy:\n  eviction: lru\n",
        .decide = { .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K, .tier_count = 1,
                    .tiers = { { .slots = 40, .policy = "lru" } },
                    .half_life_tokens = 16, .prefill_share = 0.5 },
    };
}

/* One item of a made-up run, in memory that the test keeps. */
struct memory {
    enum pred_trace_item_kind kind;
    struct tier_event event;
    uint32_t event_ids[EXPERTS];
    struct pred_step step;
    uint64_t seqs[TOKENS_MAX];
    uint32_t tokens[TOKENS_MAX], positions[TOKENS_MAX];
    uint8_t phases[TOKENS_MAX];
    uint32_t ids[LAYERS * TOKENS_MAX * TOP_K];
    float weights[LAYERS * TOKENS_MAX * TOP_K];
    struct pred_trace_counts counts;
};

static void make_event(struct memory *m, struct base_rng *rng)
{
    static const char *const texts[] = { "policy.eviction=lru", "", "a=b" };
    struct tier_event *e = &m->event;
    memset(e, 0, sizeof *e);
    m->kind = PRED_ITEM_EVENT;
    e->kind = (enum tier_event_kind)(1 + base_rng_below(rng, 6));
    e->ids = m->event_ids;
    e->layer = (uint32_t)base_rng_below(rng, LAYERS);
    e->count = (uint32_t)base_rng_below(rng, EXPERTS + 1);
    support_ids(rng, m->event_ids, e->count > 0 ? e->count : 1, EXPERTS);
    if (e->kind == TIER_EVENT_ACQUIRE) {
        e->phase = base_rng_below(rng, 2) ? TIER_DECODE : TIER_PREFILL;
        e->granted = (uint32_t)base_rng_below(rng, e->count + 1);
    } else if (e->kind == TIER_EVENT_HINT) {
        e->count = 1;
        e->probability = (float)base_rng_unit(rng);
        e->distance = (uint32_t)base_rng_below(rng, 4);
        e->admitted = (uint32_t)base_rng_below(rng, 2);
    } else if (e->kind == TIER_EVENT_SETTING) {
        e->count = e->layer = 0;
        e->text = texts[base_rng_below(rng, 3)];
    } else if (e->kind == TIER_EVENT_RESTORE) {
        e->tier = (uint32_t)base_rng_below(rng, 2);
    } else if (e->kind == TIER_EVENT_FORGET) {
        e->count = 1;
        e->tier = (uint32_t)base_rng_below(rng, 2);
    }
}

/* A release of what the acquire before it was granted: the short form. */
static bool make_release(struct memory *m, const struct memory *before)
{
    if (!before || before->kind != PRED_ITEM_EVENT || before->event.kind != TIER_EVENT_ACQUIRE) {
        return false;
    }
    m->kind = PRED_ITEM_EVENT;
    m->event = (struct tier_event){ .kind = TIER_EVENT_RELEASE, .layer = before->event.layer,
                                    .count = before->event.granted, .ids = m->event_ids };
    memcpy(m->event_ids, before->event_ids, sizeof m->event_ids);
    return true;
}

static void make_step(struct memory *m, struct base_rng *rng, uint64_t number, bool weights)
{
    m->kind = PRED_ITEM_STEP;
    uint32_t n = base_rng_below(rng, 3) ? 1 : 1 + (uint32_t)base_rng_below(rng, TOKENS_MAX);
    m->step = (struct pred_step){
        .step = number, .token_count = n, .seqs = m->seqs, .tokens = m->tokens,
        .positions = m->positions, .phases = m->phases, .expert_ids = m->ids,
        .expert_weights = weights ? m->weights : NULL, .step_ns = base_rng_below(rng, 1u << 30),
        .compute_ns = base_rng_below(rng, 1u << 30), .wait_ns = { 1, 0, base_rng_u64(rng), 77 },
    };
    for (uint32_t i = 0; i < n; i++) {
        m->seqs[i] = base_rng_below(rng, 5) ? base_rng_below(rng, 4) : base_rng_u64(rng);
        m->tokens[i] =
            base_rng_below(rng, 9) ? (uint32_t)base_rng_below(rng, 129280) : PRED_NO_TOKEN;
        m->positions[i] = (uint32_t)base_rng_u64(rng) >> base_rng_below(rng, 32);
        m->phases[i] = base_rng_below(rng, 2) ? TIER_DECODE : TIER_PREFILL;
    }
    for (uint32_t row = 0; row < LAYERS * n; row++) {
        support_ids(rng, m->ids + row * TOP_K, TOP_K, EXPERTS);
        bool none = number % 7 == 3 && base_rng_below(rng, 3) == 0;
        for (uint32_t k = 0; none && k < TOP_K; k++) m->ids[row * TOP_K + k] = PRED_NO_EXPERT;
        for (uint32_t k = 0; k < TOP_K; k++) {
            m->weights[row * TOP_K + k] = none ? 0 : (float)base_rng_unit(rng) * 2.5f;
        }
    }
}

static struct memory *make_run(uint64_t seed, unsigned items, bool weights)
{
    struct base_rng rng;
    base_rng_init(&rng, seed);
    struct memory *run = calloc(items, sizeof *run);
    for (unsigned i = 0; i < items; i++) {
        unsigned kind = (unsigned)base_rng_below(&rng, 10);
        if (kind == 9) {
            run[i].kind = PRED_ITEM_COUNTS;
            run[i].counts.tier_count = 1;
            for (int c = 0; c < TIER_CELL_COUNT; c++) {
                run[i].counts.cells[0][c].lookups = base_rng_u64(&rng);
                run[i].counts.cells[0][c].misses = base_rng_below(&rng, 1000);
                run[i].counts.cells[0][c].prefetch_used = (uint64_t)c;
            }
        } else if (kind > 6) {
            make_step(&run[i], &rng, i, weights);
        } else if (kind < 3 || !make_release(&run[i], i > 0 ? &run[i - 1] : NULL)) {
            make_event(&run[i], &rng);
        }
    }
    return run;
}

static void write_run(struct pred_trace_writer *w, const struct memory *run, unsigned items)
{
    for (unsigned i = 0; i < items; i++) {
        if (run[i].kind == PRED_ITEM_EVENT) pred_trace_writer_event(w, &run[i].event);
        if (run[i].kind == PRED_ITEM_STEP) pred_trace_writer_step(w, &run[i].step);
        if (run[i].kind == PRED_ITEM_COUNTS) pred_trace_writer_counts(w, &run[i].counts);
    }
}

static void write_trace(const struct pred_trace_config *config, const struct memory *run,
                        unsigned items)
{
    struct pred_trace_writer *w;
    struct pred_trace_header header = plain_header();
    struct base_err err = { 0 };
    ck_assert_msg(pred_trace_writer_open(&w, config, &header, true, &err) == 0, "%s", err.text);
    pred_trace_writer_patient(w);
    write_run(w, run, items);
    ck_assert_msg(pred_trace_writer_close(w, &err) == 0, "%s", err.text);
}

static void same_event(const struct tier_event *a, const struct tier_event *b)
{
    ck_assert_int_eq(a->kind, b->kind);
    ck_assert_uint_eq(a->layer, b->layer);
    ck_assert_uint_eq(a->count, b->count);
    ck_assert_uint_eq(a->granted, b->granted);
    ck_assert_uint_eq(a->tier, b->tier);
    ck_assert(a->probability == b->probability);
    ck_assert_uint_eq(a->distance, b->distance);
    ck_assert_uint_eq(a->admitted, b->admitted);
    if (a->kind == TIER_EVENT_ACQUIRE) ck_assert_int_eq(a->phase, b->phase);
    if (a->text || b->text) ck_assert_str_eq(a->text, b->text);
    if (a->count > 0) ck_assert_mem_eq(a->ids, b->ids, a->count * sizeof a->ids[0]);
}

static void same_step(const struct pred_step *a, const struct pred_step *b, float tolerance)
{
    uint32_t n = a->token_count;
    ck_assert_uint_eq(a->step, b->step);
    ck_assert_uint_eq(n, b->token_count);
    ck_assert_uint_eq(a->step_ns, b->step_ns);
    ck_assert_uint_eq(a->compute_ns, b->compute_ns);
    ck_assert_mem_eq(a->wait_ns, b->wait_ns, sizeof a->wait_ns);
    ck_assert_mem_eq(a->seqs, b->seqs, n * sizeof a->seqs[0]);
    ck_assert_mem_eq(a->tokens, b->tokens, n * sizeof a->tokens[0]);
    ck_assert_mem_eq(a->positions, b->positions, n * sizeof a->positions[0]);
    ck_assert_mem_eq(a->phases, b->phases, n);
    ck_assert_mem_eq(a->expert_ids, b->expert_ids, LAYERS * n * TOP_K * sizeof a->expert_ids[0]);
    ck_assert((a->expert_weights != NULL) == (b->expert_weights != NULL));
    for (uint32_t i = 0; a->expert_weights && i < LAYERS * n * TOP_K; i++) {
        ck_assert_msg(fabsf(a->expert_weights[i] - b->expert_weights[i]) <= tolerance, "weight %u",
                      i);
    }
}

static void same_item(const struct memory *m, const struct pred_trace_item *item, float tolerance)
{
    ck_assert_int_eq(item->kind, m->kind);
    if (m->kind == PRED_ITEM_EVENT) same_event(&m->event, &item->event);
    if (m->kind == PRED_ITEM_STEP) same_step(&m->step, &item->step, tolerance);
    if (m->kind == PRED_ITEM_COUNTS) ck_assert_mem_eq(&m->counts, &item->counts, sizeof m->counts);
}

static void expect_run(const char *path, const struct memory *run, unsigned items, float tolerance,
                       struct pred_trace_health *health)
{
    static struct pred_trace_item item;
    struct base_err err = { 0 };
    struct pred_trace_reader *r;
    ck_assert_msg(pred_trace_reader_open(&r, path, &err) == 0, "%s", err.text);
    for (unsigned i = 0; i < items; i++) {
        int rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err);
        ck_assert_msg(rc == 1, "item %u of %u: %d %s", i, items, rc, err.text);
        same_item(&run[i], &item, tolerance);
    }
    ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 0);
    pred_trace_reader_health(r, health);
    pred_trace_reader_close(r);
}

START_TEST(round_trip)
{
    struct pred_trace_health health;
    unsigned items = 1 + (unsigned)_i * 20;             /* the loop index is the seed */
    struct memory *run = make_run((uint64_t)_i, items, _i % 3 != 0);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    config.weights = _i % 2 ? PRED_WEIGHTS_F32 : PRED_WEIGHTS_U16;
    write_trace(&config, run, items);
    expect_run(config.path, run, items, _i % 2 ? 0 : 2.5f / 65535, &health);
    ck_assert(health.ended);
    ck_assert_uint_eq(health.lost_records, 0);
    ck_assert_uint_eq(health.torn_bytes, 0);
    ck_assert_uint_eq(health.file_bytes, health.read_bytes);
    free(run);
}
END_TEST

START_TEST(header_comes_back)
{
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_reader *r;
    struct base_err err = { 0 };
    write_trace(&config, NULL, 0);
    ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &err), 0);
    const struct pred_trace_header *got = pred_trace_reader_header(r);
    struct pred_trace_header want = plain_header();
    ck_assert_str_eq(got->model, want.model);
    ck_assert_str_eq(got->source, want.source);
    ck_assert_str_eq(got->yaml, want.yaml);
    ck_assert_uint_eq(got->layers, want.layers);
    ck_assert_uint_eq(got->first_moe_layer, want.first_moe_layer);
    ck_assert_uint_eq(got->experts, want.experts);
    ck_assert_uint_eq(got->top_k, want.top_k);
    ck_assert_uint_eq(got->slot_bytes, want.slot_bytes);
    ck_assert_mem_eq(got->expert_bytes, want.expert_bytes, LAYERS * sizeof got->expert_bytes[0]);
    ck_assert_uint_eq(got->decide.tier_count, 1);
    ck_assert_uint_eq(got->decide.tiers[0].slots, 40);
    ck_assert_str_eq(got->decide.tiers[0].policy, "lru");
    ck_assert(got->decide.half_life_tokens == 16 && got->decide.prefill_share == 0.5);
    ck_assert_int_eq(got->weights, PRED_WEIGHTS_U16);
    pred_trace_reader_close(r);
}
END_TEST

/* Cut anywhere, a trace still gives every item of its whole chunks, and the rest counts as torn. */
START_TEST(torn_at_every_byte)
{
    static struct pred_trace_item item;
    enum { ITEMS = 30 };
    struct memory *run = make_run(7, ITEMS, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    for (unsigned i = 0; i < ITEMS; i += 10) {
        write_run(w, run + i, 10);
        pred_trace_writer_flush(w);                     /* a chunk for every ten items */
    }
    ck_assert_int_eq(pred_trace_writer_close(w, &err), 0);
    size_t size;
    uint8_t *bytes = support_read(config.path, &size);
    const char *cut = support_path("cut.trace");
    support_write(cut, bytes, size);
    unsigned last_items = ITEMS;
    bool refused = false;
    for (size_t keep = size; keep-- > 0;) {
        if (keep % (SANITIZED ? 5 : 1)) continue;
        struct pred_trace_reader *r;
        struct base_err cut_err = { 0 };
        ck_assert_int_eq(truncate(cut, (off_t)keep), 0);
        int rc = pred_trace_reader_open(&r, cut, &cut_err);
        if (rc < 0) {
            ck_assert_ptr_nonnull(strstr(cut_err.text, "cut.trace: "));
            refused = true;
            continue;
        }
        ck_assert(!refused);                            /* only a cut header is refused */
        unsigned items = 0;
        while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &cut_err)) == 1) {
            ck_assert_uint_lt(items, ITEMS);
            same_item(&run[items++], &item, 2.5f / 65535);
        }
        ck_assert_msg(rc == 0, "byte %zu: %s", keep, cut_err.text);
        ck_assert_uint_le(items, last_items);
        ck_assert_uint_eq(items % 10, 0);
        last_items = items;
        struct pred_trace_health health;
        pred_trace_reader_health(r, &health);
        ck_assert(!health.ended);
        ck_assert_uint_eq(health.read_bytes + health.torn_bytes, keep);
        pred_trace_reader_close(r);
    }
    ck_assert_uint_eq(last_items, 0);
    ck_assert(refused);
    free(bytes);
    free(run);
}
END_TEST

/* A crash may leave a hole of zeros behind the last whole chunk. */
START_TEST(zeros_at_the_end_are_a_torn_tail)
{
    struct pred_trace_health health;
    struct memory *run = make_run(3, 30, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    write_trace(&config, run, 30);
    size_t size;
    uint8_t *bytes = support_read(config.path, &size);
    bytes = realloc(bytes, size + 9000);
    /* the end mark's chunk is the last 32 + a few bytes: it goes too, as after a crash */
    memset(bytes + size - 30, 0, 9030);
    support_write(config.path, bytes, size + 9000);
    expect_run(config.path, run, 30, 2.5f / 65535, &health);
    ck_assert(!health.ended);
    ck_assert_uint_gt(health.torn_bytes, 9000);
    free(bytes);
    free(run);
}
END_TEST

/* ------------------------------------------------------------------------- broken traces -- */

struct builder {
    uint8_t bytes[1 << 16];
    size_t size;
    uint64_t chunk, record;
};

/* A valid head, taken from a real file. */
static void build_begin(struct builder *b)
{
    size_t size;
    struct pred_trace_config config = support_config(support_path("head.trace"));
    write_trace(&config, NULL, 0);
    uint8_t *bytes = support_read(config.path, &size);
    b->size = PRED_FILE_HEADER_BYTES + PRED_CHUNK_HEADER_BYTES +
              base_le_load32(bytes + PRED_FILE_HEADER_BYTES + 4);
    memcpy(b->bytes, bytes, b->size);
    b->chunk = b->record = 1;
    free(bytes);
}

static void build_chunk_at(struct builder *b, const uint8_t *payload, size_t size, uint64_t chunk,
                           uint64_t record)
{
    uint8_t *at = b->bytes + b->size;
    base_le_store32(at, PRED_CHUNK_MAGIC);
    base_le_store32(at + 4, (uint32_t)size);
    base_le_store64(at + 8, chunk);
    base_le_store64(at + 16, record);
    memcpy(at + 32, payload, size);
    struct port_hash hash;
    port_hash_begin(&hash);
    port_hash_add(&hash, at, 24);
    port_hash_add(&hash, at + 32, size);
    base_le_store64(at + 24, port_hash_end(&hash));
    b->size += 32 + size;
}

/* One chunk with one record of this payload. */
static void build_record(struct builder *b, uint8_t kind, const uint8_t *payload, size_t size)
{
    uint8_t bytes[4096] = { kind, (uint8_t)size };
    ck_assert_uint_lt(size, 128);
    if (size > 0) memcpy(bytes + 2, payload, size);
    build_chunk_at(b, bytes, size + 2, b->chunk++, b->record++);
}

static int read_all(const char *path, struct base_err *err)
{
    static struct pred_trace_item item;
    struct pred_trace_reader *r;
    int rc = pred_trace_reader_open(&r, path, err);
    if (rc < 0) return rc;
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, err)) > 0) {}
    pred_trace_reader_close(r);
    return rc;
}

static void expect_broken(const uint8_t *bytes, size_t size, int code, const char *why)
{
    struct base_err err = { 0 };
    const char *path = support_path("broken.trace");
    support_write(path, bytes, size);
    int rc = read_all(path, &err);
    ck_assert_msg(rc == code, "%s: %d, expected %d: %s", why, rc, code, err.text);
    ck_assert_msg(strncmp(err.text, path, strlen(path)) == 0, "%s: %s", why, err.text);
    ck_assert_msg(strchr(err.text, '\n') == NULL && strlen(err.text) > strlen(path) + 15, "%s: %s",
                  why, err.text);
}

#define RECORD(...) { __VA_ARGS__ }, sizeof((uint8_t[]){ __VA_ARGS__ })

START_TEST(broken_records)
{
    static const struct {
        const char *why;
        uint8_t kind;
        uint8_t payload[16];
        size_t size;
    } cases[] = {
        { "unknown record", 99, RECORD(1, 2, 3) },
        { "second header", PRED_RECORD_HEADER, RECORD(0) },
        { "acquire of layer 5", PRED_RECORD_ACQUIRE, RECORD(0, 5, 1, 1, 0) },
        { "acquire in phase 2", PRED_RECORD_ACQUIRE, RECORD(2, 0, 1, 1, 0) },
        { "acquire of 38 of 37 experts", PRED_RECORD_ACQUIRE, RECORD(0, 0, 38, 1, 0) },
        { "more granted than asked", PRED_RECORD_ACQUIRE, RECORD(0, 0, 1, 2, 0) },
        { "acquire of expert 63", PRED_RECORD_ACQUIRE, RECORD(0, 0, 1, 1, 63) },
        { "acquire of one expert twice", PRED_RECORD_ACQUIRE, RECORD(0, 0, 2, 2, 0x41, 0x00) },
        { "acquire without its ids", PRED_RECORD_ACQUIRE, RECORD(0, 0, 9, 9) },
        { "acquire with bytes behind", PRED_RECORD_ACQUIRE, RECORD(0, 0, 1, 1, 3, 0) },
        { "bits set behind the last id", PRED_RECORD_ACQUIRE, RECORD(0, 0, 1, 1, 0xc3) },
        { "endless number", PRED_RECORD_RELEASE,
          RECORD(255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255) },
        { "short release without acquire", PRED_RECORD_RELEASE, RECORD(0, 3) },
        { "hint of probability NaN", PRED_RECORD_HINT, RECORD(0, 0, 0, 0, 0xc0, 0x7f, 0, 0) },
        { "hint of probability 2", PRED_RECORD_HINT, RECORD(0, 0, 0, 0, 0, 0x40, 0, 0) },
        { "hint half admitted", PRED_RECORD_HINT, RECORD(0, 0, 0, 0, 0, 0x3f, 0, 2) },
        { "setting with a NUL", PRED_RECORD_SETTING, RECORD('a', 0, 'b') },
        { "restore to tier 2", PRED_RECORD_RESTORE, RECORD(2, 0, 0) },
        { "forget expert 37", PRED_RECORD_FORGET, RECORD(0, 0, 37) },
        { "step without tokens", PRED_RECORD_STEP, RECORD(1, 0, 0, 0, 0, 0) },
        { "step with 40 causes", PRED_RECORD_STEP, RECORD(1, 1, 0, 0, 0, 40) },
        { "step with flag 8", PRED_RECORD_STEP, RECORD(1, 1, 8, 0, 0, 0) },
        { "huge step", PRED_RECORD_STEP, RECORD(1, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0) },
        { "tokens without a step", PRED_RECORD_TOKENS, RECORD(0, 1, 0, 0, 0) },
        { "routes without a step", PRED_RECORD_ROUTES, RECORD(0, 1, 0, 0, 0, 0, 0, 0) },
        { "counts of 3 tiers", PRED_RECORD_COUNTS, RECORD(3, 7) },
        { "counts with 6 fields", PRED_RECORD_COUNTS, RECORD(0, 6) },
        { "counts cut short", PRED_RECORD_COUNTS, RECORD(1, 7, 0, 0) },
        { "end before its time", PRED_RECORD_END, RECORD(99, 0) },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static struct builder b;
        build_begin(&b);
        build_record(&b, cases[i].kind, cases[i].payload, cases[i].size);
        expect_broken(b.bytes, b.size, BASE_EFORMAT, cases[i].why);
    }
}
END_TEST

/* A later part begins where the one before it happened to be full. */
START_TEST(a_later_part_begins_with_anything)
{
    static const struct {
        const char *why;
        uint8_t kind;
        uint8_t payload[16];
        size_t size;
        unsigned items;
    } cases[] = {
        { "acquire", PRED_RECORD_ACQUIRE, RECORD(0, 0, 1, 1, 3), 1 },
        { "release of an acquire", PRED_RECORD_RELEASE, RECORD(0, 3), 0 },
        { "release with ids", PRED_RECORD_RELEASE, RECORD(0, 2, 3), 0 },
        { "hint", PRED_RECORD_HINT, RECORD(0, 0, 0, 0, 0, 0x3f, 0, 1), 1 },
        { "setting", PRED_RECORD_SETTING, RECORD('a', '=', 'b'), 1 },
        { "restore", PRED_RECORD_RESTORE, RECORD(0, 0, 1, 3), 1 },
        { "forget", PRED_RECORD_FORGET, RECORD(0, 0, 3), 1 },
        { "tokens", PRED_RECORD_TOKENS, RECORD(0, 1, 0, 0, 0), 0 },
        { "routes", PRED_RECORD_ROUTES, RECORD(0, 1, 0, 0, 0, 0, 0, 0), 0 },
        { "counts", PRED_RECORD_COUNTS, RECORD(0, 7), 1 },
        { "gap", PRED_RECORD_GAP, RECORD(5), 1 },
    };
    static const uint8_t hint[] = { 0, 1, 0, 0, 0, 0x3f, 0, 1 };
    static struct pred_trace_item item;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static struct builder b;
        const char *path = support_path("part.trace.2");
        struct pred_trace_reader *r;
        struct base_err err = { 0 };
        build_begin(&b);
        base_le_store32(b.bytes + 12, 2);
        base_le_store64(b.bytes + 24, port_hash64(b.bytes, 24));
        b.record = 777;
        build_record(&b, cases[i].kind, cases[i].payload, cases[i].size);
        build_record(&b, PRED_RECORD_HINT, hint, sizeof hint);
        support_write(path, b.bytes, b.size);
        ck_assert_int_eq(pred_trace_reader_open(&r, path, &err), 0);
        for (int pass = 0; pass < 2; pass++) {
            unsigned items = 0;
            int rc;
            while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) == 1) items++;
            ck_assert_msg(rc == 0, "%s: %s", cases[i].why, err.text);
            ck_assert_msg(items == cases[i].items + 1, "%s: %u items", cases[i].why, items);
            ck_assert_uint_eq(item.event.ids[0], 1);
            ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
        }
        pred_trace_reader_close(r);
    }
}
END_TEST

/* Under a name of its own a later part is read again from there, and is spared. */
START_TEST(a_renamed_part_is_found_again)
{
    static const uint8_t hint[] = { 0, 1, 0, 0, 0, 0x3f, 0, 1 };
    static struct pred_trace_item item;
    static struct builder b;
    const char *path = support_path("renamed");
    struct pred_trace_reader *r;
    struct base_err err = { 0 }, spared = { 0 };
    build_begin(&b);
    base_le_store32(b.bytes + 12, 2);
    base_le_store64(b.bytes + 24, port_hash64(b.bytes, 24));
    build_record(&b, PRED_RECORD_HINT, hint, sizeof hint);
    support_write(path, b.bytes, b.size);
    ck_assert_int_eq(pred_trace_reader_open(&r, path, &err), 0);
    ck_assert_int_eq(pred_trace_reader_spares(r, path, &spared), -EINVAL);
    ck_assert_ptr_nonnull(strstr(spared.text, "which is read"));
    ck_assert_int_eq(pred_trace_reader_spares(r, support_path("other"), &err), 0);
    for (int pass = 0; pass < 2; pass++) {
        ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 1);
        ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 0);
        ck_assert_msg(pred_trace_reader_rewind(r, &err) == 0, "%s", err.text);
    }
    pred_trace_reader_close(r);
}
END_TEST

START_TEST(broken_steps)
{
    static struct builder b;
    const uint8_t step[] = { 1, 1, 0, 0, 0, 0 };
    const uint8_t tokens[] = { 0, 1, 0, 0, 0 };
    const uint8_t late[] = { 3, 1, 0, 0, 0 };
    build_begin(&b);
    build_record(&b, PRED_RECORD_STEP, step, sizeof step);
    build_record(&b, PRED_RECORD_STEP, step, sizeof step);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "a step inside a step");
    build_begin(&b);
    build_record(&b, PRED_RECORD_STEP, step, sizeof step);
    build_record(&b, PRED_RECORD_TOKENS, late, sizeof late);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "tokens that begin late");
    build_begin(&b);
    build_record(&b, PRED_RECORD_STEP, step, sizeof step);
    build_record(&b, PRED_RECORD_TOKENS, tokens, sizeof tokens);
    build_record(&b, PRED_RECORD_TOKENS, tokens, sizeof tokens);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "tokens twice");
}
END_TEST

/* Rows of 4 ids of 6 bits, from the low bit up. */
START_TEST(broken_rows)
{
    static const struct {
        const char *why;            /* NULL: nothing is wrong with it */
        bool sparse;
        uint8_t payload[16];
        size_t size;
    } cases[] = {
        { NULL, false, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0x0c) },
        { "one expert four times in a row", false, RECORD(0, 1, 0, 0, 0, 0, 0, 0) },
        { "one expert twice at the end of a row", false, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0x08) },
        { "expert 63", false, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0xfc) },
        { "no expert where that is not allowed", false, RECORD(0, 1, 0, 0, 0, 0x65, 0x59, 0x96) },
        { "a row cut short", false, RECORD(0, 1, 0, 0, 0, 0x40, 0x20) },
        { "a row with a byte behind", false, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0x0c, 0) },
        { "more rows than bytes", false, RECORD(0, 2, 0, 0, 0, 0x40, 0x20, 0x0c) },
        { NULL, true, RECORD(0, 1, 0, 0, 0, 0x65, 0x59, 0x96) },
        { "one expert twice in a sparse row", true, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0x08) },
        { "expert 63 in a sparse row", true, RECORD(0, 1, 0, 0, 0, 0x40, 0x20, 0xfc) },
        { "a row that goes on as none", true, RECORD(0, 1, 0, 0, 0, 0x40, 0x29, 0x0c) },
        { "a row that begins as none", true, RECORD(0, 1, 0, 0, 0, 0x25, 0, 0) },
    };
    const uint8_t tokens[] = { 0, 1, 0, 0, 0 };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static struct builder b;
        const uint8_t step[] = { 1, 1, cases[i].sparse ? PRED_STEP_SPARSE : 0, 0, 0, 0 };
        build_begin(&b);
        build_record(&b, PRED_RECORD_STEP, step, sizeof step);
        build_record(&b, PRED_RECORD_TOKENS, tokens, sizeof tokens);
        build_record(&b, PRED_RECORD_ROUTES, cases[i].payload, cases[i].size);
        if (cases[i].why) {
            expect_broken(b.bytes, b.size, BASE_EFORMAT, cases[i].why);
        } else {
            struct base_err err = { 0 };
            support_write(support_path("rows.trace"), b.bytes, b.size);
            int rc = read_all(support_path("rows.trace"), &err);
            ck_assert_msg(rc >= 0, "case %zu: %s", i, err.text);
        }
    }
}
END_TEST

START_TEST(broken_files)
{
    static struct builder b;
    const uint8_t hint[] = { PRED_RECORD_HINT, 8, 0, 0, 0, 0, 0, 0x3f, 0, 0 };
    const uint8_t beyond[] = { PRED_RECORD_HINT, 80, 0, 0 };
    expect_broken((const uint8_t *)"", 0, BASE_EFORMAT, "empty");
    expect_broken((const uint8_t *)"{\"format\": \"routing-jsonl\", \"version\": 1}", 41,
                  BASE_EFORMAT, "another format");
    build_begin(&b);
    b.bytes[8] = 9;
    expect_broken(b.bytes, b.size, BASE_EVERSION, "version 9");
    build_begin(&b);
    b.bytes[17] ^= 1;
    expect_broken(b.bytes, b.size, BASE_ECHECKSUM, "flip in the first 32 bytes");
    build_begin(&b);
    expect_broken(b.bytes, b.size - 5, BASE_ETORN, "cut inside the header");
    build_begin(&b);
    build_chunk_at(&b, hint, sizeof hint, 5, 1);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "chunk 5 after chunk 0");
    build_begin(&b);
    build_chunk_at(&b, hint, sizeof hint, 1, 77);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "records missing");
    build_begin(&b);
    build_chunk_at(&b, beyond, sizeof beyond, 1, 1);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "record beyond its chunk");
    build_begin(&b);
    size_t first = b.size;
    build_chunk_at(&b, hint, sizeof hint, 1, 1);
    build_chunk_at(&b, hint, sizeof hint, 2, 2);
    b.bytes[first + 40] ^= 4;
    expect_broken(b.bytes, b.size, BASE_ECHECKSUM, "flip in the middle");
    b.bytes[first] = 0;
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "chunk without its mark");
    build_begin(&b);
    build_chunk_at(&b, hint, sizeof hint, 1, 1);
    base_le_store32(b.bytes + first + 4, 0xfffffff0u);
    expect_broken(b.bytes, b.size, BASE_EFORMAT, "chunk of 4 GiB");
    build_begin(&b);
    build_record(&b, PRED_RECORD_NEXT, NULL, 0);
    struct base_err err = { 0 };
    support_write(support_path("parts.trace"), b.bytes, b.size);
    ck_assert_int_eq(read_all(support_path("parts.trace"), &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "parts.trace.1"));
    struct base_err dir_err = { 0 };
    ck_assert_int_eq(read_all(support_dir, &dir_err), -EINVAL);
}
END_TEST

START_TEST(every_flip_is_noticed)
{
    struct memory *run = make_run(11, 25, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    write_trace(&config, run, 25);
    size_t size;
    uint8_t *bytes = support_read(config.path, &size);
    struct base_rng rng;
    base_rng_init(&rng, 5);
    for (unsigned i = 0; i < (SANITIZED ? 120 : 600); i++) {
        size_t at = (size_t)base_rng_below(&rng, size);
        uint8_t flip = (uint8_t)(1u << base_rng_below(&rng, 8));
        struct base_err err = { 0 };
        static struct pred_trace_item item;
        struct pred_trace_reader *r;
        bytes[at] ^= flip;
        support_write(config.path, bytes, size);
        bytes[at] ^= flip;
        int rc = pred_trace_reader_open(&r, config.path, &err);
        if (rc == 0) {
            struct pred_trace_health health;
            while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) > 0) {}
            pred_trace_reader_health(r, &health);
            pred_trace_reader_close(r);
            ck_assert_msg(rc < 0 || health.torn_bytes > 0, "flip at %zu went unnoticed", at);
        }
        if (rc < 0) ck_assert(err.text[0] != '\0');
    }
    free(bytes);
    free(run);
}
END_TEST

/* --------------------------------------------------------------- loss, rotation, leaving out -- */

/* A step that can never fit the ring leaves a gap at its place, and the rest is whole. */
START_TEST(a_full_buffer_leaves_a_gap)
{
    static struct pred_trace_item item;
    struct memory *run = make_run(21, 12, true);
    struct base_rng rng;
    base_rng_init(&rng, 1);
    for (unsigned i = 0; i < 12; i++) {
        do make_step(&run[i], &rng, i, true);
        while (i != 5 && run[i].step.token_count > 1);
    }
    while (run[5].step.token_count < TOKENS_MAX - 5) make_step(&run[5], &rng, 5, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    config.buffer = 1024;
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    for (unsigned i = 0; i < 12; i++) {
        pred_trace_writer_step(w, &run[i].step);
        pred_trace_writer_flush(w);
    }
    struct pred_trace_metrics metrics;
    pred_trace_writer_snapshot(w, &metrics);
    ck_assert_uint_eq(metrics.lost_records, 1);
    ck_assert_int_eq(pred_trace_writer_close(w, &err), -ENOBUFS);
    ck_assert_ptr_nonnull(strstr(err.text, "1 trace records were lost"));
    struct pred_trace_reader *r;
    struct base_err read_err = { 0 };
    ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &read_err), 0);
    for (unsigned i = 0; i < 12; i++) {
        int rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &read_err);
        ck_assert_msg(rc == 1, "item %u: %s", i, read_err.text);
        if (i == 5) {
            ck_assert_int_eq(item.kind, PRED_ITEM_GAP);
            ck_assert_uint_eq(item.lost, 1);
        } else {
            same_item(&run[i], &item, 2.5f / 65535);
        }
    }
    ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &read_err), 0);
    struct pred_trace_health health;
    pred_trace_reader_health(r, &health);
    ck_assert(health.ended);
    ck_assert_uint_eq(health.lost_records, 1);
    pred_trace_reader_close(r);
    free(run);
}
END_TEST

/* A disk that is full for a while: what it could not take is counted, the file stays readable. */
START_TEST(a_full_disk_loses_records_and_says_so)
{
    struct memory *run = make_run(22, 200, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    struct rlimit before, small = { 6000, 6000 };
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    for (unsigned i = 0; i < 200; i += 10) {
        if (i == 50) setrlimit(RLIMIT_FSIZE, &small);
        if (i == 150) setrlimit(RLIMIT_FSIZE, &before);
        write_run(w, run + i, 10);
        pred_trace_writer_flush(w);
    }
    struct pred_trace_metrics metrics;
    pred_trace_writer_snapshot(w, &metrics);
    ck_assert_uint_gt(metrics.lost_records, 100);
    ck_assert_int_lt(pred_trace_writer_close(w, &err), 0);
    ck_assert_ptr_nonnull(strstr(err.text, "t.trace: cannot write"));

    static struct pred_trace_item item;
    struct pred_trace_reader *r;
    struct base_err read_err = { 0 };
    unsigned gaps = 0, items = 0;
    int rc;
    ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &read_err), 0);
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &read_err)) == 1) {
        if (item.kind == PRED_ITEM_GAP) {
            gaps++;
            ck_assert_uint_eq(item.lost, metrics.lost_records);
        } else {
            items++;
        }
    }
    ck_assert_msg(rc == 0, "%s", read_err.text);
    ck_assert_uint_eq(gaps, 1);
    ck_assert_uint_ge(items, 95);
    struct pred_trace_health health;
    pred_trace_reader_health(r, &health);
    ck_assert(health.ended);
    ck_assert_uint_eq(health.lost_records, metrics.lost_records);
    pred_trace_reader_close(r);
    free(run);
}
END_TEST

START_TEST(a_rotated_trace_reads_as_one)
{
    enum { ITEMS = 400 };
    struct pred_trace_health health;
    struct memory *run = make_run(31, ITEMS, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    config.rotate_bytes = 20000;
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    for (unsigned i = 0; i < ITEMS; i += 10) {
        write_run(w, run + i, 10);
        pred_trace_writer_flush(w);
    }
    struct pred_trace_metrics metrics;
    pred_trace_writer_snapshot(w, &metrics);
    ck_assert_uint_ge(metrics.files, 3);
    ck_assert_int_eq(pred_trace_writer_close(w, &err), 0);
    expect_run(config.path, run, ITEMS, 2.5f / 65535, &health);
    ck_assert_uint_eq(health.parts, metrics.files);
    ck_assert(health.ended);
    /* A later part can be read for itself, and knows that it is one. */
    struct pred_trace_reader *r;
    ck_assert_msg(pred_trace_reader_open(&r, support_path("t.trace.2"), &err) == 0, "%s", err.text);
    ck_assert_uint_eq(pred_trace_reader_header(r)->part, 2);
    static struct pred_trace_item item;
    int rc;
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) == 1) {}
    ck_assert_msg(rc == 0, "%s", err.text);
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 1);
    pred_trace_reader_close(r);
    /* What is read on is spared, but not a file that only has such a name. */
    struct pred_trace_config plain = support_config(support_path("v.trace"));
    struct base_err spared = { 0 };
    ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &err), 0);
    ck_assert_int_eq(pred_trace_reader_spares(r, support_path("t.trace.2"), &spared), -EINVAL);
    ck_assert_ptr_nonnull(strstr(spared.text, "t.trace.2, which is read"));
    pred_trace_reader_close(r);
    write_trace(&plain, run, 10);
    support_write(support_path("v.trace.1"), (const uint8_t *)"another", 7);
    ck_assert_int_eq(pred_trace_reader_open(&r, plain.path, &err), 0);
    ck_assert_int_eq(pred_trace_reader_spares(r, support_path("v.trace.1"), &err), 0);
    pred_trace_reader_close(r);
    /* A part of another trace is not taken for the next one. */
    struct pred_trace_config other = support_config(support_path("u.trace"));
    write_trace(&other, run, 10);
    ck_assert_int_eq(rename(other.path, support_path("t.trace.1")), 0);
    struct base_err mixed = { 0 };
    ck_assert_int_eq(read_all(config.path, &mixed), BASE_EMISMATCH);
    free(run);
}
END_TEST

struct part {
    uint8_t *bytes;
    size_t size;
};

/* All items of a pass from where the reader stands. */
static unsigned pass_over(struct pred_trace_reader *r, struct pred_trace_health *health)
{
    static struct pred_trace_item item;
    struct base_err err = { 0 };
    unsigned items = 0;
    int rc;
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) == 1) items++;
    ck_assert_msg(rc == 0, "%s", err.text);
    pred_trace_reader_health(r, health);
    return items;
}

/* A server goes on writing, in the open part and in new ones: later passes end where the first
 * did. */
START_TEST(a_growing_trace_is_read_to_one_end)
{
    enum { ITEMS = 300, PARTS = 3, CUTS = 8, NEXT_CHUNK = PRED_CHUNK_HEADER_BYTES + 2 };
    static const char *const written[] = { "t.trace", "t.trace.1", "t.trace.2" };
    static const char *const growing[] = { "g.trace", "g.trace.1", "g.trace.2" };
    struct memory *run = make_run(32, ITEMS, true);
    struct pred_trace_config config = support_config(support_path(written[0]));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    struct part parts[PARTS];
    unsigned torn = 0, later = 0;
    config.rotate_bytes = 10000;
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    for (unsigned i = 0; i < ITEMS; i += 10) {
        write_run(w, run + i, 10);
        pred_trace_writer_flush(w);
    }
    ck_assert_int_eq(pred_trace_writer_close(w, &err), 0);
    for (int p = 0; p < PARTS; p++) {
        parts[p].bytes = support_read(support_path(written[p]), &parts[p].size);
    }
    /* The rest of the trace is another matter: cut off, the last part is a torn one. */
    for (int i = 0; i < (PARTS - 1) * CUTS; i++) {
        struct pred_trace_health first, second;
        struct pred_trace_reader *r;
        int open = i / CUTS;
        size_t head = PRED_FILE_HEADER_BYTES + PRED_CHUNK_HEADER_BYTES +
                      base_le_load32(parts[open].bytes + PRED_FILE_HEADER_BYTES + 4);
        size_t size = head + (parts[open].size - NEXT_CHUNK - head) * (size_t)(i % CUTS) / CUTS;
        for (int p = 0; p < PARTS; p++) unlink(support_path(growing[p]));
        for (int p = 0; p <= open; p++) {
            support_write(support_path(growing[p]), parts[p].bytes,
                          p < open ? parts[p].size : size);
        }
        ck_assert_int_eq(pred_trace_reader_open(&r, support_path(growing[0]), &err), 0);
        unsigned items = pass_over(r, &first);
        ck_assert_uint_eq(first.parts, (uint32_t)open + 1);
        for (int p = open; p < PARTS; p++) {
            support_write(support_path(growing[p]), parts[p].bytes,
                          p < PARTS - 1 ? parts[p].size : parts[p].size / 2);
        }
        for (int pass = 0; pass < 2; pass++) {
            ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
            ck_assert_uint_eq(pass_over(r, &second), items);
            ck_assert_mem_eq(&first, &second, sizeof first);
        }
        pred_trace_reader_close(r);
        torn += first.torn_bytes > 0;
        later += open > 0 && items > 0;
    }
    ck_assert_uint_gt(torn, CUTS);
    ck_assert_uint_gt(later, 0);
    for (int p = 0; p < PARTS; p++) free(parts[p].bytes);
    free(run);
}
END_TEST

/* Half a chunk that the server took back, and wrote a shorter one over, stays a torn tail. */
START_TEST(what_was_torn_stays_torn)
{
    static const uint8_t hint[] = { 0, 1, 0, 0, 0, 0x3f, 0, 1 };
    static struct builder b;
    struct pred_trace_health first, second;
    struct pred_trace_reader *r;
    struct base_err err = { 0 };
    uint8_t note[100];
    memset(note, 'x', sizeof note);
    build_begin(&b);
    build_record(&b, PRED_RECORD_HINT, hint, sizeof hint);
    struct builder *longer = malloc(sizeof *longer);
    *longer = b;
    build_record(longer, PRED_RECORD_SETTING, note, sizeof note);
    build_record(&b, PRED_RECORD_HINT, hint, sizeof hint);
    ck_assert_uint_gt(longer->size - 20, b.size);
    support_write(support_path("g.trace"), longer->bytes, longer->size - 20);
    ck_assert_int_eq(pred_trace_reader_open(&r, support_path("g.trace"), &err), 0);
    ck_assert_uint_eq(pass_over(r, &first), 1);
    ck_assert_uint_gt(first.torn_bytes, 0);
    memset(b.bytes + b.size, 0, longer->size - b.size);
    support_write(support_path("g.trace"), b.bytes, longer->size);
    ck_assert_int_eq(pred_trace_reader_rewind(r, &err), 0);
    ck_assert_uint_eq(pass_over(r, &second), 1);
    ck_assert_mem_eq(&first, &second, sizeof first);
    pred_trace_reader_close(r);
    free(longer);
}
END_TEST

START_TEST(size_max_stops_the_trace)
{
    struct memory *run = make_run(32, 300, true);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    config.size_max = 20000;
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    for (unsigned i = 0; i < 300; i += 10) {
        write_run(w, run + i, 10);
        pred_trace_writer_flush(w);
    }
    ck_assert_int_eq(pred_trace_writer_close(w, &err), -EFBIG);
    ck_assert_ptr_nonnull(strstr(err.text, "trace.size_max"));
    size_t size;
    free(support_read(config.path, &size));
    ck_assert_uint_le(size, 20000 + 128);
    struct base_err read_err = { 0 };
    ck_assert_int_eq(read_all(config.path, &read_err), 0);
    free(run);
}
END_TEST

START_TEST(sampling_keeps_whole_sequences)
{
    static struct pred_trace_item item;
    enum { SEQS = 400 };
    struct memory *run = make_run(41, 1, true);
    struct base_rng rng;
    base_rng_init(&rng, 9);
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    config.sample = 0.25;
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, true, &err), 0);
    pred_trace_writer_patient(w);
    struct tier_event event = { .kind = TIER_EVENT_SETTING, .text = "a=b" };
    for (unsigned i = 0; i < 2 * SEQS; i++) {
        make_step(run, &rng, i, true);
        for (uint32_t t = 0; t < run->step.token_count; t++) run->seqs[t] = (i + t) % SEQS;
        pred_trace_writer_event(w, &event);
        pred_trace_writer_step(w, &run->step);
    }
    ck_assert_int_eq(pred_trace_writer_close(w, &err), 0);
    unsigned kept = 0;
    uint32_t tokens[SEQS] = { 0 }, all[SEQS] = { 0 };
    struct pred_trace_reader *r;
    ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &err), 0);
    ck_assert(pred_trace_reader_header(r)->sample == 0.25);
    base_rng_init(&rng, 9);
    int rc;
    while ((rc = pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err)) == 1) {
        ck_assert_int_eq(item.kind, PRED_ITEM_STEP);
        for (uint32_t t = 0; t < item.step.token_count; t++) tokens[item.step.seqs[t]]++;
    }
    ck_assert_msg(rc == 0, "%s", err.text);
    for (unsigned i = 0; i < 2 * SEQS; i++) {
        make_step(run, &rng, i, true);
        for (uint32_t t = 0; t < run->step.token_count; t++) all[(i + t) % SEQS]++;
    }
    for (unsigned s = 0; s < SEQS; s++) {
        ck_assert(tokens[s] == 0 || tokens[s] == all[s]);
        kept += tokens[s] > 0;
    }
    ck_assert_uint_gt(kept, SEQS / 4 - 40);
    ck_assert_uint_lt(kept, SEQS / 4 + 40);
    pred_trace_reader_close(r);
    free(run);
}
END_TEST

START_TEST(tokens_can_be_hidden)
{
    static struct pred_trace_item item;
    struct memory *run = make_run(51, 1, true);
    struct base_rng rng;
    uint32_t hashed[2][TOKENS_MAX];
    base_rng_init(&rng, 2);
    do make_step(run, &rng, 0, true);
    while (run->step.token_count < 20);
    for (int mode = PRED_TOKENS_HASH; mode <= PRED_TOKENS_NONE; mode++) {
        for (int again = 0; again < 2; again++) {
            struct pred_trace_config config = support_config(support_path("t.trace"));
            struct pred_trace_reader *r;
            struct base_err err = { 0 };
            config.tokens = mode;
            config.token_key = 12345;
            write_trace(&config, run, 1);
            ck_assert_int_eq(pred_trace_reader_open(&r, config.path, &err), 0);
            ck_assert_int_eq(pred_trace_reader_next(r, PRED_WANT_ALL, &item, &err), 1);
            for (uint32_t i = 0; i < item.step.token_count; i++) {
                bool unknown = item.step.tokens[i] == PRED_NO_TOKEN;
                ck_assert(unknown == (mode == PRED_TOKENS_NONE || run->tokens[i] == PRED_NO_TOKEN));
                ck_assert(unknown || item.step.tokens[i] != run->tokens[i]);
            }
            memcpy(hashed[again], item.step.tokens, item.step.token_count * sizeof hashed[0][0]);
            pred_trace_reader_close(r);
        }
        ck_assert_mem_eq(hashed[0], hashed[1], run->step.token_count * sizeof hashed[0][0]);
    }
    free(run);
}
END_TEST

START_TEST(an_existing_file_is_kept)
{
    struct pred_trace_config config = support_config(support_path("t.trace"));
    struct pred_trace_header header = plain_header();
    struct pred_trace_writer *w;
    struct base_err err = { 0 };
    support_write(config.path, (const uint8_t *)"precious", 8);
    ck_assert_int_eq(pred_trace_writer_open(&w, &config, &header, false, &err), -EEXIST);
    ck_assert_ptr_nonnull(strstr(err.text, "exists already"));
    ck_assert_ptr_null(w);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("predictor/trace");
    TCase *tcase = tcase_create("trace");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, support_begin, support_end);
    tcase_add_loop_test(tcase, round_trip, 0, 20);
    tcase_add_test(tcase, header_comes_back);
    tcase_add_test(tcase, torn_at_every_byte);
    tcase_add_test(tcase, zeros_at_the_end_are_a_torn_tail);
    tcase_add_test(tcase, broken_records);
    tcase_add_test(tcase, a_later_part_begins_with_anything);
    tcase_add_test(tcase, a_renamed_part_is_found_again);
    tcase_add_test(tcase, broken_steps);
    tcase_add_test(tcase, broken_rows);
    tcase_add_test(tcase, broken_files);
    tcase_add_test(tcase, every_flip_is_noticed);
    tcase_add_test(tcase, a_full_buffer_leaves_a_gap);
    tcase_add_test(tcase, a_full_disk_loses_records_and_says_so);
    tcase_add_test(tcase, a_rotated_trace_reads_as_one);
    tcase_add_test(tcase, a_growing_trace_is_read_to_one_end);
    tcase_add_test(tcase, what_was_torn_stays_torn);
    tcase_add_test(tcase, size_max_stops_the_trace);
    tcase_add_test(tcase, sampling_keeps_whole_sequences);
    tcase_add_test(tcase, tokens_can_be_hidden);
    tcase_add_test(tcase, an_existing_file_is_kept);
    suite_add_tcase(suite, tcase);
    return support_run(suite);
}
