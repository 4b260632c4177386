// Depthwise convolution and the gradient of its input. Output channel c reads input channel
// c / multiplier. x is (H, W, C / multiplier), y (P, Q, C).
//
// Channels are innermost in memory, taps in the records, so the weights of a block of channels are
// first turned round into packed [taps][block].

#include "kernels.h"

enum { PACKED = 640 }; // bytes on the stack, so taps too at most

// How many channels the packed weights have room for.
static uint32_t block_of(uint32_t taps) { return taps ? umin32(divide(PACKED, taps), BLOCK) : 0; }

// Channels of `many` per channel of `few`; 1 and an error where that is no whole number.
static uint32_t groups_of(exec_t *e, const tensor_t *many, const tensor_t *few,
                          const window_t *k) {
    const uint32_t n = few->c ? divide((uint32_t)many->c, (uint32_t)few->c) : 0;
    sp_require(e, k->taps <= PACKED, 0);
    sp_require(e, n && n * (uint32_t)few->c == (uint32_t)many->c, 1);
    return n ? n : 1;
}

static void pack(int8_t *packed, const uint8_t *records, uint32_t size, uint32_t taps,
                 uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        const int8_t *w = record_at(records, size, i)->weight;
        for (uint32_t tap = 0; tap < taps; ++tap) {
            packed[tap * n + i] = w[tap];
        }
    }
}

// sum[i] += (x[i / multiplier] - zero_point) * w[i], the first of x being `skip` channels into its
// group.
static void multiply(const int8_t *restrict x, int32_t zero_point, const int8_t *restrict w,
                     uint32_t n, uint32_t multiplier, uint32_t skip, int32_t *restrict sum) {
    if (multiplier == 1) {
        for (uint32_t i = 0; i < n; ++i) {
            sum[i] = add32(sum[i], (x[i] - zero_point) * w[i]);
        }
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], (*x - zero_point) * w[i]);
        if (++skip == multiplier) {
            skip = 0;
            ++x;
        }
    }
}

void sp_depthwise_block_plain(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                              uint32_t first, uint32_t n) {
    const tensor_t *x = &d->x, *y = &d->y;
    const window_t *k = &d->k;
    int8_t packed[PACKED];
    int32_t start[BLOCK], multiplier[BLOCK], shift[BLOCK], sum[BLOCK];
    pack(packed, records, d->size, (uint32_t)k->taps, n);
    for (uint32_t i = 0; i < n; ++i) {
        const record_t *record = record_at(records, d->size, i);
        start[i] = bias ? bias[i] : record->bias;
        multiplier[i] = record->multiplier;
        shift[i] = record->shift;
    }
    const uint32_t group = divide(first, d->multiplier), skip = first - group * d->multiplier;
    const int8_t *data = (const int8_t *)x->data + group;
    for (int32_t oy = 0; oy < y->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < y->w; ++ox) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = start[i];
            }
            for (int32_t ky = v.from; ky < v.to; ++ky) {
                for (int32_t kx = u.from; kx < u.to; ++kx) {
                    multiply(data + at(x, v.start + ky, u.start + kx), x->zero_point,
                             packed + (uint32_t)(ky * k->kw + kx) * n, n, d->multiplier, skip,
                             sum);
                }
            }
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = add32(y->zero_point, mbqm(sum[i], multiplier[i], shift[i]));
            }
            sp_store(&d->out, sum, n, at(y, oy, ox) + first);
        }
    }
}

REPLACEABLE void sp_depthwise_block(const depthwise_t *d, const uint8_t *records,
                                    const int32_t *bias, uint32_t first, uint32_t n) {
    sp_depthwise_block_plain(d, records, bias, first, n);
}

// Puts the trained weights [list.n, taps] over those of the records of output channels first to
// first + count.
static void overlay(uint8_t *records, uint32_t size, uint32_t first, uint32_t count,
                    const int8_t *trained, list_t list, uint32_t taps) {
    for (uint32_t j = 0; j < (uint32_t)list.n; ++j, trained += taps) {
        const uint32_t c = (list.channel ? list.channel[j] : j) - first;
        if (c < count) { // above `first` too
            record_t *record = (record_t *)(void *)(records + c * size);
            sp_copy(record->weight, trained, taps);
        }
    }
}

void sp_depthwise(exec_t *e, const op_t *op) {
    depthwise_t d;
    d.x = sp_bind(e, op, 0, INT8);
    d.out = sp_bind_output(e, op, 1, 2, &d.y);
    d.k = sp_bind_window(e, op);
    d.multiplier = groups_of(e, &d.y, &d.x, &d.k);
    const uint32_t taps = (uint32_t)d.k.taps, n = (uint32_t)d.y.c;
    d.size = (uint32_t)sizeof(record_t) + round4(taps);
    const records_t records = sp_bind_records(e, op, 4, n, d.size, 1);
    const list_t list = op->p[5] == -1 ? (list_t){0} : sp_bind_list(e, op, 7, d.y.c);
    const int8_t *trained = sp_bind_trained(e, op, 5, (uint32_t)list.n, taps);
    const int32_t *bias = sp_bind_trained(e, op, 6, n, sizeof(int32_t));
    sp_need_scratch(e, d.size);
    if (sp_stop(e)) {
        return;
    }
    uint32_t block = block_of(taps);
    block = block > 4 ? block & ~3u : block; // kernels take up to four channels at a time
    for (uint32_t first = 0, count; first < n; first += count) {
        uint8_t *tile = sp_load(e, &records, first, trained != NULL, &count);
        if (!tile) {
            return;
        }
        if (trained) {
            overlay(tile, d.size, first, count, trained, list, taps);
        }
        for (uint32_t i = 0; i < count; i += block) {
            sp_depthwise_block(&d, tile + i * d.size, bias ? bias + first + i : NULL, first + i,
                               umin32(count - i, block));
        }
    }
}

