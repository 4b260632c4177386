// Convolution on a core that multiplies 32 bits in a cycle and takes two cycles for a load.
//
// Four pixels go together as two words a channel, each with two of them: -(x0 + x1 * 2**16). One
// multiplication by a weight gives two products. Each half of a sum of two such words keeps within
// [-32512, 32512] unless both weights are -128, so the upper half can be taken from it exactly: it
// is the word shifted down, and 1 more where the lower half was negative, which is what the shift
// leaves in the carry. H gathers the upper halves, T whole words modulo 2**32; in the end the
// lower halves are T - H * 2**16. That makes 6 cycles for 4 products, 2.9 a product with the
// loads.
//
// Where two weights of -128 meet, half of the words are zero and everything is done twice.

#include "armv6m.h"
#ifdef FITS

enum { QUAD = 4, CHUNK = 48 }; // pixels, elements of a row of weights

// Puts n elements of pixels a and b into out[0], out[1], out[4], out[5], ...; n is even.
NAKED static void pack_pair(uint32_t *out, const int8_t *a, const int8_t *b, uint32_t n) {
    __asm__("push {r4-r7, lr}\n"
            "movs r4, #0\n"
            "cmp r3, r4\n"
            "beq 2f\n"
            "1: ldrsb r5, [r1, r4]\n"
            "ldrsb r6, [r2, r4]\n"
            "adds r4, #1\n"
            "lsls r6, r6, #16\n"
            "adds r5, r5, r6\n"
            "rsbs r5, r5, #0\n"
            "ldrsb r6, [r1, r4]\n"
            "ldrsb r7, [r2, r4]\n"
            "adds r4, #1\n"
            "lsls r7, r7, #16\n"
            "adds r6, r6, r7\n"
            "rsbs r6, r6, #0\n"
            "stmia r0!, {r5, r6}\n"
            "adds r0, #8\n"
            "cmp r4, r3\n"
            "blo 1b\n"
            "2: pop {r4-r7, pc}\n");
}

#define LEAST(word)                                                                               \
    "eors " word ", r4\n"                                                                         \
    "subs r7, " word ", r5\n"                                                                     \
    "bics r7, " word "\n"                                                                         \
    "orrs r6, r7\n"

// Whether any of n >= 4 words has a half of 0x8080.
NAKED static bool find_least(const void *words, uint32_t n) {
    // A half is zero if subtracting 1 sets a sign that was not there. r4 0x8080 twice, r5 1 twice,
    // r6 the signs, r12 the last four words
    __asm__("push {r4-r7, lr}\n"
            "lsls r1, r1, #2\n"
            "adds r1, r1, r0\n"
            "subs r1, #16\n"
            "mov r12, r1\n"
            "movs r4, #128\n"
            "lsls r5, r4, #8\n"
            "orrs r4, r5\n"
            "lsls r5, r4, #16\n"
            "orrs r4, r5\n"
            "movs r5, #1\n"
            "lsls r6, r5, #16\n"
            "orrs r5, r6\n"
            "movs r6, #0\n"
            "1: cmp r0, r12\n"
            "bls 2f\n"
            "mov r0, r12\n"
            "2: ldmia r0!, {r1, r2, r3}\n");
    __asm__(LEAST("r1") LEAST("r2") LEAST("r3"));
    __asm__("ldmia r0!, {r1}\n");
    __asm__(LEAST("r1"));
    __asm__("mov r1, r12\n"
            "adds r1, #16\n"
            "cmp r0, r1\n"
            "bne 1b\n"
            "lsls r0, r5, #15\n" // 0x80008000
            "ands r0, r6\n"
            "subs r1, r0, #1\n"
            "sbcs r0, r1\n"
            "pop {r4-r7, pc}\n");
}

// Two more channels: their weights at `offset` of r7 times two words of either pair of pixels.
#define TWO(offset)                                                                               \
    "ldrh r3, [r7, #" #offset "]\n"                                                               \
    "sxtb r2, r3\n"                                                                               \
    "sxth r3, r3\n"                                                                               \
    "asrs r3, r3, #8\n"                                                                           \
    "ldmia r6!, {r0, r1}\n"                                                                       \
    "muls r0, r2, r0\n"                                                                           \
    "muls r1, r3, r1\n"                                                                           \
    "adds r0, r0, r1\n"                                                                           \
    "add r8, r0\n"                                                                                \
    "asrs r0, r0, #16\n"                                                                          \
    "adcs r4, r0\n"                                                                               \
    "ldmia r6!, {r0, r1}\n"                                                                       \
    "muls r0, r2, r0\n"                                                                           \
    "muls r1, r3, r1\n"                                                                           \
    "adds r0, r0, r1\n"                                                                           \
    "add r9, r0\n"                                                                                \
    "asrs r0, r0, #16\n"                                                                          \
    "adcs r5, r0\n"

