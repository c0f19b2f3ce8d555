#include "port/yaml.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/file.h"
#include "base/str.h"

enum { DEPTH_MAX = 16, PATH_BYTES = 256, FILE_BYTES_MAX = 1 << 20 };

struct reader {
    yaml_parser_t parser;
    const char *name;
    const struct base_option_group *groups;
    size_t group_count;
    struct base_err *err;

    size_t levels[DEPTH_MAX];   /* of each open map: length of the path above its keys */
    unsigned depth;
    char path[PATH_BYTES];      /* dotted key of where the reader stands */

    char **seen;                /* every dotted key read so far: a second one is refused */
    size_t seen_count, seen_capacity;
};

static int refuse(struct reader *r, const yaml_mark_t *at, const char *format, ...)
    BASE_PRINTF(3, 4);

/* The sentence behind "file:line:column: ". */
static int refuse(struct reader *r, const yaml_mark_t *at, const char *format, ...)
{
    char text[BASE_ERR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return base_err_set(r->err, BASE_ECONFIG, "%s:%zu:%zu: %s", r->name, at->line + 1,
                        at->column + 1, text);
}

/* libyaml stopped: say where. It marks bad bytes by offset only. */
static int refuse_syntax(struct reader *r, const char *text, size_t size)
{
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) {
        return base_err_set(r->err, -ENOMEM, "%s: no memory to read it", r->name);
    }
    if (p->error != YAML_READER_ERROR) {
        return refuse(r, &p->problem_mark, "%s%s%s", p->context ? p->context : "",
                      p->context ? ": " : "", p->problem ? p->problem : "not YAML");
    }
    yaml_mark_t mark = { 0 };
    for (size_t i = 0; i < p->problem_offset && i < size; i++) {
        mark.column++;
        if (text[i] != '\n') continue;
        mark.line++;
        mark.column = 0;
    }
    return refuse(r, &mark, "%s", p->problem ? p->problem : "bytes that are not UTF-8 text");
}

/* Appends ".key" to the path of the map that is being read. */
static int path_set(struct reader *r, const yaml_event_t *event)
{
    const char *key = (const char *)event->data.scalar.value;
    size_t base = r->levels[r->depth - 1];
    if (strlen(key) != event->data.scalar.length) {
        return refuse(r, &event->start_mark, "a key holds a NUL byte");
    }
    if (!key[0]) return refuse(r, &event->start_mark, "an empty key");
    int rc = base_str_format(r->path + base, sizeof r->path - base, "%s%s", base ? "." : "", key);
    if (rc < 0) return refuse(r, &event->start_mark, "no key is as long as \"%.40s...\"", key);
    return 0;
}

static int remember(struct reader *r, const yaml_mark_t *at)
{
    for (size_t i = 0; i < r->seen_count; i++) {
        if (strcmp(r->seen[i], r->path) == 0) return refuse(r, at, "%s: given twice", r->path);
    }
    if (r->seen_count == r->seen_capacity) {
        size_t capacity = r->seen_capacity ? 2 * r->seen_capacity : 64;
        char **seen = realloc(r->seen, capacity * sizeof *seen);
        if (!seen) return -ENOMEM;
        r->seen = seen;
        r->seen_capacity = capacity;
    }
    char *copy = strdup(r->path);
    if (!copy) return -ENOMEM;
    r->seen[r->seen_count++] = copy;
    return 0;
}

static bool is_plain(const yaml_event_t *event)
{
    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

static bool is_null(const yaml_event_t *event)
{
    const char *text = (const char *)event->data.scalar.value;
    return is_plain(event) &&
           (!text[0] || strcmp(text, "~") == 0 || strcmp(text, "null") == 0);
}

/* Next event without anchors and tags; the caller deletes it. */
static int next_event(struct reader *r, yaml_event_t *event)
{
    const void *anchor = NULL, *tag = NULL;
    if (!yaml_parser_parse(&r->parser, event)) return -EBADMSG;
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
        break;
    case YAML_ALIAS_EVENT:
        anchor = event->data.alias.anchor;
        break;
    default:
        break;
    }
    if (!anchor && !tag) return 0;
    int rc = refuse(r, &event->start_mark, "%s are not used in settings: write the value itself",
                    anchor ? "anchors and aliases" : "tags");
    yaml_event_delete(event);
    return rc;
}

static int set_value(struct reader *r, const yaml_event_t *event, bool begin)
{
    const char *value = (const char *)event->data.scalar.value;
    const yaml_mark_t *at = &event->start_mark;
    struct base_option_source source = { r->name, (int)at->line + 1, (int)at->column + 1 };
    if (strlen(value) != event->data.scalar.length) {
        return refuse(r, at, "%s: the value holds a NUL byte", r->path);
    }
    if (is_null(event)) {
        return refuse(r, at, "%s: has no value; for an empty text write \"\"", r->path);
    }
    int rc = base_option_set(r->groups, r->group_count, r->path, value, &source, begin, r->err);
    return rc < 0 ? BASE_ECONFIG : 0;
}

