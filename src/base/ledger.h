/* The account of memory: what each purpose was given at start, what it has touched, and what the
 * machine and its containers allow.
 *
 * Planned is a bound that is kept; used is counted by whoever owns the memory (slots and KV blocks
 * that were ever written), not derived from the process's size. Their sum can therefore be compared
 * with what the kernel says is resident, and is (`./run check ledger`).
 *
 * Cold; any thread; reads /proc.
 */
#ifndef BASE_LEDGER_H
#define BASE_LEDGER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define BASE_LEDGER_TAGS(T)                                                                       \
    T(DENSE, "dense", "dense weights", "everything but the routed experts")                       \
    T(KV, "kv", "kv cache", "")                                                                   \
    T(ACTIVATIONS, "activations", "activations", "work space of the largest step")                \
    T(HBM, "hbm_slots", "hbm slots", "")                                                          \
    T(DRAM, "dram_slots", "dram slots", "")                                                       \
    T(STAGING, "staging", "staging", "slots for what is on its way")                              \
    T(TABLES, "tables", "tables", "index, slots, policy, counters")                               \
    T(PREDICTOR, "predictor", "predictor", "what it learns and works in")                         \
    T(PROFILE, "profile", "profile", "newest events of the timeline (--profile)")                 \
    T(BUFFERS, "buffers", "buffers", "")                                                          \
    T(PROGRAM, "program", "program", "code, libraries, tokenizer, threads, requests")

#define BASE_LEDGER_ENUM(tag, name, title, text) BASE_LEDGER_##tag,
enum base_ledger_tag { BASE_LEDGER_TAGS(BASE_LEDGER_ENUM) BASE_LEDGER_COUNT };

struct base_ledger_row {
    uint64_t planned, used;
    char note[160];             /* what it is made of; empty = the tag's own text */
};

struct base_ledger {
    struct base_ledger_row rows[BASE_LEDGER_COUNT];
};

const char *base_ledger_name(enum base_ledger_tag tag);     /* as in metrics: "kv" */
const char *base_ledger_title(enum base_ledger_tag tag);    /* as in the table: "kv cache" */
const char *base_ledger_text(enum base_ledger_tag tag);
uint64_t base_ledger_planned(const struct base_ledger *ledger);
uint64_t base_ledger_used(const struct base_ledger *ledger);

/* What the process may have: the machine's memory, or less where a control group (v1 or v2, its own
 * or one above it) has a limit. */
struct base_ledger_limit {
    uint64_t bytes;
    char what[200];             /* whose limit it is */
};
/* `root` is put before /proc and /sys: "" but in tests. UINT64_MAX when nothing is known. */
void base_ledger_limit(struct base_ledger_limit *limit, const char *root);

/* "dense weights 1 GiB + kv cache 2 GiB = 3 GiB": what is planned, in `text`, which is returned. */
enum { BASE_LEDGER_SUM = 512 };
const char *base_ledger_sum(const struct base_ledger *ledger, char text[BASE_LEDGER_SUM]);

/* BASE_EBUDGET with the arithmetic when the plan is above the limit. */
int base_ledger_check(const struct base_ledger *ledger, const struct base_ledger_limit *limit,
                      struct base_err *err);

/* What the kernel and the C library say of this process. */
struct base_ledger_process {
    uint64_t resident;
    uint64_t files;             /* of it: pages of files, code and libraries among them */
    uint64_t heap;              /* what malloc took from the system */
    uint32_t threads;
};
void base_ledger_process(struct base_ledger_process *out);

#endif
