// From sums to int8 values.

#include "rv32imc.h"
#ifdef FITS

void sp_finish_sums(const output_t *out, const record_t *record, const int32_t *sum, uint32_t n,
                    uint32_t e, uint32_t step, bool small) {
    const int32_t multiplier = record->multiplier, shift = record->shift;
    const int32_t zero_point = out->zero_point, low = out->min, high = out->max;
    if (small && !out->mask) {
        const uint32_t right = (uint32_t)-shift;
        const int32_t half = (int32_t)(1u << (right - 1));
        int8_t *y = out->y + e;
        for (; n; --n, y += step) {
            // Doubled, the product's upper word is what high_mul gives, but for the rounding.
            const int64_t product = (int64_t)(*sum++ * 2) * multiplier;
            const int32_t v = (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
            const int32_t rounded = (v + (v >> 31) + half) >> right;
            *y = (int8_t)limit32(rounded + zero_point, low, high);
        }
        return;
    }
    for (; n; --n, e += step, ++sum) {
        const int32_t v = add32(zero_point, mbqm(*sum, multiplier, shift));
        sp_store(out, &v, 1, e);
    }
}

#endif
