// A camera's frame, cropped and scaled to the input of a network, as Pillow's box filter does it:
// each pixel is the mean of the pixels whose middles its box holds, first along lines, rounded,
// then down columns, rounded. Integers only; nothing outside the buffers is touched, whatever a
// plan says.

#ifndef SPROUT_FRAME_H
#define SPROUT_FRAME_H

#include <stdint.h>

enum { GREY, RGB888, RGB565, RGB565_BE }; // formats of a frame, the same as in frame.py

enum {
    FRAME_OK = 0,
    FRAME_E_PLAN = -1,  // a plan that is none, or too short
    FRAME_E_FRAME = -2, // a frame of another size than the plan's
    FRAME_E_OUT = -3,   // no whole rows, or more than are left
};

// Pixels [first, end) of a line or of a column, and 2**22 / (end - first), rounded.
typedef struct {
    uint32_t range; // first | end << 16
    uint32_t reciprocal;
} span_t;

// A plan is these words, then w spans of pixels, h spans of lines, and w * c words to sum in.
typedef struct {
    uint32_t width, height; // of the frame, in pixels: at most 65535 lines of 65535 bytes
    uint32_t format;
    uint32_t w, h, c; // of the scaled picture; c is 1, grey, or 3, RGB
} frame_plan_t;

// Writes rows of the scaled picture, uint8 (h, w, c), from `row` on: as many as fill `out`.
// words: of the plan. Returns FRAME_OK or an error.
int32_t sprout_frame(uint32_t *plan, uint32_t words, const uint8_t *frame, uint32_t frame_len,
                     uint8_t *out, uint32_t out_len, uint32_t row);

#endif
