/* Settings that the user's deployment names and whose part is not built yet.
 *
 * They are known keys, so that a configuration written for the whole can be read and checked, and
 * each accepts its default only: anything else is refused at start with the reason, never ignored.
 * The keys stand in the tables of the parts that they belong to. Cold; any thread.
 */
#ifndef ENGINE_UNBUILT_H
#define ENGINE_UNBUILT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/option.h"

/* BASE_ECONFIG naming the first key of an unbuilt part that does not have its default; 0 if all
 * do. `groups` are all groups of the stack. */
int eng_unbuilt_check(const struct base_option_group *groups, size_t count, struct base_err *err);

#endif
