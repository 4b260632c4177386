// What the kernels for RV32IMC (ESP32-C3, C6, H2, RP2350) share: a load is one instruction like a
// multiplication, and there are registers enough.

#ifndef SPROUT_RV32IMC_H
#define SPROUT_RV32IMC_H

#include "../kernels.h"

// For all others the files of this folder are empty.
#if defined(__riscv_mul) && __riscv_xlen == 32 && !defined(SPROUT_PLAIN_KERNELS)
#define FITS

#define OUT_OF_LINE __attribute__((noinline))

// Elements e, e + step, ... from the n sums of one channel. Where `small`, the magnitudes of the
// sums are below 2**30 and the shift goes to the right.
void sp_finish_sums(const output_t *out, const record_t *record, const int32_t *sum, uint32_t n,
                    uint32_t e, uint32_t step, bool small);

// Whether that is so for sums that begin at `start` and gather n products of int8.
static inline bool is_small(const record_t *record, int32_t start, uint32_t n) {
    return n <= 1 << 14 && start >= -(1 << 29) && start <= 1 << 29 && record->shift < 0 &&
           record->shift >= -31;
}

#endif
#endif
