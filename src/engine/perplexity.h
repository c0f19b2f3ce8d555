/* How well a model predicts a text: the whole stack, one window of tokens after the other.
 *
 * Perplexity is exp of the mean negative log-probability of each token of the text but the first of
 * a window, given those before it in its window. Windows begin with the tokens that the model's
 * chat template puts before a prompt (BOS) and do not overlap. Cold; one thread.
 */
#ifndef ENGINE_PERPLEXITY_H
#define ENGINE_PERPLEXITY_H

#include "engine/stack.h"

enum { ENG_PERPLEXITY_WINDOW = 512 };

struct eng_perplexity {
    uint64_t tokens;   /* that were predicted */
    double nats;       /* mean negative log-probability of one */
    double perplexity; /* exp(nats) */
};

/* Opens the stack as `args` says (its hooks and trace are not used), reads the text through it, and
 * closes it. `window` counts BOS; 0 = ENG_PERPLEXITY_WINDOW, less where the model's longest
 * sequence is shorter. `progress` may be NULL; non-zero from it stops with -ECANCELED. */
int eng_perplexity(struct eng_perplexity *out, const struct eng_stack_args *args, const char *text,
                   size_t size, uint32_t window,
                   int (*progress)(void *context, uint64_t done, uint64_t total), void *context,
                   struct base_err *err);

/* Whether this text has enough tokens for the model in this folder, without opening the rest of it:
 * 0, or what eng_perplexity would say of it. */
int eng_perplexity_check(const char *model_dir, const char *text, size_t size,
                         struct base_err *err);

#endif
