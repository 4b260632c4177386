// A convolution, depthwise or not, or the gradient of the input of one, and how two cores share
// it.

#ifndef SPROUT_LAYER_H
#define SPROUT_LAYER_H

#include "kernels.h"

typedef struct {
    bool depthwise, backward;
    bool keep;     // what replaces g
    uint8_t block; // channels that a kernel takes
    union {
        conv_t forward;
        conv_grad_t backward;
    } as;
    records_t records;
    list_t list;           // channels with trained weights
    const int8_t *trained; // NULL: none
    const int32_t *bias;   // NULL: those of the records
    int16_t *room;         // NULL: the gradient of the input does not take the place of g
} layer_t;

// Output channels first to first + n, of a depthwise gradient too, else those of dx; bias of them.
typedef struct {
    const uint8_t *records;
    const int32_t *bias;
    uint32_t first, n;
} block_t;

// Runs the kernel of a layer; returns what that of a gradient returns.
uint32_t sp_layer_block(const layer_t *l, const block_t *block);

// share.c

// What two cores tell each other. Each word has one writer, for ARMv6-M has no atomic
// instructions: the main core `posted` and `leave`, the helper the others, and whoever did the
// second half `seen`. An odd number posted is a block to do; an even one, the next, says that the
// main core has done its half and takes the block back unless `taken` has its number.
typedef struct {
    volatile uint32_t present, blocks; // a helper is there; blocks that helpers did
    volatile uint32_t leave, posted, taken, done;
    volatile uint32_t seen; // what the second half returned
    block_t block;
    layer_t second;
} share_t;

_Static_assert(sizeof(share_t) <= SPROUT_SHARE, "share_t has outgrown its buffer");

// Splits the rows of a layer, which keeps the first, where a helper is there and they can be
// split; else NULL.
share_t *sp_share(void *buffer, layer_t *l);
// Both halves of a block of it.
uint32_t sp_share_block(share_t *s, const layer_t *l, const block_t *block);

#endif
