// From sums to int8 values: 33 cycles each and 3 for the loop, exact for all operands.
//
// A product of 32 x 32 bits takes four multiplications of halves, of which only what reaches the
// upper 33 bits is kept. Shifts leave the last bit they drop in the carry, so rounding to nearest
// is one addition with carry; halves go away from zero if 1 is subtracted from a negative number
// first. The zero point is added along with that carry.

#include "armv6m.h"
#ifdef FITS

// r2 = (r0 * (r5 << 16 | r4) + 2**30) >> 31; r0, r1 and r3 are lost.
#define HIGH_MUL                                                                                  \
    "uxth r1, r0\n"                                                                               \
    "asrs r0, r0, #16\n"                                                                          \
    "mov r2, r1\n"                                                                                \
    "muls r2, r4, r2\n"                                                                           \
    "lsrs r2, r2, #16\n"                                                                          \
    "mov r3, r0\n"                                                                                \
    "muls r3, r4, r3\n"                                                                           \
    "adds r2, r2, r3\n"                                                                           \
    "uxth r3, r2\n"                                                                               \
    "asrs r2, r2, #16\n"                                                                          \
    "muls r0, r5, r0\n"                                                                           \
    "adds r2, r2, r0\n"                                                                           \
    "adds r2, r2, r2\n"                                                                           \
    "muls r1, r5, r1\n"                                                                           \
    "adds r1, r1, r3\n"                                                                           \
    "asrs r1, r1, #15\n"                                                                          \
    "adcs r2, r1\n"

NAKED int64_t sp_mul64(int32_t a, int32_t b) {
    __asm__("push {r4, lr}\n"
            "uxth r2, r1\n"
            "asrs r3, r1, #16\n"
            "muls r1, r0, r1\n"
            "mov r12, r1\n" // the lower half
            "uxth r1, r0\n"
            "asrs r0, r0, #16\n"
            "mov r4, r1\n"
            "muls r4, r2, r4\n"
            "lsrs r4, r4, #16\n"
            "muls r2, r0, r2\n"
            "adds r4, r4, r2\n"
            "muls r0, r3, r0\n"
            "muls r1, r3, r1\n"
            "uxth r2, r4\n"
            "adds r1, r1, r2\n"
            "asrs r1, r1, #16\n"
            "asrs r4, r4, #16\n"
            "adds r0, r0, r4\n"
            "adds r1, r1, r0\n"
            "mov r0, r12\n"
            "pop {r4, pc}\n");
}

NAKED int32_t sp_mbqm(int32_t x, int32_t multiplier, int32_t shift) {
    __asm__("push {r4, r5, r6, lr}\n"
            "asrs r5, r1, #16\n"
            "uxth r4, r1\n"
            "rsbs r6, r2, #0\n"
            "bgt 2f\n"
            "cmp r2, #30\n" // to the left
            "ble 1f\n"
            "movs r2, #30\n"
            "1: lsls r0, r2\n"
            "movs r6, #0\n"
            "2:\n");
    __asm__(HIGH_MUL);
    __asm__("cmp r6, #0\n"
            "beq 4f\n"
            "cmp r6, #31\n"
            "ble 3f\n"
            "movs r6, #31\n"
            "3: asrs r0, r2, #31\n" // the magnitude, since -2**31 - 1 would wrap
            "eors r2, r0\n"
            "subs r2, r2, r0\n"
            "movs r1, #0\n"
            "lsrs r2, r6\n"
            "adcs r2, r1\n"
            "eors r2, r0\n"
            "subs r2, r2, r0\n"
            "4: mov r0, r2\n"
            "pop {r4, r5, r6, pc}\n");
}

// r6 sums, r7 y, r8 right shift, r9 zero, r10 range, r11 low, r12 y_pixel, lr end of the sums of a
// channel; r4 and r5 are the halves of its multiplier.
#define REQUANTIZE(keep)                                                                          \
    SAVE "mov r6, r0\n"                                                                           \
         "mov r7, r1\n"                                                                           \
         "ldmia r2!, {r0, r1, r3, r4}\n"                                                          \
         "mov r12, r0\n"                                                                          \
         "mov r9, r1\n"                                                                           \
         "mov r10, r3\n"                                                                          \
         "mov r11, r4\n"                                                                          \
         "push {r2}\n"                                                                            \
         "ldmia r2!, {r0, r1, r3}\n"                                                              \
         "1: ldmia r2!, {r3, r4}\n"                                                               \
         "adds r4, r4, r6\n"                                                                      \
         "mov lr, r4\n"                                                                           \
         "ldr r4, [r0, #4]\n"                                                                     \
         "ldr r5, [r0, #8]\n"                                                                     \
         "rsbs r5, r5, #0\n"                                                                      \
         "mov r8, r5\n"                                                                           \
         "adds r0, r0, r3\n"                                                                      \
         "subs r2, #20\n"                                                                         \
         "str r0, [r2]\n"                                                                         \
         "asrs r5, r4, #16\n"                                                                     \
         "uxth r4, r4\n"                                                                          \
         "2: ldmia r6!, {r0}\n" HIGH_MUL "asrs r0, r2, #31\n"                                     \
         "adds r2, r2, r0\n"                                                                      \
         "mov r1, r8\n"                                                                           \
         "asrs r2, r1\n"                                                                          \
         "mov r1, r9\n"                                                                           \
         "adcs r2, r1\n" keep "asrs r0, r2, #31\n"                                                \
         "bics r2, r0\n"                                                                          \
         "cmp r2, r10\n"                                                                          \
         "bhi 4f\n"                                                                               \
         "3: add r2, r11\n"                                                                       \
         "strb r2, [r7]\n"                                                                        \
         "add r7, r12\n"                                                                          \
         "cmp r6, lr\n"                                                                           \
         "bne 2b\n"                                                                               \
         "ldr r2, [sp]\n"                                                                         \
         "ldmia r2!, {r0, r1, r3}\n"                                                              \
         "adds r7, r7, r3\n"                                                                      \
         "cmp r0, r1\n"                                                                           \
         "bne 1b\n"                                                                               \
         "add sp, #4\n" RESTORE "4: mov r2, r10\n"                                                \
         "b 3b\n"

NAKED void sp_requantize_sums(const int32_t *sum, int8_t *y, requantize_t *r) {
    __asm__(REQUANTIZE(""));
}

NAKED void sp_requantize_kept(int32_t *sum, int8_t *y, requantize_t *r) {
    __asm__(REQUANTIZE("subs r6, #4\n"
                       "stmia r6!, {r2}\n"));
}

bool sp_requantizes(const uint8_t *records, uint32_t size, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, size, i);
        if (record->multiplier < 0 || record->shift >= 0 || record->shift < -31) {
            return false;
        }
    }
    return true;
}

void sp_store_mask(uint8_t *mask, uint32_t e, const int32_t *v, uint32_t step, uint32_t n,
                   uint32_t range) {
    uint8_t *byte = mask + (e >> 3);
    for (uint32_t bit = 1u << (e & 7); n; bit = 1) {
        uint32_t bits = *byte;
        for (; n && bit < 256; --n, bit <<= 1, v += step) {
            bits = (uint32_t)*v <= range ? bits | bit : bits & ~bit;
        }
        *byte++ = (uint8_t)bits;
    }
}

#endif
