// Gradients of the weights of a pointwise convolution, and the steps they become.

#include "armv6m.h"
#ifdef FITS

enum { PIXELS = 64 };

typedef struct {
    int32_t g;
    const int8_t *x;
} pixel_t;

// sum[i] += pixel.g * pixel.x[i] over the pixels up to `end`, for n > 0 elements, a multiple of
// four; 22 cycles for 4 products.
NAKED static void add_products(const pixel_t *pixel, const pixel_t *end, uint32_t n,
                               int32_t *sum) {
    // r0 g, r1 x, r3 to r6 element numbers, r7 pixel; r8 to r11 sums, r12 end, lr sum
    __asm__(SAVE);
    __asm__("push {r0, r2}\n"
            "mov r12, r1\n"
            "mov lr, r3\n"
            "movs r3, #0\n"
            "movs r4, #1\n"
            "movs r5, #2\n"
            "movs r6, #3\n"
            "1: mov r7, lr\n"
            "ldmia r7!, {r0, r1, r2}\n"
            "mov r8, r0\n"
            "mov r9, r1\n"
            "mov r10, r2\n"
            "ldr r0, [r7]\n"
            "mov r11, r0\n"
            "ldr r7, [sp]\n"
            "2: ldmia r7!, {r0, r1}\n"
            "ldrsb r2, [r1, r3]\n"
            "muls r2, r0, r2\n"
            "add r8, r2\n"
            "ldrsb r2, [r1, r4]\n"
            "muls r2, r0, r2\n"
            "add r9, r2\n"
            "ldrsb r2, [r1, r5]\n"
            "muls r2, r0, r2\n"
            "add r10, r2\n"
            "ldrsb r2, [r1, r6]\n"
            "muls r2, r0, r2\n"
            "add r11, r2\n"
            "cmp r7, r12\n"
            "bne 2b\n"
            "mov r7, lr\n"
            "mov r0, r8\n"
            "mov r1, r9\n"
            "mov r2, r10\n"
            "stmia r7!, {r0, r1, r2}\n"
            "mov r0, r11\n"
            "stmia r7!, {r0}\n"
            "mov lr, r7\n"
            "adds r3, #4\n"
            "adds r4, #4\n"
            "adds r5, #4\n"
            "adds r6, #4\n"
            "ldr r0, [sp, #4]\n"
            "cmp r3, r0\n"
            "bne 1b\n"
            "add sp, #8\n");
    __asm__(RESTORE);
}

static void add_all(const pixel_t *pixel, const pixel_t *end, uint32_t n, int32_t *sum) {
    const uint32_t fours = n & ~3u;
    if (fours && pixel != end) {
        add_products(pixel, end, fours, sum);
    }
    for (; pixel != end; ++pixel) {
        for (uint32_t i = fours; i < n; ++i) {
            sum[i] = add32(sum[i], pixel->g * pixel->x[i]);
        }
    }
}

// Pixels without a gradient are left out. The zero point goes in at once for all of them.
__attribute__((noinline)) static void pointwise_gradient(const tensor_t *g, const tensor_t *x,
                                                         uint32_t o, const int8_t *data,
                                                         uint32_t n, int32_t *sum) {
    pixel_t pixel[PIXELS];
    uint32_t total = 0;
    const uint32_t step_g = (uint32_t)g->c, step_x = (uint32_t)x->c;
    const int16_t *q = (const int16_t *)g->data + o;
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = 0;
    }
    for (uint32_t left = (uint32_t)(g->h * g->w), some; left; left -= some) {
        pixel_t *end = pixel;
        some = umin32(left, PIXELS);
        for (uint32_t i = some; i--; q += step_g, data += step_x) {
            const int32_t value = *q;
            if (value) {
                *end++ = (pixel_t){value, data};
                total += (uint32_t)value;
            }
        }
        add_all(pixel, end, n, sum);
    }
    const uint32_t zero = total * (uint32_t)x->zero_point;
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = (int32_t)((uint32_t)sum[i] - zero);
    }
}

void sp_weight_gradient(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                        uint32_t first, uint32_t n, int32_t *sum) {
    if (k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->top == 0 && k->left == 0 &&
        g->h == x->h && g->w == x->w) {
        pointwise_gradient(g, x, o, (const int8_t *)x->data + first, n, sum);
    } else {
        sp_weight_gradient_plain(g, x, k, o, first, n, sum);
    }
}

// v[i] = (v[i] * factor) >> shift, limited, for n > 0 values and 2 <= shift < 96; about 37 cycles.
NAKED static void scale_down(int32_t *v, uint32_t n, int32_t factor, int32_t shift) {
    // r4, r5 halves of the factor, r6 v; r8 factor, r9 shift, r10 32 - shift, r11 shift - 2, r12
    // limit, lr end
    __asm__(SAVE);
    __asm__("lsls r7, r1, #2\n"
            "adds r7, r7, r0\n"
            "mov lr, r7\n"
            "mov r6, r0\n"
            "mov r8, r2\n"
            "uxth r4, r2\n"
            "asrs r5, r2, #16\n"
            "mov r9, r3\n"
            "movs r7, #32\n"
            "subs r7, r7, r3\n"
            "mov r10, r7\n"
            "subs r3, #2\n"
            "mov r11, r3\n"
            "movs r7, #1\n"
            "lsls r7, r7, #30\n"
            "mov r12, r7\n"
            "1: ldr r0, [r6]\n"
            "mov r7, r8\n"
            "muls r7, r0, r7\n" // the lower half of the product
            "uxth r1, r0\n"
            "asrs r0, r0, #16\n"
            "mov r2, r1\n"
            "muls r2, r4, r2\n"
            "lsrs r2, r2, #16\n"
            "mov r3, r0\n"
            "muls r3, r4, r3\n"
            "adds r2, r2, r3\n"
            "uxth r3, r2\n"
            "asrs r2, r2, #16\n"
            "muls r0, r5, r0\n"
            "adds r2, r2, r0\n"
            "muls r1, r5, r1\n"
            "adds r1, r1, r3\n"
            "asrs r1, r1, #16\n"
            "adds r2, r2, r1\n" // the upper half
            "asrs r3, r2, #31\n"
            "mov r1, r10\n"
            "cmp r1, #0\n"
            "ble 3f\n"
            "mov r0, r11\n"
            "mov r1, r2\n"
            "asrs r1, r0\n"
            "cmp r1, r3\n"
            "bne 4f\n"
            "mov r0, r9\n"
            "lsrs r7, r0\n"
            "mov r0, r10\n"
            "lsls r2, r0\n"
            "orrs r2, r7\n"
            "2: stmia r6!, {r2}\n"
            "cmp r6, lr\n"
            "bne 1b\n");
    __asm__(RESTORE);
    __asm__("3: rsbs r1, r1, #0\n"
            "asrs r2, r1\n"
            "b 2b\n"
            "4: mov r2, r12\n"
            "eors r2, r3\n"
            "subs r2, r2, r3\n"
            "b 2b\n");
}

// A factor of 18 x 12 bits cannot bring the upper half of a product to STEP_LIMIT.
void sp_steps(int32_t *v, uint32_t n, int32_t factor, int32_t shift) {
    if (shift >= 2 && n) {
        scale_down(v, n, factor, min32(shift, 63));
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = step_of(v[i], factor, shift);
    }
}

#endif
