// Sums into int8 values. With the product of sum and multiplier in two words,
//
//     v = (high : low + 2**30) >> 31 = ((high : low) >> 31) + (low >> 30 & 1)
//
// which is less than 2**31 - 1 in magnitude where the multiplier is not negative, so the division
// by 2**n that rounds halves away from zero is ((v - (v < 0) >> n - 1) + 1) >> 1. The zero point
// goes in before the last shift.

#include "xtensawin.h"
#ifdef FITS

_Static_assert(offsetof(record_t, multiplier) == 4, "sp_requantize_quads has another record_t");
_Static_assert(offsetof(record_t, shift) == 8, "sp_requantize_quads has another record_t");

// The assembler, made for another core, does not know "mulsh a13, a12, a10".
#define HIGH_OF_PRODUCT ".byte 0xa0, 0xdc, 0xb2\n"

// v = sum at offset p of a2 times the multiplier in a10; SAR is 31.
#define MULTIPLY(v, p)                                                                            \
    "l32i a12, a2, " #p "\n"                                                                      \
    "mull a0, a12, a10\n" HIGH_OF_PRODUCT "src " #v ", a13, a0\n"                                 \
    "extui a0, a0, 30, 1\n"                                                                       \
    "add " #v ", " #v ", a0\n"

// Divided by 2**n, with the zero point; SAR is n - 1 and a6 2 * zero point + 1.
#define DIVIDE(v)                                                                                 \
    "srai a0, " #v ", 31\n"                                                                       \
    "add " #v ", " #v ", a0\n"                                                                    \
    "sra " #v ", " #v "\n"                                                                        \
    "add " #v ", " #v ", a6\n"                                                                    \
    "srai " #v ", " #v ", 1\n"

// Limited, to y at a10, which moves on.
#define STORE(v)                                                                                  \
    "max " #v ", " #v ", a7\n"                                                                    \
    "min " #v ", " #v ", a8\n"                                                                    \
    "s8i " #v ", a10, 0\n"                                                                        \
    "add a10, a10, a9\n"

// a2 sum, a3 record, a4 y, a5 twice the channels left and whether sums are kept; a7 to a9 limits
// and pixel of r. The four values: a14, a15, a11, a12.
__asm__(".section .text.sp_requantize_quads, \"ax\"\n"
        ".align 4\n"
        ".global sp_requantize_quads\n"
        ".hidden sp_requantize_quads\n"
        ".type sp_requantize_quads, @function\n"
        "sp_requantize_quads:\n"
        "entry a1, 32\n"
        "s32i a0, a1, 0\n"
        "l32i a11, a6, 16\n"
        "s32i a11, a1, 4\n"
        "l32i a10, a6, 20\n"
        "addx2 a5, a5, a10\n"
        "l32i a9, a6, 12\n"
        "l32i a8, a6, 8\n"
        "l32i a7, a6, 4\n"
        "l32i a6, a6, 0\n"
        "addi a10, a6, 1\n"
        "add a6, a6, a10\n"
        "blti a5, 2, 3f\n"
        "1:\n"
        "l32i a10, a3, 4\n"
        "ssai 31\n" MULTIPLY(a14, 0) MULTIPLY(a15, 4) MULTIPLY(a11, 8) MULTIPLY(
            a12, 12) "l32i a0, a3, 8\n"
                     "movi a10, -1\n"
                     "sub a10, a10, a0\n" // SAR = n - 1
                     "ssr a10\n" DIVIDE(a14) DIVIDE(a15) DIVIDE(a11) DIVIDE(
                         a12) "bbci a5, 0, 2f\n"
                              "s32i a14, a2, 0\n"
                              "s32i a15, a2, 4\n"
                              "s32i a11, a2, 8\n"
                              "s32i a12, a2, 12\n"
                              "2:\n"
                              "mov a10, a4\n" STORE(a14) STORE(a15) STORE(a11)
                                  STORE(a12) "l32i a0, a1, 4\n"
                                             "addi a2, a2, 16\n"
                                             "addi a4, a4, 1\n"
                                             "add a3, a3, a0\n"
                                             "addi a5, a5, -2\n"
                                             "bgei a5, 2, 1b\n"
                                             "3:\n"
                                             "l32i a0, a1, 0\n"
                                             "retw\n"
                                             ".size sp_requantize_quads, . - sp_requantize_quads\n"
                                             ".text\n");

bool sp_requantizes(const uint8_t *records, uint32_t size, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, size, i);
        if (r->multiplier < 0 || (r->multiplier && (r->shift > -2 || r->shift < -31))) {
            return false;
        }
    }
    return true;
}

void sp_keep(const output_t *out, uint32_t e, const int32_t *v, uint32_t n) {
    const int32_t low = out->min;
    const uint32_t range = (uint32_t)out->max - (uint32_t)low;
    uint8_t *byte = out->mask + (e >> 3);
    uint32_t bit = 1u << (e & 7), bits = *byte;
    for (; n; --n, v += QUAD, bit <<= 1) {
        if (bit == 256) {
            *byte++ = (uint8_t)bits;
            bit = 1;
            bits = *byte;
        }
        bits = (uint32_t)*v - (uint32_t)low <= range ? bits | bit : bits & ~bit;
    }
    *byte = (uint8_t)bits;
}

#endif
