// Average and maximum pooling, each beside its gradient. x is (H, W, C), y (P, Q, C).

#include "internal.h"

// Means or, with `maximum`, the greatest values, whose taps go into `arg` unless it is NULL.
static void pool(const tensor_t *x, const tensor_t *y, const window_t *k, const output_t *out,
                 bool maximum, uint8_t *arg) {
    const uint32_t channels = (uint32_t)y->c;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < y->w; ++ox) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            const int32_t count = (v.to - v.from) * (u.to - u.from);
            for (uint32_t first = 0; first < channels; first += BLOCK) {
                const uint32_t n = umin32(channels - first, BLOCK);
                const uint32_t element = at(y, oy, ox) + first;
                int32_t value[BLOCK];
                uint8_t tap[BLOCK] = {0};
                for (uint32_t i = 0; i < n; ++i) {
                    value[i] = maximum ? -129 : 0;
                }
                for (int32_t ky = v.from; ky < v.to; ++ky) {
                    for (int32_t kx = u.from; kx < u.to; ++kx) {
                        const int8_t *restrict p =
                            (const int8_t *)x->data + at(x, v.start + ky, u.start + kx) + first;
                        for (uint32_t i = 0; i < n; ++i) {
                            if (!maximum) {
                                value[i] += p[i];
                            } else if (p[i] > value[i]) {
                                value[i] = p[i];
                                tap[i] = (uint8_t)(ky * k->kw + kx);
                            }
                        }
                    }
                }
                for (uint32_t i = 0; i < n && count && !maximum; ++i) {
                    value[i] = div_away(value[i], count);
                }
                sp_store(out, value, n, element);
                if (arg) {
                    sp_copy(arg + element, tap, n);
                }
            }
        }
    }
}

void sp_average_pool(exec_t *e, const op_t *op) {
    tensor_t y;
    const tensor_t x = sp_bind(e, op, 0, INT8);
    const output_t out = sp_bind_output(e, op, 1, 2, &y);
    const window_t k = sp_bind_window(e, op);
    sp_require(e, x.c == y.c, 1);
    if (!sp_stop(e)) {
        pool(&x, &y, &k, &out, false, NULL);
    }
}

// One over the number of taps of a window inside the input, Q15.
static int32_t share(const window_t *k, const tensor_t *dx, int32_t oy, int32_t ox) {
    const span_t v = span(oy, k->stride_h, k->top, k->kh, dx->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, dx->w);
    const int32_t count = (v.to - v.from) * (u.to - u.from);
    return count ? div_away(1 << 15, count) : 0;
}

// What a window hands to one of its inputs at tap `tap`, per channel: g * `part` where the mask is
// set, or where `arg` says that this tap was the maximum.
static void add_part(const tensor_t *g, uint32_t e, uint32_t n, int32_t part, const uint8_t *mask,
                     const uint8_t *arg, int32_t tap, int32_t *sum) {
    const int16_t *q = g->data;
    for (uint32_t i = 0; i < n; ++i) {
        if (arg ? arg[e + i] == tap : mask_at(mask, e + i)) {
            sum[i] = add32(sum[i], q[e + i] * part);
        }
    }
}

// v of pixel (y, x) of dx, channels first to first + n.
static void sum_windows(const tensor_t *g, const tensor_t *dx, const window_t *k,
                        const uint8_t *mask, const uint8_t *arg, int32_t y, int32_t x,
                        uint32_t first, uint32_t n, int32_t *sum) {
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = 0;
    }
    for (int32_t ky = 0; ky < k->kh; ++ky) {
        const int32_t oy = window_of(y, ky, k->stride_h, k->top, g->h);
        for (int32_t kx = 0; kx < k->kw && oy >= 0; ++kx) {
            const int32_t ox = window_of(x, kx, k->stride_w, k->left, g->w);
            if (ox >= 0) {
                const int32_t part = arg ? 1 : share(k, dx, oy, ox);
                add_part(g, at(g, oy, ox) + first, n, part, mask, arg, ky * k->kw + kx, sum);
            }
        }
    }
}

// Both gradients: dx = normalize(v, 14) in two passes over v, E grows by `exponent` and the shift.
static void pool_grad(const tensor_t *g, const tensor_t *dx, const window_t *k,
                      const uint8_t *mask, const uint8_t *arg, int32_t exponent) {
    const uint32_t channels = (uint32_t)dx->c;
    uint32_t seen = 0;
    int32_t s = 0;
    for (int32_t pass = 0; pass < 2 && !is_zero(g); ++pass) {
        int16_t *d = dx->data;
        for (int32_t y = 0; y < dx->h; ++y) {
            for (int32_t x = 0; x < dx->w; ++x) {
                for (uint32_t first = 0; first < channels; first += BLOCK) {
                    const uint32_t n = umin32(channels - first, BLOCK);
                    int32_t sum[BLOCK];
                    sum_windows(g, dx, k, mask, arg, y, x, first, n, sum);
                    for (uint32_t i = 0; i < n; ++i) {
                        seen |= magnitude32(sum[i]);
                        d[i] = (int16_t)rshift32(sum[i], s); // the first pass guesses 0
                    }
                    d += n;
                }
            }
        }
        const int32_t needed = max32(0, bitlen32(seen) - GRAD_BITS);
        if (needed == s) {
            break;
        }
        s = needed;
    }
    if (seen == 0) {
        sp_store_zero(dx);
        return;
    }
    *dx->exponent = add32(*g->exponent, exponent + s);
}

void sp_average_pool_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint8_t *mask = sp_bind_saved(e, op, 1, BITS, g.n);
    const tensor_t dx = sp_bind_gradient(e, op, 2);
    const window_t k = sp_bind_window(e, op);
    sp_require(e, g.c == dx.c, 2);
    if (!sp_stop(e)) {
        pool_grad(&g, &dx, &k, mask, NULL, -15);
    }
}

void sp_max_pool(exec_t *e, const op_t *op) {
    const tensor_t x = sp_bind(e, op, 0, INT8), y = sp_bind(e, op, 1, INT8);
    const int32_t min = sp_bind_value(e, op, 2, -128, 127);
    const int32_t max = sp_bind_value(e, op, 3, min, 127);
    const output_t out = {min, max, y.zero_point, y.data, NULL};
    const window_t k = sp_bind_window(e, op);
    uint8_t *arg = sp_bind_saved(e, op, 2, INT8, y.n);
    sp_require(e, x.c == y.c, 1);
    sp_require(e, op->tensor[2] == NONE || k.taps <= 256, 2);
    if (!sp_stop(e)) {
        pool(&x, &y, &k, &out, true, arg);
    }
}

void sp_max_pool_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint8_t *arg = sp_bind_saved(e, op, 1, INT8, g.n);
    const tensor_t dx = sp_bind_gradient(e, op, 2);
    const window_t k = sp_bind_window(e, op);
    sp_require(e, g.c == dx.c, 2);
    sp_require(e, op->tensor[1] != NONE, 1);
    if (!sp_stop(e)) {
        pool_grad(&g, &dx, &k, NULL, arg, 0);
    }
}
