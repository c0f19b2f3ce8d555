#include "base/buf.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

enum { FIRST_CAPACITY = 256 };

/* What an empty buffer shows: so that `data` is always text. Never written: capacity 0 guards
 * it. */
static char nothing[1];

void base_buf_init(struct base_buf *buf)
{
    *buf = (struct base_buf){ .data = nothing };
}

void base_buf_fini(struct base_buf *buf)
{
    if (buf->capacity > 0) free(buf->data);
    base_buf_init(buf);
}

void base_buf_clear(struct base_buf *buf)
{
    buf->size = 0;
    buf->error = 0;
    if (buf->capacity > 0) buf->data[0] = '\0';
}

/* Room for `more` bytes and the NUL, or false with the error set. */
static bool reserve(struct base_buf *buf, size_t more)
{
    if (buf->error) return false;
    if (buf->capacity > 0 && more < buf->capacity - buf->size) return true;
    size_t need;
    if (__builtin_add_overflow(buf->size, more, &need) || need >= SIZE_MAX / 2) goto fail;
    need++;
    size_t capacity = buf->capacity > 0 ? buf->capacity : FIRST_CAPACITY;
    while (capacity < need) {
        capacity *= 2;
    }
    char *data = realloc(buf->capacity > 0 ? buf->data : NULL, capacity);
    if (!data) goto fail;
    data[buf->size] = '\0';
    buf->data = data;
    buf->capacity = capacity;
    return true;
fail:
    buf->error = -ENOMEM;
    return false;
}

void base_buf_append(struct base_buf *buf, const void *bytes, size_t size)
{
    if (size == 0 || !reserve(buf, size)) return;
    memcpy(buf->data + buf->size, bytes, size);
    buf->size += size;
    buf->data[buf->size] = '\0';
}

void base_buf_puts(struct base_buf *buf, const char *text)
{
    base_buf_append(buf, text, strlen(text));
}

void base_buf_printf(struct base_buf *buf, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    size_t room = buf->capacity - buf->size;
    int length = vsnprintf(room ? buf->data + buf->size : NULL, room, format, args);
    if (length < 0) {
        if (!buf->error) buf->error = -EINVAL;
    } else if ((size_t)length < room && !buf->error) {
        buf->size += (size_t)length;
    } else if (reserve(buf, (size_t)length)) {
        vsnprintf(buf->data + buf->size, (size_t)length + 1, format, again);
        buf->size += (size_t)length;
    }
    if (buf->capacity > 0) buf->data[buf->size] = '\0';
    va_end(again);
    va_end(args);
}

void base_buf_json_escape(struct base_buf *buf, const char *text, size_t size)
{
    static const char short_forms[] = { ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n',
                                        ['\f'] = 'f', ['\r'] = 'r' };
    size_t plain = 0;                   /* start of the bytes that go through as they are */
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)text[i];
        int length = base_str_utf8_length(text + i, size - i);
        if (length > 0 && c >= 0x20 && c != '"' && c != '\\') {
            i += (size_t)length;
            continue;
        }
        base_buf_append(buf, text + plain, i - plain);
        if (length < 0) {
            base_buf_puts(buf, "\xef\xbf\xbd");
            length = -length;
        } else if (c == '"' || c == '\\') {
            base_buf_printf(buf, "\\%c", c);
        } else if (c < sizeof short_forms && short_forms[c]) {
            base_buf_printf(buf, "\\%c", short_forms[c]);
        } else {
            base_buf_printf(buf, "\\u%04x", c);
        }
        i += (size_t)length;
        plain = i;
    }
    base_buf_append(buf, text + plain, size - plain);
}

char *base_buf_take(struct base_buf *buf, size_t *size)
{
    if (size) *size = 0;
    if (!reserve(buf, 0)) {
        base_buf_fini(buf);
        return NULL;
    }
    char *data = buf->data;
    if (size) *size = buf->size;
    base_buf_init(buf);
    return data;
}
