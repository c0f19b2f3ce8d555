#include "base/option.h"

#include <errno.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"

enum { KEY_MAX = 128, OPTIONS_MAX = 512, SEGMENTS_MAX = 8 };

static void *field_of(const struct base_option_group *group, const struct base_option *option)
{
    return (char *)group->values + option->offset;
}

static const struct base_option *find(const struct base_option_group *groups, size_t count,
                                      const char *key, const struct base_option_group **group)
{
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count; i++) {
            if (strcmp(groups[g].options[i].key, key) != 0) continue;
            *group = &groups[g];
            return &groups[g].options[i];
        }
    }
    return NULL;
}

const struct base_option *base_option_find(const struct base_option_group *groups, size_t count,
                                           const char *key)
{
    const struct base_option_group *group;
    return find(groups, count, key, &group);
}

bool base_option_is_section(const struct base_option_group *groups, size_t count, const char *path)
{
    size_t length = strlen(path);
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count; i++) {
            const char *key = groups[g].options[i].key;
            if (strncmp(key, path, length) == 0 && key[length] == '.') return true;
        }
    }
    return false;
}

/* A value before it is known to lie within the limits. Only the member of its type is set. */
union number {
    uint64_t u;
    int64_t i;
    double d;
};

enum kind { KIND_U64, KIND_I64, KIND_DOUBLE };

static enum kind kind_of(enum base_option_type type)
{
    switch (type) {
    case BASE_OPTION_INT: return KIND_I64;
    case BASE_OPTION_REAL:
    case BASE_OPTION_SHARE: return KIND_DOUBLE;
    default: return KIND_U64;
    }
}

static int number_parse(enum base_option_type type, const char *text, union number *number)
{
    switch (type) {
    case BASE_OPTION_UINT: return base_str_u64_parse(text, &number->u);
    case BASE_OPTION_INT: return base_str_i64_parse(text, &number->i);
    case BASE_OPTION_REAL: return base_str_double_parse(text, &number->d);
    case BASE_OPTION_BYTES: return base_str_bytes_parse(text, &number->u);
    case BASE_OPTION_TIME: return base_str_duration_parse(text, &number->u);
    case BASE_OPTION_SHARE: return base_str_share_parse(text, &number->d);
    default: return -EINVAL;
    }
}

static bool number_less(enum base_option_type type, const union number *a, const union number *b)
{
    switch (kind_of(type)) {
    case KIND_I64: return a->i < b->i;
    case KIND_DOUBLE: return a->d < b->d;
    case KIND_U64: break;
    }
    return a->u < b->u;
}

/* What the limits "min..max" say; a side left empty does not bind. The table is ours: MUST. */
static bool within_limits(const struct base_option *option, const union number *number)
{
    const char *dots = strstr(option->limits, "..");
    if (!option->limits[0]) return true;
    MUST(dots);
    char side[32];
    union number bound;
    size_t length = (size_t)(dots - option->limits);
    if (length > 0) {
        MUST(length < sizeof side);
        memcpy(side, option->limits, length);
        side[length] = '\0';
        MUST(number_parse(option->type, side, &bound) == 0);
        if (number_less(option->type, number, &bound)) return false;
    }
    if (dots[2]) {
        MUST(number_parse(option->type, dots + 2, &bound) == 0);
        if (number_less(option->type, &bound, number)) return false;
    }
    return true;
}

/* What a value of this type looks like, for the sentence after a bad one. */
static const char *shape_of(enum base_option_type type)
{
    switch (type) {
    case BASE_OPTION_BOOL: return "true or false";
    case BASE_OPTION_UINT: return "a whole number such as 16";
    case BASE_OPTION_INT: return "a whole number such as -1 or 16";
    case BASE_OPTION_REAL: return "a number such as 0.5";
    case BASE_OPTION_BYTES: return "a size such as 4096, 512MiB or 16GiB";
    case BASE_OPTION_TIME: return "a time with its unit such as 250us, 10ms or 1.5s";
    case BASE_OPTION_SHARE: return "a share such as 25% or 0.25";
    case BASE_OPTION_ENUM: return "one of the choices";
    case BASE_OPTION_TEXTLINE: return "one line of text";
    case BASE_OPTION_LIST: return "a list of texts";
    }
    return "";
}

