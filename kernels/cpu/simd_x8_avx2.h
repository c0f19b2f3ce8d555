/* Products of tiles in AVX2, which has no instruction that multiplies bytes and adds up four
 * products. Part of simd_x8.h.
 *
 *   INT8   against three digits weights are widened to sixteen bits, even and odd columns apart,
 *          and so are the codes of an operand row, of which the two lower digits are joined to one
 *          of sixteen bits before: to make a float of the sum rounds where joining the digits' sums
 *          did. Against one digit signs go to the codes
 *   INT4   products of nibbles with a digit are so small that those of 32 columns are added up in
 *          sixteen bits */

enum {
    X8_REGS = 4,        /* of a line */
    X8_REG_BYTES = X8_LINE / X8_REGS,
    X8_REG_ROWS = X8_REG_BYTES / KERN_TILE_COLS,
    X8_AHEAD = 2176,    /* bytes, of INT4 twice, from what is multiplied to what is fetched */
    X8_TOGETHER = 8,    /* operand rows that go through a span of weights one after the other */
    X8_SHARING = 4,     /* of these, at most, those that share what is loaded of it */
    X8_PARTS = 2,       /* sums: of the first digit, and of the two others joined */
    X8_TILE_ROWS = 64,  /* at most */
    X8_PAIRS = KERN_X8_SPAN / 2,
};

/* What is multiplied together: `regs` registers of a line with `rows` operand rows. */
struct x8_shape {
    enum kern_dtype dtype;
    uint32_t group, digits, regs, rows;
};

/* A span of an operand row. */
struct x8_operand {
    union {
        _Alignas(32) uint8_t digit[KERN_X8_FULL][KERN_X8_SPAN];
        _Alignas(32) int16_t wide[X8_PARTS][2][X8_PAIRS]; /* even and odd columns */
    };
    int32_t start[X8_SPAN_GROUPS][X8_PARTS]; /* of INT4, whose weights are moved up */
    float scale[X8_SPAN_GROUPS];
};

struct x8_totals {
    _Alignas(32) float of[X8_TILE_ROWS];
};

/* Sums of a group, by register, operand row, row in a lane and part. */
struct x8_sums {
    __m256i of[X8_REGS][X8_SHARING][X8_ROWS][X8_PARTS];
};

/* In a register: the compiler would rather read memory, or keep a copy there, for each use. */
VEC_INLINE __m256i x8_kept(__m256i a)
{
    __asm__("" : "+x"(a));
    return a;
}

VEC_INLINE __m256i x8_load(const void *from)
{
    return x8_kept(_mm256_loadu_si256(from));
}

VEC_INLINE __m256i x8_four_bytes(const void *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return x8_kept(_mm256_set1_epi32(four));
}

/* What follows adds products of pairs by instructions of its own: let to itself the compiler begins
 * with the products of a whole line, and has no registers for them. */
VEC_INLINE __m256i x8_add_words(__m256i sum, __m256i w, __m256i x)
{
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
            : "+&x"(sum), "=&x"(product)
            : "x"(w), "x"(x));
    return sum;
}

struct x8_four {
    uint8_t of[KERN_TILE_COLS];
};

/* Two registers of bytes or words with the same four bytes. */
VEC_INLINE void x8_add_two(bool bytes, __m256i sum[2], const __m256i w[2], const void *x)
{
    const struct x8_four *codes = x;
    __m256i four, product;
    if (bytes)
        __asm__("vpbroadcastd %6, %2\n\t"
                "vpmaddubsw %2, %4, %3\n\tvpaddw %3, %0, %0\n\t"
                "vpmaddubsw %2, %5, %3\n\tvpaddw %3, %1, %1"
                : "+&x"(sum[0]), "+&x"(sum[1]), "=&x"(four), "=&x"(product)
                : "x"(w[0]), "x"(w[1]), "m"(*codes));
    else
        __asm__("vpbroadcastd %6, %2\n\t"
                "vpmaddwd %2, %4, %3\n\tvpaddd %3, %0, %0\n\t"
                "vpmaddwd %2, %5, %3\n\tvpaddd %3, %1, %1"
                : "+&x"(sum[0]), "+&x"(sum[1]), "=&x"(four), "=&x"(product)
                : "x"(w[0]), "x"(w[1]), "m"(*codes));
}

