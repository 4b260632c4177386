// The kernels: where nearly all time goes. The one marked REPLACEABLE, beside its operator, is
// plain C for every processor; it calls the plain version, which is the reference and the
// fallback.
//
// To make a kernel for an architecture, define the same function, without that mark, in a file of
// a folder here and name the folder in the architecture's row of build.py. The linker takes it in
// the place of the plain one. It must give the same bytes for all inputs, and may call
// sp_..._plain for the shapes that it leaves alone. Firmware compiles all folders: their files are
// empty unless their header, by the compiler's macros, defines FITS.

#ifndef SPROUT_KERNELS_H
#define SPROUT_KERNELS_H

#include "internal.h"

#define REPLACEABLE __attribute__((weak))

typedef struct {
    tensor_t x, y;
    window_t k;
    uint32_t size;       // of a record
    uint32_t multiplier; // output channels per input channel of a depthwise layer
    output_t out;
    bool single; // rounds once
} conv_t;

// y[.., first : first + n] from the records of those n <= BLOCK channels; bias [n], or NULL for
// that of the records.
typedef void conv_block_t(const conv_t *c, const uint8_t *records, const int32_t *bias,
                          uint32_t first, uint32_t n);
conv_block_t sp_conv_block, sp_conv_block_plain;

typedef struct {
    tensor_t g, dx; // begins like a conv_t, so that layer.c can set both alike
    window_t k;
    uint32_t size;
    uint32_t multiplier;
    int32_t shift;
} conv_grad_t;

// dx[.., first : first + n] of n <= BLOCK input channels from their transposed records. Returns
// all magnitudes before the shift ored together, which has the bit length of the greatest.
typedef uint32_t conv_grad_block_t(const conv_grad_t *c, const uint8_t *records, uint32_t first,
                                   uint32_t n);
conv_grad_block_t sp_conv_input_grad_block, sp_conv_input_grad_block_plain;

// sum[r] += x . w[r] for n_rows rows of weights, `stride` bytes apart; x and every row are n long.
typedef void dot_rows_t(const int8_t *x, const int8_t *w, uint32_t stride, uint32_t n_rows,
                        uint32_t n, int32_t *sum);
typedef void dot_rows_s16_t(const int16_t *g, const int8_t *w, uint32_t stride, uint32_t n_rows,
                            uint32_t n, int32_t *sum);
dot_rows_t sp_dot_rows;
dot_rows_s16_t sp_dot_rows_s16;

// The same of depthwise layers, whose packed weights of a block, [taps, n], have this much room:
// n is BLOCK or fewer.
enum { DEPTHWISE_BYTES = 640 };
typedef conv_t depthwise_t;
typedef conv_block_t depthwise_block_t;
depthwise_block_t sp_depthwise_block, sp_depthwise_block_plain;

// Here records, `first` and n are those of output channels, n of them whole groups.
typedef conv_grad_t depthwise_grad_t;
typedef conv_grad_block_t depthwise_grad_block_t;
depthwise_grad_block_t sp_depthwise_input_grad_block, sp_depthwise_input_grad_block_plain;

// Narrows a layer, depthwise or not, to rows of y or of dx (rows.c). With a mask the first of them
// starts a byte of it.
void sp_conv_rows(conv_t *c, int32_t first, int32_t rows);
void sp_conv_grad_rows(conv_grad_t *c, int32_t first, int32_t rows);

// sum [kh, kw, n], the gradient of the weights of output channel `o` from input channels `first`
// to first + n of x; g is (P, Q, O).
typedef void weight_gradient_t(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                               uint32_t first, uint32_t n, int32_t *sum);
weight_gradient_t sp_weight_gradient, sp_weight_gradient_plain;

typedef struct {
    tensor_t a, b;
    output_t out;
    const int32_t *p; // multiplier and shift of a, of b, and of their sum
} add_t;

// Elements first to first + n of the sum of a and b; n <= BLOCK.
typedef void add_block_t(const add_t *d, uint32_t first, uint32_t n);
add_block_t sp_add_block, sp_add_block_plain;

// A gradient q of n elements through a scale: table [channels], or one for all with a step of 0.
typedef struct {
    const int16_t *q;
    int16_t *to;
    const uint8_t *mask; // NULL: everything passes
    const int32_t *table;
    uint32_t n, channels, step;
} scale_t;

// to = q where the mask has a bit, else 0. Returns the bit length of the greatest |to * table|.
int32_t sp_mask_gradient(const scale_t *s);

// to = to * table * 2**-shift, rounded; the results have at most GRAD_BITS bits.
void sp_scale(const scale_t *s, int32_t shift);
void sp_scale_plain(const scale_t *s, int32_t shift);

// Gradient sums become steps: v[i] = step_of(v[i], factor, shift).
void sp_steps(int32_t *v, uint32_t n, int32_t factor, int32_t shift);

#endif
