// Gradients of convolutions of single pixels.

#include "xtensawin.h"
#ifdef FITS

enum { CHUNK = 48 }; // channels

static bool is_single(const window_t *k, const tensor_t *x, const tensor_t *y) {
    return k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 && k->left == 0 &&
           x->h == y->h && x->w == y->w;
}

// packed[i][p] = g[p][i] for n channels of four pixels, and zeros up to a multiple of four.
static void pack(int16_t *packed, const int16_t *g, uint32_t channels, uint32_t n) {
    const int16_t *g1 = g + channels, *g2 = g1 + channels, *g3 = g2 + channels;
    for (uint32_t i = 0; i < n; ++i, packed += QUAD) {
        packed[0] = g[i];
        packed[1] = g1[i];
        packed[2] = g2[i];
        packed[3] = g3[i];
    }
    for (; n & 3; ++n, packed += QUAD) {
        packed[0] = packed[1] = packed[2] = packed[3] = 0;
    }
}

__attribute__((noinline)) static uint32_t quads(const conv_grad_t *c, const uint8_t *records,
                                                uint32_t first, uint32_t n) {
    const uint32_t pixels = (uint32_t)(c->g.h * c->g.w), channels = (uint32_t)c->g.c;
    const uint32_t outputs = (uint32_t)c->dx.c;
    const int32_t zero[BLOCK] = {0};
    int32_t sum[BLOCK][QUAD];
    int16_t packed[CHUNK * QUAD];
    uint32_t seen = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        pixel = umin32(pixel, pixels - QUAD); // the last pixels may be done again
        for (uint32_t from = 0; from < channels; from += CHUNK) {
            const uint32_t length = umin32(channels - from, CHUNK);
            pack(packed, (const int16_t *)c->g.data + pixel * channels + from, channels, length);
            dot_t d = {packed,     (const int8_t *)records + from,
                       c->size,    round4(length),
                       (int32_t)n, from ? NULL : zero,
                       sum[0]};
            sp_dot_quads(&d);
        }
        int16_t *d = (int16_t *)c->dx.data + pixel * outputs + first;
        for (uint32_t p = 0; p < QUAD; ++p, d += outputs) {
            for (uint32_t i = 0; i < n; ++i) {
                const int32_t v = sum[i][p];
                seen |= magnitude32(v);
                d[i] = (int16_t)rshift32(v, c->shift);
            }
        }
    }
    return seen;
}

uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                  uint32_t n) {
    if (is_single(&c->k, &c->dx, &c->g) && c->g.h * c->g.w >= QUAD && (c->size & 3) == 0) {
        return quads(c, records, first, n);
    }
    return sp_conv_input_grad_block_plain(c, records, first, n);
}

void sp_weight_gradient(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                        uint32_t first, uint32_t n, int32_t *sum) {
    if (!is_single(k, x, g) || n < QUAD) {
        sp_weight_gradient_plain(g, x, k, o, first, n, sum);
        return;
    }
    const uint32_t pixels = (uint32_t)(g->h * g->w);
    const uint32_t outputs = (uint32_t)g->c, channels = (uint32_t)x->c;
    const int16_t *gradient = (const int16_t *)g->data + o;
    uint32_t total = 0;
    for (uint32_t p = 0; p < pixels; ++p) {
        total += (uint32_t)gradient[p * outputs];
    }
    const uint32_t zero = total * (uint32_t)x->zero_point;
    for (uint32_t i = 0; i < n; i += QUAD) {
        i = umin32(i, n - QUAD); // the last ones may be done again
        const int8_t *data = (const int8_t *)x->data + first + i;
        const int16_t *q = gradient;
        uint32_t s0 = 0u - zero, s1 = s0, s2 = s0, s3 = s0;
        for (uint32_t p = pixels; p; --p, q += outputs, data += channels) {
            s0 += (uint32_t)mul16(load8(data), *q);
            s1 += (uint32_t)mul16(load8(data + 1), *q);
            s2 += (uint32_t)mul16(load8(data + 2), *q);
            s3 += (uint32_t)mul16(load8(data + 3), *q);
        }
        sum[i] = (int32_t)s0;
        sum[i + 1] = (int32_t)s1;
        sum[i + 2] = (int32_t)s2;
        sum[i + 3] = (int32_t)s3;
    }
}

#endif
