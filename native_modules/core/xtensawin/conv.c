// Convolution. Three pixels go together, so a weight that is loaded serves three times; their
// windows lie side by side as 16 bits, which takes one load where int8 takes a load and an
// extension of the sign.

#include "xtensawin.h"
#ifdef FITS

enum { CHUNK = 32 }; // elements of a window

// Zeros after n channels of three pixels, up to a multiple of four.
static void pad(int16_t *packed, uint32_t n) {
    for (; n & 3; ++n) {
        packed[TRIO * n] = packed[TRIO * n + 1] = packed[TRIO * n + 2] = 0;
    }
}

// packed[i][p] = x[p][i] for n channels of three pixels, and zeros up to a multiple of four
// channels.
static void pack(int16_t *packed, const int8_t *x, uint32_t channels, uint32_t n) {
    const int8_t *x1 = x + channels, *x2 = x1 + channels;
    int16_t *out = packed;
    for (uint32_t i = 0; i < n; ++i, out += TRIO) {
        out[0] = (int16_t)load8(x + i);
        out[1] = (int16_t)load8(x1 + i);
        out[2] = (int16_t)load8(x2 + i);
    }
    pad(packed, n);
}

// The same of elements from .. from + n of the window of output (oy, ox), into out[0], out[3],
// ...; a tap outside x is its zero point, which comes off again.
static void pack_window(int16_t *out, const conv_t *c, int32_t oy, int32_t ox, uint32_t from,
                        uint32_t n) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const uint32_t channels = (uint32_t)x->c, kw = (uint32_t)k->kw;
    uint32_t tap = divide(from, channels), channel = from - tap * channels;
    uint32_t row = divide(tap, kw), column = tap - row * kw;
    for (const uint32_t end = from + n; from < end;) {
        const int32_t iy = oy * k->stride_h - k->top + (int32_t)row;
        const int32_t ix = ox * k->stride_w - k->left + (int32_t)column;
        const uint32_t stop = umin32(end, from + channels - channel);
        if (iy >= 0 && iy < x->h && ix >= 0 && ix < x->w) {
            const int8_t *data = (const int8_t *)x->data + at(x, iy, ix) + channel;
            for (; from < stop; ++from, out += TRIO) {
                *out = (int16_t)load8(data++);
            }
        } else {
            for (; from < stop; ++from, out += TRIO) {
                *out = (int16_t)x->zero_point;
            }
        }
        channel = 0;
        if (++column == kw) {
            column = 0;
            ++row;
        }
    }
}

// One channel: its weights in a13 and a14, six products.
#define CHANNEL(w, x0, x1, x2)                                                                    \
    "l8ui a13, a3, " #w "\n"                                                                      \
    "l8ui a14, a4, " #w "\n"                                                                      \
    "l16si a15, a2, " #x0 "\n"                                                                    \
    "sext a13, a13, 7\n"                                                                          \
    "sext a14, a14, 7\n"                                                                          \
    "mul16s a6, a15, a13\n"                                                                       \
    "mul16s a15, a15, a14\n"                                                                      \
    "add a7, a7, a6\n"                                                                            \
    "l16si a6, a2, " #x1 "\n"                                                                     \
    "add a10, a10, a15\n"                                                                         \
    "mul16s a15, a6, a13\n"                                                                       \
    "mul16s a6, a6, a14\n"                                                                        \
    "add a8, a8, a15\n"                                                                           \
    "l16si a15, a2, " #x2 "\n"                                                                    \
    "add a11, a11, a6\n"                                                                          \
    "mul16s a6, a15, a13\n"                                                                       \
    "mul16s a15, a15, a14\n"                                                                      \
    "add a9, a9, a6\n"                                                                            \
    "add a12, a12, a15\n"

// The compiler has not enough registers for this: a2 x, a3 and a4 weights, a5 where they end,
// a7 to a9 and a10 to a12 sums of the rows.
__asm__(".section .text.sp_dot_two, \"ax\"\n"
        ".align 4\n"
        ".global sp_dot_two\n"
        ".hidden sp_dot_two\n"
        ".type sp_dot_two, @function\n"
        "sp_dot_two:\n"
        "entry a1, 48\n"
        "s32i a7, a1, 0\n"
        "add a5, a5, a3\n"
        "l32i a7, a6, 0\n"
        "l32i a8, a6, 4\n"
        "l32i a9, a6, 8\n"
        "l32i a10, a6, 12\n"
        "l32i a11, a6, 16\n"
        "l32i a12, a6, 20\n"
        "1:\n" CHANNEL(0, 0, 2, 4) CHANNEL(1, 6, 8, 10) CHANNEL(2, 12, 14, 16)
            CHANNEL(3, 18, 20, 22) "addi a3, a3, 4\n"
                                   "addi a4, a4, 4\n"
                                   "addi a2, a2, 24\n"
                                   "bltu a3, a5, 1b\n"
                                   "l32i a6, a1, 0\n"
                                   "s32i a7, a6, 0\n"
                                   "s32i a8, a6, 4\n"
                                   "s32i a9, a6, 8\n"
                                   "s32i a10, a6, 12\n"
                                   "s32i a11, a6, 16\n"
                                   "s32i a12, a6, 20\n"
                                   "retw\n"
                                   ".size sp_dot_two, . - sp_dot_two\n"
                                   ".text\n");

