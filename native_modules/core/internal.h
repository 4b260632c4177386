// What the operators share: the blob's tables as they lie in memory, and the checked way from a
// tensor number or an offset to a pointer.
//
// An operator is one function. It binds its operands, which checks them; an error sticks in the
// exec_t, so it asks sp_stop once, after the last of them, and from there on all pointers and
// shapes can be trusted.

#ifndef SPROUT_INTERNAL_H
#define SPROUT_INTERNAL_H

#include "arith.h"
#include "sprout.h"

enum { NONE = 0xffff };
enum { ONLY_TRAIN = 1, ONLY_INFER = 2, MEMBER = 4 }; // operator flags
enum { CONV = 1, DEPTHWISE = 2, CONV_GRAD = 34, DEPTHWISE_GRAD = 35, STREAM = 11 }; // opcodes

// Bit n: operator n is in the module. One made for some nets has theirs alone (build.py --for).
#ifndef SPROUT_OPERATORS
#define SPROUT_OPERATORS UINT64_MAX
#endif
#define HAS(code) (SPROUT_OPERATORS >> (code) & 1)

enum { INT8 = 0, INT16 = 1, INT32 = 2, BITS = 3 };

// Channels that a kernel works on at a time: their sums and multipliers are on the stack.
enum { BLOCK = 32 };

typedef struct {
    uint8_t magic[4];
    uint16_t version, header_len;
    uint32_t file_len, flags;
    uint8_t digest[32];
    uint32_t program, program_len, constants, constants_len, initial, initial_len;
    uint32_t meta, meta_len, info, info_len;
    uint32_t arena_len, trained_len, accum_len, scratch_len;
    uint16_t n_tensors, n_ops, n_forward, input, output, logits, exponents;
    uint16_t max_classes, n_classes, reserved;
    uint32_t input_table;
} header_t;

typedef struct {
    uint32_t offset;
    uint16_t h, w, c;
    uint8_t dtype;
    int8_t zero_point;
    uint16_t slot, rows;
} tensor_row_t;

typedef struct {
    uint16_t opcode, flags;
    uint16_t tensor[6];
    int32_t p[12];
} op_t;

_Static_assert(sizeof(header_t) == 128, "header_t is not the blob's header");
_Static_assert(sizeof(tensor_row_t) == 16, "tensor_row_t is not a row of the tensor table");
_Static_assert(sizeof(op_t) == 64, "op_t is not a row of the operator table");

enum { MODE_APPLY = 3 }; // of exec_t, beside those of sprout_run_t: updates apply accumulators

// What an operator of a group is to see of its tensors: rows [first, first + n) of a buffer by
// operand, the whole tensor for n = 0; `top` is the padding above the first of them.
typedef struct {
    int16_t first[6], n[6];
    int32_t top;
} view_t;

// A group: its members in the order of the program.
typedef struct {
    op_t *op;
    int32_t n;
} group_t;

// Constants that a group keeps in memory while it runs.
typedef struct {
    const uint8_t *data;
    uint32_t offset, length;
} kept_t;

typedef struct {
    const sprout_memory_t *memory;
    const header_t *head;
    sprout_run_t *run;
    int32_t *exponents; // NULL where the blob cannot learn
    uint32_t n_slots;
    int32_t mode;
    int32_t error, detail;
    const view_t *view; // NULL: operators see whole tensors
    kept_t kept;
    group_t group; // what sp_stream made ready
} exec_t;

// A bound tensor. `data` is NULL where an optional one is missing.
typedef struct {
    int32_t h, w, c;
    uint32_t n; // elements
    int32_t zero_point;
    int32_t *exponent; // of a gradient
    void *data;
} tensor_t;

// Channel numbers, ascending; NULL stands for all of them.
typedef struct {
    const uint16_t *channel;
    int32_t n;
} list_t;

typedef struct {
    int32_t kh, kw, stride_h, stride_w, top, left, taps;
} window_t;

// Records of one size at `offset` of the file, and at `data` where memory holds them; if the
// offset is ABSENT, loading some only finds room.
enum { ABSENT = 0 };
typedef struct {
    const uint8_t *data;
    uint32_t offset, size, n, unit;
    uint32_t reserved; // bytes at the end of the scratch that loading leaves alone
} records_t;

typedef struct {
    int32_t bias, multiplier, shift, sum;
    int8_t weight[];
} record_t;

// Where and how sp_store writes int8 results.
typedef struct {
    int32_t min, max, zero_point;
    int8_t *y;
    uint8_t *mask; // NULL: none
} output_t;

// bind.c

void sp_fail(exec_t *e, int32_t error, int32_t detail);
// Whether the operator ends here: something is wrong, or there was only to check.
bool sp_stop(const exec_t *e);
void sp_require(exec_t *e, bool fits, int32_t operand); // SPROUT_E_SHAPE unless it fits
void sp_need_scratch(exec_t *e, uint32_t bytes);

