// A gradient through a scale, sixteen values at a time. All pixels of sixteen channels come before
// the next ones: so the channels' scales, and the greatest magnitudes, stay in registers.

#include "gradient.h"
#ifdef FITS

// Values start, start + step, ... of `rows` rows, each of sixteen elements or of eight; their
// scales are table[0], table[each], ...
typedef struct {
    uint32_t start, step, rows, each;
    const int32_t *table;
} columns_t;

INLINE __m256i load_half(const int16_t *p) {
    return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE __m256i load_values(const int16_t *p, uint32_t width) {
    return width == WIDE ? load_wide(p) : load_half(p);
}

INLINE void store_values(int16_t *p, __m256i v, uint32_t width) {
    if (width == WIDE) {
        store_wide(p, v);
    } else {
        _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(v));
    }
}

// Eight scales.
INLINE __m256i scales(const columns_t *c, uint32_t i, uint32_t width) {
    if (i >= width) {
        return _mm256_setzero_si256();
    }
    return c->each ? load8(c->table + i) : _mm256_set1_epi32(*c->table);
}

// Bits e to e + width of the mask.
INLINE uint32_t bits_at(const uint8_t *mask, uint32_t e, uint32_t width) {
    const uint8_t *byte = mask + (e >> 3);
    const uint32_t skip = e & 7;
    uint32_t bits = byte[0];
    if (width == WIDE || skip) {
        bits |= (uint32_t)byte[1] << 8;
    }
    if (width == WIDE && skip) {
        bits |= (uint32_t)byte[2] << 16;
    }
    return bits >> skip;
}

// to = q where the mask has a bit; returns all |to * table| ored together.
INLINE __m256i mask_columns(const scale_t *s, const columns_t *c, uint32_t width) {
    const __m256i lane =
        _mm256_setr_epi16(1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8,
                          1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, (int16_t)(1 << 15));
    __m256i most = _mm256_setzero_si256(); // magnitudes, unsigned
    for (uint32_t r = 0, e = c->start; r < c->rows; ++r, e += c->step) {
        __m256i v = load_values(s->q + e, width);
        if (s->mask) {
            const __m256i bits = _mm256_set1_epi16((int16_t)bits_at(s->mask, e, width));
            v = _mm256_and_si256(v, _mm256_cmpeq_epi16(_mm256_and_si256(bits, lane), lane));
        }
        store_values(s->to + e, v, width);
        most = _mm256_max_epu16(most, _mm256_abs_epi16(v));
    }
    const __m256i zero = _mm256_setzero_si256();
    __m256i seen = zero;
    for (uint32_t i = 0; i < width; i += LANES) {
        const __m128i part = i ? _mm256_extracti128_si256(most, 1) : _mm256_castsi256_si128(most);
        const __m256i m = _mm256_cvtepu16_epi32(part);
        const __m256i scale = _mm256_abs_epi32(scales(c, i, width)); // unsigned too
        seen = _mm256_or_si256(seen, _mm256_mul_epu32(m, scale));
        seen = _mm256_or_si256(
            seen, _mm256_mul_epu32(_mm256_srli_epi64(m, 32), _mm256_srli_epi64(scale, 32)));
    }
    return seen;
}

// rshift32 by count + 1 of values that 1 can be added to.
INLINE __m256i round_off(__m256i v, __m128i count) {
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_sra_epi32(v, count), _mm256_set1_epi32(1)),
                             1);
}

