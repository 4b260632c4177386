// Convolution and the gradient of its input. Four pixels go together: each word of weights is
// loaded and widened once for 16 products, which take 8 SMLAD and 5 other instructions.
//
// Packed pixels are fours of channels: for each of the four pixels a word with channels 0 and 2
// and one with channels 1 and 3.

#include "armv7em.h"
#ifdef FITS

enum { QUAD = 4, CHUNK = 64 }; // pixels, elements of a row of weights

// Four more channels of the weights at r1 and the packed pixels at r0.
#define FOUR                                                                                      \
    "ldr r10, [r1], #4\n"                                                                         \
    "ldmia r0!, {r6-r9}\n"                                                                        \
    "sxtb16 r11, r10, ror #8\n"                                                                   \
    "sxtb16 r10, r10\n"                                                                           \
    "smlad r2, r6, r10, r2\n"                                                                     \
    "smlad r2, r7, r11, r2\n"                                                                     \
    "smlad r3, r8, r10, r3\n"                                                                     \
    "smlad r3, r9, r11, r3\n"                                                                     \
    "ldmia r0!, {r6-r9}\n"                                                                        \
    "smlad r4, r6, r10, r4\n"                                                                     \
    "smlad r4, r7, r11, r4\n"                                                                     \
    "smlad r5, r8, r10, r5\n"                                                                     \
    "smlad r5, r9, r11, r5\n"

// sum[r] += the quad's packed [4 * fours] . w[r], for n_rows rows of weights that start at
// multiples of 4; fours and n_rows are not 0.
NAKED static void
dot_quad(const uint32_t *packed __attribute__((unused)), const int8_t *w __attribute__((unused)),
         uint32_t stride __attribute__((unused)), uint32_t n_rows __attribute__((unused)),
         int32_t (*sum)[QUAD] __attribute__((unused)), uint32_t fours __attribute__((unused))) {
    // r0 packed, r1 weights, r2 to r5 sums, r6 to r9 pixels, r10, r11 weights, r12 end of packed,
    // lr sum; on the stack packed, row, stride, end of sum, and where in the loop to start: a FOUR
    // has 52 bytes.
    __asm__("push {r4-r11, lr}\n"
            "ldrd lr, r5, [sp, #36]\n"
            "add r12, r0, r5, lsl #5\n"
            "add r3, lr, r3, lsl #4\n"
            "rsb r5, r5, #0\n"
            "and r5, r5, #3\n"
            "movs r6, #52\n"
            "adr.w r4, 4f\n"
            "mla r4, r5, r6, r4\n"
            "orr r4, r4, #1\n"
            "push {r0-r4}\n"
            "1: ldm lr, {r2-r5}\n"
            "ldr pc, [sp, #16]\n"
            ".balign 4\n"
            "4:\n" FOUR FOUR FOUR FOUR "cmp r0, r12\n"
            "bne 4b\n"
            "stmia lr!, {r2-r5}\n"
            "ldm sp, {r0-r3}\n"
            "add r1, r1, r2\n"
            "str r1, [sp, #4]\n"
            "cmp lr, r3\n"
            "bne 1b\n"
            "add sp, #20\n"
            "pop {r4-r11, pc}\n");
}

void sp_store_mask(uint8_t *mask, uint32_t e, const int32_t *v, uint32_t step, uint32_t n,
                   int32_t low, uint32_t range) {
    uint8_t *byte = mask + (e >> 3);
    for (uint32_t first = e & 7, count; n; n -= count, first = 0, ++byte) {
        count = umin32(n, 8 - first);
        uint32_t bits = 0;
        for (uint32_t i = count; i--; v += step) {
            const uint32_t above = (uint32_t)(*v - low);
            __asm__("cmp %1, %2\n rrx %0, %0\n" : "+r"(bits) : "r"(range), "r"(above) : "cc");
        }
        const uint32_t own = (1u << count) - 1;
        *byte = (uint8_t)((*byte & ~(own << first)) | bits >> (32 - count) << first);
    }
}

// The first n < 4 of four bytes, zeros after them: nothing is read past them.
static uint32_t load_some(const int8_t *data, uint32_t n) {
    uint32_t word = 0;
    for (uint32_t i = n; i--;) {
        word = word << 8 | (uint8_t)data[i];
    }
    return word;
}

