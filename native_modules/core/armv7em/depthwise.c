// Depthwise convolution and its input gradient, four channels at a time: a word of them is widened
// into pairs, less the zero point, and each half multiplied by its own channel's weight.

#include "armv7em.h"
#ifdef FITS

enum { FOUR = 4, TAPS = 49, COLUMNS = 7, RUN = 24 }; // channels; RUN: windows whose sums are kept

// Sums of `count` windows of four channels, `step` bytes apart, that have the same taps inside.
typedef struct {
    uint32_t to_row, to_row_w; // from the end of a row of taps to the next one, in bytes
    uint32_t rows, columns;
    int32_t start[FOUR];
    const int8_t *x; // the first tap inside of the first window
    const uint32_t *w;
    int32_t (*sum)[FOUR];
    int32_t (*sums_end)[FOUR];
    uint32_t step, channels;
    uint32_t minus_zero; // as a pair
} windows_t;

// A tap: r2 x, r3 its even bytes less the zero point, then r2 its odd ones.
#define TAP(address)                                                                              \
    "ldr.w r2, " address "\n"                                                                     \
    "ldrd r8, r9, [r1], #8\n"                                                                     \
    "sxtab16 r3, r10, r2\n"                                                                       \
    "sxtab16 r2, r10, r2, ror #8\n"                                                               \
    "smlabb r4, r3, r8, r4\n"                                                                     \
    "smlabb r5, r2, r9, r5\n"                                                                     \
    "smlatt r6, r3, r8, r6\n"                                                                     \
    "smlatt r7, r2, r9, r7\n"
#define NEXT "add.w r0, r0, r11\n"
#define ROW3 TAP("[r0]") TAP("[r0, r11]") TAP("[r0, r11, lsl #1]")

// Windows of whole 3 x 3 taps go straight through, others row by row: each jumps into a chain of
// seven taps of 36 bytes where as many are left as it has columns.
NAKED static void sum_windows(windows_t *s __attribute__((unused))) {
    // r0 x, r1 weights, r4 to r7 sums of channels 0, 1, 2, 3, r10 minus_zero, r11 channels, r12
    // where a row starts (3 x 3: from row to row), lr rows left (3 x 3: sums); [sp] s
    __asm__("push {r0, r4-r11, lr}\n"
            "ldrd r11, r10, [r0, #52]\n"
            "ldrd r12, lr, [r0]\n"
            "ldrd r2, r3, [r0, #8]\n"
            "cmp r3, #3\n"
            "bne 5f\n"
            "cmp r2, #3\n"
            "bne 5f\n"
            "cmp lr, #0\n"
            "bne 5f\n"
            "add r12, r12, r11, lsl #1\n"
            "add r12, r12, r11\n"
            "ldr lr, [r0, #40]\n"
            "mov r2, r0\n"
            "ldr r0, [r0, #32]\n"
            "1: add r1, r2, #16\n"
            "ldm r1, {r4-r7}\n"
            "ldr r1, [r2, #36]\n" ROW3 "add r0, r0, r12\n" ROW3 "add r0, r0, r12\n" ROW3
            "stmia lr!, {r4-r7}\n"
            "ldr r2, [sp]\n"
            "ldrd r8, r9, [r2, #44]\n"
            "sub r0, r0, r12, lsl #1\n"
            "add r0, r0, r9\n"
            "cmp lr, r8\n"
            "bne 1b\n"
            "pop {r0, r4-r11, pc}\n"
            "5: adr.w r12, 4f\n"
            "rsb r3, r3, #0\n"
            "add r3, r3, r3, lsl #3\n"
            "add r12, r12, r3, lsl #2\n"
            "orr r12, r12, #1\n"
            "mov r2, r0\n"
            "2: add r1, r2, #16\n"
            "ldm r1, {r4-r7}\n"
            "ldrd r0, r1, [r2, #32]\n"
            "ldr lr, [r2, #8]\n"
            "bx r12\n"
            ".balign 4\n" TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]")
                NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT "4: ldr.w r2, [sp]\n"
                                                                        "ldrd r8, r9, [r2]\n"
                                                                        "add r0, r0, r8\n"
                                                                        "add r1, r1, r9\n"
                                                                        "subs lr, lr, #1\n"
                                                                        "it ne\n"
                                                                        "bxne r12\n"
                                                                        "ldrd r8, r9, [r2, #40]\n"
                                                                        "stmia r8!, {r4-r7}\n"
                                                                        "ldr r0, [r2, #32]\n"
                                                                        "ldr r3, [r2, #48]\n"
                                                                        "add r0, r0, r3\n"
                                                                        "str r0, [r2, #32]\n"
                                                                        "str r8, [r2, #40]\n"
                                                                        "cmp r8, r9\n"
                                                                        "bne 2b\n"
                                                                        "pop {r0, r4-r11, pc}\n");
}