// to = to * table * 2**-shift, rounded.
INLINE void scale_columns(const scale_t *s, const columns_t *c, int32_t shift, uint32_t width) {
    const __m256i a = scales(c, 0, width), b = scales(c, LANES, width);
    if (shift <= 16) {
        for (uint32_t r = 0, e = c->start; r < c->rows; ++r, e += c->step) {
            const __m256i v = load_values(s->to + e, width);
            const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v));
            const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1));
            store_values(s->to + e,
                         narrow16(rshift8(_mm256_mullo_epi32(low, a), shift),
                                  rshift8(_mm256_mullo_epi32(high, b), shift)),
                         width);
        }
        return;
    }
    // x * (t >> 16) and the upper half of x * (t & 0xffff) are a pair of products: that of the
    // lower halves as signed ones lacks x where they are negative.
    const __m256i upper = narrow16(_mm256_srai_epi32(a, 16), _mm256_srai_epi32(b, 16));
    const __m256i lower = narrow16(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16),
                                   _mm256_srai_epi32(_mm256_slli_epi32(b, 16), 16));
    const __m256i negative = _mm256_srai_epi16(lower, 15), one = _mm256_set1_epi16(1);
    const __m256i first = _mm256_unpacklo_epi16(upper, one);
    const __m256i second = _mm256_unpackhi_epi16(upper, one);
    const __m128i count = _mm_cvtsi32_si128(shift - 17); // but for the last bit
    for (uint32_t r = 0, e = c->start; r < c->rows; ++r, e += c->step) {
        const __m256i x = load_values(s->to + e, width);
        const __m256i part =
            _mm256_add_epi16(_mm256_mulhi_epi16(x, lower), _mm256_and_si256(x, negative));
        const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(x, part), first);
        const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(x, part), second);
        store_values(s->to + e, _mm256_packs_epi32(round_off(low, count), round_off(high, count)),
                     width);
    }
}

// What has one scale is as if it had sixteen channels, and some elements after the last row.
static columns_t columns_of(const scale_t *s) {
    const uint32_t channels = s->step ? s->channels : WIDE;
    return (columns_t){0, channels, divide(s->n, channels), s->step, s->table};
}

static columns_t after_rows(const scale_t *s) {
    const columns_t c = columns_of(s);
    return (columns_t){c.rows * c.step, 0, 1, s->step, s->table};
}

static void move(columns_t *c, uint32_t n) {
    c->start += n;
    c->table += n * c->each;
}

// The same of n elements of each row, one by one.
static uint64_t mask_rest(const scale_t *s, const columns_t *c, uint32_t n) {
    uint64_t seen = 0;
    for (uint32_t r = 0; r < c->rows; ++r) {
        for (uint32_t i = 0; i < n; ++i) {
            const uint32_t e = c->start + r * c->step + i;
            const int32_t v = mask_at(s->mask, e) ? s->q[e] : 0;
            s->to[e] = (int16_t)v;
            seen |= umul64(magnitude32(v), magnitude32(c->table[i * c->each]));
        }
    }
    return seen;
}

static void scale_rest(const scale_t *s, const columns_t *c, uint32_t n, int32_t shift) {
    for (uint32_t r = 0; r < c->rows && n; ++r) {
        const scale_t part = {NULL, s->to + c->start + r * c->step, NULL, c->table, n, n, c->each};
        sp_scale_plain(&part, shift);
    }
}

int32_t sp_mask_gradient(const scale_t *s) {
    columns_t c = columns_of(s);
    const columns_t after = after_rows(s);
    __m256i wide = _mm256_setzero_si256();
    uint32_t left = c.step;
    for (; left >= WIDE; left -= WIDE, move(&c, WIDE)) {
        wide = _mm256_or_si256(wide, mask_columns(s, &c, WIDE));
    }
    if (left >= LANES) {
        wide = _mm256_or_si256(wide, mask_columns(s, &c, LANES));
        move(&c, LANES);
    }
    uint64_t part[4], seen = mask_rest(s, &c, left % LANES);
    seen |= mask_rest(s, &after, s->n - after.start);
    _mm256_storeu_si256((__m256i *)(void *)part, wide);
    return bitlen64(seen | part[0] | part[1] | part[2] | part[3]);
}

void sp_scale(const scale_t *s, int32_t shift) {
    columns_t c = columns_of(s);
    const columns_t after = after_rows(s);
    uint32_t left = c.step;
    for (; left >= WIDE; left -= WIDE, move(&c, WIDE)) {
        scale_columns(s, &c, shift, WIDE);
    }
    if (left >= LANES) {
        scale_columns(s, &c, shift, LANES);
        move(&c, LANES);
    }
    scale_rest(s, &c, left % LANES, shift);
    scale_rest(s, &after, s->n - after.start, shift);
}

#endif
