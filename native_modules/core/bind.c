// From numbers and offsets in the program section to pointers, with every check there is.

#include "internal.h"

void sp_fail(exec_t *e, int32_t error, int32_t detail) {
    if (e->error == SPROUT_OK) {
        e->error = error;
        e->detail = detail;
    }
}

bool sp_stop(const exec_t *e) { return e->error != SPROUT_OK || e->mode == SPROUT_CHECK; }

void sp_require(exec_t *e, bool fits, int32_t operand) {
    if (!fits) {
        sp_fail(e, SPROUT_E_SHAPE, operand);
    }
}

void sp_need_scratch(exec_t *e, uint32_t bytes) {
    if (bytes > e->memory->scratch_len) {
        sp_fail(e, SPROUT_E_SCRATCH, (int32_t)bytes);
    }
}

// Whether [offset, offset + length) lies in [0, limit) and starts at a multiple of `align`.
static bool inside(uint32_t offset, uint32_t length, uint32_t limit, uint32_t align) {
    return offset <= limit && length <= limit - offset && (offset & (align - 1)) == 0;
}

const tensor_row_t *sp_row_of(exec_t *e, uint32_t number) {
    if (number >= e->head->n_tensors) {
        sp_fail(e, SPROUT_E_TENSOR, (int32_t)number);
        return NULL;
    }
    const uint8_t *table = e->memory->program + e->head->program;
    return (const tensor_row_t *)(const void *)table + number;
}

tensor_t sp_bind_number(exec_t *e, uint32_t number, int32_t dtype) {
    tensor_t t = {0};
    const tensor_row_t *found = sp_row_of(e, number);
    if (!found) {
        return t;
    }
    const tensor_row_t row = *found;
    const uint32_t rows = row.rows ? row.rows : row.h;
    const uint32_t n = size_mul(size_mul(rows, row.w), row.c);
    const uint32_t align = dtype == INT16 ? 2 : dtype == INT32 ? 4 : 1;
    const uint32_t bytes = dtype == BITS ? size_add(n, 7) >> 3 : size_mul(n, align);
    if (row.dtype != dtype || n == 0 || n > INT32_MAX ||
        !inside(row.offset, bytes, e->head->arena_len, align)) {
        sp_fail(e, SPROUT_E_TENSOR, (int32_t)number);
        return t;
    }
    t.h = (int32_t)rows;
    t.w = row.w;
    t.c = row.c;
    t.n = n;
    t.zero_point = row.zero_point;
    t.exponent = row.slot < e->n_slots ? e->exponents + row.slot : NULL;
    t.data = e->memory->arena + row.offset;
    return t;
}

tensor_t sp_bind(exec_t *e, const op_t *op, int32_t operand, int32_t dtype) {
    tensor_t t = sp_bind_number(e, op->tensor[operand], dtype);
    const view_t *view = e->view;
    if (!view || !view->n[operand]) {
        if (t.data && sp_row_of(e, op->tensor[operand])->rows) {
            sp_fail(e, SPROUT_E_TENSOR, op->tensor[operand]);
        }
        return t;
    }
    const int32_t first = view->first[operand], n = view->n[operand];
    const uint32_t row = (uint32_t)t.w * (uint32_t)t.c;
    if (dtype != INT8 || first < 0 || first > t.h - n) {
        sp_fail(e, SPROUT_E_TENSOR, op->tensor[operand]);
        return t;
    }
    t.data = (uint8_t *)t.data + (uint32_t)first * row;
    t.h = n;
    t.n = (uint32_t)n * row;
    return t;
}

tensor_t sp_bind_gradient(exec_t *e, const op_t *op, int32_t operand) {
    if (!e->exponents) {
        sp_fail(e, SPROUT_E_NO_LEARNING, 0);
    }
    tensor_t t = sp_bind(e, op, operand, INT16);
    if (!t.exponent) {
        sp_fail(e, SPROUT_E_TENSOR, op->tensor[operand]);
    }
    return t;
}

uint8_t *sp_bind_saved(exec_t *e, const op_t *op, int32_t operand, int32_t dtype, uint32_t n) {
    if (op->tensor[operand] == NONE) {
        return NULL;
    }
    tensor_t t = sp_bind(e, op, operand, dtype);
    sp_require(e, t.n == n, operand);
    return e->mode == SPROUT_PREDICT ? NULL : t.data;
}

output_t sp_bind_output(exec_t *e, const op_t *op, int32_t operand, int32_t p, tensor_t *t) {
    *t = sp_bind(e, op, operand, INT8);
    output_t out;
    out.min = sp_bind_value(e, op, p, -128, 127);
    out.max = sp_bind_value(e, op, p + 1, out.min, 127);
    out.zero_point = t->zero_point;
    out.y = t->data;
    out.mask = sp_bind_saved(e, op, operand + 1, BITS, t->n);
    return out;
}

