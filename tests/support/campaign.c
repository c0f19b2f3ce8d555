#include "tests/support/campaign.h"

#include <check.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "predictor/replay.h"
#include "tests/support/make_tiny.h"
#include "tiering/io.h"

/* -- the model in its layouts ----------------------------------------------------------------- */

static void pack(struct tier_store *source, char (*folders)[3000], enum tier_pack_mode mode,
                 char *index)
{
    struct base_err err = { 0 };
    const char *dirs[2] = { folders[0], folders[1] };
    struct tier_pack_options options = { .dirs = dirs, .dir_count = 2, .mode = mode, .threads = 2 };
    int rc = tier_store_repack(source, &options, NULL, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    snprintf(index, 3100, "%s/expertier.index", folders[0]);
}

/* A resident set that was saved, for the policy that keeps one: half of the experts. */
static void save_set(struct campaign *c)
{
    static struct run run;
    char path[3200], index[3200];
    const char *settings[] = { path, index, "tiers.dram.capacity=50%", NULL };
    uint32_t count, *ids;
    snprintf(c->warm, sizeof c->warm, "%s/saved.warm", c->folders[0]);
    snprintf(path, sizeof path, "tiers.warm.path=%s", c->warm);
    snprintf(index, sizeof index, "tiers.nvme.index=%s", c->index[CAMPAIGN_SHARDS]);
    run_open(&run, run_pebble(), settings);
    ids = run_encode(&run, "In the beginning God created the heaven and the earth.", &count);
    struct eng_request request = {
        .prompt = ids, .prompt_tokens = count, .max_tokens = 16, .sampling = { .top_p = 1 },
    };
    run_submit(&run, &request);
    run_finish(&run);
    run_close(&run);
    free(ids);
    ck_assert_int_eq(access(c->warm, R_OK), 0);
}

/* A file of this run's own with that set: it will be written again at the end. */
static void copy_set(const struct campaign *c, const char *to)
{
    char line[4096];
    size_t size;
    FILE *from = fopen(c->warm, "rb"), *into = fopen(to, "wb");
    ck_assert(from && into);
    while ((size = fread(line, 1, sizeof line, from)) > 0) fwrite(line, 1, size, into);
    ck_assert(fclose(from) == 0 && fclose(into) == 0);
}

void campaign_begin(struct campaign *c)
{
    struct model_shape shape;
    struct tier_store *source;
    struct base_err err = { 0 };
    for (int i = 0; i < CAMPAIGN_FOLDERS; i++) {
        tiny_folder(c->folders[i], sizeof c->folders[i], "campaign");
    }
    snprintf(c->index[CAMPAIGN_SHARDS], sizeof c->index[0], "%s/shards.index", c->folders[0]);
    snprintf(c->trace, sizeof c->trace, "%s/run.trace", c->folders[0]);
    const char *index = c->index[CAMPAIGN_SHARDS];
    int rc = model_shape_load(&shape, run_pebble(), &err);
    if (rc == 0) rc = tier_store_index(run_pebble(), index, &shape, 2, NULL, &err);
    if (rc == 0) rc = tier_store_open(&source, run_pebble(), index, &shape, &err);
    ck_assert_msg(rc == 0, "%s", err.text);
    pack(source, c->folders + 1, TIER_PACK_STRIPE, c->index[CAMPAIGN_STRIPE]);
    pack(source, c->folders + 3, TIER_PACK_MIRROR, c->index[CAMPAIGN_MIRROR]);
    tier_store_close(source);
    save_set(c);
}

void campaign_end(struct campaign *c)
{
    for (int i = 0; i < CAMPAIGN_FOLDERS; i++) tiny_remove(c->folders[i]);
}

/* -- settings --------------------------------------------------------------------------------- */

void campaign_clear(struct campaign_settings *s)
{
    s->count = 0;
    s->at[0] = NULL;
}

void campaign_set(struct campaign_settings *s, const char *format, ...)
{
    va_list args;
    ck_assert_uint_lt(s->count, CAMPAIGN_SETTINGS_MAX);
    va_start(args, format);
    int size = vsnprintf(s->text[s->count], sizeof s->text[0], format, args);
    va_end(args);
    ck_assert_int_lt(size, (int)sizeof s->text[0]);
    s->at[s->count] = s->text[s->count];
    s->at[++s->count] = NULL;
}

const char *campaign_show(const struct campaign_settings *s)
{
    static char line[CAMPAIGN_SETTINGS_MAX * sizeof s->text[0]];
    size_t size = 0;
    line[0] = '\0';
    for (unsigned i = 0; i < s->count; i++) {
        size += (size_t)snprintf(line + size, sizeof line - size, "%s%s", i ? " " : "", s->text[i]);
    }
    return line;
}

static bool backend_works(const char *name)
{
    struct tier_io_config config;
    struct base_option_group group = { "io", tier_io_options, tier_io_option_count, &config };
    struct base_err err = { 0 };
    struct tier_io *io;
    char pair[64];
    base_option_defaults(&group, 1);
    snprintf(pair, sizeof pair, "io.backend=%s", name);
    ck_assert_int_eq(base_option_set_pair(&group, 1, pair, &err), 0);
    if (tier_io_create(&io, &config, base_clock_real(), &err) < 0) {
        printf("%s is not tried here: %s\n", name, err.text);
        return false;
    }
    tier_io_destroy(io);
    return true;
}

const char *campaign_backend(struct base_rng *rng)
{
    static const char *const all[] = { "threads", "sim", "io_uring" };
    static unsigned works;
    if (works == 0) works = backend_works(all[2]) ? 3 : 2;
    return all[base_rng_below(rng, works)];
}

const char *campaign_policy(unsigned n)
{
    static char copy[256], *names[32];
    static unsigned count;
    for (size_t i = 0; count == 0 && i < tier_option_count; i++) {
        char *rest = NULL;
        if (strcmp(tier_options[i].key, "policy.eviction") != 0) continue;
        snprintf(copy, sizeof copy, "%s", tier_options[i].limits);
        for (char *name = strtok_r(copy, "|", &rest); name; name = strtok_r(NULL, "|", &rest)) {
            names[count++] = name;
        }
    }
    return n < count ? names[n] : NULL;
}

void campaign_eviction(const struct campaign *c, struct campaign_settings *s, const char *policy)
{
    char own[3200];
    campaign_set(s, "policy.eviction=%s", policy);
    if (strcmp(policy, "pinned") != 0) return;
    snprintf(own, sizeof own, "%s/run.warm", c->folders[0]);
    copy_set(c, own);
    campaign_set(s, "tiers.warm.path=%s", own);
}

void campaign_prediction(struct campaign_settings *s, struct base_rng *rng)
{
    static const char *const enabled[] = { "false", "true", "auto", "auto", "auto", "auto" };
    char kinds[256], *names[16], *rest = NULL;
    unsigned count = 0;
    snprintf(kinds, sizeof kinds, "%s",
             base_option_find(&(struct base_option_group){ "predictor", eng_advice_options,
                                                           eng_advice_option_count, NULL },
                              1, "predictor.kind")->limits);
    for (char *name = strtok_r(kinds, "|", &rest); name; name = strtok_r(NULL, "|", &rest)) {
        if (strcmp(name, "none") != 0) names[count++] = name;
    }
    if (base_rng_below(rng, 3) == 0) {
        campaign_set(s, "predictor.kind=none");
        return;
    }
    campaign_set(s, "predictor.kind=%s", names[base_rng_below(rng, count)]);
    campaign_set(s, "predictor.lead=%llu", (unsigned long long)base_rng_below(rng, 8) + 1);
    campaign_set(s, "predictor.hints_max=%llu", (unsigned long long)base_rng_below(rng, 70) + 1);
    campaign_set(s, "predictor.rows_max=%llu", (unsigned long long)base_rng_below(rng, 40) + 1);
    campaign_set(s, "predictor.whole_pass=%s", base_rng_below(rng, 2) ? "true" : "false");
    campaign_set(s, "predictor.tokens_max=512");
    campaign_set(s, "prefetch.enabled=%s", enabled[base_rng_below(rng, 6)]);
    campaign_set(s, "prefetch.governor=%s", base_rng_below(rng, 3) ? "fixed" : "auto");
    campaign_set(s, "prefetch.inflight=%lluKiB", (unsigned long long)base_rng_below(rng, 2000));
    campaign_set(s, "prefetch.bandwidth_share=%llu%%",
                 (unsigned long long)base_rng_below(rng, 100) + 1);
    campaign_set(s, "prefetch.experts_per_layer_max=%llu",
                 (unsigned long long)base_rng_below(rng, 12) + 1);
    campaign_set(s, "prefetch.probability_min=%llu%%", (unsigned long long)base_rng_below(rng, 60));
    campaign_set(s, "prefetch.waste_max=%llu%%", (unsigned long long)base_rng_below(rng, 101));
}

/* -- runs ------------------------------------------------------------------------------------- */

bool campaign_open_run(const struct campaign *c, struct run *run, struct campaign_settings *s)
{
    struct base_err err = { 0 };
    campaign_set(s, "trace.path=%s", c->trace);
    campaign_set(s, "trace.buffer=64MiB");
    int rc = run_try_open(run, run_pebble(), s->at, &err);
    if (rc == 0) return true;
    ck_assert_msg(rc == BASE_EBUDGET || rc == BASE_ECONFIG, "%s: %s", campaign_show(s), err.text);
    run_close(run);
    unlink(c->trace);
    return false;
}

static void say_counts(const struct pred_exact *exact)
{
    for (uint32_t t = 0; t < exact->tier_count; t++) {
        for (int cell = 0; cell < TIER_CELL_COUNT; cell++) {
            const struct tier_counts *a = &exact->live.cells[t][cell];
            const struct tier_counts *b = &exact->replayed.cells[t][cell];
            printf("tier %u cell %d: live %llu/%llu/%llu, replayed %llu/%llu/%llu\n", t, cell,
                   (unsigned long long)a->lookups, (unsigned long long)a->resident,
                   (unsigned long long)a->evictions, (unsigned long long)b->lookups,
                   (unsigned long long)b->resident, (unsigned long long)b->evictions);
        }
    }
}

uint64_t campaign_replay(const struct campaign *c, const char *what)
{
    struct pred_trace_reader *reader;
    static struct pred_exact exact;
    struct base_err err = { 0 };
    int rc = pred_trace_reader_open(&reader, c->trace, &err);
    ck_assert_msg(rc == 0, "%s: %s", what, err.text);
    rc = pred_replay_exact(reader, &exact, NULL, &err);
    ck_assert_msg(rc == 0, "%s: %s", what, err.text);
    pred_trace_reader_close(reader);
    if (!exact.same) say_counts(&exact);
    ck_assert_msg(exact.same, "%s: the replay counts otherwise than the live run", what);
    ck_assert_int_eq(unlink(c->trace), 0);
    return exact.events;
}

/* -- watchdog and length ---------------------------------------------------------------------- */

static char hangs[160];

static void on_alarm(int signal)
{
    (void)signal;
    if (write(STDOUT_FILENO, hangs, strlen(hangs)) < 0) _exit(2);
    abort();
}

void campaign_watch(unsigned seconds, const char *what, uint64_t seed)
{
    snprintf(hangs, sizeof hangs, "%s hangs: seed %llu, %u s\n", what, (unsigned long long)seed,
             seconds);
    signal(SIGALRM, on_alarm);
    alarm(seconds);
}

uint64_t campaign_rounds(int argc, char **argv, uint64_t usual, uint64_t *until_ns)
{
    const char *minutes = getenv("EXPERTIER_SOAK_MINUTES");
    uint64_t rounds = usual, span = 0;
    *until_ns = 0;
    if (argc < 2) return rounds;
    if (base_str_u64_parse(argv[1], &rounds) < 0 ||
        (minutes && base_str_u64_parse(minutes, &span) < 0)) {
        fprintf(stderr, "usage: %s [ROUNDS], EXPERTIER_SOAK_MINUTES a whole number\n", argv[0]);
        exit(2);
    }
    if (span > 0) *until_ns = base_now_ns() + span * UINT64_C(60000000000);
    return rounds;
}
