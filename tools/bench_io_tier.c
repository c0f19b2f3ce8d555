#include "tools/bench_io_tier.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"

enum { TIER_BYTES = 256 << 20, ASKED_PER_READ = 2 };

int bench_tier_store(struct tier_store **out, const char *path, uint64_t file_bytes,
                     uint64_t record_bytes, struct base_err *err)
{
    struct tier_lib_table table = {
        .name = path, .layers = 1, .experts = (uint32_t)(file_bytes / record_bytes),
        .file_count = 1, .files = &path,
    };
    table.at = calloc(table.experts, sizeof *table.at);
    if (!table.at) return base_err_set(err, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < table.experts; i++) {
        table.at[i].parts[0].offset = i * record_bytes;
        table.at[i].parts[0].bytes = record_bytes;
    }
    int rc = tier_lib_table_hash(&table, 4, err->text, sizeof err->text);
    if (rc == 0) rc = tier_lib_table_open(out, &table, err->text, sizeof err->text);
    if (rc < 0) err->code = rc;
    free(table.at);
    return rc;
}

static uint32_t asked_at_once(const struct bench_tier_args *args)
{
    return ASKED_PER_READ * args->depth;
}

/* A tier of the size that tiers have, and at least twice as many slots as experts asked for. What
 * comes round again is long gone. */
static uint64_t slot_count(const struct bench_tier_args *args)
{
    uint64_t count = TIER_BYTES / tier_store_slot_bytes(args->store);
    return count > 2 * asked_at_once(args) ? count : 2 * asked_at_once(args);
}

static int open_tiers(struct tier **tier, const struct bench_tier_args *args, struct base_err *err)
{
    static struct tier_config config;
    char pair[64];
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, &config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, &config },
    };
    base_option_defaults(groups, 2);
    /* Slots for what may be prefetched stand beside the others. */
    config.prefetch = false;
    snprintf(pair, sizeof pair, "tiers.dram.capacity=%llu",
             (unsigned long long)(slot_count(args) * tier_store_slot_bytes(args->store)));
    int rc = base_option_set_pair(groups, 2, pair, err);
    if (rc < 0) return rc;
    struct tier_open_args open = {
        .config = &config, .io = args->io, .store = args->store, .top_k = asked_at_once(args),
    };
    return tier_open(tier, &open, err);
}

static uint32_t *shuffled(uint32_t count, uint64_t seed)
{
    struct base_rng rng;
    uint32_t *order = calloc(count, sizeof *order);
    base_rng_init(&rng, seed);
    for (uint32_t i = 0; order && i < count; i++) {
        uint32_t j = (uint32_t)base_rng_below(&rng, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

static int ask(struct tier *tier, struct tier_lease *lease, uint32_t expert)
{
    return tier_acquire(tier, 0, &expert, 1, TIER_DECODE, lease) == 1 ? 0 : -EBUSY;
}

/* One shuffled order, gone through round and round by the runs one after another. */
struct walk {
    const uint32_t *order;
    uint32_t experts;
    uint64_t asked;
};

static uint32_t next_expert(struct walk *walk)
{
    return walk->order[walk->asked++ % walk->experts];
}

/* Asks until so many were asked for and the time is over. */
static int run(struct tier *tier, const struct bench_tier_args *args, struct walk *walk,
               struct tier_lease *leases, uint64_t count, uint64_t time_ns, double *rate)
{
    uint64_t begin = base_now_ns(), end = begin + time_ns, last = walk->asked + count, bytes = 0;
    uint32_t out = 0;
    for (; out < asked_at_once(args); out++) {
        if (ask(tier, &leases[out], next_expert(walk)) < 0) return -EBUSY;
    }
    while (out > 0) {
        tier_wait(tier, leases, out, TIER_WAIT_ANY, UINT64_MAX);
        bool more = (walk->asked < last || base_now_ns() < end) && !*args->interrupted;
        for (uint32_t i = 0; i < out; i++) {
            if (leases[i].status == -EINPROGRESS) continue;
            int rc = leases[i].status;
            bytes += tier_store_part_bytes(args->store, 0, leases[i].expert)[0];
            tier_release(tier, &leases[i], 1);
            if (more && rc == 0) {
                rc = ask(tier, &leases[i], next_expert(walk));
            } else {
                leases[i--] = leases[--out];
            }
            if (rc < 0) return rc;
        }
    }
    *rate = (double)bytes * 1e9 / (double)(base_now_ns() - begin);
    return 0;
}

int bench_tier_rate(const struct bench_tier_args *args, struct bench_tier_rates *rates, char *note,
                    size_t note_bytes, struct base_err *err)
{
    struct tier *tier = NULL;
    struct tier_snapshot snapshot;
    uint32_t experts = tier_store_experts(args->store);
    uint32_t *order = shuffled(experts, args->seed);
    struct tier_lease *leases = calloc(asked_at_once(args), sizeof *leases);
    struct walk walk = { .order = order, .experts = experts };
    *rates = (struct bench_tier_rates){ 0 };
    int rc = order && leases ? open_tiers(&tier, args, err)
                             : base_err_set(err, -ENOMEM, "out of memory");
    if (rc == 0) {
        rc = run(tier, args, &walk, leases, slot_count(args), 0, &rates->first_pass);
        if (rc == 0) rc = run(tier, args, &walk, leases, 0, args->time_ns, &rates->steady);
        if (rc < 0) base_err_set(err, rc, "an expert could not be had: %s", base_err_name(rc));
    }
    if (rc == 0) {
        tier_step_end(tier);
        tier_snapshot(tier, &snapshot);
        snprintf(note, note_bytes, "%s", snapshot.io_note);
        if (snapshot.tiers[0].misses != snapshot.tiers[0].lookups) {
            rc = base_err_set(err, BASE_EMISMATCH, "%llu of %llu lookups found their expert: the "
                              "file is too small for this depth",
                              (unsigned long long)(snapshot.tiers[0].lookups -
                                                   snapshot.tiers[0].misses),
                              (unsigned long long)snapshot.tiers[0].lookups);
        }
    }
    tier_close(tier);
    free(order);
    free(leases);
    return rc;
}
