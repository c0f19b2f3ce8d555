/* Numbers as people write them, and bounded formatting. Any thread; nothing allocates. */
#ifndef BASE_STR_H
#define BASE_STR_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* "4096", "16KiB", "1.5GiB", "2GB" (decimal), "0" -> bytes. -EINVAL if it is no size, -ERANGE if it
 * does not fit. A bare unit letter is refused: "16G" is ambiguous, the caller says so. */
int base_str_bytes_parse(const char *text, uint64_t *bytes);

/* "250us", "10ms", "1.5s", "2min", "0" -> nanoseconds. A bare number other than 0 is refused. */
int base_str_duration_parse(const char *text, uint64_t *ns);

/* "25%" -> 0.25; also "0.25". -EINVAL, -ERANGE below 0 or above 1. */
int base_str_share_parse(const char *text, double *share);

/* Whole string as a number; -EINVAL on rubbish around it, -ERANGE beyond the type. */
int base_str_u64_parse(const char *text, uint64_t *value);
int base_str_i64_parse(const char *text, int64_t *value);
int base_str_double_parse(const char *text, double *value);

/* "1.50 GiB", "17 KiB", "812 B" into `to` (16 bytes are always enough); returns `to`. */
const char *base_str_bytes(char *to, size_t size, uint64_t bytes);
/* "812 ns", "1.50 ms", "2.00 s"; returns `to`. */
const char *base_str_duration(char *to, size_t size, uint64_t ns);

/* snprintf that says -ENAMETOOLONG instead of cutting; returns the length. */
int base_str_format(char *to, size_t size, const char *format, ...) BASE_PRINTF(3, 4);

/* Length of the valid UTF-8 character that `text` begins with (size >= 1), or minus the number of
 * bytes that together stand for one U+FFFD: the longest start of a character, as Unicode
 * advises. */
int base_str_utf8_length(const char *text, size_t size);

/* The candidate closest to `text` by edit distance, or NULL if none is near enough to be meant. */
const char *base_str_nearest(const char *text, const char *const *candidates, size_t count);

#endif
