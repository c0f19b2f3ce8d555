/* The settings of tier-server: read from a file and the command line, checked, compared. Main
 * thread only.
 */
#ifndef TOOLS_SERVER_CONFIG_H
#define TOOLS_SERVER_CONFIG_H

#include <stdio.h>

#include "base/buf.h"
#include "base/err.h"
#include "server/admin_socket.h"
#include "server/settings.h"
#include "tools/cli.h"

/* Where settings come from: the defaults, then the file (NULL = the built-in one), then the pairs,
 * then what has a flag of its own. */
struct cli_server_source {
    const char *file;
    const struct cli_list *set;
    const char *listen, *port, *trace;  /* NULL = not given */
    bool schema_only;           /* what this build cannot do is no error */
    /* Not NULL: a running server. Its command line comes right after the file, as at SIGHUP, and
     * server.port and server.admin_listen are not taken from ours, which only finds it. */
    const struct cli_server_running *running;
};

/* The server that answers at the admin socket of some settings. */
struct cli_server_running {
    bool there;
    char path[SRV_ADMIN_PATH];
    struct srv_settings settings;       /* its own; the defaults when it is not there */
    struct base_buf command_line;       /* KEY=VALUE a line */
};

/* Reads them; BASE_ECONFIG and others with file:line:column. */
int cli_server_config_read(struct srv_settings *to, const struct cli_server_source *from,
                           struct base_err *err);
/* The name of the file, for messages. */
const char *cli_server_config_name(const struct cli_server_source *from);

/* What the command line sets, KEY=VALUE a line; the caller frees. NULL when memory is short. */
char *cli_server_config_command_line(const struct cli_server_source *from);

/* What makes no sense without looking at a model, and with one (NULL = without) what its sizes do
 * not allow. `note` gets a sentence when the model's part could not be checked, else "". */
int cli_server_config_check(const struct srv_settings *settings, const char *model_dir, char *note,
                            size_t note_size, struct base_err *err);

/* Asks the server at the admin socket of `settings`. That there is none is no error. `running` ends
 * with cli_server_config_forget, also on an error. */
int cli_server_config_ask(struct cli_server_running *running, const struct srv_settings *settings,
                          struct base_err *err);
void cli_server_config_forget(struct cli_server_running *running);

/* Prints what differs between its settings and `settings`: a key a line, and whether it can change
 * live. */
void cli_server_config_diff(const struct cli_server_running *running,
                            const struct srv_settings *settings, FILE *to);

#endif