VEC_INLINE __m256i x8_even(__m256i bytes)
{
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}

VEC_INLINE __m256i x8_odd(__m256i bytes)
{
    return _mm256_srai_epi16(bytes, 8);
}

VEC_INLINE void x8_join(int16_t *to, __m256i high, __m256i low)
{
    const __m256i base = _mm256_set1_epi16((short)X8_BASE);
    _mm256_store_si256((void *)to, _mm256_add_epi16(_mm256_mullo_epi16(high, base), low));
}

VEC_INLINE void x8_widen(struct x8_operand *x, const uint8_t *span)
{
    for (uint32_t k = 0; k < KERN_X8_SPAN; k += 32) {
        const __m256i first = x8_load(span + k);
        const __m256i high = x8_load(span + KERN_X8_SPAN + k);
        const __m256i low = x8_load(span + 2 * KERN_X8_SPAN + k);
        _mm256_store_si256((void *)(x->wide[0][0] + k / 2), x8_even(first));
        _mm256_store_si256((void *)(x->wide[0][1] + k / 2), x8_odd(first));
        x8_join(x->wide[1][0] + k / 2, x8_even(high), x8_even(low));
        x8_join(x->wide[1][1] + k / 2, x8_odd(high), x8_odd(low));
    }
}

VEC_INLINE void x8_operand_set(const struct x8_shape s, struct x8_operand *x, const uint8_t *span)
{
    const uint8_t *starts = span + s.digits * KERN_X8_SPAN;
    if (s.dtype == KERN_INT8 && s.digits == KERN_X8_FULL) x8_widen(x, span);
    else memcpy(x->digit, span, s.digits * KERN_X8_SPAN);
    memcpy(x->scale, starts + 2 * 4 * s.digits * X8_SPAN_GROUPS, sizeof x->scale);
    for (uint32_t g = 0; s.dtype == KERN_INT4 && g < X8_SPAN_GROUPS; g++, starts += 4 * s.digits) {
        x->start[g][0] = (int32_t)base_le_load32(starts);
        if (s.digits == KERN_X8_FULL)
            x->start[g][1] = (int32_t)base_le_load32(starts + 4) * (int32_t)X8_BASE +
                             (int32_t)base_le_load32(starts + 8);
    }
}

/* Registers whose sums of a group go on together: those of a large group of INT4 wait in memory
 * while 32 columns of another register are added up, or the tile would be read in strides. */
VEC_INLINE uint32_t x8_waiting(const struct x8_shape s)
{
    return s.dtype == KERN_INT4 && s.group == KERN_GROUP_LARGE ? X8_REGS : s.regs;
}

VEC_INLINE void x8_start(const struct x8_shape s, const struct x8_operand *x, uint32_t g,
                         struct x8_sums *sums)
{
    UNROLL for (uint32_t i = 0; i < x8_waiting(s); i++)
    {
        UNROLL for (uint32_t r = 0; r < s.rows; r++)
        {
            UNROLL for (uint32_t j = 0; j < X8_ROWS * X8_PARTS; j++)
                sums->of[i][r][j / X8_PARTS][j % X8_PARTS] =
                    s.dtype == KERN_INT8 ? _mm256_setzero_si256()
                                         : _mm256_set1_epi32(x[r].start[g][j % X8_PARTS]);
        }
    }
}

/* Fetches each cache line once: both of a line where all its registers go together, else with the
 * first register that lies in it. */
