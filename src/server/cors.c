#include "server/cors.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/* The next item of a list, blanks around it left out; false at the end. */
static bool next_item(const char **at, const char **item, size_t *size)
{
    if (**at == '\0') return false;
    *item = *at;
    *size = strcspn(*at, ",");
    *at += *size + ((*at)[*size] == ',');
    while (*size > 0 && isblank((unsigned char)**item)) {
        (*item)++;
        (*size)--;
    }
    while (*size > 0 && isblank((unsigned char)(*item)[*size - 1])) {
        (*size)--;
    }
    return true;
}

static bool is_any(const char *item, size_t size)
{
    return size == 1 && *item == '*';
}

/* scheme://host[:port] as browsers send it: lower case, neither a path nor a slash behind it. */
static bool is_origin(const char *item, size_t size)
{
    static const char scheme_end[] = "://";
    const size_t gap = sizeof scheme_end - 1;
    size_t scheme = 0;
    while (scheme < size && (islower((unsigned char)item[scheme]) || item[scheme] == '-')) {
        scheme++;
    }
    if (scheme == 0 || size <= scheme + gap || strncmp(item + scheme, scheme_end, gap) != 0) {
        return false;
    }
    for (size_t i = scheme + gap; i < size; i++) {
        unsigned char c = (unsigned char)item[i];
        if (!islower(c) && !isdigit(c) && !strchr("-._:[]", c)) return false;
    }
    return true;
}

int srv_cors_check(const char *list, struct base_err *err)
{
    const char *item;
    size_t size;
    while (next_item(&list, &item, &size)) {
        if (is_any(item, size) || is_origin(item, size)) continue;
        return base_err_set(err, BASE_ECONFIG, "server.cors_origins: '%.*s' is no origin: write "
                            "scheme, host and port in lower case and nothing behind them, like "
                            "http://localhost:3000, or * for any page", (int)size, item);
    }
    return 0;
}

const char *srv_cors_allows(const char *list, const char *origin)
{
    const char *item;
    size_t size;
    if (!origin) return NULL;
    while (next_item(&list, &item, &size)) {
        if (is_any(item, size)) return "*";
        if (strlen(origin) == size && memcmp(origin, item, size) == 0) return origin;
    }
    return NULL;
}
