// The header, the loop over operators, and what a caller asks for besides running them.

#include "internal.h"

// One row per operator. Not a table: a native module cannot hold addresses.
#define ROW(code, operator)                                                                       \
    case code:                                                                                    \
        if (HAS(code)) {                                                                          \
            operator(e, op);                                                                      \
            return;                                                                               \
        }                                                                                         \
        break;
// clang-format off
void sp_dispatch(exec_t *e, const op_t *op) {
    switch (op->opcode) {
    ROW(CONV, sp_layer)
    ROW(DEPTHWISE, sp_layer)
    ROW(3, sp_add)
    ROW(4, sp_average_pool)
    ROW(5, sp_max_pool)
    ROW(6, sp_mean)
    ROW(7, sp_pad)
    ROW(8, sp_softmax)
    ROW(9, sp_gather)
    ROW(10, sp_requantize)
    ROW(STREAM, sp_stream)
    ROW(32, sp_cross_entropy)
    ROW(33, sp_scale_grad)
    ROW(CONV_GRAD, sp_layer)
    ROW(DEPTHWISE_GRAD, sp_layer)
    ROW(36, sp_bias_update)
    ROW(37, sp_conv_weight_update)
    ROW(38, sp_depthwise_weight_update)
    ROW(39, sp_add_grads)
    ROW(40, sp_average_pool_grad)
    ROW(41, sp_max_pool_grad)
    ROW(42, sp_mean_grad)
    ROW(43, sp_pad_grad)
    }
    sp_fail(e, SPROUT_E_OPCODE, op->opcode);
}
// clang-format on

static bool is_update(const op_t *op) { return op->opcode >= 36 && op->opcode <= 38; }

static bool misaligned(const void *p) { return ((uintptr_t)p & 3) != 0; }

static bool too_short(const void *buffer, uint32_t length, uint32_t needed) {
    return needed > INT32_MAX || length < needed || (needed && !buffer);
}

// Everything that offsets are later held against.
static int32_t check_header(const sprout_memory_t *m) {
    const header_t *head = (const header_t *)(const void *)m->program;
    if (!head || m->program_len < sizeof(header_t)) {
        return SPROUT_E_HEADER;
    }
    if (misaligned(m->program) || misaligned(m->blob) || misaligned(m->arena) ||
        misaligned(m->trained) || misaligned(m->scratch) || misaligned(m->accum)) {
        return SPROUT_E_ALIGNMENT;
    }
    const uint32_t tensors = head->n_tensors * (uint32_t)sizeof(tensor_row_t);
    const uint32_t ops = head->n_ops * (uint32_t)sizeof(op_t);
    if (head->magic[0] != 'S' || head->magic[1] != 'P' || head->magic[2] != 'R' ||
        head->magic[3] != 'T' || head->version != 2 || head->header_len != sizeof(header_t) ||
        head->program != sizeof(header_t) || head->program_len < tensors ||
        head->program_len > m->program_len - sizeof(header_t) || head->n_forward > head->n_ops ||
        head->file_len > INT32_MAX || head->constants & 3 || head->constants > head->file_len ||
        head->constants_len > head->file_len - head->constants || head->constants_len < ops) {
        return SPROUT_E_HEADER;
    }
    if (m->blob ? m->blob_len < head->file_len : !m->read) {
        return SPROUT_E_CONSTANTS;
    }
    if (too_short(m->arena, m->arena_len, head->arena_len)) {
        return SPROUT_E_ARENA;
    }
    if (too_short(m->trained, m->trained_len, head->trained_len)) {
        return SPROUT_E_TRAINED;
    }
    if (too_short(m->scratch, m->scratch_len, head->scratch_len)) {
        return SPROUT_E_SCRATCH;
    }
    if (m->accum && (head->accum_len == 0 || too_short(m->accum, m->accum_len, head->accum_len))) {
        return SPROUT_E_ACCUM;
    }
    return SPROUT_OK;
}

int32_t sp_begin(exec_t *e, const sprout_memory_t *memory, sprout_run_t *run, int32_t mode) {
    *e = (exec_t){0};
    e->error = check_header(memory);
    if (e->error != SPROUT_OK) {
        return e->error;
    }
    e->memory = memory;
    e->head = (const header_t *)(const void *)memory->program;
    e->run = run;
    e->mode = mode;
    if (e->head->exponents != NONE) {
        const tensor_t exponents = sp_bind_number(e, e->head->exponents, INT32);
        e->exponents = exponents.data;
        e->n_slots = exponents.n;
    }
    return e->error;
}

bool sp_read_op(exec_t *e, uint32_t i, op_t *op) {
    return sp_fetch(e, e->head->constants + i * (uint32_t)sizeof(op_t), op, sizeof(op_t));
}

int32_t sprout_run(const sprout_memory_t *memory, sprout_run_t *run) {
    exec_t e;
    run->loss_q16 = run->reruns = run->detail = 0;
    run->error_op = -1;
    if (sp_begin(&e, memory, run, run->mode) != SPROUT_OK) {
        run->detail = e.detail;
        return e.error;
    }
    if (run->mode < SPROUT_PREDICT || run->mode > SPROUT_CHECK || run->first_op < 0 ||
        run->first_op > run->last_op || run->last_op > e.head->n_ops) {
        return SPROUT_E_RANGE;
    }
    const uint32_t skipped = run->mode == SPROUT_PREDICT ? ONLY_TRAIN
                             : run->mode == SPROUT_LEARN ? ONLY_INFER
                                                         : 0;
    for (int32_t i = run->first_op; i < run->last_op; ++i) {
        op_t op;
        if (sp_read_op(&e, (uint32_t)i, &op)) {
            if (op.flags & skipped || op.flags & MEMBER) { // a group runs its members
                continue;
            }
            sp_dispatch(&e, &op);
        }
        if (HAS(STREAM) && e.group.n && e.error == SPROUT_OK) {
            sp_run_group(&e);
        }
        if (e.error != SPROUT_OK) {
            run->error_op = i;
            run->detail = e.detail;
            return e.error;
        }
    }
    return SPROUT_OK;
}

int32_t sprout_check(const sprout_memory_t *memory) {
    exec_t e;
    if (sp_begin(&e, memory, NULL, SPROUT_CHECK) != SPROUT_OK) {
        return e.error;
    }
    sprout_run_t run = {0};
    run.last_op = e.head->n_ops;
    run.mode = SPROUT_CHECK;
    return sprout_run(memory, &run);
}

int32_t sprout_apply(const sprout_memory_t *memory) {
    exec_t e;
    if (sp_begin(&e, memory, NULL, MODE_APPLY) != SPROUT_OK) {
        return e.error;
    }
    if (!memory->accum) {
        return SPROUT_E_ACCUM;
    }
    for (int32_t i = 0; i < e.head->n_ops && e.error == SPROUT_OK; ++i) {
        op_t op;
        if (sp_read_op(&e, (uint32_t)i, &op) && is_update(&op)) {
            sp_dispatch(&e, &op);
        }
    }
    return e.error;
}

int32_t sprout_probabilities(const sprout_memory_t *memory, int32_t n_classes, int32_t p0,
                             int32_t *out) {
    exec_t e;
    if (sp_begin(&e, memory, NULL, SPROUT_PREDICT) != SPROUT_OK) {
        return e.error;
    }
    const tensor_t logits = sp_bind_number(&e, e.head->logits, INT8);
    if (e.error != SPROUT_OK) {
        return e.error;
    }
    return sp_probabilities(&logits, n_classes, p0, out);
}