/* "file:line:column: " of the message, as far as it is known. */
static const char *place_of(const struct base_option_source *source, char *to, size_t size)
{
    if (!source || !source->file) {
        to[0] = '\0';
    } else if (source->line > 0) {
        snprintf(to, size, "%s:%d:%d: ", source->file, source->line, source->column);
    } else {
        snprintf(to, size, "%s: ", source->file);
    }
    return to;
}

static int refuse_number(const struct base_option *option, const char *value, int code,
                         const char *place, struct base_err *err)
{
    if (code == -ERANGE) {
        const char *limits = option->limits[0] ? option->limits : NULL;
        if (option->type == BASE_OPTION_SHARE && !limits) limits = "0%..100%";
        return base_err_set(err, -EINVAL, "%s%s: \"%s\" is outside %s%s%s", place, option->key,
                            value, limits ? limits : "what its type can hold",
                            limits && option->unit[0] ? " " : "",
                            limits ? option->unit : "");
    }
    size_t length = strlen(value);
    char last = length > 0 ? value[length - 1] : '\0';
    if (option->type == BASE_OPTION_BYTES && length > 1 && strchr("kKmMgGtTpP", last)) {
        char unit = last == 'k' ? 'K' : (char)(last >= 'a' ? last - 'a' + 'A' : last);
        int digits = (int)length - 1;
        return base_err_set(err, -EINVAL, "%s%s: \"%s\" is ambiguous: write %.*s%ciB or %.*s%cB",
                            place, option->key, value, digits, value, unit, digits, value, unit);
    }
    return base_err_set(err, -EINVAL, "%s%s: \"%s\" is not %s", place, option->key, value,
                        shape_of(option->type));
}

static int set_number(void *field, const struct base_option *option, const char *value,
                      const char *place, struct base_err *err)
{
    union number number = { 0 };
    int rc = number_parse(option->type, value, &number);
    if (rc == 0 && !within_limits(option, &number)) rc = -ERANGE;
    if (rc < 0) return refuse_number(option, value, rc, place, err);
    switch (kind_of(option->type)) {
    case KIND_U64: *(uint64_t *)field = number.u; break;
    case KIND_I64: *(int64_t *)field = number.i; break;
    case KIND_DOUBLE: *(double *)field = number.d; break;
    }
    return 0;
}

static int bool_parse(const char *value, bool *to)
{
    static const char *const words[] = { "false", "true", "no", "yes", "off", "on" };
    for (int i = 0; i < (int)(sizeof words / sizeof words[0]); i++) {
        if (strcmp(value, words[i]) != 0) continue;
        *to = i % 2 == 1;
        return 0;
    }
    return -EINVAL;
}

static int choice_parse(const char *choices, const char *value)
{
    size_t length = strlen(value);
    for (int index = 0;; index++) {
        size_t choice_length = strcspn(choices, "|");
        if (length == choice_length && memcmp(choices, value, length) == 0) return index;
        if (!choices[choice_length]) return -EINVAL;
        choices += choice_length + 1;
    }
}

static int set_text(char *field, const struct base_option *option, const char *value,
                    const char *place, struct base_err *err)
{
    size_t length = strlen(value);
    if (length >= BASE_OPTION_TEXT) {
        return base_err_set(err, -EINVAL, "%s%s: the text is %zu bytes long; at most %d are kept",
                            place, option->key, length, BASE_OPTION_TEXT - 1);
    }
    for (size_t i = 0; i < length;) {
        int step = base_str_utf8_length(value + i, length - i);
        bool control = (unsigned char)value[i] < 0x20 || value[i] == 0x7f;
        if (step < 0 || control) {
            return base_err_set(err, -EINVAL, "%s%s: byte %zu of the text is %s", place,
                                option->key, i + 1,
                                control ? "a control character" : "not UTF-8");
        }
        i += (size_t)step;
    }
    memcpy(field, value, length + 1);
    return 0;
}

