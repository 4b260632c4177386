// Bytes and results into memory.

#include "internal.h"

void sp_copy(void *to, const void *from, uint32_t n) {
    uint8_t *d = to;
    const uint8_t *s = from;
    for (uint32_t i = 0; i < n; ++i) {
        d[i] = s[i];
    }
}

void sp_fill(void *to, uint8_t value, uint32_t n) {
    uint8_t *d = to;
    for (uint32_t i = 0; i < n; ++i) {
        d[i] = value;
    }
}

void sp_store(const output_t *out, const int32_t *v, uint32_t n, uint32_t e) {
    const int32_t low = out->min, high = out->max;
    int8_t *restrict y = out->y + e;
    for (uint32_t i = 0; i < n; ++i) {
        y[i] = (int8_t)limit32(v[i], low, high);
    }
    if (!out->mask) {
        return;
    }
    for (uint32_t i = 0; i < n; ++i, ++e) {
        const uint8_t bit = (uint8_t)(1u << (e & 7));
        uint8_t *byte = out->mask + (e >> 3);
        *byte = v[i] >= low && v[i] <= high ? *byte | bit : *byte & (uint8_t)~bit;
    }
}

void sp_store_zero(const tensor_t *gradient) {
    sp_fill(gradient->data, 0, gradient->n * 2);
    *gradient->exponent = EXP_ZERO;
}

bool sp_settle(exec_t *e, const tensor_t *g, const tensor_t *dx, uint32_t seen, int32_t *shift) {
    const int32_t needed = bitlen32(seen) - GRAD_BITS;
    if (needed > *shift) {
        *shift = needed;
        ++e->run->reruns;
        return false;
    }
    *dx->exponent = seen ? add32(*g->exponent, *shift) : EXP_ZERO;
    return true;
}
