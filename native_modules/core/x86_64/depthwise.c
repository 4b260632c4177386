// Depthwise convolution and the gradient of its input, sixteen channels at a time. Rows of x, or
// of g, are first made pairs of pixels side by side, of 16 bits, less the zero point and with
// zeros where the windows reach over a border; so are the weights of taps side by side, and one
// VPMADDWD takes a pair of both from eight channels. The gradient is such a convolution too, of
// every stride_w-th tap from each phase on, and backwards.

#include "gradient.h"
#ifdef FITS

enum { TAP_PAIRS = 64, ROW_PAIRS = 4, COLUMNS = 8, ROWS_BYTES = 65536 };
enum { PIXEL = 2 * WIDE, TILE = 4 }; // values of a pair of pixels; windows that go together

// Room for rows: row r at r % slots, of `length` pairs of pixels from `left` before the row on,
// `step` pixels apart.
typedef struct {
    int16_t *pairs;
    int32_t slots, length, step, left;
} rows_t;

INLINE int16_t *row_at(const rows_t *rows, int32_t r) {
    return rows->pairs + (uint32_t)(r % rows->slots * rows->length) * PIXEL;
}

// n windows and some more, so that whole tiles of them have their pixels.
INLINE int64_t whole_tiles(int32_t n) { return ((int64_t)n + TILE - 1) / TILE * TILE; }

// Whether that many of them and the weights have room.
static bool has_room(const window_t *k, uint32_t row_pairs, int64_t length) {
    const int64_t bytes = length * k->kh * PIXEL * (int64_t)sizeof(int16_t);
    return k->kw <= COLUMNS && row_pairs <= ROW_PAIRS &&
           row_pairs * (uint32_t)k->kh <= TAP_PAIRS && bytes <= ROWS_BYTES;
}

// Weights [kh, pairs, 16, 2] of n <= 16 channels; `order` says which two of a row of taps a pair
// has, as PSHUFB takes it: 128 stands for a weight of 0.
static void pack(int16_t *to, const uint8_t *records, uint32_t size, const window_t *k, uint32_t n,
                 __m128i order, uint32_t pairs) {
    const uint32_t kw = (uint32_t)k->kw;
    for (uint32_t tap = 0; tap < (uint32_t)k->taps; tap += kw, to += pairs * PIXEL) {
        for (uint32_t half = 0; half < WIDE; half += LANES) {
            __m128i row[LANES];
            for (uint32_t i = 0; i < LANES; ++i) {
                row[i] = _mm_setzero_si128();
                if (half + i < n) {
                    const int8_t *w = record_at(records, size, half + i)->weight + tap;
                    // After a record comes another one, but for the last.
                    const __m128i bytes =
                        half + i + 1 < n ? _mm_loadl_epi64((const __m128i *)w) : load_some(w, kw);
                    row[i] = _mm_shuffle_epi8(bytes, order);
                }
            }
            transpose_pairs(row, to + 2 * half, PIXEL, pairs);
        }
    }
}

// Sums of windows that go together, channels 0 to 7 in a and, if there are more, the others in b.
typedef struct {
    __m256i a[TILE], b[TILE];
} sums_t;

// Adds what rows `from` to `to` give to windows that are `step` values apart, the first of which
// starts at `at` of a row, with weights from w on, `to_row` from row to row; pairs of pixels are
// `apart`. `wide`: more than eight channels.
INLINE void add_rows(sums_t *sum, const rows_t *rows, int32_t from, int32_t to, uint32_t at,
                     uint32_t step, uint32_t apart, const int16_t *w, int32_t to_row,
                     uint32_t pairs, bool wide) {
    for (int32_t r = from; r < to; ++r, w += to_row) {
        const int16_t *x = row_at(rows, r) + at;
        for (uint32_t j = 0; j < pairs; ++j, x += apart) {
            const __m256i a = load_wide(w + j * PIXEL);
            const __m256i b = wide ? load_wide(w + j * PIXEL + WIDE) : _mm256_setzero_si256();
            for (uint32_t i = 0; i < TILE; ++i) {
                sum->a[i] = add_products(sum->a[i], load_wide(x + i * step), a);
                if (wide) {
                    sum->b[i] = add_products(sum->b[i], load_wide(x + i * step + WIDE), b);
                }
            }
        }
    }
}

