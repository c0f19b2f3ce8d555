#include "base/temp.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAMED_MAX = 64 };

/* Read by a signal handler: a place is empty or holds a whole name, at any moment. */
static _Atomic(const char *) named[NAMED_MAX];

void base_temp_add(const char *path)
{
    for (int i = 0; i < NAMED_MAX; i++) {
        const char *none = NULL;
        if (atomic_compare_exchange_strong(&named[i], &none, path)) return;
    }
}

void base_temp_drop(const char *path)
{
    for (int i = 0; i < NAMED_MAX; i++) {
        const char *own = path;
        if (atomic_compare_exchange_strong(&named[i], &own, NULL)) return;
    }
}

/* Calls nothing but what a handler may. Folders come after the files in them. */
static void on_signal(int signal_number)
{
    for (int folders = 0; folders < 2; folders++) {
        for (int i = 0; i < NAMED_MAX; i++) {
            const char *path = atomic_load(&named[i]);
            if (path) (folders ? rmdir : unlink)(path);
        }
    }
    /* SA_RESETHAND has put the default back: it comes once this handler returns. */
    raise(signal_number);
}

void base_temp_guard(void)
{
    static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction was, action = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };
        bool free_to_take = sigaction(signals[i], NULL, &was) == 0 && was.sa_handler == SIG_DFL;
        if (free_to_take) sigaction(signals[i], &action, NULL);
    }
}

const char *base_temp_folder(void)
{
    const char *folder = getenv("TMPDIR");
    return folder && *folder ? folder : "/tmp";
}

int base_temp_open(struct base_err *err)
{
    char path[PATH_MAX];
    int size = snprintf(path, sizeof path, "%s/expertier-XXXXXX", base_temp_folder());
    int fd = size < (int)sizeof path ? mkostemp(path, O_CLOEXEC) : -1;
    int rc = fd >= 0 ? fd : size < (int)sizeof path ? -errno : -ENAMETOOLONG;
    if (fd >= 0) {
        unlink(path);
        return fd;
    }
    return base_err_set(err, rc, "%.500s: no temporary file can be made there: %s (TMPDIR names "
                        "another folder)", base_temp_folder(), base_err_name(rc));
}
