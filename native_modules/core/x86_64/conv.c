// Convolution. The weights of a block are packed as pairs of 16 bits, eight or sixteen output
// channels side by side; VPMADDWD multiplies two elements of a pixel with those of eight channels.
// Four pixels go together, so that each vector of weights is loaded for four multiplications.
//
// Long rows go chunk by chunk, with the sums of a tile of pixels kept between chunks. Taps outside
// x are its zero point, so every window is whole.

#include "x86_64.h"
#ifdef FITS

enum { QUAD = 4, CHUNK = 256, TILE = 64 }; // pixels, elements of a row, pixels
enum { GROUP = 2 * LANES };                // channels side by side

typedef struct {
    int32_t start[BLOCK] ALIGNED;
    int32_t packed[BLOCK * CHUNK / 2] ALIGNED; // [groups][pairs][8 or 16]
    int32_t sum[TILE][BLOCK] ALIGNED;
    int16_t x[QUAD][CHUNK] ALIGNED;
    finish_t finish;
} room_t;

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

// Packs n <= 16 elements of `rows` <= 8 rows, `stride` bytes apart: for each pair of elements a
// vector, `step` numbers apart.
static void pack8(int32_t *packed, uint32_t step, const int8_t *w, uint32_t stride, uint32_t rows,
                  uint32_t n) {
    __m256i v[8];
    for (uint32_t r = 0; r < 8; ++r, w += stride) {
        v[r] = r >= rows ? _mm256_setzero_si256() : widen16(w, n);
    }
    transpose(v);
    for (uint32_t i = 0; 2 * i < n; ++i, packed += step) {
        store8(packed, v[i]);
    }
}

// The same of elements from .. from + n of a block of channels.
static void pack(int32_t *packed, const uint8_t *records, uint32_t size, uint32_t channels,
                 uint32_t from, uint32_t n) {
    for (uint32_t r = 0; r < channels; r += GROUP) {
        const uint32_t step = channels - r > LANES ? GROUP : LANES;
        for (uint32_t lane = 0; lane < step; lane += LANES) {
            const int8_t *w = record_at(records, size, r + lane)->weight + from;
            const uint32_t rows = umin32(channels - r - lane, LANES);
            for (uint32_t i = 0; i < n; i += 16) {
                pack8(packed + lane + i / 2 * step, step, w + i, size, rows, umin32(n - i, 16));
            }
        }
        packed += (n + 1) / 2 * step;
    }
}

// n elements, to 16 bits.
INLINE void widen(int16_t *to, const int8_t *from, uint32_t n) {
    for (; n >= 16; n -= 16, from += 16, to += 16) {
        store8((int32_t *)(void *)to, widen16(from, 16));
    }
    const __m256i rest = widen16(from, n);
    if (n > 8) {
        _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(rest));
        store_some(to + 8, _mm256_extracti128_si256(rest, 1), 2 * n - 16);
    } else {
        store_some(to, _mm256_castsi256_si128(rest), 2 * n);
    }
}

// Elements from .. from + n of the window of output (oy, ox).
static void gather(const conv_t *c, int32_t oy, int32_t ox, uint32_t from, uint32_t n,
                   int16_t *to) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
    const uint32_t channels = (uint32_t)x->c, run = (uint32_t)(u.to - u.from) * channels;
    if ((v.to - v.from) * (u.to - u.from) < k->taps) {
        for (uint32_t i = 0; i < n; ++i) {
            to[i] = (int16_t)x->zero_point;
        }
    }
    for (int32_t ky = v.from; ky < v.to && run; ++ky) {
        const int8_t *data = (const int8_t *)x->data + at(x, v.start + ky, u.start + u.from);
        const uint32_t start = (uint32_t)(ky * k->kw + u.from) * channels; // of a row of taps
        const uint32_t low = start > from ? start : from, high = umin32(start + run, from + n);
        if (low < high) {
            widen(to + (low - from), data + (low - start), high - low);
        }
    }
}

// Adds the products of four pixels and `width` vectors of channels.
INLINE void multiply(const room_t *r, const int32_t *w, uint32_t pairs, uint32_t width,
                     __m256i sum[QUAD][2]) {
    for (uint32_t i = 0; i < pairs; ++i, w += width * LANES) {
        for (uint32_t q = 0; q < QUAD; ++q) {
            const __m256i x = _mm256_set1_epi32((int32_t)((const any32_t *)(r->x[q] + 2 * i))->v);
            for (uint32_t j = 0; j < width; ++j) {
                sum[q][j] = add_products(sum[q][j], x, load8(w + j * LANES));
            }
        }
    }
}

