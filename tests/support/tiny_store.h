/* A small model on disk with its expert index open, for tests of what stands on the store.
 *
 * Failures end the process with a sentence: a test cannot go on without its store.
 */
#ifndef TESTS_SUPPORT_TINY_STORE_H
#define TESTS_SUPPORT_TINY_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "tests/support/make_tiny.h"
#include "tiering/store.h"

/* One dense layer, then so many with experts, all in one group. */
struct tiny_options tiny_moe(uint32_t moe_layers, uint32_t experts, uint32_t top_k);

/* Writes the model into a fresh folder (tiny_folder), indexes and opens it. End it with
 * tier_store_close and tiny_remove. */
struct tier_store *tiny_store_open(char *dir, size_t size, const char *name,
                                   const struct tiny_options *options);

#endif
