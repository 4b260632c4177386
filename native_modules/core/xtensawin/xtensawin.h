// What the kernels for Xtensa share. ESP32, S2 and S3 have these instructions, which the compiler,
// made for the ESP8266, does not know. Loops without overhead and the 40-bit accumulator are not
// among them: the S2 has neither.

#ifndef SPROUT_XTENSAWIN_H
#define SPROUT_XTENSAWIN_H

#include "../kernels.h"

// For all others the files of this folder are empty.
#if defined(__XTENSA_WINDOWED_ABI__) && !defined(SPROUT_PLAIN_KERNELS)
#define FITS

#pragma GCC optimize("O2") // all else is compiled for size

static inline int32_t load8(const int8_t *p) {
    int32_t x;
    __asm__("sext %0, %1, 7" : "=a"(x) : "a"((uint32_t)*(const uint8_t *)p));
    return x;
}

// Of the lower halves; the compiler would extend their signs first.
static inline int32_t mul16(int32_t a, int32_t b) {
    int32_t x;
    __asm__("mul16s %0, %1, %2" : "=a"(x) : "a"(a), "a"(b));
    return x;
}

enum { QUAD = 4 }; // pixels that go together

// Rows of weights times four pixels, two rows at a time.
typedef struct {
    const int16_t *x;    // [length][QUAD]
    const int8_t *w;     // the first of the rows, which moves on
    uint32_t size;       // bytes from one to the next
    uint32_t length;     // a multiple of 4
    int32_t n;           // rows left; of an odd number the last one's are done twice
    const int32_t *from; // what the sums begin with, one for each row; NULL: the sums so far
    int32_t *sum;        // [n rounded up to 2][QUAD]
} dot_t;
// sum[r][p] = from[r] + x[p] . w[r]
void sp_dot_quads(dot_t *d);

// Sums of n channels, four pixels each, become int8 values: value p of channel i goes to
// y[i + p * pixel]. With `keep` the sums become the values before they are limited.
typedef struct {
    int32_t zero_point, low, high;
    uint32_t pixel, size; // from a pixel of y to the next, of a record
    uint32_t keep;
} requantize_t;
void sp_requantize_quads(int32_t *sum, const record_t *records, int8_t *y, uint32_t n,
                         const requantize_t *r);
// Whether that can be: multipliers of 0, or above and shifts from -31 to -2.
bool sp_requantizes(const uint8_t *records, uint32_t size, uint32_t n);

// Keeps in the mask which of n channels' values v[0], v[4], ... lie inside the limits.
void sp_keep(const output_t *out, uint32_t e, const int32_t *v, uint32_t n);

#endif
#endif