static int set_list(struct base_option_list *list, const struct base_option *option,
                    const char *value, bool begin, const char *place, struct base_err *err)
{
    if (begin) list->count = 0;
    if (list->count == BASE_OPTION_LIST_MAX) {
        return base_err_set(err, -EINVAL, "%s%s: more than %d texts in the list", place,
                            option->key, BASE_OPTION_LIST_MAX);
    }
    int rc = set_text(list->text[list->count], option, value, place, err);
    if (rc == 0) list->count++;
    return rc;
}

static int set_field(void *field, const struct base_option *option, const char *value, bool begin,
                     const char *place, struct base_err *err)
{
    int rc;
    switch (option->type) {
    case BASE_OPTION_BOOL:
        rc = bool_parse(value, field);
        if (rc == 0) return 0;
        return base_err_set(err, rc, "%s%s: \"%s\" is not %s", place, option->key, value,
                            shape_of(option->type));
    case BASE_OPTION_ENUM:
        rc = choice_parse(option->limits, value);
        if (rc < 0) {
            return base_err_set(err, rc, "%s%s: \"%s\" is not one of %s", place, option->key,
                                value, option->limits);
        }
        *(int *)field = rc;
        return 0;
    case BASE_OPTION_TEXTLINE: return set_text(field, option, value, place, err);
    case BASE_OPTION_LIST: return set_list(field, option, value, begin, place, err);
    default: return set_number(field, option, value, place, err);
    }
}

/* A key's last part alone, or one letter off, is enough to guess what was meant. */
static const char *nearest_key(const struct base_option_group *groups, size_t count,
                               const char *key)
{
    const char *keys[OPTIONS_MAX] = { NULL };
    size_t key_count = 0;
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count && key_count < OPTIONS_MAX; i++) {
            keys[key_count++] = groups[g].options[i].key;
        }
    }
    const char *dot = strrchr(key, '.');
    const char *last = dot ? dot + 1 : key;
    const char *alike = base_str_nearest(key, keys, key_count);
    for (size_t i = 0; i < key_count && !alike; i++) {
        dot = strrchr(keys[i], '.');
        if (strcmp(dot ? dot + 1 : keys[i], last) == 0) alike = keys[i];
    }
    return alike;
}

static int refuse_key(const struct base_option_group *groups, size_t count, const char *key,
                      const char *place, struct base_err *err)
{
    const char *nearest = nearest_key(groups, count, key);
    if (base_option_is_section(groups, count, key)) {
        return base_err_set(err, -EINVAL, "%s%s: is a section with keys under it, not a value",
                            place, key);
    }
    if (nearest) {
        return base_err_set(err, -EINVAL, "%s%.*s: unknown key; the nearest known one is %s",
                            place, KEY_MAX, key, nearest);
    }
    return base_err_set(err, -EINVAL, "%s%.*s: unknown key; --options lists the known ones",
                        place, KEY_MAX, key);
}

void base_option_defaults(const struct base_option_group *groups, size_t count)
{
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count; i++) {
            const struct base_option *option = &groups[g].options[i];
            char pair[KEY_MAX + BASE_OPTION_TEXT];
            struct base_err err = { 0 };
            int length = base_str_format(pair, sizeof pair, "%s=%s", option->key, option->initial);
            MUST(length > 0);
            int rc = base_option_set_pair(&groups[g], 1, pair, &err);
            if (rc < 0) fprintf(stderr, "default of %s: %s\n", option->key, err.text);
            MUST(rc == 0);
        }
    }
}

