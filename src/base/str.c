#include "base/str.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRACTION_DIGITS_MAX = 15, NEAREST_LENGTH_MAX = 96 };

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit byte_units[] = {
    { "", 1 },
    { "B", 1 },
    { "KiB", 1ull << 10 },
    { "MiB", 1ull << 20 },
    { "GiB", 1ull << 30 },
    { "TiB", 1ull << 40 },
    { "PiB", 1ull << 50 },
    { "kB", 1000ull },
    { "KB", 1000ull },
    { "MB", 1000000ull },
    { "GB", 1000000000ull },
    { "TB", 1000000000000ull },
    { "PB", 1000000000000000ull },
};

static const struct unit time_units[] = {
    { "ns", 1 },
    { "us", 1000ull },
    { "\xc2\xb5s", 1000ull },
    { "ms", 1000000ull },
    { "s", 1000000000ull },
    { "min", 60000000000ull },
    { "h", 3600000000000ull },
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Reads "12", "1.5" exactly: whole part, and the fraction as numerator over a power of ten. */
static int decimal_parse(const char **at, uint64_t *whole, uint64_t *fraction, uint64_t *scale)
{
    const char *p = *at;
    *whole = 0;
    *fraction = 0;
    *scale = 1;
    if (!is_digit(*p)) return -EINVAL;
    for (; is_digit(*p); p++) {
        if (__builtin_mul_overflow(*whole, 10u, whole)) return -ERANGE;
        if (__builtin_add_overflow(*whole, (uint64_t)(*p - '0'), whole)) return -ERANGE;
    }
    if (*p == '.') {
        p++;
        if (!is_digit(*p)) return -EINVAL;
        for (int digits = 0; is_digit(*p); p++, digits++) {
            if (digits == FRACTION_DIGITS_MAX) return -EINVAL;
            *fraction = *fraction * 10 + (uint64_t)(*p - '0');
            *scale *= 10;
        }
    }
    *at = p;
    return 0;
}

static int scaled_parse(const char *text, const struct unit *units, size_t unit_count,
                        bool fraction_of_one, uint64_t *value)
{
    uint64_t whole, fraction, scale;
    const char *at = text;
    int rc = decimal_parse(&at, &whole, &fraction, &scale);
    if (rc == -EINVAL) return rc;
    if (rc < 0) return -ERANGE;
    if (*at == ' ' && at[1]) at++;
    for (size_t i = 0; i < unit_count; i++) {
        if (strcmp(at, units[i].name) != 0) continue;
        if (units[i].factor == 1 && scale > 1 && !fraction_of_one) return -EINVAL;
        unsigned __int128 total = (unsigned __int128)whole * units[i].factor;
        total += (unsigned __int128)fraction * units[i].factor / scale;
        if (total > UINT64_MAX) return -ERANGE;
        *value = (uint64_t)total;
        return 0;
    }
    return -EINVAL;
}

int base_str_bytes_parse(const char *text, uint64_t *bytes)
{
    return scaled_parse(text, byte_units, sizeof byte_units / sizeof byte_units[0], false, bytes);
}

int base_str_duration_parse(const char *text, uint64_t *ns)
{
    if (strcmp(text, "0") == 0) {
        *ns = 0;
        return 0;
    }
    return scaled_parse(text, time_units, sizeof time_units / sizeof time_units[0], true, ns);
}

int base_str_share_parse(const char *text, double *share)
{
    char number[64];
    size_t length = strlen(text);
    bool percent = length > 0 && text[length - 1] == '%';
    if (percent) {
        length--;
        if (length > 0 && text[length - 1] == ' ') length--;
    }
    if (length == 0 || length >= sizeof number) return -EINVAL;
    memcpy(number, text, length);
    number[length] = '\0';
    double value;
    int rc = base_str_double_parse(number, &value);
    if (rc < 0) return rc;
    if (percent) value /= 100.0;
    if (value < 0.0 || value > 1.0) return -ERANGE;
    *share = value;
    return 0;
}

int base_str_u64_parse(const char *text, uint64_t *value)
{
    if (!is_digit(text[0])) return -EINVAL;
    uint64_t result = 0;
    bool overflow = false;
    for (; is_digit(*text); text++) {
        overflow |= __builtin_mul_overflow(result, 10u, &result);
        overflow |= __builtin_add_overflow(result, (uint64_t)(*text - '0'), &result);
    }
    if (*text) return -EINVAL;
    if (overflow) return -ERANGE;
    *value = result;
    return 0;
}

int base_str_i64_parse(const char *text, int64_t *value)
{
    bool negative = text[0] == '-';
    uint64_t magnitude;
    int rc = base_str_u64_parse(text + negative, &magnitude);
    if (rc < 0) return rc;
    if (magnitude > (uint64_t)INT64_MAX + negative) return -ERANGE;
    *value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return 0;
}

int base_str_double_parse(const char *text, double *value)
{
    /* strtod also takes spaces, hexadecimal, "inf" and "nan", none of which a setting means. */
    if (!text[0] || text[strspn(text, "0123456789+-.eE")]) return -EINVAL;
    char *end;
    double result = strtod(text, &end);
    if (end == text || *end) return -EINVAL;
    if (!isfinite(result)) return -ERANGE;
    *value = result;
    return 0;
}

const char *base_str_bytes(char *to, size_t size, uint64_t bytes)
{
    static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned unit = 0;
    double value = (double)bytes;
    /* 1023.995 would print as "1024.00": move on to the next unit before that. */
    while (value >= 1023.995 && unit + 1 < sizeof names / sizeof names[0]) {
        value /= 1024.0;
        unit++;
    }
    if (value == floor(value)) {
        snprintf(to, size, "%.0f %s", value, names[unit]);
    } else {
        snprintf(to, size, "%.2f %s", value, names[unit]);
    }
    return to;
}

const char *base_str_duration(char *to, size_t size, uint64_t ns)
{
    if (ns < 1000) {
        snprintf(to, size, "%u ns", (unsigned)ns);
    } else if (ns < 999995) {
        snprintf(to, size, "%.2f us", (double)ns / 1e3);
    } else if (ns < 999995000u) {
        snprintf(to, size, "%.2f ms", (double)ns / 1e6);
    } else if (ns < 600u * 1000000000ull) {
        snprintf(to, size, "%.2f s", (double)ns / 1e9);
    } else {
        snprintf(to, size, "%.1f min", (double)ns / 60e9);
    }
    return to;
}

int base_str_format(char *to, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(to, size, format, args);
    va_end(args);
    if (length < 0) return -EINVAL;
    if ((size_t)length >= size) return -ENAMETOOLONG;
    return length;
}

int base_str_utf8_length(const char *text, size_t size)
{
    const unsigned char *bytes = (const unsigned char *)text;
    unsigned char c = bytes[0];
    if (c < 0x80) return 1;
    int length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4) return -1;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= size) return -i;
        unsigned char low = 0x80, high = 0xbf;
        if (i == 1) {
            if (c == 0xe0) low = 0xa0;      /* else it would be too long a form */
            if (c == 0xed) high = 0x9f;     /* else a surrogate */
            if (c == 0xf0) low = 0x90;
            if (c == 0xf4) high = 0x8f;     /* else beyond U+10FFFF */
        }
        if (bytes[i] < low || bytes[i] > high) return -i;
    }
    return length;
}

