/* A program's output file. What is there under its name is replaced only by a whole result: that is
 * written beside it under a name of its own (path.1a2b3c4d.tmp: two that write to one path never
 * meet), synced and renamed. Links are followed, so that what they lead to is replaced and not the
 * link. Where the name is no file (a pipe, a device, standard output) it is written as it comes and
 * never renamed or removed. Cold: blocks. Any thread.
 */
#ifndef BASE_OUT_H
#define BASE_OUT_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

struct base_out {
    const char *to;             /* as it was given; the caller keeps it */
    char path[PATH_MAX];        /* links followed */
    char temporary[PATH_MAX];   /* what is written, once made; "" before and after */
    bool direct;                /* it is no file */
    FILE *file;                 /* after base_out_open; NULL else */
};

/* Finds out where an output would go, "-" being standard output, and whether it could: touches
 * nothing. 0 or -errno with a sentence. */
int base_out_begin(struct base_out *out, const char *to, struct base_err *err);

/* -EINVAL with a sentence where writing would destroy this file, which is read: it is the output,
 * also through links. 0 also where there is no such file. */
int base_out_spares(const struct base_out *out, const char *input, struct base_err *err);

/* Opens out->file after a begin. */
int base_out_open(struct base_out *out, struct base_err *err);
/* In its stead for who writes by name: makes out->temporary, empty (`path` where that is no
 * file). */
int base_out_make(struct base_out *out, struct base_err *err);

/* Ends what was opened or made, and stays where it is until then: closes out->file; after rc >= 0
 * the result gets its name, else what was written so far is removed. Returns 0, rc below 0, or what
 * went wrong here. */
int base_out_end(struct base_out *out, int rc, struct base_err *err);

#endif
