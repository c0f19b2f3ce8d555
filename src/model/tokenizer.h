/* tokenizer.json of the byte-level BPE kind: text <-> token ids.
 *
 * Follows Hugging Face `tokenizers`: added tokens are cut out first (longest match), then the
 * Split steps of the pre-tokenizer (PCRE2), then BPE merges by rank over the byte alphabet.
 * A post-processor, truncation and padding are not applied: callers put BOS themselves (chat.h).
 * Normalizers, other models and step types, and added tokens with single_word, lstrip or rstrip are
 * refused by name.
 *
 * Immutable after load, any thread; encoding and decoding state belongs to one thread.
 */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct model_tokenizer;

/* Reads DIR/tokenizer.json. */
int model_tokenizer_load(struct model_tokenizer **out, const char *dir, struct base_err *err);
int model_tokenizer_load_file(struct model_tokenizer **out, const char *path, struct base_err *err);
/* `name` is used in messages only. */
int model_tokenizer_parse(struct model_tokenizer **out, const char *json, size_t size,
                          const char *name, struct base_err *err);
void model_tokenizer_free(struct model_tokenizer *tokenizer);

uint32_t model_tokenizer_vocab(const struct model_tokenizer *tokenizer);   /* highest id + 1 */
size_t model_tokenizer_longest(const struct model_tokenizer *tokenizer);   /* bytes of a token */
/* XXH3 of its tokens and merges. */
uint64_t model_tokenizer_hash(const struct model_tokenizer *tokenizer);

/* Encodes `size` bytes. Bytes that are not valid UTF-8 are replaced as Rust's from_utf8_lossy does
 * (U+FFFD per maximal invalid part). Added tokens in the text are recognised only when
 * `with_special` (a user's message must not be able to write them), except those of one character
 * that are not special: they are plain text. Returns 0 and a malloc'ed array
 * that the caller frees; -ENOMEM; -EFBIG above 16 MiB of text; -E2BIG when a pattern of the
 * tokenizer gave up on the text. Time: n log n in the longest piece. */
int model_tokenizer_encode(const struct model_tokenizer *tokenizer, const char *text, size_t size,
                           bool with_special, uint32_t **ids, size_t *count);
/* What encoding takes at most for each byte of the text, its ids among it. */
enum { MODEL_ENCODE_BYTES = 40 };

/* The bytes of one token (not NUL-terminated, may be part of a character). Empty for ids without
 * text. `special` tells added special tokens, which answers leave out. */
const char *model_tokenizer_bytes(const struct model_tokenizer *tokenizer, uint32_t id,
                                  size_t *size, bool *special);

/* Id of an added or vocabulary token by its exact text, or -1. The text is what the token stands
 * for, not its spelling in the byte alphabet: " the", not "\u0120the". */
int64_t model_tokenizer_find(const struct model_tokenizer *tokenizer, const char *text);

/* Streaming detokenizer: gives out whole UTF-8 characters only. Caller's memory. */
struct model_detokenizer {
    const struct model_tokenizer *tokenizer;
    unsigned char held[4];      /* first bytes of a character that is not whole yet */
    unsigned held_count;
};
void model_detokenizer_init(struct model_detokenizer *stream,
                            const struct model_tokenizer *tokenizer);
/* Adds one token; writes what became whole to `to` and returns its size. Invalid bytes become
 * U+FFFD, as in encode. Special tokens are left out. `size` must be at least 3 x the token's bytes
 * + 16; MUST. */
size_t model_detokenizer_add(struct model_detokenizer *stream, uint32_t id, char *to, size_t size);
/* What is held at the end of an answer, as U+FFFD. `size` must be at least 3; MUST. */
size_t model_detokenizer_finish(struct model_detokenizer *stream, char *to, size_t size);

#endif
