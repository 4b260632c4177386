// Sprout's core: runs the plan in a blob (host/sprout/blob.py specifies format and arithmetic).
//
// Integers only, no allocation, no state of its own: everything lives in the buffers that the
// caller hands over with each call. Whatever the program section says, nothing outside those
// buffers is read or written.

#ifndef SPROUT_H
#define SPROUT_H

#include <stdint.h>

// Results of all functions: 0, or one of these. `detail` of sprout_run_t says more where noted.
enum {
    SPROUT_OK = 0,
    SPROUT_E_HEADER = -1,      // not a blob, of another version, or cut short
    SPROUT_E_ALIGNMENT = -2,   // a buffer does not start at a multiple of 4
    SPROUT_E_ARENA = -3,       // the arena is missing or shorter than the blob asks
    SPROUT_E_TRAINED = -4,     // the trained parameters' buffer likewise
    SPROUT_E_SCRATCH = -5,     // the scratch buffer likewise; detail: bytes that are needed
    SPROUT_E_ACCUM = -6,       // the accumulator likewise, or the blob has none
    SPROUT_E_CONSTANTS = -7,   // the blob's memory ends before its constants do
    SPROUT_E_OPCODE = -8,      // unknown operator; detail: its code
    SPROUT_E_TENSOR = -9,      // tensor missing, outside the arena, misaligned or of a wrong type;
                               // detail: its number
    SPROUT_E_SHAPE = -10,      // shapes that do not belong together; detail: which operand
    SPROUT_E_PARAMETER = -11,  // operator parameter out of range; detail: its number
    SPROUT_E_READ = -12,       // the read function failed; detail: what it returned
    SPROUT_E_RANGE = -13,      // [first_op, last_op) outside the program, or an unknown mode
    SPROUT_E_LABEL = -14,      // label or number of classes out of range
    SPROUT_E_RATE = -15,       // rate mantissa outside [1, 4095]
    SPROUT_E_INPUT = -16,      // pixels that are no rows of the input, or not the next ones
    SPROUT_E_NO_LEARNING = -17 // the blob cannot learn
};

// Reads `length` bytes at `offset` of the blob file into `dst`; 0 where it succeeds.
typedef int32_t (*sprout_read_t)(void *ctx, uint32_t offset, void *dst, uint32_t length);

// Cores that may share a layer. 2 only for processors whose other core can run C code: in firmware
// those that Raspberry Pi's SDK names.
#ifndef SPROUT_CORES
#if defined(PICO_RP2040) || defined(PICO_RP2350)
#define SPROUT_CORES 2
#else
#define SPROUT_CORES 1
#endif
#endif

enum { SPROUT_SHARE = 384 };

// The buffers of a net. All start at multiples of 4 and none overlaps another.
typedef struct {
    const uint8_t *blob; // the whole file, where memory holds it, else NULL
    uint32_t blob_len;
    sprout_read_t read; // used where blob is NULL
    void *read_ctx;
    const uint8_t *program; // the file's first bytes: header and program section
    uint32_t program_len;
    uint8_t *arena;
    uint32_t arena_len;
    uint8_t *trained;
    uint32_t trained_len;
    uint8_t *scratch;
    uint32_t scratch_len;
    uint8_t *accum; // NULL: updates go straight to the parameters
    uint32_t accum_len;
    void *share; // SPROUT_SHARE bytes, zeros at first, of a second core's sprout_assist; or NULL
} sprout_memory_t;

enum {
    SPROUT_PREDICT = 0,
    SPROUT_LEARN = 1, // the forward operators keep masks and maxima too
    SPROUT_CHECK = 2  // the operators are only checked
};

// Arguments and results of sprout_run, all int32: an array('i') of MicroPython.
typedef struct {
    int32_t first_op, last_op; // operators [first_op, last_op)
    int32_t mode;
    int32_t label, n_classes; // of the sample; classes in use
    int32_t rate_mantissa, rate_exponent;
    int32_t seed, step;
    int32_t loss_q16; // result: loss in nats, Q16
    int32_t reruns;   // result: input gradients computed twice, their guessed shift too small
    int32_t error_op, detail; // result where an operator failed: its number, what was wrong
} sprout_run_t;

// Checks header, buffers and every operator.
int32_t sprout_check(const sprout_memory_t *memory);

// Runs a range of operators; each is checked right before.
int32_t sprout_run(const sprout_memory_t *memory, sprout_run_t *run);

// For another core or thread: does parts of what sprout_run does with the same `share`, until
// sprout_dismiss. Its stack has to hold 2 KB. Results are the same with and without it.
void sprout_assist(void *share);
void sprout_dismiss(void *share);

// Moves what the accumulators hold, rounded to whole LSBs, into the parameters.
int32_t sprout_apply(const sprout_memory_t *memory);

// Writes rows of the input from `row` on, from `length` pixels, through the blob's input table
// where it has one; row -1: it must be the whole input. Where the input passes through row by row,
// the first operators run meanwhile, and rows must come in order from row 0 on.
int32_t sprout_input(const sprout_memory_t *memory, const uint8_t *pixels, uint32_t length,
                     int32_t row);

// Softmax of the first n_classes logits into out [n_classes], Q15. p0 is that of CROSS_ENTROPY:
// round(scale * log2(e) * 2**16) with the scale of the logits.
int32_t sprout_probabilities(const sprout_memory_t *memory, int32_t n_classes, int32_t p0,
                             int32_t *out);

#endif
