// Convolution. Four pixels go together, so a weight that is loaded serves four times; their
// windows lie side by side as 16 bits, which takes one load where int8 takes a load and an
// extension of the sign.

#include "xtensawin.h"
#ifdef FITS

enum { CHUNK = 48 }; // elements of a window

// Zeros after n channels of four pixels, up to a multiple of four.
static void pad(int16_t *packed, uint32_t n) {
    for (; n & 3; ++n) {
        for (uint32_t p = 0; p < QUAD; ++p) {
            packed[QUAD * n + p] = 0;
        }
    }
}

// packed[i][p] = x[p][i] for n channels of four pixels, and zeros up to a multiple of four
// channels.
static void pack(int16_t *packed, const int8_t *x, uint32_t channels, uint32_t n) {
    const int8_t *x1 = x + channels, *x2 = x1 + channels, *x3 = x2 + channels;
    int16_t *out = packed;
    for (uint32_t i = 0; i < n; ++i, out += QUAD) {
        out[0] = (int16_t)load8(x + i);
        out[1] = (int16_t)load8(x1 + i);
        out[2] = (int16_t)load8(x2 + i);
        out[3] = (int16_t)load8(x3 + i);
    }
    pad(packed, n);
}

// The same of elements from .. from + n of the window of output (oy, ox), into out[0], out[4],
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
            for (; from < stop; ++from, out += QUAD) {
                *out = (int16_t)load8(data++);
            }
        } else {
            for (; from < stop; ++from, out += QUAD) {
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

// Pixel whose x is in `x`, with `t` free: the x of the next one ends in `t`.
#define PIXEL(x, t, next, sum0, sum1)                                                             \
    "mul16s " #t ", " #x ", a13\n"                                                                \
    "mul16s " #x ", " #x ", a14\n"                                                                \
    "add " #sum0 ", " #sum0 ", " #t "\n" next "add " #sum1 ", " #sum1 ", " #x "\n"

#define LOAD(x, at) "l16si " #x ", a2, " #at "\n"

// One channel: its weights in a13 and a14, eight products.
#define CHANNEL(w, x0, x1, x2, x3)                                                                \
    "l8ui a13, a3, " #w "\n"                                                                      \
    "l8ui a14, a4, " #w                                                                           \
    "\n" LOAD(a15, x0) "sext a13, a13, 7\n"                                                       \
                       "sext a14, a14, 7\n" PIXEL(a15, a0, LOAD(a0, x1), a5, a9)                  \
                           PIXEL(a0, a15, LOAD(a15, x2), a6, a10)                                 \
                               PIXEL(a15, a0, LOAD(a0, x3), a7, a11) PIXEL(a0, a15, "", a8, a12)

_Static_assert(sizeof(dot_t) == 28, "sp_dot_quads has another dot_t");

// The compiler has not enough registers for this. In the inner loop: a2 x, a3 and a4 weights, a5
// to a8 and a9 to a12 sums of the rows; where the weights end is on the stack, and so are d and
// the return address.
__asm__(".section .text.sp_dot_quads, \"ax\"\n"
        ".align 4\n"
        ".global sp_dot_quads\n"
        ".hidden sp_dot_quads\n"
        ".type sp_dot_quads, @function\n"
        "sp_dot_quads:\n"
        "entry a1, 48\n"
        "s32i a0, a1, 0\n"
        "s32i a2, a1, 4\n"
        "1:\n"
        "l32i a3, a2, 4\n"
        "l32i a13, a2, 8\n"
        "l32i a14, a2, 16\n"
        "l32i a15, a2, 12\n"
        "l32i a0, a2, 20\n"
        "add a4, a3, a13\n"
        "add a13, a4, a13\n"
        "s32i a13, a2, 4\n"
        "add a15, a3, a15\n"
        "s32i a15, a1, 8\n"
        "bgei a14, 2, 2f\n"
        "mov a4, a3\n"
        "2:\n"
        "addi a14, a14, -2\n"
        "s32i a14, a2, 16\n"
        "l32i a13, a2, 24\n"
        "l32i a2, a2, 0\n"
        "beqz a0, 3f\n"
        "l32i a5, a0, 0\n"
        "l32i a9, a0, 4\n"
        "addi a0, a0, 8\n"
        "l32i a14, a1, 4\n"
        "mov a6, a5\n"
        "s32i a0, a14, 20\n"
        "mov a7, a5\n"
        "mov a8, a5\n"
        "mov a10, a9\n"
        "mov a11, a9\n"
        "mov a12, a9\n"
        "j 4f\n"
        "3:\n"
        "l32i a5, a13, 0\n"
        "l32i a6, a13, 4\n"
        "l32i a7, a13, 8\n"
        "l32i a8, a13, 12\n"
        "l32i a9, a13, 16\n"
        "l32i a10, a13, 20\n"
        "l32i a11, a13, 24\n"
        "l32i a12, a13, 28\n"
        "4:\n" CHANNEL(0, 0, 2, 4, 6) CHANNEL(1, 8, 10, 12, 14) CHANNEL(2, 16, 18, 20, 22)
            CHANNEL(3, 24, 26, 28, 30) "l32i a13, a1, 8\n"
                                       "addi a3, a3, 4\n"
                                       "addi a4, a4, 4\n"
                                       "addi a2, a2, 32\n"
                                       "bltu a3, a13, 4b\n"
                                       "l32i a2, a1, 4\n"
                                       "l32i a13, a2, 24\n"
                                       "l32i a14, a2, 16\n"
                                       "s32i a5, a13, 0\n"
                                       "s32i a6, a13, 4\n"
                                       "s32i a7, a13, 8\n"
                                       "s32i a8, a13, 12\n"
                                       "s32i a9, a13, 16\n"
                                       "s32i a10, a13, 20\n"
                                       "s32i a11, a13, 24\n"
                                       "s32i a12, a13, 28\n"
                                       "addi a13, a13, 32\n"
                                       "s32i a13, a2, 24\n"
                                       "bgei a14, 1, 1b\n"
                                       "l32i a0, a1, 0\n"
                                       "retw\n"
                                       ".size sp_dot_quads, . - sp_dot_quads\n"
                                       ".text\n");

// Whether the windows are the single pixels of x from row -top on, in their order.
static bool is_single(const conv_t *c) {
    const window_t *k = &c->k;
    return k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->left == 0 &&
           c->x.w == c->y.w && k->top <= 0 && c->y.h - k->top <= c->x.h;
}

static const int8_t *first_pixel(const conv_t *c) {
    return (const int8_t *)c->x.data + at(&c->x, -c->k.top, 0);
}

// Pixels 0 to `pixels`, at least four; the last ones may be done twice.
__attribute__((noinline)) static void quads(const conv_t *c, const uint8_t *records,
                                            const int32_t *bias, uint32_t first, uint32_t n,
                                            uint32_t pixels, bool single) {
    const tensor_t *x = &c->x, *y = &c->y;
    const uint32_t channels = (uint32_t)(c->k.taps * x->c), outputs = (uint32_t)y->c;
    const requantize_t r = {y->zero_point, c->out.min, c->out.max,
                            outputs,       c->size,    c->out.mask != NULL};
    int32_t sum[BLOCK][QUAD], start[BLOCK];
    int16_t packed[CHUNK * QUAD];
    start[(n - 1) ^ 1] = 0; // of a row that is not there
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, c->size, i);
        const uint32_t zero = (uint32_t)record->sum * (uint32_t)x->zero_point;
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : record->bias) - zero);
    }
    const int8_t *weight = record_at(records, c->size, 0)->weight;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        pixel = umin32(pixel, pixels - QUAD);
        for (uint32_t from = 0; from < channels; from += CHUNK) {
            const uint32_t length = umin32(channels - from, CHUNK);
            if (single) {
                pack(packed, first_pixel(c) + pixel * channels + from, channels, length);
            } else {
                pad(packed, length);
                for (uint32_t p = 0; p < QUAD; ++p) {
                    const uint32_t oy = divide(pixel + p, (uint32_t)y->w);
                    pack_window(packed + p, c, (int32_t)oy,
                                (int32_t)(pixel + p - oy * (uint32_t)y->w), from, length);
                }
            }
            dot_t d = {packed,     weight + from,       c->size, round4(length),
                       (int32_t)n, from ? NULL : start, sum[0]};
            sp_dot_quads(&d);
        }
        const uint32_t e = pixel * outputs + first;
        sp_requantize_quads(sum[0], (const record_t *)(const void *)records, c->out.y + e, n, &r);
        for (uint32_t p = 0; p < QUAD && c->out.mask; ++p) {
            sp_keep(&c->out, e + p * outputs, &sum[0][p], n);
        }
    }
}

// Pixels `done` and on of windows of single pixels.
__attribute__((noinline)) static void rest(const conv_t *c, const uint8_t *records,
                                           const int32_t *bias, uint32_t first, uint32_t n,
                                           uint32_t done) {
    conv_t last = *c;
    last.x.h = last.y.h = 1;
    last.x.w = last.y.w = c->y.h * c->y.w - (int32_t)done;
    last.k.top = 0;
    last.x.data = (int8_t *)(uintptr_t)(first_pixel(c) + done * (uint32_t)c->x.c);
    last.out.y += done * (uint32_t)c->y.c;
    sp_conv_block_plain(&last, records, bias, first, n);
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    const uint32_t pixels = (uint32_t)(c->y.h * c->y.w);
    const bool single = is_single(c);
    if (pixels < QUAD || c->single || !sp_requantizes(records, c->size, n)) {
        sp_conv_block_plain(c, records, bias, first, n);
        return;
    }
    // One or two pixels that are left over cost less by themselves than four once more.
    const uint32_t over = single && !c->out.mask ? pixels & 3 : 0;
    const uint32_t done = over == 3 ? pixels : pixels - over;
    quads(c, records, bias, first, n, done, single);
    if (done < pixels) {
        rest(c, records, bias, first, n, done);
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
