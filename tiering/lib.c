/* The calls that only other engines use: settings as text, errors as text, plain counters. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "tiering/lib_priv.h"
#include "tiering/tiering_priv.h"

_Static_assert((int)TIER_LIB_ERROR == (int)BASE_LOG_ERROR &&
                   (int)TIER_LIB_DEBUG == (int)BASE_LOG_DEBUG,
               "the library's levels are the log's");

int tier_lib_why(int rc, const struct base_err *err, char *why, size_t why_bytes)
{
    if (why && why_bytes > 0) snprintf(why, why_bytes, "%s", rc < 0 ? err->text : "");
    return rc;
}

int tier_lib_folder_open(struct tier_store **out, const char *dir, const char *index, char *why,
                         size_t why_bytes)
{
    struct base_err err = { 0 };
    int rc = tier_store_open(out, dir, index, NULL, &err);
    if (rc == 0 && tier_store_order(*out) != TIER_ORDER_ROWS) {
        rc = base_err_set(&err, BASE_EMISMATCH, "%s: its experts %s, as Expertier's CPU kernels "
                          "take them: pack them in rows", tier_store_index_path(*out),
                          tier_store_order(*out) == TIER_ORDER_WOVEN ? "are woven"
                                                                     : "lie in tiles");
        tier_store_close(*out);
        *out = NULL;
    }
    return tier_lib_why(rc, &err, why, why_bytes);
}

/* Messages name the setting by its number; the caller has no command line. */
static int setting_set(const struct base_option_group *groups, size_t count,
                       const struct tier_lib_options *options, uint32_t i, struct base_err *err)
{
    static const char other[] = "; --options lists the known ones";
    const char *pair = options->settings[i], *equals = strchr(pair, '=');
    char key[BASE_OPTION_TEXT], name[32];
    struct base_option_source source = { .file = name };
    snprintf(name, sizeof name, "settings[%" PRIu32 "]", i);
    if (!equals || equals == pair ||
        base_str_format(key, sizeof key, "%.*s", (int)(equals - pair), pair) < 0) {
        return base_err_set(err, -EINVAL, "%s: \"%.100s\" is not key=value", name, pair);
    }
    int rc = base_option_set(groups, count, key, equals + 1, &source, true, err);
    char *hint = rc < 0 ? strstr(err->text, other) : NULL;
    if (hint) *hint = '\0';
    return rc;
}

static int settings_read(const struct tier_lib_options *options, struct tier_config *config,
                         struct tier_io_config *io, struct base_err *err)
{
    struct base_option_group groups[] = {
        { "tiers", tier_options, tier_option_count, config },
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, config },
        { "io", tier_io_options, tier_io_option_count, io },
    };
    size_t count = sizeof groups / sizeof groups[0];
    base_option_defaults(groups, count);
    for (uint32_t i = 0; i < options->setting_count; i++) {
        int rc = setting_set(groups, count, options, i, err);
        if (rc < 0) return rc;
    }
    if (config->nvme_index[0]) {
        return base_err_set(err, BASE_ECONFIG, "tiers.nvme.index: has no effect here: the store is "
                            "open already; give the path to tier_lib_folder_open");
    }
    return 0;
}

int tier_lib_open(struct tier **out, const struct tier_lib_options *options, char *why,
                  size_t why_bytes)
{
    struct base_err err = { 0 };
    struct tier_config config;
    struct tier_io_config io;
    *out = NULL;
    int rc = settings_read(options, &config, &io, &err);
    if (rc == 0) {
        struct tier_open_args args = {
            .config = &config, .io = &io, .store = options->store, .top_k = options->top_k,
        };
        rc = tier_open(out, &args, &err);
    }
    if (rc == 0) {
        tier_warm_restore(*out);
        (*out)->saves_at_close = true;
    }
    return tier_lib_why(rc, &err, why, why_bytes);
}

static void tier_fill(struct tier_lib_tier *to, const char *name,
                      const struct tier_tier_metrics *from)
{
    *to = (struct tier_lib_tier){
        .lookups = from->lookups, .hits = from->hits, .late = from->late, .misses = from->misses,
        .evictions = from->evictions, .slots = (uint64_t)from->slots,
        .resident_slots = (uint64_t)from->resident_slots,
        .capacity_bytes = (uint64_t)from->capacity_bytes,
    };
    snprintf(to->name, sizeof to->name, "%s", name);
}

static uint64_t to_ns(double seconds)
{
    return (uint64_t)(seconds * 1e9 + 0.5);
}

void tier_lib_stats_get(struct tier *tier, struct tier_lib_stats *to, size_t bytes)
{
    struct tier_snapshot snapshot;
    tier_snapshot(tier, &snapshot);
    const struct tier_io_metrics *io = &snapshot.io;
    struct tier_lib_stats stats = {
        .tier_count = snapshot.tier_count, .steps = snapshot.steps,
        .demand_reads = io->demand_reads, .demand_bytes = io->demand_bytes,
        .prefetch_reads = io->prefetch_reads, .prefetch_bytes = io->prefetch_bytes,
        .read_errors = io->read_errors, .checksum_failures = io->checksum_failures,
        .quarantined = (uint64_t)io->quarantined, .stuck_reads = io->stuck_reads,
        .wait_demand_ns = to_ns(io->wait_demand_seconds),
        .wait_late_ns = to_ns(io->wait_late_seconds),
        .wait_copy_ns = to_ns(io->wait_copy_seconds),
        .wait_slot_ns = to_ns(io->wait_slot_seconds),
    };
    for (uint32_t i = 0; i < snapshot.tier_count; i++) {
        tier_fill(&stats.tiers[i], snapshot.tier_names[i], &snapshot.tiers[i]);
    }
    /* A caller built against a longer struct sees zeros where this library has nothing. */
    memset(to, 0, bytes);
    memcpy(to, &stats, bytes < sizeof stats ? bytes : sizeof stats);
}

static void (*log_function)(void *context, enum tier_lib_level level, const char *text);
static void *log_context;

static void log_sink(enum base_log_level level, const char *area, const char *text)
{
    (void)area;
    log_function(log_context, (enum tier_lib_level)level, text);
}

void tier_lib_log_set(void (*log)(void *context, enum tier_lib_level level, const char *text),
                      void *context)
{
    log_function = log;
    log_context = context;
    base_log_sink_set(log ? log_sink : NULL);
}

const char *tier_lib_version(void)
{
    return EXPERTIER_VERSION;
}
