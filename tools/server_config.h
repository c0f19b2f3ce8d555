/* The settings of tier-server: read from a file and the command line, checked, compared. Main
 * thread only.
 */
#ifndef TOOLS_SERVER_CONFIG_H
#define TOOLS_SERVER_CONFIG_H

#include <stdio.h>

#include "base/err.h"
#include "server/settings.h"
#include "tools/cli.h"

/* Where settings come from: the defaults, then the file (NULL = the built-in one), then the pairs,
 * then what has a flag of its own. */
struct cli_server_source {
    const char *file;
    const struct cli_list *set;
    const char *listen, *port, *trace;  /* NULL = not given */
    bool schema_only;           /* what this build cannot do is no error */
};

/* Reads them; BASE_ECONFIG and others with file:line:column. */
int cli_server_config_read(struct srv_settings *to, const struct cli_server_source *from,
                           struct base_err *err);
/* The name of the file, for messages. */
const char *cli_server_config_name(const struct cli_server_source *from);

/* What makes no sense without looking at a model, and with one (NULL = without) what its sizes do
 * not allow. `note` gets a sentence when the model's part could not be checked, else "". */
int cli_server_config_check(const struct srv_settings *settings, const char *model_dir, char *note,
                            size_t note_size, struct base_err *err);

/* Prints what differs between the running server of these settings' admin socket, or the defaults
 * where none runs, and `settings`: a key a line, and whether it can change live. */
int cli_server_config_diff(const struct srv_settings *settings, FILE *to, struct base_err *err);

#endif
