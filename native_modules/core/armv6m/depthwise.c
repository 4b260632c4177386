// Depthwise convolution, channel by channel. The rows of the upper half of the output go together
// with those of the lower half: a word holds an input value of either, x0 + x1 * 2**16, and is
// made once. See pointwise.c for how one multiplication gives both products; here it is the
// weights that are negated, and channels with a weight of -128 go another way.
//
// Word (row, column) lies at row + column * kh, so that a window, column by column, is one run of
// words, and the next row of windows is one word further on. A new row lies where, one column on,
// the oldest row did, which is not needed any more.

#include "armv6m.h"
#ifdef FITS

enum { WORDS = 160, TAPS = 50, RUN = 24 }; // on the stack: words, weights, outputs at a time

typedef struct {
    uint32_t out_step, a_step, b_step; // bytes
} steps_t;

// out[i] = a[i] + b[i] * 2**16 for n > 0 columns
NAKED static void pack_row(uint32_t *out, const int8_t *a, const int8_t *b, uint32_t n,
                           const steps_t *steps) {
    __asm__(SAVE);
    __asm__("ldr r4, [sp, #36]\n"
            "ldmia r4!, {r5, r6, r7}\n"
            "mov r8, r6\n"
            "mov r9, r7\n"
            "movs r6, #0\n"
            "1: ldrsb r4, [r1, r6]\n"
            "ldrsb r7, [r2, r6]\n"
            "add r1, r8\n"
            "add r2, r9\n"
            "lsls r7, r7, #16\n"
            "adds r4, r4, r7\n"
            "str r4, [r0]\n"
            "adds r0, r0, r5\n"
            "subs r3, #1\n"
            "bne 1b\n");
    __asm__(RESTORE);
}

typedef struct {
    const uint32_t *weight, *end; // an even number
    uint32_t odd_twos;            // pairs of taps in the first round of at most five
    int32_t start;
    uint32_t step; // bytes from window to window
} windows_t;

// Two taps: 12 cycles for 4 products.
#define TWO                                                                                       \
    "ldmia r6!, {r0, r1}\n"                                                                       \
    "ldmia r7!, {r2, r3}\n"                                                                       \
    "muls r0, r2, r0\n"                                                                           \
    "muls r1, r3, r1\n"                                                                           \
    "adds r0, r0, r1\n"                                                                           \
    "adds r5, r5, r0\n"                                                                           \
    "asrs r0, r0, #16\n"                                                                          \
    "adcs r4, r0\n"

// sum[i] and sum[i + RUN] = start less the two products of window i with negated weights, for
// n > 0 windows
NAKED static void dot_windows(const uint32_t *words, int32_t *sum, uint32_t n,
                              const windows_t *w) {
    // r4 H, r5 T, r6 words, r7 weights; r8 window, r9 step, r10 sum, r11 end of the weights, r12
    // where the first round is entered, lr start
    __asm__(SAVE);
    __asm__("mov r8, r0\n"
            "mov r10, r1\n"
            "lsls r2, r2, #2\n"
            "adds r1, r1, r2\n"
            "ldmia r3!, {r2, r4, r5, r6, r7}\n"
            "push {r1, r2}\n"
            "mov r11, r4\n"
            "mov lr, r6\n"
            "mov r9, r7\n"
            "adr r0, 3f\n"
            "adds r0, #1\n"
            "lsls r5, r5, #4\n"
            "subs r0, r0, r5\n"
            "mov r12, r0\n"
            "1: mov r6, r8\n"
            "add r8, r9\n"
            "ldr r7, [sp, #4]\n"
            "movs r4, #0\n"
            "movs r5, #0\n"
            "bx r12\n"
            ".balign 4\n"
            "2:\n");
    __asm__(TWO TWO TWO TWO TWO);
    __asm__("3: cmp r7, r11\n"
            "bne 2b\n"
            "mov r1, r10\n"
            "mov r0, lr\n"
            "subs r2, r0, r4\n"
            "str r2, [r1, #96]\n"
            "lsls r4, r4, #16\n"
            "subs r5, r5, r4\n"
            "subs r0, r0, r5\n"
            "stmia r1!, {r0}\n"
            "mov r10, r1\n"
            "ldr r0, [sp]\n"
            "cmp r1, r0\n"
            "bne 1b\n"
            "add sp, #8\n");
    __asm__(RESTORE);
}