typedef struct {
    const int8_t *data; // of the first channel
    uint32_t n;
    int64_t size; // from there to the end of the last pixel's
    int32_t w, channels, zero_point;
} input_t;

// Pixel `at` of a row that starts `from` elements after the first one.
INLINE __m128i pixel_at(const input_t *x, int64_t from, int32_t at) {
    if (at < 0 || at >= x->w) {
        return _mm_set1_epi8((int8_t)x->zero_point);
    }
    from += (int64_t)at * x->channels;
    return load_bytes(x->data + from, x->n, x->size - from);
}

INLINE void put_pair(int16_t *to, __m128i a, __m128i b, __m256i zero, bool wide) {
    const __m256i low = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
    const __m256i high = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
    store_wide(to, _mm256_sub_epi16(low, zero));
    if (wide) {
        store_wide(to + WIDE, _mm256_sub_epi16(high, zero));
    }
}

INLINE void ready_row(const rows_t *rows, const input_t *x, int32_t r, bool wide) {
    const int64_t from = (int64_t)r * x->w * x->channels, step = rows->step;
    const __m256i zero = _mm256_set1_epi16((int16_t)x->zero_point);
    // Pairs from `at` on have both pixels inside; those before `end` may be loaded as they are.
    const int32_t skip = (rows->left + (int32_t)step - 1) / (int32_t)step;
    const int64_t whole = x->size - from - 16 - x->channels;
    const int32_t end = whole < 0 ? 0 : min32(x->w - 1, (int32_t)(whole / x->channels) + 1);
    int16_t *to = row_at(rows, r), *const to_end = to + (uint32_t)rows->length * PIXEL;
    int32_t at = -rows->left;
    for (int32_t i = 0; i < skip && to < to_end; ++i, at += rows->step, to += PIXEL) {
        put_pair(to, pixel_at(x, from, at), pixel_at(x, from, at + 1), zero, wide);
    }
    const int8_t *data = x->data + from + (int64_t)at * x->channels;
    for (; at < end && to < to_end; at += rows->step, to += PIXEL, data += step * x->channels) {
        const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)data);
        const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(data + x->channels));
        put_pair(to, a, b, zero, wide);
    }
    for (; to < to_end; at += rows->step, to += PIXEL) {
        put_pair(to, pixel_at(x, from, at), pixel_at(x, from, at + 1), zero, wide);
    }
}

