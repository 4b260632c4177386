// Depthwise convolution of one output channel per input channel: four channels at a time, with
// their sums in registers and their weights turned round and widened to 16 bits.

#include "xtensawin.h"
#ifdef FITS

enum { QUAD = 4, MOST_WEIGHTS = 320 };

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
        "s32i a9, a4, 12\n"
        "s32i a10, a4, 24\n"
        "s32i a11, a4, 36\n"
        "retw\n"
        ".size sp_dot_four, . - sp_dot_four\n"
        ".text\n");

// The weights of four channels [taps][4]; their sums times the zero point come off start.
static void pack(int16_t *packed, const uint8_t *records, uint32_t size, uint32_t taps,
                 const int32_t *bias, int32_t zero_point, int32_t *start) {
    for (uint32_t i = 0; i < QUAD; ++i, records += size) {
        const record_t *r = (const record_t *)(const void *)records;
        int32_t sum = 0;
        for (uint32_t tap = 0; tap < taps; ++tap) {
            const int32_t w = load8(r->weight + tap);
            packed[tap * QUAD + i] = (int16_t)w;
            sum += w;
        }
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : r->bias) - (uint32_t)(sum * zero_point));
    }
}

// The sums of an output whose window a border cuts: no zero point comes off for taps outside.
__attribute__((noinline)) static void cut(const depthwise_t *d, span_t v, span_t u,
                                          const int16_t *packed, const int32_t *start,
                                          const int8_t *data, int32_t *sum) {
    const uint32_t channels = (uint32_t)d->x.c, kw = (uint32_t)d->k.kw;
    const uint32_t columns = (uint32_t)(u.to - u.from);
    int32_t from[QUAD] = {start[0], start[1], start[2], start[3]};
    const int16_t *w = packed;
    for (int32_t ky = 0; ky < d->k.kh; ++ky) {
        for (int32_t kx = 0; kx < d->k.kw; ++kx, w += QUAD) {
            for (uint32_t i = 0;
                 i < QUAD && (ky < v.from || ky >= v.to || kx < u.from || kx >= u.to); ++i) {
                from[i] += mul16(w[i], d->x.zero_point);
            }
        }
    }
    const taps_t t = {data + at(&d->x, v.start + v.from, u.start + u.from),
                      packed + ((uint32_t)v.from * kw + (uint32_t)u.from) * QUAD,
                      v.to - v.from,
                      u.to - u.from,
                      channels,
                      ((uint32_t)d->x.w - columns) * channels,
                      (kw - columns) * QUAD * (uint32_t)sizeof(int16_t)};
    if (t.rows > 0 && t.columns > 0) {
        sp_dot_four(&t, from, sum);
    } else {
        for (uint32_t i = 0; i < QUAD; ++i) {
            sum[i * TRIO] = from[i];
        }
    }
}

// Up to three pixels into y; fewer are the last ones, and then the first of them is written over.
__attribute__((noinline)) static void finish(const depthwise_t *d, const uint8_t *records,
                                             int32_t (*sum)[TRIO], uint32_t n, uint32_t e) {
    const uint32_t channels = (uint32_t)d->x.c;
    requantize_t r = {d->y.zero_point, d->out.min, d->out.max, channels, d->size};
    if (n < TRIO) {
        r.pixel = 0;
        for (uint32_t i = 0; i < QUAD; ++i) {
            sum[i][1] = n > 1 ? sum[i][1] : sum[i][0];
            sum[i][2] = sum[i][0];
        }
        if (n > 1) { // the second pixel first: what is stored last stays
            int32_t second[QUAD][TRIO];
            for (uint32_t i = 0; i < QUAD; ++i) {
                second[i][0] = second[i][1] = second[i][2] = sum[i][1];
            }
            sp_requantize_trios(second[0], record_at(records, d->size, 0), d->out.y + e + channels,
                                QUAD, &r);
        }
    }
    sp_requantize_trios(sum[0], record_at(records, d->size, 0), d->out.y + e, QUAD, &r);
    for (uint32_t p = 0; p < n && d->out.mask; ++p, e += channels) {
        sp_keep(&d->out, e, &sum[0][p], QUAD);
    }
}

__attribute__((noinline)) static void quad(const depthwise_t *d, const uint8_t *records,
                                           const int32_t *bias, uint32_t first) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    const uint32_t channels = (uint32_t)x->c, step = (uint32_t)k->stride_w * channels;
    const int8_t *data = (const int8_t *)x->data + first;
    int16_t packed[MOST_WEIGHTS];
    int32_t start[QUAD], sum[QUAD][TRIO];
    pack(packed, records, d->size, (uint32_t)k->taps, bias, x->zero_point, start);
    taps_t t = {NULL, packed, k->kh, k->kw, channels, (uint32_t)(x->w - k->kw) * channels, 0};
    uint32_t waiting = 0, e = first;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        const bool whole = v.to - v.from == k->kh;
        int32_t start_x = -k->left;
        t.x = data + ((uint32_t)v.start * (uint32_t)x->w + (uint32_t)start_x) * channels;
        for (int32_t ox = 0; ox < y->w; ++ox, start_x += k->stride_w, t.x += step) {
            if (whole && start_x >= 0 && start_x + k->kw <= x->w) {
                sp_dot_four(&t, start, &sum[0][waiting]);
            } else {
                const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
                cut(d, v, u, packed, start, data, &sum[0][waiting]);
            }
            if (++waiting == TRIO) {
                finish(d, records, sum, TRIO, e);
                e += TRIO * channels;
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
    const bool fits = d->multiplier == 1 && d->k.taps * QUAD <= MOST_WEIGHTS &&
                      sp_requantizes(records, d->size, n);
    uint32_t done = 0;
    for (; fits && done + QUAD <= n; done += QUAD) {
        quad(d, records + done * d->size, bias ? bias + done : NULL, first + done);
    }
    if (done < n) {
        sp_depthwise_block_plain(d, records + done * d->size, bias ? bias + done : NULL,
                                 first + done, n - done);
    }
}

#endif
