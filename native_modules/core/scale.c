// From one scale to another: of an activation, and of a gradient through the requantisation of the
// operator it comes from.

#include "internal.h"

void sp_requantize(exec_t *e, const op_t *op) {
    tensor_t y;
    const tensor_t x = sp_bind(e, op, 0, INT8);
    const output_t out = sp_bind_output(e, op, 1, 2, &y);
    sp_require(e, x.n == y.n, 1);
    if (sp_stop(e)) {
        return;
    }
    const int8_t *data = x.data;
    for (uint32_t first = 0; first < y.n; first += BLOCK) {
        const uint32_t n = umin32(y.n - first, BLOCK);
        int32_t v[BLOCK];
        for (uint32_t i = 0; i < n; ++i) {
            v[i] = add32(out.zero_point, mbqm(data[first + i] - x.zero_point, op->p[0], op->p[1]));
        }
        sp_store(&out, v, n, first);
    }
}

// g, mask and out are (H, W, C), the table is [C]. out may be g.
void sp_scale_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint8_t *mask = sp_bind_saved(e, op, 1, BITS, g.n);
    const tensor_t out = sp_bind_gradient(e, op, 2);
    const int32_t bits = sp_bind_value(e, op, 2, 1, GRAD_BITS);
    const bool single = op->p[0] == -1;
    records_t records = {0};
    if (!single) {
        records = sp_bind_records(e, op, 0, (uint32_t)g.c, sizeof(int32_t), 1);
        sp_need_scratch(e, size_mul((uint32_t)g.c, sizeof(int32_t)));
    }
    sp_require(e, out.n == g.n, 2);
    if (sp_stop(e)) {
        return;
    }
    if (is_zero(&g)) {
        sp_store_zero(&out);
        return;
    }
    void *rest;
    const int32_t *table = single ? &op->p[3] : sp_load_all(e, &records, &rest);
    if (!table) {
        return;
    }
    const uint32_t channels = (uint32_t)g.c, step = single ? 0 : 1;
    const int16_t *q = g.data;
    int16_t *to = out.data;
    uint32_t seen_high = 0, seen_low = 0; // of all magnitudes ored together, from bit 16 on
    for (uint32_t first = 0; first < g.n; first += channels) {
        for (uint32_t c = 0; c < channels; ++c) {
            if (mask_at(mask, first + c)) {
                const uint32_t m = magnitude32(q[first + c]), t = magnitude32(table[c * step]);
                const uint32_t low = m * (t & 0xffff);
                seen_low |= low;
                seen_high |= m * (t >> 16) + (low >> 16);
            }
        }
    }
    if ((seen_high | seen_low) == 0) {
        sp_store_zero(&out);
        return;
    }
    const int32_t length = seen_high ? bitlen32(seen_high) + 16 : bitlen32(seen_low & 0xffff);
    const int32_t s = max32(0, length - bits);
    for (uint32_t first = 0; first < g.n; first += channels) {
        for (uint32_t c = 0; c < channels; ++c) {
            int32_t v = 0;
            if (mask_at(mask, first + c)) {
                const int32_t x = q[first + c], t = table[c * step];
                // Without the lower 16 bits where they do not count.
                const int32_t high = x * (t >> 16) + (x * (int32_t)(t & 0xffff) >> 16);
                v = s > 16 ? rshift32(high, s - 16) : (int32_t)rshift64(mul64(x, t), s);
            }
            to[first + c] = (int16_t)v;
        }
    }
    *out.exponent = add32(*g.exponent, add32(op->p[1], s));
}
