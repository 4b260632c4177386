// Gradients of a convolution: of its input, with pairs of output channels, and of its weights,
// with pairs of pixels, from which one VPMADDWD takes both.

#include "gradient.h"
#ifdef FITS

static bool is_pointwise(const window_t *k, const tensor_t *g, const tensor_t *x) {
    return k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 && k->left == 0 &&
           g->h == x->h && g->w == x->w;
}

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
        __m256i two[LANES];
        for (uint32_t p = 0; p < pixels; ++p) {
            const int16_t *q = g[p] + j;
            two[p] = j + 1 < channels ? pair(q) : _mm256_set1_epi32((uint16_t)*q);
        }
        for (uint32_t v = 0; v < vectors; ++v) {
            const __m256i weight = load_wide(w + v * WIDE);
            for (uint32_t p = 0; p < pixels; ++p) {
                sum[p][v] = add_products(sum[p][v], two[p], weight);
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

// Vectors of sums that registers have room for.
#if defined(__AVX512VL__)
enum { SUMS = 16 };
#else
enum { SUMS = 8 };
#endif

// dx from packed weights, of as many pixels together as there is room for.
INLINE uint32_t input_gradient(const conv_grad_t *c, const int16_t *w, uint32_t first, uint32_t n,
                               uint32_t vectors) {
    const window_t *k = &c->k;
    const uint32_t pixels = umin32(SUMS / (vectors == 3 ? 4 : vectors), LANES);
    __m256i seen = _mm256_setzero_si256();
    if (is_pointwise(k, &c->g, &c->dx)) {
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

// sum[i] += v[i] of the first n <= 8.
INLINE void add_some(int32_t *sum, __m256i v, uint32_t n) {
    if (n == LANES) {
        store8(sum, _mm256_add_epi32(load8(sum), v));
        return;
    }
    int32_t some[LANES] ALIGNED;
    store8(some, v);
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], some[i]);
    }
}

// Pixels that have a gradient, and where in x what they multiply starts.
enum { LIST = 256, FOUR = 4 };
typedef struct {
    uint32_t n;
    int16_t g[LIST];
    uint32_t at[LIST];
} pixels_t;

// sum[i] += g * (x[i] - zero_point) of all pixels, whose number is a multiple of four, for n <= 16
// elements of each; `size`: elements of x there; `wide`: more than eight.
INLINE void add_pixels(const pixels_t *p, const int8_t *x, uint32_t n, int64_t size, bool wide,
                       __m256i start, int32_t *sum) {
    __m256i v[FOUR] = {start, start, _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (uint32_t j = 0; j < p->n; j += FOUR) {
        for (uint32_t i = 0; i < FOUR; i += 2) {
            const uint32_t one = p->at[j + i], other = p->at[j + i + 1];
            const __m128i a = load_bytes(x + one, n, n == WIDE ? WIDE : size - one);
            const __m128i b = load_bytes(x + other, n, n == WIDE ? WIDE : size - other);
            const __m256i g = pair(p->g + j + i);
            v[i] = add_products(v[i], _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), g);
            if (wide) {
                v[i + 1] =
                    add_products(v[i + 1], _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)), g);
            }
        }
    }
    add_some(sum, _mm256_add_epi32(v[0], v[2]), umin32(n, LANES));
    if (wide) {
        add_some(sum + LANES, _mm256_add_epi32(v[1], v[3]), n - LANES);
    }
}

// The same for any n.
static void add_list(pixels_t *p, uint32_t count, uint32_t total, const tensor_t *x,
                     const int8_t *data, uint32_t n, int64_t size, int32_t *sum) {
    for (p->n = count; p->n % FOUR; ++p->n) {
        p->g[p->n] = 0;
        p->at[p->n] = p->at[0];
    }
    const __m256i start = _mm256_set1_epi32((int32_t)(0u - total * (uint32_t)x->zero_point));
    for (; n >= WIDE; n -= WIDE, data += WIDE, size -= WIDE, sum += WIDE) {
        add_pixels(p, data, WIDE, size, true, start, sum);
    }
    if (n > LANES) {
        add_pixels(p, data, n, size, true, start, sum);
    } else if (n) {
        add_pixels(p, data, n, size, false, start, sum);
    }
}

// Outputs [from, to) of a direction.
typedef struct {
    int32_t from, to;
} range_t;

// Most strides are 1, and divisions slow.
INLINE int32_t over(int32_t n, int32_t stride) { return stride == 1 ? n : n / stride; }

// Those whose taps `tap` to tap + n lie inside the input.
static range_t inside(int32_t tap, int32_t n, int32_t stride, int32_t pad, int32_t size,
                      int32_t out_size) {
    const int32_t before = pad - tap, last = size - n + before;
    const int32_t from = before > 0 ? over(before + stride - 1, stride) : 0;
    return (range_t){from, last < 0 ? from : max32(from, min32(over(last, stride) + 1, out_size))};
}

typedef struct {
    const tensor_t *g, *x;
    const window_t *k;
    uint32_t o, first, n; // as sp_weight_gradient has them
} weight_t;

