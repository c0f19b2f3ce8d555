/* The stack's account of memory: planned from the configuration before anything is opened, used
 * from what each part has touched since. */
#ifndef ENGINE_LEDGER_H
#define ENGINE_LEDGER_H

#include <stdio.h>

#include "base/ledger.h"
#include "engine/stack.h"

struct eng_ledger_parts {
    const struct eng_stack_config *config;
    const struct eng_footprint *engine;
    const struct tier_footprint *tier;
    const struct tier_store *store;
    uint64_t predictor_bytes;
};

/* Fills planned and the notes. What is resident when it is called is taken for the program's own:
 * to be called with the model's names and tokenizer loaded and nothing else. */
void eng_ledger_plan(struct base_ledger *ledger, const struct eng_ledger_parts *parts);

/* What the tiers' part of the plan becomes with another footprint; the other rows stay. */
void eng_ledger_plan_tiers(struct base_ledger *ledger, const struct eng_ledger_parts *parts);

/* The same of the device's memory, where the engine computes on one; else all zero. */
void eng_ledger_plan_card(struct base_ledger *card, const struct eng_ledger_parts *parts);

/* The table, each row with its note; then what the machine or its control group allows. */
void eng_ledger_print(FILE *to, const struct base_ledger *ledger,
                      const struct base_ledger_limit *limit);

void eng_ledger_print_card(FILE *to, const struct base_ledger *card,
                           const struct eng_stack_config *config);

/* Fills used; `card` may be NULL. Any thread. */
void eng_ledger_use(struct base_ledger *ledger, struct base_ledger *card, struct eng_stack *stack);

#endif
