/* Eviction policies: which resident expert of a partition leaves when a slot is needed.
 *
 * A partition is one layer, or all layers for the global kinds; its experts are numbered densely
 * from 0. A policy sees events only. It knows no bytes, no clock and no IO, so the same events
 * always name the same victims: replay is exact because of this, not by care taken elsewhere.
 *
 *      begin ── touch(hits) ── insert(misses, each after its victim left) ── begin ── ...
 *
 * Everything between two begins belongs to one acquire. Which experts may not leave is the core's
 * knowledge: it keeps a count per expert (`held`), and victim() passes over those that are held.
 * The experts of the running acquire are held, so they never push each other out.
 *
 * Ties are broken by the smaller expert number.
 *
 * Engine thread only. No call allocates or blocks, except create and destroy.
 */
#ifndef TIERING_POLICY_H
#define TIERING_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TIER_NO_EXPERT UINT32_MAX

struct tier_policy;

/* The core's note of an expert in a tier: with very many experts one cache line less than two. */
struct tier_hold {
    uint16_t count;             /* non-zero: it may not leave */
    uint8_t state;              /* the core's own */
};

struct tier_policy_options {
    uint32_t expert_count;      /* experts in the partition, >= 1 */
    uint32_t slots;             /* of the partition, >= 1 */
    double half_life;           /* decayed kinds: in acquires of this partition; INFINITY = never */
    const struct tier_hold *held;       /* [expert_count], the core's */
    /* belady: position of the next acquire of this partition's expert after `now`. */
    uint64_t (*next_use)(void *context, uint32_t layer, uint32_t expert, uint64_t now);
    void *next_use_context;
    uint32_t layer_first;       /* layer of expert 0, and how many experts a layer has */
    uint32_t layer_experts;
};

struct tier_policy_ops {
    const char *name;           /* as written in YAML */
    bool global;                /* one partition over all layers */
    bool replay_only;
    bool decayed;               /* half_life takes effect */
    int (*create)(struct tier_policy **out, const struct tier_policy_options *options);
    void (*destroy)(struct tier_policy *policy);
    /* Optional. The acquire number `now` begins in this partition. */
    void (*begin)(struct tier_policy *policy, uint64_t now);
    /* Optional. The expert may be used next: asks the processor for what `touch` will need of it.
     * Changes nothing. */
    void (*ahead)(const struct tier_policy *policy, uint32_t expert);
    /* Resident experts are used, in this order. */
    void (*touch)(struct tier_policy *policy, const uint32_t *experts, uint32_t n);
    /* Optional. An absent expert will be inserted into the full partition: victim comes next. */
    void (*incoming)(struct tier_policy *policy, uint32_t expert, bool used);
    /* An absent expert becomes resident; `used`: by the running acquire, else ahead of any use. */
    void (*insert)(struct tier_policy *policy, uint32_t expert, bool used);
    /* A resident expert leaves, whoever decided that. */
    void (*remove)(struct tier_policy *policy, uint32_t expert);
    /* The expert that should leave next, or TIER_NO_EXPERT if every resident one is held. Asked
     * again it gives the same answer; whether it does leave is told by remove. */
    uint32_t (*victim)(struct tier_policy *policy);
    /* Optional. Residents that leave only when all others are held. */
    uint32_t (*fixed)(const struct tier_policy *policy);
    /* Optional. A resident expert that was just inserted had been used so often before (decayed, at
     * its last use). Kinds without it are told of one more use where there were several. */
    void (*seed)(struct tier_policy *policy, uint32_t expert, double uses);
    /* Optional. An expert that is not resident here is used in a higher tier. */
    void (*seen)(struct tier_policy *policy, uint32_t expert);
    /* Optional. From now on the partition has so many slots (it may hold more for a while) and uses
     * count half after this half-life; what was learned stays. */
    void (*retune)(struct tier_policy *policy, uint32_t slots, double half_life);
    /* Optional. Probability in [0, 1] that the expert is wanted at its layer's next acquire. */
    void (*hint)(struct tier_policy *policy, uint32_t expert, float probability);
    /* Optional. What an expert is worth keeping by all the policy knows, resident or not: a hint
     * brings in only what is worth more than the one that would leave. */
    double (*worth)(const struct tier_policy *policy, uint32_t expert);
};

/* First member of every concrete policy; filled by tier_policy_create. */
struct tier_policy {
    const struct tier_policy_ops *ops;
    const struct tier_hold *held;
};

/* The policy called `name`, or NULL. */
const struct tier_policy_ops *tier_policy_find(const char *name);

/* Chance that what leaves for a prefetch would have been asked for next, where the policy does not
 * weigh that itself (0): that of any expert. */
double tier_policy_displaced(const char *name, uint32_t top_k, uint32_t experts);

/* Names of all policies, in registry order; NULL past the end. */
const char *tier_policy_name(size_t index);

/* Creates a policy. Returns 0; -EINVAL if an option is out of range or one is missing that this
 * kind needs; -ENOMEM. On error *out is NULL. */
int tier_policy_create(struct tier_policy **out, const struct tier_policy_ops *ops,
                       const struct tier_policy_options *options);
void tier_policy_destroy(struct tier_policy *policy);       /* accepts NULL */

extern const struct tier_policy_ops tier_policy_lru_ops, tier_policy_lru_global_ops,
    tier_policy_lfu_ops, tier_policy_lru_with_frequency_ops, tier_policy_lru_with_prediction_ops,
    tier_policy_slru_ops, tier_policy_s3fifo_ops, tier_policy_sieve_ops, tier_policy_arc_ops,
    tier_policy_pinned_ops, tier_policy_belady_ops, tier_policy_belady_global_ops;

#endif
