/* The whole stack's activation report: the tiers' rows (tiering/report.h), and those of prediction,
 * trace and arithmetic. */
#ifndef ENGINE_REPORT_H
#define ENGINE_REPORT_H

#include <stdio.h>

#include "engine/stack.h"
#include "tiering/report.h"

/* `config`: the settings that hold now. Any thread. Allocates nothing; `report` is large. */
void eng_report(struct tier_report *report, struct eng_stack *stack,
                const struct eng_stack_config *config, const struct tier_snapshot *tier);

/* The rows of trace and op set, from what they are made of: for the tests. */
void eng_report_trace(struct tier_report *report, const struct pred_trace_config *config,
                      const struct pred_trace_metrics *metrics, bool recording);
void eng_report_ops(struct tier_report *report, const char *requested, const char *used);

/* The table printed at start: everything that was requested, a line each. */
void eng_report_print(FILE *to, const struct tier_report *report);

#endif
