// A gradient through a scale.

#include "armv7em.h"

#ifdef FITS

// All |to * table| ored together, for n > 0 elements and as many channels.
NAKED static uint64_t mask_gradient(const scale_t *s __attribute__((unused))) {
    // r1 q, r2 to, r3 mask, r4 table, r5 elements left, r6 channels left, r7 bits of the mask
    // above which there is one more, r8, r9 products ored, r10 step, r12 to lr temporary
    __asm__("push {r0, r4-r11, lr}\n"
            "ldm r0, {r1-r5}\n"
            "ldr r10, [r0, #24]\n"
            "lsl r10, r10, #2\n"
            "movs r7, #1\n"
            "mov r8, #0\n"
            "mov r9, #0\n"
            "1: ldr r0, [sp]\n"
            "ldr r4, [r0, #12]\n"
            "ldr r6, [r0, #20]\n"
            "sub r5, r5, r6\n"
            "2: lsrs r7, r7, #1\n"
            "beq 5f\n"
            "3: ldrsh r0, [r1], #2\n"
            "bcc 6f\n"
            "ldr r11, [r4]\n"
            "eor r12, r0, r0, asr #31\n"
            "sub r12, r12, r0, asr #31\n"
            "eor lr, r11, r11, asr #31\n"
            "sub lr, lr, r11, asr #31\n"
            "umull r12, lr, r12, lr\n"
            "orr r8, r8, r12\n"
            "orr r9, r9, lr\n"
            "4: strh r0, [r2], #2\n"
            "add r4, r4, r10\n"
            "subs r6, r6, #1\n"
            "bne 2b\n"
            "cmp r5, #0\n"
            "bne 1b\n"
            "mov r0, r8\n"
            "mov r1, r9\n"
            "pop {r2, r4-r11, pc}\n"
            "5: movs r7, #255\n"
            "cbz r3, 7f\n"
            "ldrb r7, [r3], #1\n"
            "7: orr r7, r7, #256\n"
            "lsrs r7, r7, #1\n"
            "b 3b\n"
            "6: movs r0, #0\n"
            "b 4b\n");
}

int32_t sp_mask_gradient(const scale_t *s) { return bitlen64(mask_gradient(s)); }

// An SMMULR rounds off 32 bits.
void sp_scale(const scale_t *s, int32_t shift) {
    if (shift < 16 || shift > 32) {
        sp_scale_plain(s, shift);
        return;
    }
    const int32_t left = 32 - shift;
    const uint32_t channels = s->channels, step = s->step;
    int16_t *to = s->to;
    for (const int16_t *end = to + s->n; to != end;) {
        const int32_t *t = s->table;
        for (uint32_t c = channels; c--; t += step, ++to) {
            int32_t v = *to << left;
            __asm__("smmulr %0, %0, %1" : "+r"(v) : "r"(*t));
            *to = (int16_t)v;
        }
    }
}

#endif
