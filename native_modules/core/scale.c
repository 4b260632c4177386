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
    uint64_t seen = 0;
    for (uint32_t first = 0; first < g.n; first += channels) {
        for (uint32_t c = 0; c < channels; ++c) {
            const int64_t v = mul64(q[first + c], table[c * step]);
            seen |= mask_at(mask, first + c) ? magnitude64(v) : 0;
        }
    }
    if (seen == 0) {
        sp_store_zero(&out);
        return;
    }
    const int32_t s = max32(0, bitlen64(seen) - bits);
    for (uint32_t first = 0; first < g.n; first += channels) {
        for (uint32_t c = 0; c < channels; ++c) {
            const int64_t v = mul64(q[first + c], table[c * step]);
            to[first + c] = mask_at(mask, first + c) ? (int16_t)rshift64(v, s) : 0;
        }
    }
    *out.exponent = add32(*g.exponent, add32(op->p[1], s));
}
