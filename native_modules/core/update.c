// The update rule, and the gradients of biases and weights that go straight into it: no gradient
// of a weight is ever kept. g is (P, Q, O), x (H, W, n).
//
// With accumulators the same operators add to those instead, and in MODE_APPLY they move what has
// gathered there into the parameters.

#include "kernels.h"

enum { WEIGHT_BITS = 22, BIAS_BITS = 8 };   // fractional bits of a step
enum { FRACTION_BITS = 4, ACCUM_BITS = 8 }; // of what is kept of it
enum { BIAS_LIMIT = 1 << 30 };

typedef struct {
    int32_t mantissa, exponent; // mantissa 0: the channel is frozen
} rate_t;

// What turns a channel's gradient sum into a step, and the stream of its draws.
typedef struct {
    int32_t factor, shift;
    uint32_t key;
} rule_t;

// rate * v * 2**E * mantissa * 2**exponent in units of 2**-bits LSB.
static rule_t rule_of(const exec_t *e, const tensor_t *g, rate_t rate, int32_t bits,
                      uint32_t key) {
    const sprout_run_t *run = e->run;
    const int32_t gradient = add32(*g->exponent, run->rate_exponent);
    const int32_t exponent = add32(add32(rate.exponent, gradient), 14 + bits);
    return (rule_t){(rate.mantissa >> 14) * run->rate_mantissa, (int32_t)(0u - (uint32_t)exponent),
                    key};
}

static uint32_t key_of(const exec_t *e, int32_t key) {
    const sprout_run_t *run = e->run;
    const uint32_t sample = (uint32_t)run->seed + 0x9e3779b9u * ((uint32_t)run->step + 1);
    return mix(mix(sample) ^ ((uint32_t)key * 0x85ebca6bu + 1));
}

// A trained tensor and what is kept beside it; accum and fraction may be NULL.
typedef struct {
    int8_t *weight;
    int16_t *accum;
    uint8_t *fraction; // two to a byte
} weights_t;

// Adds d, in units of 2**-FRACTION_BITS LSB, to the fraction of element e; returns whole LSB.
static int32_t carry(uint8_t *fraction, uint32_t e, int32_t d) {
    const uint32_t shift = (e & 1) * FRACTION_BITS;
    uint8_t *pair = fraction + (e >> 1);
    const int32_t old = (int32_t)((uint32_t)*pair << (32 - FRACTION_BITS - shift));
    const int32_t sum = (old >> (32 - FRACTION_BITS)) + d;
    const uint32_t kept = *pair & (0xf0u >> shift);
    *pair = (uint8_t)(kept | ((uint32_t)sum & 0xfu) << shift);
    return (sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS;
}

REPLACEABLE void sp_steps(int32_t *v, uint32_t n, int32_t factor, int32_t shift) {
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = step_of(v[i], factor, shift);
    }
}

// Elements first to first + n of the trained tensor; v [n] are their gradient sums, then steps.
static void update_weights(const rule_t *rule, int32_t *restrict v, uint32_t first, uint32_t n,
                           weights_t to) {
    int8_t *restrict weight = to.weight + first;
    const uint32_t key = rule->key;
    sp_steps(v, n, rule->factor, rule->shift);
    // What is rounded off depends on what keeps the rest: nothing, a fraction, an accumulator.
    const int32_t kept = to.accum ? ACCUM_BITS : to.fraction ? FRACTION_BITS : 0;
    const int32_t bits = WEIGHT_BITS - kept;
    for (uint32_t i = 0; i < n; ++i) {
        v[i] = (v[i] + (int32_t)(draw(key, first + i) >> (32 - bits))) >> bits;
    }
    if (to.accum) {
        int16_t *restrict accum = to.accum + first;
        for (uint32_t i = 0; i < n; ++i) {
            accum[i] = (int16_t)limit32(accum[i] + v[i], INT16_MIN, INT16_MAX);
        }
        return;
    }
    for (uint32_t i = 0; i < n && to.fraction; ++i) {
        v[i] = carry(to.fraction, first + i, v[i]);
    }
    for (uint32_t i = 0; i < n; ++i) {
        weight[i] = (int8_t)limit32(weight[i] - v[i], -127, 127);
    }
}

