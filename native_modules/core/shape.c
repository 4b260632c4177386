// Operators that only move elements: borders, and a choice of channels.

#include "internal.h"

void sp_pad(exec_t *e, const op_t *op) {
    const tensor_t x = sp_bind(e, op, 0, INT8), y = sp_bind(e, op, 1, INT8);
    const int32_t top = sp_bind_value(e, op, 0, 0, y.h);
    const int32_t left = sp_bind_value(e, op, 1, 0, y.w);
    const int32_t value = sp_bind_value(e, op, 2, -128, 127);
    sp_require(e, top + x.h <= y.h && left + x.w <= y.w && x.c == y.c, 1);
    if (sp_stop(e)) {
        return;
    }
    const uint32_t row = (uint32_t)(x.w * x.c);
    sp_fill(y.data, (uint8_t)value, y.n);
    for (int32_t i = 0; i < x.h; ++i) {
        sp_copy((int8_t *)y.data + at(&y, top + i, left),
                (const int8_t *)x.data + row * (uint32_t)i, row);
    }
}

void sp_pad_grad(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0), dx = sp_bind_gradient(e, op, 1);
    const int32_t top = sp_bind_value(e, op, 0, 0, g.h);
    const int32_t left = sp_bind_value(e, op, 1, 0, g.w);
    sp_require(e, top + dx.h <= g.h && left + dx.w <= g.w && dx.c == g.c, 1);
    if (sp_stop(e)) {
        return;
    }
    if (is_zero(&g)) {
        sp_store_zero(&dx);
        return;
    }
    const uint32_t row = (uint32_t)(dx.w * dx.c);
    for (int32_t i = 0; i < dx.h; ++i) {
        sp_copy((int16_t *)dx.data + row * (uint32_t)i,
                (const int16_t *)g.data + at(&g, top + i, left), row * 2);
    }
    *dx.exponent = *g.exponent;
}

// y [.., n] = x [.., list]
void sp_gather(exec_t *e, const op_t *op) {
    const tensor_t x = sp_bind(e, op, 0, INT8), y = sp_bind(e, op, 1, INT8);
    const list_t list = sp_bind_list(e, op, 0, x.c);
    sp_require(e, y.h == x.h && y.w == x.w && y.c == list.n, 1);
    if (sp_stop(e)) {
        return;
    }
    const int8_t *from = x.data;
    int8_t *to = y.data;
    for (uint32_t pixel = (uint32_t)(x.h * x.w); pixel--; from += x.c, to += y.c) {
        for (int32_t i = 0; i < y.c; ++i) {
            to[i] = from[list.channel ? list.channel[i] : i];
        }
    }
}