// The weights of four channels in pairs: channels 0 and a, then b and 3.
static void pair_weights(uint32_t *pairs, const uint8_t *records, uint32_t size, uint32_t taps,
                         uint32_t a, uint32_t b) {
    const int8_t *w0 = record_at(records, size, 0)->weight;
    const int8_t *wa = record_at(records, size, a)->weight;
    const int8_t *wb = record_at(records, size, b)->weight;
    const int8_t *w3 = record_at(records, size, 3)->weight;
    for (uint32_t tap = 0; tap < taps; ++tap, pairs += 2) {
        pairs[0] = (uint16_t)w0[tap] | (uint32_t)wa[tap] << 16;
        pairs[1] = (uint16_t)wb[tap] | (uint32_t)w3[tap] << 16;
    }
}

// The sums of n pixels of four channels become values, from element e on. A bit of `odd` says that
// requantize does not take a channel's.
__attribute__((noinline)) static void finish(const depthwise_t *d, const uint8_t *records,
                                             int32_t (*sum)[FOUR], uint32_t n, uint32_t e,
                                             uint32_t odd) {
    const uint32_t step = (uint32_t)d->y.c;
    const int32_t zero = d->y.zero_point, low = d->out.min, high = d->out.max;
    const bool full = low == -128 && high == 127 && !d->out.mask;
    for (uint32_t i = 0; i < FOUR; ++i, records += d->size, odd >>= 1) {
        const record_t *r = (const record_t *)(const void *)records;
        const int32_t multiplier = r->multiplier, shift = right_shift(r);
        int8_t *y = d->out.y + e + i;
        int32_t *s = &sum[0][i], *end = &sum[n][i];
        if (full && !(odd & 1)) {
            for (; s + FOUR < end; s += 2 * FOUR, y += 2 * step) {
                const int32_t v0 = requantize(s[0], multiplier, shift, zero);
                const int32_t v1 = requantize(s[FOUR], multiplier, shift, zero);
                y[0] = (int8_t)__builtin_arm_ssat(v0, 8);
                y[step] = (int8_t)__builtin_arm_ssat(v1, 8);
            }
            if (s != end) {
                *y = (int8_t)__builtin_arm_ssat(requantize(*s, multiplier, shift, zero), 8);
            }
            continue;
        }
        for (; s != end; s += FOUR, y += step) {
            *s = odd & 1 ? add32(zero, mbqm(*s, r->multiplier, r->shift))
                         : requantize(*s, multiplier, shift, zero);
            *y = (int8_t)limit32(*s, low, high);
        }
    }
    for (uint32_t p = 0; p < n && d->out.mask; ++p, e += step) {
        sp_store_mask(d->out.mask, e, sum[p], 1, FOUR, low, (uint32_t)(high - low));
    }
}

// y[.., first : first + 4] from the records of those channels.
__attribute__((noinline)) static void four_channels(const depthwise_t *d, const uint8_t *records,
                                                    const int32_t *bias, uint32_t first) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    const int32_t channels = x->c, kw = k->kw;
    uint32_t weight[TAPS * 2], n = 0, e = first;
    int32_t sum[RUN][FOUR];
    windows_t s;
    uint32_t odd = 0;
    pair_weights(weight, records, d->size, (uint32_t)k->taps, 2, 1);
    for (uint32_t i = 0; i < FOUR; ++i) {
        const record_t *r = record_at(records, d->size, i);
        s.start[i] = bias ? bias[i] : r->bias;
        // 2 * taps: less the zero point, products reach 2**15.
        odd |= (uint32_t)!is_plain(r, s.start[i], 2 * TAPS) << i;
    }
    s.step = (uint32_t)(k->stride_w * channels);
    s.channels = (uint32_t)channels;
    s.minus_zero = (uint32_t)(uint16_t)-x->zero_point * 0x10001u;
    // The first outputs, and those from `cut` on, have windows that reach over a border.
    int32_t whole = 0, cut = y->w;
    while (whole < y->w && whole * k->stride_w < k->left) {
        ++whole;
    }
    while (cut > whole && (cut - 1) * k->stride_w - k->left + kw > x->w) {
        --cut;
    }
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        const int8_t *row = (const int8_t *)x->data + at(x, v.start + v.from, 0) + first;
        for (int32_t ox = 0, count; ox < y->w; ox += count) {
            const span_t u = span(ox, k->stride_w, k->left, kw, x->w);
            const int32_t columns = u.to - u.from;
            count = ox >= whole && ox < cut ? min32(cut - ox, RUN - (int32_t)n) : 1;
            s.x = row + (u.start + u.from) * channels;
            s.w = weight + 2 * (v.from * kw + u.from);
            s.sum = sum + n;
            s.sums_end = s.sum + count;
            s.rows = (uint32_t)(v.to - v.from);
            s.columns = (uint32_t)columns;
            s.to_row = (uint32_t)((x->w - columns) * channels);
            s.to_row_w = (uint32_t)(kw - columns) * 8;
            if (s.rows && columns) {
                sum_windows(&s);
            } else {
                for (uint32_t i = 0; i < FOUR; ++i) {
                    sum[n][i] = s.start[i];
                }
                count = 1;
            }
            n += (uint32_t)count;
            if (n == RUN || (ox + count == y->w && oy == y->h - 1)) {
                finish(d, records, sum, n, e, odd);
                e += n * (uint32_t)y->c;
                n = 0;
            }
        }
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    if (d->multiplier != 1 || d->k.taps > TAPS || d->k.kw > COLUMNS || n < FOUR) {
        sp_depthwise_block_plain(d, records, bias, first, n);
        return;
    }
    for (uint32_t i = 0; i < n; i += FOUR) {
        i = umin32(i, n - FOUR); // the last four are done again if need be
        four_channels(d, records + i * d->size, bias ? bias + i : NULL, first + i);
    }
}

