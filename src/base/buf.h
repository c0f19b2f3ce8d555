/* A growing byte buffer with a sticky error: append freely, check once at the end.
 *
 * After the first failed allocation nothing more is appended and base_buf_error says -ENOMEM.
 * One thread at a time. Not for the step path: it allocates.
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stddef.h>

#include "base/err.h"

struct base_buf {
    char *data;                 /* always followed by a NUL that `size` does not count */
    size_t size;
    size_t capacity;
    int error;
};

void base_buf_init(struct base_buf *buf);
void base_buf_fini(struct base_buf *buf);
void base_buf_clear(struct base_buf *buf);

void base_buf_append(struct base_buf *buf, const void *bytes, size_t size);
void base_buf_puts(struct base_buf *buf, const char *text);
void base_buf_printf(struct base_buf *buf, const char *format, ...) BASE_PRINTF(2, 3);

/* Appends `text` as the inside of a JSON string, without the quotes; invalid UTF-8 becomes
 * U+FFFD. */
void base_buf_json_escape(struct base_buf *buf, const char *text, size_t size);

/* 0, or the first error. */
static inline int base_buf_error(const struct base_buf *buf)
{
    return buf->error;
}

/* Gives the bytes to the caller (who frees them) and empties the buffer; NULL after an error. */
char *base_buf_take(struct base_buf *buf, size_t *size);

#endif
