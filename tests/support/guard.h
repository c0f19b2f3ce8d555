/* Buffers that show a stray access: guard bytes stand before each, an unreadable page follows. */
#ifndef TESTS_SUPPORT_GUARD_H
#define TESTS_SUPPORT_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* `bytes` of memory, filled with a pattern, that end `slack` bytes before an unreadable page.
 * Page-aligned when `bytes` + `slack` are whole pages. At most 1024 at a time. */
void *guard_get(size_t bytes, size_t slack);

/* Ends all buffers; true when every byte before and behind them is as it was. */
bool guard_end(void);

#endif
