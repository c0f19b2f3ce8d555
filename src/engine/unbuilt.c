#include "engine/unbuilt.h"

#include <string.h>

#include "base/must.h"

static const struct {
    const char *key, *initial, *why;
} unbuilt[] = {
    { "scheduler.batch_wait_timeout", "0", "requests join the batch at the next step: none waits "
                                           "for company" },
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
    return 0;
}
