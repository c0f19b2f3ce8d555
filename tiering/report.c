#include "tiering/report.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "tiering/tiering_priv.h"

const char *tier_state_name(enum tier_state state)
{
    static const char *const names[] = { "off", "active", "degraded", "refused" };
    MUST((size_t)state < sizeof names / sizeof names[0]);
    return names[state];
}

struct tier_report_row *tier_report_add(struct tier_report *report, const char *feature,
                                        const char *requested)
{
    MUST(report->count < TIER_REPORT_ROWS_MAX);
    struct tier_report_row *row = &report->rows[report->count++];
    *row = (struct tier_report_row){ .feature = feature };
    snprintf(row->requested, sizeof row->requested, "%s", requested);
    return row;
}

void tier_report_note(struct tier_report_row *row, enum tier_state state, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(row->note, sizeof row->note, format, args);
    va_end(args);
    row->state = state;
}

static void count_as(struct tier_report_row *row, const char *counter, uint64_t count)
{
    row->counter = counter;
    row->count = count;
}

/* The value of an enumerated setting as it is written. */
static struct tier_report_row *add_choice(struct tier_report *report,
                                          const struct base_option *options, size_t count,
                                          const char *key, int value)
{
    char text[64] = "";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(options[i].key, key) == 0) {
            base_option_choice(&options[i], value, text, sizeof text);
        }
    }
    return tier_report_add(report, key, text);
}

static struct tier_report_row *add_tier_choice(struct tier_report *report, const char *key,
                                               int value)
{
    return add_choice(report, tier_options, tier_option_count, key, value);
}

/* -- reading ---------------------------------------------------------------------------------- */

static void report_io(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_snapshot *s = a->snapshot;
    const struct tier_io_metrics *m = &s->io;
    uint64_t reads = m->demand_reads + m->prefetch_reads + s->warm.restore_reads;
    bool ring = strstr(s->io_note, "io_uring: depth") != NULL;
    bool disk = ring || strstr(s->io_note, "threads") != NULL;
    struct tier_report_row *row = add_choice(report, tier_io_options, tier_io_option_count,
                                             "io.backend", a->io->backend);
    tier_report_note(row, s->backend_degraded ? TIER_DEGRADED : TIER_ACTIVE, "%s", s->io_note);
    if (s->backend_degraded) count_as(row, "reads_by_threads", reads);

    row = tier_report_add(report, "io.buffers", ring ? "registered" : "none");
    if (!ring) {
        tier_report_note(row, TIER_OFF, "only io_uring registers memory");
    } else if (s->buffers_degraded) {
        const char *why = strstr(s->io_note, "buffers not registered");
        tier_report_note(row, TIER_DEGRADED, "%s", why ? why : s->io_note);
        count_as(row, "reads", reads);
    } else {
        tier_report_note(row, TIER_ACTIVE, "the dram slots are io_uring's own buffers");
    }

    row = add_choice(report, tier_io_options, tier_io_option_count, "io.direct", a->io->direct);
    if (!disk || a->io->direct == TIER_IO_DIRECT_OFF) {
        tier_report_note(row, TIER_OFF, "%s", disk ? "reads go through the page cache"
                                                   : "this backend does not read from a disk");
    } else if (s->direct_degraded) {
        tier_report_note(row, TIER_DEGRADED, "%s", s->io_note);
        count_as(row, "reads", reads);
    } else {
        tier_report_note(row, TIER_ACTIVE, "O_DIRECT, past the page cache");
    }

    if (!a->io->faults[0]) return;
    row = tier_report_add(report, "io.faults", a->io->faults);
    tier_report_note(row, TIER_ACTIVE, "reads fail on purpose");
    count_as(row, "faults_injected", m->faults_injected);
}

