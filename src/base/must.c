#include "base/must.h"

#include <errno.h>
#include <stdlib.h>

enum { PRINTERS_MAX = 16 };

static struct {
    void (*print)(FILE *to, void *context);
    void *context;
} printers[PRINTERS_MAX];

_Noreturn void base_must_fail(const char *file, int line, const char *function, const char *cond)
{
    static int panicking;

    fprintf(stderr, "%s:%d: %s: MUST(%s)\n", file, line, function, cond);
    /* A printer may trip over the same broken state: dump once only. */
    if (!panicking) {
        panicking = 1;
        for (int i = 0; i < PRINTERS_MAX; i++) {
            if (printers[i].print) printers[i].print(stderr, printers[i].context);
        }
    }
    abort();
}

int base_must_printer_add(void (*print)(FILE *to, void *context), void *context)
{
    for (int i = 0; i < PRINTERS_MAX; i++) {
        if (!printers[i].print) {
            printers[i].context = context;
            printers[i].print = print;
            return 0;
        }
    }
    return -ENOSPC;
}

void base_must_printer_remove(void *context)
{
    for (int i = 0; i < PRINTERS_MAX; i++) {
        if (printers[i].context == context) printers[i].print = NULL;
    }
}
