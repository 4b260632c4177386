// Mean over h and w, and its gradient. x is (H, W, C), y (1, 1, C).

#include "internal.h"

void sp_mean(exec_t *e, const op_t *op) {
    tensor_t y;
    const tensor_t x = sp_bind(e, op, 0, INT8);
    const output_t out = sp_bind_output(e, op, 1, 2, &y);
    sp_require(e, y.n == (uint32_t)x.c, 1);
    if (sp_stop(e)) {
        return;
    }
    const uint32_t channels = (uint32_t)x.c, pixels = (uint32_t)(x.h * x.w);
    for (uint32_t first = 0; first < channels; first += BLOCK) {
        const uint32_t n = umin32(channels - first, BLOCK);
        const int8_t *restrict p = (const int8_t *)x.data + first;
        int32_t sum[BLOCK] = {0};
        for (uint32_t pixel = 0; pixel < pixels; ++pixel, p += channels) {
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = add32(sum[i], p[i] - x.zero_point);
            }
        }
        for (uint32_t i = 0; i < n; ++i) {
            sum[i] = add32(out.zero_point, mbqm(sum[i], op->p[0], op->p[1]));
        }
        sp_store(&out, sum, n, first);
    }
}

// g is (1, 1, C), dx (H, W, C).
void sp_mean_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint8_t *mask = sp_bind_saved(e, op, 1, BITS, g.n);
    const tensor_t dx = sp_bind_gradient(e, op, 2);
    sp_require(e, g.n == (uint32_t)dx.c, 2);
    if (sp_stop(e)) {
        return;
    }
    const int16_t *q = g.data;
    int16_t *d = dx.data;
    uint64_t seen = 0;
    for (uint32_t c = 0; c < g.n; ++c) {
        seen |= mask_at(mask, c) ? magnitude64(mul64(q[c], op->p[1])) : 0;
    }
    if (is_zero(&g) || seen == 0) {
        sp_store_zero(&dx);
        return;
    }
    const int32_t s = max32(0, bitlen64(seen) - GRAD_BITS);
    for (uint32_t c = 0; c < g.n; ++c) {
        d[c] = mask_at(mask, c) ? (int16_t)rshift64(mul64(q[c], op->p[1]), s) : 0;
    }
    for (uint32_t i = g.n; i < dx.n; i += g.n) {
        sp_copy(d + i, d, g.n * 2);
    }
    *dx.exponent = add32(*g.exponent, add32(op->p[0], s));
}