static void apply_weights(uint32_t n, int8_t *weight, int16_t *accum) {
    for (uint32_t i = 0; i < n; ++i) {
        const int32_t whole = (accum[i] + 128) >> ACCUM_BITS;
        weight[i] = (int8_t)limit32(weight[i] - whole, -127, 127);
        accum[i] = (int16_t)(accum[i] - whole * 256);
    }
}

static int32_t limited_sum(int32_t a, int32_t b) {
    const int32_t sum = add32(a, b);
    if (((a ^ sum) & (b ^ sum)) < 0) { // it has wrapped
        return a < 0 ? -BIAS_LIMIT : BIAS_LIMIT;
    }
    return limit32(sum, -BIAS_LIMIT, BIAS_LIMIT);
}

static void update_bias(const rule_t *rule, int32_t v, uint32_t c, int32_t *bias, int32_t *accum) {
    sp_steps(&v, 1, rule->factor, rule->shift);
    if (accum) {
        *accum = limited_sum(*accum, v);
    } else {
        const uint32_t random = draw(rule->key, c);
        *bias = limited_sum(*bias, -((v + (int32_t)(random >> (32 - BIAS_BITS))) >> BIAS_BITS));
    }
}

static void apply_bias(int32_t *bias, int32_t *accum) {
    const int32_t whole = add32(*accum, 128) >> 8;
    *bias = limited_sum(*bias, -whole);
    *accum = add32(*accum, -whole * 256);
}

// Whether there is anything to update, and with a rate that is one.
static bool may_update(exec_t *e, const tensor_t *g) {
    if (e->mode == MODE_APPLY) {
        return true;
    }
    if (e->run->rate_mantissa < 1 || e->run->rate_mantissa > 4095) {
        sp_fail(e, SPROUT_E_RATE, e->run->rate_mantissa);
        return false;
    }
    return !is_zero(g);
}

// Sum over the pixels of channel c of g.
static int32_t sum_pixels(const tensor_t *g, uint32_t c) {
    const int16_t *q = (const int16_t *)g->data + c;
    int32_t sum = 0;
    for (uint32_t pixel = (uint32_t)(g->h * g->w); pixel--; q += g->c) {
        sum = add32(sum, *q);
    }
    return sum;
}

void sp_bias_update(exec_t *e, const op_t *op) {
    const tensor_t g = sp_bind_gradient(e, op, 0);
    const uint32_t n = (uint32_t)g.c;
    int32_t *bias = sp_bind_trained(e, op, 0, n, sizeof(int32_t));
    const records_t records = sp_bind_records(e, op, 1, n, sizeof(rate_t), 1);
    int32_t *accum = sp_bind_accum(e, op, 2, n, sizeof(int32_t));
    sp_need_scratch(e, sizeof(rate_t));
    if (!bias) {
        sp_fail(e, SPROUT_E_PARAMETER, 0);
    }
    if (sp_stop(e) || !may_update(e, &g)) {
        return;
    }
    const bool apply = e->mode == MODE_APPLY;
    const uint32_t key = apply ? 0 : key_of(e, op->p[3]);
    for (uint32_t first = 0, count; first < n; first += count) {
        const void *tile = sp_load(e, &records, first, false, &count);
        const rate_t *rates = tile;
        if (!rates) {
            return;
        }
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t c = first + i;
            if (rates[i].mantissa == 0) {
                continue;
            }
            if (apply) {
                apply_bias(bias + c, accum + c);
            } else {
                const rule_t rule = rule_of(e, &g, rates[i], BIAS_BITS, key);
                update_bias(&rule, sum_pixels(&g, c), c, bias + c, accum ? accum + c : NULL);
            }
        }
    }
}

// sum[i] += g * (x[i] - zero_point)
static void multiply(const int8_t *restrict x, int32_t zero_point, int32_t g, uint32_t n,
                     int32_t *restrict sum) {
    for (uint32_t i = 0; i < n; ++i) {
        sum[i] = add32(sum[i], g * (x[i] - zero_point));
    }
}

