// Gradient of the weights of a pointwise convolution: pixels go in pairs, so that an SMLAD adds
// what both say of a channel.

#include "armv7em.h"
#ifdef FITS

// sum[i] += g0 * a[i] + g1 * b[i], with g the pair (g0, g1)
static void add_pair(uint32_t g, const int8_t *a, const int8_t *b, uint32_t n, int32_t *sum) {
    for (; n >= 4; n -= 4, a += 4, b += 4, sum += 4) {
        const uint32_t x = load(a), y = load(b);
        const uint32_t first = lower(x, y), second = upper(x, y);
        sum[0] = smlad(evens(first), g, sum[0]);
        sum[1] = smlad(odds(first), g, sum[1]);
        sum[2] = smlad(evens(second), g, sum[2]);
        sum[3] = smlad(odds(second), g, sum[3]);
    }
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = smlad((uint16_t)a[i] | (uint32_t)b[i] << 16, g, sum[i]);
    }
}

// Two pairs of pixels at once: the sums are in memory.
static void add_two_pairs(const uint32_t *g, const int8_t *const *x, uint32_t n, int32_t *sum) {
    const uint32_t g0 = g[0], g1 = g[1];
    const int8_t *a = x[0], *b = x[1], *c = x[2], *d = x[3];
    for (; n >= 4; n -= 4, a += 4, b += 4, c += 4, d += 4, sum += 4) {
        const uint32_t xa = load(a), xb = load(b), xc = load(c), xd = load(d);
        const uint32_t p = lower(xa, xb), q = upper(xa, xb);
        const uint32_t r = lower(xc, xd), t = upper(xc, xd);
        sum[0] = smlad(evens(r), g1, smlad(evens(p), g0, sum[0]));
        sum[1] = smlad(odds(r), g1, smlad(odds(p), g0, sum[1]));
        sum[2] = smlad(evens(t), g1, smlad(evens(q), g0, sum[2]));
        sum[3] = smlad(odds(t), g1, smlad(odds(q), g0, sum[3]));
    }
    add_pair(g0, a, b, n, sum);
    add_pair(g1, c, d, n, sum);
}

// Pixels without a gradient are left out. The zero point goes in at once for all of them.
__attribute__((noinline)) static void pointwise_gradient(const tensor_t *g, const tensor_t *x,
                                                         uint32_t o, const int8_t *data,
                                                         uint32_t n, int32_t *sum) {
    const int16_t *q = (const int16_t *)g->data + o;
    const int8_t *pixel[4];
    uint32_t pair[2] = {0}, total = 0, count = 0;
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = 0;
    }
    for (int32_t left = g->h * g->w; left--; q += g->c, data += x->c) {
        const int32_t value = *q;
        if (value) {
            total += (uint32_t)value;
            pixel[count] = data;
            pair[count >> 1] =
                count & 1 ? pair[count >> 1] | (uint32_t)value << 16 : (uint16_t)value;
            ++count;
        }
        if (count == 4) {
            add_two_pairs(pair, pixel, n, sum);
            count = 0;
        }
    }
    if (count >= 2) {
        add_pair(pair[0], pixel[0], pixel[1], n, sum);
    }
    if (count & 1) { // the other half of the pair is 0
        add_pair(pair[count >> 1], pixel[count - 1], pixel[count - 1], n, sum);
    }
    const uint32_t zero = total * (uint32_t)x->zero_point;
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = (int32_t)((uint32_t)sum[i] - zero);
    }
}

void sp_weight_gradient(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                        uint32_t first, uint32_t n, int32_t *sum) {
    if (is_pointwise(k, g->w, x->w) && k->top == 0 && g->h == x->h) {
        pointwise_gradient(g, x, o, (const int8_t *)x->data + first, n, sum);
    } else {
        sp_weight_gradient_plain(g, x, k, o, first, n, sum);
    }
}

#endif
