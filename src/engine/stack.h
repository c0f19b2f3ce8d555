/* The whole stack below the server, opened from one configuration in one place: model folder,
 * expert index (made when missing), store, tiers, trace, engine. Used by tier-server, tier-run,
 * tier-bench and the tests, so that all of them run the same thing.
 */
#ifndef ENGINE_STACK_H
#define ENGINE_STACK_H

#include <stdio.h>

#include "base/ledger.h"
#include "engine/advice.h"
#include "engine/engine.h"
#include "engine/landing.h"
#include "engine/peers.h"
#include "engine/ranks.h"
#include "model/chat.h"
#include "predictor/trace.h"

struct eng_stack_config {
    struct tier_config tier;
    struct tier_io_config io;
    struct eng_config engine;
    struct eng_advice_config advice;
    struct pred_trace_config trace;
    struct comm_config comm;
    struct eng_rank_config ranks;
};

/* Groups for option readers over a stack_config: fills `groups` (at least ENG_STACK_GROUPS) and
 * returns their number. Programs append their own. */
enum { ENG_STACK_GROUPS = 8 };
size_t eng_stack_groups(struct eng_stack_config *config, struct base_option_group *groups);

/* Refuses settings that could not take effect: BASE_ECONFIG with the key and the reason.
 * eng_stack_open asks too. */
int eng_stack_check(const struct eng_stack_config *config, struct base_err *err);

struct eng_stack {
    struct eng_stack_config config;
    struct model_shape shape;
    struct model_files *files;
    struct model_tokenizer *tokenizer;
    struct model_chat *chat;
    struct tier_store *store;
    struct dev *device;                 /* the card that computes; NULL = the CPU does */
    struct eng_landing landing;         /* of experts that the CPU computes */
    struct tier *tier;
    struct pred_trace_writer *trace;    /* NULL = not recording */
    struct eng_advice *advice;          /* NULL = nothing is predicted */
    struct eng *engine;
    struct eng_ranks ranks;
    struct eng_peers peers;             /* what the other ranks count, at rank 0 */
    struct eng_placement placement;     /* .holders NULL: every rank holds every expert */
    uint32_t top_k;                     /* experts of a layer that a token can ask this rank for */
    uint32_t core_first;
    struct base_ledger ledger;          /* planned; eng_ledger_use fills in what is used */
    struct base_ledger_limit limit;
    struct base_ledger card;            /* the same of the device's memory; zero on the CPU */
    uint64_t device_bytes;              /* what is taken of it at start */
    struct eng_profile profile;
    bool profiles;
    char profile_path[BASE_OPTION_TEXT];    /* empty: no timeline */
    struct eng_hooks hooks;             /* the caller's */
    struct tier_observer observer;      /* the caller's */
};

/* About 100 tokens of a model of 60 layers; 16 MiB. */
enum { ENG_PROFILE_EVENTS = 1 << 18 };

struct eng_stack_args {
    const char *model_dir;
    const struct eng_stack_config *config;
    struct comm *comm;              /* borrowed, from comm_open; NULL = one rank */
    const char *trace_path;         /* over trace.path; NULL = what the configuration says */
    struct eng_hooks hooks;         /* called beside the trace's own */
    struct tier_observer observer;  /* the same for cache events; .event may be NULL */
    bool quiet;                     /* no progress on stderr */
    bool peers;                     /* rank 0: the others tell it what they count */
    /* A timeline of the newest `profile_events` events, written there by close; NULL = none. */
    const char *profile_path;
    size_t profile_events;          /* 0 = ENG_PROFILE_EVENTS */
    bool account;                   /* step records have op_ns; a timeline means it, too */
    /* What the program around the stack may take while it serves, for the account of memory: asked
     * when the model's words and sizes are known. NULL = nothing. */
    uint64_t (*beside)(const void *context, const struct eng_stack *stack);
    const void *beside_context;
};

/* Opens everything in order; on failure closes what was open and says why. The stack must stay
 * where it is until it is closed. Of several ranks each opens its own, at the same time; rank 0's
 * engine then takes requests, the others call eng_follow. A rank that cannot open ends the others
 * with comm_abort. */
int eng_stack_open(struct eng_stack *stack, const struct eng_stack_args *args,
                   struct base_err *err);
/* Closes the trace in order, writes the timeline, frees everything. Accepts a stack that is zero
 * or half open. */
void eng_stack_close(struct eng_stack *stack);

/* Whether other settings of the open stack's tiers would fit `limit` (base_ledger_limit) beside all
 * else that was planned at start. A tier that becomes smaller gives its memory back bit by bit, so
 * it counts with what it holds now. Any thread. BASE_EBUDGET with the arithmetic. */
int eng_stack_check_growth(struct eng_stack *stack, const struct tier_config *config,
                           const struct base_ledger_limit *limit, struct base_err *err);

/* Prints the memory table: dense, KV, activations, slots by tier, tables, the program itself,
 * sum; the process stays below that sum. Of several ranks each calls it, and rank 0 prints its
 * own. To be called before the stack is opened: what is resident by then is taken for the
 * program's own. Makes the index when it is missing. BASE_EBUDGET with the arithmetic when the
 * sum is above what the machine or a control group allows. */
int eng_stack_print_footprint(const struct eng_stack_args *args, FILE *to, struct base_err *err);

#endif
