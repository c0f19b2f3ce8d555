/* tier-bench decode: tokens a second of generating, and how much of the floor that is.
 *
 * The floor of a token is the longer of two times, since they can overlap: the bytes that its step
 * touches at the measured rate of memory, and the bytes it misses at the measured rate of the disk.
 * Memory is read before and after each round, and the round held against the mean of the two; the
 * disk is asked after each round for what the round missed. It may give more the second time than
 * it gave the first.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench.h"
#include "tools/bench_stack.h"

static struct bench_flags flags = { .model = "models/pebble", .rounds = 5, .seed = 1 };
static uint64_t tokens = 64, prompt_tokens = 16, batch = 1;

struct result {
    double rate, spread, bytes, missed, waits;
    double ahead, wasted;       /* bytes read ahead of need; those of them that nobody asked for */
    double resident, hit;       /* of the lookups; hit: readable at once */
    double memory_rate, disk_rate, floor_rate, fraction, fraction_spread;
    bool floor;                 /* the CPU computes: its memory is what a token is read from */
};

static int measure(struct bench_stack *b, struct result *r, struct base_err *err)
{
    double rates[BENCH_ROUNDS_MAX], reads[BENCH_ROUNDS_MAX], shares[BENCH_ROUNDS_MAX];
    double disks[BENCH_ROUNDS_MAX] = { 0 }, floors[BENCH_ROUNDS_MAX];
    double bytes = 0, missed = 0, waits = 0, times = 0, made = 0, spread;
    double lookups = 0, hits = 0, late = 0;
    struct bench_memory memory = { 0 };
    r->floor = !b->stack.device;
    int rc = r->floor ? bench_memory_open(&memory, b->threads) : 0;
    if (rc < 0) return base_err_set(err, -ENOMEM, "no memory to measure the rate of memory with");
    rc = bench_warm(b, err);
    b->batch = (uint32_t)batch;
    for (uint64_t round = 0; round < flags.rounds && rc == 0; round++) {
        /* Only steps that do nothing else are measured: no prompt among them, every sequence
         * there. */
        double before_rate = r->floor ? bench_memory_read(&memory, false) : 0;
        bench_reset(b);
        rc = bench_generate(b, (uint32_t)batch, (uint32_t)prompt_tokens, (uint32_t)tokens + 1,
                            flags.seed + round * 100, err);
        if (rc == 0 && b->steps == 0) {
            rc = base_err_set(err, BASE_ECONFIG,
                              "no step had all %u sequences: the first end before the last have "
                              "read their prompts (raise --tokens or scheduler.max_num_seqs)",
                              b->batch);
        }
        if (rc < 0) break;
        rates[round] = (double)b->step_tokens * 1e9 / (double)b->step_ns;
        double touched = (double)(b->steps * b->dense_step_bytes + b->expert_bytes + b->kv_bytes);
        if (r->floor) {
            reads[round] = (before_rate + bench_memory_read(&memory, false)) / 2;
            if (b->counters.missed_bytes > 0) disks[round] = bench_disk_rate(b);
            double seconds = touched / reads[round], disk = 0;
            if (disks[round] > 0) disk = (double)b->counters.missed_bytes / disks[round];
            if (disk > seconds) seconds = disk;
            floors[round] = (double)b->step_tokens / seconds;
            shares[round] = rates[round] / floors[round];
        }
        bytes += touched;
        missed += (double)b->counters.missed_bytes;
        r->ahead += (double)b->counters.ahead_bytes;
        r->wasted += (double)b->counters.wasted_bytes;
        lookups += (double)b->counters.lookups;
        hits += (double)b->counters.hits;
        late += (double)b->counters.late;
        waits += (double)b->wait_ns;
        times += (double)b->step_ns;
        made += (double)b->step_tokens;
    }
    if (r->floor) bench_memory_close(&memory);
    if (rc < 0) return rc;
    r->rate = bench_median(rates, flags.rounds, &r->spread);
    r->bytes = bytes / made;
    r->missed = missed / made;
    r->ahead /= made;
    r->wasted /= made;
    r->resident = lookups > 0 ? (hits + late) / lookups : 0;
    r->hit = lookups > 0 ? hits / lookups : 0;
    r->waits = waits / times;
    if (!r->floor) return 0;
    r->memory_rate = bench_median(reads, flags.rounds, &spread);
    r->fraction = bench_median(shares, flags.rounds, &r->fraction_spread);
    r->floor_rate = bench_median(floors, flags.rounds, &spread);
    r->disk_rate = bench_median(disks, flags.rounds, &spread);
    return 0;
}

static void print_json(const struct bench_stack *b, const struct result *r)
{
    putchar('{');
    bench_print_model(b);
    printf(",\"threads\":%u,\"batch\":%llu,\"tokens\":%llu,\"rounds\":%llu,"
           "\"tokens_per_second\":%.3f,\"spread\":%.4f,\"bytes_per_token\":%.0f,"
           "\"expert_bytes\":%llu,"
           "\"missed_bytes_per_token\":%.0f,\"read_ahead_bytes_per_token\":%.0f,"
           "\"wasted_bytes_per_token\":%.0f,\"resident_rate\":%.5f,\"hit_rate\":%.5f,"
           "\"wait_share\":%.4f,",
           b->threads, (unsigned long long)batch, (unsigned long long)tokens,
           (unsigned long long)flags.rounds, r->rate, r->spread, r->bytes,
           (unsigned long long)tier_store_expert_bytes(b->stack.store), r->missed, r->ahead,
           r->wasted, r->resident, r->hit, r->waits);
    if (r->floor) {
        printf("\"memory_bytes_per_second\":%.0f,\"disk_bytes_per_second\":%.0f,"
               "\"floor_tokens_per_second\":%.3f,\"floor_fraction\":%.4f,"
               "\"floor_fraction_spread\":%.4f,",
               r->memory_rate, r->disk_rate, r->floor_rate, r->fraction, r->fraction_spread);
    } else {
        fputs("\"floor_tokens_per_second\":null,", stdout);
    }
    bench_print_account(b, true);
    puts("}");
}

