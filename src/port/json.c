#include "port/json.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { DEPTH_MAX = 64 };

/* A value is a jansson value behind our own name. */
static json_t *in(const struct port_json *value)
{
    return (json_t *)(uintptr_t)value;
}

static const struct port_json *out_of(const json_t *value)
{
    return (const struct port_json *)value;
}

/* The first of [ ] { } and comma from `at` on that is in no string, or `end`. */
static const char *next_mark(const char *at, const char *end)
{
    for (bool in_string = false; at < end; at++) {
        if (in_string && *at == '\\') at++;
        else if (*at == '"') in_string = !in_string;
        else if (!in_string && *at != '\0' && strchr("[]{},", *at)) return at;
    }
    return end;
}

/* Where nesting first goes beyond DEPTH_MAX, or NULL. Jansson itself would recurse 2048 deep. */
static const char *too_deep(const char *text, size_t size)
{
    const char *end = text + size;
    unsigned depth = 0;
    for (const char *at = next_mark(text, end); at < end; at = next_mark(at + 1, end)) {
        if ((*at == '[' || *at == '{') && ++depth > DEPTH_MAX) return at;
        if ((*at == ']' || *at == '}') && depth > 0) depth--;
    }
    return NULL;
}

size_t port_json_values(const char *text, size_t size)
{
    const char *end = text + size;
    size_t count = 1;
    for (const char *at = next_mark(text, end); at < end; at = next_mark(at + 1, end)) {
        count += *at != ']' && *at != '}';
    }
    return count;
}

static int refuse_depth(const char *text, const char *at, const char *name, struct base_err *err)
{
    int line = 1, column = 1;
    for (const char *c = text; c < at; c++) {
        column++;
        if (*c == '\n') {
            line++;
            column = 1;
        }
    }
    return base_err_set(err, BASE_EFORMAT, "%s:%d:%d: nested more than %d deep", name, line,
                        column, DEPTH_MAX);
}

