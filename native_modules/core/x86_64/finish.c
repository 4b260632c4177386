// From sums to bytes: what is the same for all pixels of a block of channels.

#include "x86_64.h"
#ifdef FITS

void sp_finish_of(finish_t *f, const conv_t *c, const uint8_t *records, const int32_t *start,
                  uint32_t n, uint64_t most) {
    f->out = c->out;
    f->small = true;
    for (uint32_t i = 0; i < BLOCK; ++i) {
        f->multiplier[i] = f->left[i] = f->right[i] = 0;
        f->nudge[i] = 0;
    }
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *r = record_at(records, c->size, i);
        const int32_t shift = limit32(r->shift, -31, 30);
        f->multiplier[i] = r->multiplier;
        f->left[i] = max32(shift, 0);
        f->right[i] = max32(-shift, 0);
        const int64_t half = shift < 0 ? 1 << (-shift - 1) : 0;
        f->nudge[(i & ~7u) + (i & 1) * 4 + (i >> 1 & 3)] = (half << 31) + (1 << 30);
        f->small &= r->multiplier >= 0 && shift < 0 && magnitude32(start[i]) + most < 1 << 30;
    }
}

#endif
