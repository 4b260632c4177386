// Sum of two tensors.

#include "armv7em.h"

#ifdef FITS

// v[i] += what p, a multiplier and a shift, make of element first + i. False: requantize does not
// take them.
__attribute__((noinline)) static bool add_terms(int32_t *v, const tensor_t *t, uint32_t first,
                                                uint32_t n, const int32_t *p) {
    const int32_t multiplier = p[0], zero = t->zero_point;
    int32_t left = 20, right = -max32(p[1], -31);
    // The greater scale of two has a shift of 0, which it does not take, and a multiplier of
    // 2**30. The product is even: twice that may be shifted by 1.
    if (right == 0 && multiplier == 1 << 30) {
        left = 21;
        right = 1;
    }
    if (right <= 0) {
        return false;
    }
    const int8_t *x = (const int8_t *)t->data + first;
    for (; n--; ++v) {
        *v = requantize((*x++ - zero) << left, multiplier, right, *v);
    }
    return true;
}

void sp_add_block(const add_t *d, uint32_t first, uint32_t n) {
    const int32_t multiplier = d->p[4], shift = -max32(d->p[5], -31);
    const output_t *out = &d->out;
    int32_t v[BLOCK];
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = 0;
    }
    if (shift <= 0 || !add_terms(v, &d->a, first, n, d->p) ||
        !add_terms(v, &d->b, first, n, d->p + 2)) {
        sp_add_block_plain(d, first, n);
        return;
    }
    int8_t *y = out->y + first;
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = requantize(v[i], multiplier, shift, out->zero_point);
        y[i] = (int8_t)__builtin_arm_ssat(v[i], 8);
    }
    if (out->mask || out->min != -128 || out->max != 127) {
        sp_store(out, v, n, first);
    }
}

#endif
