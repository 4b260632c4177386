// Softmax as TFLite computes it, softmax cross-entropy with its gradient, and probabilities.

#include "internal.h"

enum { MAX_CLASSES = 1024 };     // a sum of Q20 numbers fits 31 bits
enum { MAX_P0 = (1 << 23) - 1 }; // so does the difference of two logits times p0
enum { Q31_ONE = INT32_MAX };

// Up to sp_softmax everything is gemmlowp's fixedpoint.h, whose names stand in brackets. QN.M has
// N integer and M fractional bits.

static int32_t step_exp(int32_t rest, int32_t bit, int32_t factor, int32_t result) {
    return rest >> bit & 1 ? high_mul(result, factor) : result;
}

// exp of a <= 0 in Q5.26; the result is Q0.31 (exp_on_negative_values)
static int32_t exp_q26(int32_t a) {
    if (a == 0) {
        return Q31_ONE;
    }
    const int32_t quarter = 1 << 24;
    const int32_t inside = (a & (quarter - 1)) - quarter; // [-1/4, 0)
    const int32_t rest = (int32_t)((uint32_t)inside - (uint32_t)a);
    const int32_t x = inside * 32 + (1 << 28), x2 = high_mul(x, x); // Taylor around -1/8
    const int32_t x3 = high_mul(x2, x), x4 = high_mul(x2, x2);
    const int32_t tail = shift_away(high_mul(shift_away(x4, 2) + x3, 715827883) + x2, 1);
    int32_t result = 1895147668 + high_mul(1895147668, x + tail);
    result = step_exp(rest, 24, 1672461947, result); // exp(-1/4), exp(-1/2), ..., exp(-16)
    result = step_exp(rest, 25, 1302514674, result);
    result = step_exp(rest, 26, 790015084, result);
    result = step_exp(rest, 27, 290630308, result);
    result = step_exp(rest, 28, 39332535, result);
    result = step_exp(rest, 29, 720401, result);
    return step_exp(rest, 30, 242, result);
}

static int32_t shift_left_limited(int32_t x, int32_t n) {
    const int32_t limit = (1 << (31 - n)) - 1;
    return x > limit ? INT32_MAX : x < -limit ? INT32_MIN : x * (1 << n);
}

// 1 / (1 + a) for a in [0, 1), both Q0.31 (one_over_one_plus_x_for_x_in_0_1)
static int32_t reciprocal_q31(int32_t a) {
    const int32_t half = (int32_t)(((uint32_t)a + Q31_ONE + 1) >> 1);
    int32_t x = 1515870810 + high_mul(half, -1010580540); // 48/17 - 32/17 * half, Q2.29
    for (int32_t i = 0; i < 3; ++i) {
        const int32_t rest = (1 << 29) - high_mul(half, x);
        x = add32(x, shift_left_limited(high_mul(x, rest), 2));
    }
    return shift_left_limited(x, 1);
}

static int32_t greatest(const int8_t *x, int32_t n) {
    int32_t best = x[0];
    for (int32_t i = 1; i < n; ++i) {
        best = max32(best, x[i]);
    }
    return best;
}

// Along c of x (H, W, C).
void sp_softmax(exec_t *e, const op_t *op) {
    const tensor_t x = sp_bind(e, op, 0, INT8), y = sp_bind(e, op, 1, INT8);
    const int32_t left = sp_bind_value(e, op, 1, 0, 31);
    sp_require(e, x.n == y.n && x.c == y.c, 1);
    sp_need_scratch(e, size_mul((uint32_t)x.c, sizeof(int32_t)));
    if (sp_stop(e)) {
        return;
    }
    int32_t *power = (int32_t *)(void *)e->memory->scratch;
    const int8_t *from = x.data;
    int8_t *to = y.data;
    for (uint32_t row = (uint32_t)(x.h * x.w); row--; from += x.c, to += x.c) {
        const int32_t top = greatest(from, x.c);
        uint32_t sum = 0; // Q12.19
        for (int32_t i = 0; i < x.c; ++i) {
            const int32_t diff = from[i] - top;
            const int32_t scaled = high_mul((int32_t)((uint32_t)diff << left), op->p[0]);
            power[i] = diff < op->p[2] ? -1 : exp_q26(scaled);
            sum += power[i] < 0 ? 0 : (uint32_t)shift_away(power[i], 12);
        }
        const uint32_t headroom = 32 - (uint32_t)bitlen32(sum | 1);
        const int32_t scale = reciprocal_q31((int32_t)((sum << headroom) & INT32_MAX));
        const uint32_t shift = 12 - headroom + 31 - 8;
        for (int32_t i = 0; i < x.c; ++i) {
            const int32_t p = shift_away(high_mul(scale, power[i]), shift > 31 ? 31 : shift);
            to[i] = power[i] < 0 ? -128 : (int8_t)limit32(p - 128, -128, 127);
        }
    }
}

