/* Errors: what went wrong as a code, and for cold calls as one sentence.
 *
 * Functions return 0 or a count on success and a negative code on failure: an errno value, or one
 * of the house codes below. Cold calls (open, load, parse) also take a `struct base_err *` and
 * leave a sentence there that names the file, the place, what was wrong and what would be right.
 *
 * Any thread; a base_err belongs to its caller. Nothing here allocates or blocks.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdarg.h>

#define BASE_PRINTF(format_at, args_at) __attribute__((format(printf, format_at, args_at)))

enum {
    BASE_EFORMAT = -2000,       /* bytes do not follow their format */
    BASE_ECHECKSUM = -2001,     /* bytes differ from their checksum */
    BASE_ESTALE = -2002,        /* a file changed after it was indexed */
    BASE_EVERSION = -2003,      /* a format or version this build does not know */
    BASE_EMISMATCH = -2004,     /* two things that must agree do not (model and store, ...) */
    BASE_EDEVICE = -2005,       /* a device (GPU) failed */
    BASE_ECONFIG = -2006,       /* a setting is wrong or cannot take effect */
    BASE_EBUDGET = -2007,       /* it does not fit the memory it was given */
    BASE_ETORN = -2008,         /* the tail of an append-only file is incomplete */
    BASE_EQUARANTINE = -2009,   /* an expert cannot be read and was given up */
};

enum { BASE_ERR_TEXT = 640 };

struct base_err {
    int code;                   /* 0 while nothing went wrong */
    char text[BASE_ERR_TEXT];   /* one sentence; control characters became '?' */
};

/* Writes code and sentence and returns `code`, so that a caller can `return base_err_set(...)`.
 * `err` may be NULL. The first error wins: a sentence already there is kept. */
int base_err_set(struct base_err *err, int code, const char *format, ...) BASE_PRINTF(3, 4);

/* Puts "context: " before the sentence, for a caller that knows more than the callee did. */
void base_err_prefix(struct base_err *err, const char *format, ...) BASE_PRINTF(2, 3);

/* Short name of a code in words, never NULL: "checksum mismatch", "No such file or directory". */
const char *base_err_name(int code);

#endif
