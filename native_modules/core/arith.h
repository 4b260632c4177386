// The arithmetic of blob.py in C. Signed sums that may wrap are taken as uint32_t.

#ifndef SPROUT_ARITH_H
#define SPROUT_ARITH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXP_ZERO = -30000 }; // exponent of a gradient tensor that is zero everywhere
enum { GRAD_BITS = 14 };    // |q| <= 2**14 in every gradient tensor

static inline int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }

static inline int32_t max32(int32_t a, int32_t b) { return a > b ? a : b; }

static inline uint32_t umin32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static inline int32_t limit32(int32_t x, int32_t low, int32_t high) {
    return max32(low, min32(x, high));
}

static inline int32_t add32(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

static inline uint32_t magnitude32(int32_t x) { return x < 0 ? 0u - (uint32_t)x : (uint32_t)x; }

static inline uint64_t magnitude64(int64_t x) { return x < 0 ? 0u - (uint64_t)x : (uint64_t)x; }

// ARMv6-M multiplies to 32 bits only, cannot divide nor shift 64 bits by a variable, and a native
// module has no compiler library to call for it: arith.c has these for it.
#if defined(__ARM_ARCH_6M__)
uint64_t sp_umul64(uint32_t a, uint32_t b);
int64_t sp_mul64(int32_t a, int32_t b);
int64_t sp_sar64(int64_t x, uint32_t n);
uint32_t sp_divide(uint32_t a, uint32_t b);
int32_t sp_mbqm(int32_t x, int32_t multiplier, int32_t shift);
#define umul64 sp_umul64
#define mul64 sp_mul64
#define sar64 sp_sar64
#define divide sp_divide
#else
static inline uint64_t umul64(uint32_t a, uint32_t b) { return (uint64_t)a * b; }

static inline int64_t mul64(int32_t a, int32_t b) { return (int64_t)a * b; }

static inline int64_t sar64(int64_t x, uint32_t n) { // n < 64
    return x >> n;
}

static inline uint32_t divide(uint32_t a, uint32_t b) { return a / b; }
#endif

// Sizes: products and sums that stop at the largest value instead of wrapping.
static inline uint32_t size_mul(uint32_t a, uint32_t b) {
    const uint64_t product = umul64(a, b);
    return product >> 32 ? UINT32_MAX : (uint32_t)product;
}

static inline uint32_t size_add(uint32_t a, uint32_t b) {
    return a > UINT32_MAX - b ? UINT32_MAX : a + b;
}

static inline int32_t bitlen32(uint32_t x) {
    int32_t n = 0;
    for (int32_t step = 16; step; step >>= 1) {
        if (x >> step) {
            x >>= step;
            n += step;
        }
    }
    return n + (int32_t)x;
}

static inline int32_t bitlen64(uint64_t x) {
    const uint32_t high = (uint32_t)(x >> 32);
    return high ? 32 + bitlen32(high) : bitlen32((uint32_t)x);
}

// rshift of a value that fits 32 bits, without a sum that could wrap.
static inline int32_t rshift32(int32_t x, int32_t n) {
    if (n <= 0) {
        return x;
    }
    return n > 31 ? 0 : (x >> n) + (x >> (n - 1) & 1);
}

// |x| < 2**62
static inline int64_t rshift64(int64_t x, int32_t n) {
    if (n <= 0) {
        return x;
    }
    return n > 62 ? 0 : sar64(x, (uint32_t)n) + (sar64(x, (uint32_t)n - 1) & 1);
}

// gemmlowp's SaturatingRoundingDoublingHighMul. Both signs of its nudge come to the same sum: a
// truncated quotient of a negative number is the floor after adding 2**31 - 1.
static inline int32_t high_mul(int32_t a, int32_t b) {
#if defined(__ARM_ARCH_6M__)
    return sp_mbqm(a, b, 0); // in assembly, and no longer than this
#else
    return (int32_t)((mul64(a, b) + (1 << 30)) >> 31);
#endif
}

// gemmlowp's RoundingDivideByPOT: x / 2**n, halves away from zero; n < 32
static inline int32_t shift_away(int32_t x, uint32_t n) {
    const int32_t mask = (int32_t)((1u << n) - 1);
    return (x >> n) + ((x & mask) > (mask >> 1) + (x < 0));
}

// x * multiplier * 2**(shift - 31), rounded twice: gemmlowp's MultiplyByQuantizedMultiplier
#if defined(__ARM_ARCH_6M__)
#define mbqm sp_mbqm
#else
static inline int32_t mbqm(int32_t x, int32_t multiplier, int32_t shift) {
    shift = limit32(shift, -31, 30);
    const int32_t y = (int32_t)((uint32_t)x << max32(shift, 0));
    return shift_away(high_mul(y, multiplier), (uint32_t)max32(-shift, 0));
}
#endif

// The same rounded once, halves away from zero, and limited to what leaves room for a zero point.
static inline int32_t once(int32_t x, int32_t multiplier, int32_t shift) {
    const uint32_t n = (uint32_t)(31 - limit32(shift, -31, 30));
    const int64_t v = (int64_t)umul64(magnitude32(x), magnitude32(multiplier));
    const int64_t y = sar64(v, n) + (sar64(v, n - 1) & 1);
    const int32_t limited = y > 1 << 30 ? 1 << 30 : (int32_t)y;
    return (x < 0) != (multiplier < 0) ? -limited : limited;
}

// n > 0
static inline int32_t div_away(int32_t a, int32_t n) {
    const uint32_t quotient = divide(magnitude32(a) + (uint32_t)n / 2, (uint32_t)n);
    return (int32_t)(a > 0 ? quotient : 0u - quotient);
}

// v * factor * 2**-shift limited to STEP_LIMIT on both sides: a parameter's step before rounding
enum { STEP_LIMIT = 1 << 30 };

static inline int32_t limit_step(int64_t t) {
    return t > STEP_LIMIT ? STEP_LIMIT : t < -STEP_LIMIT ? -STEP_LIMIT : (int32_t)t;
}

static inline int32_t step_of(int32_t v, int32_t factor, int32_t shift) {
    const int64_t product = mul64(v, factor);
    if (shift >= 0) {
        return limit_step(sar64(product, (uint32_t)min32(shift, 63)));
    }
    if (product == 0) {
        return 0;
    }
    if (shift < bitlen64(magnitude64(product)) - 31) {
        return product < 0 ? -STEP_LIMIT : STEP_LIMIT;
    }
    return limit_step((int32_t)((uint32_t)product << -shift));
}

static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

static inline uint32_t draw(uint32_t k, uint32_t element) {
    return mix(k + element * 0x9e3779b9u);
}

#endif
