/* The tables that predictors are made of: popularity, counts given an expert, counts given a key.
 *
 * All estimate P(expert is chosen), with the popularity as what is believed before anything was
 * seen. Counts are halved when a row has seen enough, so that the recent past weighs more. */
#ifndef PREDICTOR_TABLES_H
#define PREDICTOR_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "predictor/predictor.h"

/* P of each expert of each layer, a moving average over a few thousand tokens. */
struct pred_popularity {
    uint32_t layers, experts;
    float *p;                   /* [layers x experts], within [floor, 1 - floor] */
    float *odds;                /* [layers x experts] their log-odds, refreshed now and then */
    uint32_t *seen;             /* [layers] */
};
int pred_popularity_init(struct pred_popularity *pop, const struct pred_shape *shape);
void pred_popularity_fini(struct pred_popularity *pop);
void pred_popularity_learn(struct pred_popularity *pop, uint32_t layer, const uint32_t *ids,
                           uint32_t top_k);
unsigned pred_popularity_blocks(const struct pred_popularity *pop, struct pred_block *blocks);

/* One weight for each pair of an expert that is given (of another layer, of another token) and an
 * expert that is asked for: the log-odds of the latter are a sum of rows. Learned online by
 * descending the logistic loss, so that evidence shared by several given experts counts once, which
 * sums of counted lifts get wrong. A row's steps shrink with its use down to a floor, so it keeps
 * following. */
struct pred_rows {
    uint32_t layers, experts;
    float *weights;             /* [layers x experts given x experts] */
    uint32_t *seen;             /* [layers x experts given] */
};
int pred_rows_init(struct pred_rows *rows, const struct pred_shape *shape);
void pred_rows_fini(struct pred_rows *rows);
/* Adds the rows of the given experts to scores. */
void pred_rows_add(const struct pred_rows *rows, uint32_t layer, const uint32_t *given,
                   uint32_t top_k, float *scores);
/* errors[e] = predicted probability - (1 if chosen). Steps are `share` of what they would be. */
void pred_rows_learn(struct pred_rows *rows, uint32_t layer, const uint32_t *given, uint32_t top_k,
                     const float *errors, float share);
unsigned pred_rows_blocks(const struct pred_rows *rows, struct pred_block *blocks);

/* In place: log-odds -> probability, less 1 for the chosen. */
void pred_errors(float *scores, uint32_t experts, const uint32_t *ids, uint32_t top_k);

/* Counts of experts of all layers given a 64-bit key (a token, a pair of tokens). Room for a fixed
 * number of keys in sets of 8; in a full set the key seen least leaves. A key keeps for each layer
 * the experts seen most, at most PRED_KEYED_KEPT of them; a layer of no more than that is kept
 * whole, one count an expert in their order. */
enum { PRED_KEYED_WAYS = 8, PRED_KEYED_KEPT = 32 };
struct pred_keyed {
    uint32_t layers, kept, sets;
    size_t latest;              /* place of the key asked for last: layers ask one after another */
    uint64_t *keys;             /* [sets x ways], 0 = free */
    uint16_t *seen;             /* [sets x ways x layers] */
    uint16_t *experts;          /* [sets x ways x layers x kept]; NULL = kept whole */
    uint16_t *counts;           /* the same; 0 = free */
};
int pred_keyed_init(struct pred_keyed *keyed, const struct pred_shape *shape, uint32_t keys_max);
void pred_keyed_fini(struct pred_keyed *keyed);
void pred_keyed_learn(struct pred_keyed *keyed, uint64_t key, uint32_t layer, const uint32_t *ids,
                      uint32_t top_k);
/* How often the key was seen in this layer, 0 = not known. p[experts] comes in as the belief
 * without the key and is sharpened: p = (count + weight * p) / (seen + weight). */
uint32_t pred_keyed_sharpen(struct pred_keyed *keyed, uint64_t key, uint32_t layer,
                            float weight, float *p, uint32_t experts);
unsigned pred_keyed_blocks(const struct pred_keyed *keyed, struct pred_block *blocks);

#endif
