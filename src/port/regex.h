/* Regular expressions for the tokenizer's splits (library: PCRE2, UTF mode, Unicode properties, JIT
 * where the machine has it). A compiled pattern may be used by any thread at once; matching uses a
 * match object that belongs to one thread. */
#ifndef PORT_REGEX_H
#define PORT_REGEX_H

#include <stddef.h>

#include "base/err.h"

struct port_regex;
struct port_regex_match;

/* BASE_EFORMAT with the pattern's offset on a bad pattern. */
int port_regex_compile(struct port_regex **out, const char *pattern, size_t size,
                       struct base_err *err);
void port_regex_free(struct port_regex *regex);

int port_regex_match_create(struct port_regex_match **out);
void port_regex_match_destroy(struct port_regex_match *match);

/* Finds the first match at or after `from` in valid UTF-8 text. 1 with its range, 0 if none, or a
 * negative code (-E2BIG when the match limit was hit). The text must be valid UTF-8: not
 * checked. */
int port_regex_find(const struct port_regex *regex, struct port_regex_match *match,
                    const char *text, size_t size, size_t from, size_t *begin, size_t *end);

#endif
