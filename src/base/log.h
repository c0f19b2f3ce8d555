/* Log lines on stderr: "2026-11-23T18:00:00.123Z info  area  sentence key=value".
 *
 * error: an operation was given up. warn: served but degraded. info: once per lifetime, and a line
 * a generation at its end. debug: per request. Nothing above debug on the step path. A line that
 * repeats within one second is counted and printed once with "repeated=N".
 *
 * Any thread. Writes one line with one write(2); blocks as long as stderr does.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

#include "base/err.h"

enum base_log_level { BASE_LOG_ERROR, BASE_LOG_WARN, BASE_LOG_INFO, BASE_LOG_DEBUG };

void base_log(enum base_log_level level, const char *area, const char *format, ...)
    BASE_PRINTF(3, 4);

/* Lines above `level` are dropped. Default BASE_LOG_INFO. */
void base_log_level_set(enum base_log_level level);

/* Turns on one JSON object a line: {"time","level","area","text"}. */
void base_log_json_set(bool json);

/* Lines go to this function instead, repeats and all that base_log does kept; NULL = stderr. Set it
 * before other threads log. */
void base_log_sink_set(void (*sink)(enum base_log_level level, const char *area,
                                    const char *text));

/* "error", "warn", "info", "debug" -> level, or -EINVAL. */
int base_log_level_parse(const char *text);

#endif
