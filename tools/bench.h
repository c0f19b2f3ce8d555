/* The sub-commands of tier-bench: one file bench_<name>.c each, listed in tier_bench.c. */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include "tools/cli.h"

extern const struct cli_command bench_cache_command, bench_decode_command, bench_io_command,
                                bench_machine_command, bench_predict_command,
                                bench_foresight_command, bench_kernels_command,
                                bench_prefill_command, bench_replay_command;

#endif