// Negated weights in the order of the words of a window. Returns their sum, or 1 << 30 where one
// is -128. The sum of a record would not be that of trained weights.
static int32_t turn(uint32_t *to, const int8_t *w, const window_t *k) {
    int32_t sum = 0;
    bool fits = true;
    for (int32_t ky = 0; ky < k->kh; ++ky) {
        uint32_t *row = to + ky;
        for (int32_t kx = 0; kx < k->kw; ++kx, row += k->kh) {
            const int32_t value = -*w++;
            fits &= value != 128;
            sum += value;
            *row = (uint32_t)value;
        }
    }
    to[k->taps] = 0; // makes their number even
    return fits ? sum : 1 << 30;
}

typedef struct {
    const depthwise_t *d;
    const record_t *record;
    int32_t bias;
    uint32_t c;
    bool fast;
    windows_t windows;
    requantize_t values;
} channel_t;

// Values of n pixels of the output.
static void store(channel_t *t, int32_t *sum, int32_t n, int32_t pixel) {
    const depthwise_t *d = t->d;
    uint32_t e = (uint32_t)pixel * t->values.y_pixel + t->c;
    if (n <= 0) {
        return;
    }
    requantize_t *r = &t->values;
    if (t->fast) {
        r->record = (const uint8_t *)t->record;
        r->sums = (uint32_t)n * sizeof(int32_t);
        if (!d->out.mask) {
            sp_requantize_sums(sum, d->out.y + e, r);
            return;
        }
        sp_requantize_kept(sum, d->out.y + e, r);
    }
    for (int32_t i = 0; i < n; ++i, e += r->y_pixel) {
        if (t->fast) {
            sp_store_mask(d->out.mask, e, sum + i, 1, 1, (uint32_t)r->range);
        } else {
            const int32_t v =
                add32(d->y.zero_point, mbqm(sum[i], t->record->multiplier, t->record->shift));
            sp_store(&d->out, &v, 1, e);
        }
    }
}

// Rows of words: input row iy with row iy + below, from column ix on. Columns `from` to `to` of
// `n` are inside the input.
typedef struct {
    uint32_t input; // channel
    int32_t below, ix, from, to, n;
} tile_t;

static void load_row(const depthwise_t *d, uint32_t *out, const tile_t *t, int32_t iy) {
    const tensor_t *x = &d->x;
    const int32_t zero = x->zero_point;
    const uint32_t kh = (uint32_t)d->k.kh;
    uint32_t *to = out;
    for (int32_t i = 0; i < t->n; ++i, to += kh) {
        if (i == t->from) {
            i = t->to;
            to = out + (uint32_t)i * kh;
            if (i == t->n) {
                break;
            }
        }
        *to = (uint32_t)(zero + zero * 65536);
    }
    if (t->from < t->to) {
        const int8_t outside = (int8_t)zero;
        const bool a = (uint32_t)iy < (uint32_t)x->h;
        const bool b = (uint32_t)(iy + t->below) < (uint32_t)x->h;
        const uint32_t step = (uint32_t)x->c;
        const int8_t *data = (const int8_t *)x->data + t->input + at(x, iy, t->ix + t->from);
        const steps_t steps = {kh * (uint32_t)sizeof(uint32_t), a ? step : 0, b ? step : 0};
        pack_row(out + (uint32_t)t->from * kh, a ? data : &outside,
                 b ? data + (uint32_t)(t->below * x->w) * step : &outside,
                 (uint32_t)(t->to - t->from), &steps);
    }
}

