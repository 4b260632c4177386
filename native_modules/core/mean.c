// Mean over h and w, or over w in each row, and its gradient. x is (H, W, C), y (1, 1, C) or
// (H, 1, C).

#include "internal.h"

void sp_mean(exec_t *e, const op_t *op) {
    tensor_t y;
    const tensor_t x = sp_bind(e, op, 0, INT8);
    const output_t out = sp_bind_output(e, op, 1, 2, &y);
    sp_require(e, y.c == x.c && y.w == 1 && (y.h == 1 || y.h == x.h), 1);
    if (sp_stop(e)) {
        return;
    }
    const uint32_t channels = (uint32_t)x.c;
    const uint32_t pixels = (uint32_t)(y.h == 1 ? x.h * x.w : x.w);
    const int8_t *row = x.data;
    for (uint32_t at = 0; at < y.n; at += channels, row += pixels * channels) {
        for (uint32_t first = 0; first < channels; first += BLOCK) {
            const uint32_t n = umin32(channels - first, BLOCK);
            const int8_t *restrict p = row + first;
            int32_t sum[BLOCK] = {0};
            for (uint32_t pixel = 0; pixel < pixels; ++pixel, p += channels) {
                for (uint32_t i = 0; i < n; ++i) {
                    sum[i] = add32(sum[i], p[i] - x.zero_point);
                }
            }
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = add32(out.zero_point, mbqm(sum[i], op->p[0], op->p[1]));
            }
            sp_store(&out, sum, n, at + first);
        }
    }
}

// g is (1, 1, C) or (H, 1, C), dx (H, W, C): every pixel gets the gradient of its mean.
void sp_mean_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint8_t *mask = sp_bind_saved(e, op, 1, BITS, g.n);
    const tensor_t dx = sp_bind_gradient(e, op, 2);
    sp_require(e, g.c == dx.c && g.w == 1 && (g.h == 1 || g.h == dx.h), 2);
    if (sp_stop(e)) {
        return;
    }
    const int16_t *q = g.data;
    int16_t *d = dx.data;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < g.n; ++i) {
        seen |= mask_at(mask, i) ? magnitude64(mul64(q[i], op->p[1])) : 0;
    }
    if (is_zero(&g) || seen == 0) {
        sp_store_zero(&dx);
        return;
    }
    const int32_t s = max32(0, bitlen64(seen) - GRAD_BITS);
    const uint32_t channels = (uint32_t)g.c;
    const uint32_t row = (uint32_t)(g.h == 1 ? dx.h * dx.w : dx.w) * channels;
    for (uint32_t at = 0; at < g.n; at += channels, d += row) {
        for (uint32_t i = at; i < at + channels; ++i) {
            d[i - at] = mask_at(mask, i) ? (int16_t)rshift64(mul64(q[i], op->p[1]), s) : 0;
        }
        for (uint32_t i = channels; i < row; i += channels) {
            sp_copy(d + i, d, channels * 2);
        }
    }
    *dx.exponent = add32(*g.exponent, add32(op->p[0], s));
}