VEC_INLINE void x8_ahead(const struct x8_shape s, const uint8_t *line, uint32_t reg)
{
    const bool both = x8_waiting(s) == X8_REGS;
    const uint8_t *at = line + (s.dtype == KERN_INT4 ? 2 * X8_AHEAD : X8_AHEAD);
    if (reg % (both ? X8_REGS : 2) != 0) return;
    __builtin_prefetch(at, 0, 3);
    if (both) __builtin_prefetch(at + 2 * X8_REG_BYTES, 0, 3);
}

/* Four columns, those of `line` of the group, of one operand row, which begin at `x`. */
VEC_INLINE void x8_int8_one(const struct x8_shape s, const uint8_t *line, const int16_t *x,
                            struct x8_sums *sums)
{
    UNROLL for (uint32_t i = 0; i < s.regs; i++)
    {
        const __m256i bytes = x8_load(line + i * X8_REG_BYTES);
        const __m256i even = x8_even(bytes), odd = x8_odd(bytes);
        UNROLL for (uint32_t p = 0; p < X8_PARTS; p++)
        {
            const int16_t *codes = x + 2 * p * X8_PAIRS;
            __m256i *sum = &sums->of[i][0][0][p];
            *sum = x8_add_words(*sum, even, x8_four_bytes(codes));
            *sum = x8_add_words(*sum, odd, x8_four_bytes(codes + X8_PAIRS));
        }
    }
}

/* The same of several, with two registers. */
VEC_INLINE void x8_int8_some(const struct x8_shape s, const uint8_t *line, const int16_t *x,
                             struct x8_sums *sums)
{
    enum { ROW = sizeof(struct x8_operand) / sizeof(int16_t) };
    const __m256i a = x8_load(line), b = x8_load(line + X8_REG_BYTES);
    const __m256i even[2] = { x8_even(a), x8_even(b) }, odd[2] = { x8_odd(a), x8_odd(b) };
    UNROLL for (uint32_t r = 0; r < s.rows; r++)
    {
        UNROLL for (uint32_t p = 0; p < X8_PARTS; p++)
        {
            const int16_t *codes = x + r * ROW + 2 * p * X8_PAIRS;
            __m256i two[2] = { sums->of[0][r][0][p], sums->of[1][r][0][p] };
            x8_add_two(false, two, even, codes);
            x8_add_two(false, two, odd, codes + X8_PAIRS);
            sums->of[0][r][0][p] = two[0];
            sums->of[1][r][0][p] = two[1];
        }
    }
}

/* Of one digit: |w| times x with w's sign; two products fit sixteen bits. */
VEC_INLINE void x8_int8_fast(const struct x8_shape s, const uint8_t *line, const uint8_t *x,
                             struct x8_sums *sums)
{
    UNROLL for (uint32_t i = 0; i < s.regs; i++)
    {
        const __m256i bytes = x8_load(line + i * X8_REG_BYTES), size = _mm256_abs_epi8(bytes);
        UNROLL for (uint32_t r = 0; r < s.rows; r++)
        {
            const __m256i four = x8_four_bytes(x + r * sizeof(struct x8_operand));
            const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four, bytes));
            __m256i *sum = &sums->of[i][r][0][0];
            *sum = x8_add_words(*sum, pairs, _mm256_set1_epi16(1));
        }
    }
}

VEC_INLINE void x8_int8(const struct x8_shape s, const uint8_t *lines, const struct x8_operand *x,
                        uint32_t reg, uint32_t g, struct x8_sums *sums)
{
    enum { LINES = X8_BATCH / 2 };
    const int16_t *wide = x->wide[0][0] + g * s.group / 2;
    const uint8_t *codes = x->digit[0] + g * s.group;
    const uint8_t *end = lines + s.group / KERN_TILE_COLS * X8_LINE;
    for (; lines < end; lines += LINES * X8_LINE) {
        UNROLL for (uint32_t i = 0; i < LINES; i++)
        {
            x8_ahead(s, lines + i * X8_LINE, reg);
            const uint8_t *line = lines + i * X8_LINE;
            if (s.digits != KERN_X8_FULL)
                x8_int8_fast(s, line, codes + i * KERN_TILE_COLS, sums);
            else if (s.rows == 1)
                x8_int8_one(s, line, wide + i * KERN_TILE_COLS / 2, sums);
            else
                x8_int8_some(s, line, wide + i * KERN_TILE_COLS / 2, sums);
        }
        wide += LINES * KERN_TILE_COLS / 2;
        codes += LINES * KERN_TILE_COLS;
    }
}

