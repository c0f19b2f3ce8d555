/* Where a step's time goes: the compute of every operation, by name, beside the waits that the
 * tiers measure by cause. Together they are the step (`./run check waits`).
 *
 * Operations never nest and never hold a wait. Off (core.profile is NULL) an operation costs one
 * test; on, two looks at the clock, and an event where there is a timeline. Engine thread only.
 */
#ifndef ENGINE_PROFILE_H
#define ENGINE_PROFILE_H

#include <stdint.h>

#include "base/clock.h"
#include "base/timeline.h"

#define ENG_OPS(O)                                                                                \
    O(EMBED, "embed")                                                                             \
    O(NORM, "norm")                                                                               \
    O(PROJECT, "q and kv")                                                                        \
    O(ROPE, "rope and cache")                                                                     \
    O(ABSORB, "absorb")                                                                           \
    O(ATTEND, "attend")                                                                           \
    O(VALUES, "values")                                                                           \
    O(OUTPUT, "output")                                                                           \
    O(ADD, "add")                                                                                 \
    O(DENSE, "dense ffn")                                                                         \
    O(GATE, "gate")                                                                               \
    O(ACQUIRE, "acquire")                                                                         \
    O(HINTS, "hints")                                                                             \
    O(SHARED, "shared expert")                                                                    \
    O(QUANTIZE, "inputs to integers")                                                             \
    O(EXPERTS_IN, "experts gate and up")                                                          \
    O(EXPERTS_OUT, "experts down")                                                                \
    O(SUM, "sum of experts")                                                                      \
    O(RELEASE, "release")                                                                         \
    O(POLL, "poll")                                                                               \
    O(EXCHANGE, "exchange")                                                                       \
    O(HEAD, "head")                                                                               \
    O(SAMPLE, "sample")                                                                           \
    O(ANSWER, "answers")                                                                          \
    O(DEVICE, "device")

#define ENG_OP_ENUM(op, name) ENG_OP_##op,
enum eng_op { ENG_OPS(ENG_OP_ENUM) ENG_OP_COUNT };

struct eng_profile {
    struct base_timeline *timeline;     /* NULL = sums alone */
    uint64_t op_ns[ENG_OP_COUNT];       /* of the running step */
    uint32_t layer;                     /* of the model; BASE_TIMELINE_NONE outside of layers */
};

const char *eng_op_name(enum eng_op op);

/* Adds an operation that ends now, which is returned. */
uint64_t eng_profile_op(struct eng_profile *profile, enum eng_op op, uint64_t begin_ns);
/* A step that ends at `end_ns`, of `rows` tokens. Its op_ns stay until eng_profile_begin. */
void eng_profile_step(struct eng_profile *profile, uint64_t begin_ns, uint64_t end_ns,
                      uint32_t rows);
void eng_profile_begin(struct eng_profile *profile);
/* A layer that began then ends now. */
void eng_profile_layer(struct eng_profile *profile, uint64_t begin_ns);

static inline uint64_t eng_op_begin(const struct eng_profile *profile)
{
    return profile ? base_now_ns() : 0;
}

static inline void eng_op_end(struct eng_profile *profile, enum eng_op op, uint64_t begin_ns)
{
    if (profile) eng_profile_op(profile, op, begin_ns);
}

/* The operation ends, and the next one begins. */
static inline uint64_t eng_op_next(struct eng_profile *profile, enum eng_op op, uint64_t begin_ns)
{
    return profile ? eng_profile_op(profile, op, begin_ns) : 0;
}

#endif
