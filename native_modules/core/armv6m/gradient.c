// Gradient of the input of a pointwise convolution, four pixels at a time. Gradients have 16 bits,
// so there is one product to a multiplication; a weight is loaded once for the four of them, whose
// words one instruction loads: 31 cycles for 8 products.

#include "armv6m.h"
#ifdef FITS

enum { QUAD = 4, CHUNK = 48 }; // pixels, elements of a row of weights

// out[4 * i + p] = g[p * step / 2 + i] for n > 0 elements of the four pixels
NAKED static void pack_quad(int32_t *out, const int16_t *g, uint32_t step, uint32_t n) {
    __asm__("push {r4-r7, lr}\n"
            "adds r4, r1, r2\n" // r1, r4, r5, r2: the pixels
            "adds r5, r4, r2\n"
            "adds r2, r5, r2\n"
            "lsls r3, r3, #1\n"
            "mov r12, r3\n"
            "movs r3, #0\n"
            "1: ldrsh r6, [r1, r3]\n"
            "ldrsh r7, [r4, r3]\n"
            "stmia r0!, {r6, r7}\n"
            "ldrsh r6, [r5, r3]\n"
            "ldrsh r7, [r2, r3]\n"
            "stmia r0!, {r6, r7}\n"
            "adds r3, #2\n"
            "cmp r3, r12\n"
            "bne 1b\n"
            "pop {r4-r7, pc}\n");
}

#define TWO(offset)                                                                               \
    "ldrh r5, [r7, #" #offset "]\n"                                                               \
    "sxtb r4, r5\n"                                                                               \
    "sxth r5, r5\n"                                                                               \
    "asrs r5, r5, #8\n" ONE("r4") ONE("r5")
#define ONE(weight)                                                                               \
    "ldmia r6!, {r0, r1, r2, r3}\n"                                                               \
    "muls r0, " weight ", r0\n"                                                                   \
    "add r8, r0\n"                                                                                \
    "muls r1, " weight ", r1\n"                                                                   \
    "add r9, r1\n"                                                                                \
    "muls r2, " weight ", r2\n"                                                                   \
    "add r10, r2\n"                                                                               \
    "muls r3, " weight ", r3\n"                                                                   \
    "add r11, r3\n"

// sum[r] += packed [4 * fours] . w[r], for n_rows rows of weights that start at multiples of 4.
NAKED static void dot_quad_s16(const int32_t *packed, const int8_t *w, uint32_t stride,
                               uint32_t n_rows, int32_t (*sum)[QUAD], uint32_t fours) {
    // r6 packed, r7 weights; r8 to r11 sums, r12 end of packed, lr row
    __asm__(SAVE);
    __asm__("ldr r6, [sp, #40]\n"
            "lsls r6, r6, #6\n"
            "adds r6, r6, r0\n"
            "mov r12, r6\n"
            "ldr r4, [sp, #40]\n"
            "lsls r4, r4, #31\n" // an odd number of fours starts in the middle of the loop
            "lsrs r4, r4, #29\n"
            "subs r1, r1, r4\n"
            "mov lr, r1\n"
            "push {r0, r2, r3}\n"
            "1: ldr r6, [sp, #48]\n"
            "ldmia r6!, {r0, r1, r2, r3}\n"
            "mov r8, r0\n"
            "mov r9, r1\n"
            "mov r10, r2\n"
            "mov r11, r3\n"
            "ldr r6, [sp]\n"
            "mov r7, lr\n"
            "ldr r4, [sp, #52]\n"
            "lsrs r4, r4, #1\n"
            "bcs 3f\n"
            "2:\n");
    __asm__(TWO(0) TWO(2));
    __asm__("3:\n");
    __asm__(TWO(4) TWO(6));
    __asm__("adds r7, #8\n"
            "cmp r6, r12\n"
            "bne 2b\n"
            "mov r0, r8\n"
            "mov r1, r9\n"
            "mov r2, r10\n"
            "mov r3, r11\n"
            "ldr r6, [sp, #48]\n"
            "stmia r6!, {r0, r1, r2, r3}\n"
            "str r6, [sp, #48]\n"
            "ldr r0, [sp, #4]\n"
            "add lr, r0\n"
            "ldr r0, [sp, #8]\n"
            "subs r0, #1\n"
            "str r0, [sp, #8]\n"
            "bne 1b\n"
            "add sp, #12\n");
    __asm__(RESTORE);
}

__attribute__((noinline)) static uint32_t grad_quads(const conv_grad_t *c, const uint8_t *records,
                                                     uint32_t first, uint32_t n) {
    const uint32_t pixels = (uint32_t)(c->dx.h * c->dx.w), row = (uint32_t)c->g.c;
    const uint32_t channels = (uint32_t)c->dx.c;
    const int32_t shift = c->shift;
    int32_t sum[BLOCK][QUAD], packed[CHUNK * QUAD];
    uint32_t seen = 0;
    for (uint32_t pixel = 0; pixel < pixels; pixel += QUAD) {
        pixel = umin32(pixel, pixels - QUAD); // the last four are done again if need be
        sp_fill(sum, 0, n * (uint32_t)sizeof sum[0]);
        for (uint32_t from = 0; from < row; from += CHUNK) {
            const uint32_t length = umin32(row - from, CHUNK), fours = (length + 3) >> 2;
            pack_quad(packed, (const int16_t *)c->g.data + pixel * row + from, 2 * row, length);
            for (uint32_t i = length * QUAD; i < fours * 4 * QUAD; ++i) {
                packed[i] = 0;
            }
            dot_quad_s16(packed, (const int8_t *)records + from, c->size, n, sum, fours);
        }
        int16_t *d = (int16_t *)c->dx.data + pixel * channels + first;
        for (uint32_t p = 0; p < QUAD; ++p, d += channels) {
            for (uint32_t i = 0; i < n; ++i) {
                seen |= magnitude32(sum[i][p]);
                d[i] = (int16_t)rshift32(sum[i][p], shift);
            }
        }
    }
    return seen;
}

uint32_t sp_conv_input_grad_block(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                  uint32_t n) {
    const window_t *k = &c->k;
    const bool pointwise = k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 &&
                           k->left == 0 && c->g.h == c->dx.h && c->g.w == c->dx.w;
    return pointwise && c->dx.h * c->dx.w >= QUAD
               ? grad_quads(c, records, first, n)
               : sp_conv_input_grad_block_plain(c, records, first, n);
}

#endif
