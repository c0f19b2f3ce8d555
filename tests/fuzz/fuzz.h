/* What a fuzz target is: one function that eats any bytes, seeds to start from, words to mix in.
 *
 * A target is one file, fuzz_<name>.c, and one line in meson.build. With clang and -Dfuzz=true it
 * is linked with libFuzzer; else with driver.c, which runs a seeded loop of the same mutations for
 * a few seconds under `meson test`. Both read files given as arguments, so that what one found the
 * other repeats.
 *
 * The function must return 0 and hold nothing back. What it checks beyond not crashing it checks
 * with MUST.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"

enum { FUZZ_BYTES_MAX = 64 * 1024 };

/* The target's: libFuzzer prescribes the name. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* The target's: writes its index-th good input (at most `room` bytes); returns its size, or 0 when
 * there are no more. At least one. */
size_t fuzz_seed(unsigned index, uint8_t *to, size_t room);

/* The target's: pieces of the format that chance would not find ("\"vocab\":"); ends with NULL. */
extern const char *const fuzz_words[];

/* For readers that want a path: puts the bytes into a file without a name on disk. The path holds
 * until the next call. */
const char *fuzz_file(const uint8_t *bytes, size_t size);

/* What every refusal owes its reader: a code below zero and one sentence without control
 * characters. Calls MUST. */
void fuzz_check_refusal(int rc, const struct base_err *err);

/* Changes an input in place, as a seeded generator decides; returns its new size. */
size_t fuzz_mutate(struct base_rng *rng, uint8_t *bytes, size_t size, size_t room);

#endif
