// Convolution. The weights of a block are packed in words of two elements of 16 bits, eight or
// sixteen output channels side by side; VPMADDWD multiplies a word of a pixel with those of eight
// channels. VPDPBUSD, where there is one, does so with words of four bytes, and takes x as if it
// were RAISED by 128. Four pixels go together, so that each vector of weights is loaded for four
// multiplications.
//
// A strip is some pixels of a row of y, of all rows where each pixel needs just the same one of x.
// The rows of x under it are copied, with the zero point for what is outside, so that every window
// is whole. A pass is a part of the taps whose weights there is room for; between passes the sums
// of the strip are kept.

#include "x86_64.h"
#ifdef FITS

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
enum { WORD = 4, RAISED = 128 }; // elements
typedef uint8_t x_t;

// n <= 32 elements of a row of weights.
INLINE __m256i load_weights(const int8_t *w, uint32_t n) {
    if (n == 32) {
        return _mm256_loadu_si256((const __m256i *)(const void *)w);
    }
    const __m128i low = load16(w, umin32(n, 16));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   n > 16 ? load16(w + 16, n - 16) : _mm_setzero_si128(), 1);
}

INLINE __m256i multiply(__m256i sum, __m256i x, __m256i w) {
    return _mm256_dpbusd_epi32(sum, x, w);
}

// n <= 16 elements of x.
INLINE void copy_some(x_t *to, const int8_t *from, uint32_t n) {
    store_some(to, _mm_xor_si128(load16(from, n), _mm_set1_epi8(-128)), n);
}
#else
enum { WORD = 2, RAISED = 0 };
typedef int16_t x_t;

INLINE __m256i load_weights(const int8_t *w, uint32_t n) { return widen16(w, n); }

INLINE __m256i multiply(__m256i sum, __m256i x, __m256i w) { return add_products(sum, x, w); }

INLINE void copy_some(x_t *to, const int8_t *from, uint32_t n) {
    const __m256i v = widen16(from, n);
    const uint32_t low = umin32(n, 8);
    store_some(to, _mm256_castsi256_si128(v), 2 * low);
    store_some(to + 8, _mm256_extracti128_si256(v, 1), 2 * (n - low));
}
#endif

enum { QUAD = 4, STRIP = 64 };              // pixels
enum { X_ROOM = 12288, WEIGHT_ROOM = 576 }; // elements of x under a strip, of a channel in a pass
enum { GROUP = 2 * LANES };                 // channels side by side

typedef struct {
    int32_t start[BLOCK] ALIGNED;
    int32_t packed[BLOCK * (WEIGHT_ROOM / WORD)] ALIGNED; // [groups][rows of taps][words][8 or 16]
    int32_t sum[STRIP][BLOCK] ALIGNED;
    x_t x[X_ROOM] ALIGNED;
    finish_t finish;
} room_t;

INLINE uint32_t words_of(uint32_t elements) { return (elements + WORD - 1) / WORD; }

// Transposes eight vectors.
INLINE void transpose(__m256i *v) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

// Packs n <= 8 * WORD elements of `rows` <= 8 rows, `stride` bytes apart: for each word a vector,
// `step` numbers apart.
static void pack8(int32_t *packed, uint32_t step, const int8_t *w, uint32_t stride, uint32_t rows,
                  uint32_t n) {
    __m256i v[8];
    for (uint32_t r = 0; r < 8; ++r, w += stride) {
        v[r] = r >= rows ? _mm256_setzero_si256() : load_weights(w, n);
    }
    transpose(v);
    for (uint32_t i = 0; i < words_of(n); ++i, packed += step) {
        store8(packed, v[i]);
    }
}

// The same of elements from .. from + n of `rows` rows of taps, `run` elements apart, of a block
// of channels.
static void pack(int32_t *packed, const uint8_t *records, uint32_t size, uint32_t channels,
                 uint32_t from, uint32_t n, uint32_t rows, uint32_t run) {
    for (uint32_t i = 0; i < channels; i += GROUP) {
        const uint32_t step = channels - i > LANES ? GROUP : LANES;
        for (uint32_t row = 0; row < rows; ++row, packed += words_of(n) * step) {
            for (uint32_t lane = 0; lane < step; lane += LANES) {
                const int8_t *w = record_at(records, size, i + lane)->weight + from + row * run;
                const uint32_t some = umin32(channels - i - lane, LANES);
                for (uint32_t e = 0; e < n; e += LANES * WORD) {
                    pack8(packed + lane + e / WORD * step, step, w + e, size, some,
                          umin32(n - e, LANES * WORD));
                }
            }
        }
    }
}