static void report_bytes(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_io_metrics *m = &a->snapshot->io;
    uint32_t files = tier_store_files(a->store), copies = tier_store_copies(a->store);
    struct tier_report_row *row = add_tier_choice(report, "tiers.verify", a->config->verify);
    tier_report_note(row, TIER_ACTIVE, "%s", a->config->verify == 0
                         ? "XXH3 over every expert at every read"
                         : "XXH3 at an expert's first read: what goes bad later is not seen");
    count_as(row, "checksum_failures", m->checksum_failures);

    const char *layout = !tier_store_packed(a->store) ? "checkpoint"
                         : copies > 1                 ? "mirror"
                         : files > 1                  ? "stripe"
                                                      : "pack";
    row = tier_report_add(report, "layout", layout);
    if (m->quarantined > 0) {
        tier_report_note(row, TIER_DEGRADED, "%" PRIu64 " experts cannot be read from any copy: "
                         "what needs them fails; tier-pack verify names them", m->quarantined);
        count_as(row, "quarantined", m->quarantined);
    } else if (copies > 1 && m->mirror_reads > 0) {
        tier_report_note(row, TIER_DEGRADED, "a copy of some experts is bad or gone, the other one "
                         "is read; tier-pack verify names them");
        count_as(row, "mirror_reads", m->mirror_reads);
    } else {
        tier_report_note(row, TIER_ACTIVE, "%" PRIu32 " file%s, %" PRIu32 " %s of each expert",
                         files, files == 1 ? "" : "s", copies, copies == 1 ? "copy" : "copies");
    }
}

/* -- memory ----------------------------------------------------------------------------------- */

static void report_memory(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_snapshot *s = a->snapshot;
    const struct tier_tier_metrics *dram = &s->tiers[s->tier_count - 1];
    struct tier_report_row *row = add_tier_choice(report, "tiers.dram.pin", a->config->dram_pin);
    enum tier_state held = a->config->dram_pin == TIER_PIN_OFF ? TIER_OFF : TIER_ACTIVE;
    tier_report_note(row, s->pin_degraded ? TIER_DEGRADED : held, "%s", s->pin_note);
    count_as(row, "pinned_bytes", dram->pinned_bytes);

    row = tier_report_add(report, "tiers.dram.huge_pages", "where they help");
    enum tier_state huge = strncmp(s->huge_note, "huge pages", 10) == 0 ? TIER_ACTIVE : TIER_OFF;
    tier_report_note(row, s->huge_degraded ? TIER_DEGRADED : huge, "%s", s->huge_note);

    row = tier_report_add(report, "tiers.dram.numa", a->config->dram_numa);
    bool none = strcmp(a->config->dram_numa, "none") == 0;
    tier_report_note(row, s->numa_degraded ? TIER_DEGRADED : none ? TIER_OFF : TIER_ACTIVE, "%s",
                     s->numa_note);

    row = tier_report_add(report, "tiers.dram.capacity", a->config->dram_capacity);
    tier_report_note(row, TIER_ACTIVE, "%" PRIu64 " slots in service", dram->slots);
}

static void report_hbm(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_snapshot *s = a->snapshot;
    bool hbm = s->tier_count == 2, compute = a->config->warm_experts == TIER_WARM_COMPUTE;
    struct tier_report_row *row = add_tier_choice(report, "tiers.hbm.device",
                                                  a->config->hbm_device);
    if (!hbm) {
        tier_report_note(row, TIER_OFF, "no hbm tier: experts run where dram holds them");
    } else if (s->device_lost) {
        tier_report_note(row, TIER_REFUSED, "%s", s->device_note);
    } else {
        tier_report_note(row, s->io.copy_errors > 0 ? TIER_DEGRADED : TIER_ACTIVE, "%s%s",
                         s->device_note, s->io.copy_errors > 0 ? "; copies have failed" : "");
        count_as(row, "copy_errors", s->io.copy_errors);
    }

    row = add_tier_choice(report, "tiers.inclusion", a->config->inclusion);
    static const char *const ways[] = { "what hbm lets go of is copied down while dram has a slot "
                                        "for it, else dropped", "dram keeps what moved up" };
    tier_report_note(row, hbm ? TIER_ACTIVE : TIER_OFF, "%s",
                     hbm ? ways[a->config->inclusion == 1] : "one resident tier");
    if (hbm) count_as(row, "demotions_dropped", s->io.demotions_dropped);

    row = add_tier_choice(report, "tiers.warm_experts", a->config->warm_experts);
    tier_report_note(row, hbm ? TIER_ACTIVE : TIER_OFF, "%s",
                     !hbm      ? "one resident tier"
                     : compute ? "the CPU uses experts of dram where they lie"
                               : "experts of dram are copied to hbm first");
    if (compute) count_as(row, "in_place", s->tiers[s->tier_count - 1].in_place);

    row = tier_report_add(report, "bits", "same");
    if (hbm && compute && !s->device_host_readable) {
        tier_report_note(row, TIER_DEGRADED, "device-dependent: where an expert lies decides whose "
                         "arithmetic it meets");
    } else {
        tier_report_note(row, TIER_ACTIVE, "wherever an expert lies, the same arithmetic meets it");
    }
}