// Packs n elements of four pixels, `step` bytes apart.
static void pack(uint32_t *words, const int8_t *data, uint32_t step, uint32_t n) {
    const int8_t *data1 = data + step, *data2 = data1 + step, *data3 = data2 + step;
    const int8_t *end = data + (n & ~3u);
    for (; data != end; data += 4, data1 += 4, data2 += 4, data3 += 4, words += 8) {
        const uint32_t a = load(data), b = load(data1), c = load(data2), d = load(data3);
        words[0] = evens(a);
        words[1] = odds(a);
        words[2] = evens(b);
        words[3] = odds(b);
        words[4] = evens(c);
        words[5] = odds(c);
        words[6] = evens(d);
        words[7] = odds(d);
    }
    for (uint32_t p = 0; n & 3 && p < QUAD; ++p, data += step, words += 2) {
        const uint32_t some = load_some(data, n & 3);
        words[0] = evens(some);
        words[1] = odds(some);
    }
}

__attribute__((noinline)) static void copy(int8_t *restrict to, const int8_t *restrict from,
                                           uint32_t n) {
    for (; n >= 4; n -= 4, to += 4, from += 4) {
        ((any_word_t *)to)->v = load(from);
    }
    while (n--) {
        *to++ = *from++;
    }
}

__attribute__((noinline)) static void fill(int8_t *to, int8_t value, uint32_t n) {
    while (n--) {
        *to++ = value;
    }
}

// Elements from .. from + n of the window of output (oy, ox), taps outside x being its zero point.
__attribute__((noinline)) static void copy_window(const conv_t *c, int32_t oy, int32_t ox,
                                                  uint32_t from, uint32_t n, int8_t *to) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
    const uint32_t channels = (uint32_t)x->c, run = (uint32_t)(u.to - u.from) * channels;
    const uint32_t row = (uint32_t)k->kw * channels;
    const int8_t *data = (const int8_t *)x->data + at(x, v.start + v.from, u.start + u.from);
    const uint32_t end = from + n;
    if (run < row || (uint32_t)(v.to - v.from) < (uint32_t)k->kh) {
        fill(to, (int8_t)x->zero_point, n);
    }
    uint32_t start = (uint32_t)(v.from * k->kw + u.from) * channels; // of a row of taps
    for (int32_t ky = v.from; ky < v.to; ++ky, start += row, data += (uint32_t)x->w * channels) {
        const uint32_t low = start > from ? start : from, high = umin32(start + run, end);
        if (low < high) {
            copy(to + (low - from), data + (low - start), high - low);
        }
    }
}

typedef struct {
    int32_t zero;
    uint32_t outputs, size; // of a record
    int32_t (*end)[QUAD];   // of the sums
} finish_t;

// requantize; r0 multiplier, r1 shift, r8 zero
#define REQUANTIZE(v)                                                                             \
    "lsl " v ", " v ", #1\n"                                                                      \
    "smmulr " v ", " v ", r0\n"                                                                   \
    "add " v ", " v ", " v ", asr #31\n"                                                          \
    "asrs " v ", " v ", r1\n"                                                                     \
    "adc " v ", " v ", r8\n"