void sp_weight_gradient_plain(const tensor_t *g, const tensor_t *x, const window_t *k, uint32_t o,
                              uint32_t first, uint32_t n, int32_t *sum) {
    const int16_t *q = (const int16_t *)g->data + o;
    const int8_t *data = (const int8_t *)x->data + first;
    const bool joined = n == (uint32_t)x->c; // taps side by side are one run of elements
    sp_fill(sum, 0, (uint32_t)k->taps * n * (uint32_t)sizeof(int32_t));
    for (int32_t oy = 0; oy < g->h; ++oy) {
        const span_t v = span(oy, k->stride_h, k->top, k->kh, x->h);
        for (int32_t ox = 0; ox < g->w; ++ox, q += g->c) {
            const span_t u = span(ox, k->stride_w, k->left, k->kw, x->w);
            const int32_t step = joined ? max32(1, u.to - u.from) : 1;
            for (int32_t ky = v.from; ky < v.to && *q; ++ky) {
                for (int32_t kx = u.from; kx < u.to; kx += step) {
                    multiply(data + at(x, v.start + ky, u.start + kx), x->zero_point, *q,
                             (uint32_t)step * n, sum + (uint32_t)(ky * k->kw + kx) * n);
                }
            }
        }
    }
}

REPLACEABLE void sp_weight_gradient(const tensor_t *g, const tensor_t *x, const window_t *k,
                                    uint32_t o, uint32_t first, uint32_t n, int32_t *sum) {
    sp_weight_gradient_plain(g, x, k, o, first, n, sum);
}

// Gradients and updates of both kinds of layers. Row j of the trained weights belongs to output
// channel list[j]: `row` elements, from all input channels or, depthwise, from one. There x holds
// one channel per row if there is a list; without one it is the layer's input.
static void update_layer(exec_t *e, const op_t *op, bool depthwise) {
    const tensor_t g = sp_bind_gradient(e, op, 0), x = sp_bind(e, op, 1, INT8);
    const window_t k = sp_bind_window(e, op);
    const list_t list = depthwise ? sp_bind_list(e, op, 6, g.c) : (list_t){NULL, g.c};
    const uint32_t outputs = (uint32_t)g.c, inputs = (uint32_t)x.c, n_rows = (uint32_t)list.n;
    const uint32_t width = depthwise ? 1 : inputs; // of a tap
    const uint32_t row = size_mul((uint32_t)k.taps, width), n = size_mul(n_rows, row);
    int8_t *weight = sp_bind_trained(e, op, 2, n, 1);
    const records_t records = sp_bind_records(e, op, 3, outputs, sizeof(rate_t), 1);
    int16_t *accum = sp_bind_accum(e, op, 4, n, sizeof(int16_t));
    uint8_t *fraction = sp_bind_trained(e, op, 8, (n + 1) / 2, 1);
    sp_need_scratch(e,
                    size_add(size_mul(outputs, sizeof(rate_t)), size_mul(row, sizeof(int32_t))));
    uint32_t divisor = 0; // rows per input channel
    if (depthwise) {
        divisor = inputs ? divide(n_rows, inputs) : 0;
        sp_require(e, n_rows == divisor * inputs && (!list.channel || divisor == 1), 1);
    }
    if (!weight) {
        sp_fail(e, SPROUT_E_PARAMETER, 2);
    }
    if (sp_stop(e) || !may_update(e, &g)) {
        return;
    }
    void *rest;
    const rate_t *rates = sp_load_all(e, &records, &rest);
    int32_t *sum = rest;
    if (!rates) {
        return;
    }
    const bool apply = e->mode == MODE_APPLY;
    const uint32_t key = apply ? 0 : key_of(e, op->p[5]);
    for (uint32_t j = 0, at = 0; j < n_rows; ++j, at += row) {
        const uint32_t o = list.channel ? list.channel[j] : j;
        if (rates[o].mantissa == 0) {
            continue;
        }
        if (apply) {
            apply_weights(row, weight + at, accum + at);
        } else {
            const rule_t rule = rule_of(e, &g, rates[o], WEIGHT_BITS, key);
            sp_weight_gradient(&g, &x, &k, o, divisor ? divide(j, divisor) : 0, width, sum);
            update_weights(&rule, sum, at, row, (weights_t){weight, accum, fraction});
        }
    }
}

void sp_conv_weight_update(exec_t *e, const op_t *op) { update_layer(e, op, false); }

void sp_depthwise_weight_update(exec_t *e, const op_t *op) { update_layer(e, op, true); }