/* -- decisions -------------------------------------------------------------------------------- */

/* Of one tier or the other. */
static bool asks_pinned(const struct tier_config *c)
{
    char names[2][32];
    base_option_choice(tier_option_of("policy.eviction"), c->eviction, names[0], 32);
    base_option_choice(tier_option_of("policy.eviction_dram"), c->eviction_dram, names[1], 32);
    return strcmp(names[0], "pinned") == 0 || strcmp(names[1], "pinned") == 0;
}

static void report_policy(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_config *c = a->config;
    struct tier_report_row *row = add_tier_choice(report, "policy.eviction", c->eviction);
    char policy[32];
    base_option_choice(tier_option_of("policy.eviction"), c->eviction, policy, sizeof policy);
    bool blind = strcmp(policy, "lru_with_prediction") == 0 && !a->hints;
    tier_report_note(row, blind ? TIER_DEGRADED : TIER_ACTIVE, "%s",
                     blind ? "evicts by frequency and recency: no predictor gives hints" : "");
    if (asks_pinned(c)) {
        uint64_t fixed = a->snapshot->fixed_experts;
        tier_report_note(row, fixed > 0 ? TIER_ACTIVE : TIER_DEGRADED, "%s",
                         fixed > 0 ? "pinned keeps what was resident when it began"
                                   : "pinned found nothing resident when it began, and works as "
                                     "lru: start again once tiers.warm.path holds a set");
        count_as(row, "pinned_experts", fixed);
    }
    row = tier_report_add(report, "policy.quotas", c->quotas);
    bool adaptive = strcmp(c->quotas, "adaptive") == 0, equal = strcmp(c->quotas, "equal") == 0;
    tier_report_note(row, equal ? TIER_OFF : TIER_ACTIVE, "%s",
                     equal      ? "every layer has the same number of slots"
                     : adaptive ? "slots follow what layers miss"
                                : "slots by the shares that were given");
}

static void report_prefetch(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_snapshot *s = a->snapshot;
    struct tier_report_row *row = add_choice(report, tier_prefetch_options,
                                             tier_prefetch_option_count, "prefetch.enabled",
                                             a->config->prefetch);
    bool wanted = a->hints && a->config->prefetch != 0;
    bool none = wanted && strncmp(s->prefetch_note, "off:", 4) == 0;
    tier_report_note(row, !wanted                  ? TIER_OFF
                          : none                   ? TIER_REFUSED
                          : s->prefetch_degraded   ? TIER_DEGRADED
                                                   : TIER_ACTIVE,
                     "%s", a->hints ? s->prefetch_note : "no predictor");
    if (wanted) count_as(row, "prefetch_refused", s->io.prefetch_refused);

    row = add_choice(report, tier_prefetch_options, tier_prefetch_option_count,
                     "prefetch.governor", a->config->prefetch_governor);
    bool runs = wanted && !none;
    tier_report_note(row, runs ? TIER_ACTIVE : TIER_OFF, "%s",
                     runs ? s->governor_note : "nothing is read ahead");
    if (runs) count_as(row, "governor_switches", s->io.governor_switches);
}

static void report_warm(struct tier_report *report, const struct tier_report_args *a)
{
    const struct tier_snapshot *s = a->snapshot;
    struct tier_report_row *row = tier_report_add(report, "tiers.warm.path", a->config->warm_path);
    if (!a->config->warm_path[0]) {
        tier_report_note(row, TIER_OFF, "starts cold, saves nothing");
    } else if (s->warm.save_errors > 0) {
        tier_report_note(row, TIER_DEGRADED, "the resident set could not be saved; the log says "
                         "why; %.160s", s->warm_note);
        count_as(row, "save_errors", s->warm.save_errors);
    } else {
        tier_report_note(row, s->warm_refused ? TIER_REFUSED : TIER_ACTIVE, "%s", s->warm_note);
        count_as(row, "restore_experts", s->warm.restore_experts);
    }
}

void tier_report_tiers(struct tier_report *report, const struct tier_report_args *a)
{
    report_io(report, a);
    report_bytes(report, a);
    report_memory(report, a);
    report_hbm(report, a);
    report_policy(report, a);
    report_prefetch(report, a);
    report_warm(report, a);
}
