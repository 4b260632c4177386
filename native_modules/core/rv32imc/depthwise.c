// Depthwise convolution on planes: a piece of one channel at a time, spread out as words.

#include "rv32imc.h"
#ifdef FITS

// Words of a plane, sums at a time, taps.
enum { PLANE = 176, SUMS = 48, TAPS = 49 };

typedef struct {
    int32_t stride, left, top;
    int32_t half, pitch; // words of the even columns of a row, and of all
    int32_t rows, width; // of a piece of the output
} piece_t;

// What to spread out of an input `size` wide or high, where `n` places are `step` apart from
// `from` on: the places [first, last).
typedef struct {
    int32_t first, last;
} inside_t;

static inside_t inside(int32_t from, int32_t step, int32_t n, int32_t size) {
    const int32_t shift = step - 1; // step is 1 or 2
    const int32_t first = min32(n, max32(0, (shift - from) >> shift));
    return (inside_t){first, min32(n, max32(first, (size - from + shift) >> shift))};
}

// The largest piece of the output whose plane and sums have room; false: there is none.
static bool choose_piece(const depthwise_t *d, piece_t *s) {
    const window_t *k = &d->k;
    s->stride = k->stride_w;
    s->left = k->left;
    s->top = k->top;
    if (d->multiplier != 1 || k->stride_h != k->stride_w || k->stride_w > 2 || k->taps > TAPS) {
        return false;
    }
    const int32_t extra = k->stride_w == 1 ? k->kw - 1 : (k->kw - 1) >> 1;
    s->width = d->y.w;
    for (;;) {
        s->half = ((s->width + 3) & ~3) + extra;
        s->pitch = s->half * s->stride;
        int32_t rows = 0, height = k->kh;
        while (height * s->pitch <= PLANE && rows < d->y.h && (rows + 1) * s->width <= SUMS) {
            ++rows;
            height += s->stride;
        }
        s->rows = rows;
        if (rows >= min32(2, d->y.h) || (rows && s->width <= 8)) {
            return true;
        }
        if (s->width <= 4) {
            return rows > 0;
        }
        s->width = (((s->width + 1) >> 1) + 3) & ~3;
    }
}

// Weights as words in the order that window3 and window take them.
static void spread_weights(const window_t *k, const int8_t *w, int32_t *to) {
    const bool ordered = (k->kw == 3 && k->kh == 3) || k->stride_w == 1;
    const int32_t step = ordered ? 1 : 2, n = ordered ? k->taps : k->kw;
    for (int32_t row = 0; row < (ordered ? 1 : k->kh); ++row, w += n) {
        for (int32_t phase = 0; phase < step; ++phase) {
            for (int32_t i = phase; i < n; i += step) {
                *to++ = w[i];
            }
        }
    }
}

// Row by row, the elements of one channel that are `step` apart.
static void spread_rows(const int8_t *from, int32_t from_row, int32_t step, int32_t *to,
                        int32_t to_row, int32_t n, int32_t rows) {
    for (; rows--; from += from_row, to += to_row) {
        const int8_t *p = from;
        for (int32_t i = 0; i < n; ++i, p += step) {
            to[i] = *p;
        }
    }
}

typedef struct {
    int32_t a, b, c, d;
} four_t;

static inline void add_tap(four_t *s, int32_t w, int32_t x0, int32_t x1, int32_t x2, int32_t x3) {
    s->a = add32(s->a, x0 * w);
    s->b = add32(s->b, x1 * w);
    s->c = add32(s->c, x2 * w);
    s->d = add32(s->d, x3 * w);
}

// Sums of `groups` x 4 windows of 3 x 3; the weights in the order of the window.
static void window3(const piece_t *s, const int32_t *x, const int32_t *w, int32_t start,
                    int32_t groups, int32_t *sum) {
    const int32_t pitch = s->pitch, half = s->half;
    for (; groups--; x += 4, sum += 4) {
        four_t v = {start, start, start, start};
        const int32_t *p = x, *q = w;
        for (int32_t ky = 0; ky < 3; ++ky, p += pitch, q += 3) {
            const int32_t x0 = p[0], x1 = p[1], x2 = p[2], x3 = p[3], x4 = p[4];
            add_tap(&v, q[0], x0, x1, x2, x3);
            if (s->stride == 1) {
                add_tap(&v, q[1], x1, x2, x3, x4);
                add_tap(&v, q[2], x2, x3, x4, p[5]);
            } else {
                const int32_t *o = p + half;
                add_tap(&v, q[1], o[0], o[1], o[2], o[3]);
                add_tap(&v, q[2], x1, x2, x3, x4);
            }
        }
        sum[0] = v.a;
        sum[1] = v.b;
        sum[2] = v.c;
        sum[3] = v.d;
    }
}