// The gradient of `taps` taps from ky, kx on, as the outputs of rows v, columns u have it: sum
// [taps, n].
static void add_taps(const weight_t *w, int32_t ky, int32_t kx, int32_t taps, range_t v, range_t u,
                     int32_t *sum) {
    const tensor_t *g = w->g, *x = w->x;
    const window_t *k = w->k;
    const int8_t *data = (const int8_t *)x->data + w->first;
    const int64_t size = ((int64_t)x->h * x->w - 1) * x->c + w->n;
    const uint32_t n = (uint32_t)taps * w->n, step = (uint32_t)(k->stride_w * x->c);
    const int64_t outputs = g->c;
    pixels_t p;
    uint32_t count = 0, total = 0;
    for (int32_t oy = v.from; oy < v.to; ++oy) {
        const int16_t *q = (const int16_t *)g->data + at(g, oy, u.from) + w->o;
        const int32_t y = oy * k->stride_h - k->top + ky;
        uint32_t from = at(x, y, u.from * k->stride_w - k->left + kx);
        for (int32_t ox = u.from; ox < u.to; ++ox, q += outputs, from += step) {
            const int16_t value = *q;
            p.g[count] = value;
            p.at[count] = from;
            total += (uint32_t)value;
            count += value != 0;
            if (count == LIST) {
                add_list(&p, count, total, x, data, n, size, sum);
                count = total = 0;
            }
        }
    }
    if (count) {
        add_list(&p, count, total, x, data, n, size, sum);
    }
}

// Of one channel: x and g as planes of 16 bits, in which the elements that a tap meets follow one
// another. Those of x are as wide as the outputs and the taps beyond need, one for each phase of
// the strides, and 0 outside; g is as wide, with zeros between its rows.
enum { PLANES = 16384, SPILL = 256 + WIDE }; // SPILL: what is read after the last plane
static bool channel_gradient(const weight_t *w, int32_t *sum) {
    const tensor_t *g = w->g, *x = w->x;
    const window_t *k = w->k;
    const int32_t sh = k->stride_h, sw = k->stride_w, columns = over(k->kw - 1, sw);
    const int32_t width = g->w + columns, rows = g->h + over(k->kh - 1, sh);
    const int32_t phases_h = min32(sh, k->kh), phases_w = min32(sw, k->kw);
    if ((int64_t)width * rows * phases_h * phases_w > PLANES) {
        return false;
    }
    int16_t xs[PLANES + SPILL], gs[PLANES + WIDE];
    const int32_t plane = width * rows, length = g->h * width;
    sp_fill(xs, 0, (uint32_t)(plane * phases_h * phases_w + columns + WIDE) * 2);
    sp_fill(gs, 0, (uint32_t)(length + WIDE) * 2);
    const int16_t *q = (const int16_t *)g->data + w->o;
    for (int32_t oy = 0; oy < g->h; ++oy) {
        for (int32_t ox = 0; ox < g->w; ++ox, q += g->c) {
            gs[oy * width + ox] = *q;
        }
    }
    int16_t *to = xs;
    for (int32_t ky = 0; ky < phases_h; ++ky) {
        const range_t v = inside(ky, 1, sh, k->top, x->h, rows);
        for (int32_t kx = 0; kx < phases_w; ++kx, to += plane) {
            const range_t u = inside(kx, 1, sw, k->left, x->w, width);
            for (int32_t r = v.from; r < v.to; ++r) {
                const uint32_t from = at(x, r * sh - k->top + ky, u.from * sw - k->left + kx);
                const int8_t *data = (const int8_t *)x->data + w->first + from;
                for (int32_t c = u.from; c < u.to; ++c, data += sw * x->c) {
                    to[r * width + c] = (int16_t)(*data - x->zero_point);
                }
            }
        }
    }
    for (int32_t ky = 0; ky < k->kh; ++ky) {
        const int32_t r = over(ky, sh);
        const int16_t *row = xs + (ky - r * sh) * phases_w * plane + r * width;
        for (int32_t kx = 0; kx < k->kw; ++kx) {
            const int32_t c = over(kx, sw);
            const int16_t *from = row + (kx - c * sw) * plane + c;
            __m256i v = _mm256_setzero_si256();
            for (int32_t i = 0; i < length; i += WIDE) {
                v = add_products(v, load_wide(gs + i), load_wide(from + i));
            }
            *sum++ = (int32_t)sum_of(v);
        }
    }
    return true;
}

void sp_weight_gradient(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                        uint32_t first, uint32_t n, int32_t *sum) {
    const weight_t w = {g, x, k, o, first, n};
    const bool joined = n == (uint32_t)x->c && k->kw > 1; // taps side by side are one run
    if (n == 1 && k->taps > 1 && channel_gradient(&w, sum)) {
        return;
    }
    sp_fill(sum, 0, (uint32_t)k->taps * n * (uint32_t)sizeof(int32_t));
    if (is_pointwise(k, g, x)) {
        add_taps(&w, 0, 0, 1, (range_t){0, 1}, (range_t){0, g->h * g->w}, sum);
        return;
    }
    range_t whole = {0, 0}; // outputs whose rows of taps lie inside
    if (joined) {
        whole = inside(0, k->kw, k->stride_w, k->left, x->w, g->w);
    }
    for (int32_t ky = 0; ky < k->kh; ++ky, sum += (uint32_t)k->kw * n) {
        const range_t v = inside(ky, 1, k->stride_h, k->top, x->h, g->h);
        add_taps(&w, ky, 0, k->kw, v, whole, sum);
        for (int32_t kx = 0; kx < k->kw; ++kx) {
            const range_t all = inside(kx, 1, k->stride_w, k->left, x->w, g->w);
            const range_t left = {all.from, min32(all.to, whole.from)};
            const range_t right = {max32(all.from, whole.to), all.to};
            add_taps(&w, ky, kx, 1, v, left, sum + (uint32_t)kx * n);
            add_taps(&w, ky, kx, 1, v, right, sum + (uint32_t)kx * n);
        }
    }
}

#endif
