// Gradients of a convolution: of its input, with pairs of output channels, and of its weights,
// with pairs of pixels, from which one VPMADDWD takes both.

#include "gradient.h"
#ifdef FITS

enum { PAIRS = 1280 }; // of output channels, of all taps

// Weights of n <= 32 input channels as [taps, pairs, vectors, 8, 2]. What comes after the last of
// an odd number of output channels is any.
static void pack(int16_t *to, const uint8_t *records, uint32_t size, uint32_t taps, uint32_t n,
                 uint32_t outputs, uint32_t vectors) {
    const uint32_t pairs = (outputs + 1) / 2, step = vectors * WIDE;
    const int8_t *first = (const int8_t *)records;
    for (uint32_t v = 0; v < vectors; ++v, first += LANES * size) {
        const uint32_t rows = umin32(n - v * LANES, LANES);
        for (uint32_t tap = 0; tap < taps; ++tap) {
            for (uint32_t j = 0; j < pairs; j += LANES) {
                const uint32_t from = tap * outputs + 2 * j, left = taps * outputs - from;
                const uint32_t own = umin32(outputs - 2 * j, 16);
                __m128i row[LANES];
                for (uint32_t i = 0; i < LANES; ++i) {
                    const int8_t *w = first + i * size + from;
                    row[i] = i >= rows ? _mm_setzero_si128() : load_bytes(w, own, left);
                }
                transpose_pairs(row, to + (tap * pairs + j) * step + v * WIDE, step,
                                umin32(pairs - j, LANES));
            }
        }
    }
}

// Adds what a tap gives to pixels whose outputs have these gradients, [channels] each.
INLINE void add_tap(__m256i (*sum)[VECTORS], const int16_t *const *g, const int16_t *w,
                    uint32_t channels, uint32_t pixels, uint32_t vectors) {
    for (uint32_t j = 0; j < channels; j += 2, w += vectors * WIDE) {
        __m256i pair[LANES];
        for (uint32_t p = 0; p < pixels; ++p) {
            const uint16_t *q = (const uint16_t *)g[p] + j;
            const uint32_t both = j + 1 < channels ? ((const any32_t *)(const void *)q)->v : *q;
            pair[p] = _mm256_set1_epi32((int32_t)both);
        }
        for (uint32_t v = 0; v < vectors; ++v) {
            const __m256i weight = load_wide(w + v * WIDE);
            for (uint32_t p = 0; p < pixels; ++p) {
                sum[p][v] = add_products(sum[p][v], pair[p], weight);
            }
        }
    }
}

INLINE __m256i store_sums(int16_t *to, const __m256i *sum, uint32_t vectors, int32_t shift,
                          uint32_t n, __m256i seen) {
    for (uint32_t v = 0; v < vectors; v += 2, n -= umin32(n, WIDE)) {
        const __m256i b = v + 1 < vectors ? sum[v + 1] : _mm256_setzero_si256();
        seen = _mm256_or_si256(seen, _mm256_abs_epi32(sum[v]));
        seen = _mm256_or_si256(seen, _mm256_abs_epi32(b));
        store_gradient(to + v * LANES, sum[v], b, shift, umin32(n, WIDE));
    }
    return seen;
}

INLINE void clear(__m256i (*sum)[VECTORS], uint32_t pixels, uint32_t vectors) {
    for (uint32_t p = 0; p < pixels; ++p) {
        for (uint32_t v = 0; v < vectors; ++v) {
            sum[p][v] = _mm256_setzero_si256();
        }
    }
}

// dx of `pixels` pixels side by side from their own gradients.
INLINE __m256i pointwise(const conv_grad_t *c, const int16_t *w, uint32_t pixel, uint32_t first,
                         uint32_t n, uint32_t pixels, uint32_t vectors, __m256i seen) {
    const uint32_t channels = (uint32_t)c->g.c;
    const int16_t *g[LANES];
    __m256i sum[LANES][VECTORS];
    clear(sum, pixels, vectors);
    for (uint32_t p = 0; p < pixels; ++p) {
        g[p] = (const int16_t *)c->g.data + (pixel + p) * channels;
    }
    add_tap(sum, g, w, channels, pixels, vectors);
    for (uint32_t p = 0; p < pixels; ++p) {
        int16_t *to = (int16_t *)c->dx.data + (pixel + p) * (uint32_t)c->dx.c + first;
        seen = store_sums(to, sum[p], vectors, c->shift, n, seen);
    }
    return seen;
}

