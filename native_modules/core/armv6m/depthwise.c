// Depthwise convolution, channel by channel. The rows of the upper half of the output go together
// with those of the lower half: a word holds an input value of either, x0 + x1 * 2**16, and is
// made once. See pointwise.c for how one multiplication gives both products; here it is the
// weights that are negated.
//
// The words of a channel lie column by column, `kh` rows each, so that a window is one run of
// them. The rows take turns, and the weights with them.

#include "armv6m.h"

enum { WORDS = 192, TAPS = 50, RUN = 16 }; // on the stack: words, weights, outputs at a time

typedef struct {
    uint32_t out_step, a_step, b_step; // bytes
} steps_t;

// out[i] = a[i] + b[i] * 2**16 for n > 0 columns
NAKED static void pack_row(uint32_t *out __attribute__((unused)),
                           const int8_t *a __attribute__((unused)),
                           const int8_t *b __attribute__((unused)),
                           uint32_t n __attribute__((unused)),
                           const steps_t *steps __attribute__((unused))) {
    __asm__(SAVE "ldr r4, [sp, #36]\n"
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
                 "bne 1b\n" RESTORE);
}

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
#define TEN TWO TWO TWO TWO TWO

typedef struct {
    const uint32_t *weight; // negated, an even number
    uint32_t twos;          // half of it
    int32_t start;
    uint32_t step; // bytes from window to window
} windows_t;

// sum[i] and sum[i + RUN] = start - the two products of window i with the weights, for n > 0
// windows
NAKED static void dot_windows(const uint32_t *words __attribute__((unused)),
                              int32_t *sum __attribute__((unused)),
                              uint32_t n __attribute__((unused)),
                              const windows_t *w __attribute__((unused))) {
    // r4 H, r5 T, r6 words, r7 weights; r8 window, r9 step, r10 sum, r11 its end, r12 where to
    // enter the row of TWOs, lr start
    __asm__(SAVE "mov r8, r0\n"
                 "mov r10, r1\n"
                 "lsls r2, r2, #2\n"
                 "adds r1, r1, r2\n"
                 "mov r11, r1\n"
                 "ldmia r3!, {r4, r5, r6, r7}\n"
                 "push {r4}\n"
                 "mov lr, r6\n"
                 "mov r9, r7\n"
                 "adr r0, 2f\n"
                 "adds r0, #1\n"
                 "lsls r5, r5, #4\n"
                 "subs r0, r0, r5\n"
                 "mov r12, r0\n"
                 "1: mov r6, r8\n"
                 "add r8, r9\n"
                 "ldr r7, [sp]\n"
                 "movs r4, #0\n"
                 "movs r5, #0\n"
                 "bx r12\n"
                 ".balign 4\n" TEN TEN TEN TEN TEN "2: lsls r0, r4, #16\n"
                 "subs r5, r5, r0\n"
                 "mov r0, lr\n"
                 "subs r5, r0, r5\n"
                 "subs r4, r0, r4\n"
                 "mov r1, r10\n"
                 "str r4, [r1, #64]\n"
                 "stmia r1!, {r5}\n"
                 "mov r10, r1\n"
                 "cmp r1, r11\n"
                 "beq 3f\n"
                 "b 1b\n"
                 "3: add sp, #4\n" RESTORE);
}

typedef struct {
    const depthwise_t *d;
    const record_t *record;
    uint32_t c;
    bool fast;
    windows_t windows;
    requantize_t values;
} channel_t;

// Values of output row oy from column ox on.
static void store(channel_t *t, int32_t *sum, uint32_t n, int32_t oy, int32_t ox) {
    const depthwise_t *d = t->d;
    uint32_t e = at(&d->y, oy, ox) + t->c;
    requantize_t *r = &t->values;
    if (t->fast) {
        r->record = (const uint8_t *)t->record;
        r->sums = n * sizeof(int32_t);
        if (!d->out.mask) {
            sp_requantize_sums(sum, d->out.y + e, r);
            return;
        }
        sp_requantize_kept(sum, d->out.y + e, r);
    }
    for (uint32_t i = 0; i < n; ++i, e += r->y_pixel) {
        if (t->fast) {
            sp_store_mask(d->out.mask, e, sum + i, 1, 1, (uint32_t)r->range);
        } else {
            const int32_t v =
                add32(d->y.zero_point, mbqm(sum[i], t->record->multiplier, t->record->shift));
            sp_store(&d->out, &v, 1, e);
        }
    }
}

