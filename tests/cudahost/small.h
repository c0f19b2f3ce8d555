/* A random small model with the tokenizer of models/pebble, for the whole engine on the emulated
 * card. */
#ifndef SMALL_H
#define SMALL_H

#include <stddef.h>

enum { SMALL_VOCAB = 4096 };    /* the tokenizer's */

/* Makes a folder "NAME_XXXXXX" with it and puts its path into `dir`; tiny_remove. */
void small_model(char *dir, size_t size, const char *name);

/* One weight of the head is no number any more, and so is one logit of every row. */
void small_model_spoil(const char *dir);

/* Short prompts for pebble, out of its corpus. */
enum { SMALL_PROMPTS = 20 };
extern const char *const small_prompts[SMALL_PROMPTS];

#endif
