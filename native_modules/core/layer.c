// Convolutions, depthwise or not, and the gradients of their inputs: what the four operators
// share. One binds its operands, brings the records tile by tile and runs a kernel on blocks of
// channels.

#include "layer.h"

// How many channels of a depthwise layer a kernel takes.
static uint32_t block_of(uint32_t taps) {
    const uint32_t n = taps ? umin32(divide(DEPTHWISE_BYTES, taps), BLOCK) : 0;
    return n > 4 ? n & ~3u : n; // kernels take up to four at a time
}

// Channels of `many` per channel of `few`; 1 and an error where that is no whole number.
static uint32_t groups_of(exec_t *e, const tensor_t *many, const tensor_t *few,
                          const window_t *k) {
    const uint32_t n = few->c ? divide((uint32_t)many->c, (uint32_t)few->c) : 0;
    sp_require(e, k->taps <= DEPTHWISE_BYTES, 0);
    sp_require(e, n && n * (uint32_t)few->c == (uint32_t)many->c, 1);
    return n ? n : 1;
}

// Trained weights [outputs, taps, list.n] into records of all taps and input channels, which are
// then summed again.
__attribute__((noinline)) static void overlay(const layer_t *l, uint8_t *records, uint32_t size,
                                              uint32_t first, uint32_t count) {
    const uint32_t n = (uint32_t)l->list.n;
    const uint32_t taps = (uint32_t)l->as.forward.k.taps;
    const uint16_t *channel = l->list.channel;
    const int8_t *trained = l->trained + first * taps * n;
    for (; count--; records += size) {
        record_t *record = (record_t *)(void *)records;
        int8_t *w = record->weight;
        for (uint32_t tap = 0; tap < taps; ++tap, w += l->as.forward.x.c) {
            for (uint32_t j = 0; j < n; ++j) {
                w[channel ? channel[j] : j] = *trained++;
            }
        }
        uint32_t sum = 0;
        for (const int8_t *v = record->weight; v < w; ++v) {
            sum += (uint32_t)*v;
        }
        record->sum = (int32_t)sum;
    }
}

// The other three operators have records of the channels that the list names. Depthwise: trained
// weights [list.n, taps]. Gradient of other layers: [outputs, taps, list.n], transposed.
__attribute__((noinline)) static void
overlay_listed(const layer_t *l, uint8_t *records, uint32_t size, uint32_t first, uint32_t count) {
    const uint32_t n = (uint32_t)l->list.n, taps = (uint32_t)l->as.backward.k.taps;
    const uint32_t head = l->depthwise ? sizeof(record_t) : 0;
    for (uint32_t j = 0; j < n; ++j) {
        const uint32_t c = (l->list.channel ? l->list.channel[j] : j) - first;
        if (c >= count) { // below `first` too
            continue;
        }
        int8_t *w = (int8_t *)records + c * size + head;
        if (l->depthwise) {
            sp_copy(w, l->trained + j * taps, taps);
            continue;
        }
        for (uint32_t tap = 0; tap < taps; ++tap) {
            const int8_t *from = l->trained + tap * n + j;
            for (const int8_t *end = w + l->as.backward.g.c; w < end; from += taps * n) {
                *w++ = *from;
            }
        }
    }
}

// A depthwise gradient in the place of g, whose shape it has: by way of `room` [h, w, n].
__attribute__((noinline)) static uint32_t overwrite_block(const layer_t *l, const block_t *b) {
    depthwise_grad_t part = l->as.backward;
    const int16_t *from = l->room;
    int16_t *to = (int16_t *)part.g.data + b->first;
    part.g.data = to;
    part.dx.data = l->room;
    part.dx.c = (int32_t)b->n;
    const uint32_t seen = sp_depthwise_input_grad_block(&part, b->records, 0, b->n);
    for (uint32_t i = part.g.n; l->keep && i; i -= (uint32_t)part.g.c, to += part.g.c) {
        sp_copy(to, from, b->n * 2);
        from += b->n;
    }
    return seen;
}

uint32_t sp_layer_block(const layer_t *l, const block_t *b) {
    const conv_t *c = &l->as.forward;
    const conv_grad_t *d = &l->as.backward;
    if (HAS(DEPTHWISE_GRAD) && l->room) {
        return overwrite_block(l, b);
    }
    if (HAS(DEPTHWISE_GRAD) && l->backward && l->depthwise) {
        return sp_depthwise_input_grad_block(d, b->records, b->first, b->n);
    }
    if (HAS(CONV_GRAD) && l->backward) {
        return sp_conv_input_grad_block(d, b->records, b->first, b->n);
    }
    if (HAS(DEPTHWISE) && l->depthwise) {
        sp_depthwise_block(c, b->records, b->bias, b->first, b->n);
    } else if (HAS(CONV)) {
        sp_conv_block(c, b->records, b->bias, b->first, b->n);
    }
    return 0;
}