// A row of words: input row iy of the upper half with row iy + below, columns ix to ix + n.
static void load_row(const depthwise_t *d, uint32_t *out, uint32_t input, int32_t iy,
                     int32_t below, int32_t ix, int32_t n) {
    const tensor_t *x = &d->x;
    const int8_t *data = (const int8_t *)x->data + input;
    const int8_t zero = (int8_t)x->zero_point;
    const uint32_t kh = (uint32_t)d->k.kh, outside = (uint32_t)(zero + zero * 65536);
    const int32_t from = min32(n, max32(0, -ix)), to = max32(from, min32(n, x->w - ix));
    for (int32_t i = 0; i < from; ++i) {
        out[(uint32_t)i * kh] = outside;
    }
    for (int32_t i = to; i < n; ++i) {
        out[(uint32_t)i * kh] = outside;
    }
    if (from < to) {
        const bool a = iy >= 0 && iy < x->h, b = iy + below < x->h && iy + below >= 0;
        const steps_t steps = {kh * (uint32_t)sizeof(uint32_t), a ? (uint32_t)x->c : 0,
                               b ? (uint32_t)x->c : 0};
        pack_row(out + (uint32_t)from * kh, a ? data + at(x, iy, ix + from) : &zero,
                 b ? data + at(x, iy + below, ix + from) : &zero, (uint32_t)(to - from), &steps);
    }
}

static void run_channel(channel_t *t, uint32_t input, int32_t width) {
    const depthwise_t *d = t->d;
    const tensor_t *y = &d->y;
    const window_t *k = &d->k;
    uint32_t words[WORDS], weight[TAPS];
    int32_t sum[2 * RUN];
    const int32_t half = (y->h + 1) >> 1;
    t->windows.weight = weight;
    weight[k->taps] = 0; // makes their number even
    for (int32_t ox = 0; ox < y->w; ox += width) {
        const int32_t n = min32(width, y->w - ox), columns = (n - 1) * k->stride_w + k->kw;
        int32_t row = 0, slot = 0, base = 0; // next row to load, its slot, slot of the window
        for (int32_t oy = 0; oy < half; ++oy) {
            for (; row < oy * k->stride_h + k->kh; ++row) {
                load_row(d, words + slot, input, row - k->top, half * k->stride_h,
                         ox * k->stride_w - k->left, columns);
                slot = slot + 1 == k->kh ? 0 : slot + 1;
            }
            const int8_t *w = t->record->weight;
            int32_t s = base;
            for (int32_t ky = 0; ky < k->kh; ++ky, s = s + 1 == k->kh ? 0 : s + 1) {
                uint32_t *to = weight + s;
                for (int32_t kx = 0; kx < k->kw; ++kx, to += k->kh) {
                    *to = 0u - (uint32_t)*w++;
                }
            }
            for (base += k->stride_h; base >= k->kh; base -= k->kh) {
            }
            for (int32_t i = 0; i < n; i += RUN) {
                const uint32_t count = (uint32_t)min32(RUN, n - i);
                dot_windows(words + i * k->stride_w * k->kh, sum, count, &t->windows);
                store(t, sum, count, oy, ox + i);
                if (oy + half < y->h) {
                    store(t, sum + RUN, count, oy + half, ox + i);
                }
            }
        }
    }
}

void sp_depthwise_block(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                        uint32_t first, uint32_t n) {
    const window_t *k = &d->k;
    const uint32_t columns = divide(WORDS - 1, (uint32_t)k->kh), stride = (uint32_t)k->stride_w;
    if (k->taps >= TAPS || columns < (uint32_t)k->kw || k->stride_h > k->kh) {
        sp_depthwise_block_plain(d, records, bias, first, n);
        return;
    }
    const uint32_t width = divide(columns - (uint32_t)k->kw, stride) + 1;
    uint32_t input = divide(first, d->multiplier), skip = first - input * d->multiplier;
    channel_t t;
    t.d = d;
    t.windows.twos = ((uint32_t)k->taps + 1) >> 1;
    t.windows.step = stride * (uint32_t)k->kh * sizeof(uint32_t);
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
        t.windows.start = (int32_t)((uint32_t)(bias ? bias[i] : t.record->bias) -
                                    (uint32_t)t.record->sum * (uint32_t)d->x.zero_point);
        run_channel(&t, input, (int32_t)width);
        if (++skip == d->multiplier) {
            skip = 0;
            ++input;
        }
    }
}