int base_option_set(const struct base_option_group *groups, size_t count, const char *key,
                    const char *value, const struct base_option_source *source, bool begin_list,
                    struct base_err *err)
{
    char place[BASE_OPTION_TEXT];
    place_of(source, place, sizeof place);
    const struct base_option_group *group = NULL;
    const struct base_option *option = find(groups, count, key, &group);
    if (!option) return refuse_key(groups, count, key, place, err);
    return set_field(field_of(group, option), option, value, begin_list, place, err);
}

int base_option_clear_list(const struct base_option_group *groups, size_t count, const char *key)
{
    const struct base_option_group *group = NULL;
    const struct base_option *option = find(groups, count, key, &group);
    if (!option) return -ENOENT;
    if (option->type != BASE_OPTION_LIST) return -EINVAL;
    ((struct base_option_list *)field_of(group, option))->count = 0;
    return 0;
}

/* "a,b" into the list; "" makes it empty. */
static int set_list_pair(const struct base_option_group *group, const struct base_option *option,
                         const char *value, const char *place, struct base_err *err)
{
    struct base_option_list *list = field_of(group, option);
    bool begin = true;
    if (!value[0]) list->count = 0;
    while (value[0]) {
        char one[BASE_OPTION_TEXT];
        size_t length = strcspn(value, ",");
        if (length >= sizeof one) {
            return base_err_set(err, -EINVAL, "%s%s: a text of the list is longer than %d bytes",
                                place, option->key, BASE_OPTION_TEXT - 1);
        }
        memcpy(one, value, length);
        one[length] = '\0';
        int rc = set_list(list, option, one, begin, place, err);
        if (rc < 0) return rc;
        begin = false;
        value += length + (value[length] == ',');
    }
    return 0;
}

int base_option_set_pair(const struct base_option_group *groups, size_t count, const char *pair,
                         struct base_err *err)
{
    const char *equals = strchr(pair, '=');
    char key[KEY_MAX];
    size_t length = equals ? (size_t)(equals - pair) : 0;
    if (length == 0) {
        return base_err_set(err, -EINVAL, "--set: \"%.100s\" is not key=value", pair);
    }
    if (length >= sizeof key) {
        return base_err_set(err, -EINVAL, "--set: no key is as long as \"%.40s...\"", pair);
    }
    memcpy(key, pair, length);
    key[length] = '\0';
    const struct base_option_group *group = NULL;
    const struct base_option *option = find(groups, count, key, &group);
    if (!option) return refuse_key(groups, count, key, "--set: ", err);
    if (option->type == BASE_OPTION_LIST) {
        return set_list_pair(group, option, equals + 1, "--set: ", err);
    }
    return set_field(field_of(group, option), option, equals + 1, true, "--set: ", err);
}

static int write_bytes(char *to, size_t size, uint64_t value)
{
    static const char *const units[] = { "", "KiB", "MiB", "GiB", "TiB", "PiB" };
    unsigned unit = 0;
    while (value > 0 && value % 1024 == 0 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024;
        unit++;
    }
    return base_str_format(to, size, "%llu%s", (unsigned long long)value, units[unit]);
}

static int write_time(char *to, size_t size, uint64_t value)
{
    static const struct {
        const char *name;
        uint64_t factor;
    } units[] = { { "h", 3600000000000u }, { "min", 60000000000u }, { "s", 1000000000u },
                  { "ms", 1000000u }, { "us", 1000u }, { "ns", 1u } };
    if (value == 0) return base_str_format(to, size, "0");
    unsigned unit = 0;
    while (value % units[unit].factor != 0) {
        unit++;
    }
    return base_str_format(to, size, "%llu%s", (unsigned long long)(value / units[unit].factor),
                           units[unit].name);
}

