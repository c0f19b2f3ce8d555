/* Help texts and man pages, printed from the tables of a program. Private to the cli library. */
#ifndef TOOLS_CLI_HELP_H
#define TOOLS_CLI_HELP_H

#include <stdio.h>

#include "tools/cli.h"

/* The flags that every program has, in the same form as its own; ends with name = NULL. */
extern const struct cli_flag cli_common_flags[];

/* "--output FILE" or "-o FILE" or "--output, -o FILE", as help and messages show it. */
const char *cli_flag_form(const struct cli_flag *flag, char *to, size_t size);

/* Help of the program, or of one command of it when `command` is not NULL. */
void cli_help_print(FILE *to, const struct cli_program *program, const struct cli_command *command);

/* The program's man page (section 1), roff source. */
void cli_man_print(FILE *to, const struct cli_program *program);

#endif
