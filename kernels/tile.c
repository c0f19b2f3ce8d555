#include "kernels/tile.h"

#include <string.h>

#include "base/must.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { PIECE = 128, LANES = 16 };   /* bytes of four columns of a whole tile; rows of a register */

/* A matrix in rows: bytes of a row's codes, its groups, bytes of a row with its scales. */
struct shape {
    enum kern_dtype dtype;
    struct kern_tile_unit unit;
    uint32_t tile_rows, shift;  /* columns of a unit: 1 << shift */
    size_t codes, groups, all;
};

static struct shape shape_of(const struct kern_matrix *w)
{
    MUST(kern_dtype_grouped(w->dtype));
    MUST(w->scale_cols == KERN_GROUP_SMALL || w->scale_cols == KERN_GROUP_LARGE);
    const size_t codes = kern_row_bytes(w->dtype, w->cols);
    const size_t groups = (w->cols + w->scale_cols - 1) / w->scale_cols;
    return (struct shape){ w->dtype, kern_tile_unit(w->dtype, w->scale_cols),
                           kern_tile_rows(w->dtype), w->scale_cols == KERN_GROUP_SMALL ? 5 : 7,
                           codes, groups, codes + 2 * groups };
}

/* Rows of a tile: where their codes and scales are. */
struct rows {
    const uint8_t *codes, *scales;
    uint32_t count;
};

/* Bytes of codes in unit u of a row. */
static size_t unit_codes(const struct shape *s, size_t u)
{
    const size_t left = s->codes - u * s->unit.codes;
    return left < s->unit.codes ? left : s->unit.codes;
}

/* Code `column` of a row of INT4, moved up. */
static uint8_t int4_at(const uint8_t *row, size_t column)
{
    enum { HALF = KERN_INT4_BLOCK / 2 };
    const uint8_t pair = row[column / KERN_INT4_BLOCK * HALF + column % HALF] ^ KERN_TILE_INT4_UP;
    return column % KERN_INT4_BLOCK < HALF ? pair & 15 : pair >> 4;
}

/* Four columns of INT4, of all rows. */
static void int4_piece(const struct shape *s, uint8_t *to, const struct rows *from, size_t column)
{
    const bool whole = from->count == s->tile_rows;
    for (uint32_t r = 0; r < from->count; r++) {
        for (uint32_t i = 0; i < KERN_TILE_COLS; i++) {
            const uint8_t code = int4_at(from->codes + r * s->codes, column + i);
            const uint32_t lane = r / (2 * LANES) * LANES + r % LANES;
            uint8_t *at = whole ? to + lane * KERN_TILE_COLS + i : to + 2 * r + i / 2;
            const bool high = whole ? r / LANES % 2 : i % 2;
            *at = high ? (uint8_t)(*at | code << 4) : code;
        }
    }
}

/* The codes of unit u from byte `done` of each row's on, column by column. */
static void unit_by_piece(const struct shape *s, uint8_t *to, const struct rows *from, size_t u,
                          size_t done)
{
    const size_t piece = kern_tile_piece(s->dtype), bytes = unit_codes(s, u);
    const size_t begin = u * s->unit.codes;
    to += done * from->count;
    for (size_t i = done; i < bytes; i += piece, to += piece * from->count) {
        if (s->dtype == KERN_INT4) {
            int4_piece(s, to, from, (begin + i) * 2);
            continue;
        }
        const size_t size = bytes - i < piece ? bytes - i : piece;
        for (uint32_t r = 0; r < from->count; r++)
            memcpy(to + r * size, from->codes + r * s->codes + begin + i, size);
    }
}

static void unit_scales(const struct shape *s, uint8_t *to, const struct rows *from, size_t group)
{
    for (uint32_t r = 0; r < from->count; r++)
        memcpy(to + 2 * kern_tile_scale_at(s->dtype, from->count, r),
               from->scales + 2 * (r * s->groups + group), 2);
}

#if defined(__x86_64__)
static __m128i load(const uint8_t *from)
{
    return _mm_loadu_si128((const void *)from);
}

