// Depthwise convolution and its input gradient, four channels at a time: a word of them is widened
// into pairs, less the zero point, and each half multiplied by its own channel's weight.

#include "armv7em.h"
#ifdef FITS

enum { FOUR = 4, TAPS = 49, COLUMNS = 7, RUN = 24 }; // channels; RUN: windows whose sums are kept

// Windows of four channels that follow one another in a row and have the same taps inside.
typedef struct {
    int32_t start[FOUR];
    const int8_t *x; // the first tap inside of the first window
    const uint32_t *w;
    uint32_t rows, columns;
    uint32_t to_row, to_row_w; // from the end of a row of taps to the next one, in bytes
    uint32_t channels;
    uint32_t minus_zero; // as a pair
    uint32_t step, step_y;
    int8_t *y, *y_end;
    int32_t (*sum)[FOUR]; // where the values are kept too, or NULL; the sums themselves if raw
    uint32_t raw;
    int32_t zero;
    uint32_t row; // of x, in bytes
    struct {
        int32_t multiplier, shift;
    } scale[FOUR];
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

// requantize of a sum that is doubled already: r8 multiplier, r9 shift, r1 zero
#define VALUE(sum, scale)                                                                         \
    "ldrd r8, r9, [r2, #" scale "]\n"                                                             \
    "smmulr " sum ", " sum ", r8\n"                                                               \
    "add " sum ", " sum ", " sum ", asr #31\n"                                                    \
    "asrs " sum ", " sum ", r9\n"                                                                 \
    "adc " sum ", " sum ", r1\n"
#define STORE(sum, channel)                                                                       \
    "ssat r8, #8, " sum "\n"                                                                      \
    "strb r8, [r0, #" channel "]\n"

// Windows of whole 3 x 3 taps go straight through, others row by row: each jumps into a chain of
// seven taps of 36 bytes where as many are left as it has columns.
NAKED static void run_windows(windows_t *s __attribute__((unused))) {
    // r0 x, r1 weights, r4 to r7 sums of channels 0, 1, 2, 3, r10 minus_zero, r11 channels, r12
    // where a window or a row of it starts, lr rows left (3 x 3: from row to row); [sp] s
    __asm__("push {r0, r4-r11, lr}\n"
            "ldrd r11, r10, [r0, #40]\n"
            "ldrd r2, r3, [r0, #24]\n"
            "ldr r12, [r0, #36]\n"
            "eor r2, r2, #3\n"
            "eor r8, r3, #3\n"
            "orr r2, r2, r8\n"
            "orrs r2, r2, r12\n"
            "adr.w r12, 3f\n"
            "beq 1f\n"
            "adr.w r12, 4f\n"
            "rsb r3, r3, #0\n"
            "add r3, r3, r3, lsl #3\n"
            "add r12, r12, r3, lsl #2\n"
            "1: orr r12, r12, #1\n"
            "mov r2, r0\n"
            "ldr r0, [r2, #16]\n"
            "2: ldm r2, {r4-r7}\n"
            "ldrd r1, lr, [r2, #20]\n"
            "bx r12\n"
            ".balign 4\n"
            "3: ldr.w lr, [r2, #76]\n");
    __asm__(ROW3 "add r0, r0, lr\n" ROW3 "add r0, r0, lr\n" ROW3);
    __asm__("ldr r2, [sp]\n"
            "b 5f\n"
            ".balign 4\n");
    __asm__(TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT);
    __asm__(TAP("[r0]") NEXT TAP("[r0]") NEXT TAP("[r0]") NEXT);
    __asm__("4: ldr.w r2, [sp]\n"
            "ldrd r8, r9, [r2, #32]\n"
            "add r0, r0, r8\n"
            "add r1, r1, r9\n"
            "subs lr, lr, #1\n"
            "it ne\n"
            "bxne r12\n"
            "5: ldrd r3, r1, [r2, #64]\n"
            "ldr r0, [r2, #56]\n"
            "cbnz r1, 6f\n"
            "ldr r1, [r2, #72]\n");
    __asm__(VALUE("r4", "80") VALUE("r5", "88") VALUE("r6", "96") VALUE("r7", "104"));
    __asm__(STORE("r4", "0") STORE("r5", "1") STORE("r6", "2") STORE("r7", "3"));
    __asm__("6: cbz r3, 7f\n"
            "stmia r3!, {r4-r7}\n"
            "str r3, [r2, #64]\n"
            "7: ldrd r8, r9, [r2, #48]\n"
            "add r9, r9, r0\n"
            "ldr r0, [r2, #16]\n"
            "ldr r3, [r2, #60]\n"
            "add r0, r0, r8\n"
            "str r0, [r2, #16]\n"
            "str r9, [r2, #56]\n"
            "cmp r9, r3\n"
            "bne 2b\n"
            "pop {r0, r4-r11, pc}\n");
}

// The weights of four channels in pairs, times a factor: channels 0 and a, then b and 3.
static void pair_weights(uint32_t *pairs, const uint8_t *records, uint32_t size, uint32_t taps,
                         uint32_t a, uint32_t b, int32_t factor) {
    const int8_t *w0 = record_at(records, size, 0)->weight;
    const int8_t *wa = record_at(records, size, a)->weight;
    const int8_t *wb = record_at(records, size, b)->weight;
    const int8_t *w3 = record_at(records, size, 3)->weight;
    for (uint32_t tap = 0; tap < taps; ++tap, pairs += 2) {
        pairs[0] = (uint16_t)(w0[tap] * factor) | (uint32_t)(wa[tap] * factor) << 16;
        pairs[1] = (uint16_t)(wb[tap] * factor) | (uint32_t)(w3[tap] * factor) << 16;
    }
}

// What is left to do for n pixels of four channels from element e on, of which the values were
// kept or, if raw, the sums. A bit of `odd` says that requantize does not take a channel's.
__attribute__((noinline)) static void finish(const depthwise_t *d, const uint8_t *records,
                                             int32_t (*sum)[FOUR], uint32_t n, uint32_t e,
                                             bool raw, uint32_t odd) {
    const uint32_t step = (uint32_t)d->y.c;
    const int32_t zero = d->y.zero_point, low = d->out.min, high = d->out.max;
    const bool again = raw || low != -128 || high != 127;
    for (uint32_t i = 0; i < FOUR && again; ++i, records += d->size, odd >>= 1) {
        const record_t *r = (const record_t *)(const void *)records;
        int8_t *y = d->out.y + e + i;
        for (int32_t *s = &sum[0][i], *end = &sum[n][i]; s != end; s += FOUR, y += step) {
            if (odd & 1) {
                *s = add32(zero, mbqm(*s, r->multiplier, r->shift));
            } else if (raw) {
                *s = requantize(*s, r->multiplier, right_shift(r), zero);
            }
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
    for (uint32_t i = 0; i < FOUR; ++i) {
        const record_t *r = record_at(records, d->size, i);
        s.start[i] = bias ? bias[i] : r->bias;
        s.scale[i].multiplier = r->multiplier;
        s.scale[i].shift = right_shift(r);
        // 2 * taps: less the zero point, products reach 2**15.
        odd |= (uint32_t)!is_plain(r, s.start[i], 2 * TAPS) << i;
    }
    s.raw = odd != 0;
    for (uint32_t i = 0; i < FOUR && !s.raw; ++i) {
        s.start[i] *= 2;
    }
    pair_weights(weight, records, d->size, (uint32_t)k->taps, 2, 1, s.raw ? 1 : 2);
    const bool kept = s.raw || d->out.mask || d->out.min != -128 || d->out.max != 127;
    s.step = (uint32_t)(k->stride_w * channels);
    s.step_y = (uint32_t)y->c;
    s.y = d->out.y + first;
    s.zero = y->zero_point;
    s.row = (uint32_t)(x->w * channels);
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
            s.sum = kept ? sum + n : NULL;
            s.y_end = s.y + (uint32_t)count * s.step_y;
            s.rows = (uint32_t)(v.to - v.from);
            s.columns = (uint32_t)columns;
            if (!s.rows || !columns) { // one row of no columns
                s.rows = 1;
                s.columns = 0;
            }
            s.to_row = s.row - s.columns * s.channels;
            s.to_row_w = ((uint32_t)kw - s.columns) * 8;
            run_windows(&s);
            n += kept ? (uint32_t)count : 0;
            if (n == RUN || (n && ox + count == y->w && oy == y->h - 1)) {
                finish(d, records, sum, n, e, s.raw, odd);
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
    const int32_t start = max32(0, in + pad);
    const int32_t out = min32((int32_t)divide((uint32_t)start, (uint32_t)stride), out_size - 1);
    const int32_t tap = start - out * stride;
    const int32_t n = in + pad >= 0 && tap < kernel
                          ? (int32_t)divide((uint32_t)(kernel - tap - 1), (uint32_t)stride) + 1
                          : 0;
    return (reach_t){tap, min32(n, out + 1), out};
}

// dx of four channels; returns all magnitudes before the shift ored together.
__attribute__((noinline)) static uint32_t four_gradients(const depthwise_grad_t *d,
                                                         const uint8_t *records, uint32_t first) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    const int32_t channels = g->c, shift = d->shift;
    uint32_t weight[TAPS * 2], seen = 0;
    pair_weights(weight, records, d->size, (uint32_t)k->taps, 1, 2, 1);
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