/* Edit distance where a swap of neighbours counts as one (optimal string alignment). */
static unsigned edit_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned rows[3][NEAREST_LENGTH_MAX + 1];
    for (unsigned j = 0; j <= b_length; j++) {
        rows[0][j] = j;
    }
    for (unsigned i = 1; i <= a_length; i++) {
        unsigned *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (unsigned j = 1; j <= b_length; j++) {
            unsigned best = above[j - 1] + (tolower((unsigned char)a[i - 1]) !=
                                            tolower((unsigned char)b[j - 1]));
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && above2[j - 2] + 1 < best) best = above2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

const char *base_str_nearest(const char *text, const char *const *candidates, size_t count)
{
    size_t length = strlen(text);
    if (length == 0 || length > NEAREST_LENGTH_MAX) return NULL;
    /* A third of the letters wrong still looks like a slip; more is another word. */
    unsigned best = (unsigned)(length < 3 ? 1 : length / 3) + 1;
    const char *nearest = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t other = strlen(candidates[i]);
        if (other > NEAREST_LENGTH_MAX) continue;
        unsigned distance = edit_distance(text, length, candidates[i], other);
        /* Short names must keep at least one letter: "x" does not mean "y". */
        if (distance < best && distance < (other > length ? other : length)) {
            best = distance;
            nearest = candidates[i];
        }
    }
    return nearest;
}
