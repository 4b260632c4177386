// What ARMv6-M lacks. Elsewhere arith.h has these as one instruction or a few, and for native
// modules armv6m/ has the ones marked weak in assembly.

#include "arith.h"

#if defined(__ARM_ARCH_6M__)

uint64_t sp_umul64(uint32_t a, uint32_t b) {
    const uint32_t a0 = a & 0xffff, a1 = a >> 16, b0 = b & 0xffff, b1 = b >> 16;
    const uint32_t low = a0 * b0, x = a0 * b1, y = a1 * b0;
    const uint32_t middle = (low >> 16) + (x & 0xffff) + (y & 0xffff);
    const uint32_t high = a1 * b1 + (x >> 16) + (y >> 16) + (middle >> 16);
    return (uint64_t)high << 32 | (middle << 16 | (low & 0xffff));
}

__attribute__((weak)) int64_t sp_mul64(int32_t a, int32_t b) {
    const uint64_t product = sp_umul64((uint32_t)a, (uint32_t)b);
    uint32_t high = (uint32_t)(product >> 32);
    high -= (a < 0 ? (uint32_t)b : 0) + (b < 0 ? (uint32_t)a : 0);
    return (int64_t)((uint64_t)high << 32 | (uint32_t)product);
}

int64_t sp_sar64(int64_t x, uint32_t n) {
    const int32_t high = (int32_t)(x >> 32);
    if (n >= 32) {
        return high >> (n - 32);
    }
    const uint32_t low = (uint32_t)x >> n | (uint32_t)high << 1 << (31 - n);
    return (int64_t)((uint64_t)(uint32_t)(high >> n) << 32 | low);
}

uint32_t sp_divide(uint32_t a, uint32_t b) {
    uint32_t quotient = 0, bit = 1;
    for (; b <= a >> 1; b <<= 1) {
        bit <<= 1;
    }
    for (; bit; bit >>= 1, b >>= 1) {
        if (a >= b) {
            a -= b;
            quotient |= bit;
        }
    }
    return quotient;
}

__attribute__((weak)) int32_t sp_mbqm(int32_t x, int32_t multiplier, int32_t shift) {
    shift = limit32(shift, -31, 30);
    const int32_t y = (int32_t)((uint32_t)x << max32(shift, 0));
    const int32_t high = (int32_t)((sp_mul64(y, multiplier) + (1 << 30)) >> 31);
    return shift_away(high, (uint32_t)max32(-shift, 0));
}

#endif
