// From one scale to another: of an activation, and of a gradient through the requantisation of the
// operator it comes from.

#include "kernels.h"

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

// |q * t| < 2**48 in parts: all those of the gradient ored together, from bit 16 on and below.
REPLACEABLE int32_t sp_mask_gradient(const scale_t *s) {
    uint32_t seen_high = 0, seen_low = 0;
    const int16_t *q = s->q;
    int16_t *to = s->to;
    for (uint32_t e = 0; e < s->n;) {
        const int32_t *t = s->table;
        for (uint32_t c = s->channels; c--; ++e, t += s->step) {
            const int32_t v = mask_at(s->mask, e) ? q[e] : 0;
            to[e] = (int16_t)v;
            if (v) {
                const uint32_t m = magnitude32(v), scale = magnitude32(*t);
                const uint32_t low = m * (scale & 0xffff);
                seen_low |= low;
                seen_high |= m * (scale >> 16) + (low >> 16);
            }
        }
    }
    return seen_high ? bitlen32(seen_high) + 16 : bitlen32(seen_low & 0xffff);
}

void sp_scale_plain(const scale_t *s, int32_t shift) {
    int16_t *to = s->to;
    for (const int16_t *end = to + s->n; to != end;) {
        const int32_t *t = s->table;
        for (uint32_t c = s->channels; c--; ++to, t += s->step) {
            const int32_t x = *to;
            // Without the lower 16 bits where they do not count, without the upper ones where they
            // are but the sign.
            int32_t v = (int32_t)((uint32_t)x * (uint32_t)*t), n = shift;
            if (shift > 16) {
                v = x * (*t >> 16) + (x * (*t & 0xffff) >> 16);
                n -= 16;
            }
            *to = (int16_t)rshift32(v, n);
        }
    }
}

REPLACEABLE void sp_scale(const scale_t *s, int32_t shift) { sp_scale_plain(s, shift); }

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
    void *rest;
    const int32_t *table = single ? &op->p[3] : sp_load_all(e, &records, &rest);
    if (!table) {
        return;
    }
    const scale_t s = {g.data, out.data, mask, table, g.n, (uint32_t)g.c, single ? 0 : 1};
    const int32_t length = is_zero(&g) ? 0 : sp_mask_gradient(&s);
    if (length == 0) {
        sp_store_zero(&out);
        return;
    }
    const int32_t shift = max32(0, length - bits);
    sp_scale(&s, shift);
    *out.exponent = add32(*g.exponent, add32(op->p[1], shift));
}
