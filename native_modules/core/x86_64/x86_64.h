// What the kernels for x86-64 with AVX2 share: eight sums of 32 bits go together. What they pack
// lies on the stack, of which this machine has plenty. Nothing is loaded from past the end of a
// row: it may be that of the buffer.

#ifndef SPROUT_X86_64_H
#define SPROUT_X86_64_H

#include "../kernels.h"

// For all others the files of this folder are empty.
#if defined(__AVX2__) && !defined(SPROUT_PLAIN_KERNELS)
#define FITS

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(32)))

enum { LANES = 8, VECTORS = BLOCK / LANES }; // sums in a vector, vectors in a block

// Values at any address.
typedef struct {
    uint64_t v;
} __attribute__((packed, may_alias)) any64_t;
typedef struct {
    uint32_t v;
} __attribute__((packed, may_alias)) any32_t;
typedef struct {
    uint16_t v;
} __attribute__((packed, may_alias)) any16_t;

INLINE __m256i load8(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE __m256i load4(const int64_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE void store4(int64_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

INLINE void store8(int32_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

// The first n < 16 bytes at p, zeros after them. Two loads may overlap; what both have is shifted
// out of one.
INLINE __m128i load_some(const void *p, uint32_t n) {
    const uint8_t *b = p;
    if (n >= 8) {
        const uint64_t high = ((const any64_t *)(b + n - 8))->v;
        const uint64_t low = ((const any64_t *)b)->v;
        return _mm_set_epi64x((int64_t)(n > 8 ? high >> (128 - 8 * n) : 0), (int64_t)low);
    }
    uint64_t v = 0;
    if (n >= 4) {
        v = (uint64_t)((const any32_t *)(b + n - 4))->v << (8 * n - 32);
        v |= ((const any32_t *)b)->v;
    } else if (n) {
        v = b[0] | (uint64_t)b[n >> 1] << (n >> 1) * 8 | (uint64_t)b[n - 1] << (n - 1) * 8;
    }
    return _mm_cvtsi64_si128((int64_t)v);
}

// n <= 16 elements, zeros after them.
INLINE __m128i load16(const int8_t *p, uint32_t n) {
    return n == 16 ? _mm_loadu_si128((const __m128i *)(const void *)p) : load_some(p, n);
}

// The same as 16 bits.
INLINE __m256i widen16(const int8_t *p, uint32_t n) { return _mm256_cvtepi8_epi16(load16(p, n)); }

// The 32 bits at p, eight times.
INLINE __m256i word(const void *p) { return _mm256_set1_epi32((int32_t)((const any32_t *)p)->v); }

// Two elements of 16 bits.
INLINE __m256i pair(const int16_t *p) { return word(p); }

// sum + a . b of eight pairs of 16 bits.
INLINE __m256i add_products(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// The first n <= 16 bytes of v to p.
INLINE void store_some(void *p, __m128i v, uint32_t n) {
    uint8_t *b = p;
    if (n == 16) {
        _mm_storeu_si128((__m128i *)p, v);
        return;
    }
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(v);
    if (n & 8) {
        ((any64_t *)b)->v = low;
        low = (uint64_t)_mm_extract_epi64(v, 1);
        b += 8;
    }
    if (n & 4) {
        ((any32_t *)b)->v = (uint32_t)low;
        low >>= 32;
        b += 4;
    }
    if (n & 2) {
        ((any16_t *)b)->v = (uint16_t)low;
        low >>= 16;
        b += 2;
    }
    if (n & 1) {
        *b = (uint8_t)low;
    }
}

// The first n <= 16 bits into the mask from bit e on.
INLINE void store_bits(uint8_t *mask, uint32_t e, uint32_t bits, uint32_t n) {
    uint8_t *byte = mask + (e >> 3);
    const uint32_t first = e & 7;
    if (first == 0 && n == 16) {
        ((any16_t *)byte)->v = (uint16_t)bits;
        return;
    }
    uint32_t own = ((1u << n) - 1) << first;
    for (bits <<= first; own; own >>= 8, bits >>= 8, ++byte) {
        *byte = (uint8_t)((*byte & ~own) | (bits & own));
    }
}

// high_mul of eight.
INLINE __m256i high_mul8(__m256i a, __m256i b) {
    const __m256i nudge = _mm256_set1_epi64x(1 << 30);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(a, b), nudge);
    const __m256i odd = _mm256_add_epi64(
        _mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32)), nudge);
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xaa);
}

// How the sums of a block of channels become bytes: for each channel its multiplier and what it
// shifts left and right. `nudge` rounds both of mbqm's steps at once: it is added to the whole
// products, of each eight first those of even channels.
typedef struct {
    int32_t multiplier[BLOCK] ALIGNED, left[BLOCK] ALIGNED, right[BLOCK] ALIGNED;
    int64_t nudge[BLOCK] ALIGNED;
    output_t out;
    bool small;
} finish_t;

// What the sums of n channels start at: their bias, that of the records where `bias` is NULL, less
// the zero point of x for each weight. Numbers follow up to the next multiple of 16.
void sp_start_of(int32_t *start, const uint8_t *records, uint32_t size, const int32_t *bias,
                 int32_t zero_point, uint32_t n);

// From the records of n channels and from the layer's output. The sums start at `start`, where
// small numbers follow up to the next multiple of 16; they gather products of at most `most` in
// all.
void sp_finish_of(finish_t *f, const conv_t *c, const uint8_t *records, const int32_t *start,
                  uint32_t n, uint64_t most);

// mbqm of the sums of channels i to i + 8.
INLINE __m256i mbqm8(const finish_t *f, uint32_t i, __m256i sum) {
    const __m256i high =
        high_mul8(_mm256_sllv_epi32(sum, load8(f->left + i)), load8(f->multiplier + i));
    const __m256i right = load8(f->right + i), one = _mm256_set1_epi32(1);
    const __m256i mask = _mm256_sub_epi32(_mm256_sllv_epi32(one, right), one);
    const __m256i most = _mm256_sub_epi32(_mm256_srli_epi32(mask, 1), _mm256_srai_epi32(high, 31));
    const __m256i up = _mm256_cmpgt_epi32(_mm256_and_si256(high, mask), most);
    return _mm256_sub_epi32(_mm256_srav_epi32(high, right), up);
}

// The same where all is small: the second nudge cannot overflow, and where a sum is negative and
// what comes of it is not, that is 0 either way.
INLINE __m256i mbqm8_small(const finish_t *f, uint32_t i, __m256i sum) {
    const __m256i multiplier = load8(f->multiplier + i);
    const __m256i even = _mm256_mul_epi32(sum, multiplier);
    const __m256i odd =
        _mm256_mul_epi32(_mm256_srli_epi64(sum, 32), _mm256_srli_epi64(multiplier, 32));
    const __m256i low = _mm256_add_epi64(even, load4(f->nudge + i));
    const __m256i high = _mm256_add_epi64(odd, load4(f->nudge + i + 4));
    const __m256i rounded =
        _mm256_blend_epi32(_mm256_srli_epi64(low, 31), _mm256_slli_epi64(high, 1), 0xaa);
    return _mm256_srav_epi32(_mm256_add_epi32(rounded, _mm256_srai_epi32(sum, 31)),
                             load8(f->right + i));
}

// Sixteen values of 32 bits, as a and b, to ones of 16 bits, limited to those.
INLINE __m256i narrow16(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

// Sums a and b of channels i to i + 16 as values, not limited yet but to 16 bits, in the order in
// which packing leaves them. `small`: that of f, known when this is compiled.
INLINE __m256i requantize16(const finish_t *f, bool small, uint32_t i, __m256i a, __m256i b) {
    if (small) { // what 16 bits cannot hold is outside the limits with any zero point
        const __m256i v = _mm256_packs_epi32(mbqm8_small(f, i, a), mbqm8_small(f, i + LANES, b));
        return _mm256_adds_epi16(v, _mm256_set1_epi16((int16_t)f->out.zero_point));
    }
    const __m256i zero = _mm256_set1_epi32(f->out.zero_point);
    return _mm256_packs_epi32(_mm256_add_epi32(mbqm8(f, i, a), zero),
                              _mm256_add_epi32(mbqm8(f, i + LANES, b), zero));
}

// Two times sixteen values of that order as bytes in the right one.
INLINE __m256i narrow8(__m256i a, __m256i b) {
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Limits the first n <= 16 of the values a and stores them into elements e, e + 1, ... of the
// output; where there are two `rows`, those of b `step` elements further.
INLINE void store_two(const output_t *out, __m256i a, __m256i b, uint32_t rows, uint32_t n,
                      uint32_t e, uint32_t step) {
    const __m256i bytes =
        _mm256_min_epi8(_mm256_max_epi8(narrow8(a, b), _mm256_set1_epi8((int8_t)out->min)),
                        _mm256_set1_epi8((int8_t)out->max));
    store_some(out->y + e, _mm256_castsi256_si128(bytes), n);
    if (rows == 2) {
        store_some(out->y + e + step, _mm256_extracti128_si256(bytes, 1), n);
    }
    if (out->mask) {
        const __m256i low = _mm256_set1_epi16((int16_t)(out->min - 1));
        const __m256i high = _mm256_set1_epi16((int16_t)(out->max + 1));
        const __m256i inside =
            narrow8(_mm256_and_si256(_mm256_cmpgt_epi16(a, low), _mm256_cmpgt_epi16(high, a)),
                    _mm256_and_si256(_mm256_cmpgt_epi16(b, low), _mm256_cmpgt_epi16(high, b)));
        const uint32_t bits = (uint32_t)_mm256_movemask_epi8(inside);
        store_bits(out->mask, e, bits, n);
        if (rows == 2) {
            store_bits(out->mask, e + step, bits >> 16, n);
        }
    }
}

// Requantises sums a and b of channels i to i + 16, of four rows, and stores n <= 16 channels of
// the first `rows` of them as store_two does.
INLINE void finish_rows(const finish_t *f, bool small, uint32_t i, const __m256i a[4],
                        const __m256i b[4], uint32_t rows, uint32_t n, uint32_t e, uint32_t step) {
    const __m256i v0 = requantize16(f, small, i, a[0], b[0]);
    const __m256i v1 = requantize16(f, small, i, a[1], b[1]);
    const __m256i v2 = requantize16(f, small, i, a[2], b[2]);
    const __m256i v3 = requantize16(f, small, i, a[3], b[3]);
    store_two(&f->out, v0, v1, umin32(rows, 2), n, e, step);
    if (rows > 2) {
        store_two(&f->out, v2, v3, rows - 2, n, e + 2 * step, step);
    }
}

#endif
#endif