// y of channels i to i + n, n <= 16, of a block.
INLINE void forward(const depthwise_t *d, const finish_t *finish, const int32_t *start,
                    const rows_t *rows, const input_t *input, const int16_t *weight, uint32_t i,
                    uint32_t n, uint32_t first, uint32_t pairs, bool small, bool wide) {
    const finish_t f = *finish; // what is stored could not change this
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    const uint32_t step = (uint32_t)(k->stride_w / rows->step) * PIXEL;
    const uint32_t apart = 2 / (uint32_t)rows->step * PIXEL, channels = (uint32_t)y->c;
    const __m256i a = load8(start + i), b = load8(start + i + LANES);
    const int32_t to_row = (int32_t)pairs * PIXEL;
    int32_t ready = 0; // rows before it have been
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        const int32_t from = v.start + v.from, to = v.start + v.to;
        for (ready = max32(ready, from); ready < to; ++ready) {
            ready_row(rows, input, ready, wide);
        }
        const int16_t *w = weight + v.from * to_row;
        uint32_t e = at(y, oy, 0) + first, from_x = 0;
        for (int32_t ox = 0; ox < y->w; ox += TILE, from_x += TILE * step, e += TILE * channels) {
            sums_t sum = {{a, a, a, a}, {b, b, b, b}};
            add_rows(&sum, rows, from, to, from_x, step, apart, w, to_row, pairs, wide);
            finish_rows(&f, small, i, sum.a, sum.b, umin32((uint32_t)(y->w - ox), TILE), n, e,
                        channels);
        }
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    const uint32_t pairs = ((uint32_t)k->kw + 1) / 2;
    int16_t weight[TAP_PAIRS * PIXEL] ALIGNED, room[ROWS_BYTES / sizeof(int16_t)] ALIGNED;
    rows_t rows = {room, k->kh, 0, k->stride_w & 1 ? 1 : 2, k->left};
    const int64_t columns = (whole_tiles(y->w) - 1) * k->stride_w + 2 * (int64_t)pairs - 1;
    const int64_t length = (columns + rows.step - 1) / rows.step;
    if (d->multiplier != 1 || !has_room(k, pairs, length)) {
        sp_depthwise_block_plain(d, records, bias, first, n);
        return;
    }
    rows.length = (int32_t)length;
    finish_t f;
    int32_t start[BLOCK] ALIGNED = {0};
    for (uint32_t i = 0; i < n; ++i) {
        start[i] = bias ? bias[i] : record_at(records, d->size, i)->bias;
    }
    sp_finish_of(&f, d, records, start, n, (uint64_t)k->taps << 15);
    int8_t order[16];
    for (int32_t i = 0; i < 16; ++i) {
        order[i] = (int8_t)(i < k->kw ? i : -128);
    }
    for (uint32_t i = 0; i < n; i += WIDE, first += WIDE, records += WIDE * d->size) {
        const uint32_t count = umin32(n - i, WIDE);
        const bool wide = count > LANES;
        const input_t input = {(const int8_t *)x->data + first,
                               count,
                               ((int64_t)x->h * x->w - 1) * x->c + count,
                               x->w,
                               x->c,
                               x->zero_point};
        pack(weight, records, d->size, k, count, _mm_loadu_si128((const __m128i *)order), pairs);
#define FORWARD(pairs, small, wide)                                                               \
    forward(d, &f, start, &rows, &input, weight, i, count, first, pairs, small, wide)
        if (!f.small || pairs == 1) {
            FORWARD(pairs, false, true);
        } else if (pairs == 2) {
            wide ? FORWARD(2, true, true) : FORWARD(2, true, false);
        } else if (pairs == 3) {
            wide ? FORWARD(3, true, true) : FORWARD(3, true, false);
        } else {
            wide ? FORWARD(4, true, true) : FORWARD(4, true, false);
        }
    }
}

typedef struct {
    const int16_t *data; // of the first channel
    uint32_t n;
    int64_t size; // from there to the end of the last pixel's
    int32_t w, channels;
} gradient_t;

static __m256i gradient_at(const gradient_t *g, int32_t r, int32_t at) {
    if (at < 0 || at >= g->w) {
        return _mm256_setzero_si256();
    }
    const int64_t from = ((int64_t)r * g->w + at) * g->channels;
    if (g->size - from >= WIDE) {
        return load_wide(g->data + from);
    }
    int16_t some[WIDE] ALIGNED = {0};
    for (uint32_t i = 0; i < g->n; ++i) {
        some[i] = g->data[from + i];
    }
    return load_wide(some);
}

