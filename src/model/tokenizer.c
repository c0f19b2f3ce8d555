#include "model/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"
#include "model/tokenizer_tables.h"
#include "model/utf8.h"
#include "port/hash.h"

enum { TEXT_BYTES_MAX = 16 << 20 };

#define NO_SYMBOL UINT32_MAX

/* A token of the piece being merged. Neighbours are linked, so that a merge costs no shifting. */
struct symbol {
    uint32_t token;             /* MODEL_NO_TOKEN: merged away */
    uint32_t previous;
    uint32_t next;
};

/* Everything one call of encode needs. */
struct encoder {
    const struct model_tokenizer *t;
    struct port_regex_match *match;
    uint32_t *ids;
    size_t id_count;
    size_t id_capacity;
    struct symbol *symbols;
    size_t symbol_capacity;
    uint64_t *heap;             /* rank << 32 | position: the best merge is the smallest number */
    size_t heap_count;
    size_t heap_capacity;
};

/* The array with room for `wanted` elements, or NULL (and the array stays as it was). */
static void *grown(void *array, size_t *capacity, size_t wanted, size_t element_bytes)
{
    if (array && wanted <= *capacity) return array;
    size_t grown_capacity = wanted + wanted / 2 + 64;
    array = reallocarray(array, grown_capacity, element_bytes);
    if (array) *capacity = grown_capacity;
    return array;
}

static int ids_reserve(struct encoder *e, size_t more)
{
    uint32_t *ids = grown(e->ids, &e->id_capacity, e->id_count + more, sizeof *ids);
    if (!ids) return -ENOMEM;
    e->ids = ids;
    return 0;
}

static int piece_reserve(struct encoder *e, size_t size)
{
    struct symbol *symbols = grown(e->symbols, &e->symbol_capacity, size, sizeof *symbols);
    if (!symbols) return -ENOMEM;
    e->symbols = symbols;
    uint64_t *heap = grown(e->heap, &e->heap_capacity, 2 * size, sizeof *heap);
    if (!heap) return -ENOMEM;
    e->heap = heap;
    return ids_reserve(e, size);
}

static int id_add(struct encoder *e, uint32_t id)
{
    int rc = ids_reserve(e, 1);
    if (rc == 0) e->ids[e->id_count++] = id;
    return rc;
}

static void heap_push(struct encoder *e, uint64_t value)
{
    size_t at = e->heap_count++;
    DMUST(e->heap_count <= e->heap_capacity);
    for (; at > 0 && e->heap[(at - 1) / 2] > value; at = (at - 1) / 2) {
        e->heap[at] = e->heap[(at - 1) / 2];
    }
    e->heap[at] = value;
}

static uint64_t heap_pop(struct encoder *e)
{
    uint64_t top = e->heap[0], value = e->heap[--e->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < e->heap_count; at = child) {
        if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child]) child++;
        if (e->heap[child] >= value) break;
        e->heap[at] = e->heap[child];
    }
    e->heap[at] = value;
    return top;
}

/* Puts the merge of a symbol with its right neighbour on the heap, if there is one. */
static void merge_offer(struct encoder *e, uint32_t position)
{
    if (position == NO_SYMBOL || e->symbols[position].next == NO_SYMBOL) return;
    const struct symbol *right = &e->symbols[e->symbols[position].next];
    const struct model_merge *merge =
        model_merge_find(e->t, e->symbols[position].token, right->token);
    if (merge) heap_push(e, (uint64_t)merge->rank << 32 | position);
}

static void merge_apply(struct encoder *e, uint64_t entry)
{
    uint32_t position = (uint32_t)entry;
    struct symbol *left = &e->symbols[position];
    if (left->token == MODEL_NO_TOKEN || left->next == NO_SYMBOL) return;
    struct symbol *right = &e->symbols[left->next];
    const struct model_merge *merge = model_merge_find(e->t, left->token, right->token);
    /* Either half has changed since the entry was made. */
    if (!merge || merge->rank != entry >> 32) return;
    left->token = merge->result;
    left->next = right->next;
    right->token = MODEL_NO_TOKEN;
    if (left->next != NO_SYMBOL) e->symbols[left->next].previous = position;
    merge_offer(e, left->previous);
    merge_offer(e, position);
}

/* Byte pair encoding of one piece: the pair of lowest rank first, the leftmost among equals. Each
 * merge takes one entry off the heap and adds two at most: O(n log n). */
