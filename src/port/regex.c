#include "port/regex.h"

#include <errno.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { JIT_STACK_FIRST = 32 * 1024, JIT_STACK_MAX = 1024 * 1024 };

struct port_regex {
    pcre2_code *code;
};

struct port_regex_match {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

int port_regex_compile(struct port_regex **out, const char *pattern, size_t size,
                       struct base_err *err)
{
    *out = NULL;
    struct port_regex *regex = calloc(1, sizeof *regex);
    if (!regex) return base_err_set(err, -ENOMEM, "no memory for a regular expression");
    int code;
    size_t offset;
    regex->code = pcre2_compile((PCRE2_SPTR)pattern, size,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset,
                                NULL);
    if (!regex->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(code, text, sizeof text);
        port_regex_free(regex);
        return base_err_set(err, BASE_EFORMAT, "regular expression, byte %zu: %s", offset,
                            (const char *)text);
    }
    /* Where there is no JIT (or it may not map executable memory) the interpreter does the work. */
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    *out = regex;
    return 0;
}

void port_regex_free(struct port_regex *regex)
{
    if (!regex) return;
    pcre2_code_free(regex->code);
    free(regex);
}

int port_regex_match_create(struct port_regex_match **out)
{
    *out = NULL;
    struct port_regex_match *match = calloc(1, sizeof *match);
    if (!match) return -ENOMEM;
    match->data = pcre2_match_data_create(1, NULL);
    match->context = pcre2_match_context_create(NULL);
    match->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX, NULL);
    if (!match->data || !match->context) {
        port_regex_match_destroy(match);
        return -ENOMEM;
    }
    if (match->stack) pcre2_jit_stack_assign(match->context, NULL, match->stack);
    *out = match;
    return 0;
}

void port_regex_match_destroy(struct port_regex_match *match)
{
    if (!match) return;
    pcre2_jit_stack_free(match->stack);
    pcre2_match_context_free(match->context);
    pcre2_match_data_free(match->data);
    free(match);
}

int port_regex_find(const struct port_regex *regex, struct port_regex_match *match,
                    const char *text, size_t size, size_t from, size_t *begin, size_t *end)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int rc = pcre2_match(regex->code, subject, size, from, PCRE2_NO_UTF_CHECK, match->data,
                         match->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        /* The interpreter keeps its stack on the heap, where there is more room. */
        rc = pcre2_match(regex->code, subject, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         match->data, match->context);
    }
    switch (rc) {
    case PCRE2_ERROR_NOMATCH: return 0;
    case PCRE2_ERROR_MATCHLIMIT:
    case PCRE2_ERROR_DEPTHLIMIT:
    case PCRE2_ERROR_HEAPLIMIT: return -E2BIG;
    case PCRE2_ERROR_NOMEMORY: return -ENOMEM;
    default: break;
    }
    if (rc < 0) return -EINVAL;
    const size_t *range = pcre2_get_ovector_pointer(match->data);
    *begin = range[0];
    *end = range[1];
    return 1;
}