// Lanes of the pairs as those of x have them: channels 0 to 7, then 8 to 15.
static void ready_gradient(const rows_t *rows, const gradient_t *g, int32_t r) {
    int16_t *to = row_at(rows, r);
    __m256i a, b = gradient_at(g, r, -rows->left);
    for (int32_t at = 1 - rows->left; at <= rows->length - rows->left; ++at, to += PIXEL) {
        a = b;
        b = gradient_at(g, r, at);
        const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
        store_wide(to, _mm256_permute2x128_si256(low, high, 0x20));
        store_wide(to + WIDE, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

// Pairs of the taps phase, phase + stride_w, ... of a row: what reaches an input comes from one
// output after the other, backwards.
static uint32_t pairs_of(const window_t *k, int32_t phase) {
    const int32_t stride = k->stride_w, taps = (k->kw - phase + stride - 1) / stride;
    return ((uint32_t)max32(taps, 0) + 1) / 2;
}

// dx of n <= 16 channels; returns all magnitudes before the shift ored together.
INLINE uint32_t backward(const depthwise_grad_t *d, const rows_t *rows, const gradient_t *gradient,
                         const int16_t *weight, uint32_t row_pairs, uint32_t first, uint32_t n,
                         bool wide) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    const int32_t stride_h = k->stride_h, stride_w = k->stride_w;
    const int32_t up = -stride_h * (int32_t)(row_pairs * PIXEL); // a row of g on, stride_h taps up
    __m256i seen = _mm256_setzero_si256();
    int32_t ready = 0; // rows before it have been
    for (int32_t y = 0; y < dx->h; ++y) {
        const int32_t last = y + k->top, before = last - k->kh; // that output's window is above y
        const int32_t from = before < 0 ? 0 : before / stride_h + 1;
        const int32_t to = last < 0 ? from : max32(from, min32(last / stride_h + 1, g->h));
        for (ready = max32(ready, from); ready < to; ++ready) {
            ready_gradient(rows, gradient, ready);
        }
        const int16_t *w = weight + (last - from * stride_h) * (int32_t)(row_pairs * PIXEL);
        for (int32_t phase = 0; phase < stride_w; ++phase) {
            const uint32_t pairs = pairs_of(k, phase);
            int32_t x = phase - k->left % stride_w;
            x += x < 0 ? stride_w : 0;
            uint32_t at_x = (uint32_t)(rows->left + (x + k->left) / stride_w + 1) - 2 * pairs;
            for (at_x *= PIXEL; x < dx->w; at_x += TILE * PIXEL) {
                const __m256i zero = _mm256_setzero_si256();
                sums_t sum = {{zero, zero, zero, zero}, {zero, zero, zero, zero}};
                add_rows(&sum, rows, from, to, at_x, PIXEL, 2 * PIXEL, w, up, pairs, wide);
                for (uint32_t i = 0; i < TILE && x < dx->w; ++i, x += stride_w) {
                    seen = _mm256_or_si256(seen, _mm256_abs_epi32(sum.a[i]));
                    seen = _mm256_or_si256(seen, _mm256_abs_epi32(sum.b[i]));
                    store_gradient((int16_t *)dx->data + at(dx, y, x) + first, sum.a[i], sum.b[i],
                                   d->shift, n);
                }
            }
            w += pairs * PIXEL;
        }
    }
    return or_of(seen);
}

uint32_t sp_depthwise_input_grad_block(const depthwise_grad_t *d, const uint8_t *records,
                                       uint32_t first, uint32_t n) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    const int32_t stride = k->stride_w;
    int16_t weight[TAP_PAIRS * PIXEL] ALIGNED, room[ROWS_BYTES / sizeof(int16_t)] ALIGNED;
    int8_t order[16];
    uint32_t pairs = 0;
    for (int32_t phase = 0; phase < stride && phase < k->kw && pairs <= ROW_PAIRS; ++phase) {
        const uint32_t count = pairs_of(k, phase);
        for (uint32_t j = 0; j < 2 * count && pairs + count <= ROW_PAIRS; ++j) {
            const int32_t tap = phase + (int32_t)(2 * count - 1 - j) * stride;
            order[2 * pairs + j] = (int8_t)(tap < k->kw ? tap : -128);
        }
        pairs += count;
    }
    for (uint32_t i = pairs; i < ROW_PAIRS * 2; ++i) {
        order[2 * i] = order[2 * i + 1] = -128;
    }
    rows_t rows = {room, k->kh, 0, 1, 2 * (int32_t)pairs_of(k, 0) - 1};
    const int64_t length = rows.left + ((int64_t)dx->w - 1 + k->left) / stride + TILE - 1;
    if (d->multiplier != 1 || !has_room(k, pairs, length)) {
        return sp_depthwise_input_grad_block_plain(d, records, first, n);
    }
    rows.length = (int32_t)length;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < n; i += WIDE, first += WIDE, records += WIDE * d->size) {
        const uint32_t count = umin32(n - i, WIDE);
        const gradient_t gradient = {(const int16_t *)g->data + first, count,
                                     ((int64_t)g->h * g->w - 1) * g->c + count, g->w, g->c};
        pack(weight, records, d->size, k, count, _mm_loadu_si128((const __m128i *)order), pairs);
        seen |= count > LANES ? backward(d, &rows, &gradient, weight, pairs, first, count, true)
                              : backward(d, &rows, &gradient, weight, pairs, first, count, false);
    }
    return seen;
}

#endif
