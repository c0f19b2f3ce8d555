/* What the sub-commands of tier-replay share. */
#ifndef TOOLS_REPLAY_H
#define TOOLS_REPLAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"
#include "predictor/trace.h"
#include "tools/cli.h"

extern const struct cli_flag cli_replay_run_flags[];
int cli_replay_run(int count, char **arguments);
extern const struct cli_flag cli_replay_predict_flags[];
int cli_replay_predict(int count, char **arguments);
extern const struct cli_flag cli_replay_info_flags[], cli_replay_cut_flags[],
    cli_replay_sample_flags[], cli_replay_compose_flags[], cli_replay_merge_flags[],
    cli_replay_export_flags[];
int cli_replay_info(int count, char **arguments);
int cli_replay_cut(int count, char **arguments);
int cli_replay_sample(int count, char **arguments);
int cli_replay_merge(int count, char **arguments);
int cli_replay_export(int count, char **arguments);
int cli_replay_compose(int count, char **arguments);

extern const struct cli_flag cli_replay_tune_flags[];
int cli_replay_tune(int count, char **arguments);
extern const struct cli_flag cli_replay_report_flags[];
int cli_replay_report(int count, char **arguments);

/* --as-recorded: prints live beside replayed counts; 0 same, 1 different or not possible. */
int cli_replay_exact(const char *path, bool json, bool quiet);

/* What the options of a server say about its cache, by dotted key. Every key of a server's YAML is
 * known here, so that the same file can be given to both.
 *
 * The base is the file; without one what `recorded`, which must outlive the configuration, says of
 * the server that ran it, and for an import that nothing is set aside for decode; without either
 * the defaults. `set` goes over it. BASE_EFORMAT: the recorded one cannot be read; else the user's
 * words cannot. */
struct cli_replay_config;
int cli_replay_config_load(struct cli_replay_config **out, const char *path,
                           const struct pred_trace_header *recorded, const struct cli_list *set,
                           struct base_err *err);
void cli_replay_config_free(struct cli_replay_config *config);
/* The value as text; "" for a key that this build does not have. */
const char *cli_replay_config_get(struct cli_replay_config *config, const char *key);

/* The value as a number: a share as its part, a size in bytes; 0 for what is none. What was read as
 * an option parses. */
double cli_replay_config_real(struct cli_replay_config *config, const char *key);
bool cli_replay_config_is(struct cli_replay_config *config, const char *key, const char *value);

/* The cache of a server with these options, as the decision core takes it. */
struct cli_replay_cache {
    uint32_t tier_count;        /* 1: dram over nvme; 2: hbm over dram over nvme */
    bool inclusive, warm_compute, adaptive;
    char policy[32];
    char policy_below[32];      /* of dram below hbm; "" = as above */
    double half_life_tokens, prefill_share;
};

/* BASE_ECONFIG: quotas that cannot be tried. */
int cli_replay_config_cache(const struct cli_replay_config *config, struct cli_replay_cache *out,
                            struct base_err *err);

/* Slots of tiers.hbm.capacity or tiers.dram.capacity, as the server reckons them for the shape of
 * this trace: a capacity that is still the recorded one has the slots that the server had.
 * BASE_ECONFIG names the key. */
enum cli_replay_tier { CLI_REPLAY_HBM, CLI_REPLAY_DRAM };
int cli_replay_config_slots(const struct cli_replay_config *config,
                            const struct pred_trace_header *header, enum cli_replay_tier tier,
                            uint64_t *slots, struct base_err *err);

/* For who leaves hbm out: -EINVAL names what then has no effect and is not at its default. */
int cli_replay_cache_without_hbm(const struct cli_replay_cache *cache, struct base_err *err);

/* All keys with this beginning get their defaults again. */
void cli_replay_config_reset(struct cli_replay_config *config, const char *beginning);
/* One "key=value" over it. */
int cli_replay_config_set(struct cli_replay_config *config, const char *pair, struct base_err *err);
/* All keys and values, as a YAML that a server takes. */
void cli_replay_config_print(FILE *to, const struct cli_replay_config *config);

/* Tells about composed batches, losses and torn tails on stderr; of a trace that was read to its
 * end also where nothing closed it. */
void cli_replay_losses(const char *path, const struct pred_trace_reader *reader);
void cli_replay_health(const char *path, const struct pred_trace_reader *reader);

/* A pred_replay_progress's function; context is a struct cli_progress that was begun. A new `what`
 * begins it anew. */
void cli_replay_progress(void *context, const char *what, uint64_t done, uint64_t total);

/* Appends the counts as the inside of a JSON object. */
void cli_replay_json_counts(struct base_buf *to, const struct tier_counts *counts);
/* Appends "layer":N,"moe_layer":L, as the server names layers: by the model's number, and counted
 * over those with experts. */
void cli_replay_json_layer(struct base_buf *to, const struct pred_trace_header *header,
                           uint32_t layer);
/* Appends "by_phase":{"cold_start":{...},"prefill":{...},"decode":{...}}. */
void cli_replay_json_cells(struct base_buf *to, const struct tier_counts cells[TIER_CELL_COUNT]);

/* Prints the buffer as a line on stdout; exit code 0, or 1 when it ran out of memory. */
int cli_replay_print(struct base_buf *buf);

double cli_replay_rate(const struct tier_counts *counts);
extern const char *const cli_replay_cells[TIER_CELL_COUNT];

#endif
