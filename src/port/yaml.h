/* YAML settings into option tables (library: libyaml).
 *
 * Nested maps become dotted keys, sequences of scalars fill LIST options. Anchors, tags, duplicate
 * keys, several documents and nesting beyond 16 are refused. Unknown keys are refused with
 * file:line:column and the nearest known key. Cold; any thread.
 */
#ifndef PORT_YAML_H
#define PORT_YAML_H

#include <stddef.h>

#include "base/err.h"
#include "base/option.h"

/* Applies the file over what the structs hold. 0, -errno of the file, or BASE_ECONFIG with the
 * sentence. On error the structs may be partly changed: load into a copy where that matters. */
int port_yaml_load(const char *path, const struct base_option_group *groups, size_t count,
                   struct base_err *err);
int port_yaml_parse(const char *text, size_t size, const char *name,
                    const struct base_option_group *groups, size_t count, struct base_err *err);

#endif