// What is next of a tile: some pixels, some elements of their windows.
typedef struct {
    uint32_t pixel, pixels; // the first, in the tile; up to four
    uint32_t pairs, e;      // e: the output element of the first channel there
    bool first, last;       // elements
} part_t;

// All of a part but its x, for channels i to i + n.
INLINE void run_group(const conv_t *c, room_t *r, const part_t *p, const int32_t *packed,
                      uint32_t i, uint32_t n, uint32_t width, bool small) {
    __m256i sum[QUAD][2];
    for (uint32_t q = 0; q < QUAD; ++q) {
        const int32_t *from = p->first ? r->start : r->sum[p->pixel + q];
        for (uint32_t j = 0; j < width; ++j) {
            sum[q][j] = load8(from + i + j * LANES);
        }
    }
    multiply(r, packed, p->pairs, width, sum);
    if (p->last) {
        __m256i v[QUAD];
        for (uint32_t q = 0; q < QUAD; ++q) {
            const __m256i b = width == 2 ? sum[q][1] : _mm256_setzero_si256();
            v[q] = requantize16(&r->finish, small, i, sum[q][0], b);
        }
        store_rows(&r->finish.out, v, p->pixels, n, p->e + i, (uint32_t)c->y.c);
        return;
    }
    for (uint32_t q = 0; q < QUAD; ++q) {
        for (uint32_t j = 0; j < width; ++j) {
            store8(r->sum[p->pixel + q] + i + j * LANES, sum[q][j]);
        }
    }
}

static void run_part(const conv_t *c, room_t *r, const part_t *p, uint32_t n) {
    const bool small = r->finish.small;
    const int32_t *packed = r->packed;
    for (uint32_t i = 0; i < n; i += GROUP) {
        const uint32_t some = umin32(n - i, GROUP);
        if (some > LANES && small) {
            run_group(c, r, p, packed, i, some, 2, true);
        } else if (some > LANES) {
            run_group(c, r, p, packed, i, some, 2, false);
        } else if (small) {
            run_group(c, r, p, packed, i, some, 1, true);
        } else {
            run_group(c, r, p, packed, i, some, 1, false);
        }
        packed += p->pairs * GROUP;
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(y->h * y->w), width = (uint32_t)y->w;
    const uint32_t row = (uint32_t)k->taps * (uint32_t)x->c;
    if (c->single || pixels < QUAD || row == 0) {
        sp_conv_block_plain(c, records, bias, first, n);
        return;
    }
    room_t r;
    sp_fill(r.x, 0, sizeof(r.x)); // elements after the last meet weights of 0
    for (uint32_t i = 0; i < BLOCK; ++i) {
        const record_t *record = record_at(records, c->size, umin32(i, n - 1));
        r.start[i] = (int32_t)((uint32_t)(bias ? bias[umin32(i, n - 1)] : record->bias) -
                               (uint32_t)record->sum * (uint32_t)x->zero_point);
    }
    sp_finish_of(&r.finish, c, records, r.start, n, (uint64_t)row << 14);
    const bool direct = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && x->h == y->h && x->w == y->w;
    for (uint32_t tile = 0; tile < pixels; tile += TILE) {
        const uint32_t tile_end = umin32(tile + TILE, pixels);
        for (uint32_t from = 0; from < row; from += CHUNK) {
            const uint32_t length = umin32(row - from, CHUNK);
            if (tile == 0 || row > CHUNK) {
                pack(r.packed, records, c->size, n, from, length);
            }
            part_t p = {
                .pairs = (length + 1) / 2, .first = from == 0, .last = from + length == row};
            int32_t oy = (int32_t)divide(tile, width), ox = (int32_t)(tile - (uint32_t)oy * width);
            for (uint32_t pixel = tile; pixel < tile_end; pixel += QUAD) {
                p.pixel = pixel - tile;
                p.pixels = umin32(tile_end - pixel, QUAD);
                p.e = pixel * (uint32_t)y->c + first;
                for (uint32_t q = 0; q < p.pixels; ++q) {
                    if (direct) {
                        const uint32_t start = (pixel + q) * row + from;
                        widen(r.x[q], (const int8_t *)x->data + start, length);
                        continue;
                    }
                    gather(c, oy, ox, from, length, r.x[q]);
                    if (++ox == y->w) {
                        ox = 0;
                        ++oy;
                    }
                }
                run_part(c, &r, &p, n);
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