INLINE void copy(x_t *to, const int8_t *from, uint32_t n) {
    for (; n >= 16; n -= 16, from += 16, to += 16) {
        copy_some(to, from, 16);
    }
    copy_some(to, from, n);
}

INLINE void fill(x_t *to, x_t value, uint32_t n) {
    while (n--) {
        *to++ = value;
    }
}

// Some pixels of y: those from (y, x) on, `pixels` of them; x of the windows of each is `step`
// elements after that of the last one, and their rows `stride` elements apart.
typedef struct {
    int32_t y, x;
    uint32_t pixels, step, stride;
    uint32_t e; // the element of y of the first pixel and channel
} strip_t;

// Copies what is under a strip.
static void load_strip(const conv_t *c, const strip_t *s, x_t *to) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const uint32_t channels = (uint32_t)x->c;
    const int32_t start = s->x * k->stride_w - k->left;
    const int32_t end = start + ((int32_t)s->pixels - 1) * k->stride_w + k->kw;
    const int32_t from = limit32(start, 0, x->w), until = limit32(end, from, x->w);
    const uint32_t before = (uint32_t)(min32(from, end) - start) * channels;
    const uint32_t inside = (uint32_t)(until - from) * channels;
    const uint32_t all = (uint32_t)(end - start) * channels;
    for (int32_t ky = 0; ky < k->kh; ++ky, to += s->stride) {
        const int32_t row = s->y * k->stride_h - k->top + ky;
        const bool outside = row < 0 || row >= x->h || inside == 0;
        if (outside || inside < all) {
            fill(to, (x_t)(x->zero_point + RAISED), all);
        }
        if (!outside) {
            copy(to + before, (const int8_t *)x->data + at(x, row, from), inside);
        }
        fill(to + all, 0, WORD - 1); // these meet weights of 0
    }
}

// A part of the taps: so many words of so many rows of them.
typedef struct {
    uint32_t words, rows;
    const x_t *x; // of the first window
    bool first, last;
} pass_t;

// A pass over up to four pixels and channels i to i + n, of which there are `width` vectors.
INLINE void run_quad(const conv_t *c, room_t *r, const strip_t *s, const pass_t *p, uint32_t pixel,
                     const int32_t *w, uint32_t i, uint32_t n, uint32_t width, bool small) {
    const uint32_t pixels = umin32(s->pixels - pixel, QUAD);
    const uint32_t last = pixels - 1; // comes again in the place of those that are not there
    const x_t *x0 = p->x + pixel * s->step, *x1 = x0 + umin32(1, last) * s->step;
    const x_t *x2 = x0 + umin32(2, last) * s->step, *x3 = x0 + last * s->step;
    int32_t *sum = r->sum[pixel] + i;
    __m256i a[QUAD], b[QUAD]; // sums of the first vector, of the second
    for (uint32_t q = 0; q < QUAD; ++q) {
        const int32_t *from = p->first ? r->start + i : sum + q * BLOCK;
        a[q] = load8(from);
        b[q] = width == 2 ? load8(from + LANES) : _mm256_setzero_si256();
    }
    for (uint32_t row = 0; row < p->rows; ++row) {
        for (size_t j = 0; j < p->words; ++j, w += width * LANES) {
            const __m256i v0 = word(x0 + WORD * j), v1 = word(x1 + WORD * j);
            const __m256i v2 = word(x2 + WORD * j), v3 = word(x3 + WORD * j);
            const __m256i w0 = load8(w);
            a[0] = multiply(a[0], v0, w0);
            a[1] = multiply(a[1], v1, w0);
            a[2] = multiply(a[2], v2, w0);
            a[3] = multiply(a[3], v3, w0);
            if (width == 2) {
                const __m256i w1 = load8(w + LANES);
                b[0] = multiply(b[0], v0, w1);
                b[1] = multiply(b[1], v1, w1);
                b[2] = multiply(b[2], v2, w1);
                b[3] = multiply(b[3], v3, w1);
            }
        }
        x0 += s->stride;
        x1 += s->stride;
        x2 += s->stride;
        x3 += s->stride;
    }
    if (p->last) {
        const uint32_t outputs = (uint32_t)c->y.c;
        finish_rows(&r->finish, small, i, a, b, pixels, n, s->e + i + pixel * outputs, outputs);
        return;
    }
    for (uint32_t q = 0; q < QUAD; ++q) {
        store8(sum + q * BLOCK, a[q]);
        if (width == 2) {
            store8(sum + q * BLOCK + LANES, b[q]);
        }
    }
}