// False: a weight is -128.
__attribute__((noinline)) static bool run_channel(channel_t *t, uint32_t input, int32_t width) {
    const depthwise_t *d = t->d;
    const tensor_t *y = &d->y;
    const window_t *k = &d->k;
    uint32_t words[WORDS], weight[TAPS];
    int32_t sum[2 * RUN];
    const int32_t half = (y->h + 1) >> 1;
    const int32_t total = turn(weight, t->record->weight, k);
    if (total == 1 << 30) {
        return false;
    }
    t->windows.start = (int32_t)((uint32_t)t->bias + (uint32_t)(total * d->x.zero_point));
    t->windows.weight = weight;
    t->windows.end = weight + ((k->taps + 1) & ~1);
    for (int32_t ox = 0; ox < y->w; ox += width) {
        const int32_t n = min32(width, y->w - ox), columns = (n - 1) * k->stride_w + k->kw;
        const int32_t ix = ox * k->stride_w - k->left, from = min32(columns, max32(0, -ix));
        const int32_t to = max32(from, min32(columns, d->x.w - ix));
        const tile_t tile = {input, half * k->stride_h, ix, from, to, columns};
        uint32_t *window = words;
        int32_t row = 0, filled = 0, first = 0;
        for (int32_t oy = 0; oy < half; ++oy, window += k->stride_h) {
            for (; row < oy * k->stride_h + k->kh; ++row) {
                load_row(d, words + row, &tile, row - k->top);
            }
            for (int32_t i = 0, count; i < n; i += count) {
                count = min32(RUN - filled, n - i);
                first = filled ? first : oy * y->w + ox + i;
                dot_windows(window + i * k->stride_w * k->kh, sum + filled, (uint32_t)count,
                            &t->windows);
                filled += count;
                // Whole rows of the output follow one another, so they need not be stored singly.
                if (filled == RUN || oy == half - 1 || n < y->w) {
                    store(t, sum, filled, first);
                    store(t, sum + RUN, min32(filled, (y->h - half) * y->w - first),
                          first + half * y->w);
                    filled = 0;
                }
            }
        }
    }
    return true;
}

// How many windows there are words for in a row of windows, 0 if there is no room for one. The
// words of `rows` rows of windows start one after another; one word more is read.
static int32_t width_of(const window_t *k, int32_t rows) {
    const int32_t free = WORDS - (rows - 1) * k->stride_h - 1 - k->taps;
    return k->taps >= TAPS || free < 0 || k->stride_h > k->kh
               ? 0
               : (int32_t)divide((uint32_t)free, (uint32_t)(k->stride_w * k->kh)) + 1;
}

// For channels with a weight of -128 and kernels that there is no room for.
__attribute__((noinline)) static void run_slowly(channel_t *t, uint32_t input) {
    const tensor_t *x = &t->d->x, *y = &t->d->y;
    const window_t *k = &t->d->k;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < y->w; ++ox) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            int32_t sum = t->bias;
            for (int32_t ky = v.from; ky < v.to; ++ky) {
                for (int32_t kx = u.from; kx < u.to; ++kx) {
                    const int8_t *at_x = (const int8_t *)x->data + input;
                    const int32_t value = at_x[at(x, v.start + ky, u.start + kx)] - x->zero_point;
                    sum = add32(sum, value * t->record->weight[ky * k->kw + kx]);
                }
            }
            store(t, &sum, 1, oy * y->w + ox);
        }
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    const window_t *k = &d->k;
    const int32_t width = width_of(k, (d->y.h + 1) >> 1);
    const uint32_t twos = ((uint32_t)k->taps + 1) >> 1;
    uint32_t input = divide(first, d->multiplier), skip = first - input * d->multiplier;
    channel_t t;
    t.d = d;
    t.windows.odd_twos = twos - 5 * divide(twos - 1, 5);
    t.windows.step = (uint32_t)(k->stride_w * k->kh) * sizeof(uint32_t);
    t.values.y_pixel = (uint32_t)d->y.c;
    t.values.zero = d->y.zero_point - d->out.min;
    t.values.range = d->out.max - d->out.min;
    t.values.low = d->out.min;
    t.values.size = d->size;
    for (uint32_t i = 0; i < n; ++i) {
        t.record = record_at(records, d->size, i);
        t.values.records_end = (const uint8_t *)t.record + d->size;
        t.fast = sp_requantizes((const uint8_t *)t.record, d->size, 1);
        t.c = first + i;
        t.bias = bias ? bias[i] : t.record->bias;
        if (width == 0 || !run_channel(&t, input, width)) {
            run_slowly(&t, input);
        }
        if (++skip == d->multiplier) {
            skip = 0;
            ++input;
        }
    }
}

#endif
