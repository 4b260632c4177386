// Depthwise convolution of one output channel per input channel: four channels at a time, with
// their sums in registers and their weights turned round and widened to 16 bits.

#include "xtensawin.h"
#ifdef FITS

enum { MOST_WEIGHTS = 320 };

typedef struct {
    const int8_t *x;
    const int16_t *w;
    int32_t rows, columns;
    uint32_t x_column, x_row, w_row; // bytes; those of rows less what the columns have gone
} taps_t;

// sum[i][0] = from[i] + x . w over taps of four channels; rows > 0, columns > 0
void sp_dot_four(const taps_t *t, const int32_t *from, int32_t *sum);

_Static_assert(sizeof(taps_t) == 28, "sp_dot_four has another taps_t");

// a2 t, a3 x, a4 sum, a5 w, a6 rows, a7 columns, a8 to a11 sums, a12 from column to column
__asm__(".section .text.sp_dot_four, \"ax\"\n"
        ".align 4\n"
        ".global sp_dot_four\n"
        ".hidden sp_dot_four\n"
        ".type sp_dot_four, @function\n"
        "sp_dot_four:\n"
        "entry a1, 32\n"
        "l32i a8, a3, 0\n"
        "l32i a9, a3, 4\n"
        "l32i a10, a3, 8\n"
        "l32i a11, a3, 12\n"
        "l32i a3, a2, 0\n"
        "l32i a5, a2, 4\n"
        "l32i a6, a2, 8\n"
        "l32i a12, a2, 16\n"
        "1:\n"
        "l32i a7, a2, 12\n"
        "2:\n"
        "l8ui a13, a3, 0\n"
        "l8ui a14, a3, 1\n"
        "l16si a15, a5, 0\n"
        "sext a13, a13, 7\n"
        "sext a14, a14, 7\n"
        "mul16s a13, a13, a15\n"
        "l16si a15, a5, 2\n"
        "add a8, a8, a13\n"
        "mul16s a14, a14, a15\n"
        "l8ui a13, a3, 2\n"
        "add a9, a9, a14\n"
        "l8ui a14, a3, 3\n"
        "l16si a15, a5, 4\n"
        "sext a13, a13, 7\n"
        "sext a14, a14, 7\n"
        "mul16s a13, a13, a15\n"
        "l16si a15, a5, 6\n"
        "add a10, a10, a13\n"
        "mul16s a14, a14, a15\n"
        "addi a7, a7, -1\n"
        "add a11, a11, a14\n"
        "add a3, a3, a12\n"
        "addi a5, a5, 8\n"
        "bnez a7, 2b\n"
        "l32i a13, a2, 20\n"
        "l32i a14, a2, 24\n"
        "addi a6, a6, -1\n"
        "add a3, a3, a13\n"
        "add a5, a5, a14\n"
        "bnez a6, 1b\n"
        "s32i a8, a4, 0\n"
        "s32i a9, a4, 16\n"
        "s32i a10, a4, 32\n"
        "s32i a11, a4, 48\n"
        "retw\n"
        ".size sp_dot_four, . - sp_dot_four\n"
        ".text\n");

// Four channels: weights [taps][4], and what sums begin with where the window lies inside x (its
// zero point comes off for all taps) and where a border cuts it as `border` says.
typedef struct {
    int16_t packed[MOST_WEIGHTS];
    int32_t bias[QUAD], whole[QUAD], cut[QUAD];
    uint32_t border;
} channels_t;

static void pack(channels_t *q, const uint8_t *records, uint32_t size, uint32_t taps,
                 const int32_t *bias, int32_t zero_point) {
    for (uint32_t i = 0; i < QUAD; ++i, records += size) {
        const record_t *r = (const record_t *)(const void *)records;
        int32_t sum = 0;
        for (uint32_t tap = 0; tap < taps; ++tap) {
            const int32_t w = load8(r->weight + tap);
            q->packed[tap * QUAD + i] = (int16_t)w;
            sum += w;
        }
        q->bias[i] = bias ? bias[i] : r->bias;
        q->whole[i] = (int32_t)((uint32_t)q->bias[i] - (uint32_t)(sum * zero_point));
    }
    q->border = ~0u;
}