// sum[i] += g[i] * w[i]
static void multiply_s16(const int16_t *restrict g, const int8_t *restrict w, uint32_t n,
                         int32_t *restrict sum) {
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], g[i] * w[i]);
    }
}

uint32_t sp_depthwise_input_grad_block_plain(const depthwise_grad_t *d, const uint8_t *records,
                                             uint32_t first, uint32_t n) {
    const tensor_t *g = &d->g, *dx = &d->dx;
    const window_t *k = &d->k;
    int8_t packed[PACKED];
    int32_t sum[BLOCK];
    const int16_t *gradient = (const int16_t *)g->data + first;
    const uint32_t group = divide(first, d->multiplier);
    uint32_t seen = 0;
    pack(packed, records, d->size, (uint32_t)k->taps, n);
    for (int32_t y = 0; y < dx->h; ++y) {
        for (int32_t x = 0; x < dx->w; ++x) {
            for (uint32_t i = 0; i < n; ++i) {
                sum[i] = 0;
            }
            for (int32_t ky = 0; ky < k->kh; ++ky) {
                const int32_t oy = window_of(y, ky, k->stride_h, k->top, g->h);
                for (int32_t kx = 0; kx < k->kw && oy >= 0; ++kx) {
                    const int32_t ox = window_of(x, kx, k->stride_w, k->left, g->w);
                    if (ox >= 0) {
                        multiply_s16(gradient + at(g, oy, ox),
                                     packed + (uint32_t)(ky * k->kw + kx) * n, n, sum);
                    }
                }
            }
            int16_t *out = (int16_t *)dx->data + at(dx, y, x) + group;
            for (uint32_t i = 0, j = 0; i < n; i = j) {
                uint32_t total = 0;
                for (; j < i + d->multiplier; ++j) {
                    total += (uint32_t)sum[j];
                }
                seen |= magnitude32((int32_t)total);
                *out++ = (int16_t)rshift32((int32_t)total, d->shift);
            }
        }
    }
    return seen;
}

REPLACEABLE uint32_t sp_depthwise_input_grad_block(const depthwise_grad_t *d,
                                                   const uint8_t *records, uint32_t first,
                                                   uint32_t n) {
    return sp_depthwise_input_grad_block_plain(d, records, first, n);
}

void sp_depthwise_input_grad(exec_t *e, const op_t *op) {
    depthwise_grad_t d;
    d.g = sp_bind_gradient(e, op, 0);
    d.dx = sp_bind_gradient(e, op, 1);
    d.k = sp_bind_window(e, op);
    d.shift = sp_bind_value(e, op, 6, 0, 31);
    d.multiplier = groups_of(e, &d.g, &d.dx, &d.k);
    const uint32_t taps = (uint32_t)d.k.taps, n = (uint32_t)d.g.c;
    d.size = (uint32_t)sizeof(record_t) + round4(taps);
    const records_t records = op->p[2] == -1 ? (records_t){ABSENT, d.size, n, d.multiplier}
                                             : sp_bind_records(e, op, 2, n, d.size, d.multiplier);
    const list_t list = op->p[3] == -1 ? (list_t){0} : sp_bind_list(e, op, 4, d.g.c);
    const int8_t *trained = sp_bind_trained(e, op, 3, (uint32_t)list.n, taps);
    sp_need_scratch(e, size_mul(d.size, d.multiplier));
    if (records.offset == ABSENT && (!trained || list.n != d.g.c)) {
        sp_fail(e, SPROUT_E_PARAMETER, 3);
    }
    sp_require(e, d.multiplier <= block_of(taps), 1); // a block holds whole groups
    if (sp_stop(e)) {
        return;
    }
    if (is_zero(&d.g)) {
        sp_store_zero(&d.dx);
        return;
    }
    const uint32_t block = divide(block_of(taps), d.multiplier) * d.multiplier;
    for (;;) {
        uint32_t seen = 0;
        for (uint32_t first = 0, count; first < n; first += count) {
            uint8_t *tile = sp_load(e, &records, first, trained != NULL, &count);
            if (!tile) {
                return;
            }
            if (trained) {
                overlay(tile, d.size, first, count, trained, list, taps);
            }
            for (uint32_t i = 0; i < count; i += block) {
                seen |= sp_depthwise_input_grad_block(&d, tile + i * d.size, first + i,
                                                      umin32(count - i, block));
            }
        }
        if (sp_settle(e, &d.g, &d.dx, seen, &d.shift)) {
            return;
        }
    }
}
