/* The tables of a loaded tokenizer, shared by its loader, its encoder and its decoder. Private to
 * the tokenizer's files.
 *
 * Token texts lie in one pool in order of ids; `by_text` finds an id by its bytes, `merges` finds
 * what two neighbouring tokens become. Both are open-addressing tables at most half full.
 */
#ifndef MODEL_TOKENIZER_TABLES_H
#define MODEL_TOKENIZER_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/tokenizer.h"
#include "port/hash.h"
#include "port/regex.h"

enum {
    MODEL_TOKENIZER_MAGIC = 0x4d544f4b,
    MODEL_TOKENIZER_STEPS_MAX = 32,
};

#define MODEL_NO_TOKEN UINT32_MAX

enum model_token_flag {
    MODEL_TOKEN_PRESENT = 1,
    MODEL_TOKEN_BYTES = 2,      /* spelled in the byte alphabet: merges may make it */
    MODEL_TOKEN_ADDED = 4,
    MODEL_TOKEN_SPECIAL = 8,
};

/* How a Split step treats what its pattern matches. Names as in tokenizer.json. */
enum model_split_behavior {
    MODEL_SPLIT_ISOLATED, MODEL_SPLIT_REMOVED, MODEL_SPLIT_MERGED_WITH_PREVIOUS,
    MODEL_SPLIT_MERGED_WITH_NEXT, MODEL_SPLIT_CONTIGUOUS, MODEL_SPLIT_BEHAVIOR_COUNT,
};

/* One step of the pre-tokenizer; it works on each piece the step before it left. */
struct model_split {
    struct port_regex *regex;   /* NULL: put a space before a piece that does not begin with one */
    enum model_split_behavior behavior;
    bool invert;                /* what the pattern does NOT match counts as the match */
};

struct model_merge {
    uint32_t left;              /* MODEL_NO_TOKEN: free */
    uint32_t right;
    uint32_t rank;
    uint32_t result;
};

/* Added tokens by their bytes, sorted, so that a range of them narrows byte by byte. */
struct model_added {
    uint32_t *ids;
    uint32_t count;
    bool begins[256];           /* whether one of them begins with this byte */
};

/* Hugging Face cuts out added tokens in two passes: those of the text as it came, then those of the
 * normalized text, in what the first pass left. Those of one character that are not special
 * (DeepSeek-V2 has some, such as "\u00fc") are plain text: they are cut out of every text. */
enum model_added_list {
    MODEL_ADDED_FIRST, MODEL_ADDED_NORMALIZED, MODEL_ADDED_PLAIN, MODEL_ADDED_COUNT,
};

struct model_tokenizer {
    uint32_t magic;
    uint32_t vocab;             /* highest id + 1 */
    char *pool;
    uint32_t *begins;           /* vocab + 1 */
    uint8_t *flags;
    uint32_t byte_ids[256];
    uint32_t *by_text;          /* id + 1, 0 = free */
    uint32_t by_text_mask;
    uint32_t merge_mask;
    struct model_merge *merges;
    struct model_added added[MODEL_ADDED_COUNT];
    struct model_split steps[MODEL_TOKENIZER_STEPS_MAX];
    uint32_t step_count;
    bool ignore_merges;         /* a piece that is a token is taken whole */
};

static inline const char *model_token_text(const struct model_tokenizer *t, uint32_t id,
                                           size_t *size)
{
    *size = t->begins[id + 1] - t->begins[id];
    return t->pool + t->begins[id];
}

/* Id of the token of exactly these bytes, or MODEL_NO_TOKEN. */
uint32_t model_token_by_text(const struct model_tokenizer *t, const char *bytes, size_t size);

static inline uint32_t model_merge_slot(const struct model_tokenizer *t, uint32_t left,
                                        uint32_t right)
{
    uint64_t mixed = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    uint32_t slot = (uint32_t)(mixed >> 32) & t->merge_mask;
    while (t->merges[slot].left != MODEL_NO_TOKEN &&
           (t->merges[slot].left != left || t->merges[slot].right != right)) {
        slot = (slot + 1) & t->merge_mask;
    }
    return slot;
}

/* What the pair becomes, or NULL. */
static inline const struct model_merge *model_merge_find(const struct model_tokenizer *t,
                                                         uint32_t left, uint32_t right)
{
    const struct model_merge *merge = &t->merges[model_merge_slot(t, left, right)];
    return merge->left == MODEL_NO_TOKEN ? NULL : merge;
}

/* Rewrites a pattern of Oniguruma's Ruby syntax (what tokenizer.json holds) for PCRE2, appending to
 * `out`. What the two read differently and is not rewritten is refused with BASE_EVERSION. */
int model_pattern_translate(struct base_buf *out, const char *pattern, size_t size,
                            struct base_err *err);
/* Appends a pattern that matches exactly this text. */
void model_pattern_quote(struct base_buf *out, const char *text, size_t size);

/* Builds the steps of a tokenizer from tokenizer.json's `pre_tokenizer`. */
struct port_json;
int model_tokenizer_read_splits(struct model_tokenizer *t, const struct port_json *pre_tokenizer,
                                const char *where, struct base_err *err);

#endif
