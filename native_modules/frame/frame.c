#include "frame.h"

#include <stdbool.h>
#include <stddef.h>

enum { HEAD = sizeof(frame_plan_t) / sizeof(uint32_t), SPAN = 2, BITS = 22, MOST = 65535 };

// Sums over a span: of red, green and blue, or of grey in the first.
typedef struct {
    uint32_t c[3];
} sums_t;

// Pixels from p to end as grey (ITU-R BT.601, in Pillow's 16 bits) or RGB.
static sums_t sum_of(const uint8_t *p, const uint8_t *end, uint32_t format, bool grey) {
    sums_t sums = {{0, 0, 0}};
    while (p < end) {
        if (format == GREY) {
            sums.c[0] += *p++;
            continue;
        }
        uint32_t r, g, b;
        if (format == RGB888) {
            r = p[0];
            g = p[1];
            b = p[2];
            p += 3;
        } else {
            const bool swapped = format == RGB565_BE;
            const uint32_t v = (uint32_t)p[swapped] | (uint32_t)p[!swapped] << 8;
            r = v >> 11;
            g = v >> 5 & 63;
            b = v & 31;
            r = r << 3 | r >> 2;
            g = g << 2 | g >> 4;
            b = b << 3 | b >> 2;
            p += 2;
        }
        if (grey) {
            sums.c[0] += (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
        } else {
            sums.c[0] += r;
            sums.c[1] += g;
            sums.c[2] += b;
        }
    }
    return sums;
}

static uint32_t mean(uint32_t sum, uint32_t reciprocal) {
    return (sum * reciprocal + (1u << (BITS - 1))) >> BITS & 255;
}

// A line's share of a row: adds each pixel of the scaled line to `sums`.
static int32_t add_line(const frame_plan_t *p, const span_t *xs, const uint8_t *line,
                        uint32_t *sums, uint32_t bytes) {
    for (uint32_t i = 0; i < p->w; ++i) {
        const uint32_t range = xs[i].range, first = range & MOST, end = range >> 16;
        if (first >= end || end > p->width) {
            return FRAME_E_PLAN;
        }
        const sums_t sum = sum_of(line + first * bytes, line + end * bytes, p->format, p->c == 1);
        for (uint32_t c = 0; c < p->c; ++c) {
            *sums++ += mean(sum.c[p->format == GREY ? 0 : c], xs[i].reciprocal);
        }
    }
    return FRAME_OK;
}

int32_t sprout_frame(uint32_t *plan, uint32_t words, const uint8_t *frame, uint32_t frame_len,
                     uint8_t *out, uint32_t out_len, uint32_t row) {
    if (words < HEAD) {
        return FRAME_E_PLAN;
    }
    // A copy: `out` may be anything, this plan included.
    const frame_plan_t p = {plan[0], plan[1], plan[2], plan[3], plan[4], plan[5]};
    const uint32_t bytes = p.format == GREY ? 1 : p.format == RGB888 ? 3 : 2;
    if (p.format > RGB565_BE || p.width > MOST || p.width * bytes > MOST || p.height > MOST ||
        p.w == 0 || p.w > MOST || p.h > MOST || (p.c != 1 && p.c != 3) || p.w * p.c > MOST ||
        words - HEAD < SPAN * (p.w + p.h) + p.w * p.c) {
        return FRAME_E_PLAN;
    }
    if (frame_len != p.width * bytes * p.height) {
        return FRAME_E_FRAME;
    }
    const span_t *xs = (const span_t *)(plan + HEAD), *ys = xs + p.w;
    uint32_t *sums = plan + HEAD + SPAN * (p.w + p.h);
    const uint32_t n = p.w * p.c, stride = p.width * bytes;
    for (; out_len; out_len -= n, ++row) {
        if (out_len < n || row >= p.h) {
            return FRAME_E_OUT;
        }
        const uint32_t range = ys[row].range, end = range >> 16, reciprocal = ys[row].reciprocal;
        if (end > p.height) {
            return FRAME_E_PLAN;
        }
        for (uint32_t i = 0; i < n; ++i) {
            sums[i] = 0;
        }
        for (uint32_t y = range & MOST; y < end; ++y) {
            const int32_t status = add_line(&p, xs, frame + y * stride, sums, bytes);
            if (status) {
                return status;
            }
        }
        for (uint32_t i = 0; i < n; ++i) {
            *out++ = (uint8_t)mean(sums[i], reciprocal);
        }
    }
    return FRAME_OK;
}
