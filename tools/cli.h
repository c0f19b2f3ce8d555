/* What every program's command line shares: sub-commands and flags as tables.
 *
 * A program is one `struct cli_program`; cli_main parses, prints help and calls. Help goes to
 * stdout and exits 0; misuse goes to stderr, names the nearest flag or command, and exits 2; a
 * command's own failure exits 1. Values come as `--flag value` or `--flag=value`; `--` ends flags.
 * Programs without sub-commands have one command whose name is NULL. A flag may stand before or
 * after the arguments; given twice, the last one holds.
 *
 * Every program has --help, --version and, from cli_main, --man, which prints its man page made
 * from the same tables (the build puts those under share/man).
 */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum cli_type { CLI_SWITCH, CLI_TEXT, CLI_UINT, CLI_REAL, CLI_BYTES, CLI_TIME, CLI_REPEATED };

/* Most of --profile-events: 4 GiB. */
enum { CLI_PROFILE_EVENTS_MAX = 1 << 26 };

/* At most this many values of a CLI_REPEATED flag (such as --set key=value). */
enum { CLI_REPEAT_MAX = 64 };
struct cli_list {
    unsigned count;
    const char *text[CLI_REPEAT_MAX];
};

struct cli_flag {
    const char *name;           /* without dashes: "seed"; "output|o" for --output, -o */
    enum cli_type type;
    void *value; /* bool, const char *, uint64_t, double, uint64_t bytes, uint64_t ns,
                  * struct cli_list: in the order of the types */
    const char *argument;       /* "FILE", "N"; NULL for switches */
    const char *text;           /* one sentence, no full stop */
};

struct cli_command {
    const char *name;
    const char *arguments;      /* "TRACE", "MODEL [FILE...]", "" */
    const char *text;           /* one line for the list of commands */
    const char *details;        /* paragraph for --help of the command; may be NULL */
    unsigned arguments_min, arguments_max;
    const struct cli_flag *flags;   /* ends with name = NULL; values may be preset defaults */
    int (*run)(int count, char **arguments);    /* exit code */
};

struct cli_program {
    const char *name;           /* "tier-replay" */
    const char *text;           /* one line */
    const char *details;        /* description for --help and the man page */
    const struct cli_command *commands;
    size_t command_count;
    const char *examples;       /* lines shown at the end of --help; may be NULL */
    const char *files;          /* man page FILES section; may be NULL */
};

/* Runs the program; returns the exit code for main. Stopped by a signal, it takes its temporary
 * files with it (base/temp.h). */
int cli_main(const struct cli_program *program, int argc, char **argv);

/* Prints "name: sentence" on stderr and returns `exit_code`. */
int cli_fail(int exit_code, const struct base_err *err);
int cli_misuse(const char *format, ...) BASE_PRINTF(1, 2);      /* returns 2 */

/* Progress on stderr: a bar with rate and time left on a terminal, a line every 10% elsewhere;
 * silent when `quiet` or when the work took under a second. */
struct cli_progress {
    const char *what;
    bool quiet;
    uint64_t started_ns, shown_ns;
    unsigned shown_tenth;
    bool shown;
};
void cli_progress_begin(struct cli_progress *progress, const char *what, bool quiet);
void cli_progress_bytes(struct cli_progress *progress, uint64_t done, uint64_t total);
/* The same of work that has no bytes; `what` may change under way, the time left is of all. */
void cli_progress_share(struct cli_progress *progress, const char *what, double share);
void cli_progress_end(struct cli_progress *progress);

/* A table on stdout: columns sized to fit, numbers right-aligned. Rows of `columns` texts. */
struct cli_table;
int cli_table_create(struct cli_table **out, unsigned columns, const char *const *headings);
void cli_table_row(struct cli_table *table, const char *const *cells);
void cli_table_print(struct cli_table *table, FILE *to);
void cli_table_destroy(struct cli_table *table);

#endif