// Four sums of each record become values, which stay there, and y of four pixels: as requantize
// does it, or where `odd` has a bit from whole products. Records that are not is_right are left
// out.
NAKED static void requantize_quads(const uint8_t *records __attribute__((unused)),
                                   int32_t (*sum)[QUAD] __attribute__((unused)),
                                   int8_t *y __attribute__((unused)),
                                   uint32_t odd __attribute__((unused)),
                                   const finish_t *f __attribute__((unused))) {
    // r0 multiplier, r1 shift, r2 to r5 sums, r6 y, r7 records, r8 zero, r9 outputs, r10 size, r11
    // odd, r12 end, lr sum
    __asm__("push {r4-r11, lr}\n"
            "mov r7, r0\n"
            "mov lr, r1\n"
            "mov r6, r2\n"
            "mov r11, r3\n"
            "ldr r12, [sp, #36]\n"
            "ldm r12, {r8, r9, r10, r12}\n"
            "1: ldrd r0, r1, [r7, #4]\n"
            "rsb r1, r1, #0\n"
            "lsrs r11, r11, #1\n"
            "bcs 4f\n"
            "usat r1, #5, r1\n"
            "ldm lr, {r2-r5}\n");
    __asm__(REQUANTIZE("r2") REQUANTIZE("r3") REQUANTIZE("r4") REQUANTIZE("r5"));
    __asm__("2: stm lr, {r2-r5}\n"
            "ssat r5, #8, r5\n"
            "ssat r4, #8, r4\n"
            "ssat r3, #8, r3\n"
            "ssat r2, #8, r2\n"
            "add r0, r6, r9\n"
            "strb r5, [r0, r9, lsl #1]\n"
            "strb r4, [r6, r9, lsl #1]\n"
            "strb r3, [r6, r9]\n"
            "strb r2, [r6]\n"
            "3: adds r6, #1\n"
            "add r7, r7, r10\n"
            "add lr, lr, #16\n"
            "cmp lr, r12\n"
            "bne 1b\n"
            "pop {r4-r11, pc}\n"
            "4: cmp r0, #0\n"
            "blt 3b\n"
            "cmp r1, #0\n"
            "ble 3b\n"
            "usat r1, #5, r1\n"
            "movs r5, #4\n"
            "5: ldr r4, [lr]\n"
            "smull r2, r3, r4, r0\n"
            "adds r2, r2, #0x40000000\n"
            "adc r3, r3, #0\n"
            "lsls r3, r3, #1\n"
            "orr r3, r3, r2, lsr #31\n"
            "add r3, r3, r3, asr #31\n"
            "asrs r3, r1\n"
            "adc r3, r3, r8\n"
            "str r3, [lr], #4\n"
            "subs r5, #1\n"
            "bne 5b\n"
            "sub lr, lr, #16\n"
            "ldm lr, {r2-r5}\n"
            "b 2b\n");
}

// What requantization does to the sums of a block of channels: a bit of `odd` says that requantize
// does not take a channel's, one of `slow` that it is not is_right either.
typedef struct {
    uint32_t odd, slow;
} kinds_t;

// The sums of a quad, or of its first pixels, become values from element e on.
static void store_quad(const conv_t *c, const uint8_t *records, int32_t (*sum)[QUAD], uint32_t n,
                       uint32_t pixels, uint32_t e, kinds_t kinds) {
    const int32_t low = c->out.min, high = c->out.max, zero = c->y.zero_point;
    const uint32_t outputs = (uint32_t)c->y.c;
    int8_t *y = c->out.y + e;
    // With fewer pixels than four all values go where the first one's does.
    const bool few = pixels < QUAD, again = few || low != -128 || high != 127;
    if (!c->single) {
        const finish_t f = {zero, few ? 0 : outputs, c->size, sum + n};
        requantize_quads(records, sum, y, kinds.odd, &f);
    }
    uint32_t slow = kinds.slow;
    for (uint32_t i = 0; again ? i < n : slow != 0; ++i, slow >>= 1, records += c->size) {
        const record_t *r = (const record_t *)(const void *)records;
        for (uint32_t p = 0; p < pixels && (again || slow & 1); ++p) {
            int32_t v = sum[i][p];
            if (slow & 1) {
                v = add32(zero, c->single ? once(v, r->multiplier, r->shift)
                                          : mbqm(v, r->multiplier, r->shift));
                sum[i][p] = v;
            }
            y[p * outputs + i] = (int8_t)limit32(v, low, high);
        }
    }
    for (uint32_t p = 0; p < pixels && c->out.mask; ++p, e += outputs) {
        sp_store_mask(c->out.mask, e, sum[0] + p, QUAD, n, low, (uint32_t)(high - low));
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(y->h * y->w), channels = (uint32_t)x->c;
    const uint32_t row = (uint32_t)k->taps * channels, outputs = (uint32_t)y->c;
    int32_t sum[BLOCK][QUAD], start[BLOCK];
    uint32_t packed[CHUNK * 2];
    int8_t bytes[CHUNK];
    kinds_t kinds = {0};
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, c->size, i);
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : r->bias) -
                             (uint32_t)r->sum * (uint32_t)x->zero_point);
        kinds.odd |= (uint32_t)!is_plain(r, start[i], row) << i;
        kinds.slow |= (uint32_t)(c->single || !is_right(r)) << i;
    }
    const uint32_t quad = umin32(pixels, QUAD);
    // Pixels of y from row 0 on are those of x from row -top on.
    const bool direct =
        is_pointwise(k, x->w, y->w) && k->top <= 0 && y->h - k->top <= x->h && quad == QUAD;
    const int8_t *data = (const int8_t *)x->data + (direct ? at(x, -k->top, 0) : 0);
    int32_t oy = 0, ox = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += quad) {
        const uint32_t past = pixel + quad > pixels ? pixel + quad - pixels : 0;
        pixel -= past; // the last four are done again if need be
        for (ox -= (int32_t)past; ox < 0; ox += y->w) {
            --oy;
        }
        for (uint32_t i = 0; i < n; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = start[i];
        }
        for (uint32_t from = 0; from < row; from += CHUNK) {
            const uint32_t length = umin32(row - from, CHUNK);
            if (direct) {
                pack(packed, data + pixel * channels + from, channels, length);
            } else {
                int32_t ny = oy, nx = ox;
                for (uint32_t p = 0; p < QUAD; ++p) {
                    if (p < quad) {
                        copy_window(c, ny, nx, from, length, bytes);
                        fill(bytes + length, 0, 0u - length & 3);
                    }
                    if (++nx == y->w) {
                        nx = 0;
                        ++ny;
                    }
                    uint32_t *words = packed + 2 * p;
                    for (uint32_t i = 0; i < length; i += 4, words += 2 * QUAD) {
                        const uint32_t four = load(bytes + i);
                        words[0] = evens(four);
                        words[1] = odds(four);
                    }
                }
            }
            dot_quad(packed, record_at(records, c->size, 0)->weight + from, c->size, n, sum,
                     (length + 3) >> 2);
        }
        for (ox += (int32_t)quad; ox >= y->w; ox -= y->w) {
            ++oy;
        }
        store_quad(c, records, sum, n, quad, pixel * outputs + first, kinds);
    }
}

