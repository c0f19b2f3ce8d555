#include "base/rng.h"

#include <math.h>

#include "base/must.h"

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t rotate_left(uint64_t x, int by)
{
    return (x << by) | (x >> (64 - by));
}

void base_rng_init(struct base_rng *rng, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        rng->state[i] = splitmix64(&seed);
    }
}

uint64_t base_rng_u64(struct base_rng *rng)
{
    uint64_t *s = rng->state;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t base_rng_below(struct base_rng *rng, uint64_t bound)
{
    MUST(bound >= 1);
    uint64_t reject_below = -bound % bound;
    uint64_t x;
    do {
        x = base_rng_u64(rng);
    } while (x < reject_below);
    return x % bound;
}

double base_rng_unit(struct base_rng *rng)
{
    return (double)(base_rng_u64(rng) >> 11) * 0x1.0p-53;
}

double base_rng_normal(struct base_rng *rng)
{
    double radius = sqrt(-2.0 * log(1.0 - base_rng_unit(rng)));
    return radius * cos(6.283185307179586 * base_rng_unit(rng));
}