// sum[r] += the quad's packed [4 * fours] . w[r], for n_rows rows of weights that start at
// multiples of 4.
NAKED static void dot_quad(const uint32_t *packed, const int8_t *w, uint32_t stride,
                           uint32_t n_rows, int32_t (*sum)[QUAD], uint32_t fours) {
    // r4, r5 H; r6 packed, r7 weights; r8, r9 T; r10 end of packed, r11 row, r12 sum, lr its end
    __asm__(SAVE);
    __asm__("ldr r4, [sp, #36]\n"
            "mov r12, r4\n"
            "lsls r3, r3, #4\n"
            "adds r3, r3, r4\n"
            "mov lr, r3\n"
            "ldr r4, [sp, #40]\n"
            "lsls r5, r4, #5\n"
            "adds r5, r5, r0\n"
            "mov r10, r5\n"
            "movs r3, #1\n" // an odd number of fours starts in the middle of the loop
            "ands r3, r4\n"
            "lsls r4, r3, #2\n"
            "subs r1, r1, r4\n"
            "mov r11, r1\n"
            "push {r0, r2, r3}\n"
            "1: ldr r6, [sp]\n"
            "mov r7, r11\n"
            "movs r4, #0\n"
            "movs r5, #0\n"
            "mov r8, r4\n"
            "mov r9, r4\n"
            "ldr r0, [sp, #8]\n"
            "cmp r0, #0\n"
            "bne 3f\n"
            "2:\n");
    __asm__(TWO(0) TWO(2));
    __asm__("3:\n");
    __asm__(TWO(4) TWO(6));
    __asm__("adds r7, #8\n"
            "cmp r6, r10\n"
            "bne 2b\n"
            "mov r6, r12\n"
            "ldmia r6!, {r0, r1, r2, r3}\n"
            "mov r7, r8\n"
            "subs r0, r0, r7\n"
            "lsls r7, r4, #16\n"
            "adds r0, r0, r7\n"
            "subs r1, r1, r4\n"
            "mov r7, r9\n"
            "subs r2, r2, r7\n"
            "lsls r7, r5, #16\n"
            "adds r2, r2, r7\n"
            "subs r3, r3, r5\n"
            "mov r6, r12\n"
            "stmia r6!, {r0, r1, r2, r3}\n"
            "mov r12, r6\n"
            "ldr r0, [sp, #4]\n"
            "add r11, r0\n"
            "cmp r12, lr\n"
            "bne 1b\n"
            "add sp, #12\n");
    __asm__(RESTORE);
}

// Words 0 to 8 * n, n > 0
NAKED static void clear(uint32_t *words, uint32_t n) {
    __asm__("push {r4, lr}\n"
            "movs r2, #0\n"
            "movs r3, #0\n"
            "movs r4, #0\n"
            "1: stmia r0!, {r2, r3, r4}\n"
            "stmia r0!, {r2, r3, r4}\n"
            "stmia r0!, {r2, r3}\n"
            "subs r1, #1\n"
            "bne 1b\n"
            "pop {r4, pc}\n");
}

// The words of elements of a pair of pixels, a and b, for n > 0 words from the first one on, `gap`
// bytes (4 or 12, in turn) from one to the next.
NAKED static void pack_run(uint32_t *words, const int8_t *a, const int8_t *b, uint32_t n,
                           uint32_t gap) {
    __asm__("push {r4-r7, lr}\n"
            "ldr r5, [sp, #20]\n"
            "mov r12, r3\n"
            "movs r4, #0\n"
            "1: ldrsb r6, [r1, r4]\n"
            "ldrsb r7, [r2, r4]\n"
            "lsls r7, r7, #16\n"
            "adds r6, r6, r7\n"
            "rsbs r6, r6, #0\n"
            "str r6, [r0]\n"
            "adds r0, r0, r5\n"
            "movs r7, #8\n"
            "eors r5, r7\n"
            "adds r4, #1\n"
            "cmp r4, r12\n"
            "bne 1b\n"
            "pop {r4-r7, pc}\n");
}

// Words of elements i to end of four pixels, `step` bytes apart.
static void pack_runs(uint32_t *words, const int8_t *data, uint32_t step, uint32_t i,
                      uint32_t end) {
    words += (i >> 1) * 4 + (i & 1);
    for (uint32_t p = 0; p < QUAD; p += 2, data += 2 * step) {
        pack_run(words + p, data, data + step, end - i, i & 1 ? 12 : 4);
    }
}

// The same for elements 0 to n; this is faster.
static void pack(uint32_t *words, const int8_t *data, uint32_t step, uint32_t n) {
    const uint32_t even = n & ~1u;
    pack_pair(words, data, data + step, even);
    pack_pair(words + 2, data + 2 * step, data + 3 * step, even);
    if (even < n) {
        pack_runs(words, data + even, step, even, n);
    }
}

// Elements i to end of one pixel, data[0], data[step], ..., into zeros or the other halves.
static void put(uint32_t *words, const int8_t *data, uint32_t step, uint32_t i, uint32_t end,
                uint32_t shift) {
    words += (i >> 1) * 4 + (i & 1);
    for (; i < end; ++i, data += step) {
        *words -= (uint32_t)*data << shift;
        words += i & 1 ? 3 : 1;
    }
}

