#include "engine/unbuilt.h"

#include <string.h>

#include "base/must.h"

static const struct {
    const char *key, *initial, *why;
} unbuilt[] = {
    { "tiers.hbm.headroom", "0%", "the hbm devices of this build lie in host memory, which the "
                                  "memory table covers" },
    { "scheduler.enable_prefix_caching", "false", "KV blocks are not shared between requests yet" },
    { "scheduler.batch_wait_timeout", "0", "requests join the batch at the next step: none waits "
                                           "for company" },
};

/* Values of built keys. */
static const struct {
    const char *key, *value, *why, *instead;
} unbuilt_values[] = {
    { "tiers.hbm.device", "cuda", "the engine computes on the CPU, which cannot read the memory of "
                                  "a card", "sim or host" },
};

int eng_unbuilt_check(const struct base_option_group *groups, size_t count, struct base_err *err)
{
    char value[BASE_OPTION_TEXT];
    for (size_t i = 0; i < sizeof unbuilt / sizeof unbuilt[0]; i++) {
        int rc = base_option_get(groups, count, unbuilt[i].key, value, sizeof value);
        MUST(rc >= 0);
        if (strcmp(value, unbuilt[i].initial) == 0) continue;
        return base_err_set(err, BASE_ECONFIG, "%s: %s cannot take effect: %s; leave it at %s",
                            unbuilt[i].key, value, unbuilt[i].why, unbuilt[i].initial);
    }
    for (size_t i = 0; i < sizeof unbuilt_values / sizeof unbuilt_values[0]; i++) {
        int rc = base_option_get(groups, count, unbuilt_values[i].key, value, sizeof value);
        MUST(rc >= 0);
        if (strcmp(value, unbuilt_values[i].value) != 0) continue;
        return base_err_set(err, BASE_ECONFIG, "%s: %s cannot take effect: %s; take %s",
                            unbuilt_values[i].key, value, unbuilt_values[i].why,
                            unbuilt_values[i].instead);
    }
    return 0;
}
