/* Settings of the tiers for tests: defaults and "key=value" pairs; a refused one fails the test. */
#ifndef TESTS_SUPPORT_TIER_SETTINGS_H
#define TESTS_SUPPORT_TIER_SETTINGS_H

#include <check.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/option.h"
#include "base/str.h"
#include "tiering/tiering.h"

enum { TIER_SETTINGS_GROUPS = 3 };

#define TIER_SETTINGS_OF(config, io) \
    { \
        { "tiers", tier_options, tier_option_count, config }, \
        { "prefetch", tier_prefetch_options, tier_prefetch_option_count, config }, \
        { "io", tier_io_options, tier_io_option_count, io }, \
    }

static inline void tier_settings_default(struct tier_config *config, struct tier_io_config *io)
{
    struct base_option_group groups[] = TIER_SETTINGS_OF(config, io);
    base_option_defaults(groups, TIER_SETTINGS_GROUPS);
}

static inline void tier_settings_set(struct tier_config *config, struct tier_io_config *io,
                                     const char *format, ...) BASE_PRINTF(3, 4);
static inline void tier_settings_set(struct tier_config *config, struct tier_io_config *io,
                                     const char *format, ...)
{
    struct base_option_group groups[] = TIER_SETTINGS_OF(config, io);
    char pair[BASE_OPTION_TEXT * 2];
    struct base_err err = { 0 };
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(pair, sizeof pair, format, arguments);
    va_end(arguments);
    ck_assert_msg(base_option_set_pair(groups, TIER_SETTINGS_GROUPS, pair, &err) == 0, "%s",
                  err.text);
}

#endif
