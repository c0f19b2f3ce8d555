/* tier-replay run --machine: the virtual clock's report. */
#ifndef TOOLS_REPLAY_TIMED_H
#define TOOLS_REPLAY_TIMED_H

#include "predictor/replay.h"
#include "tools/cli.h"
#include "tools/replay.h"

struct cli_timed_args {
    const char *path; /* of the trace */
    struct pred_trace_reader *reader;
    const char *machine; /* YAML */
    const struct cli_list *machine_set;
    const struct cli_replay_cache *cache;   /* as configured */
    bool sized;         /* the cases' slots were given beside it */
    const char *top;    /* "hbm", "dram"; NULL = as cache; where sized, hbm if there is a device */
    const char *dram;   /* share of the experts below hbm; NULL = as cache, else all the others */
    const struct pred_case *cases; /* policy and slots of the top tier */
    const double *capacities;
    uint32_t count;
    struct cli_replay_config *config;   /* predictor.* and prefetch.* count here */
    const char *predictor;              /* over predictor.kind; NULL = as configured */
    const char *train;                  /* trace to learn from beforehand, or NULL */
    bool layers, json, quiet;
};

/* Runs and prints; the exit code, or a negative code with its sentence. */
int cli_replay_timed(const struct cli_timed_args *args, struct base_err *err);

#endif
