/* Seeded random numbers (xoshiro256**, Blackman and Vigna 2018, seeded by splitmix64).
 *
 * For sampling, simulation and tests: the same seed gives the same numbers everywhere. Not for
 * secrets. One generator belongs to one thread at a time.
 */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

struct base_rng {
    uint64_t state[4];
};

void base_rng_init(struct base_rng *rng, uint64_t seed);

uint64_t base_rng_u64(struct base_rng *rng);

/* Uniform in [0, bound), without modulo bias; bound >= 1. */
uint64_t base_rng_below(struct base_rng *rng, uint64_t bound);

/* Uniform in [0, 1) with 53 bits. */
double base_rng_unit(struct base_rng *rng);

/* Standard normal deviate (Box-Muller, one of the pair). */
double base_rng_normal(struct base_rng *rng);

#endif
