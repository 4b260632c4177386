// What the kernels of gradients share.

#ifndef SPROUT_X86_64_GRADIENT_H
#define SPROUT_X86_64_GRADIENT_H

#include "x86_64.h"
#ifdef FITS

enum { WIDE = 2 * LANES }; // values of 16 bits in a vector

INLINE __m256i load_wide(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE void store_wide(int16_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

// Sixteen bytes at p; only the first n of them where fewer than sixteen are `left` to load.
INLINE __m128i load_bytes(const int8_t *p, uint32_t n, int64_t left) {
    return left >= 16 ? _mm_loadu_si128((const __m128i *)p) : load_some(p, n);
}

// rshift32 of eight by n: 0 <= n <= 31.
INLINE __m256i rshift8(__m256i v, int32_t n) {
    const __m256i before = _mm256_sra_epi32(v, _mm_cvtsi32_si128(n - 1)); // n = 0: signs
    const __m256i bit = _mm256_and_si256(before, _mm256_set1_epi32(n ? 1 : 0));
    return _mm256_add_epi32(_mm256_sra_epi32(v, _mm_cvtsi32_si128(n)), bit);
}

// The lower halves of sixteen values, as narrow16 has them where they fit.
INLINE __m256i halves16(__m256i a, __m256i b) {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i v = _mm256_packus_epi32(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
    return _mm256_permute4x64_epi64(v, 0xd8);
}

// The first n <= 16 of sixteen sums, shifted, to p.
INLINE void store_gradient(int16_t *p, __m256i a, __m256i b, int32_t shift, uint32_t n) {
    const __m256i v = halves16(rshift8(a, shift), rshift8(b, shift));
    if (n == WIDE) {
        store_wide(p, v);
        return;
    }
    store_some(p, _mm256_castsi256_si128(v), 2 * umin32(n, LANES));
    store_some(p + LANES, _mm256_extracti128_si256(v, 1), 2 * (n - umin32(n, LANES)));
}

// All bits of eight values ored together.
INLINE uint32_t or_of(__m256i v) {
    const __m128i four = _mm_or_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_or_si128(four, _mm_unpackhi_epi64(four, four));
    return (uint32_t)_mm_cvtsi128_si32(two) | (uint32_t)_mm_extract_epi32(two, 1);
}

INLINE uint32_t sum_of(__m256i v) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return (uint32_t)_mm_cvtsi128_si32(two) + (uint32_t)_mm_extract_epi32(two, 1);
}

// Pairs of bytes j of eight rows side by side, widened: to [count <= 8, step] from count pairs of
// each row.
INLINE void transpose_pairs(const __m128i *row, int16_t *to, uint32_t step, uint32_t count) {
    __m128i a[8], b[8];
    for (uint32_t i = 0; i < 4; ++i) {
        a[i] = _mm_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
        a[i + 4] = _mm_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
    }
    for (uint32_t i = 0; i < 8; i += 4) { // pairs 0 to 3, 4 to 7
        b[i] = _mm_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm_unpackhi_epi32(a[i], a[i + 1]);
        b[i + 2] = _mm_unpacklo_epi32(a[i + 2], a[i + 3]);
        b[i + 3] = _mm_unpackhi_epi32(a[i + 2], a[i + 3]);
    }
    for (uint32_t j = 0; j < 8; ++j) {
        const __m128i low = b[(j & 4) + (j >> 1 & 1)], high = b[(j & 4) + 2 + (j >> 1 & 1)];
        const __m128i v = j & 1 ? _mm_unpackhi_epi64(low, high) : _mm_unpacklo_epi64(low, high);
        if (j < count) {
            store_wide(to + j * step, _mm256_cvtepi8_epi16(v));
        }
    }
}

#endif
#endif