// All channels, with a share in half of the rows; `seen` gathers what the kernels return. False:
// reading failed.
static bool run_tiles(exec_t *e, const layer_t *l, share_t *share, uint32_t *seen) {
    const uint32_t n = l->records.n, size = l->records.size;
    *seen = 0;
    for (uint32_t first = 0, count; first < n; first += count) {
        uint8_t *tile = sp_load(e, &l->records, first, l->trained != NULL, &count);
        if (!tile) {
            return false;
        }
        if (l->trained && !l->depthwise && !l->backward) {
            overlay(l, tile, size, first, count);
        } else if (l->trained) {
            overlay_listed(l, tile, size, first, count);
        }
        for (uint32_t i = 0; i < count; i += l->block) {
            const block_t block = {tile + i * size, l->bias ? l->bias + first + i : NULL,
                                   first + i, umin32(count - i, l->block)};
            *seen |= share ? sp_share_block(share, l, &block) : sp_layer_block(l, &block);
        }
    }
    return true;
}

// Out of line: what it spills would be on the stack of the kernels.
__attribute__((noinline)) static void bind(exec_t *e, const op_t *op, layer_t *l) {
    const bool depthwise = l->depthwise, backward = l->backward;
    conv_t *const c = &l->as.forward;
    conv_grad_t *const d = &l->as.backward;
    tensor_t *const in = backward ? &d->dx : &c->x, *const out = backward ? &d->g : &c->y;
    window_t *const k = &c->k; // and that of d
    if (backward) {
        *out = sp_bind_gradient(e, op, 0);
        *in = sp_bind_gradient(e, op, 1);
        d->shift = sp_bind_value(e, op, 6, 0, 31);
    } else {
        *in = sp_bind(e, op, 0, INT8);
        c->out = sp_bind_output(e, op, 1, 2, out);
        c->single = op->p[9] == 1;
    }
    *k = sp_bind_window(e, op);
    const uint32_t multiplier = depthwise ? groups_of(e, out, in, k) : 1;
    const uint32_t taps = (uint32_t)k->taps, outputs = (uint32_t)out->c, inputs = (uint32_t)in->c;
    const uint32_t width = depthwise ? 1 : backward ? outputs : inputs; // of a tap
    const uint32_t head = backward && !depthwise ? 0 : sizeof(record_t);
    const uint32_t size = size_add(head, round4(size_mul(taps, width)));
    const uint32_t unit = backward ? multiplier : 1; // a block of the gradient has whole groups
    l->block = (uint8_t)(depthwise ? divide(block_of(taps), unit) * unit : BLOCK);
    const int32_t p = backward ? 2 : 4; // parameters: records, trained weights, ...
    const uint32_t n = backward && !depthwise ? inputs : outputs;
    const bool absent = backward && op->p[p] == -1;
    if (absent) {
        l->records = (records_t){.offset = ABSENT, .size = size, .n = n, .unit = unit};
    } else {
        l->records = sp_bind_records(e, op, p, n, size, unit);
    }
    const int32_t limit = (int32_t)(depthwise ? outputs : inputs);
    if (op->p[p + 1] != -1) {
        l->list = sp_bind_list(e, op, backward ? 4 : 7, limit);
    }
    const uint32_t listed = (uint32_t)l->list.n;
    l->trained = sp_bind_trained(e, op, p + 1, depthwise ? listed : outputs,
                                 depthwise ? taps : size_mul(taps, listed));
    c->size = size;
    c->multiplier = multiplier;
    if (!backward) {
        l->bias = sp_bind_trained(e, op, 6, n, sizeof(int32_t));
    }
    uint32_t plane = 0; // bytes of a channel that cannot be in its place yet
    if (backward && in->data == out->data) {
        plane = size_mul((uint32_t)in->h * 2, (uint32_t)in->w);
        sp_require(e, in->n == out->n && in->w == out->w && depthwise && multiplier == 1, 1);
    }
    sp_need_scratch(e, size_add(size_mul(size, unit), plane));
    if (absent && (!l->trained || l->list.n != limit)) {
        sp_fail(e, SPROUT_E_PARAMETER, p + 1);
    }
    sp_require(e, l->block, 1); // a group may be too long for a block
    if (plane && e->error == SPROUT_OK) {
        const uint32_t scratch = e->memory->scratch_len;
        l->block = (uint8_t)umin32(l->block, divide(scratch, size + plane));
        l->records.reserved = l->block * plane + (scratch & 1);
        l->room = (int16_t *)(void *)(e->memory->scratch + scratch - l->records.reserved);
    }
}

void sp_layer(exec_t *e, const op_t *op) {
    layer_t l = {.depthwise = op->opcode == DEPTHWISE || op->opcode == DEPTHWISE_GRAD,
                 .backward = op->opcode == CONV_GRAD || op->opcode == DEPTHWISE_GRAD};
    conv_grad_t *const d = &l.as.backward;
    bind(e, op, &l);
    if (sp_stop(e)) {
        return;
    }
    if (l.backward && is_zero(&d->g)) {
        sp_store_zero(&d->dx);
        return;
    }
    uint32_t seen;
    if (l.room && run_tiles(e, &l, NULL, &seen)) { // g can be read once: the shift has to be right
        d->shift = max32(d->shift, bitlen32(seen) - GRAD_BITS);
        l.keep = true;
    }
    share_t *share = SPROUT_CORES == 2 && !l.room ? sp_share(e->memory->share, &l) : NULL;
    while (run_tiles(e, &l, share, &seen)) {
        if (!l.backward || sp_settle(e, &d->g, &d->dx, seen, &d->shift)) {
            return;
        }
        if (share) {
            share->second.as.backward.shift = d->shift;
        }
    }
}
