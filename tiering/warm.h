/* Warm start: what was resident when a server stopped is resident again when it comes back.
 *
 *      running:  used ──> rows (engine thread) ──> temp file, fsync, rename (a thread of its own)
 *      start:    file ──> restore events, coldest first ──> reads in idle depth, hottest first
 *
 * The file says what was used, when and how often, not what one policy made of it: another policy
 * or other sizes can start from it. It names the weights by their checksums. A file of others, or
 * of anything else, stops the start, since it would be overwritten; one that was damaged or cut is
 * told, and the start is a cold one.
 *
 * Residency is decided at once at the start, by recorded events, so that replay stays exact; only
 * the reads come later. An expert that is asked for before its turn is read on demand like any
 * other.
 *
 * Engine thread, but for the thread that writes.
 */
#ifndef TIERING_WARM_H
#define TIERING_WARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct tier;
struct tier_warm;

/* What it keeps an expert. */
enum { TIER_WARM_BYTES_PER_EXPERT = 40 };

/* One resident expert. */
struct tier_warm_row {
    uint32_t key;
    uint32_t age;               /* tokens of its layer since it was used last */
    uint8_t hbm;                /* 1 = it was there, 0 = in dram */
    uint8_t uses;               /* decayed by policy.half_life, in quarters, at most 255 */
};

struct tier_warm_set {
    uint64_t model;             /* XXH3 of the checksums of all experts */
    uint32_t layers, experts;
    uint64_t saved_at;          /* seconds since 1970 */
    uint32_t count;
    struct tier_warm_row *rows;
};

/* -- the file (docs/formats.md) --------------------------------------------------------------- */

size_t tier_warm_file_bytes(uint32_t count);
/* `to` has tier_warm_file_bytes(set->count). */
void tier_warm_file_encode(const struct tier_warm_set *set, void *to);
/* Reads a file whole; set->rows is malloc'ed. With a sentence: -ENOENT when there is none;
 * BASE_EFORMAT when it is something else; BASE_ETORN, BASE_ECHECKSUM or BASE_EVERSION when it was
 * cut, is damaged or another version's; -errno. */
int tier_warm_file_load(struct tier_warm_set *set, const char *path, struct base_err *err);

/* -- while the tiers live (with tier_warm_restore, tier_warm_save of tiering.h) --------------- */

/* Makes what saving takes, and reads what was saved; refuses a path whose folder cannot be written,
 * and a file that is no saved set of these weights. Without tiers.warm.path there is nothing to do
 * and *out is NULL. */
int tier_warm_open(struct tier_warm **out, struct tier *tier, struct base_err *err);
/* Accepts NULL. Saves nothing. */
void tier_warm_close(struct tier_warm *warm);

/* Experts of a layer were used. */
void tier_warm_used(struct tier_warm *warm, uint32_t layer, const uint32_t *ids, uint32_t n);

/* Begins reads of restored experts while nobody waits for one. */
void tier_warm_feed(struct tier *tier);
/* There are such reads to begin. */
bool tier_warm_feeding(const struct tier_warm *warm);
/* Hands the resident set to the writing thread when its time has come; returns how many
 * milliseconds there are until the next time, UINT32_MAX when nothing was used since. */
uint32_t tier_warm_tick(struct tier *tier, uint64_t now_ns);

/* What became of the saved set. */
/* There was a saved set, and it could not be used. */
bool tier_warm_refused(const struct tier_warm *warm);
const char *tier_warm_note(const struct tier_warm *warm);
/* Fills the counters. */
struct tier_warm_metrics;
void tier_warm_stats(const struct tier_warm *warm, struct tier_warm_metrics *out);

#endif