// The taps that reach an input from some output, in one direction: the first one, how many, and
// the output of the first; each further tap is `stride` on and its output one before.
typedef struct {
    int32_t tap, n, out;
} reach_t;

static reach_t reach(int32_t in, int32_t stride, int32_t pad, int32_t kernel, int32_t out_size) {
    const int32_t last = (int32_t)divide((uint32_t)(in + pad), (uint32_t)stride);
    const int32_t out = min32(last, out_size - 1);
    const int32_t tap = in + pad - out * stride;
    const int32_t n =
        tap < kernel ? (int32_t)divide((uint32_t)(kernel - tap - 1), (uint32_t)stride) + 1 : 0;
    return (reach_t){tap, min32(n, out + 1), out};
}

// dx of four channels; returns all magnitudes before the shift ored together.
__attribute__((noinline)) static uint32_t four_gradients(const depthwise_grad_t *d,
                                                         const uint8_t *records, uint32_t first) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    const int32_t channels = g->c, shift = d->shift;
    uint32_t weight[TAPS * 2], seen = 0;
    pair_weights(weight, records, d->size, (uint32_t)k->taps, 1, 2);
    const int16_t *data = (const int16_t *)g->data + first;
    int16_t *out = (int16_t *)dx->data + first;
    for (int32_t y = 0; y < dx->h; ++y) {
        const reach_t v = reach(y, k->stride_h, k->top, k->kh, g->h);
        for (int32_t x = 0; x < dx->w; ++x, out += channels) {
            const reach_t u = reach(x, k->stride_w, k->left, k->kw, g->w);
            int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            const int16_t *row = data + (v.out * g->w + u.out) * channels;
            const uint32_t *w_row = weight + 2 * (v.tap * k->kw + u.tap);
            for (int32_t i = v.n; i > 0; --i) {
                const int16_t *q = row;
                const uint32_t *w = w_row;
                for (int32_t j = u.n; j > 0; --j, q -= channels, w += 2 * k->stride_w) {
                    const uint32_t a = load(q), b = load(q + 2);
                    s0 = __builtin_arm_smlabb((int32_t)a, (int32_t)w[0], s0);
                    s1 = __builtin_arm_smlatt((int32_t)a, (int32_t)w[0], s1);
                    s2 = __builtin_arm_smlabb((int32_t)b, (int32_t)w[1], s2);
                    s3 = __builtin_arm_smlatt((int32_t)b, (int32_t)w[1], s3);
                }
                row -= g->w * channels;
                w_row += 2 * k->stride_h * k->kw;
            }
            seen |= magnitude32(s0) | magnitude32(s1) | magnitude32(s2) | magnitude32(s3);
            out[0] = (int16_t)shift_right(s0, shift);
            out[1] = (int16_t)shift_right(s1, shift);
            out[2] = (int16_t)shift_right(s2, shift);
            out[3] = (int16_t)shift_right(s3, shift);
        }
    }
    return seen;
}

uint32_t sp_depthwise_input_grad_block(const depthwise_grad_t *d, const uint8_t *records,
                                       uint32_t first, uint32_t n) {
    if (d->multiplier != 1 || d->k.taps > TAPS || n < FOUR) {
        return sp_depthwise_input_grad_block_plain(d, records, first, n);
    }
    uint32_t seen = 0;
    for (uint32_t i = 0; i < n; i += FOUR) {
        i = umin32(i, n - FOUR); // the last four are done again if need be
        seen |= four_gradients(d, records + i * d->size, first + i);
    }
    return seen;
}

#endif