// The sums of an output whose window a border cuts: no zero point comes off for taps outside.
__attribute__((noinline)) static void cut(const depthwise_t *d, span_t v, span_t u, channels_t *q,
                                          const int8_t *data, int32_t *sum) {
    const uint32_t channels = (uint32_t)d->x.c, kw = (uint32_t)d->k.kw;
    const uint32_t columns = (uint32_t)(u.to - u.from);
    if (v.from == v.to || u.from == u.to) {
        for (uint32_t i = 0; i < QUAD; ++i) {
            sum[i * QUAD] = q->bias[i];
        }
        return;
    }
    taps_t t = {data + at(&d->x, v.start + v.from, u.start + u.from),
                q->packed + ((uint32_t)v.from * kw + (uint32_t)u.from) * QUAD,
                v.to - v.from,
                u.to - u.from,
                channels,
                ((uint32_t)d->x.w - columns) * channels,
                (kw - columns) * QUAD * (uint32_t)sizeof(int16_t)};
    const uint32_t border = (uint32_t)(v.from | v.to << 8 | u.from << 16) | (uint32_t)u.to << 24;
    if (border != q->border) {
        const int8_t zero = (int8_t)d->x.zero_point, zeros[QUAD] = {zero, zero, zero, zero};
        const int32_t nothing[QUAD] = {0};
        taps_t z = t;
        z.x = zeros;
        z.x_column = z.x_row = 0;
        sp_dot_four(&z, nothing, sum);
        for (uint32_t i = 0; i < QUAD; ++i) {
            q->cut[i] = (int32_t)((uint32_t)q->bias[i] - (uint32_t)sum[i * QUAD]);
        }
        q->border = border;
    }
    sp_dot_four(&t, q->cut, sum);
}

// Up to four pixels into y; of fewer each is written four times over.
__attribute__((noinline)) static void finish(const depthwise_t *d, const uint8_t *records,
                                             int32_t (*sum)[QUAD], uint32_t n, uint32_t e) {
    const uint32_t channels = (uint32_t)d->x.c;
    const record_t *record = record_at(records, d->size, 0);
    requantize_t r = {d->y.zero_point, d->out.min, d->out.max,
                      channels,        d->size,    d->out.mask != NULL};
    if (n == QUAD) {
        sp_requantize_quads(sum[0], record, d->out.y + e, QUAD, &r);
        for (uint32_t p = 0; p < QUAD && d->out.mask; ++p) {
            sp_keep(&d->out, e + p * channels, &sum[0][p], QUAD);
        }
        return;
    }
    r.pixel = 0;
    for (uint32_t p = 0; p < n; ++p, e += channels) {
        int32_t one[QUAD][QUAD];
        for (uint32_t i = 0; i < QUAD; ++i) {
            one[i][0] = one[i][1] = one[i][2] = one[i][3] = sum[i][p];
        }
        sp_requantize_quads(one[0], record, d->out.y + e, QUAD, &r);
        if (d->out.mask) {
            sp_keep(&d->out, e, one[0], QUAD);
        }
    }
}

__attribute__((noinline)) static void quad(const depthwise_t *d, const uint8_t *records,
                                           const int32_t *bias, uint32_t first) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    const uint32_t channels = (uint32_t)x->c, step = (uint32_t)k->stride_w * channels;
    const int8_t *data = (const int8_t *)x->data + first;
    channels_t q;
    int32_t sum[QUAD][QUAD];
    pack(&q, records, d->size, (uint32_t)k->taps, bias, x->zero_point);
    taps_t t = {NULL, q.packed, k->kh, k->kw, channels, (uint32_t)(x->w - k->kw) * channels, 0};
    uint32_t waiting = 0, e = first;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        const bool whole = v.to - v.from == k->kh;
        int32_t start_x = -k->left;
        t.x = data + ((uint32_t)v.start * (uint32_t)x->w + (uint32_t)start_x) * channels;
        for (int32_t ox = 0; ox < y->w; ++ox, start_x += k->stride_w, t.x += step) {
            if (whole && start_x >= 0 && start_x + k->kw <= x->w) {
                sp_dot_four(&t, q.whole, &sum[0][waiting]);
            } else {
                const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
                cut(d, v, u, &q, data, &sum[0][waiting]);
            }
            if (++waiting == QUAD) {
                finish(d, records, sum, QUAD, e);
                e += QUAD * channels;
                waiting = 0;
            }
        }
    }
    if (waiting) {
        finish(d, records, sum, waiting, e);
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    if (d->multiplier != 1 || d->k.taps * QUAD > MOST_WEIGHTS || n < QUAD ||
        !sp_requantizes(records, d->size, n)) {
        sp_depthwise_block_plain(d, records, bias, first, n);
        return;
    }
    for (uint32_t i = 0; i < n; i += QUAD) {
        i = umin32(i, n - QUAD); // the last ones may be done again
        quad(d, records + i * d->size, bias ? bias + i : NULL, first + i);
    }
}

#endif
