/* Text from hostile files as a sentence may quote it: cut, and without control bytes. Private to
 * src/model. Any thread. */
#ifndef MODEL_SHOW_H
#define MODEL_SHOW_H

#include <stddef.h>
#include <stdio.h>

enum { MODEL_SHOWN_MAX = 160 };

struct model_shown {
    char text[MODEL_SHOWN_MAX + 4];
};

/* Used as model_show(name).text within one call's arguments. NULL reads as "(absent)". */
static inline struct model_shown model_show(const char *name)
{
    struct model_shown shown;
    size_t i = 0;
    if (!name) name = "(absent)";
    for (; name[i] && i < MODEL_SHOWN_MAX; i++) {
        unsigned char c = (unsigned char)name[i];
        shown.text[i] = c < 0x20 || c == 0x7f ? '?' : name[i];
    }
    snprintf(shown.text + i, sizeof shown.text - i, "%s", name[i] ? "..." : "");
    return shown;
}

#endif
