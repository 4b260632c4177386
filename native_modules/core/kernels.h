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
    output_t out;
    window_t k;
    uint32_t size; // of a record
    bool single;   // rounds once
} conv_t;

// y[.., first : first + n] from the records of those n <= BLOCK channels; bias [n], or NULL for
// that of the records.
typedef void conv_block_t(const conv_t *c, const uint8_t *records, const int32_t *bias,
                          uint32_t first, uint32_t n);
conv_block_t sp_conv_block, sp_conv_block_plain;

typedef struct {
    tensor_t g, dx;
    window_t k;
    uint32_t size; // of a record
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

typedef struct {
    tensor_t x, y;
    output_t out;
    window_t k;
    uint32_t size;       // of a record
    uint32_t multiplier; // output channels per input channel
} depthwise_t;

// y[.., first : first + n] from the records of those n <= BLOCK channels; bias [n], or NULL for
// that of the records.
typedef void depthwise_block_t(const depthwise_t *d, const uint8_t *records, const int32_t *bias,
                               uint32_t first, uint32_t n);
depthwise_block_t sp_depthwise_block, sp_depthwise_block_plain;

typedef struct {
    tensor_t g, dx;
    window_t k;
    uint32_t size; // of a record
    uint32_t multiplier;
    int32_t shift;
} depthwise_grad_t;

// dx from the records of output channels first to first + n, whole groups of them. Returns all
// magnitudes before the shift ored together.
typedef uint32_t depthwise_grad_block_t(const depthwise_grad_t *d, const uint8_t *records,
                                        uint32_t first, uint32_t n);
depthwise_grad_block_t sp_depthwise_input_grad_block, sp_depthwise_input_grad_block_plain;

// sum [kh, kw, n], the gradient of the weights of output channel `o` from input channels `first`
// to first + n of x; g is (P, Q, O).
typedef void weight_gradient_t(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                               uint32_t first, uint32_t n, int32_t *sum);
weight_gradient_t sp_weight_gradient, sp_weight_gradient_plain;

// Gradient sums become steps: v[i] = step_of(v[i], factor, shift).
void sp_steps(int32_t *v, uint32_t n, int32_t factor, int32_t shift);

#endif
