// A layer narrowed to some of its rows: the same bytes there, from the rows of the input that they
// depend on. Padding is left only where the whole layer has it.

#include "kernels.h"

static void narrow(tensor_t *t, int32_t first, int32_t rows, uint32_t size) {
    t->data = (uint8_t *)t->data + at(t, first, 0) * size;
    t->h = rows;
    t->n = at(t, rows, 0);
}

void sp_conv_rows(conv_t *c, int32_t first, int32_t rows) {
    window_t *k = &c->k;
    const int32_t start = first * k->stride_h - k->top; // row of x, maybe outside
    const int32_t above = limit32(start, 0, c->x.h);
    const uint32_t e = at(&c->y, first, 0);
    k->top = above - start;
    narrow(&c->x, above, limit32((rows - 1) * k->stride_h + k->kh - k->top, 0, c->x.h - above), 1);
    narrow(&c->y, first, rows, 1);
    c->out.y += e;
    c->out.mask = c->out.mask ? c->out.mask + (e >> 3) : NULL;
}

void sp_conv_grad_rows(conv_grad_t *c, int32_t first, int32_t rows) {
    window_t *k = &c->k;
    if (k->kh == 1 && k->stride_h == 1 && k->top == 0 && c->g.h == c->dx.h) {
        narrow(&c->g, first, rows, sizeof(int16_t)); // kernels know a pointwise layer by this
    } else {
        k->top += first;
    }
    narrow(&c->dx, first, rows, sizeof(int16_t));
}
