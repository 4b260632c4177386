// Gradient sums become steps, eight at a time.

#include "x86_64.h"
#ifdef FITS

// limit_step(product >> n) of four: a sign goes through a shift to the right as all bits turned.
INLINE __m256i step4(__m256i product, __m128i n) {
    const __m256i most = _mm256_set1_epi64x(STEP_LIMIT), least = _mm256_set1_epi64x(-STEP_LIMIT);
    const __m256i sign = _mm256_cmpgt_epi64(_mm256_setzero_si256(), product);
    const __m256i shifted = _mm256_srl_epi64(_mm256_xor_si256(product, sign), n);
    const __m256i v = _mm256_xor_si256(shifted, sign);
    const __m256i low = _mm256_blendv_epi8(v, least, _mm256_cmpgt_epi64(least, v));
    return _mm256_blendv_epi8(low, most, _mm256_cmpgt_epi64(v, most));
}

void sp_steps(int32_t *v, uint32_t n, int32_t factor, int32_t shift) {
    const __m256i factors = _mm256_set1_epi32(factor);
    const __m128i count = _mm_cvtsi32_si128(min32(shift, 63));
    for (; n >= LANES && shift >= 0; n -= LANES, v += LANES) {
        const __m256i x = load8(v);
        const __m256i even = step4(_mm256_mul_epi32(x, factors), count);
        const __m256i odd = step4(_mm256_mul_epi32(_mm256_srli_epi64(x, 32), factors), count);
        store8(v, _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa));
    }
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = step_of(v[i], factor, shift);
    }
}

#endif
