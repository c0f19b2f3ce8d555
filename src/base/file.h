/* Whole small files into memory, and whether one can be made. Cold: allocates and blocks.
 * Any thread. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* Reads the file, at most `size_max` bytes, into memory that the caller frees; a NUL follows that
 * `size` does not count. -errno, or -EFBIG when it is longer, with a sentence. */
int base_file_read(char **bytes, size_t *size, const char *path, size_t size_max,
                   struct base_err *err);

/* Whether files can be made in the folder that `path` lies in: for what is written when a program
 * ends and should be told when it begins. 0 or -errno; the check adds a sentence. */
int base_file_place(const char *path);
int base_file_place_check(const char *path, struct base_err *err);

/* Whether flock failed with this errno because the file system locks no folders (NFS). */
bool base_file_no_locks(int code);

#endif
