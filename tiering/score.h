/* Decayed use counts: a use counts 1 now and half as much every half-life (in acquires) later.
 *
 * Instead of shrinking all counts at every acquire, new uses weigh more and more; only the order
 * and the ratio to `weight` mean anything. When the weight nears the end of the double's range all
 * counts are scaled down, which no comparison notices, but those that become zero.
 */
#ifndef TIERING_SCORE_H
#define TIERING_SCORE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

struct tier_score {
    double *at;                 /* [count], the owner's */
    uint32_t count;
    double weight;              /* of a use now */
    double growth;              /* of the weight from acquire to acquire; 1 = no decay */
};

static inline void tier_score_init(struct tier_score *score, double *at, uint32_t count,
                                   double half_life)
{
    *score = (struct tier_score){
        .at = at, .count = count, .weight = 1, .growth = isinf(half_life) ? 1 : exp2(1 / half_life),
    };
}

/* Another half-life from now on; uses so far keep their weights. */
static inline void tier_score_retune(struct tier_score *score, double half_life)
{
    score->growth = isinf(half_life) ? 1 : exp2(1 / half_life);
}

/* The next acquire begins. True if all counts were scaled. */
static inline bool tier_score_step(struct tier_score *score)
{
    score->weight *= score->growth;
    if (score->weight < 0x1p512) return false;
    for (uint32_t e = 0; e < score->count; e++) score->at[e] *= 0x1p-512;
    score->weight *= 0x1p-512;
    return true;
}

static inline void tier_score_use(struct tier_score *score, uint32_t expert)
{
    score->at[expert] += score->weight;
}

#endif
