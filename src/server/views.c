#include "server/views.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* null where nothing was looked up: a rate of nothing is not 0. */
static void put_rate(struct base_buf *to, const char *name, uint64_t part, uint64_t whole)
{
    if (whole == 0) {
        base_buf_printf(to, ",\"%s\":null", name);
    } else {
        base_buf_printf(to, ",\"%s\":%.6f", name, (double)part / (double)whole);
    }
}

static void put_loads(struct base_buf *to, const struct tier_layer_stats *s,
                      const struct base_hist *hist)
{
    static const struct {
        const char *name;
        double share;
    } quantiles[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 } };
    base_buf_printf(to, ",\"loads\":%llu,\"load_seconds_mean\":%.9g,\"load_seconds_min\":%.9g,"
                    "\"load_seconds_max\":%.9g", (unsigned long long)s->load_count,
                    s->load_count ? (double)s->load_ns_sum / (double)s->load_count / 1e9 : 0,
                    s->load_count ? (double)s->load_ns_min / 1e9 : 0, (double)s->load_ns_max / 1e9);
    for (size_t q = 0; q < sizeof quantiles / sizeof quantiles[0]; q++) {
        base_buf_printf(to, ",\"load_seconds_%s\":%.9g", quantiles[q].name,
                        (double)base_hist_quantile(hist, quantiles[q].share) / 1e9);
    }
}

static void put_layer(struct base_buf *to, const struct tier_layer_stats *s, bool hbm)
{
    base_buf_printf(to, ",\"lookups\":%llu,\"resident\":%llu,\"misses\":%llu,\"evictions\":%llu",
                    (unsigned long long)s->lookups, (unsigned long long)s->resident,
                    (unsigned long long)s->misses, (unsigned long long)s->evictions);
    put_rate(to, "resident_rate", s->resident, s->lookups);
    if (hbm) {
        base_buf_printf(to, ",\"dram_lookups\":%llu,\"dram_resident\":%llu,\"dram_in_place\":%llu",
                        (unsigned long long)s->below_lookups,
                        (unsigned long long)s->below_resident,
                        (unsigned long long)s->below_in_place);
        put_rate(to, "dram_resident_rate", s->below_resident, s->below_lookups);
    }
    base_buf_printf(to, ",\"hinted\":%llu,\"prefetched\":%llu,\"prefetch_used\":%llu",
                    (unsigned long long)s->hinted, (unsigned long long)s->prefetched,
                    (unsigned long long)s->prefetch_used);
}

int srv_views_layers(struct base_buf *to, struct eng_stack *stack)
{
    uint32_t count = tier_store_layers(stack->store), first = tier_store_layer_first(stack->store);
    bool hbm = tier_decide_config_of(stack->tier)->tier_count == 2;
    struct tier_layer_stats *layers = calloc(count ? count : 1, sizeof *layers);
    struct base_hist *hist = malloc(sizeof *hist);
    int rc = layers && hist ? tier_snapshot_layers(stack->tier, layers, count) : -ENOMEM;
    base_buf_puts(to, ",\"layers\":[");
    for (uint32_t l = 0; rc >= 0 && l < count; l++) {
        base_buf_printf(to, "%s{\"layer\":%u,\"moe_layer\":%u", l ? "," : "", first + l, l);
        put_layer(to, &layers[l], hbm);
        tier_load_latency(stack->tier, l, hist);
        put_loads(to, &layers[l], hist);
        base_buf_puts(to, "}");
    }
    base_buf_puts(to, "]");
    free(hist);
    free(layers);
    return rc;
}

int srv_views_order(const char *name, enum srv_views_order *order)
{
    static const char *const names[] = { "hot", "cold", "missed", "slow" };
    for (int i = 0; i <= SRV_SLOW; i++) {
        if (strcmp(names[i], name) != 0) continue;
        *order = (enum srv_views_order)i;
        return 0;
    }
    return -EINVAL;
}

struct listed {
    uint64_t rank;              /* the larger the earlier */
    uint32_t key;
};

static int by_rank(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;
    if (x->rank != y->rank) return x->rank > y->rank ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

static uint64_t rank_of(enum srv_views_order order, uint64_t lookups,
                        const struct tier_loads_entry *loads)
{
    switch (order) {
    case SRV_HOT: break;
    case SRV_COLD: return UINT64_MAX - lookups;
    case SRV_MISSED: return loads->misses;
    case SRV_SLOW: return tier_loads_quantile_us(loads, 0.5);
    }
    return lookups;
}

static void put_expert(struct base_buf *to, const struct tier_loads_entry *loads, uint8_t resident,
                       bool hbm)
{
    const char *top = hbm ? "hbm" : "dram";
    const char *where = resident & 1 ? top : resident & 2 ? "dram" : "nvme";
    base_buf_printf(to, ",\"resident\":%s,\"where\":\"%s\",\"misses\":%u,\"loads\":%u,"
                    "\"load_seconds_mean\":%.9g,\"load_seconds_min\":%.9g,"
                    "\"load_seconds_p50\":%.9g,\"load_seconds_p90\":%.9g,"
                    "\"load_seconds_p99\":%.9g,\"load_seconds_max\":%.9g}",
                    resident ? "true" : "false", where, loads->misses, loads->loads,
                    loads->loads ? (double)loads->us_sum / loads->loads / 1e6 : 0,
                    (double)loads->us_min / 1e6, (double)tier_loads_quantile_us(loads, 0.5) / 1e6,
                    (double)tier_loads_quantile_us(loads, 0.9) / 1e6,
                    (double)tier_loads_quantile_us(loads, 0.99) / 1e6, (double)loads->us_max / 1e6);
}

int srv_views_experts(struct base_buf *to, struct eng_stack *stack, const struct srv_view *view)
{
    uint32_t layers = tier_store_layers(stack->store), experts = tier_store_experts(stack->store);
    uint32_t first = tier_store_layer_first(stack->store);
    bool hbm = tier_decide_config_of(stack->tier)->tier_count == 2;
    size_t count = (size_t)layers * experts;
    uint64_t *lookups = calloc(count + 1, sizeof *lookups);
    uint8_t *resident = calloc(count + 1, 1);
    struct listed *list = calloc(count + 1, sizeof *list);
    int rc = -ENOMEM;
    if (!lookups || !resident || !list) goto done;
    rc = tier_snapshot_experts(stack->tier, lookups, resident, count);
    if (rc < 0) goto done;
    for (uint32_t k = 0; k < count; k++) {
        struct tier_loads_entry loads = tier_expert_loads(stack->tier, k / experts, k % experts);
        list[k] = (struct listed){ rank_of(view->order, lookups[k], &loads), k };
    }
    qsort(list, count, sizeof *list, by_rank);
    base_buf_printf(to, ",\"expert_count\":%zu,\"experts\":[", count);
    for (size_t i = 0; i < count && (view->limit == 0 || i < view->limit); i++) {
        uint32_t k = list[i].key;
        struct tier_loads_entry loads = tier_expert_loads(stack->tier, k / experts, k % experts);
        base_buf_printf(to, "%s{\"layer\":%u,\"expert\":%u,\"lookups\":%llu", i ? "," : "",
                        first + k / experts, k % experts, (unsigned long long)lookups[k]);
        put_expert(to, &loads, resident[k], hbm);
    }
    base_buf_puts(to, "]");
    rc = 0;
done:
    free(lookups);
    free(resident);
    free(list);
    return rc;
}