// exp2(-t) in Q20 for t >= 0 in Q16: a polynomial of degree 5 on [0, 1), Q30, then a shift.
static int32_t exp2_q20(int32_t t) {
    static const int32_t poly[5] = {1073741824, -744256846, 257890763, -59377501, 9890102};
    const int32_t fraction = t & 65535;
    int32_t r = -1017428;
    for (int32_t i = 4; i >= 0; --i) {
        r = poly[i] + (int32_t)(mul64(r, fraction) >> 16);
    }
    return (r >> 10) >> min32(t >> 16, 31);
}

typedef struct {
    uint32_t sum;    // of the powers, Q20
    int32_t x;       // bits that `sum` has beyond 16
    int32_t inverse; // 2**31 / (sum >> x)
} total_t;

// power[i] = exp(logit i - greatest logit) in Q20
static total_t powers(const int8_t *logit, int32_t n, int32_t p0, int32_t *power) {
    const int32_t top = greatest(logit, n);
    total_t total = {0};
    for (int32_t i = 0; i < n; ++i) {
        power[i] = exp2_q20((top - logit[i]) * p0);
        total.sum += (uint32_t)power[i];
    }
    total.x = bitlen32(total.sum) - 16;
    total.inverse = (int32_t)divide(1u << 31, total.sum >> total.x);
    return total;
}

// ln(sum), which is Q20, plus t (log2, Q16); the result is Q16.
static int32_t loss_of(uint32_t sum, int32_t t) {
    const int32_t bits = bitlen32(sum);
    uint32_t m = sum << (31 - bits);
    int32_t log = (bits - 1) * 65536;
    for (int32_t b = 15; b >= 0; --b) {
        m = (uint32_t)(umul64(m, m) >> 30);
        if (m >> 31) {
            m >>= 1;
            log += 1 << b;
        }
    }
    return (int32_t)(mul64(log - 20 * 65536 + t, 45426) >> 16);
}

// logits and g are (1, 1, C)
void sp_cross_entropy(exec_t *e, const op_t *op) {
    const tensor_t logits = sp_bind(e, op, 0, INT8);
    const tensor_t g = sp_bind_gradient(e, op, 1);
    const int32_t p0 = sp_bind_value(e, op, 0, 0, MAX_P0);
    const int32_t mantissa = sp_bind_value(e, op, 1, 0, (1 << 15) - 1);
    sp_require(e, g.n == logits.n, 1);
    sp_need_scratch(e, size_mul(logits.n, sizeof(int32_t)));
    if (sp_stop(e)) {
        return;
    }
    const int32_t n = e->run->n_classes, label = e->run->label;
    if (n < 1 || n > MAX_CLASSES || (uint32_t)n > logits.n || label < 0 || label >= n) {
        sp_fail(e, SPROUT_E_LABEL, (int32_t)logits.n);
        return;
    }
    int32_t *v = (int32_t *)(void *)e->memory->scratch;
    const int8_t *logit = logits.data;
    const total_t total = powers(logit, n, p0, v);
    const int32_t t = (greatest(logit, n) - logit[label]) * p0;
    e->run->loss_q16 = loss_of(total.sum, t);

    v[label] -= (int32_t)total.sum;
    uint32_t seen = 0;
    for (int32_t i = 0; i < n; ++i) {
        seen |= magnitude32(v[i]);
    }
    const int32_t a = max32(0, bitlen32(seen) - GRAD_BITS);
    const int32_t m = (int32_t)((uint32_t)total.inverse * (uint32_t)mantissa >> 15);
    seen = 0;
    for (int32_t i = 0; i < n; ++i) {
        v[i] = rshift32(v[i], a) * m;
        seen |= magnitude32(v[i]);
    }
    sp_store_zero(&g);
    if (seen == 0) {
        return;
    }
    const int32_t s = max32(0, bitlen32(seen) - GRAD_BITS);
    int16_t *q = g.data;
    for (int32_t i = 0; i < n; ++i) {
        q[i] = (int16_t)rshift32(v[i], s);
    }
    *g.exponent = add32(a - 16 - total.x + s, op->p[2]);
}

int32_t sp_probabilities(const tensor_t *logits, int32_t n, int32_t p0, int32_t *out) {
    if (n < 1 || n > MAX_CLASSES || (uint32_t)n > logits->n || p0 < 0 || p0 > MAX_P0 || !out) {
        return SPROUT_E_LABEL;
    }
    const total_t total = powers(logits->data, n, p0, out);
    for (int32_t i = 0; i < n; ++i) {
        out[i] = (int32_t)((uint32_t)(out[i] >> 5) * (uint32_t)total.inverse >> (11 + total.x));
    }
    return SPROUT_OK;
}
