// Sum of two tensors, and of the two gradients that meet where a tensor was used twice.

#include "kernels.h"

void sp_add_block_plain(const add_t *d, uint32_t first, uint32_t n) {
    const int8_t *a = (const int8_t *)d->a.data + first, *b = (const int8_t *)d->b.data + first;
    const int32_t *p = d->p;
    int32_t v[BLOCK];
    for (uint32_t i = 0; i < n; ++i) {
        const int32_t da = (a[i] - d->a.zero_point) * (1 << 20);
        const int32_t db = (b[i] - d->b.zero_point) * (1 << 20);
        const int32_t sum = add32(mbqm(da, p[0], p[1]), mbqm(db, p[2], p[3]));
        v[i] = add32(d->out.zero_point, mbqm(sum, p[4], p[5]));
    }
    sp_store(&d->out, v, n, first);
}

REPLACEABLE void sp_add_block(const add_t *d, uint32_t first, uint32_t n) {
    sp_add_block_plain(d, first, n);
}

void sp_add(exec_t *e, const op_t *op) {
    tensor_t y;
    add_t d;
    d.a = sp_bind(e, op, 0, INT8);
    d.b = sp_bind(e, op, 1, INT8);
    d.out = sp_bind_output(e, op, 2, 6, &y);
    d.p = op->p;
    sp_require(e, d.a.n == y.n, 0);
    sp_require(e, d.b.n == y.n, 1);
    if (sp_stop(e)) {
        return;
    }
    for (uint32_t first = 0; first < y.n; first += BLOCK) {
        sp_add_block(&d, first, umin32(y.n - first, BLOCK));
    }
}

void sp_add_grads(exec_t *e, const op_t *op) {
    const tensor_t a = sp_bind_gradient(e, op, 0), b = sp_bind_gradient(e, op, 1);
    const tensor_t out = sp_bind_gradient(e, op, 2);
    sp_require(e, a.n == out.n, 0);
    sp_require(e, b.n == out.n, 1);
    if (sp_stop(e)) {
        return;
    }
    if (is_zero(&a) && is_zero(&b)) {
        sp_store_zero(&out);
        return;
    }
    const int32_t ea = is_zero(&a) ? *b.exponent : *a.exponent;
    const int32_t eb = is_zero(&b) ? *a.exponent : *b.exponent;
    const int32_t exponent = max32(ea, eb);
    const int32_t sa = (int32_t)((uint32_t)exponent - (uint32_t)ea);
    const int32_t sb = (int32_t)((uint32_t)exponent - (uint32_t)eb);
    const bool zero_a = is_zero(&a), zero_b = is_zero(&b);
    const int16_t *x1 = a.data, *x2 = b.data;
    int16_t *y = out.data;
    for (uint32_t i = 0; i < out.n; ++i) {
        const int32_t v1 = zero_a ? 0 : rshift32(x1[i], sa);
        const int32_t v2 = zero_b ? 0 : rshift32(x2[i], sb);
        const int32_t sum = v1 + v2;
        y[i] = (int16_t)((sum + (sum >> 1 & 1)) >> 1); // halves to even
    }
    *out.exponent = add32(exponent, 1);
}