/* Elements of a LIST option, up to the end of the sequence. */
static int read_sequence(struct reader *r, const yaml_mark_t *at)
{
    const struct base_option *option = base_option_find(r->groups, r->group_count, r->path);
    if (option->type != BASE_OPTION_LIST) {
        return refuse(r, at, "%s: takes one value, not a list", r->path);
    }
    base_option_clear_list(r->groups, r->group_count, r->path);
    for (;;) {
        yaml_event_t event;
        int rc = next_event(r, &event);
        if (rc < 0) return rc;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        if (event.type == YAML_SCALAR_EVENT) {
            rc = set_value(r, &event, false);
        } else if (!end) {
            rc = refuse(r, &event.start_mark, "%s: a list of texts holds texts only", r->path);
        }
        yaml_event_delete(&event);
        if (rc < 0 || end) return rc;
    }
}

static int enter_map(struct reader *r, const yaml_mark_t *at)
{
    if (r->depth == DEPTH_MAX) return refuse(r, at, "nested more than %d deep", DEPTH_MAX);
    r->levels[r->depth++] = strlen(r->path);
    return 0;
}

/* What follows a key: a value, a list, or a map that is entered. `at` is the key's place. */
static int read_value(struct reader *r, const yaml_mark_t *at)
{
    bool section = base_option_is_section(r->groups, r->group_count, r->path);
    if (!section && !base_option_find(r->groups, r->group_count, r->path)) {
        /* Not known at all: let the setter say so, with the nearest key. */
        struct base_option_source source = { r->name, (int)at->line + 1, (int)at->column + 1 };
        base_option_set(r->groups, r->group_count, r->path, "", &source, true, r->err);
        return BASE_ECONFIG;
    }
    yaml_event_t event;
    int rc = next_event(r, &event);
    if (rc < 0) return rc;
    const yaml_mark_t *value_at = &event.start_mark;
    switch (event.type) {
    case YAML_SCALAR_EVENT:
        /* "tiers:" with every line below it commented out sets nothing. */
        if (!section || !is_null(&event)) rc = set_value(r, &event, true);
        break;
    case YAML_SEQUENCE_START_EVENT:
        rc = section ? refuse(r, value_at, "%s: holds keys, not a list", r->path)
                     : read_sequence(r, value_at);
        break;
    case YAML_MAPPING_START_EVENT:
        rc = section ? enter_map(r, value_at)
                     : refuse(r, value_at, "%s: takes a value, not keys", r->path);
        break;
    default:
        rc = refuse(r, value_at, "%s: a value was expected here", r->path);
        break;
    }
    yaml_event_delete(&event);
    return rc;
}

/* Keys of maps until the outermost one ends. */
static int read_maps(struct reader *r)
{
    while (r->depth > 0) {
        yaml_event_t event;
        int rc = next_event(r, &event);
        if (rc < 0) return rc;
        yaml_mark_t at = event.start_mark;
        bool key = event.type == YAML_SCALAR_EVENT;
        if (key) {
            rc = path_set(r, &event);
        } else if (event.type == YAML_MAPPING_END_EVENT) {
            r->depth--;
            r->path[r->levels[r->depth]] = '\0';
        } else {
            rc = refuse(r, &at, "a key must be a plain word");
        }
        yaml_event_delete(&event);
        if (rc < 0) return rc;
        if (!key) continue;
        rc = remember(r, &at);
        if (rc == 0) rc = read_value(r, &at);
        if (rc < 0) return rc;
    }
    return 0;
}

/* The stream: nothing at all, or one document that is a map. */
static int read_stream(struct reader *r)
{
    unsigned documents = 0;
    for (;;) {
        yaml_event_t event;
        int rc = next_event(r, &event);
        if (rc < 0) return rc;
        yaml_mark_t at = event.start_mark;
        yaml_event_type_t type = event.type;
        bool empty = type == YAML_SCALAR_EVENT && is_null(&event);
        yaml_event_delete(&event);
        switch (type) {
        case YAML_STREAM_END_EVENT:
            return 0;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (++documents > 1) rc = refuse(r, &at, "a second document; settings are one");
            break;
        case YAML_MAPPING_START_EVENT:
            rc = enter_map(r, &at);
            if (rc == 0) rc = read_maps(r);
            break;
        default:
            if (!empty) rc = refuse(r, &at, "settings are \"key: value\" lines");
            break;
        }
        if (rc < 0) return rc;
    }
}

int port_yaml_parse(const char *text, size_t size, const char *name,
                    const struct base_option_group *groups, size_t count, struct base_err *err)
{
    struct reader r = { .name = name, .groups = groups, .group_count = count, .err = err };
    if (!yaml_parser_initialize(&r.parser)) {
        return base_err_set(err, -ENOMEM, "%s: no memory to read it", name);
    }
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, size);
    int rc = read_stream(&r);
    if (rc == -EBADMSG) rc = refuse_syntax(&r, text, size);
    if (rc == -ENOMEM) base_err_set(err, rc, "%s: no memory to read it", name);
    for (size_t i = 0; i < r.seen_count; i++) {
        free(r.seen[i]);
    }
    free(r.seen);
    yaml_parser_delete(&r.parser);
    return rc;
}

int port_yaml_load(const char *path, const struct base_option_group *groups, size_t count,
                   struct base_err *err)
{
    char *text;
    size_t size;
    int rc = base_file_read(&text, &size, path, FILE_BYTES_MAX, err);
    if (rc < 0) return rc;
    rc = port_yaml_parse(text, size, path, groups, count, err);
    free(text);
    return rc;
}
