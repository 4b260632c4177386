// Kernels of a convolution and of the gradient of its input. Tensors are (h, w, c); x is (H, W,
// I), y (P, Q, O).

#include "kernels.h"

REPLACEABLE void sp_dot_rows(const int8_t *restrict x, const int8_t *w, uint32_t stride,
                             uint32_t n_rows, uint32_t n, int32_t *sum) {
    uint32_t r = 0;
    for (; r + 4 <= n_rows; r += 4, w += 4 * stride) {
        const int8_t *restrict w0 = w, *restrict w1 = w + stride;
        const int8_t *restrict w2 = w + 2 * stride, *restrict w3 = w + 3 * stride;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (uint32_t i = 0; i < n; ++i) {
            const int32_t xi = x[i];
            s0 += (uint32_t)(xi * w0[i]);
            s1 += (uint32_t)(xi * w1[i]);
            s2 += (uint32_t)(xi * w2[i]);
            s3 += (uint32_t)(xi * w3[i]);
        }
        sum[r] = add32(sum[r], (int32_t)s0);
        sum[r + 1] = add32(sum[r + 1], (int32_t)s1);
        sum[r + 2] = add32(sum[r + 2], (int32_t)s2);
        sum[r + 3] = add32(sum[r + 3], (int32_t)s3);
    }
    for (; r < n_rows; ++r, w += stride) {
        uint32_t s = 0;
        for (uint32_t i = 0; i < n; ++i) {
            s += (uint32_t)(x[i] * w[i]);
        }
        sum[r] = add32(sum[r], (int32_t)s);
    }
}

// sum[r] -= zero_point * (sum of w[r] [n])
static void subtract_zero(int32_t zero_point, const int8_t *w, uint32_t stride, uint32_t n_rows,
                          uint32_t n, int32_t *sum) {
    for (uint32_t r = 0; r < n_rows; ++r, w += stride) {
        uint32_t total = 0;
        for (uint32_t i = 0; i < n; ++i) {
            total += (uint32_t)w[i];
        }
        sum[r] = add32(sum[r], (int32_t)(0u - total * (uint32_t)zero_point));
    }
}

// The zero point of x is in the bias for whole windows; where a border cuts
// taps off, it is subtracted from each.
void sp_conv_block_plain(const conv_t *c, const uint8_t *records, const int32_t *bias,
                         uint32_t first, uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    int32_t cut_bias[BLOCK], whole_bias[BLOCK], multiplier[BLOCK], shift[BLOCK], sum[BLOCK];
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, c->size, i);
        const uint32_t zero = (uint32_t)record->sum * (uint32_t)x->zero_point;
        cut_bias[i] = bias ? bias[i] : record->bias;
        whole_bias[i] = (int32_t)((uint32_t)cut_bias[i] - zero);
        multiplier[i] = record->multiplier;
        shift[i] = record->shift;
    }
    const int8_t *weight = record_at(records, c->size, 0)->weight;
    const int8_t *data = x->data;
    const uint32_t channels = (uint32_t)x->c;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < y->w; ++ox) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            const bool cut = (v.to - v.from) * (u.to - u.from) < k->taps;
            const uint32_t run = (uint32_t)(u.to - u.from) * channels;
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = cut ? cut_bias[i] : whole_bias[i];
            }
            for (int32_t ky = v.from; ky < v.to && run; ++ky) {
                const int8_t *w = weight + (uint32_t)(ky * k->kw + u.from) * channels;
                sp_dot_rows(data + at(x, v.start + ky, u.start + u.from), w, c->size, n, run, sum);
                if (cut) {
                    subtract_zero(x->zero_point, w, c->size, n, run, sum);
                }
            }
            for (uint32_t i = 0; i < n && !c->single; ++i) {
                sum[i] = add32(y->zero_point, mbqm(sum[i], multiplier[i], shift[i]));
            }
            for (uint32_t i = 0; i < n && c->single; ++i) {
                sum[i] = y->zero_point + once(sum[i], multiplier[i], shift[i]);
            }
            sp_store(&c->out, sum, n, at(y, oy, ox) + first);
        }
    }
}

REPLACEABLE void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias,
                               uint32_t first, uint32_t n) {
    sp_conv_block_plain(c, records, bias, first, n);
}

REPLACEABLE void sp_dot_rows_s16(const int16_t *restrict g, const int8_t *w, uint32_t stride,
                                 uint32_t n_rows, uint32_t n, int32_t *sum) {
    uint32_t r = 0;
    for (; r + 4 <= n_rows; r += 4, w += 4 * stride) {
        const int8_t *restrict w0 = w, *restrict w1 = w + stride;
        const int8_t *restrict w2 = w + 2 * stride, *restrict w3 = w + 3 * stride;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (uint32_t i = 0; i < n; ++i) {
            const int32_t gi = g[i];
            s0 += (uint32_t)(gi * w0[i]);
            s1 += (uint32_t)(gi * w1[i]);
            s2 += (uint32_t)(gi * w2[i]);
            s3 += (uint32_t)(gi * w3[i]);
        }
        sum[r] = add32(sum[r], (int32_t)s0);
        sum[r + 1] = add32(sum[r + 1], (int32_t)s1);
        sum[r + 2] = add32(sum[r + 2], (int32_t)s2);
        sum[r + 3] = add32(sum[r + 3], (int32_t)s3);
    }
    for (; r < n_rows; ++r, w += stride) {
        uint32_t s = 0;
        for (uint32_t i = 0; i < n; ++i) {
            s += (uint32_t)(g[i] * w[i]);
        }
        sum[r] = add32(sum[r], (int32_t)s);
    }
}

uint32_t sp_conv_input_grad_block_plain(const conv_grad_t *c, const uint8_t *records,
                                        uint32_t first, uint32_t n) {
    const tensor_t *g = &c->g, *dx = &c->dx;
    const window_t *k = &c->k;
    const int16_t *gradient = g->data;
    const int8_t *weight = (const int8_t *)records;
    const uint32_t channels = (uint32_t)g->c;
    uint32_t seen = 0;
    int32_t sum[BLOCK];
    for (int32_t y = 0; y < dx->h; ++y) {
        for (int32_t x = 0; x < dx->w; ++x) {
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = 0;
            }
            for (int32_t ky = 0; ky < k->kh; ++ky) {
                const int32_t oy = window_of(y, ky, k->stride_h, k->top, g->h);
                for (int32_t kx = 0; kx < k->kw && oy >= 0; ++kx) {
                    const int32_t ox = window_of(x, kx, k->stride_w, k->left, g->w);
                    if (ox >= 0) {
                        const int8_t *w = weight + (uint32_t)(ky * k->kw + kx) * channels;
                        sp_dot_rows_s16(gradient + at(g, oy, ox), w, c->size, n, channels, sum);
                    }
                }
            }
            int16_t *restrict d = (int16_t *)dx->data + at(dx, y, x) + first;
            for (uint32_t i = 0; i < n; ++i) {
                seen |= magnitude32(sum[i]);
                d[i] = (int16_t)rshift32(sum[i], c->shift);
            }
        }
    }
    return seen;
}

REPLACEABLE uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records,
                                              uint32_t first, uint32_t n) {
    return sp_conv_input_grad_block_plain(c, records, first, n);
}