int port_json_parse(struct port_json **out, const char *text, size_t size, const char *name,
                    struct base_err *err)
{
    *out = NULL;
    const char *deep = too_deep(text, size);
    if (deep) return refuse_depth(text, deep, name, err);
    json_error_t error;
    json_t *root = json_loadb(text, size,
                              JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (root) {
        *out = (struct port_json *)root;
        return 0;
    }
    if (json_error_code(&error) == json_error_out_of_memory) {
        return base_err_set(err, -ENOMEM, "%s: no memory for its %zu bytes", name, size);
    }
    return base_err_set(err, BASE_EFORMAT, "%s:%d:%d: %s", name, error.line, error.column,
                        error.text);
}

int port_json_load(struct port_json **out, const char *path, size_t size_max, struct base_err *err)
{
    *out = NULL;
    char *text;
    size_t size;
    int rc = base_file_read(&text, &size, path, size_max, err);
    if (rc < 0) return rc;
    rc = port_json_parse(out, text, size, path, err);
    free(text);
    return rc;
}

void port_json_free(struct port_json *root)
{
    json_decref((json_t *)root);
}

enum port_json_type port_json_type(const struct port_json *value)
{
    if (!value) return PORT_JSON_NULL;
    switch (json_typeof(in(value))) {
    case JSON_OBJECT: return PORT_JSON_OBJECT;
    case JSON_ARRAY: return PORT_JSON_ARRAY;
    case JSON_STRING: return PORT_JSON_STRING;
    case JSON_INTEGER: return PORT_JSON_INT;
    case JSON_REAL: return PORT_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return PORT_JSON_BOOL;
    case JSON_NULL: break;
    }
    return PORT_JSON_NULL;
}

const struct port_json *port_json_get(const struct port_json *object, const char *key)
{
    return out_of(json_object_get(in(object), key));
}

const struct port_json *port_json_at(const struct port_json *array, size_t index)
{
    return out_of(json_array_get(in(array), index));
}

size_t port_json_count(const struct port_json *array_or_object)
{
    if (json_is_array(in(array_or_object))) return json_array_size(in(array_or_object));
    return json_object_size(in(array_or_object));
}

int port_json_each(const struct port_json *object,
                   int (*each)(void *context, const char *key, size_t key_size,
                               const struct port_json *value),
                   void *context)
{
    const char *key;
    json_t *value;
    json_object_foreach(in(object), key, value) {
        int rc = each(context, key, strlen(key), out_of(value));
        if (rc != 0) return rc;
    }
    return 0;
}

const char *port_json_text(const struct port_json *value, size_t *size)
{
    const char *text = json_string_value(in(value));
    if (size) *size = json_string_length(in(value));
    return text;
}

static const char *type_name(const struct port_json *value)
{
    switch (port_json_type(value)) {
    case PORT_JSON_NULL: return "null";
    case PORT_JSON_BOOL: return "true or false";
    case PORT_JSON_INT: return "a whole number";
    case PORT_JSON_REAL: return "a number with a fraction or exponent";
    case PORT_JSON_STRING: return "a string";
    case PORT_JSON_ARRAY: return "an array";
    case PORT_JSON_OBJECT: return "an object";
    }
    return "";
}

/* The member, or NULL with *rc saying whether that is an error. */
static const struct port_json *member(const struct port_json *object, const char *key,
                                      bool required, const char *where, int *rc,
                                      struct base_err *err)
{
    const struct port_json *value = port_json_get(object, key);
    *rc = 0;
    if (port_json_type(value) != PORT_JSON_NULL) return value;
    if (!required) return NULL;
    if (!json_is_object(in(object))) {
        *rc = base_err_set(err, BASE_EFORMAT, "%s: must be an object with the key \"%s\", not %s",
                           where, key, object ? type_name(object) : "absent");
    } else {
        *rc = base_err_set(err, BASE_EFORMAT, "%s.%s: %s", where, key,
                           value ? "must not be null" : "is missing");
    }
    return NULL;
}

static int refuse_type(const struct port_json *value, const char *wanted, const char *key,
                       const char *where, struct base_err *err)
{
    return base_err_set(err, BASE_EFORMAT, "%s.%s: must be %s, not %s", where, key, wanted,
                        type_name(value));
}

int port_json_i64(const struct port_json *object, const char *key, bool required, int64_t min,
                  int64_t max, int64_t fallback, int64_t *value, const char *where,
                  struct base_err *err)
{
    int rc;
    const struct port_json *found = member(object, key, required, where, &rc, err);
    if (rc < 0) return rc;
    if (!found) {
        *value = fallback;
        return 0;
    }
    if (!json_is_integer(in(found))) return refuse_type(found, "a whole number", key, where, err);
    int64_t number = json_integer_value(in(found));
    if (number < min || number > max) {
        return base_err_set(err, BASE_EFORMAT, "%s.%s: %lld is outside %lld..%lld", where, key,
                            (long long)number, (long long)min, (long long)max);
    }
    *value = number;
    return 0;
}

int port_json_double(const struct port_json *object, const char *key, bool required,
                     double fallback, double *value, const char *where, struct base_err *err)
{
    int rc;
    const struct port_json *found = member(object, key, required, where, &rc, err);
    if (rc < 0) return rc;
    if (!found) {
        *value = fallback;
        return 0;
    }
    if (!json_is_number(in(found))) return refuse_type(found, "a number", key, where, err);
    *value = json_number_value(in(found));
    return 0;
}

int port_json_bool(const struct port_json *object, const char *key, bool required, bool fallback,
                   bool *value, const char *where, struct base_err *err)
{
    int rc;
    const struct port_json *found = member(object, key, required, where, &rc, err);
    if (rc < 0) return rc;
    if (!found) {
        *value = fallback;
        return 0;
    }
    if (!json_is_boolean(in(found))) return refuse_type(found, "true or false", key, where, err);
    *value = json_is_true(in(found));
    return 0;
}

int64_t port_json_as_i64(const struct port_json *value)
{
    return json_integer_value(in(value));
}

double port_json_as_double(const struct port_json *value)
{
    return json_number_value(in(value));
}

bool port_json_as_bool(const struct port_json *value)
{
    return json_is_true(in(value));
}
