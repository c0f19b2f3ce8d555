/* What every part of a forward pass works with. Filled once by engine.c. */
#ifndef ENGINE_CORE_H
#define ENGINE_CORE_H

#include "engine/advice.h"
#include "engine/engine.h"
#include "engine/kv.h"
#include "engine/lead.h"
#include "engine/plan.h"
#include "engine/profile.h"
#include "engine/ranks.h"
#include "engine/scheduler.h"
#include "engine/weights.h"
#include "engine/work.h"
#include "model/shape.h"
#include "tiering/tiering.h"

struct eng_cuda;

enum { ENG_LOST_TEXT = 400 };

struct eng_core {
    const struct model_shape *shape;
    struct eng_work work;
    struct eng_ranks ranks;
    struct eng_lead lead;
    uint32_t heads;             /* of this rank */
    struct eng_weights weights;
    struct eng_kv kv;
    struct eng_plan plan;
    struct tier *tier;
    /* NULL: the CPU computes. Else weights and KV blocks are on the card, and of the plan there is
     * what the host works with. */
    struct dev *device;
    struct eng_cuda *cuda;
    char lost[ENG_LOST_TEXT];   /* not empty: another rank's card is gone, with it every step */
    struct eng_advice *advice;  /* NULL = nothing is predicted */
    const struct eng_hooks *hooks;
    /* Of a routed expert as leases have it, without addresses. */
    struct kern_matrix expert[MODEL_MATRIX_COUNT];
    bool expert_scaled[MODEL_MATRIX_COUNT];
    float softmax_scale;
    float rope_magnitude;
    float *rope_frequency;      /* [rope / 2] */
    uint64_t wait_ns;           /* spent in tier_wait by the running step, on the engine's clock */
    struct eng_profile *profile;        /* NULL = nobody wants to know where time goes */
};

/* V2 and V3 build these two norms with their class's default, whatever rms_norm_eps says. */
#define ENG_LATENT_NORM_EPS 1e-6f

#endif
