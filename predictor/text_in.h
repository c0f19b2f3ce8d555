/* Lines of a text file, plain or .xz (library: liblzma; told by its first bytes, not by its name).
 * One thread a file; memory is two buffers and the longest line. */
#ifndef PREDICTOR_TEXT_IN_H
#define PREDICTOR_TEXT_IN_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { PRED_LINE_MAX = 16 << 20 };

struct pred_text_in;

int pred_text_in_open(struct pred_text_in **out, const char *path, struct base_err *err);
void pred_text_in_close(struct pred_text_in *text);

/* The next line without its end (\n or \r\n), NUL-terminated, until the next call. 1, 0 at the end,
 * or a negative code with a sentence. */
int pred_text_in_next(struct pred_text_in *text, char **line, size_t *size, struct base_err *err);

const char *pred_text_in_path(const struct pred_text_in *text);
uint64_t pred_text_in_line(const struct pred_text_in *text);        /* of the latest line, from 1 */
uint64_t
pred_text_in_done_bytes(const struct pred_text_in *text); /* of the file as it lies there */
uint64_t pred_text_in_total_bytes(const struct pred_text_in *text);

#endif
