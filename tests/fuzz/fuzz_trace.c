/* Any bytes as a trace: read to the end or refused with a sentence; what comes out keeps its
 * bounds.
 *
 * The first byte chooses: 0 the bytes are the file; else they are the records of a good file, put
 * into one chunk whose checksum is right, since a fuzzer cannot guess a checksum. */
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "port/hash.h"
#include "predictor/feed.h"
#include "predictor/trace_format.h"
#include "tests/fuzz/fuzz.h"

enum { LAYERS = 3, EXPERTS = 11, TOP_K = 2 };

const char *const fuzz_words[] = {
    PRED_TRACE_MAGIC, "TCHK", "\x02\x04", "\x03\x02", "\x0c\x01", NULL,
};

/* Records of a good trace: acquire, short release, hint, setting, restore, forget, a step of one
 * token with its routing, a sparse one of two, a gap, the end. Ids have 4 bits. */
static const uint8_t good_records[] = {
    1,
    2, 5, 1, 0, 2, 2, 0x53,
    3, 2, 0, 5,
    4, 8, 1, 7, 0, 0, 0, 0x3f, 1, 1,
    5, 3, 'a', '=', 'b',
    6, 6, 0, 2, 2, 0x98, 4, 9,
    7, 3, 0, 1, 4,
    8, 7, 9, 1, 1, 0, 0, 1, 3,
    9, 5, 0, 1, 4, 6, 21,
    10, 8, 0, 3, 0, 0, 0, 0x10, 0x32, 0x54,
    8, 7, 10, 2, 4, 0, 0, 1, 3,
    9, 8, 0, 2, 4, 6, 20, 2, 0, 22,
    10, 11, 0, 6, 0, 0, 0, 0x10, 0x32, 0x54, 0x76, 0xbb, 0x98,
    12, 1, 3,
    14, 2, 13, 3,
};

size_t fuzz_seed(unsigned index, uint8_t *to, size_t room)
{
    MUST(room >= sizeof good_records);
    if (index == 0) {
        memcpy(to, good_records, sizeof good_records);
        return sizeof good_records;
    }
    if (index > 1) return 0;
    memcpy(to, "\0" PRED_TRACE_MAGIC, 9);
    return 9;
}

static size_t chunk_add(uint8_t *at, const uint8_t *payload, size_t size, uint64_t number)
{
    struct port_hash hash;
    base_le_store32(at, PRED_CHUNK_MAGIC);
    base_le_store32(at + 4, (uint32_t)size);
    base_le_store64(at + 8, number);
    base_le_store64(at + 16, number > 0 ? 1 : 0);
    memcpy(at + PRED_CHUNK_HEADER_BYTES, payload, size);
    port_hash_begin(&hash);
    port_hash_add(&hash, at, 24);
    port_hash_add(&hash, payload, size);
    base_le_store64(at + 24, port_hash_end(&hash));
    return PRED_CHUNK_HEADER_BYTES + size;
}

static size_t file_make(uint8_t *to, const uint8_t *records, size_t size)
{
    struct pred_trace_header header = {
        .model = "fuzz", .source = "server", .layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
        .weights = PRED_WEIGHTS_U16, .sample = 1,
        .decide = { .tier_count = 1, .tiers = { { .slots = 12, .policy = "lru" } },
                    .half_life_tokens = 16, .prefill_share = 0.5 },
    };
    uint8_t payload[512];
    memset(to, 0, PRED_FILE_HEADER_BYTES);
    memcpy(to, PRED_TRACE_MAGIC, 8);
    base_le_store32(to + 8, PRED_TRACE_VERSION);
    base_le_store64(to + 24, port_hash64(to, 24));
    int n = pred_header_encode(payload + 2, sizeof payload - 2, &header);
    MUST(n > 0 && n < 128);
    payload[0] = PRED_RECORD_HEADER;
    payload[1] = (uint8_t)n;
    size_t used = PRED_FILE_HEADER_BYTES;
    used += chunk_add(to + used, payload, (size_t)n + 2, 0);
    if (size > 0) used += chunk_add(to + used, records, size, 1);
    return used;
}

static void step_check(const struct pred_step *step, const struct pred_trace_header *header)
{
    for (size_t i = 0; i < (size_t)header->layers * step->token_count * header->top_k; i++) {
        MUST(step->expert_ids[i] < header->experts || step->expert_ids[i] == PRED_NO_EXPERT);
        if (step->expert_weights) MUST(step->expert_weights[i] == step->expert_weights[i]);
    }
    for (uint32_t i = 0; i < step->token_count; i++) MUST(step->phases[i] < TIER_PHASE_COUNT);
}

static void item_check(const struct pred_trace_item *item, const struct pred_trace_header *header)
{
    if (item->kind == PRED_ITEM_STEP) step_check(&item->step, header);
    if (item->kind != PRED_ITEM_EVENT) return;
    MUST(item->event.layer < header->layers && item->event.count <= header->experts);
    MUST(item->event.granted <= item->event.count);
    for (uint32_t i = 0; i < item->event.count; i++) MUST(item->event.ids[i] < header->experts);
}

static void read_path(const char *path)
{
    struct pred_trace_reader *reader;
    struct pred_trace_item item;
    struct pred_acquire acquire;
    struct pred_feed *feed;
    struct base_err err = { 0 };
    int rc = pred_trace_reader_open(&reader, path, &err);
    if (rc < 0) {
        fuzz_check_refusal(rc, &err);
        return;
    }
    const struct pred_trace_header *header = pred_trace_reader_header(reader);
    while ((rc = pred_trace_reader_next(reader, PRED_WANT_ALL, &item, &err)) > 0) {
        item_check(&item, header);
    }
    if (rc < 0) fuzz_check_refusal(rc, &err);
    /* The same once more, as acquires. */
    struct base_err again = { 0 };
    if (pred_trace_reader_rewind(reader, &again) == 0 && header->experts < 4096 &&
        pred_feed_create(&feed, reader, &again) == 0) {
        while (pred_feed_next(feed, &acquire, &again) > 0) {
            MUST(acquire.layer < header->layers && acquire.count <= header->experts);
        }
        pred_feed_destroy(feed);
    }
    pred_trace_reader_close(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > FUZZ_BYTES_MAX) return 0;
    if (data[0] == 0) {
        read_path(fuzz_file(data + 1, size - 1));
        return 0;
    }
    uint8_t *bytes = malloc(size + 4096);
    MUST(bytes);
    size_t used = file_make(bytes, data + 1, size - 1);
    read_path(fuzz_file(bytes, used));
    free(bytes);
    return 0;
}
