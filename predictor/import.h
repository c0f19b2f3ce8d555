/* Foreign recordings -> traces. The result appears under its name only when it is whole (temporary
 * file, sync, rename). Errors name file and line. One thread a call; memory holds one step.
 *
 * jsonl  first line {"format":"routing-jsonl","version":1,"model","layers","first_moe_layer",
 *        "experts","top_k"[,"expert_bytes": N or [N per layer]]}, then one line a token:
 *        {"seq","phase":"prefill"|"decode","token","experts":[[...] per layer][,"weights":...]
 *        [,"step"]}; null for a layer it was not routed in; neighbours with the same "step" become
 *        one step, a line without it one by itself
 * csv    "# route_trace v1" with "# model=..." and "# layer=..." lines, then rows of
 *        turn,phase,step,layer,slot,expert,weight,residency,expert_bytes; the prompt rows of a turn
 *        become one step, each generated token one
 *
 * Both may be packed with xz. */
#ifndef PREDICTOR_IMPORT_H
#define PREDICTOR_IMPORT_H

#include <stdint.h>

#include "base/err.h"

struct pred_import_stats {
    uint64_t lines, steps, tokens, sequences;
    uint32_t layers, experts, top_k;
};

struct pred_import_progress {
    void (*report)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

int pred_import_jsonl(const char *from, const char *to, struct pred_import_stats *stats,
                      const struct pred_import_progress *progress, struct base_err *err);
int pred_import_csv(const char *from, const char *to, struct pred_import_stats *stats,
                    const struct pred_import_progress *progress, struct base_err *err);

#endif
