// Convolution on a core that multiplies 32 bits in a cycle and takes two cycles for a load.
//
// Four pixels go together as two words a channel, each with two of them: -(x0 + x1 * 2**16). One
// multiplication by a weight gives two products. A sum of two such products keeps its lower half
// within [-32768, 32512] for all int8 values (it is for this that x is negated: 2 * -128 * -128
// would not fit), so the upper half can be taken from it exactly: it is the word shifted down, and
// 1 more where the lower half was negative, which is what the shift leaves in the carry. H gathers
// the upper halves, T whole words modulo 2**32; in the end the lower halves are T - H * 2**16.
// That makes 6 cycles for 4 products, 2.9 a product with the loads.

#include "armv6m.h"

enum { QUAD = 4, CHUNK = 64 }; // pixels, elements of a row of weights

// Puts n elements of pixels a and b into out[0], out[1], out[4], out[5], ...; n is even.
NAKED static void pack_pair(uint32_t *out __attribute__((unused)),
                            const int8_t *a __attribute__((unused)),
                            const int8_t *b __attribute__((unused)),
                            uint32_t n __attribute__((unused))) {
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
NAKED static void
dot_quad(const uint32_t *packed __attribute__((unused)), const int8_t *w __attribute__((unused)),
         uint32_t stride __attribute__((unused)), uint32_t n_rows __attribute__((unused)),
         int32_t (*sum)[QUAD] __attribute__((unused)), uint32_t fours __attribute__((unused))) {
    // r4, r5 H; r6 packed, r7 weights; r8, r9 T; r10 end of packed, r11 row, r12 sum, lr rows left
    __asm__(SAVE "ldr r4, [sp, #36]\n"
                 "mov r12, r4\n"
                 "mov r11, r1\n"
                 "mov lr, r3\n"
                 "ldr r4, [sp, #40]\n"
                 "lsls r5, r4, #5\n"
                 "adds r5, r5, r0\n"
                 "mov r10, r5\n"
                 "lsls r1, r4, #31\n" // an odd number of fours starts in the middle of the loop
                 "push {r0, r1, r2}\n"
                 "1: ldr r6, [sp]\n"
                 "mov r7, r11\n"
                 "movs r4, #0\n"
                 "movs r5, #0\n"
                 "mov r8, r4\n"
                 "mov r9, r4\n"
                 "ldr r0, [sp, #4]\n"
                 "cmp r0, #0\n"
                 "beq 2f\n"
                 "subs r7, #4\n"
                 "b 3f\n"
                 "2:\n" TWO(0) TWO(2) "3:\n" TWO(4) TWO(6) "adds r7, #8\n"
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
                                                           "ldr r0, [sp, #8]\n"
                                                           "add r11, r0\n"
                                                           "mov r0, lr\n"
                                                           "subs r0, #1\n"
                                                           "mov lr, r0\n"
                                                           "bne 1b\n"
                                                           "add sp, #12\n" RESTORE);
}

// Elements from .. from + n of the window of output (oy, ox), taps outside x being its zero point.
__attribute__((noinline)) static void gather(const conv_t *c, int32_t oy, int32_t ox,
                                             uint32_t from, uint32_t n, int8_t *to) {
    const tensor_t *x = &c->x;
    const window_t *k = &c->k;
    const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
    const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
    const uint32_t channels = (uint32_t)x->c, run = (uint32_t)(u.to - u.from) * channels;
    if ((v.to - v.from) * (u.to - u.from) < k->taps) {
        sp_fill(to, (uint8_t)x->zero_point, n);
    }
    for (int32_t ky = v.from; ky < v.to && run; ++ky) {
        const int8_t *data = (const int8_t *)x->data + at(x, v.start + ky, u.start + u.from);
        const uint32_t start = (uint32_t)(ky * k->kw + u.from) * channels;
        const uint32_t low = start > from ? start : from;
        const uint32_t high = umin32(start + run, from + n);
        for (uint32_t i = low; i < high; ++i) {
            to[i - from] = data[i - start];
        }
    }
}

// The words of one pair of pixels: whole fours of channels, the last ones with zeros.
static void pack(uint32_t *out, const int8_t *a, const int8_t *b, uint32_t n) {
    pack_pair(out, a, b, n & ~1u);
    for (uint32_t i = n & ~1u; i & 3 || i < n; ++i) {
        out[(i >> 1) * 4 + (i & 1)] = i < n ? 0u - (uint32_t)a[i] - ((uint32_t)b[i] << 16) : 0;
    }
}

// Sums that sp_requantize_sums does not take.
__attribute__((noinline)) static void store_slowly(const conv_t *c, const uint8_t *records,
                                                   int32_t (*sum)[QUAD], uint32_t n, uint32_t e) {
    for (uint32_t p = 0; p < QUAD; ++p, e += (uint32_t)c->y.c) {
        for (uint32_t i = 0; i < n; ++i) {
            const record_t *r = record_at(records, c->size, i);
            const int32_t s = sum[i][p];
            const int32_t v =
                c->single ? once(s, r->multiplier, r->shift) : mbqm(s, r->multiplier, r->shift);
            const int32_t value = add32(v, c->y.zero_point);
            sp_store(&c->out, &value, 1, e + i);
        }
    }
}

__attribute__((noinline)) static void conv_quads(const conv_t *c, const uint8_t *records,
                                                 const int32_t *bias, uint32_t first, uint32_t n) {
    const tensor_t *x = &c->x, *y = &c->y;
    const window_t *k = &c->k;
    const uint32_t pixels = (uint32_t)(y->h * y->w), channels = (uint32_t)x->c;
    const uint32_t row = (uint32_t)k->taps * channels, outputs = (uint32_t)y->c;
    int32_t sum[BLOCK][QUAD], start[BLOCK];
    uint32_t packed[CHUNK * 2];
    int8_t window[2][CHUNK];
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, c->size, i);
        start[i] = (int32_t)((uint32_t)(bias ? bias[i] : r->bias) -
                             (uint32_t)r->sum * (uint32_t)x->zero_point);
    }
    const bool direct = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                        k->left == 0 && x->h == y->h && x->w == y->w;
    const bool fast = !c->single && sp_requantizes(records, c->size, n);
    requantize_t r = {NULL,
                      records + n * c->size,
                      c->size,
                      QUAD * sizeof(int32_t),
                      1 - QUAD * outputs,
                      outputs,
                      y->zero_point - c->out.min,
                      c->out.max - c->out.min,
                      c->out.min};
    int32_t oy = 0, ox = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        const uint32_t past = pixel + QUAD > pixels ? pixel + QUAD - pixels : 0;
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
                const int8_t *data = (const int8_t *)x->data + pixel * channels + from;
                pack(packed, data, data + channels, length);
                pack(packed + 2, data + 2 * channels, data + 3 * channels, length);
            } else {
                int32_t ny = oy, nx = ox;
                for (uint32_t p = 0; p < QUAD; ++p) {
                    gather(c, ny, nx, from, length, window[p & 1]);
                    if (++nx == y->w) {
                        nx = 0;
                        ++ny;
                    }
                    if (p & 1) {
                        pack(packed + p - 1, window[0], window[1], length);
                    }
                }
            }
            dot_quad(packed, record_at(records, c->size, 0)->weight + from, c->size, n, sum,
                     (length + 3) >> 2);
        }
        for (ox += QUAD; ox >= y->w; ox -= y->w) {
            ++oy;
        }
        const uint32_t e = pixel * outputs + first;
        r.record = records;
        if (!fast) {
            store_slowly(c, records, sum, n, e);
        } else if (!c->out.mask) {
            sp_requantize_sums(sum[0], c->out.y + e, &r);
        } else {
            sp_requantize_kept(sum[0], c->out.y + e, &r);
            for (uint32_t p = 0; p < QUAD; ++p) {
                sp_store_mask(c->out.mask, e + p * outputs, sum[0] + p, QUAD, n,
                              (uint32_t)r.range);
            }
        }
    }
}

void sp_conv_block(const conv_t *c, const uint8_t *records, const int32_t *bias, uint32_t first,
                   uint32_t n) {
    if (c->y.h * c->y.w >= QUAD) {
        conv_quads(c, records, bias, first, n);
    } else {
        sp_conv_block_plain(c, records, bias, first, n);
    }
}
