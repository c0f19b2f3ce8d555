/* tier-replay compose: batches out of single sequences and an arrival file. */
#include <inttypes.h>

#include "predictor/compose.h"
#include "tools/replay.h"

static struct {
    const char *to, *arrivals;
    uint64_t users, chunk, step_ns, requests;
    bool quiet;
} flags = { .users = 8, .chunk = 512, .step_ns = 50000000 };

const struct cli_flag cli_replay_compose_flags[] = {
    { "output|o", CLI_TEXT, &flags.to, "FILE", "the trace to make" },
    { "arrivals", CLI_TEXT, &flags.arrivals, "FILE",
      "when requests come and how long they are: Azure's CSV or Mooncake's JSONL, also .xz" },
    { "users", CLI_UINT, &flags.users, "N", "requests that run at once (8)" },
    { "chunk", CLI_UINT, &flags.chunk, "N", "prompt tokens of one step (512)" },
    { "step", CLI_TIME, &flags.step_ns, "TIME", "what a step takes of the arrivals' time (50ms)" },
    { "requests", CLI_UINT, &flags.requests, "N", "at most so many; 0 = every sequence once" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "no summary" },
    { 0 },
};

int cli_replay_compose(int count, char **arguments)
{
    struct base_err err = { 0 };
    struct pred_trace_reader *from;
    struct pred_compose_stats stats;
    (void)count;
    if (!flags.to) return cli_misuse("-o FILE is needed: where the trace goes");
    if (!flags.arrivals) return cli_misuse("--arrivals FILE is needed: when requests come");
    if (flags.users < 1 || flags.users > PRED_COMPOSE_USERS_MAX) {
        return cli_misuse("--users: 1 to %d", PRED_COMPOSE_USERS_MAX);
    }
    if (flags.chunk < 1 || flags.chunk > PRED_STEP_TOKENS_MAX / 2) {
        return cli_misuse("--chunk: 1 to %d", PRED_STEP_TOKENS_MAX / 2);
    }
    if (flags.step_ns == 0) return cli_misuse("--step: a time above 0");
    struct pred_compose_options options = { .arrivals = flags.arrivals,
                                            .users = (uint32_t)flags.users,
                                            .chunk = (uint32_t)flags.chunk,
                                            .step_ns = flags.step_ns,
                                            .requests = flags.requests };
    int rc = pred_trace_reader_open(&from, arguments[0], &err);
    if (rc < 0) return cli_fail(1, &err);
    rc = pred_compose(from, flags.to, &options, &stats, &err);
    if (rc >= 0 && !flags.quiet) cli_replay_health(arguments[0], from);
    pred_trace_reader_close(from);
    if (rc < 0) return cli_fail(1, &err);
    if (!flags.quiet) {
        fprintf(stderr,
                "%s: composed, no server ran it: %" PRIu64 " requests of %" PRIu64
                " sequences, %" PRIu64 " tokens in %" PRIu64 " steps, %.2f generated at once on "
                "average, %" PRIu32 " at most\n",
                flags.to, stats.requests, stats.sequences, stats.tokens, stats.steps,
                stats.batch_mean, stats.batch_max);
    }
    return 0;
}