// dx of one pixel, wherever its gradients are.
INLINE __m256i any_pixel(const conv_grad_t *c, const int16_t *w, int32_t y, int32_t x,
                         uint32_t first, uint32_t n, uint32_t vectors, __m256i seen) {
    const window_t *k = &c->k;
    const uint32_t channels = (uint32_t)c->g.c, step = (channels + 1) / 2 * vectors * WIDE;
    __m256i sum[1][VECTORS];
    clear(sum, 1, vectors);
    for (int32_t ky = 0; ky < k->kh; ++ky) {
        const int32_t oy = window_of(y, ky, k->stride_h, k->top, c->g.h);
        for (int32_t kx = 0; kx < k->kw && oy >= 0; ++kx) {
            const int32_t ox = window_of(x, kx, k->stride_w, k->left, c->g.w);
            if (ox >= 0) {
                const int16_t *g = (const int16_t *)c->g.data + at(&c->g, oy, ox);
                add_tap(sum, &g, w + (uint32_t)(ky * k->kw + kx) * step, channels, 1, vectors);
            }
        }
    }
    return store_sums((int16_t *)c->dx.data + at(&c->dx, y, x) + first, sum[0], vectors, c->shift,
                      n, seen);
}

// dx from packed weights; as many pixels together as give about eight sums.
INLINE uint32_t input_gradient(const conv_grad_t *c, const int16_t *w, uint32_t first, uint32_t n,
                               uint32_t vectors) {
    const window_t *k = &c->k;
    const uint32_t pixels = LANES / vectors;
    __m256i seen = _mm256_setzero_si256();
    if (k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 && k->left == 0 &&
        c->g.h == c->dx.h && c->g.w == c->dx.w) {
        const uint32_t all = (uint32_t)(c->g.h * c->g.w);
        uint32_t i = 0;
        for (; i + pixels <= all; i += pixels) {
            seen = pointwise(c, w, i, first, n, pixels, vectors, seen);
        }
        for (; i < all; ++i) {
            seen = pointwise(c, w, i, first, n, 1, vectors, seen);
        }
        return or_of(seen);
    }
    for (int32_t y = 0; y < c->dx.h; ++y) {
        for (int32_t x = 0; x < c->dx.w; ++x) {
            seen = any_pixel(c, w, y, x, first, n, vectors, seen);
        }
    }
    return or_of(seen);
}

uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                  uint32_t n) {
    int16_t weight[PAIRS * VECTORS * WIDE] ALIGNED;
    const uint32_t outputs = (uint32_t)c->g.c, taps = (uint32_t)c->k.taps;
    const uint32_t vectors = (n + LANES - 1) / LANES;
    // Turning the weights round does not pay for a pixel or two.
    if (size_mul(taps, (outputs + 1) / 2) > PAIRS || c->dx.h * c->dx.w < 3) {
        return sp_conv_input_grad_block_plain(c, records, first, n);
    }
    pack(weight, records, c->size, taps, n, outputs, vectors);
    if (vectors <= 2) {
        return vectors == 1 ? input_gradient(c, weight, first, n, 1)
                            : input_gradient(c, weight, first, n, 2);
    }
    return vectors == 3 ? input_gradient(c, weight, first, n, 3)
                        : input_gradient(c, weight, first, n, 4);
}

// sum[r] += g . w[r] of n_rows <= 4 rows.
INLINE void dot4(const int16_t *g, const int8_t *w, uint32_t stride, uint32_t n_rows, uint32_t n,
                 int32_t *sum) {
    __m256i v[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
    for (; n >= WIDE; n -= WIDE, g += WIDE, w += WIDE) {
        const __m256i q = load_wide(g);
        for (uint32_t r = 0; r < n_rows; ++r) {
            v[r] = add_products(v[r], q, widen16(w + r * stride, WIDE));
        }
    }
    for (uint32_t r = 0; r < n_rows; ++r) {
        uint32_t total = sum_of(v[r]);
        for (uint32_t i = 0; i < n; ++i) {
            total += (uint32_t)(g[i] * w[r * stride + i]);
        }
        sum[r] = add32(sum[r], (int32_t)total);
    }
}

void sp_dot_rows_s16(const int16_t *g, const int8_t *w, uint32_t stride, uint32_t n_rows,
                     uint32_t n, int32_t *sum) {
    for (; n_rows >= 4; n_rows -= 4, w += 4 * stride, sum += 4) {
        dot4(g, w, stride, 4, n, sum);
    }
    for (; n_rows; --n_rows, w += stride, ++sum) {
        dot4(g, w, stride, 1, n, sum);
    }
}

#endif
