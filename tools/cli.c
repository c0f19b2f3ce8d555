#include "tools/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "base/str.h"
#include "base/temp.h"
#include "tools/cli_help.h"

enum { EXIT_MISUSE = 2, NAMES_MAX = 128, NAME_BYTES = 64 };

static const char size_shape[] = "a size such as 4096, 16GiB (of 1024) or 16GB (of 1000)";

/* Who speaks in messages. Set once by cli_main, before any command runs. */
static const char *speaker = "expertier";
static const struct cli_command *speaking_command;

static void print_where_help_is(void)
{
    bool named = speaking_command && speaking_command->name;
    fprintf(stderr, "Try '%s%s%s --help'.\n", speaker, named ? " " : "",
            named ? speaking_command->name : "");
}

int cli_misuse(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", speaker);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    print_where_help_is();
    return EXIT_MISUSE;
}

int cli_fail(int exit_code, const struct base_err *err)
{
    fprintf(stderr, "%s: %s\n", speaker, err->text[0] ? err->text : base_err_name(err->code));
    return exit_code;
}

/* "output|o": does `given`, of that length, name this flag by its long or its short form? */
static bool flag_is(const struct cli_flag *flag, const char *given, size_t length)
{
    const char *name = flag->name;
    for (;;) {
        size_t part = strcspn(name, "|");
        if (part == length && memcmp(name, given, length) == 0) return true;
        if (!name[part]) return false;
        name += part + 1;
    }
}

static const struct cli_flag *find_flag(const struct cli_flag *flags, const char *given,
                                        size_t length)
{
    for (; flags && flags->name; flags++) {
        if (flag_is(flags, given, length)) return flags;
    }
    return NULL;
}

static int refuse_flag(const struct cli_command *command, const char *given, size_t length)
{
    char names[NAMES_MAX][NAME_BYTES];
    const char *list[NAMES_MAX];
    char wanted[NAME_BYTES];
    size_t count = 0;
    const struct cli_flag *tables[] = { command ? command->flags : NULL, cli_common_flags };
    for (size_t t = 0; t < 2; t++) {
        for (const struct cli_flag *f = tables[t]; f && f->name && count < NAMES_MAX; f++) {
            int part = (int)strcspn(f->name, "|");
            snprintf(names[count], sizeof names[count], "%.*s", part, f->name);
            list[count] = names[count];
            count++;
        }
    }
    snprintf(wanted, sizeof wanted, "%.*s", (int)length, given);
    const char *nearest = count > 0 ? base_str_nearest(wanted, list, count) : NULL;
    const char *dashes = length == 1 ? "-" : "--";
    if (!nearest) return cli_misuse("unknown flag %s%s", dashes, wanted);
    return cli_misuse("unknown flag %s%s; the nearest known one is %s%s", dashes, wanted,
                      strlen(nearest) == 1 ? "-" : "--", nearest);
}

static int refuse_value(const struct cli_flag *flag, const char *value, int rc, const char *shape)
{
    char form[NAME_BYTES];
    cli_flag_form(flag, form, sizeof form);
    if (rc == -ERANGE) return cli_misuse("%s: \"%s\" is too large", form, value);
    return cli_misuse("%s: \"%s\" is not %s", form, value, shape);
}

/* Stores the text in the flag's variable. 0 or the exit code of a misuse. */
static int set_flag(const struct cli_flag *flag, const char *value)
{
    int rc = 0;
    struct cli_list *list;
    switch (flag->type) {
    case CLI_SWITCH:
        *(bool *)flag->value = true;
        return 0;
    case CLI_TEXT:
        *(const char **)flag->value = value;
        return 0;
    case CLI_UINT:
        rc = base_str_u64_parse(value, flag->value);
        return rc < 0 ? refuse_value(flag, value, rc, "a whole number such as 16") : 0;
    case CLI_REAL:
        rc = base_str_double_parse(value, flag->value);
        return rc < 0 ? refuse_value(flag, value, rc, "a number such as 0.5") : 0;
    case CLI_BYTES:
        rc = base_str_bytes_parse(value, flag->value);
        return rc < 0 ? refuse_value(flag, value, rc, size_shape) : 0;
    case CLI_TIME:
        rc = base_str_duration_parse(value, flag->value);
        return rc < 0 ? refuse_value(flag, value, rc, "a time such as 250us, 10ms or 1.5s") : 0;
    case CLI_REPEATED:
        list = flag->value;
        if (list->count == CLI_REPEAT_MAX) {
            return cli_misuse("--%s: given more than %d times", flag->name, CLI_REPEAT_MAX);
        }
        list->text[list->count++] = value;
        return 0;
    }
    return 0;
}

/* What parsing ends in: a command to run, or an exit code that is already decided. */
struct parsed {
    bool done;
    int exit_code;
    int count;                  /* arguments, kept at the front of argv */
};

static struct parsed decided(int exit_code)
{
    return (struct parsed){ .done = true, .exit_code = exit_code };
}

/* --help, --version, --man: prints and decides; false for another flag. */
static bool common_flag(const struct cli_program *program, const struct cli_command *command,
                        const char *given, size_t length)
{
    const struct cli_flag *flag = find_flag(cli_common_flags, given, length);
    if (!flag) return false;
    if (flag_is(flag, "help", 4)) {
        cli_help_print(stdout, program, command);
    } else if (flag_is(flag, "version", 7)) {
        printf("%s (Expertier) %s\n", program->name, EXPERTIER_VERSION);
    } else {
        cli_man_print(stdout, program);
    }
    return true;
}

