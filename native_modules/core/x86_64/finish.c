// From sums to bytes: what is the same for all pixels of a block of channels.

#include "x86_64.h"
#ifdef FITS

// Of eight records all but the weights, as vectors.
typedef struct {
    __m256i bias, multiplier, shift, sum;
} heads_t;

// Records i to i + 8 of n, the last one again where there are no more.
static heads_t heads_of(const uint8_t *records, uint32_t size, uint32_t i, uint32_t n) {
    __m256i v[4]; // two of them, four further
    for (uint32_t j = 0; j < 4; ++j) {
        const record_t *low = record_at(records, size, umin32(i + j, n - 1));
        const record_t *high = record_at(records, size, umin32(i + j + 4, n - 1));
        v[j] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)low)),
            _mm_loadu_si128((const __m128i *)(const void *)high), 1);
    }
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    return (heads_t){_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c),
                     _mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d)};
}

// Up to the next multiple of what is finished at a time.
static uint32_t whole_of(uint32_t n) { return (n + 2 * LANES - 1) & ~(2u * LANES - 1); }

void sp_start_of(int32_t *start, const uint8_t *records, uint32_t size, const int32_t *bias,
                 int32_t zero_point, uint32_t n) {
    const __m256i zero = _mm256_set1_epi32(zero_point);
    for (uint32_t i = 0; i < whole_of(n); i += LANES) {
        const heads_t h = heads_of(records, size, i, n);
        const __m256i from = _mm256_mullo_epi32(h.sum, zero);
        store8(start + i, _mm256_sub_epi32(bias ? _mm256_setzero_si256() : h.bias, from));
    }
    for (uint32_t i = 0; i < n && bias; ++i) {
        start[i] = add32(start[i], bias[i]);
    }
}

void sp_finish_of(finish_t *f, const conv_t *c, const uint8_t *records, const int32_t *start,
                  uint32_t n, uint64_t most) {
    const __m256i nothing = _mm256_setzero_si256(), one = _mm256_set1_epi32(1);
    const __m256i nudge = _mm256_set1_epi64x(1 << 30);
    const int32_t limit = most < 1 << 30 ? (1 << 30) - (int32_t)most : 0;
    __m256i small = _mm256_cmpeq_epi32(nothing, nothing);
    for (uint32_t i = 0; i < whole_of(n); i += LANES) {
        const heads_t h = heads_of(records, c->size, i, n);
        const __m256i shift = _mm256_max_epi32(_mm256_min_epi32(h.shift, _mm256_set1_epi32(30)),
                                               _mm256_set1_epi32(-31));
        const __m256i right = _mm256_max_epi32(_mm256_sub_epi32(nothing, shift), nothing);
        const __m256i half = _mm256_srli_epi32(_mm256_sllv_epi32(one, right), 1);
        const __m256i odd = _mm256_srli_epi64(half, 32);
        const __m256i even = _mm256_blend_epi32(half, nothing, 0xaa);
        store8(f->multiplier + i, h.multiplier);
        store8(f->left + i, _mm256_max_epi32(shift, nothing));
        store8(f->right + i, right);
        store4(f->nudge + i, _mm256_add_epi64(_mm256_slli_epi64(even, 31), nudge));
        store4(f->nudge + i + 4, _mm256_add_epi64(_mm256_slli_epi64(odd, 31), nudge));
        const __m256i from = load8(start + i);
        small = _mm256_and_si256(small, _mm256_cmpgt_epi32(nothing, shift));
        small = _mm256_andnot_si256(_mm256_srai_epi32(h.multiplier, 31), small);
        small = _mm256_and_si256(small, _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), from));
        small = _mm256_and_si256(small, _mm256_cmpgt_epi32(from, _mm256_set1_epi32(-limit)));
    }
    f->out = c->out;
    f->small = _mm256_movemask_epi8(small) == -1;
}

#endif