// The same of any window; the weights of the even columns of a row first where the stride is 2.
static void window(const piece_t *s, const window_t *k, const int32_t *x, const int32_t *weight,
                   int32_t start, int32_t groups, int32_t *sum) {
    const int32_t even = s->stride == 1 ? k->kw : (k->kw + 1) >> 1;
    for (; groups--; x += 4, sum += 4) {
        four_t v = {start, start, start, start};
        const int32_t *row = x, *w = weight;
        for (int32_t ky = k->kh; ky--; row += s->pitch) {
            for (const int32_t *p = row, *end = row + even; p != end; ++p) {
                add_tap(&v, *w++, p[0], p[1], p[2], p[3]);
            }
            const int32_t *odd = row + s->half;
            for (const int32_t *p = odd, *end = odd + (k->kw - even); p != end; ++p) {
                add_tap(&v, *w++, p[0], p[1], p[2], p[3]);
            }
        }
        sum[0] = v.a;
        sum[1] = v.b;
        sum[2] = v.c;
        sum[3] = v.d;
    }
}

// Rows of sums of one channel, whose first is that of element e.
static void finish_piece(const depthwise_t *d, const record_t *record, int32_t *sum, int32_t rows,
                         int32_t width, uint32_t e, bool small) {
    const uint32_t channels = (uint32_t)d->y.c;
    if (width == d->y.w) { // its rows are one run of pixels
        width *= rows;
        rows = 1;
    }
    for (; rows--; sum += width, e += (uint32_t)d->y.w * channels) {
        sp_finish_sums(&d->out, record, sum, (uint32_t)width, e, channels, small);
    }
}

// One piece of n channels. Its plane keeps its borders from channel to channel.
OUT_OF_LINE static void piece(const depthwise_t *d, const piece_t *s, const uint8_t *records,
                              const int32_t *bias, uint32_t first, uint32_t n, int32_t oy,
                              int32_t ox) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    int32_t plane[PLANE], sum[SUMS + 4], weight[TAPS];
    const int32_t rows = min32(s->rows, y->h - oy), width = min32(s->width, y->w - ox);
    const int32_t iy = oy * s->stride - s->top, ix = ox * s->stride - s->left;
    const int32_t groups = (width + 3) >> 2;
    const inside_t v = inside(iy, 1, (rows - 1) * s->stride + k->kh, x->h);
    for (int32_t i = 0; i < PLANE; ++i) {
        plane[i] = x->zero_point;
    }
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, d->size, i);
        int32_t total = 0;
        spread_weights(k, record->weight, weight);
        for (int32_t tap = 0; tap < k->taps; ++tap) {
            total += weight[tap];
        }
        const int32_t start = (int32_t)((uint32_t)(bias ? bias[i] : record->bias) -
                                        (uint32_t)total * (uint32_t)x->zero_point);
        const int8_t *data = (const int8_t *)x->data + first + i;
        for (int32_t phase = 0; phase < s->stride && v.last > v.first; ++phase) {
            const inside_t u = inside(ix + phase, s->stride, s->half, x->w);
            const int32_t from = (iy + v.first) * x->w + ix + phase + u.first * s->stride;
            spread_rows(data + from * x->c, x->w * x->c, s->stride * x->c,
                        plane + v.first * s->pitch + phase * s->half + u.first, s->pitch,
                        u.last - u.first, v.last - v.first);
        }
        for (int32_t row = 0; row < rows; ++row) {
            const int32_t *under = plane + row * s->stride * s->pitch;
            if (k->kw == 3 && k->kh == 3) {
                window3(s, under, weight, start, groups, sum + row * width);
            } else {
                window(s, k, under, weight, start, groups, sum + row * width);
            }
        }
        finish_piece(d, record, sum, rows, width, at(y, oy, ox) + first + i,
                     is_small(record, start, TAPS));
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    piece_t s;
    if (!choose_piece(d, &s)) {
        sp_depthwise_block_plain(d, records, bias, first, n);
        return;
    }
    for (int32_t oy = 0; oy < d->y.h; oy += s.rows) {
        for (int32_t ox = 0; ox < d->y.w; ox += s.width) {
            piece(d, &s, records, bias, first, n, oy, ox);
        }
    }
}

#endif
