// Kernels of a depthwise convolution and of the gradient of its input. Output channel c reads
// input channel c / multiplier. x is (H, W, C / multiplier), y (P, Q, C).
//
// Channels are innermost in memory, taps in the records, so the weights of a block of channels are
// first turned round into packed [taps][block].

#include "kernels.h"

static void pack(int8_t *packed, const uint8_t *records, uint32_t size, uint32_t taps,
                 uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const int8_t *w = record_at(records, size, i)->weight;
        for (uint32_t tap = 0; tap < taps; ++tap) {
            packed[tap * n + i] = w[tap];
        }
    }
}

// sum[i] += (x[i / multiplier] - zero_point) * w[i], the first of x being `skip` channels into its
// group.
static void multiply(const int8_t *restrict x, int32_t zero_point, const int8_t *restrict w,
                     uint32_t n, uint32_t multiplier, uint32_t skip, int32_t *restrict sum) {
    if (multiplier == 1) {
        for (uint32_t i = 0; i < n; ++i) {
            sum[i] = add32(sum[i], (x[i] - zero_point) * w[i]);
        }
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], (*x - zero_point) * w[i]);
        if (++skip == multiplier) {
            skip = 0;
            ++x;
        }
    }
}

void sp_depthwise_block_plain(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                              uint32_t first, uint32_t n) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    int8_t packed[DEPTHWISE_BYTES];
    int32_t start[BLOCK], multiplier[BLOCK], shift[BLOCK], sum[BLOCK];
    pack(packed, records, d->size, (uint32_t)k->taps, n);
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, d->size, i);
        start[i] = bias ? bias[i] : record->bias;
        multiplier[i] = record->multiplier;
        shift[i] = record->shift;
    }
    const uint32_t group = divide(first, d->multiplier), skip = first - group * d->multiplier;
    const int8_t *data = (const int8_t *)x->data + group;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < y->w; ++ox) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = start[i];
            }
            for (int32_t ky = v.from; ky < v.to; ++ky) {
                for (int32_t kx = u.from; kx < u.to; ++kx) {
                    multiply(data + at(x, v.start + ky, u.start + kx), x->zero_point,
                             packed + (uint32_t)(ky * k->kw + kx) * n, n, d->multiplier, skip,
                             sum);
                }
            }
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = add32(y->zero_point, mbqm(sum[i], multiplier[i], shift[i]));
            }
            sp_store(&d->out, sum, n, at(y, oy, ox) + first);
        }
    }
}

REPLACEABLE void sp_depthwise_block(const depthwise_t *d, const uint8_t *records,
                                    const int32_t *bias, uint32_t first, uint32_t n) {
    sp_depthwise_block_plain(d, records, bias, first, n);
}

// sum[i] += g[i] * w[i]
static void multiply_s16(const int16_t *restrict g, const int8_t *restrict w, uint32_t n,
                         int32_t *restrict sum) {
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], g[i] * w[i]);
    }
}

uint32_t sp_depthwise_input_grad_block_plain(const depthwise_grad_t *d, const uint8_t *records,
                                             uint32_t first, uint32_t n) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    int8_t packed[DEPTHWISE_BYTES];
    int32_t sum[BLOCK];
    const int16_t *gradient = (const int16_t *)g->data + first;
    const uint32_t group = divide(first, d->multiplier);
    uint32_t seen = 0;
    pack(packed, records, d->size, (uint32_t)k->taps, n);
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
                        multiply_s16(gradient + at(g, oy, ox),
                                     packed + (uint32_t)(ky * k->kw + kx) * n, n, sum);
                    }
                }
            }
            int16_t *out = (int16_t *)dx->data + at(dx, y, x) + group;
            for (uint32_t i = 0, j = 0; i < n; i = j) {
                uint32_t total = 0;
                for (; j < i + d->multiplier; ++j) {
                    total += (uint32_t)sum[j];
                }
                seen |= magnitude32((int32_t)total);
                *out++ = (int16_t)rshift32((int32_t)total, d->shift);
            }
        }
    }
    return seen;
}

REPLACEABLE uint32_t sp_depthwise_input_grad_block(const depthwise_grad_t *d,
                                                   const uint8_t *records, uint32_t first,
                                                   uint32_t n) {
    return sp_depthwise_input_grad_block_plain(d, records, first, n);
}