static void run_pass(const conv_t *c, room_t *r, const strip_t *s, const pass_t *p, uint32_t n) {
    const int32_t *w = r->packed;
    for (uint32_t i = 0; i < n; i += GROUP, w += p->rows * p->words * GROUP) {
        const uint32_t some = umin32(n - i, GROUP);
        for (uint32_t pixel = 0; pixel < s->pixels; pixel += QUAD) {
            if (some > LANES && r->finish.small) {
                run_quad(c, r, s, p, pixel, w, i, some, 2, true);
            } else if (some > LANES) {
                run_quad(c, r, s, p, pixel, w, i, some, 2, false);
            } else if (r->finish.small) {
                run_quad(c, r, s, p, pixel, w, i, some, 1, true);
            } else {
                run_quad(c, r, s, p, pixel, w, i, some, 1, false);
            }
        }
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    const window_t *k = &c->k;
    const uint32_t channels = (uint32_t)c->x.c, kh = (uint32_t)k->kh;
    const uint32_t run = (uint32_t)k->kw * channels; // of elements in a row of taps
    const uint32_t step = (uint32_t)k->stride_w * channels;
    const bool direct = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && c->x.h == c->y.h && c->x.w == c->y.w;
    const uint32_t row = X_ROOM / kh; // of x under a strip
    if (c->single || run == 0 || row < run + WORD - 1 || c->y.h * c->y.w < QUAD) {
        sp_conv_block_plain(c, records, bias, first, n);
        return;
    }
    conv_t d = *c; // all of y in one row where that is the same
    if (direct) {
        d.x.w = d.y.w = c->y.h * c->y.w;
        d.x.h = d.y.h = 1;
    }
    room_t r;
    sp_start_of(r.start, records, c->size, bias, c->x.zero_point + RAISED, n);
    sp_finish_of(&r.finish, c, records, r.start, n, (uint64_t)run * kh << (RAISED ? 15 : 14));
    const uint32_t pixels = umin32(divide(row + 1 - WORD - run, step) + 1, STRIP);
    const bool once = kh * words_of(run) * WORD <= WEIGHT_ROOM;
    if (once) {
        pack(r.packed, records, c->size, n, 0, run, kh, run);
    }
    strip_t s = {.step = step};
    for (s.y = 0; s.y < d.y.h; ++s.y) {
        for (s.x = 0; s.x < d.y.w; s.x += (int32_t)s.pixels) {
            s.pixels = umin32((uint32_t)(d.y.w - s.x), pixels);
            s.stride = (s.pixels - 1) * step + run + WORD - 1;
            s.e = at(&d.y, s.y, s.x) + first;
            load_strip(&d, &s, r.x);
            if (once) {
                const pass_t pass = {words_of(run), kh, r.x, true, true};
                run_pass(&d, &r, &s, &pass, n);
                continue;
            }
            for (uint32_t ky = 0; ky < kh; ++ky) {
                for (uint32_t from = 0; from < run; from += WEIGHT_ROOM) {
                    const uint32_t some = umin32(run - from, WEIGHT_ROOM);
                    const pass_t pass = {words_of(some), 1, r.x + ky * s.stride + from,
                                         ky == 0 && from == 0, ky + 1 == kh && from + some == run};
                    pack(r.packed, records, c->size, n, ky * run + from, some, 1, run);
                    run_pass(&d, &r, &s, &pass, n);
                }
            }
        }
    }
}

// Sixteen products of four rows of weights, or fewer.
INLINE void multiply_rows(__m256i sum[4], const int8_t *x, const int8_t *w, uint32_t stride,
                          uint32_t n_rows, uint32_t n) {
    const __m256i v = widen16(x, n);
    for (uint32_t r = 0; r < n_rows; ++r) {
        sum[r] = add_products(sum[r], v, widen16(w + r * stride, n));
    }
}

INLINE void dot4(const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n_rows, uint32_t n,
                 int32_t *sum) {
    __m256i v[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
    for (; n >= 16; n -= 16, x += 16, w += 16) {
        multiply_rows(v, x, w, stride, n_rows, 16);
    }
    if (n) {
        multiply_rows(v, x, w, stride, n_rows, n);
    }
    const __m256i both =
        _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    int32_t total[4];
    _mm_storeu_si128((__m128i *)(void *)total, _mm_add_epi32(_mm256_castsi256_si128(both),
                                                             _mm256_extracti128_si256(both, 1)));
    for (uint32_t r = 0; r < n_rows; ++r) {
        sum[r] = add32(sum[r], total[r]);
    }
}

void sp_dot_rows(const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n_rows, uint32_t n,
                 int32_t *sum) {
    for (; n_rows >= 4; n_rows -= 4, w += 4 * stride, sum += 4) {
        dot4(x, w, stride, 4, n, sum);
    }
    for (; n_rows; --n_rows, w += stride, ++sum) {
        dot4(x, w, stride, 1, n, sum);
    }
}

#endif
