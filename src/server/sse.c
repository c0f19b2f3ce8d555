#include "server/sse.h"

#include <string.h>

void srv_sse_data(struct base_buf *to, const char *text, size_t size)
{
    const char *end = text + size;
    for (;;) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        size_t bytes = (size_t)((line_end ? line_end : end) - text);
        base_buf_puts(to, "data: ");
        base_buf_append(to, text, bytes);
        base_buf_puts(to, "\n");
        if (!line_end) {
            break;
        }
        text = line_end + 1;
    }
    base_buf_puts(to, "\n");
}

void srv_sse_comment(struct base_buf *to, const char *text)
{
    base_buf_printf(to, ": %s\n\n", text);
}

void srv_sse_done(struct base_buf *to)
{
    srv_sse_data(to, "[DONE]", 6);
}