/* One flag at argv[*at], with its value there or in the next place. 0, or a misuse's exit code. */
static int parse_flag(const struct cli_command *command, int argc, char **argv, int *at,
                      const char *given, size_t length)
{
    const struct cli_flag *flag = find_flag(command->flags, given, length);
    char form[NAME_BYTES];
    if (!flag) return refuse_flag(command, given, length);
    cli_flag_form(flag, form, sizeof form);
    const char *value = given[length] == '=' ? given + length + 1 : NULL;
    if (flag->type == CLI_SWITCH) {
        if (value) return cli_misuse("%s takes no value", form);
        return set_flag(flag, NULL);
    }
    if (!value && *at + 1 < argc) {
        value = argv[*at + 1];
        /* "--model --prompt x" forgot the model; "--model=--prompt" really means it. */
        if (strncmp(value, "--", 2) == 0 && value[2]) {
            return cli_misuse("%s needs a value; \"%s\" looks like the next flag", form, value);
        }
        ++*at;
    }
    if (!value) return cli_misuse("%s needs a value", form);
    return set_flag(flag, value);
}

static struct parsed parse(const struct cli_program *program, const struct cli_command *command,
                           int argc, char **argv)
{
    struct parsed parsed = { 0 };
    bool flags_ended = false;
    for (int i = 0; i < argc; i++) {
        char *text = argv[i];
        if (flags_ended || text[0] != '-' || !text[1]) {
            argv[parsed.count++] = text;
            continue;
        }
        if (strcmp(text, "--") == 0) {
            flags_ended = true;
            continue;
        }
        bool is_long = text[1] == '-';
        const char *given = text + 1 + is_long;
        size_t length = strcspn(given, "=");
        /* One letter has one dash, a word has two: "-model" is told how to be written. */
        if (is_long != (length > 1)) {
            return decided(cli_misuse("unknown flag %s; write %s%.*s", text,
                                      is_long ? "-" : "--", (int)length, given));
        }
        if (common_flag(program, command, given, length)) return decided(EXIT_SUCCESS);
        int code = parse_flag(command, argc, argv, &i, given, length);
        if (code != 0) return decided(code);
    }
    return parsed;
}

static int check_count(const struct cli_command *command, int count)
{
    const char *form = command->arguments && command->arguments[0] ? command->arguments : "none";
    unsigned given = (unsigned)count;
    if (given < command->arguments_min) {
        bool several = given == 0 && command->arguments_min > 1;
        return cli_misuse("%s argument%s missing: %s", given > 0 ? "an" : "the",
                          several ? "s are" : " is", form);
    }
    if (given > command->arguments_max) {
        return cli_misuse("%u argument%s given; expected: %s", given, given == 1 ? "" : "s", form);
    }
    return 0;
}

static const struct cli_command *find_command(const struct cli_program *program, const char *name)
{
    for (size_t i = 0; i < program->command_count; i++) {
        if (strcmp(program->commands[i].name, name) == 0) return &program->commands[i];
    }
    return NULL;
}

static int refuse_command(const struct cli_program *program, const char *name)
{
    const char *names[NAMES_MAX];
    MUST(program->command_count <= NAMES_MAX);
    for (size_t i = 0; i < program->command_count; i++) {
        names[i] = program->commands[i].name;
    }
    const char *nearest = base_str_nearest(name, names, program->command_count);
    if (!nearest) return cli_misuse("unknown command \"%s\"", name);
    return cli_misuse("unknown command \"%s\"; the nearest known one is \"%s\"", name, nearest);
}

/* Which command the first argument names; NULL when the exit code is decided without one. */
static const struct cli_command *choose(const struct cli_program *program, int argc, char **argv,
                                        int *exit_code)
{
    if (argc < 2) {
        cli_help_print(stderr, program, NULL);
        *exit_code = EXIT_MISUSE;
        return NULL;
    }
    const char *first = argv[1];
    if (first[0] == '-') {
        const char *given = first + 1 + (first[1] == '-');
        *exit_code = EXIT_SUCCESS;
        if (common_flag(program, NULL, given, strlen(given))) return NULL;
        *exit_code = cli_misuse("a command comes first, then its flags: not \"%s\"", first);
        return NULL;
    }
    const struct cli_command *command = find_command(program, first);
    if (!command) *exit_code = refuse_command(program, first);
    return command;
}

static int run(const struct cli_program *program, int argc, char **argv)
{
    const struct cli_command *command = &program->commands[0];
    int exit_code = EXIT_SUCCESS, first = 1;
    if (program->command_count > 1 || command->name) {
        command = choose(program, argc, argv, &exit_code);
        if (!command) return exit_code;
        first = 2;
    }
    speaking_command = command;
    struct parsed parsed = parse(program, command, argc - first, argv + first);
    if (parsed.done) return parsed.exit_code;
    exit_code = check_count(command, parsed.count);
    if (exit_code != 0) return exit_code;
    return command->run(parsed.count, argv + first);
}

int cli_main(const struct cli_program *program, int argc, char **argv)
{
    MUST(program->command_count >= 1);
    speaker = program->name;
    speaking_command = NULL;
    base_temp_guard();
    int exit_code = run(program, argc, argv);
    /* A full disk behind stdout must not look like success. */
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && exit_code == EXIT_SUCCESS) {
        fprintf(stderr, "%s: standard output: %s\n", speaker,
                errno ? strerror(errno) : "write failed");
        exit_code = EXIT_FAILURE;
    }
    return exit_code;
}