window_t sp_bind_window(exec_t *e, const op_t *op) {
    const uint32_t p0 = (uint32_t)op->p[0], p1 = (uint32_t)op->p[1];
    window_t k;
    k.kh = (int32_t)(p0 & 255);
    k.kw = (int32_t)(p0 >> 8 & 255);
    k.stride_h = (int32_t)(p0 >> 16 & 255);
    k.stride_w = (int32_t)(p0 >> 24);
    k.top = e->view ? e->view->top : (int32_t)(p1 & 255);
    k.left = (int32_t)(p1 >> 8 & 255);
    k.taps = k.kh * k.kw;
    if (k.taps == 0 || k.stride_h == 0 || k.stride_w == 0) {
        sp_fail(e, SPROUT_E_PARAMETER, 0);
    }
    return k;
}

list_t sp_bind_list(exec_t *e, const op_t *op, int32_t p, int32_t limit) {
    const uint32_t offset = (uint32_t)op->p[p], n = (uint32_t)op->p[p + 1];
    if (op->p[p] == -1) {
        return (list_t){NULL, limit};
    }
    if (n == 0 || n > (uint32_t)limit || !inside(offset, n * 2, e->head->program_len, 2)) {
        sp_fail(e, SPROUT_E_PARAMETER, p);
        return (list_t){NULL, 0};
    }
    const uint8_t *section = e->memory->program + e->head->program;
    const uint16_t *channel = (const uint16_t *)(const void *)(section + offset);
    for (uint32_t i = 0; i < n; ++i) {
        if (channel[i] >= limit) {
            sp_fail(e, SPROUT_E_PARAMETER, p);
        }
    }
    return (list_t){channel, (int32_t)n};
}

int32_t sp_bind_value(exec_t *e, const op_t *op, int32_t p, int32_t low, int32_t high) {
    if (op->p[p] < low || op->p[p] > high) {
        sp_fail(e, SPROUT_E_PARAMETER, p);
    }
    return op->p[p];
}

static void *bind_region(exec_t *e, const op_t *op, int32_t p, uint32_t bytes, uint8_t *region,
                         uint32_t region_len, uint32_t align) {
    if (op->p[p] == -1) {
        return NULL;
    }
    if (!inside((uint32_t)op->p[p], bytes, region_len, align)) {
        sp_fail(e, SPROUT_E_PARAMETER, p);
        return NULL;
    }
    return region + op->p[p];
}

void *sp_bind_trained(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size) {
    const uint32_t bytes = size_mul(n, size);
    return bind_region(e, op, p, bytes, e->memory->trained, e->head->trained_len, 4);
}

void *sp_bind_accum(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size) {
    if (!e->memory->accum) {
        return NULL;
    }
    if (op->p[p] == -1) {
        sp_fail(e, SPROUT_E_ACCUM, p);
    }
    const uint32_t bytes = size_mul(n, size);
    return bind_region(e, op, p, bytes, e->memory->accum, e->head->accum_len, size);
}

records_t sp_bind_records(exec_t *e, const op_t *op, int32_t p, uint32_t n, uint32_t size,
                          uint32_t unit) {
    const uint32_t ops = e->head->n_ops * (uint32_t)sizeof(op_t); // they come first in the section
    if (!inside((uint32_t)op->p[p], size_mul(n, size), e->head->constants_len - ops, 4)) {
        sp_fail(e, SPROUT_E_PARAMETER, p);
    }
    const uint32_t offset = e->head->constants + ops + (uint32_t)op->p[p];
    const uint32_t at = offset - e->kept.offset; // in what is kept
    const uint8_t *data = NULL;
    if (e->memory->blob) {
        data = e->memory->blob + offset;
    } else if (inside(at, size_mul(n, size), e->kept.length, 4)) { // before it is far above it
        data = e->kept.data + at;
    }
    return (records_t){data, offset, size, n, unit, 0};
}

bool sp_fetch(exec_t *e, uint32_t offset, void *to, uint32_t length) {
    if (e->memory->blob) {
        sp_copy(to, e->memory->blob + offset, length);
        return true;
    }
    const int32_t result = e->memory->read(e->memory->read_ctx, offset, to, length);
    if (result != 0) {
        sp_fail(e, SPROUT_E_READ, result);
    }
    return result == 0;
}

uint8_t *sp_load(exec_t *e, const records_t *r, uint32_t first, bool own, uint32_t *n) {
    *n = r->n - first;
    if (r->data && !own) {
        return (uint8_t *)(uintptr_t)(r->data + first * r->size);
    }
    *n = umin32(*n, divide(e->memory->scratch_len - r->reserved, r->size * r->unit) * r->unit);
    if (r->offset == ABSENT) {
        return e->memory->scratch;
    }
    const uint32_t offset = r->offset + first * r->size;
    return sp_fetch(e, offset, e->memory->scratch, *n * r->size) ? e->memory->scratch : NULL;
}

const void *sp_load_all(exec_t *e, const records_t *r, void **rest) {
    *rest = e->memory->scratch;
    if (r->data) {
        return r->data;
    }
    const uint32_t bytes = r->n * r->size;
    *rest = e->memory->scratch + bytes;
    return sp_fetch(e, r->offset, e->memory->scratch, bytes) ? e->memory->scratch : NULL;
}
