// Convolution and its input gradient, four pixels at a time.
//
// A word holds two pixels, -(x0 + x1 * 2**16), so that one multiplication by a weight gives two
// products. Of a sum of two such products the lower half stays within [-32768, 32512] for all int8
// values (it is for this that x is negated), so the upper half can be taken from it exactly, by
// rounding. H gathers the upper halves, T whole words modulo 2**32; in the end the lower halves
// are T - H * 2**16.

#include "rv32imc.h"
#ifdef FITS

enum { QUAD = 4, CHUNK = 64 }; // pixels, elements of a row of weights

static inline uint32_t two(int8_t a, int8_t b) { return 0u - (uint32_t)a - ((uint32_t)b << 16); }

// n elements of pixels a and b into words 0, 1, 4, 5, ...; a zero after an odd number of them.
static void pack_pair(uint32_t *to, const int8_t *a, const int8_t *b, uint32_t n) {
    for (; n >= 2; n -= 2, a += 2, b += 2, to += QUAD) {
        to[0] = two(a[0], b[0]);
        to[1] = two(a[1], b[1]);
    }
    if (n) {
        to[0] = two(a[0], b[0]);
        to[1] = 0;
    }
}

typedef struct {
    uint32_t t;
    int32_t h;
} pair_t;

// Two elements of two pixels, times the two weights of a channel.
static inline void add_pair(pair_t *p, uint32_t x0, uint32_t x1, int32_t w0, int32_t w1) {
    const uint32_t s = x0 * (uint32_t)w0 + x1 * (uint32_t)w1;
    p->t += s;
    p->h += (int32_t)(s + 0x8000) >> 16;
}

static inline void subtract_pair(int32_t *sum, pair_t p) {
    sum[0] = (int32_t)((uint32_t)sum[0] - p.t + ((uint32_t)p.h << 16));
    sum[1] = (int32_t)((uint32_t)sum[1] - (uint32_t)p.h);
}

// sum[r] += the quad's packed elements . w[r], for n_rows rows of weights.
OUT_OF_LINE static void dot_quad(const uint32_t *packed, const int8_t *w, uint32_t stride,
                                 uint32_t n_rows, int32_t (*sum)[QUAD], const uint32_t *end) {
    for (uint32_t r = 0; r < n_rows; r += 2, w += 2 * stride, sum += 2) {
        const bool both = r + 1 < n_rows; // else the last row is read twice
        const int8_t *w0 = w, *w1 = both ? w + stride : w;
        pair_t a = {0}, b = {0}, c = {0}, d = {0};
        for (const uint32_t *p = packed; p != end; p += QUAD, w0 += 2, w1 += 2) {
            const int32_t u0 = w0[0], u1 = w0[1], v0 = w1[0], v1 = w1[1];
            add_pair(&a, p[0], p[1], u0, u1);
            add_pair(&b, p[2], p[3], u0, u1);
            add_pair(&c, p[0], p[1], v0, v1);
            add_pair(&d, p[2], p[3], v0, v1);
        }
        subtract_pair(sum[0], a);
        subtract_pair(sum[0] + 2, b);
        if (both) {
            subtract_pair(sum[1], c);
            subtract_pair(sum[1] + 2, d);
        }
    }
}

// Elements from .. from + n of the window of output (oy, ox), taps outside x being its zero point.
OUT_OF_LINE static void gather(const conv_t *c, int32_t oy, int32_t ox, uint32_t from, uint32_t n,
                               int8_t *to) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
    const uint32_t channels = (uint32_t)x->c, run = (uint32_t)(u.to - u.from) * channels;
    if ((v.to - v.from) * (u.to - u.from) < k->taps) {
        sp_fill(to, (uint8_t)x->zero_point, n);
    }
    for (int32_t ky = v.from; ky < v.to && run; ++ky) {
        const int8_t *data = (const int8_t *)x->data + at(x, v.start + ky, u.start + u.from);
        const uint32_t start = (uint32_t)(ky * k->kw + u.from) * channels;
        const uint32_t low = start > from ? start : from;
        const uint32_t high = umin32(start + run, from + n);
        for (uint32_t i = low; i < high; ++i) {
            to[i - from] = data[i - start];
        }
    }
}