/* Four bytes each of four rows, four times, `apart` from each other. Arguments, not arrays: those a
 * compiler that was told -O2 would keep in memory, which takes twice as long. */
static void four_by_four(uint8_t *to, size_t apart, __m128i a, __m128i b, __m128i c, __m128i d)
{
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i ab_high = _mm_unpackhi_epi32(a, b), cd_high = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((void *)to, _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + apart), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + 2 * apart), _mm_unpacklo_epi64(ab_high, cd_high));
    _mm_storeu_si128((void *)(to + 3 * apart), _mm_unpackhi_epi64(ab_high, cd_high));
}

/* Of rows sixteen apart. */
struct both {
    __m128i low, high;
};

/* Low nibbles of both as bytes, and high ones, moved up. */
static struct both both_nibbles(const uint8_t *a, const uint8_t *b)
{
    const __m128i nibble = _mm_set1_epi8(15), upper = _mm_set1_epi8((char)0xf0);
    const __m128i up = _mm_set1_epi8((char)KERN_TILE_INT4_UP);
    const __m128i first = _mm_xor_si128(load(a), up), second = _mm_xor_si128(load(b), up);
    return (struct both){ _mm_or_si128(_mm_and_si128(first, nibble),
                                       _mm_and_si128(_mm_slli_epi16(second, 4), upper)),
                          _mm_or_si128(_mm_and_si128(_mm_srli_epi16(first, 4), nibble),
                                       _mm_and_si128(second, upper)) };
}

/* Eight scales of both, side by side. */
static struct both both_scales(const uint8_t *a, const uint8_t *b)
{
    return (struct both){ _mm_unpacklo_epi16(load(a), load(b)),
                          _mm_unpackhi_epi16(load(a), load(b)) };
}

enum { LOAD = 16, LINE = 64, LOADS = LINE / LOAD };

/* Where what is loaded of a line of each row goes in a whole tile, of INT4 low and high nibbles. */
struct places {
    uint8_t *low[LOADS], *high[LOADS];
};

static uint8_t *place_of(const struct shape *s, uint8_t *tile, size_t column)
{
    return tile + (column >> s->shift) * s->unit.bytes * s->tile_rows +
           (column & (s->unit.cols - 1)) / KERN_TILE_COLS * PIECE;
}

static struct places places_of(const struct shape *s, uint8_t *tile, size_t byte)
{
    enum { HALF = KERN_INT4_BLOCK / 2 };
    struct places places;
    for (size_t i = 0; i < LOADS; i++, byte += LOAD) {
        const bool int4 = s->dtype == KERN_INT4;
        const size_t column = int4 ? byte / HALF * KERN_INT4_BLOCK + byte % HALF : byte;
        places.low[i] = place_of(s, tile, column);
        places.high[i] = place_of(s, tile, column + HALF);
    }
    return places;
}

/* The first `loads` of a line of rows r to r + 3. */
static void int8_four_rows(const struct shape *s, const struct places *to, const uint8_t *line,
                           uint32_t r, size_t loads)
{
    const size_t row = s->codes;
    for (size_t i = 0; i < loads; i++) {
        const uint8_t *from = line + r * row + i * LOAD;
        four_by_four(to->low[i] + r * KERN_TILE_COLS, PIECE, load(from), load(from + row),
                     load(from + 2 * row), load(from + 3 * row));
    }
}

/* The same of lanes `lane` to lane + 3: pairs of rows sixteen apart, whose low nibbles are columns
 * of the first half of a block and whose high ones of the second. */