// The row of the table of tensor `number`; NULL: there is none.
const tensor_row_t *sp_row_of(exec_t *e, uint32_t number);
// Tensor `number`, or the buffer of some of its rows: h is how many there is room for.
tensor_t sp_bind_number(exec_t *e, uint32_t number, int32_t dtype);
// An operand: the tensor or the view of it; a buffer of rows only through a view.
tensor_t sp_bind(exec_t *e, const op_t *op, int32_t operand, int32_t dtype);
tensor_t sp_bind_gradient(exec_t *e, const op_t *op, int32_t operand);
// A mask or a table of maxima of n elements: optional, and written only while learning.
uint8_t *sp_bind_saved(exec_t *e, const op_t *op, int32_t operand, int32_t dtype, uint32_t n);
// Output tensor t of a forward operator, its mask in the next operand, its limits in p, p + 1.
output_t sp_bind_output(exec_t *e, const op_t *op, int32_t operand, int32_t p, tensor_t *t);
window_t sp_bind_window(exec_t *e, const op_t *op);
// Offset in p, length in p + 1; every channel below `limit`. -1: all `limit` of them.
list_t sp_bind_list(exec_t *e, const op_t *op, int32_t p, int32_t limit);
int32_t sp_bind_value(exec_t *e, const op_t *op, int32_t p, int32_t low, int32_t high);
// n x size bytes of the trained region, or of the accumulators; NULL for the offset -1.
void *sp_bind_trained(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size);
void *sp_bind_accum(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size);
// n x size bytes of the constants. A tile takes a multiple of `unit` of them.
records_t sp_bind_records(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size,
                          uint32_t unit);

// Bytes of the file, from memory or read; false: reading failed.
bool sp_fetch(exec_t *e, uint32_t offset, void *to, uint32_t length);

// The records from `first` on, as many as one tile takes: all, or what fits into the scratch.
// Where `own` is set they lie in the scratch and may be changed. NULL: reading failed.
uint8_t *sp_load(exec_t *e, const records_t *r, uint32_t first, bool own, uint32_t *n);
// All of them, in place or at the start of the scratch; `rest` of the scratch stays free.
const void *sp_load_all(exec_t *e, const records_t *r, void **rest);

// softmax.c

int32_t sp_probabilities(const tensor_t *logits, int32_t n, int32_t p0, int32_t *out);

// store.c

// From the start on: what is copied may reach into `to` from behind.
void sp_copy(void *to, const void *from, uint32_t n);
void sp_fill(void *to, uint8_t value, uint32_t n);
// Clamps v [n] into elements e, e + 1, ... of the output and keeps in the mask which were inside.
void sp_store(const output_t *out, const int32_t *v, uint32_t n, uint32_t e);
// Writes a gradient of zeros.
void sp_store_zero(const tensor_t *gradient);
// The end of an input gradient: true if `shift` was enough for what was `seen`, with the exponent
// written; else `shift` is what it takes, and all is to be done again.
bool sp_settle(exec_t *e, const tensor_t *g, const tensor_t *dx, uint32_t seen, int32_t *shift);

static inline bool is_zero(const tensor_t *gradient) { return *gradient->exponent == EXP_ZERO; }

static inline bool mask_at(const uint8_t *mask, uint32_t e) {
    return !mask || (mask[e >> 3] >> (e & 7) & 1);
}

static inline uint32_t at(const tensor_t *t, int32_t y, int32_t x) {
    return ((uint32_t)y * (uint32_t)t->w + (uint32_t)x) * (uint32_t)t->c;
}

static inline const record_t *record_at(const uint8_t *records, uint32_t size, uint32_t i) {
    return (const record_t *)(const void *)(records + size * i);
}

static inline uint32_t round4(uint32_t n) { return size_add(n, 3) & ~3u; }

// The taps [from, to) of a window in one direction that lie inside the input, which starts at
// `start` of it.
typedef struct {
    int32_t start, from, to;
} span_t;

static inline span_t span(int32_t out, int32_t stride, int32_t pad, int32_t kernel, int32_t size) {
    const int32_t start = out * stride - pad;
    const int32_t from = max32(0, -start);
    return (span_t){start, from, max32(from, min32(kernel, size - start))};
}

// The other way round: the output whose window has input `in` at tap k, or -1.
static inline int32_t window_of(int32_t in, int32_t k, int32_t stride, int32_t pad,
                                int32_t out_size) {
    const int32_t at = in + pad - k;
    if (at < 0) {
        return -1;
    }
    const int32_t out =
        stride <= 2 ? at >> (stride - 1) : (int32_t)divide((uint32_t)at, (uint32_t)stride);
    return out < out_size && out * stride == at ? out : -1;
}

// execute.c

int32_t sp_begin(exec_t *e, const sprout_memory_t *memory, sprout_run_t *run, int32_t mode);
bool sp_read_op(exec_t *e, uint32_t i, op_t *op);
void sp_dispatch(exec_t *e, const op_t *op);

// The operators; execute.c has one row for each.
typedef void kernel_t(exec_t *e, const op_t *op);
kernel_t sp_layer;             // layer.c: those of layers
kernel_t sp_add, sp_add_grads; // add.c
kernel_t sp_average_pool, sp_average_pool_grad, sp_max_pool, sp_max_pool_grad; // pool.c
kernel_t sp_mean, sp_mean_grad;                                                // mean.c
kernel_t sp_pad, sp_pad_grad, sp_gather;                                       // shape.c
kernel_t sp_requantize, sp_scale_grad;                                         // scale.c
kernel_t sp_softmax, sp_cross_entropy;                                         // softmax.c
kernel_t sp_stream;                                                            // stream.c

// Runs the group that sp_stream made ready: not there, where the stack is deeper.
void sp_run_group(exec_t *e);
kernel_t sp_bias_update, sp_conv_weight_update, sp_depthwise_weight_update; // update.c

#endif
