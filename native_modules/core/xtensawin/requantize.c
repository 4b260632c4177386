// Sums into int8 values. With the product of sum and multiplier in two words,
//
//     (high : low + 2**30) >> 31 = 2 * high + (((low >> 30) + 1) >> 1)
//
// which is less than 2**31 - 1 in magnitude where the multiplier is not negative, so the division
// by 2**n that rounds halves away from zero is ((v - (v < 0) >> n - 1) + 1) >> 1.

#include "xtensawin.h"
#ifdef FITS

_Static_assert(offsetof(record_t, multiplier) == 4, "sp_requantize_trios has another record_t");
_Static_assert(offsetof(record_t, shift) == 8, "sp_requantize_trios has another record_t");

// The assembler, made for another core, does not know "mulsh a13, a12, a10".
#define HIGH_OF_PRODUCT ".byte 0xa0, 0xdc, 0xb2\n"

// Sum at offset p of a2 times the multiplier in a10, to y at a15, which moves on.
#define PIXEL(p)                                                                                  \
    "l32i a12, a2, " #p "\n"                                                                      \
    "mull a14, a12, a10\n" HIGH_OF_PRODUCT "extui a14, a14, 30, 2\n"                              \
    "addi a14, a14, 1\n"                                                                          \
    "srli a14, a14, 1\n"                                                                          \
    "addx2 a12, a13, a14\n"                                                                       \
    "srai a13, a12, 31\n"                                                                         \
    "add a12, a12, a13\n"                                                                         \
    "sra a12, a12\n"                                                                              \
    "addi a12, a12, 1\n"                                                                          \
    "srai a12, a12, 1\n"                                                                          \
    "add a12, a12, a6\n"                                                                          \
    "s32i a12, a2, " #p "\n"                                                                      \
    "max a12, a12, a7\n"                                                                          \
    "min a12, a12, a8\n"                                                                          \
    "s8i a12, a15, 0\n"                                                                           \
    "add a15, a15, a9\n"

// a2 sum, a3 record, a4 y, a5 channels left and free in between; a6 to a9 of r: zero point,
// limits, pixel.
__asm__(".section .text.sp_requantize_trios, \"ax\"\n"
        ".align 4\n"
        ".global sp_requantize_trios\n"
        ".hidden sp_requantize_trios\n"
        ".type sp_requantize_trios, @function\n"
        "sp_requantize_trios:\n"
        "entry a1, 32\n"
        "l32i a11, a6, 16\n"
        "l32i a9, a6, 12\n"
        "l32i a8, a6, 8\n"
        "l32i a7, a6, 4\n"
        "l32i a6, a6, 0\n"
        "beqz a5, 2f\n"
        "1:\n"
        "l32i a12, a3, 8\n"
        "l32i a10, a3, 4\n"
        "movi a13, -1\n"
        "sub a13, a13, a12\n" // SAR = n - 1
        "ssr a13\n"
        "mov a15, a4\n" PIXEL(0) PIXEL(4) PIXEL(8) "addi a2, a2, 12\n"
                                                   "addi a4, a4, 1\n"
                                                   "add a3, a3, a11\n"
                                                   "addi a5, a5, -1\n"
                                                   "bnez a5, 1b\n"
                                                   "2:\n"
                                                   "retw\n"
                                                   ".size sp_requantize_trios, "
                                                   ". - sp_requantize_trios\n"
                                                   ".text\n");

bool sp_requantizes(const uint8_t *records, uint32_t size, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, size, i);
        if (r->multiplier < 0 || (r->multiplier && (r->shift > -1 || r->shift < -31))) {
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
    for (; n; --n, v += TRIO, bit <<= 1) {
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