static void int4_four_rows(const struct shape *s, const struct places *to, const uint8_t *line,
                           uint32_t lane, size_t loads)
{
    const size_t row = s->codes, other = LANES * row;
    for (size_t i = 0; i < loads; i++) {
        const uint8_t *from = line + (lane / LANES * 2 * LANES + lane % LANES) * row + i * LOAD;
        const struct both a = both_nibbles(from, from + other);
        const struct both b = both_nibbles(from + row, from + row + other);
        const struct both c = both_nibbles(from + 2 * row, from + 2 * row + other);
        const struct both d = both_nibbles(from + 3 * row, from + 3 * row + other);
        four_by_four(to->low[i] + lane * KERN_TILE_COLS, PIECE, a.low, b.low, c.low, d.low);
        four_by_four(to->high[i] + lane * KERN_TILE_COLS, PIECE, a.high, b.high, c.high, d.high);
    }
}

/* What can be loaded of the codes of a whole tile: of four rows a line before the next four, since
 * rows lie at distances at which few lines fit the first cache. How many bytes of each row. */
static size_t codes_by_loads(const struct shape *s, uint8_t *tile, const uint8_t *codes)
{
    const uint32_t lanes = PIECE / KERN_TILE_COLS;
    const size_t end = s->codes / LOAD * LOAD;
    for (size_t byte = 0; byte < end; byte += LINE) {
        const size_t loads = (end - byte < LINE ? end - byte : LINE) / LOAD;
        const struct places places = places_of(s, tile, byte);
        for (uint32_t lane = 0; s->dtype == KERN_INT8 && lane < lanes; lane += 4)
            int8_four_rows(s, &places, codes + byte, lane, loads);
        for (uint32_t lane = 0; s->dtype == KERN_INT4 && lane < lanes; lane += 4)
            int4_four_rows(s, &places, codes + byte, lane, loads);
    }
    return end;
}

/* Scales of whole eights of groups of a whole tile; how many groups. */
static size_t scales_by_loads(const struct shape *s, uint8_t *tile, const uint8_t *scales)
{
    enum { GROUPS = LOAD / 2 };
    const size_t row = 2 * s->groups, other = LANES * row;
    const size_t unit = s->unit.bytes * s->tile_rows;
    const size_t end = s->groups / GROUPS * GROUPS;
    uint8_t *to = tile + (size_t)s->unit.codes * s->tile_rows;
    /* Of the last group codes may be fewer. */
    const size_t safe = s->codes < s->groups * s->unit.codes && end == s->groups ? GROUPS : 0;
    for (size_t g = 0; g + safe < end; g += GROUPS) {
        for (uint32_t r = 0; r < s->tile_rows; r += r % LANES == LANES - 4 ? LANES + 4 : 4) {
            const uint8_t *from = scales + r * row + 2 * g;
            uint8_t *at = to + g * unit + 2 * kern_tile_scale_at(s->dtype, s->tile_rows, r);
            const struct both a = both_scales(from, from + other);
            const struct both b = both_scales(from + row, from + row + other);
            const struct both c = both_scales(from + 2 * row, from + 2 * row + other);
            const struct both d = both_scales(from + 3 * row, from + 3 * row + other);
            four_by_four(at, unit, a.low, b.low, c.low, d.low);
            four_by_four(at + 4 * unit, unit, a.high, b.high, c.high, d.high);
        }
    }
    return end - safe;
}
#endif

/* One tile. */
static void tile_make(const struct shape *s, uint8_t *to, const struct rows *from)
{
    /* Bytes of each row's codes, of INT4 whole blocks of 64 columns, and groups that are made. */
    size_t done = 0, scaled = 0;
#if defined(__x86_64__)
    if (from->count == s->tile_rows) {
        done = codes_by_loads(s, to, from->codes);
        scaled = scales_by_loads(s, to, from->scales);
    }
#endif
    for (size_t u = 0; u * s->unit.codes < s->codes; u++) {
        const size_t begin = u * s->unit.codes, bytes = unit_codes(s, u);
        const size_t before = done > begin ? done - begin : 0;
        if (before < bytes) unit_by_piece(s, to, from, u, before);
        to += bytes * from->count;
        if (u >= s->groups) continue;
        if (u >= scaled) unit_scales(s, to, from, u);
        to += 2 * (size_t)from->count;
    }
}

