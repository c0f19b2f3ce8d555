/* What the files of this folder share. */
#ifndef ENGINE_CUDA_ROOM_H
#define ENGINE_CUDA_ROOM_H

#include "device/device.h"
#include "engine/core.h"
#include "engine/cuda/cuda.h"
#include "kernels/cuda/kern_cuda.h"

/* Small things on their way to the device: what is put into `host` is sent to the same place of
 * `device`, in the stream's order. Written anew from the start when the stream has been reached
 * behind all that was sent. */
struct eng_wire {
    char *host, *device;
    size_t bytes, used, sent;
};

/* Device memory that a step works in. Sizes as of struct eng_plan's members. */
struct eng_cuda_work {
    float *hidden, *normed, *branch;
    float *q_a, *q, *kv, *q_latent, *latent, *attended;
    float *mlp_act;             /* [rows][widest dense or shared part] */
    float *gate_logits;
    uint32_t *route_ids;        /* [rows][top_k] of one layer */
    float *route_weights;
    float *pair_act, *pair_out; /* [pairs][expert_width], [pairs][hidden] */
    float *mla_work;
    const void **tables;        /* [layers][members][blocks_per_seq] */
    void **places;              /* [layers][rows] */
    float *head_in, *logits;
    uint32_t *head_best;
    float *rank_send, *rank_recv;       /* several ranks: what collectives take and bring; */
    float *rank_whole;                  /* an input that was gathered */
    uint32_t *row_self;         /* [rows]: 0, 1, 2, ... */
    struct kern_cuda_expert *mlps;      /* [layers]: the dense part, or the shared experts */
    char *step, *layer;         /* of the wires */
};

/* Rows of the batch that take one kind of product. */
struct eng_span {
    uint32_t first, count;
    bool tiles;
    const struct kern_cuda_run *run;    /* the same as one run, on the device */
};

enum { ENG_SPANS = 3 };         /* generated, prompt, generated and computed again */

/* A step on the device: what was uploaded at its beginning. */
struct eng_cuda_step {
    const struct eng_batch *batch;
    struct eng_span spans[ENG_SPANS];
    const uint32_t *tokens, *row_member, *row_tokens, *ids;
    const float *cos, *sin;
    const struct kern_cuda_run *tiles;  /* of the chunk's attention */
    uint32_t tile_count;
    uint32_t tokens_max[2];     /* longest sequence of the generated rows, of the chunk */
    uint32_t routed;            /* moe layers that have chosen */
};

struct eng_cuda {
    struct eng_core *core;
    struct dev *dev;
    void *stream;
    void *staging;              /* the host's side of the wires */
    size_t staging_bytes;
    struct eng_wire step_wire, layer_wire;
    struct eng_cuda_work work;
    struct eng_cuda_step step;
    /* The first thing of the running call that failed; after it nothing is launched. */
    int rc;
    const char *what;
    /* Several ranks: all know what the one that failed first says, `why`. */
    bool told;
    char why[ENG_LOST_TEXT];
    struct eng_cuda_word {
        int32_t rc;
        uint32_t lost;          /* no step of that rank can succeed any more */
        char text[ENG_LOST_TEXT];
    } *words;                   /* [ranks] */
};

/* ---- wire.c ---- */

void eng_wire_reset(struct eng_wire *wire);
/* Room for `bytes`; `device` gets where it will be. The caller knows that it fits. */
void *eng_wire_take(struct eng_wire *wire, size_t bytes, const void **device);
/* Sends what was put in since the last send. */
void eng_wire_send(struct eng_cuda *cuda, struct eng_wire *wire);

/* Keeps the first failure. True while there is none. */
bool eng_cuda_keep(struct eng_cuda *cuda, int rc, const char *what);

/* y = w x for all rows of the batch; k_blocks as of kern_cuda_product. */
struct eng_cuda_product {
    const struct kern_matrix *w;
    const float *x;
    size_t x_stride;
    float *y;
    size_t y_stride;
    uint32_t k_blocks;
    const char *what;
};
void eng_cuda_product(struct eng_cuda *cuda, const struct eng_cuda_product *product);

/* ---- attend.c, experts.c ---- */

/* work.normed -> work.branch. */
void eng_cuda_attend(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index);
/* The dense part of a layer, or its shared experts: work.normed -> work.branch. */
void eng_cuda_mlp(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index);
void eng_cuda_experts(struct eng_cuda *cuda, const struct eng_layer *layer, uint32_t layer_index);

/* ---- meet.c: where ranks meet ----
 *
 * A rank whose step failed launches nothing more, but comes to every collective until the ranks
 * have agreed: then all of them know, and stop at the same place. Sizes that follow from the gate's
 * choice, which a rank that failed does not have, are used right behind an agreement only. */

/* Experts that could not be read: their rows' requests end, on every rank alike. */
enum { ENG_CUDA_FAILED_WORDS = (KERN_CUDA_EXPERTS_MAX + 31) / 32 };
struct eng_cuda_failed {
    uint32_t count;
    uint32_t experts[ENG_CUDA_FAILED_WORDS];    /* a bit each */
};
/* `failed` (may be NULL) becomes that of all ranks. True if no rank's step has failed. */
bool eng_cuda_agree(struct eng_cuda *cuda, struct eng_cuda_failed *failed);
/* What failed on this rank, in a sentence; it names the rank where there are several. */
void eng_cuda_say(const struct eng_cuda *cuda, char *to, size_t size);
/* This rank's step goes on, if only to meet the others. */
bool eng_cuda_goes_on(const struct eng_cuda *cuda);

/* whole[rows][units * unit] of every rank's part[rows][its units * unit], ceil(units / ranks) units
 * each; part may be work.rank_send, and is read as if it had as many columns as the widest. */
struct eng_cuda_gather {
    const float *part;
    float *whole;
    uint32_t rows, units, unit;
};
void eng_cuda_gather(struct eng_cuda *cuda, const struct eng_cuda_gather *gather);
/* Of ranks that share dense layers: y[rows of the batch][cols] = w x, from this rank's rows `w` of
 * the matrix and its part of x, [rows][its units * unit]. */
struct eng_cuda_joint {
    const struct kern_matrix *w;
    const float *x_part;
    uint32_t x_units, x_unit, cols;
    float *y;
    const char *what;
};
void eng_cuda_joint_product(struct eng_cuda *cuda, const struct eng_cuda_joint *joint);
/* One rank has a token's embedding, the others zeros. */
void eng_cuda_join_embeddings(struct eng_cuda *cuda);

/* Routed experts that lie over ranks, rows [begin, end) of a layer. After the deal
 * (engine/exchange.h) outputs of this rank's pairs lie in work.pair_out in order of expert_place;
 * their sums are added to what work.branch holds, or take its place. */
struct eng_cuda_exchange {
    const struct eng_layer *layer;
    uint32_t begin, end;
    bool add;
    struct eng_cuda_failed *failed;     /* of this rank */
};
void eng_cuda_exchange(struct eng_cuda *cuda, const struct eng_cuda_exchange *exchange);

#endif