/* The shortest digits that read back as the same number. */
static int write_real(char *to, size_t size, double value)
{
    int length = 0;
    for (int digits = 6; digits <= 17; digits++) {
        double again;
        length = base_str_format(to, size, "%.*g", digits, value);
        if (length < 0 || (base_str_double_parse(to, &again) == 0 && again == value)) break;
    }
    return length;
}

static int write_share(char *to, size_t size, double value)
{
    double again;
    int length = base_str_format(to, size, "%.12g%%", value * 100.0);
    if (length > 0 && base_str_share_parse(to, &again) == 0 && again == value) return length;
    return write_real(to, size, value);
}

static int write_list(char *to, size_t size, const struct base_option_list *list)
{
    size_t used = 0;
    if (size > 0) to[0] = '\0';
    for (unsigned i = 0; i < list->count; i++) {
        int length = base_str_format(to + used, size - used, "%s%s", i ? "," : "", list->text[i]);
        if (length < 0) return length;
        used += (size_t)length;
    }
    return (int)used;
}

static int write_value(const struct base_option_group *group, const struct base_option *option,
                       char *to, size_t size)
{
    const void *field = field_of(group, option);
    char choice[BASE_OPTION_TEXT];
    switch (option->type) {
    case BASE_OPTION_BOOL:
        return base_str_format(to, size, "%s", *(const bool *)field ? "true" : "false");
    case BASE_OPTION_UINT:
        return base_str_format(to, size, "%llu", (unsigned long long)*(const uint64_t *)field);
    case BASE_OPTION_INT:
        return base_str_format(to, size, "%lld", (long long)*(const int64_t *)field);
    case BASE_OPTION_REAL: return write_real(to, size, *(const double *)field);
    case BASE_OPTION_BYTES: return write_bytes(to, size, *(const uint64_t *)field);
    case BASE_OPTION_TIME: return write_time(to, size, *(const uint64_t *)field);
    case BASE_OPTION_SHARE: return write_share(to, size, *(const double *)field);
    case BASE_OPTION_ENUM:
        return base_str_format(to, size, "%s", base_option_choice(option, *(const int *)field,
                                                                  choice, sizeof choice));
    case BASE_OPTION_TEXTLINE: return base_str_format(to, size, "%s", (const char *)field);
    case BASE_OPTION_LIST: return write_list(to, size, field);
    }
    return -EINVAL;
}

int base_option_get(const struct base_option_group *groups, size_t count, const char *key,
                    char *to, size_t size)
{
    const struct base_option_group *group = NULL;
    const struct base_option *option = find(groups, count, key, &group);
    if (!option) return -ENOENT;
    return write_value(group, option, to, size);
}

const char *base_option_choice(const struct base_option *option, int value, char *to, size_t size)
{
    const char *choice = option->limits;
    MUST(option->type == BASE_OPTION_ENUM && value >= 0);
    for (; value > 0; value--) {
        choice = strchr(choice, '|');
        MUST(choice);
        choice++;
    }
    snprintf(to, size, "%.*s", (int)strcspn(choice, "|"), choice);
    return to;
}

/* Characters that YAML takes for line breaks or refuses when they stand there as they are: C1
 * controls, U+2028, U+2029, the byte order mark and the last two of the plane. */
static unsigned must_escape(const unsigned char *text)
{
    if (text[0] == 0xc2 && text[1] < 0xa0) return text[1];
    if (text[0] < 0xe0 || text[0] >= 0xf0) return 0;
    unsigned code = (text[0] & 0xfu) << 12 | (text[1] & 0x3fu) << 6 | (text[2] & 0x3fu);
    bool awkward = code == 0x2028 || code == 0x2029 || code == 0xfeff || code >= 0xfffe;
    return awkward ? code : 0;
}

/* In double quotes, which YAML reads back byte for byte. The text is valid UTF-8: set_text. */
static void print_quoted(FILE *to, const char *text)
{
    fputc('"', to);
    while (*text) {
        int length = base_str_utf8_length(text, strlen(text));
        MUST(length > 0);
        unsigned code = must_escape((const unsigned char *)text);
        if (code) {
            fprintf(to, "\\u%04x", code);
        } else {
            if (*text == '"' || *text == '\\') fputc('\\', to);
            fwrite(text, 1, (size_t)length, to);
        }
        text += length;
    }
    fputc('"', to);
}

