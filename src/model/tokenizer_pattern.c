/* Oniguruma (Ruby syntax) -> PCRE2.
 *
 * Hugging Face's `tokenizers` runs the patterns of tokenizer.json with Oniguruma. The two engines
 * agree on nearly all of what tokenizers use. The rest is rewritten where that is simple:
 *   \s   Oniguruma leaves out U+180E, which PCRE2 counts as a space
 *   ^ $  match at every line in Ruby, hence (?m)
 *   \v   a vertical tab, \uHHHH a code point
 * and refused where it is not: nobody notices a split that is subtly wrong.
 */
#include <stdio.h>
#include <string.h>

#include "model/tokenizer_tables.h"

#define SPACES "\\x09-\\x0d\\x20\\x{85}\\p{Z}"

struct translator {
    struct base_buf *out;
    struct base_err *err;
    const char *pattern;
    size_t size;
    size_t at;
    bool in_class;
};

static int refuse(const struct translator *t, const char *what)
{
    return base_err_set(t->err, BASE_EVERSION, "%s at byte %zu of the pattern is not supported",
                        what, t->at);
}

static char peek(const struct translator *t, size_t ahead)
{
    return t->at + ahead < t->size ? t->pattern[t->at + ahead] : '\0';
}

static void copy(struct translator *t, size_t count)
{
    if (count > t->size - t->at) count = t->size - t->at;
    base_buf_append(t->out, t->pattern + t->at, count);
    t->at += count;
}

static void replace(struct translator *t, size_t count, const char *by)
{
    base_buf_puts(t->out, by);
    t->at += count;
}

/* \p{..}, \P{..}, \x{..}: to the closing brace, so that it is not taken for a repeat's. */
static int escape_with_brace(struct translator *t)
{
    if (peek(t, 2) != '{') {
        copy(t, 2);
        return 0;
    }
    const char *close = memchr(t->pattern + t->at, '}', t->size - t->at);
    if (!close) return refuse(t, "an escape without its closing brace");
    copy(t, (size_t)(close - (t->pattern + t->at)) + 1);
    return 0;
}

static int escape_unicode(struct translator *t)
{
    char digits[5] = { 0 };
    for (size_t i = 0; i < 4; i++) {
        digits[i] = peek(t, 2 + i);
        if (!digits[i] || !strchr("0123456789abcdefABCDEF", digits[i])) {
            return refuse(t, "\\u without four hexadecimal digits");
        }
    }
    base_buf_printf(t->out, "\\x{%s}", digits);
    t->at += 6;
    return 0;
}

static int escape(struct translator *t)
{
    char c = peek(t, 1);
    switch (c) {
    case '\0':
        return refuse(t, "a lone backslash");
    case 's':
        replace(t, 2, t->in_class ? SPACES : "[" SPACES "]");
        return 0;
    case 'S':
        if (t->in_class) return refuse(t, "\\S inside a class");
        replace(t, 2, "[^" SPACES "]");
        return 0;
    case 'v':
        replace(t, 2, "\\x0b");
        return 0;
    case 'p':
    case 'P':
    case 'x':
        return escape_with_brace(t);
    case 'u':
        return escape_unicode(t);
    default:
        break;
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter && !strchr("dDnrtfaeAzZ", c)) {
        char what[] = "the escape \\?";
        what[sizeof what - 2] = c;
        return refuse(t, what);
    }
    copy(t, 2);
    return 0;
}

/* "(?": plain groups and look-around are the same; of the options only i is. */
static int group(struct translator *t)
{
    size_t i = 2;
    char c = peek(t, i);
    if (c == '<' && peek(t, i + 1) != '=' && peek(t, i + 1) != '!') {
        return refuse(t, "a named group");
    }
    if (c && strchr(":=!><", c)) {
        copy(t, 2);
        return 0;
    }
    while (peek(t, i) == 'i' || peek(t, i) == '-') i++;
    if (i == 2 || (peek(t, i) != ':' && peek(t, i) != ')')) {
        return refuse(t, "a group of this kind");
    }
    copy(t, i);
    return 0;
}

static int class_part(struct translator *t, char c)
{
    if (c == '[') return refuse(t, "'[' without a backslash inside a class");
    if (c == '&' && peek(t, 1) == '&') return refuse(t, "an intersection of classes");
    if (c == ']') t->in_class = false;
    copy(t, 1);
    return 0;
}

static int plain_part(struct translator *t, char c)
{
    if (c == '[') {
        t->in_class = true;
        copy(t, peek(t, 1) == '^' ? 2 : 1);
        /* A bracket that comes first is a character. */
        if (peek(t, 0) == ']') copy(t, 1);
        return 0;
    }
    if (c == '(' && peek(t, 1) == '*') return refuse(t, "'(*'");
    if (c == '(' && peek(t, 1) == '?') return group(t);
    if (c == '{' && peek(t, 1) == ',') return refuse(t, "a repeat without its lower bound");
    if (c == '}' && peek(t, 1) == '+') return refuse(t, "'+' after a counted repeat");
    copy(t, 1);
    return 0;
}

int model_pattern_translate(struct base_buf *out, const char *pattern, size_t size,
                            struct base_err *err)
{
    struct translator t = { .out = out, .err = err, .pattern = pattern, .size = size };
    if (memchr(pattern, '\0', size)) return refuse(&t, "a NUL byte");
    base_buf_puts(out, "(?m)");
    while (t.at < size) {
        char c = pattern[t.at];
        int rc = c == '\\' ? escape(&t) : t.in_class ? class_part(&t, c) : plain_part(&t, c);
        if (rc < 0) return rc;
    }
    return base_buf_error(out);
}

void model_pattern_quote(struct base_buf *out, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x80) {
            base_buf_printf(out, "\\x%02x", c);
        } else {
            base_buf_append(out, &text[i], 1);
        }
    }
}
