/* UTF-8 one character at a time, with the Unicode standard's "maximal subpart" rule for errors:
 * what Rust's from_utf8_lossy and the WHATWG decoder do. Private to src/model. Any thread, no
 * state. */
#ifndef MODEL_UTF8_H
#define MODEL_UTF8_H

#include <stdbool.h>
#include <stddef.h>

enum model_utf8_kind {
    MODEL_UTF8_WHOLE,           /* a valid character */
    MODEL_UTF8_INVALID,         /* bytes to replace by one U+FFFD */
    MODEL_UTF8_PARTIAL,         /* the text ends inside what may still become a character */
};

#define MODEL_UTF8_REPLACEMENT "\xef\xbf\xbd"

/* Looks at the first bytes of a non-empty text; `length` gets how many of them are meant. */
static inline enum model_utf8_kind model_utf8_next(const unsigned char *text, size_t size,
                                                   size_t *length)
{
    unsigned char lead = text[0];
    *length = 1;
    if (lead < 0x80) return MODEL_UTF8_WHOLE;
    if (lead < 0xc2 || lead > 0xf4) return MODEL_UTF8_INVALID;
    size_t want = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF. */
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (; *length < want; ++*length) {
        if (*length == size) return MODEL_UTF8_PARTIAL;
        if (text[*length] < low || text[*length] > high) return MODEL_UTF8_INVALID;
        low = 0x80;
        high = 0xbf;
    }
    return MODEL_UTF8_WHOLE;
}

#endif
