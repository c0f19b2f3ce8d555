/* Files and folders that are there while a program works, and go when it is stopped on the way.
 *
 * Whoever makes one names it here and takes the name back when it is gone or has become a result.
 * SIGINT, SIGTERM and SIGHUP then remove what is named and end the program as they do without, once
 * base_temp_guard was called; only SIGKILL and a power cut leave something. Any thread.
 */
#ifndef BASE_TEMP_H
#define BASE_TEMP_H

#include "base/err.h"

/* What the signals remove: a file, or a folder that is empty by then. The text is the caller's and
 * stays where it is until base_temp_drop. Of more than some dozens the last are not removed. */
void base_temp_add(const char *path);
/* Accepts what was never added. */
void base_temp_drop(const char *path);

/* Has the signals remove what is named, but those that are ignored or somebody else's already. For
 * a program's main; a handler that is set later takes their place. */
void base_temp_guard(void);

/* The folder for temporary files: TMPDIR, or /tmp. */
const char *base_temp_folder(void);

/* Opens a file in that folder that has no name any more: it goes with its last descriptor, however
 * the program ends. Descriptor, or -errno with a sentence. */
int base_temp_open(struct base_err *err);

#endif
