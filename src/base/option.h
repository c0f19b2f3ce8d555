/* Option tables: one table a module makes its settings struct, the defaults, the YAML reader,
 * `--set key=value`, `--options`, and the reference page in docs.
 *
 * A module writes an X-macro and a struct:
 *
 *     #define TIER_IO_OPTIONS(O)                                                            \
 *         O(backend, ENUM,  "io.backend", "auto", "auto|io_uring|threads", "", "how to read") \
 *         O(depth,   UINT,  "io.depth",   "32",   "1..4096", "reads", "reads in flight")
 *     struct tier_io_config { BASE_OPTION_STRUCT(TIER_IO_OPTIONS) };
 *
 * and one table in its .c, see BASE_OPTION_ROW.
 *
 * Types and their C fields:
 *     BOOL bool · UINT uint64_t · INT int64_t · REAL double · BYTES uint64_t ("16GiB")
 *     TIME uint64_t ns ("250us") · SHARE double ("25%") · ENUM int (index into the choices)
 *     TEXTLINE char[256] · LIST struct base_option_list (up to 16 texts)
 * `limits` is "min..max" for numbers (either side may be empty), "a|b|c" for ENUM, "" otherwise.
 * Values are validated by the same parser whether they come from default, YAML or command line.
 *
 * Cold: at start and reconfiguration only. Any thread, no shared state. Nothing allocates.
 */
#ifndef BASE_OPTION_H
#define BASE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum { BASE_OPTION_TEXT = 256, BASE_OPTION_LIST_MAX = 16 };

struct base_option_list {
    unsigned count;
    char text[BASE_OPTION_LIST_MAX][BASE_OPTION_TEXT];
};

enum base_option_type {
    BASE_OPTION_BOOL, BASE_OPTION_UINT, BASE_OPTION_INT, BASE_OPTION_REAL, BASE_OPTION_BYTES,
    BASE_OPTION_TIME, BASE_OPTION_SHARE, BASE_OPTION_ENUM, BASE_OPTION_TEXTLINE, BASE_OPTION_LIST,
};

#define BASE_OPTION_FIELD_BOOL(name) bool name;
#define BASE_OPTION_FIELD_UINT(name) uint64_t name;
#define BASE_OPTION_FIELD_INT(name) int64_t name;
#define BASE_OPTION_FIELD_REAL(name) double name;
#define BASE_OPTION_FIELD_BYTES(name) uint64_t name;
#define BASE_OPTION_FIELD_TIME(name) uint64_t name;
#define BASE_OPTION_FIELD_SHARE(name) double name;
#define BASE_OPTION_FIELD_ENUM(name) int name;
#define BASE_OPTION_FIELD_TEXTLINE(name) char name[BASE_OPTION_TEXT];
#define BASE_OPTION_FIELD_LIST(name) struct base_option_list name;

struct base_option {
    const char *key;            /* dotted YAML path: "tiers.dram.capacity" */
    enum base_option_type type;
    size_t offset;              /* of the field in the module's struct */
    const char *initial;        /* default, as the user would write it */
    const char *limits;
    const char *unit;           /* for the docs: "experts", "reads", "" */
    const char *text;           /* what it does, one sentence, no full stop */
};

#define BASE_OPTION_FIELD(name, type, key, initial, limits, unit, text) \
    BASE_OPTION_FIELD_##type(name)
#define BASE_OPTION_STRUCT(TABLE) TABLE(BASE_OPTION_FIELD)

/* The row macro needs the struct's name, so a module defines BASE_OPTION_OWNER before its table:
 *     #define BASE_OPTION_OWNER struct tier_io_config
 *     static const struct base_option table[] = { TIER_IO_OPTIONS(BASE_OPTION_ROW) };
 *     #undef BASE_OPTION_OWNER
 */
#define BASE_OPTION_ROW(name, type, key, initial, limits, unit, text) \
    { key, BASE_OPTION_##type, offsetof(BASE_OPTION_OWNER, name), initial, limits, unit, text },

/* A table bound to the struct it fills. Readers take an array of these, one per module. */
struct base_option_group {
    const char *module;         /* heading in --options and docs: "tiers", "server" */
    const struct base_option *options;
    size_t count;
    void *values;               /* the module's struct; may be NULL where only names are wanted */
};

/* Where a value came from, for messages: "configs/x.yaml:12:7" or "--set". */
struct base_option_source {
    const char *file;
    int line;                   /* 0 = none */
    int column;
};

/* Fills every struct with its defaults. A default that does not parse is our own bug: MUST. */
void base_option_defaults(const struct base_option_group *groups, size_t count);

/* Sets one value. On failure -EINVAL and a sentence "file:line:column: key: ...", with the limits
 * or, for an unknown key, the nearest known one. LIST keys take one text a call and append; the
 * first call from a new source empties the default first (`begin_list`). */
int base_option_set(const struct base_option_group *groups, size_t count, const char *key,
                    const char *value, const struct base_option_source *source, bool begin_list,
                    struct base_err *err);

/* Empties a LIST, for a source that gives it no texts. -ENOENT, -EINVAL for another type. */
int base_option_clear_list(const struct base_option_group *groups, size_t count, const char *key);

/* The option of that key, or NULL; and whether known keys lie below `path`. */
const struct base_option *base_option_find(const struct base_option_group *groups, size_t count,
                                           const char *key);
bool base_option_is_section(const struct base_option_group *groups, size_t count, const char *path);

/* "key=value" as given to --set. A LIST value is split at commas. */
int base_option_set_pair(const struct base_option_group *groups, size_t count, const char *pair,
                         struct base_err *err);

/* Writes the value as the user would write it; returns -ENOENT for an unknown key. */
int base_option_get(const struct base_option_group *groups, size_t count, const char *key,
                    char *to, size_t size);

/* Prints the effective configuration as YAML: nested, in table order, with each option's text as a
 * comment when `with_text`. The output, read again, gives the same values. */
void base_option_print_yaml(FILE *to, const struct base_option_group *groups, size_t count,
                            bool with_text);

/* Prints the reference table (key, type, default, limits, unit, text), one line an option. */
void base_option_print_reference(FILE *to, const struct base_option_group *groups, size_t count);

/* The choice's text of an ENUM value. */
const char *base_option_choice(const struct base_option *option, int value, char *to, size_t size);

#endif