static int piece_encode(struct encoder *e, const unsigned char *piece, size_t size)
{
    const struct model_tokenizer *t = e->t;
    if (size == 1) return id_add(e, t->byte_ids[piece[0]]);
    if (t->ignore_merges) {
        uint32_t id = model_token_by_text(t, (const char *)piece, size);
        if (id != MODEL_NO_TOKEN && (t->flags[id] & MODEL_TOKEN_BYTES)) return id_add(e, id);
    }
    int rc = piece_reserve(e, size);
    if (rc < 0) return rc;
    for (uint32_t i = 0; i < size; i++) {
        e->symbols[i] = (struct symbol){ .token = t->byte_ids[piece[i]],
                                         .previous = i > 0 ? i - 1 : NO_SYMBOL,
                                         .next = i + 1 < size ? i + 1 : NO_SYMBOL };
    }
    e->heap_count = 0;
    for (uint32_t i = 0; i + 1 < size; i++) merge_offer(e, i);
    while (e->heap_count > 0) merge_apply(e, heap_pop(e));
    for (uint32_t i = 0; i != NO_SYMBOL; i = e->symbols[i].next) {
        e->ids[e->id_count++] = e->symbols[i].token;
    }
    return 0;
}

static int text_split(struct encoder *e, const char *text, size_t size, uint32_t step);

static int prefix_space(struct encoder *e, const char *text, size_t size, uint32_t step)
{
    if (text[0] == ' ') return text_split(e, text, size, step + 1);
    char *prefixed = malloc(size + 1);
    if (!prefixed) return -ENOMEM;
    prefixed[0] = ' ';
    memcpy(prefixed + 1, text, size);
    int rc = text_split(e, prefixed, size + 1, step + 1);
    free(prefixed);
    return rc;
}

/* The piece a Split step is still collecting, when its behaviour joins neighbours. */
struct gathering {
    struct encoder *e;
    const char *text;
    uint32_t step;
    size_t begin, end;
    bool held;                  /* whether [begin, end) waits; it may be empty */
    bool is_match;              /* what was added last */
};

static int gather_flush(struct gathering *g)
{
    bool some = g->held && g->begin < g->end;
    g->held = false;
    return some ? text_split(g->e, g->text + g->begin, g->end - g->begin, g->step + 1) : 0;
}

/* Whether a part joins what is held. Hugging Face never joins a match to a match, except in
 * Contiguous, which joins like to like. */
static bool gather_joins(const struct gathering *g, enum model_split_behavior behavior,
                         bool is_match)
{
    switch (behavior) {
    case MODEL_SPLIT_MERGED_WITH_PREVIOUS: return is_match && !g->is_match;
    case MODEL_SPLIT_MERGED_WITH_NEXT: return !is_match && g->is_match;
    case MODEL_SPLIT_CONTIGUOUS: return is_match == g->is_match;
    default: return false;
    }
}

static int gather_add(struct gathering *g, const struct model_split *split, size_t begin,
                      size_t end, bool is_match)
{
    if (begin == end && !is_match) return 0;
    is_match = is_match != split->invert;
    if (split->behavior == MODEL_SPLIT_REMOVED && is_match) return 0;
    int rc = 0;
    if (!g->held || !gather_joins(g, split->behavior, is_match)) {
        rc = gather_flush(g);
        g->begin = begin;
    }
    g->held = true;
    g->end = end;
    g->is_match = is_match;
    return rc;
}

/* Applies the steps from `step` on to a piece; what the last one leaves is encoded. A step sees
 * each piece alone: look-around and anchors end at its borders. */
static int text_split(struct encoder *e, const char *text, size_t size, uint32_t step)
{
    if (step == e->t->step_count) return piece_encode(e, (const unsigned char *)text, size);
    const struct model_split *split = &e->t->steps[step];
    if (!split->regex) return prefix_space(e, text, size, step);
    struct gathering g = { .e = e, .text = text, .step = step };
    size_t done = 0, from = 0, begin, end;
    bool after_match = false;
    int rc = 0;
    while (rc == 0 && from <= size) {
        int found = port_regex_find(split->regex, e->match, text, size, from, &begin, &end);
        if (found < 0) return found;
        if (found == 0) break;
        if (begin == end && after_match && end == done) {
            /* An empty match right behind a match does not count: on with the next character. */
            for (from++; from < size && ((unsigned char)text[from] & 0xc0) == 0x80;) from++;
            continue;
        }
        after_match = true;
        rc = gather_add(&g, split, done, begin, false);
        if (rc == 0) rc = gather_add(&g, split, begin, end, true);
        done = from = end;
    }
    if (rc == 0) rc = gather_add(&g, split, done, size, false);
    return rc < 0 ? rc : gather_flush(&g);
}

/* The longest added token that the text begins with, or MODEL_NO_TOKEN: the range of candidates in
 * sorted order narrows with every byte. */