// Packs n gradients of four pixels, `step` elements apart.
static void pack_s16(uint32_t *words, const int16_t *g, uint32_t step, uint32_t n) {
    for (uint32_t p = 0; p < QUAD; ++p, g += step, words += 2) {
        uint32_t *to = words;
        uint32_t i = 0;
        for (; i + 4 <= n; i += 4, to += 2 * QUAD) {
            const uint32_t a = load(g + i), b = load(g + i + 2);
            to[0] = lower(a, b);
            to[1] = upper(a, b);
        }
        if (i < n) {
            const uint32_t g1 = i + 1 < n ? (uint16_t)g[i + 1] : 0;
            const uint32_t g2 = i + 2 < n ? (uint32_t)g[i + 2] << 16 : 0;
            to[0] = (uint16_t)g[i] | g2;
            to[1] = g1;
        }
    }
}

// Records are padded to a multiple of 4, with anything: packed gradients past the last are zeros.
uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                  uint32_t n) {
    const tensor_t *g = &c->g, *dx = &c->dx;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(dx->h * dx->w), outputs = (uint32_t)g->c;
    const uint32_t channels = (uint32_t)dx->c;
    if (!is_pointwise(k, g->w, dx->w) || k->top < 0 || dx->h + k->top > g->h || pixels < QUAD) {
        return sp_conv_input_grad_block_plain(c, records, first, n);
    }
    const int16_t *data = (const int16_t *)g->data + at(g, k->top, 0);
    int32_t sum[BLOCK][QUAD];
    uint32_t packed[CHUNK * 2];
    uint32_t seen = 0;
    const int32_t shift = c->shift;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        pixel = umin32(pixel, pixels - QUAD); // the last four are done again if need be
        for (uint32_t i = 0; i < n; ++i) {
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0;
        }
        for (uint32_t from = 0; from < outputs; from += CHUNK) {
            const uint32_t length = umin32(outputs - from, CHUNK);
            pack_s16(packed, data + pixel * outputs + from, outputs, length);
            dot_quad(packed, (const int8_t *)records + from, c->size, n, sum, (length + 3) >> 2);
        }
        int16_t *d = (int16_t *)dx->data + pixel * channels + first;
        for (const int32_t *s = sum[0], *end = sum[n]; s != end; s += QUAD, ++d) {
            int16_t *to = d;
            for (uint32_t p = 0; p < QUAD; ++p, to += channels) {
                seen |= magnitude32(s[p]);
                *to = (int16_t)shift_right(s[p], shift);
            }
        }
    }
    return seen;
}

#endif
