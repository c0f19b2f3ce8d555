/* JSON documents behind checked getters (library: jansson). Errors say path and position.
 *
 * A `struct port_json *` is a borrowed reference into its document unless stated; the document ends
 * with port_json_free. Duplicate keys, NaN, trailing bytes, nesting beyond 64 and non-UTF-8 text
 * are refused. Any thread; a document belongs to one thread at a time. Cold: everything allocates.
 */
#ifndef PORT_JSON_H
#define PORT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct port_json;               /* one value; the root owns the document */

/* Parses `size` bytes. `name` is used in messages only (a file name, "request body"). Returns 0,
 * BASE_EFORMAT with "name:line:column: ...", or -ENOMEM. */
int port_json_parse(struct port_json **out, const char *text, size_t size, const char *name,
                    struct base_err *err);
/* How many values a text has, found by a look at its bytes alone: at least as many as are there, as
 * an array or object counts twice when it is empty. For limits before the text is parsed. */
size_t port_json_values(const char *text, size_t size);
/* Reads a whole file, at most `size_max` bytes (-EFBIG beyond), and parses it. */
int port_json_load(struct port_json **out, const char *path, size_t size_max, struct base_err *err);
void port_json_free(struct port_json *root);

enum port_json_type {
    PORT_JSON_NULL, PORT_JSON_BOOL, PORT_JSON_INT, PORT_JSON_REAL, PORT_JSON_STRING,
    PORT_JSON_ARRAY, PORT_JSON_OBJECT,
};
enum port_json_type port_json_type(const struct port_json *value);

/* Members and elements; NULL where there is none (or the value has another type). */
const struct port_json *port_json_get(const struct port_json *object, const char *key);
const struct port_json *port_json_at(const struct port_json *array, size_t index);
size_t port_json_count(const struct port_json *array_or_object);

/* Calls `each` for every member of an object in file order until it returns non-zero, which is
 * returned. The key may hold NUL bytes only if `key_size` differs from strlen. */
int port_json_each(const struct port_json *object,
                   int (*each)(void *context, const char *key, size_t key_size,
                               const struct port_json *value),
                   void *context);

/* Text of a string (NUL-terminated, may hold NULs: see size), or NULL for another type. */
const char *port_json_text(const struct port_json *value, size_t *size);

/* Checked members: 0 when set; when the key is absent or null, 0 with the fallback if `required` is
 * false, else BASE_EFORMAT; another type or range: BASE_EFORMAT with "where.key: ..." */
int port_json_i64(const struct port_json *object, const char *key, bool required, int64_t min,
                  int64_t max, int64_t fallback, int64_t *value, const char *where,
                  struct base_err *err);
int port_json_double(const struct port_json *object, const char *key, bool required,
                     double fallback, double *value, const char *where, struct base_err *err);
int port_json_bool(const struct port_json *object, const char *key, bool required, bool fallback,
                   bool *value, const char *where, struct base_err *err);

/* Values themselves, already known to be of that type (0 / false otherwise). */
int64_t port_json_as_i64(const struct port_json *value);
double port_json_as_double(const struct port_json *value);      /* integers too */
bool port_json_as_bool(const struct port_json *value);

#endif