static uint32_t added_match(const struct model_tokenizer *t, const struct model_added *added,
                            const char *text, size_t size, size_t *length)
{
    uint32_t low = 0, high = added->count, best = MODEL_NO_TOKEN;
    for (size_t depth = 0; low < high; depth++) {
        size_t first_size;
        const char *first = model_token_text(t, added->ids[low], &first_size);
        if (first_size == depth) {
            best = added->ids[low++];
            *length = depth;
            if (low == high) break;
            first = model_token_text(t, added->ids[low], &first_size);
        }
        if (depth == size) break;
        /* In a big text nearly every position fails here, at its first byte or two. */
        unsigned char byte = (unsigned char)text[depth];
        if (high - low == 1) {
            if ((unsigned char)first[depth] != byte) break;
            continue;
        }
        for (unsigned bound = 0; bound < 2; bound++) {
            uint32_t from = low, to = high;
            while (from < to) {
                uint32_t middle = from + (to - from) / 2;
                size_t middle_size;
                const char *candidate = model_token_text(t, added->ids[middle], &middle_size);
                unsigned char c = (unsigned char)candidate[depth];
                if (c < byte || (bound == 1 && c == byte)) {
                    from = middle + 1;
                } else {
                    to = middle;
                }
            }
            if (bound == 0) {
                low = from;
            } else {
                high = from;
            }
        }
    }
    return best;
}

/* Cuts out the added tokens of one list and hands the rest to the next list, or to the splits. */
static int text_cut(struct encoder *e, const char *text, size_t size, enum model_added_list list)
{
    if (size == 0) return 0;
    if (list == MODEL_ADDED_COUNT) return text_split(e, text, size, 0);
    const struct model_added *added = &e->t->added[list];
    enum model_added_list next =
        list == MODEL_ADDED_FIRST ? MODEL_ADDED_NORMALIZED : MODEL_ADDED_COUNT;
    size_t done = 0;
    for (size_t at = 0; added->count > 0 && at < size;) {
        size_t length = 0;
        uint32_t id = added_match(e->t, added, text + at, size - at, &length);
        if (id == MODEL_NO_TOKEN) {
            for (at++; at < size && !added->begins[(unsigned char)text[at]];) at++;
            continue;
        }
        int rc = text_cut(e, text + done, at - done, next);
        if (rc == 0) rc = id_add(e, id);
        if (rc < 0) return rc;
        done = at = at + length;
    }
    return text_cut(e, text + done, size - done, next);
}

static size_t valid_prefix(const unsigned char *text, size_t size)
{
    size_t at = 0, length;
    while (at < size && model_utf8_next(text + at, size - at, &length) == MODEL_UTF8_WHOLE) {
        at += length;
    }
    return at;
}

/* A copy with each maximal invalid part replaced by U+FFFD. */
static void text_repair(struct base_buf *to, const unsigned char *text, size_t size)
{
    size_t done = 0;
    while (done < size) {
        size_t valid = valid_prefix(text + done, size - done), length = 0;
        base_buf_append(to, text + done, valid);
        done += valid;
        if (done == size) break;
        model_utf8_next(text + done, size - done, &length);
        base_buf_puts(to, MODEL_UTF8_REPLACEMENT);
        done += length;
    }
}

int model_tokenizer_encode(const struct model_tokenizer *tokenizer, const char *text, size_t size,
                           bool with_special, uint32_t **ids, size_t *count)
{
    MUST_MAGIC(tokenizer, MODEL_TOKENIZER_MAGIC);
    *ids = NULL;
    *count = 0;
    if (size > TEXT_BYTES_MAX) return -EFBIG;
    struct encoder e = { .t = tokenizer };
    struct base_buf repaired;
    base_buf_init(&repaired);
    int rc = port_regex_match_create(&e.match);
    if (rc == 0) rc = ids_reserve(&e, size / 4);
    if (rc == 0 && valid_prefix((const unsigned char *)text, size) < size) {
        text_repair(&repaired, (const unsigned char *)text, size);
        rc = base_buf_error(&repaired);
        text = repaired.data;
        size = repaired.size;
    }
    if (rc == 0) {
        rc = text_cut(&e, text, size, with_special ? MODEL_ADDED_FIRST : MODEL_ADDED_PLAIN);
    }
    port_regex_match_destroy(e.match);
    base_buf_fini(&repaired);
    free(e.symbols);
    free(e.heap);
    if (rc < 0) {
        free(e.ids);
        return rc;
    }
    *ids = e.ids;
    *count = e.id_count;
    return 0;
}

