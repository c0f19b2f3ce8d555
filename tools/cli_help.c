#include "tools/cli_help.h"

#include <ctype.h>
#include <string.h>

#include "base/str.h"

enum { WIDTH = 90, FLAG_COLUMN = 26 };

const struct cli_flag cli_common_flags[] = {
    { "help|h", CLI_SWITCH, NULL, NULL, "print this help" },
    { "version", CLI_SWITCH, NULL, NULL, "print the version" },
    { "man", CLI_SWITCH, NULL, NULL, "print the man page (roff)" },
    { NULL, CLI_SWITCH, NULL, NULL, NULL },
};

const char *cli_flag_form(const struct cli_flag *flag, char *to, size_t size)
{
    size_t used = 0;
    to[0] = '\0';
    for (const char *name = flag->name; *name;) {
        size_t part = strcspn(name, "|");
        int rc = base_str_format(to + used, size - used, "%s%s%.*s", used ? ", " : "",
                                 part == 1 ? "-" : "--", (int)part, name);
        if (rc < 0) return to;
        used += (size_t)rc;
        name += part + (name[part] == '|');
    }
    if (flag->argument) snprintf(to + used, size - used, " %s", flag->argument);
    return to;
}

/* Writes words up to WIDTH columns; lines after the first begin at `indent`. Lines that begin with
 * a blank (examples) are kept as they are, and so are empty ones; other newlines are blanks. */
