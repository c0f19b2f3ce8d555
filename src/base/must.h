/* Checks that stay in release builds (MUST) and checks of debug builds (DMUST).
 *
 * For our own mistakes only: what comes from disk, network, configuration or a device is checked
 * and returned as an error, never asserted. A failed check prints where it failed, runs the
 * registered state printers and aborts.
 */
#ifndef BASE_MUST_H
#define BASE_MUST_H

#include <stdint.h>
#include <stdio.h>

#define MUST(cond) \
    do { \
        if (__builtin_expect(!(cond), 0)) base_must_fail(__FILE__, __LINE__, __func__, #cond); \
    } while (0)

#ifdef NDEBUG
#define DMUST(cond) do { (void)sizeof(!(cond)); } while (0)
#else
#define DMUST(cond) MUST(cond)
#endif

/* First member of long-lived objects: set at creation, cleared at the end, checked at entry. */
#define MUST_MAGIC(object, value) MUST((object) != NULL && (object)->magic == (value))

_Noreturn void base_must_fail(const char *file, int line, const char *function, const char *cond);

/* Registers a printer that adds the state of one object to the panic dump on stderr. At most 16
 * are kept; returns 0 or -ENOSPC. Call at start, before other threads run. */
int base_must_printer_add(void (*print)(FILE *to, void *context), void *context);
void base_must_printer_remove(void *context);

#endif