static void print_text(const struct bench_stack *b, const struct result *r)
{
    printf("%s, %u threads, %llu in the batch: %.2f tokens/s, median of %llu (spread %.0f%%)\n",
           b->stack.shape.name, b->threads, (unsigned long long)batch, r->rate,
           (unsigned long long)flags.rounds, 100 * r->spread);
    printf("  %.1f MB touched a token", r->bytes / 1e6);
    if (!r->floor) {
        printf(", %.1f MB missed, %.0f%% of the time waiting\n  floor: none: a token is read from "
               "the card's memory, whose rate is not measured here (tests/gpu/run.sh does)\n",
               r->missed / 1e6, 100 * r->waits);
        bench_print_account(b, false);
        return;
    }
    printf(", memory reads %.1f GB/s", r->memory_rate / 1e9);
    if (r->missed > 0) {
        printf("\n  %.1f MB missed a token, %.1f MB read ahead, %.1f%% of the lookups readable "
               "at once; the disk reads %.2f GB/s; %.0f%% of the time waiting",
               r->missed / 1e6, r->ahead / 1e6, 100 * r->hit, r->disk_rate / 1e9, 100 * r->waits);
    }
    printf("\n  floor %.2f tokens/s: %.0f%% of it reached (median; spread %.0f%%)\n", r->floor_rate,
           100 * r->fraction, 100 * r->fraction_spread);
    bench_print_account(b, false);
}

static int run(int count, char **arguments)
{
    static struct bench_stack bench;
    struct base_err err = { 0 };
    struct result result = { 0 };
    (void)count;
    (void)arguments;
    if (flags.rounds < 1 || flags.rounds > BENCH_ROUNDS_MAX) {
        return cli_misuse("--rounds: 1 to %d", BENCH_ROUNDS_MAX);
    }
    if (tokens < 1 || tokens > 100000) return cli_misuse("--tokens: 1 to 100000");
    if (prompt_tokens < 1 || prompt_tokens > 100000) {
        return cli_misuse("--prompt-tokens: 1 to 100000");
    }
    if (batch < 1 || batch > 4096) return cli_misuse("--batch: 1 to 4096");
    int rc = bench_open(&bench, &flags, &err);
    if (rc == 0 && batch > bench.stack.config.engine.max_num_seqs) {
        rc = base_err_set(
            &err, BASE_ECONFIG, "--batch: %llu is more than scheduler.max_num_seqs %llu",
            (unsigned long long)batch, (unsigned long long)bench.stack.config.engine.max_num_seqs);
    }
    if (rc == 0) rc = measure(&bench, &result, &err);
    if (rc == 0) (flags.json ? print_json : print_text)(&bench, &result);
    bench_close(&bench);
    return rc < 0 ? cli_fail(1, &err) : 0;
}

static const struct cli_flag decode_flags[] = {
    { "model", CLI_TEXT, &flags.model, "DIR", "the model (models/pebble)" },
    { "tokens", CLI_UINT, &tokens, "N", "tokens generated in a round (64)" },
    { "prompt-tokens", CLI_UINT, &prompt_tokens, "N", "length of the prompt before them (16)" },
    { "batch", CLI_UINT, &batch, "N", "sequences at the same time (1)" },
    { "rounds", CLI_UINT, &flags.rounds, "N", "rounds (5)" },
    { "seed", CLI_UINT, &flags.seed, "N", "seed of prompts and sampling (1)" },
    { "config", CLI_TEXT, &flags.config, "FILE", "YAML settings; see tier-server --options" },
    { "set", CLI_REPEATED, &flags.set, "KEY=VALUE",
      "one setting, over the file's; may be repeated" },
    { "routing", CLI_TEXT, &flags.routing, "uniform|TRACE",
      "experts that the gates are made to choose: drawn, or a recorded trace's" },
    { "profile", CLI_TEXT, &flags.profile, "FILE",
      "write where the time went, as Chrome trace events" },
    { "json", CLI_SWITCH, &flags.json, NULL, "print the result as JSON" },
    { "quiet", CLI_SWITCH, &flags.quiet, NULL, "show no progress" },
    { 0 },
};

const struct cli_command bench_decode_command = {
    .name = "decode",
    .arguments = "",
    .text = "tokens a second of generating, against the machine's floor",
    .details = "Opens the model as the server does, with all experts in DRAM unless a setting says "
               "otherwise, warms\n"
               "the cache, then generates. The floor is the longer of: bytes touched a token over "
               "the measured rate\n"
               "of memory, bytes missed a token over the measured rate of the disk. On a card\n"
               "there is none here: tests/gpu/run.sh measures what its memory gives.",
    .flags = decode_flags,
    .run = run,
};