__attribute__((noinline)) static void trios(const conv_t *c, const uint8_t *records,
                                            const int32_t *bias, uint32_t first, uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(y->h * y->w), channels = (uint32_t)(k->taps * x->c);
    const uint32_t outputs = (uint32_t)y->c;
    const bool single = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && x->h == y->h && x->w == y->w;
    const requantize_t r = {c->y.zero_point, c->out.min, c->out.max, outputs, c->size};
    // Of an odd number of rows, the last one's are done twice.
    int32_t sum[BLOCK + 1][TRIO], start[BLOCK + 1][TRIO];
    int16_t packed[CHUNK * TRIO];
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, c->size, i);
        const uint32_t zero = (uint32_t)record->sum * (uint32_t)x->zero_point;
        start[i][0] = (int32_t)((uint32_t)(bias ? bias[i] : record->bias) - zero);
        start[i][1] = start[i][2] = start[i][0];
    }
    const int8_t *weight = record_at(records, c->size, 0)->weight;
    for (uint32_t pixel = 0; pixel < pixels; pixel += TRIO) {
        pixel = umin32(pixel, pixels - TRIO); // the last pixels may be done again
        for (uint32_t from = 0; from < channels; from += CHUNK) {
            const uint32_t length = umin32(channels - from, CHUNK);
            if (single) {
                pack(packed, (const int8_t *)x->data + pixel * channels + from, channels, length);
            } else {
                pad(packed, length);
                for (uint32_t p = 0; p < TRIO; ++p) {
                    const uint32_t oy = divide(pixel + p, (uint32_t)y->w);
                    pack_window(packed + p, c, (int32_t)oy,
                                (int32_t)(pixel + p - oy * (uint32_t)y->w), from, length);
                }
            }
            const int8_t *w = weight + from;
            const int32_t (*so_far)[TRIO] = from ? sum : start;
            for (uint32_t i = 0; i < n; i += 2, w += 2 * c->size) {
                sp_dot_two(packed, w, i + 1 < n ? w + c->size : w, round4(length), so_far[i],
                           sum[i]);
            }
        }
        const uint32_t e = pixel * outputs + first;
        sp_requantize_trios(sum[0], (const record_t *)(const void *)records, c->out.y + e, n, &r);
        for (uint32_t p = 0; p < TRIO && c->out.mask; ++p) {
            sp_keep(&c->out, e + p * outputs, &sum[0][p], n);
        }
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    if (c->y.h * c->y.w >= TRIO && !c->single && sp_requantizes(records, c->size, n)) {
        trios(c, records, bias, first, n);
    } else {
        sp_conv_block_plain(c, records, bias, first, n);
    }
}

// sum[r] += x . w[r]; LOAD gives an element of x
#define DOT_ROWS(LOAD)                                                                            \
    for (; n_rows >= 4; n_rows -= 4, w += 4 * stride, sum += 4) {                                 \
        const int8_t *w1 = w + stride, *w2 = w1 + stride, *w3 = w2 + stride;                      \
        int32_t s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];                               \
        for (uint32_t i = 0; i < n; ++i) {                                                        \
            const int32_t v = LOAD(x + i);                                                        \
            s0 += mul16(v, load8(w + i));                                                         \
            s1 += mul16(v, load8(w1 + i));                                                        \
            s2 += mul16(v, load8(w2 + i));                                                        \
            s3 += mul16(v, load8(w3 + i));                                                        \
        }                                                                                         \
        sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;                                       \
    }                                                                                             \
    for (; n_rows; --n_rows, w += stride, ++sum) {                                                \
        int32_t s = *sum;                                                                         \
        for (uint32_t i = 0; i < n; ++i) {                                                        \
            s += mul16(LOAD(x + i), load8(w + i));                                                \
        }                                                                                         \
        *sum = s;                                                                                 \
    }

void sp_dot_rows(const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n_rows, uint32_t n,
                 int32_t *sum) {
    DOT_ROWS(load8)
}

void sp_dot_rows_s16(const int16_t *x, const int8_t *w, uint32_t stride, uint32_t n_rows,
                     uint32_t n, int32_t *sum) {
    DOT_ROWS(*)
}

#endif