/* Sums of INT4 in sixteen bits, by register, operand row, digit and nibble. */
struct x8_short {
    __m256i of[X8_REGS][X8_SHARING][KERN_X8_FULL][X8_ROWS];
};

VEC_INLINE void x8_int4_line(const struct x8_shape s, const uint8_t *line, const uint8_t *x,
                             bool first, struct x8_short *sums)
{
    const __m256i mask = _mm256_set1_epi8(15);
    UNROLL for (uint32_t i = 0; i < s.regs; i++)
    {
        const __m256i bytes = x8_load(line + i * X8_REG_BYTES);
        const __m256i nibbles[X8_ROWS] = { _mm256_and_si256(bytes, mask),
                                           _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask) };
        UNROLL for (uint32_t r = 0; r < s.rows; r++)
        {
            UNROLL for (uint32_t d = 0; d < s.digits; d++)
            {
                const uint8_t *codes = x + r * sizeof(struct x8_operand) + d * KERN_X8_SPAN;
                __m256i *sum = sums->of[i][r][d];
                if (first) {
                    const __m256i four = x8_four_bytes(codes);
                    sum[0] = _mm256_maddubs_epi16(nibbles[0], four);
                    sum[1] = _mm256_maddubs_epi16(nibbles[1], four);
                } else {
                    x8_add_two(true, sum, nibbles, codes);
                }
            }
        }
    }
}

/* The sums of 32 columns, widened. */
VEC_INLINE void x8_int4_end(const struct x8_shape s, const struct x8_short *sum,
                            __m256i (*to)[X8_SHARING][X8_ROWS][X8_PARTS])
{
    const __m256i one = _mm256_set1_epi16(1), base = _mm256_set1_epi16((short)X8_BASE);
    UNROLL for (uint32_t i = 0; i < s.regs; i++)
    {
        UNROLL for (uint32_t j = 0; j < s.rows * X8_ROWS; j++)
        {
            const uint32_t r = j / X8_ROWS, v = j % X8_ROWS;
            const __m256i(*of)[X8_ROWS] = sum->of[i][r];
            __m256i *wide = to[i][r][v];
            wide[0] = _mm256_add_epi32(wide[0], _mm256_madd_epi16(of[0][v], one));
            if (s.digits != KERN_X8_FULL) continue;
            wide[1] = _mm256_add_epi32(wide[1], _mm256_madd_epi16(of[1][v], base));
            wide[1] = _mm256_add_epi32(wide[1], _mm256_madd_epi16(of[2][v], one));
        }
    }
}

/* As many registers as sums wait for of 32 columns, then of the next. */
VEC_INLINE void x8_int4(const struct x8_shape s, const uint8_t *lines, const struct x8_operand *x,
                        uint32_t first, uint32_t g, struct x8_sums *sums)
{
    const uint8_t *codes = x->digit[0] + g * s.group;
    const uint8_t *end = lines + s.group / KERN_TILE_COLS * X8_LINE;
    for (; lines < end; lines += X8_BATCH * X8_LINE, codes += KERN_GROUP_SMALL) {
        UNROLL for (uint32_t reg = 0; reg < x8_waiting(s); reg += s.regs)
        {
            struct x8_short sum;
            UNROLL for (uint32_t i = 0; i < X8_BATCH; i++)
            {
                const uint8_t *line = lines + i * X8_LINE + reg * X8_REG_BYTES;
                x8_ahead(s, line, first + reg);
                x8_int4_line(s, line, codes + i * KERN_TILE_COLS, i == 0, &sum);
            }
            x8_int4_end(s, &sum, sums->of + reg);
        }
    }
}