static void print_wrapped(FILE *to, const char *text, unsigned column, unsigned indent)
{
    bool kept = false;              /* the line is one of those */
    while (*text) {
        if (*text == '\n' && !kept && column > 0 && text[1] != '\n' && text[1] != ' ') {
            text++;
            continue;
        }
        if (*text == '\n') {
            kept = false;
            fputc('\n', to);
            text++;
            column = 0;
            continue;
        }
        if (column == 0) {
            if (indent > 0) fprintf(to, "%*s", (int)indent, "");
            column = indent;
            if (*text == ' ') {
                size_t line = strcspn(text, "\n");
                fwrite(text, 1, line, to);
                text += line;
                kept = true;
                continue;
            }
        }
        size_t word = strcspn(text, " \n");
        bool first = column == indent;
        if (!first && column + 1 + word > WIDTH) {
            fprintf(to, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        if (!first) {
            fputc(' ', to);
            column++;
        }
        fwrite(text, 1, word, to);
        column += (unsigned)word;
        text += word;
        while (*text == ' ') {
            text++;
        }
    }
    fputc('\n', to);
}

static void print_flags(FILE *to, const struct cli_flag *flags)
{
    for (; flags && flags->name; flags++) {
        char form[96];
        cli_flag_form(flags, form, sizeof form);
        unsigned used = (unsigned)fprintf(to, "  %s", form);
        if (used + 2 > FLAG_COLUMN) {
            fputc('\n', to);
            used = 0;
        }
        fprintf(to, "%*s", (int)(FLAG_COLUMN - used), "");
        print_wrapped(to, flags->text, FLAG_COLUMN, FLAG_COLUMN);
    }
}

/* Lines as they are, two columns in. */
static void print_examples(FILE *to, const char *text)
{
    while (*text) {
        text += strspn(text, " ");
        size_t line = strcspn(text, "\n");
        fprintf(to, "%s%.*s\n", line > 0 ? "  " : "", (int)line, text);
        text += line + (text[line] == '\n');
    }
}

static bool has_commands(const struct cli_program *program)
{
    return program->command_count > 1 || program->commands[0].name;
}

static void print_usage(FILE *to, const struct cli_program *program,
                        const struct cli_command *command)
{
    fprintf(to, "Usage: %s", program->name);
    if (command && command->name) fprintf(to, " %s", command->name);
    if (!command) fputs(" COMMAND", to);
    fputs(" [FLAGS]", to);
    if (!command) fputs(" [ARGUMENTS]", to);
    if (command && command->arguments && command->arguments[0]) {
        fprintf(to, " %s", command->arguments);
    }
    fputc('\n', to);
}

void cli_help_print(FILE *to, const struct cli_program *program, const struct cli_command *command)
{
    if (!command && !has_commands(program)) command = &program->commands[0];
    bool whole = !command || !command->name;        /* the program's own page */
    if (whole) {
        fprintf(to, "%s: %s\n\n", program->name, program->text);
    } else {
        fprintf(to, "%s %s: %s\n\n", program->name, command->name, command->text);
    }
    print_usage(to, program, command);
    if (whole && program->details) {
        fputc('\n', to);
        print_wrapped(to, program->details, 0, 0);
    }
    if (command && command->details) {
        fputc('\n', to);
        print_wrapped(to, command->details, 0, 0);
    }
    if (!command) {
        fputs("\nCommands:\n", to);
        for (size_t i = 0; i < program->command_count; i++) {
            fprintf(to, "  %-12s ", program->commands[i].name);
            print_wrapped(to, program->commands[i].text, 15, 15);
        }
        fprintf(to, "\nFlags of a command: %s COMMAND --help\n", program->name);
    }
    fputs("\nFlags:\n", to);
    if (command) print_flags(to, command->flags);
    print_flags(to, cli_common_flags);
    if (whole && program->examples) {
        fputs("\nExamples:\n", to);
        print_examples(to, program->examples);
    }
}

/* Text with what roff would take for its own escaped, and lines kept where `literal`. */
static void print_roff(FILE *to, const char *text, bool literal)
{
    bool begin = true, ended = false;
    for (; *text; text++) {
        ended = *text == '\n' && !text[1];
        if (begin && (*text == '.' || *text == '\'')) fputs("\\&", to);
        begin = *text == '\n';
        if (begin && text[1] == '\n' && !literal) {
            fputs("\n.PP", to);             /* an empty line parts paragraphs */
            continue;
        }
        switch (*text) {
        case '\\': fputs("\\e", to); break;
        case '-': fputs("\\-", to); break;
        default: fputc(*text, to); break;
        }
    }
    if (!ended) fputc('\n', to);
}

static void print_roff_flags(FILE *to, const struct cli_flag *flags)
{
    for (; flags && flags->name; flags++) {
        char form[96];
        fputs(".TP\n.B ", to);
        print_roff(to, cli_flag_form(flags, form, sizeof form), false);
        print_roff(to, flags->text, false);
    }
}

static void print_roff_lines(FILE *to, const char *heading, const char *text)
{
    if (!text) return;
    fprintf(to, ".SH %s\n.nf\n", heading);
    print_roff(to, text, true);
    fputs(".fi\n", to);
}

static void print_roff_command(FILE *to, const struct cli_program *program,
                               const struct cli_command *command)
{
    if (command->name) {
        fputs(".SS ", to);
        print_roff(to, command->name, false);
        fputs(".B ", to);
        print_roff(to, program->name, false);
        fprintf(to, ".I %s", command->name);
        fputs(" [FLAGS] ", to);
        print_roff(to, command->arguments ? command->arguments : "", false);
        fputs(".PP\n", to);
        print_roff(to, command->text, false);
    }
    if (command->details) {
        fputs(".PP\n", to);
        print_roff(to, command->details, false);
    }
    print_roff_flags(to, command->flags);
}

void cli_man_print(FILE *to, const struct cli_program *program)
{
    fputs(".TH ", to);
    for (const char *c = program->name; *c; c++) {
        if (*c == '-') fputc('\\', to);
        fputc(toupper((unsigned char)*c), to);
    }
    fprintf(to, " 1 \"\" \"Expertier %s\" \"Expertier\"\n.SH NAME\n", EXPERTIER_VERSION);
    print_roff(to, program->name, false);
    fputs("\\- ", to);
    print_roff(to, program->text, false);
    fputs(".SH SYNOPSIS\n.B ", to);
    print_roff(to, program->name, false);
    if (has_commands(program)) {
        fputs(".I COMMAND\n[FLAGS] [ARGUMENTS]\n", to);
    } else {
        fputs("[FLAGS] ", to);
        print_roff(to, program->commands[0].arguments ? program->commands[0].arguments : "", false);
    }
    fputs(".SH DESCRIPTION\n", to);
    print_roff(to, program->details ? program->details : program->text, false);
    fprintf(to, ".SH %s\n", has_commands(program) ? "COMMANDS" : "OPTIONS");
    for (size_t i = 0; i < program->command_count; i++) {
        print_roff_command(to, program, &program->commands[i]);
    }
    if (has_commands(program)) fputs(".SH OPTIONS\n", to);
    print_roff_flags(to, cli_common_flags);
    fputs(".SH EXIT STATUS\n0 on success, 1 when the work failed, 2 when it was asked wrongly.\n",
          to);
    print_roff_lines(to, "EXAMPLES", program->examples);
    print_roff_lines(to, "FILES", program->files);
}
