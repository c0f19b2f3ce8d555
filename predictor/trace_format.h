/* The bytes of a trace file (docs/formats.md), shared by writer and reader: sizes, record kinds,
 * and bounded cursors that encode and decode them. Nothing here allocates. */
#ifndef PREDICTOR_TRACE_FORMAT_H
#define PREDICTOR_TRACE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/le.h"
#include "predictor/trace.h"

#define PRED_TRACE_MAGIC "EXPTRACE"
#define PRED_CHUNK_MAGIC 0x4b484354u        /* "TCHK" */

enum {
    PRED_TRACE_VERSION = 1,
    PRED_FILE_HEADER_BYTES = 32,
    PRED_CHUNK_HEADER_BYTES = 32,
    PRED_CHUNK_PAYLOAD_MAX = 2 << 20,
    PRED_CHUNK_PAYLOAD_GOAL = 256 << 10,    /* a chunk is closed when it has this much */
    PRED_RECORD_MAX = 256 << 10,            /* except the header's, which has a chunk of its own */
    PRED_RECORD_IDS_MAX = 8192,             /* routing ids in one record */
    PRED_RECORD_TOKENS_MAX = 1024,
    PRED_STEP_IDS_MAX = 1 << 26,            /* layers x tokens x top_k of one step */
    PRED_COUNT_FIELDS = 8,         /* 7 in older traces: without the last */
};

enum pred_record {
    PRED_RECORD_HEADER = 1,
    PRED_RECORD_ACQUIRE,
    PRED_RECORD_RELEASE,
    PRED_RECORD_HINT,
    PRED_RECORD_SETTING,
    PRED_RECORD_RESTORE,
    PRED_RECORD_FORGET,
    PRED_RECORD_STEP,
    PRED_RECORD_TOKENS,
    PRED_RECORD_ROUTES,
    PRED_RECORD_COUNTS,
    PRED_RECORD_GAP,
    PRED_RECORD_NEXT,                       /* the trace goes on in the next part */
    PRED_RECORD_END,
};

enum { PRED_STEP_HAS_TOKENS = 1, PRED_STEP_HAS_WEIGHTS = 2, PRED_STEP_SPARSE = 4 };

struct pred_out {
    uint8_t *at, *end;
    bool full;
};

static inline void pred_put(struct pred_out *out, const void *bytes, size_t size)
{
    if (out->full || (size_t)(out->end - out->at) < size) {
        out->full = true;
        return;
    }
    if (size > 0) memcpy(out->at, bytes, size);
    out->at += size;
}

static inline void pred_put_u8(struct pred_out *out, uint8_t value)
{
    pred_put(out, &value, 1);
}

static inline void pred_put_varint(struct pred_out *out, uint64_t value)
{
    uint8_t bytes[10];
    size_t size = 0;
    while (value >= 0x80) {
        bytes[size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    bytes[size++] = (uint8_t)value;
    pred_put(out, bytes, size);
}

static inline void pred_put_zigzag(struct pred_out *out, int64_t value)
{
    pred_put_varint(out, (uint64_t)value << 1 ^ (uint64_t)(value >> 63));
}

static inline void pred_put_f32(struct pred_out *out, float value)
{
    pred_put(out, &value, sizeof value);
}

static inline void pred_put_f64(struct pred_out *out, double value)
{
    pred_put(out, &value, sizeof value);
}

static inline void pred_put_text(struct pred_out *out, const char *text)
{
    size_t size = text ? strlen(text) : 0;
    pred_put_varint(out, size);
    pred_put(out, text, size);
}

/* Ids in as few bits as the number of experts needs, from the low bit of each byte up. */
struct pred_bits {
    uint64_t held;
    unsigned count;
};

static inline unsigned pred_id_bits(uint32_t experts)
{
    return experts <= 2 ? 1 : 32 - (unsigned)__builtin_clz(experts - 1);
}

static inline void pred_put_bits(struct pred_out *out, struct pred_bits *bits, uint32_t value,
                                 unsigned width)
{
    bits->held |= (uint64_t)value << bits->count;
    bits->count += width;
    while (bits->count >= 8) {
        pred_put_u8(out, (uint8_t)bits->held);
        bits->held >>= 8;
        bits->count -= 8;
    }
}

static inline void pred_put_bits_end(struct pred_out *out, struct pred_bits *bits)
{
    if (bits->count > 0) pred_put_u8(out, (uint8_t)bits->held);
    *bits = (struct pred_bits){ 0 };
}

/* Reading: after the first overrun or overlong number `bad` stays set and zeros are returned. */
struct pred_in {
    const uint8_t *at, *end;
    bool bad;
};

static inline const uint8_t *pred_get(struct pred_in *in, size_t size)
{
    if (in->bad || (size_t)(in->end - in->at) < size) {
        in->bad = true;
        return NULL;
    }
    const uint8_t *bytes = in->at;
    in->at += size;
    return bytes;
}

static inline uint8_t pred_get_u8(struct pred_in *in)
{
    const uint8_t *bytes = pred_get(in, 1);
    return bytes ? *bytes : 0;
}

static inline uint64_t pred_get_varint(struct pred_in *in)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte = pred_get_u8(in);
        if (shift == 63 && byte > 1) break;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return in->bad ? 0 : value;
    }
    in->bad = true;
    return 0;
}

/* A number that must not pass `max`. */
static inline uint64_t pred_get_upto(struct pred_in *in, uint64_t max)
{
    uint64_t value = pred_get_varint(in);
    if (value <= max) return value;
    in->bad = true;
    return 0;
}

static inline int64_t pred_get_zigzag(struct pred_in *in)
{
    uint64_t value = pred_get_varint(in);
    return (int64_t)(value >> 1 ^ (~(value & 1) + 1));
}

static inline float pred_get_f32(struct pred_in *in)
{
    float value = 0;
    const uint8_t *bytes = pred_get(in, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

static inline double pred_get_f64(struct pred_in *in)
{
    double value = 0;
    const uint8_t *bytes = pred_get(in, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint32_t pred_get_bits(struct pred_in *in, struct pred_bits *bits, unsigned width)
{
    while (bits->count < width) {
        bits->held |= (uint64_t)pred_get_u8(in) << bits->count;
        bits->count += 8;
    }
    uint32_t value = (uint32_t)(bits->held & ((UINT64_C(1) << width) - 1));
    bits->held >>= width;
    bits->count -= width;
    return value;
}

/* The header record's payload. encode: bytes written, or -ENOSPC. decode: a malloc'ed header with
 * everything it points to (free with pred_header_free), or BASE_EFORMAT with what is wrong. */
int pred_header_encode(uint8_t *to, size_t size, const struct pred_trace_header *header);
int pred_header_decode(struct pred_trace_header **out, const uint8_t *bytes, size_t size,
                       struct base_err *err);
void pred_header_free(struct pred_trace_header *header);

/* What both sides demand of a header. */
int pred_header_check(const struct pred_trace_header *header, struct base_err *err);

#endif