static void print_value(FILE *to, const struct base_option_group *group,
                        const struct base_option *option)
{
    if (option->type == BASE_OPTION_TEXTLINE) {
        print_quoted(to, field_of(group, option));
    } else if (option->type == BASE_OPTION_LIST) {
        const struct base_option_list *list = field_of(group, option);
        fputc('[', to);
        for (unsigned i = 0; i < list->count; i++) {
            if (i > 0) fputs(", ", to);
            print_quoted(to, list->text[i]);
        }
        fputc(']', to);
    } else {
        char text[64];
        int length = write_value(group, option, text, sizeof text);
        MUST(length > 0);
        fputs(text, to);
    }
}

/* All options in one row, so that a section spread over modules is printed once. */
struct row {
    const struct base_option_group *group;
    const struct base_option *option;
    bool done;
};

static void print_row(FILE *to, const struct row *row, size_t depth, bool with_text)
{
    int indent = (int)depth * 2;
    const char *dot = strrchr(row->option->key, '.');
    const char *name = dot ? dot + 1 : row->option->key;
    if (with_text) fprintf(to, "%*s# %s\n", indent, "", row->option->text);
    fprintf(to, "%*s%s: ", indent, "", name);
    print_value(to, row->group, row->option);
    fputc('\n', to);
}

/* Prints every row below `path` (with its final dot), sections where their first row stands. */
static void print_section(FILE *to, struct row *rows, size_t count, const char *path, size_t depth,
                          bool with_text)
{
    size_t length = strlen(path);
    MUST(depth < SEGMENTS_MAX);
    for (size_t i = 0; i < count; i++) {
        const char *key = rows[i].option->key;
        if (rows[i].done || strncmp(key, path, length) != 0) continue;
        const char *dot = strchr(key + length, '.');
        if (!dot) {
            print_row(to, &rows[i], depth, with_text);
            rows[i].done = true;
            continue;
        }
        char below[KEY_MAX];
        int used = base_str_format(below, sizeof below, "%.*s", (int)(dot - key) + 1, key);
        MUST(used > 0);
        fprintf(to, "%*s%.*s:\n", (int)depth * 2, "", (int)(dot - key - (int)length),
                key + length);
        print_section(to, rows, count, below, depth + 1, with_text);
    }
}

void base_option_print_yaml(FILE *to, const struct base_option_group *groups, size_t count,
                            bool with_text)
{
    struct row rows[OPTIONS_MAX];
    size_t row_count = 0;
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count; i++) {
            MUST(row_count < OPTIONS_MAX);
            rows[row_count++] = (struct row){ &groups[g], &groups[g].options[i], false };
        }
    }
    print_section(to, rows, row_count, "", 0, with_text);
}

void base_option_print_reference(FILE *to, const struct base_option_group *groups, size_t count)
{
    static const char *const types[] = { "bool", "uint", "int", "real", "bytes", "time", "share",
                                         "enum", "text", "list" };
    fputs("| key | type | default | limits | unit | meaning |\n|---|---|---|---|---|---|\n", to);
    for (size_t g = 0; g < count; g++) {
        for (size_t i = 0; i < groups[g].count; i++) {
            const struct base_option *option = &groups[g].options[i];
            fprintf(to, "| `%s` | %s | %s | ", option->key, types[option->type],
                    option->initial[0] ? option->initial : "\"\"");
            for (const char *c = option->limits; *c; c++) {
                fputs(*c == '|' ? " \\| " : (const char[]){ *c, '\0' }, to);
            }
            fprintf(to, " | %s | %s |\n", option->unit, option->text);
        }
    }
}