// Elements from .. from + n of the window of output (oy, ox), taps outside x being its zero point.
// With `step` they are those of four windows, `step` bytes apart and nowhere outside.
__attribute__((noinline)) static void pack_window(const conv_t *c, int32_t oy, int32_t ox,
                                                  uint32_t from, uint32_t n, uint32_t *words,
                                                  uint32_t shift, uint32_t step) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
    const uint32_t channels = (uint32_t)x->c, run = (uint32_t)(u.to - u.from) * channels;
    const int8_t zero = (int8_t)x->zero_point;
    uint32_t done = 0;
    for (int32_t ky = v.from; ky < v.to; ++ky) {
        const int8_t *data = (const int8_t *)x->data + at(x, v.start + ky, u.start + u.from);
        const uint32_t start = (uint32_t)(ky * k->kw + u.from) * channels;
        const uint32_t low = start > from ? start : from;
        const uint32_t high = umin32(start + run, from + n);
        if (low >= high) {
            continue;
        }
        if (step) {
            pack_runs(words, data + (low - start), step, low - from, high - from);
        } else {
            put(words, &zero, 0, done, low - from, shift);
            put(words, data + (low - start), 1, low - from, high - from, shift);
        }
        done = high - from;
    }
    put(words, &zero, 0, done, n, shift);
}

static bool is_inside(const conv_t *c, int32_t oy, int32_t ox) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const int32_t y = oy * k->stride_h - k->top, left = ox * k->stride_w - k->left;
    const int32_t last = left + (QUAD - 1) * k->stride_w;
    return ox + QUAD <= c->y.w && y >= 0 && y + k->kh <= x->h && left >= 0 && last + k->kw <= x->w;
}

// Sums that sp_requantize_sums does not take.
__attribute__((noinline)) static void store_slowly(const conv_t *c, const uint8_t *records,
                                                   const int32_t *sum, uint32_t n, uint32_t pixels,
                                                   uint32_t e) {
    for (uint32_t p = 0; p < pixels; ++p, e += (uint32_t)c->y.c) {
        for (uint32_t i = 0; i < n; ++i) {
            const record_t *r = record_at(records, c->size, i);
            const int32_t s = sum[i * pixels + p];
            const int32_t v =
                c->single ? once(s, r->multiplier, r->shift) : mbqm(s, r->multiplier, r->shift);
            const int32_t value = add32(v, c->y.zero_point);
            sp_store(&c->out, &value, 1, e + i);
        }
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
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, c->size, i);
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : r->bias) -
                             (uint32_t)r->sum * (uint32_t)x->zero_point);
    }
    const uint32_t quad = umin32(pixels, QUAD);
    const bool direct = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && x->h == y->h && x->w == y->w && quad == QUAD;
    const bool fast = !c->single && sp_requantizes(records, c->size, n);
    const uint32_t twice = find_least(records, n * (c->size >> 2));
    requantize_t r = {outputs,
                      y->zero_point - c->out.min,
                      c->out.max - c->out.min,
                      c->out.min,
                      records,
                      records + n * c->size,
                      1 - quad * outputs,
                      c->size,
                      quad * (uint32_t)sizeof(int32_t)};
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
        for (uint32_t from = 0, odd = 0; from < row; odd ^= twice, from += odd ? 0 : CHUNK) {
            const uint32_t length = umin32(row - from, CHUNK);
            const uint32_t fours = (length + 3) >> 2;
            if (!direct || length & 3) {
                clear(packed, fours);
            }
            if (direct) {
                pack(packed, (const int8_t *)x->data + pixel * channels + from, channels, length);
            } else if (is_inside(c, oy, ox)) {
                pack_window(c, oy, ox, from, length, packed, 0, (uint32_t)k->stride_w * channels);
            } else {
                int32_t ny = oy, nx = ox;
                for (uint32_t p = 0; p < QUAD; ++p) {
                    pack_window(c, ny, nx, from, length, packed + (p & 2), p << 4 & 16, 0);
                    if (p + 1 < quad && ++nx == y->w) {
                        nx = 0;
                        ++ny;
                    }
                }
            }
            for (uint32_t i = odd; twice && i < 2 * CHUNK; i += 2) {
                packed[i] = 0;
            }
            dot_quad(packed, record_at(records, c->size, 0)->weight + from, c->size, n, sum,
                     fours);
        }
        for (ox += (int32_t)quad; ox >= y->w; ox -= y->w) {
            ++oy;
        }
        const uint32_t e = pixel * outputs + first;
        r.record = records;
        for (uint32_t i = 0; quad < QUAD && i < n; ++i) { // those that count side by side
            for (uint32_t p = 0; p < quad; ++p) {
                sum[0][i * quad + p] = sum[i][p];
            }
        }
        if (!fast) {
            store_slowly(c, records, sum[0], n, quad, e);
        } else if (!c->out.mask) {
            sp_requantize_sums(sum[0], c->out.y + e, &r);
        } else {
            sp_requantize_kept(sum[0], c->out.y + e, &r);
            for (uint32_t p = 0; p < quad; ++p) {
                sp_store_mask(c->out.mask, e + p * outputs, sum[0] + p, quad, n,
                              (uint32_t)r.range);
            }
        }
    }
}

#endif
