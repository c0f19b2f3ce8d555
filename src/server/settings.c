#include "server/settings.h"

#include <stdlib.h>
#include <string.h>

size_t srv_settings_groups(struct srv_settings *s, struct base_option_group *groups)
{
    size_t count = eng_stack_groups(&s->stack, groups);
    groups[count++] = (struct base_option_group){ "server", srv_options, srv_option_count,
                                                  &s->server };
    return count;
}

/* Two values of one LIST at its longest do not fit BASE_OPTION_TEXT: compared as far as they do. */
static void get(const struct base_option_group *groups, size_t count, const char *key, char *to)
{
    if (base_option_get(groups, count, key, to, BASE_OPTION_TEXT) < 0) to[0] = '\0';
}

unsigned srv_settings_diff(const struct srv_settings *from, const struct srv_settings *to,
                           void (*each)(void *context, const char *key, const char *was,
                                        const char *is, bool live),
                           void *context)
{
    /* Groups point to what may be written; nothing is. */
    struct base_option_group a[SRV_SETTINGS_GROUPS], b[SRV_SETTINGS_GROUPS];
    size_t count = srv_settings_groups((struct srv_settings *)from, a);
    char was[BASE_OPTION_TEXT], is[BASE_OPTION_TEXT];
    unsigned differ = 0;
    srv_settings_groups((struct srv_settings *)to, b);
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < a[g].count; i++) {
            const char *key = a[g].options[i].key;
            get(a, count, key, was);
            get(b, count, key, is);
            if (strcmp(was, is) == 0) continue;
            differ++;
            if (each) each(context, key, was, is, tier_config_live(key));
        }
    }
    return differ;
}

char *srv_settings_yaml(const struct srv_settings *s)
{
    struct base_option_group groups[SRV_SETTINGS_GROUPS];
    size_t count = srv_settings_groups((struct srv_settings *)s, groups), size = 0;
    char *text = NULL;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    base_option_print_yaml(to, groups, count, false);
    if (fclose(to) == 0) return text;
    free(text);
    return NULL;
}
