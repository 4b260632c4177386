// What the kernels for Cortex-M with the DSP extension share. They multiply in pairs: SMLAD adds
// two products of 16 bits. Four int8 values in a word become two words of pairs, even ones and
// odd ones, which is what SXTB16 makes of it and of it rotated by a byte.

#ifndef SPROUT_ARMV7EM_H
#define SPROUT_ARMV7EM_H

#include "../kernels.h"

// Cortex-M4, M7, M33 and later; for all others the files of this folder are empty.
#if defined(__ARM_FEATURE_DSP) && __ARM_ARCH_PROFILE == 'M' && !defined(SPROUT_PLAIN_KERNELS)
#define FITS

#define NAKED __attribute__((naked, noinline))
#define INLINE static inline __attribute__((always_inline))

// A word at any address: these cores load and store those too, one at a time.
typedef struct {
    uint32_t v;
} __attribute__((packed, may_alias)) any_word_t;

INLINE uint32_t load(const void *p) { return ((const any_word_t *)p)->v; }

INLINE int32_t smlad(uint32_t a, uint32_t b, int32_t sum) {
    return __builtin_arm_smlad((int32_t)a, (int32_t)b, sum);
}

INLINE uint32_t evens(uint32_t bytes) { return (uint32_t)__builtin_arm_sxtb16((int32_t)bytes); }

INLINE uint32_t odds(uint32_t bytes) { return evens(bytes >> 8 | bytes << 24); }

// (lower half of a, lower half of b), and the upper halves
INLINE uint32_t lower(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }

INLINE uint32_t upper(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }

// A sum as a value that is not yet limited, for a scale that is_plain says is one:
// mbqm(v, multiplier, -shift) + zero. The carry is the highest bit that is shifted out, and less
// 1 below zero it rounds halves away from it.
INLINE int32_t requantize(int32_t v, int32_t multiplier, int32_t shift, int32_t zero) {
    __asm__("lsl %0, %0, #1\n"
            "smmulr %0, %0, %1\n"
            "add %0, %0, %0, asr #31\n"
            "asrs %0, %0, %2\n"
            "adc %0, %0, %3\n"
            : "+r"(v)
            : "r"(multiplier), "r"(shift), "r"(zero)
            : "cc");
    return v;
}

// Whether its last three steps, after a high_mul, are right for a record and any sum: the
// multiplier is not negative, the shift goes right.
INLINE bool is_right(const record_t *record) {
    return record->multiplier >= 0 && record->shift < 0 && record->shift > INT32_MIN;
}

// What it takes as the shift of such a record.
INLINE int32_t right_shift(const record_t *record) {
    return (int32_t)__builtin_arm_usat(-record->shift, 5);
}

// Whether requantize is right for a record: twice the sum fits 32 bits too. It starts at `start`
// and gets `row` products of at most 2**14. Channels that are all but dead have biases of 2**30.
INLINE bool is_plain(const record_t *record, int32_t start, uint32_t row) {
    return row <= 1 << 15 && magnitude32(start) < 1 << 29 && is_right(record);
}

// rshift32 of x by n: 0 <= n <= 31. The first bit shifted out rounds.
INLINE int32_t shift_right(int32_t x, int32_t n) {
    if (n) {
        __asm__("asrs %0, %0, %1\n adc %0, %0, #0" : "+r"(x) : "r"(n) : "cc");
    }
    return x;
}

// Whether pixels of rows of two widths belong to each other one by one.
INLINE bool is_pointwise(const window_t *k, int32_t a, int32_t b) {
    return k->taps == 1 && k->stride_h == 1 && k->stride_w == 1 && k->left == 0 && a == b;
}

// Bits e, e + 1, ... of the mask from values v[0], v[step], ...: whether they are inside [low,
// low + range].
void sp_store_mask(uint8_t *mask, uint32_t e, const int32_t *v, uint32_t step, uint32_t n,
                   int32_t low, uint32_t range);

#endif
#endif