/* The scales of a register's rows. */
VEC_INLINE __m256 x8_weights(const uint8_t *pairs, bool second, int32_t upper)
{
    const __m256i both = _mm256_loadu_si256((const void *)pairs);
    return _mm256_castsi256_ps(second
                                   ? _mm256_and_si256(both, _mm256_set1_epi32(upper))
                                   : _mm256_slli_epi32(both, 16));
}

/* Adds a group's sums times `factor`. */
VEC_INLINE void x8_end(const struct x8_shape s, float *total, const __m256i sum[X8_PARTS],
                       __m256 factor)
{
    __m256 value = _mm256_cvtepi32_ps(sum[0]);
    if (s.digits == KERN_X8_FULL)
        value = _mm256_fmadd_ps(value, _mm256_set1_ps(X8_BASE_2), _mm256_cvtepi32_ps(sum[1]));
    _mm256_store_ps(total, _mm256_fmadd_ps(value, factor, _mm256_load_ps(total)));
}

/* Group g of a span: registers of its lines from `reg` on. */
VEC_INLINE void x8_registers(const struct x8_shape s, const uint8_t *lines, uint32_t reg,
                             const struct x8_operand *x, uint32_t g, float *totals)
{
    enum { ROW = sizeof(struct x8_totals) / sizeof(float) };
    const uint8_t *pairs = lines + s.group / KERN_TILE_COLS * X8_LINE;
    const uint32_t regs = x8_waiting(s);
    struct x8_sums sums;
    __builtin_prefetch(pairs);
    if (s.dtype == KERN_INT4) __builtin_prefetch(pairs + 64);
    x8_start(s, x, g, &sums);
    if (s.dtype == KERN_INT8) x8_int8(s, lines + reg * X8_REG_BYTES, x, reg, g, &sums);
    else x8_int4(s, lines + reg * X8_REG_BYTES, x, reg, g, &sums);
    int32_t upper = (int32_t)0xffff0000;
    /* What follows has no room in registers before. */
    __asm__ volatile("" : "+r"(x), "+r"(pairs), "+r"(totals), "+r"(upper));
    UNROLL for (uint32_t i = 0; i < regs; i++)
    {
        UNROLL for (uint32_t v = 0; v < x8_lane_rows(s.dtype); v++)
        {
            const uint32_t at = reg + i;
            const bool int8 = s.dtype == KERN_INT8;
            const uint32_t to = int8 ? at : (at / 2 * X8_ROWS + v) * 2 + at % 2;
            const __m256 weights = x8_weights(pairs + (int8 ? at % 2 : at) * X8_REG_BYTES,
                                              int8 ? at / 2 : v, upper);
            UNROLL for (uint32_t r = 0; r < s.rows; r++)
                x8_end(s, totals + r * ROW + to * X8_REG_ROWS, sums.of[i][r][v],
                       _mm256_mul_ps(weights, _mm256_set1_ps(x[r].scale[g])));
        }
    }
}

/* Registers of a line that have room for their sums together. */
VEC_INLINE uint32_t x8_regs(enum kern_dtype dtype, uint32_t digits, uint32_t rows)
{
    if (digits == KERN_X8_FULL) return dtype == KERN_INT4 ? 1 : 4 / rows;
    const uint32_t room = (dtype == KERN_INT8 ? 8 : 4) / rows;
    return room > X8_REGS ? X8_REGS : room;
}

/* Group g of a span: all registers of its lines. */
VEC_INLINE void x8_group(enum kern_dtype dtype, uint32_t group, uint32_t digits, uint32_t rows,
                         const uint8_t *lines, const struct x8_operand *x, uint32_t g,
                         struct x8_totals *totals)
{
    const uint32_t regs = x8_regs(dtype, digits, rows);
    const struct x8_shape s = { dtype, group, digits, regs, rows };
    UNROLL for (uint32_t reg = 0; reg < X8_REGS; reg += x8_waiting(s))
        x8_registers(s, lines, reg, x, g, totals->of);
}

