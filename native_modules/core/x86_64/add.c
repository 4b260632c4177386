// Sum of two tensors, sixteen elements at a time.

#include "x86_64.h"
#ifdef FITS

// One scale for all lanes.
typedef struct {
    __m256i multiplier, left, right;
} scale8_t;

INLINE scale8_t scale_of(int32_t multiplier, int32_t shift) {
    shift = limit32(shift, -31, 30);
    return (scale8_t){_mm256_set1_epi32(multiplier), _mm256_set1_epi32(max32(shift, 0)),
                      _mm256_set1_epi32(max32(-shift, 0))};
}

INLINE __m256i scaled(__m256i v, scale8_t s) { return mbqm8_of(v, s.multiplier, s.left, s.right); }

// Eight elements less their zero point, times 2**20.
INLINE __m256i raised(__m128i v, int32_t zero_point) {
    const __m256i zero = _mm256_set1_epi32(zero_point);
    return _mm256_slli_epi32(_mm256_sub_epi32(_mm256_cvtepi8_epi32(v), zero), 20);
}

void sp_add_block(const add_t *d, uint32_t first, uint32_t n) {
    const int32_t *p = d->p;
    const scale8_t sa = scale_of(p[0], p[1]), sb = scale_of(p[2], p[3]);
    const scale8_t sum = scale_of(p[4], p[5]);
    const __m256i zero = _mm256_set1_epi32(d->out.zero_point);
    const int8_t *a = (const int8_t *)d->a.data + first, *b = (const int8_t *)d->b.data + first;
    for (uint32_t i = 0; i < n; i += 16) {
        const uint32_t some = umin32(n - i, 16);
        __m128i va = load16(a + i, some), vb = load16(b + i, some);
        __m256i v[2];
        for (uint32_t half = 0; half < 2; ++half) {
            const __m256i both = _mm256_add_epi32(scaled(raised(va, d->a.zero_point), sa),
                                                  scaled(raised(vb, d->b.zero_point), sb));
            v[half] = _mm256_add_epi32(scaled(both, sum), zero);
            va = _mm_srli_si128(va, 8);
            vb = _mm_srli_si128(vb, 8);
        }
        const __m256i values = _mm256_packs_epi32(v[0], v[1]);
        store_two(&d->out, values, values, 1, some, first + i, 0);
    }
}

#endif
