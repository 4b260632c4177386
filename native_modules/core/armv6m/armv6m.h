// What the kernels for ARMv6-M share. Their cost is counted with the model of a Cortex-M0+ with a
// one-cycle multiplier: loads and stores 2, of several registers 1 and 1 for each, taken branches
// 2, all else 1.
//
// Functions in assembly are naked: their arguments are in r0 to r3 and above the saved registers.

#ifndef SPROUT_ARMV6M_H
#define SPROUT_ARMV6M_H

#include "../kernels.h"

// Cortex-M0, M0+ and M1; for all others the files of this folder are empty.
#if defined(__ARM_ARCH_6M__) && !defined(SPROUT_PLAIN_KERNELS)
#define FITS

#define __asm__(...) __asm__(".syntax unified\n" __VA_ARGS__) // gcc's own default is the old one
#define NAKED __attribute__((naked, noinline))
#pragma GCC diagnostic ignored "-Wunused-parameter" // of those functions

// Only eight registers take part in arithmetic; the other ones are saved through these. SAVE takes
// 36 bytes, and arguments after the fourth lie above them.
#define SAVE                                                                                      \
    "push {r4-r7, lr}\n"                                                                          \
    "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n"                                       \
    "push {r4-r7}\n"
#define RESTORE                                                                                   \
    "pop {r4-r7}\n"                                                                               \
    "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n"                                       \
    "pop {r4-r7, pc}\n"

// Sums [n][pixels] of n channels become int8 values, limited, where a record has a shift of -31 to
// -1 and a multiplier that is not negative (sp_requantizes). Value p of channel i goes to
// y[i * y_channel + p * y_pixel].
typedef struct {
    uint32_t y_pixel;
    int32_t zero;  // zero point less the lower limit
    int32_t range; // upper limit less the lower one
    int32_t low;
    const uint8_t *record, *records_end; // the first moves on
    uint32_t y_channel;                  // less what the pixels of a channel move on
    uint32_t size;                       // of a record
    uint32_t sums;                       // bytes of those of a channel
} requantize_t;

void sp_requantize_sums(const int32_t *sum, int8_t *y, requantize_t *r);
// The same; the sums too become values, not yet limited and less the lower limit.
void sp_requantize_kept(int32_t *sum, int8_t *y, requantize_t *r);
bool sp_requantizes(const uint8_t *records, uint32_t size, uint32_t n);
// Bits e, e + 1, ... of the mask from values v[0], v[step], ... that were kept.
void sp_store_mask(uint8_t *mask, uint32_t e, const int32_t *v, uint32_t step, uint32_t n,
                   uint32_t range);

#endif
#endif