static void part_check(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end)
{
    const uint32_t rows = kern_tile_rows(w->dtype);
    MUST(row_begin % rows == 0 && row_end <= w->rows);
    MUST(row_end % rows == 0 || row_end == w->rows);
}

/* The rows of a part before this one lie where tiles of earlier parts will. */
static uint32_t covered(const struct shape *s, uint32_t row_begin, uint32_t row_end)
{
    const size_t end = (row_begin * s->all + s->codes - 1) / s->codes;
    const size_t rows = (end + s->tile_rows - 1) / s->tile_rows * s->tile_rows;
    if (rows <= row_begin) return row_begin;
    return rows < row_end ? (uint32_t)rows : row_end;
}

/* All scales of the part, then the codes of covered rows. */
size_t kern_tile_saved(const struct kern_matrix *w, uint32_t row_begin, uint32_t row_end)
{
    const struct shape s = shape_of(w);
    if (row_begin >= row_end) return 0;
    return (row_end - row_begin) * 2 * s.groups +
           (covered(&s, row_begin, row_end) - row_begin) * s.codes;
}

void kern_tile_save(const struct kern_matrix *w, const void *data, const void *scales,
                    uint32_t row_begin, uint32_t row_end, void *saved)
{
    const struct shape s = shape_of(w);
    part_check(w, row_begin, row_end);
    if (row_begin >= row_end) return;
    const size_t bytes = (row_end - row_begin) * 2 * s.groups;
    memcpy(saved, (const uint8_t *)scales + row_begin * 2 * s.groups, bytes);
    memcpy((uint8_t *)saved + bytes, (const uint8_t *)data + row_begin * s.codes,
           (covered(&s, row_begin, row_end) - row_begin) * s.codes);
}

/* A tile's codes, and a tile that lies in two pieces. */
size_t kern_tile_part_scratch(const struct kern_matrix *w)
{
    const struct shape s = shape_of(w);
    return s.tile_rows * (s.codes + s.all);
}

/* The last tile first. */
void kern_tile_part(const struct kern_matrix *w, void *data, void *scales, uint32_t row_begin,
                    uint32_t row_end, const void *saved, void *scratch)
{
    const struct shape s = shape_of(w);
    part_check(w, row_begin, row_end);
    if (row_begin >= row_end) return;
    const uint32_t safe = covered(&s, row_begin, row_end);
    const uint8_t *saved_scales = saved;
    const uint8_t *saved_codes = saved_scales + (row_end - row_begin) * 2 * s.groups;
    uint8_t *codes = scratch, *apart = codes + s.tile_rows * s.codes;
    const size_t seam = w->rows * s.codes;
    for (uint32_t end = row_end, n; end > row_begin; end = n) {
        n = (end - 1) / s.tile_rows * s.tile_rows;
        const size_t at = n * s.all, bytes = (end - n) * s.all;
        const uint8_t *from = n < safe ? saved_codes + (n - row_begin) * s.codes
                                       : (const uint8_t *)data + n * s.codes;
        memcpy(codes, from, (end - n) * s.codes);
        const struct rows rows = { codes, saved_scales + (n - row_begin) * 2 * s.groups, end - n };
        if (at < seam && at + bytes > seam) {
            tile_make(&s, apart, &rows);
            memcpy((uint8_t *)data + at, apart, seam - at);
            memcpy(scales, apart + (seam - at), at + bytes - seam);
        } else {
            tile_make(&s, at < seam ? (uint8_t *)data + at : (uint8_t *)scales + (at - seam),
                      &rows);
        }
    }
}

size_t kern_tile_scratch(const struct kern_matrix *w)
{
    return kern_tile_saved(w, 0, w->rows) + kern_tile_part_scratch(w);
}

void kern_tile(const struct kern_matrix *w, void *data, void *scales, void *scratch)
{
    uint8_t *saved = scratch;
    kern_tile_save(w, data, scales, 0, w->rows, saved);
    kern_tile_part(w, data, scales, 0, w->rows, saved,
                   saved + kern_tile_saved(w, 0, w->rows));
}
