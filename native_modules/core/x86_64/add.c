// Sum of two tensors, sixteen elements at a time. No scale that a compiler makes is negative or
// above 1; sums that take another are left to the plain kernel.

#include "x86_64.h"
#ifdef FITS

// One scale for all: what shifts right, whether that has to round halves away from zero, and what
// rounds the products both times.
typedef struct {
    __m256i multiplier, right, away, nudge;
} scale8_t;

// Of products that are to be shifted right by `bits` first.
INLINE scale8_t scale_of(int32_t multiplier, int32_t shift, int32_t bits) {
    const int32_t right = min32(-max32(shift, -31), 31);
    const int64_t half = right ? 1 << (right - 1) : 0;
    return (scale8_t){_mm256_set1_epi32(multiplier), _mm256_set1_epi32(right),
                      _mm256_set1_epi32(right ? -1 : 0),
                      _mm256_set1_epi64x((1 << (bits - 1)) + (half << bits))};
}

// mbqm of v << 31 - bits, as mbqm8_small does it.
INLINE __m256i scaled(__m256i v, scale8_t s, int32_t bits) {
    const __m256i even = _mm256_mul_epi32(v, s.multiplier);
    const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(v, 32), s.multiplier);
    const __m256i low = _mm256_srli_epi64(_mm256_add_epi64(even, s.nudge), bits);
    const __m256i high = _mm256_slli_epi64(_mm256_add_epi64(odd, s.nudge), 32 - bits);
    const __m256i sign = _mm256_and_si256(_mm256_srai_epi32(v, 31), s.away);
    return _mm256_srav_epi32(_mm256_add_epi32(_mm256_blend_epi32(low, high, 0xaa), sign), s.right);
}

// Eight elements less their zero point.
INLINE __m256i centred(__m128i v, __m256i zero) {
    return _mm256_sub_epi32(_mm256_cvtepi8_epi32(v), zero);
}

void sp_add_block(const add_t *d, uint32_t first, uint32_t n) {
    enum { RAISE = 20, RAISED_BITS = 31 - RAISE, BITS = 31 };
    const int32_t *p = d->p;
    if ((p[0] | p[2] | p[4]) < 0 || p[1] > 0 || p[3] > 0 || p[5] > 0) {
        sp_add_block_plain(d, first, n);
        return;
    }
    const scale8_t sa = scale_of(p[0], p[1], RAISED_BITS), sb = scale_of(p[2], p[3], RAISED_BITS);
    const scale8_t sum = scale_of(p[4], p[5], BITS);
    const __m256i za = _mm256_set1_epi32(d->a.zero_point);
    const __m256i zb = _mm256_set1_epi32(d->b.zero_point);
    const __m256i zero = _mm256_set1_epi16((int16_t)d->out.zero_point);
    const int8_t *a = (const int8_t *)d->a.data + first, *b = (const int8_t *)d->b.data + first;
    for (uint32_t i = 0; i < n; i += 16) {
        const uint32_t some = umin32(n - i, 16);
        __m128i va = load16(a + i, some), vb = load16(b + i, some);
        __m256i v[2];
        for (uint32_t half = 0; half < 2; ++half) {
            const __m256i both = _mm256_add_epi32(scaled(centred(va, za), sa, RAISED_BITS),
                                                  scaled(centred(vb, zb), sb, RAISED_BITS));
            v[half] = scaled(both, sum, BITS);
            va = _mm_srli_si128(va, 8);
            vb = _mm_srli_si128(vb, 8);
        }
        const __m256i values = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero);
        store_two(&d->out, values, values, 1, some, first + i, 0);
    }
}

#endif