/* Span i of a tile, or a copy of it where it is not whole or not in one piece. */
VEC_INLINE const uint8_t *x8_span_at(enum kern_dtype dtype, uint32_t group, const struct x8_tile *t,
                                     uint32_t i, uint8_t filled[X8_SPAN_BYTES])
{
    const size_t bytes = x8_span_bytes(dtype, group), at = i * bytes;
    if (t->rows == kern_tile_rows(dtype) && (i + 1) * KERN_X8_SPAN <= t->cols) {
        if (at >= t->seam) return t->tail + (at - t->seam);
        if (at + bytes <= t->seam) return t->head + at;
    }
    x8_fill(filled, dtype, group, t, i * KERN_X8_SPAN);
    return filled;
}

/* A tile against operand rows from m on. */
VEC_INLINE void x8_tile_rows(enum kern_dtype dtype, uint32_t group, uint32_t digits,
                             const struct kern_matmul *args, const struct x8_tile *t, uint32_t m,
                             uint32_t rows, struct x8_totals *totals)
{
    const struct x8_shape s = { .dtype = dtype, .group = group, .digits = digits };
    const size_t bytes = group / KERN_TILE_COLS * (size_t)X8_LINE + x8_scale_bytes(dtype);
    const uint8_t *from = (const uint8_t *)args->x8 + m * args->x8_stride;
    struct x8_operand x[X8_TOGETHER];
    memset(totals, 0, rows * sizeof *totals);
    for (uint32_t i = 0; i * KERN_X8_SPAN < t->cols; i++, from += kern_x8_span_bytes(digits)) {
        _Alignas(32) uint8_t filled[X8_SPAN_BYTES];
        const uint8_t *lines = x8_span_at(dtype, group, t, i, filled);
        for (uint32_t r = 0; r < rows; r++) x8_operand_set(s, &x[r], from + r * args->x8_stride);
        for (uint32_t g = 0; g < KERN_X8_SPAN / group; g++, lines += bytes) {
            uint32_t r = 0;
            for (; digits == KERN_X8_FAST && r + 4 <= rows; r += 4)
                x8_group(dtype, group, digits, 4, lines, x + r, g, totals + r);
            for (; (dtype == KERN_INT8 || digits == KERN_X8_FAST) && r + 2 <= rows; r += 2)
                x8_group(dtype, group, digits, 2, lines, x + r, g, totals + r);
            for (; r < rows; r++) x8_group(dtype, group, digits, 1, lines, x + r, g, totals + r);
        }
    }
}

/* Those of a tile's rows that lie in [row_begin, row_end). */
VEC_INLINE void x8_store(const struct kern_matmul *args, const struct x8_tile *t, uint32_t m,
                         const float *total, uint32_t row_begin, uint32_t row_end)
{
    const uint32_t begin = t->first < row_begin ? row_begin : t->first;
    const uint32_t end = t->first + t->rows < row_end ? t->first + t->rows : row_end;
    memcpy(args->y + m * args->y_stride + begin, total + (begin - t->first),
           (end - begin) * sizeof *total);
}

VEC_INLINE void x8_product(const struct kern_matmul *args, enum kern_dtype dtype, uint32_t group,
                           uint32_t digits, uint32_t row_begin, uint32_t row_end)
{
    const uint32_t unit = kern_tile_rows(dtype);
    for (uint32_t n = row_begin / unit * unit; n < row_end; n += unit) {
        const struct x8_tile t = x8_tile_at(args->w, dtype, group, n);
        for (uint32_t m = 0; m < args->m; m += X8_TOGETHER) {
            struct x8_totals totals[X8_TOGETHER];
            const uint32_t rows = args->m - m < X8_TOGETHER ? args->m - m : X8_TOGETHER;
            x8_tile_rows(dtype, group, digits, args, &t, m, rows, totals);
            for (uint32_t r = 0; r < rows; r++)
                x8_store(args, &t, m + r, totals[r].of, row_begin, row_end);
        }
    }
}