OUT_OF_LINE static void conv_quads(const conv_t *c, const uint8_t *records, const int32_t *bias,
                                   uint32_t first, uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(y->h * y->w), channels = (uint32_t)x->c;
    const uint32_t row = (uint32_t)k->taps * channels, outputs = (uint32_t)y->c;
    int32_t sum[BLOCK][QUAD], start[BLOCK];
    uint32_t packed[CHUNK * 2];
    int8_t window[2][CHUNK];
    uint32_t odd = 0;
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, c->size, i);
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : r->bias) -
                             (uint32_t)r->sum * (uint32_t)x->zero_point);
        odd |= (uint32_t)!is_small(r, start[i], row) << i;
    }
    const bool direct = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && x->h == y->h && x->w == y->w;
    int32_t oy = 0, ox = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        const uint32_t past = pixel + QUAD > pixels ? pixel + QUAD - pixels : 0;
        pixel -= past; // the last four are done again if need be
        for (ox -= (int32_t)past; ox < 0; ox += y->w) {
            --oy;
        }
        for (uint32_t i = 0; i < n; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = start[i];
        }
        for (uint32_t from = 0; from < row; from += CHUNK) {
            const uint32_t length = umin32(row - from, CHUNK);
            int32_t ny = oy, nx = ox;
            const int8_t *data = (const int8_t *)x->data + pixel * channels + from;
            for (uint32_t p = 0; p < QUAD; p += 2, data += 2 * channels) {
                if (direct) {
                    pack_pair(packed + p, data, data + channels, length);
                    continue;
                }
                for (uint32_t i = 0; i < 2; ++i) {
                    gather(c, ny, nx, from, length, window[i]);
                    if (++nx == y->w) {
                        nx = 0;
                        ++ny;
                    }
                }
                pack_pair(packed + p, window[0], window[1], length);
            }
            dot_quad(packed, record_at(records, c->size, 0)->weight + from, c->size, n, sum,
                     packed + ((length + 1) >> 1) * QUAD);
        }
        for (ox += QUAD; ox >= y->w; ox -= y->w) {
            ++oy;
        }
        for (uint32_t i = 0; i < n; ++i) {
            sp_finish_sums(&c->out, record_at(records, c->size, i), sum[i], QUAD,
                           pixel * outputs + first + i, outputs, !(odd >> i & 1));
        }
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    if (c->y.h * c->y.w >= QUAD && !c->single) {
        conv_quads(c, records, bias, first, n);
    } else {
        sp_conv_block_plain(c, records, bias, first, n);
    }
}

// sum[r] = g . w[r] of four pixels whose gradients are `step` elements apart.
OUT_OF_LINE static void dot_quad_s16(const int16_t *g, uint32_t step, const int8_t *w,
                                     uint32_t stride, uint32_t n_rows, uint32_t n,
                                     int32_t (*sum)[QUAD]) {
    for (uint32_t r = 0; r < n_rows; r += 2, w += 2 * stride, sum += 2) {
        const bool both = r + 1 < n_rows; // else the last row is read twice
        const int8_t *w0 = w, *w1 = both ? w + stride : w, *end = w + n;
        const int16_t *g0 = g, *g1 = g + step, *g2 = g1 + step, *g3 = g2 + step;
        uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        while (w0 != end) {
            const int32_t u = *w0++, v = *w1++;
            const int32_t q0 = *g0++, q1 = *g1++, q2 = *g2++, q3 = *g3++;
            a0 += (uint32_t)(q0 * u);
            a1 += (uint32_t)(q1 * u);
            a2 += (uint32_t)(q2 * u);
            a3 += (uint32_t)(q3 * u);
            b0 += (uint32_t)(q0 * v);
            b1 += (uint32_t)(q1 * v);
            b2 += (uint32_t)(q2 * v);
            b3 += (uint32_t)(q3 * v);
        }
        sum[0][0] = (int32_t)a0;
        sum[0][1] = (int32_t)a1;
        sum[0][2] = (int32_t)a2;
        sum[0][3] = (int32_t)a3;
        if (both) {
            sum[1][0] = (int32_t)b0;
            sum[1][1] = (int32_t)b1;
            sum[1][2] = (int32_t)b2;
            sum[1][3] = (int32_t)b3;
        }
    }
}

OUT_OF_LINE static uint32_t grad_quads(const conv_grad_t *c, const uint8_t *records,
                                       uint32_t first, uint32_t n) {
    const uint32_t pixels = (uint32_t)(c->dx.h * c->dx.w), row = (uint32_t)c->g.c;
    const uint32_t channels = (uint32_t)c->dx.c;
    int32_t sum[BLOCK][QUAD];
    uint32_t seen = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        pixel = umin32(pixel, pixels - QUAD); // the last four are done again if need be
        dot_quad_s16((const int16_t *)c->g.data + pixel * row, row, (const int8_t *)records,
                     c->size, n, row, sum);
        int16_t *d = (int16_t *)c->dx.data + pixel * channels + first;
        for (uint32_t p = 0; p < QUAD; ++p, d += channels) {
            for (uint32_t i = 0; i < n; ++i) {
                seen |= magnitude32(sum[i][p]);
                d[i] = (int16_t)rshift32(sum[i][p], c->shift);
            }
        }
    }
    return seen;
}

uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                  uint32_t n) {
    const window_t *k = &c->k;
    const bool pointwise = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                           k->left == 0 && c->g.h == c->dx.h && c->g.w == c->dx.w;
    return pointwise && c->dx.h * c->dx.w >= QUAD
               ? grad_quads(c, records, first, n)
               : sp_conv_input_grad_block_plain(c, records, first, n);
}

#endif