uint64_t model_tokenizer_hash(const struct model_tokenizer *tokenizer)
{
    const struct model_tokenizer *t = tokenizer;
    struct port_hash hash;
    MUST_MAGIC(t, MODEL_TOKENIZER_MAGIC);
    port_hash_begin(&hash);
    port_hash_add(&hash, t->pool, t->begins[t->vocab]);
    port_hash_add(&hash, t->begins, ((size_t)t->vocab + 1) * sizeof *t->begins);
    port_hash_add(&hash, t->flags, t->vocab);
    for (size_t i = 0; i <= t->merge_mask; i++) {
        if (t->merges[i].left == MODEL_NO_TOKEN) continue;      /* a free place is not filled */
        port_hash_add(&hash, &t->merges[i], sizeof t->merges[i]);
    }
    return port_hash_end(&hash);
}

uint32_t model_tokenizer_vocab(const struct model_tokenizer *tokenizer)
{
    MUST_MAGIC(tokenizer, MODEL_TOKENIZER_MAGIC);
    return tokenizer->vocab;
}

size_t model_tokenizer_longest(const struct model_tokenizer *tokenizer)
{
    const struct model_tokenizer *t = tokenizer;
    size_t longest = 1, size;
    MUST_MAGIC(t, MODEL_TOKENIZER_MAGIC);
    for (uint32_t id = 0; id < t->vocab; id++) {
        model_token_text(t, id, &size);
        if (size > longest) longest = size;
    }
    return longest;
}

uint32_t model_token_by_text(const struct model_tokenizer *t, const char *bytes, size_t size)
{
    uint32_t slot = (uint32_t)port_hash64(bytes, size) & t->by_text_mask;
    for (; t->by_text[slot]; slot = (slot + 1) & t->by_text_mask) {
        size_t other_size;
        const char *other = model_token_text(t, t->by_text[slot] - 1, &other_size);
        if (other_size == size && memcmp(other, bytes, size) == 0) return t->by_text[slot] - 1;
    }
    return MODEL_NO_TOKEN;
}

int64_t model_tokenizer_find(const struct model_tokenizer *tokenizer, const char *text)
{
    MUST_MAGIC(tokenizer, MODEL_TOKENIZER_MAGIC);
    size_t size = strlen(text), length;
    for (unsigned list = 0; list < MODEL_ADDED_PLAIN; list++) {
        uint32_t id = added_match(tokenizer, &tokenizer->added[list], text, size, &length);
        if (id != MODEL_NO_TOKEN && length == size) return id;
    }
    uint32_t id = model_token_by_text(tokenizer, text, size);
    return id == MODEL_NO_TOKEN ? -1 : (int64_t)id;
}

const char *model_tokenizer_bytes(const struct model_tokenizer *tokenizer, uint32_t id,
                                  size_t *size, bool *special)
{
    MUST_MAGIC(tokenizer, MODEL_TOKENIZER_MAGIC);
    *size = 0;
    *special = false;
    if (id >= tokenizer->vocab) return "";
    *special = (tokenizer->flags[id] & MODEL_TOKEN_SPECIAL) != 0;
    return model_token_text(tokenizer, id, size);
}

void model_detokenizer_init(struct model_detokenizer *stream,
                            const struct model_tokenizer *tokenizer)
{
    *stream = (struct model_detokenizer){ .tokenizer = tokenizer };
}

/* Adds one byte to what is held and gives out what that decides: a character, a replacement, or
 * both a replacement and the byte's own character. At most six bytes. */
static size_t byte_add(struct model_detokenizer *stream, unsigned char byte, char *to)
{
    size_t written = 0;
    stream->held[stream->held_count++] = byte;
    while (stream->held_count > 0) {
        size_t length;
        enum model_utf8_kind kind = model_utf8_next(stream->held, stream->held_count, &length);
        if (kind == MODEL_UTF8_PARTIAL) break;
        if (kind == MODEL_UTF8_WHOLE) {
            memcpy(to + written, stream->held, length);
            written += length;
        } else {
            memcpy(to + written, MODEL_UTF8_REPLACEMENT, 3);
            written += 3;
        }
        stream->held_count -= (unsigned)length;
        memmove(stream->held, stream->held + length, stream->held_count);
    }
    return written;
}

size_t model_detokenizer_add(struct model_detokenizer *stream, uint32_t id, char *to, size_t size)
{
    size_t token_size, written = 0;
    bool special;
    const char *bytes = model_tokenizer_bytes(stream->tokenizer, id, &token_size, &special);
    if (special) return 0;
    MUST(size >= 3 * token_size + 16);
    for (size_t i = 0; i < token_size; i++) {
        written += byte_add(stream, (unsigned char)bytes[i], to + written);
    }
    return written;
}

size_t model_detokenizer_finish(struct model_detokenizer *stream, char *to, size_t size)
{
    MUST(size >= 3);
    if (stream->held_count == 0) return 0;
    /* What is held is always one beginning of one character: one replacement. */
    stream->held_count = 0;
    memcpy(to, MODEL_UTF8_REPLACEMENT, 3);
    return 3;
}
