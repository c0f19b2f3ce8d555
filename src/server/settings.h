/* All settings of a server as one value: read, compared, printed. Cold; any thread, each value one
 * thread at a time.
 */
#ifndef SERVER_SETTINGS_H
#define SERVER_SETTINGS_H

#include "base/option.h"
#include "engine/stack.h"
#include "server/server.h"

enum { SRV_SETTINGS_GROUPS = ENG_STACK_GROUPS + 1 };

struct srv_settings {
    struct eng_stack_config stack;
    struct srv_config server;
};

/* Fills `groups` (at least SRV_SETTINGS_GROUPS) over the value; returns their number. */
size_t srv_settings_groups(struct srv_settings *settings, struct base_option_group *groups);

/* Calls `each` for every key that differs, in table order; `live`: it can change while a server
 * runs. Returns their number. */
unsigned srv_settings_diff(const struct srv_settings *from, const struct srv_settings *to,
                           void (*each)(void *context, const char *key, const char *was,
                                        const char *is, bool live),
                           void *context);

/* The settings as YAML; NULL when memory is short. The caller frees. */
char *srv_settings_yaml(const struct srv_settings *settings);

#endif
