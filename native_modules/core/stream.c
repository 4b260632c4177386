// Groups of operators that work row by row, and the rows of the input.
//
// A group's operators pass rows on through buffers that hold a few of them. Always the last
// operator that can give a row gives one, so that rows are used up before there are more; no row
// is computed twice. A buffer that is full drops, from its start, what no operator will read.

#include "internal.h"

enum { CONV = 1, DEPTHWISE = 2, ADD = 3, AVERAGE_POOL = 4, MAX_POOL = 5, REQUANTIZE = 10 };
enum { SOURCE = 10 }; // p of a member: which operand comes from which member
enum { NO_MEMBER = -1 };

// Rows [first, next) of a tensor are in its buffer, `first` at its start.
typedef struct {
    int16_t first, next;
} held_t;

// The members in the order of the program, and the rows of what each of them gives; held[n] are
// those of the input, where the group takes it row by row.
typedef struct {
    op_t *op;
    held_t *held;
    int32_t n;
} group_t;

_Static_assert(sizeof(held_t) == 4, "held_t is not a word of a group's buffer");

static int32_t inputs_of(const op_t *op) { return op->opcode == ADD ? 2 : 1; }

static bool is_member(const op_t *op) {
    return (op->opcode >= CONV && op->opcode <= MAX_POOL) || op->opcode == REQUANTIZE;
}

// The rows of the input that row `row` of the output is made from, from `start` on.
static span_t rows_behind(const op_t *op, int32_t row, int32_t height) {
    if (op->opcode == ADD || op->opcode == REQUANTIZE) {
        return (span_t){row, row, row + 1};
    }
    const int32_t kernel = op->p[0] & 255, stride = op->p[0] >> 16 & 255, top = op->p[1] & 255;
    const int32_t start = row * stride - top;
    return (span_t){start, max32(0, start), min32(height, start + kernel)};
}

// Binds the group's buffer: its members, what they hold, and the constants that they use.
static group_t open_group(exec_t *e, const op_t *op, uint8_t **constants) {
    group_t g = {0};
    const uint32_t n = (uint32_t)sp_bind_value(e, op, 1, 1, 64);
    const uint32_t length = (uint32_t)sp_bind_value(e, op, 4, 0, INT32_MAX);
    const tensor_t buffer = sp_bind(e, op, 0, INT32);
    const uint32_t words = n * (uint32_t)(sizeof(op_t) / 4) + n + 1;
    sp_require(e, buffer.n == size_add(words, length >> 2), 0);
    const records_t kept = sp_bind_records(e, op, 3, length, 1, 1);
    if (e->error == SPROUT_OK) {
        g.op = buffer.data;
        g.held = (held_t *)(void *)(g.op + n);
        g.n = (int32_t)n;
        *constants = (uint8_t *)(g.held + n + 1);
        e->kept = (kept_t){*constants, kept.offset, length};
    }
    return g;
}

// Fetches members and constants; nothing is held yet.
static void start_group(exec_t *e, const op_t *op, const group_t *g, uint8_t *constants) {
    for (int32_t i = 0; i < g->n && sp_read_op(e, (uint32_t)(op->p[0] + i), g->op + i); ++i) {
    }
    if (!e->memory->blob && e->error == SPROUT_OK) {
        sp_fetch(e, e->kept.offset, constants, e->kept.length);
    }
    sp_fill(g->held, 0, ((uint32_t)g->n + 1) * sizeof(held_t));
}

// Drops rows that nobody will read from the full buffer of member k, or of the input for k = n;
// false: there are none.
static bool make_room(exec_t *e, const group_t *g, int32_t k, const tensor_t *t) {
    held_t *held = &g->held[k];
    int32_t keep = held->next;
    for (int32_t j = k == g->n ? 0 : k + 1; j < g->n; ++j) {
        const op_t *op = &g->op[j];
        const int32_t inputs = inputs_of(op);
        for (int32_t i = 0; i < inputs; ++i) {
            const tensor_t y = sp_bind_number(e, op->tensor[inputs], INT8);
            if (op->p[SOURCE + i] == k && g->held[j].next < y.h) {
                keep = min32(keep, rows_behind(op, g->held[j].next, t->h).from);
            }
        }
    }
    const int32_t drop = keep - held->first;
    if (drop <= 0) {
        return false;
    }
    const uint32_t row = (uint32_t)t->w * (uint32_t)t->c;
    const uint32_t left = (uint32_t)(held->next - keep) * row;
    int8_t *to = t->data;
    const int8_t *from = to + (uint32_t)drop * row;
    if (((row | (uint32_t)(uintptr_t)to) & 3) == 0) {
        for (uint32_t i = 0; i < left; i += 4) {
            *(int32_t *)(void *)(to + i) = *(const int32_t *)(const void *)(from + i);
        }
    } else {
        for (uint32_t i = 0; i < left; ++i) {
            to[i] = from[i];
        }
    }
    held->first = (int16_t)keep;
    return true;
}

static bool holds_rows(const held_t *held, const tensor_t *t) {
    return held->first >= 0 && held->first <= held->next && held->next <= t->h &&
           held->next - held->first <= t->rows;
}

// Computes the next row of member k if all is there that it takes.
static bool give_row(exec_t *e, const group_t *g, int32_t k) {
    const op_t op = g->op[k];
    const int32_t inputs = inputs_of(&op);
    held_t *out = &g->held[k];
    const tensor_t y = sp_bind_number(e, op.tensor[inputs], INT8);
    sp_require(e, is_member(&op) && holds_rows(out, &y), inputs);
    if (e->error != SPROUT_OK || out->next == y.h) {
        return false;
    }
    view_t view = {0};
    for (int32_t i = 0; i < inputs; ++i) {
        const tensor_t x = sp_bind_number(e, op.tensor[i], INT8);
        const int32_t source = op.p[SOURCE + i];
        const span_t rows = rows_behind(&op, out->next, x.h);
        held_t in = {0, (int16_t)x.h};
        if (source != NO_MEMBER) {
            sp_require(e, source >= 0 && (source < k || source == g->n), i);
            if (e->error != SPROUT_OK) {
                return false;
            }
            in = g->held[source];
        }
        sp_require(e, holds_rows(&in, &x) && rows.from >= in.first && rows.from < rows.to, i);
        if (e->error != SPROUT_OK || rows.to > in.next) {
            return false;
        }
        view.first[i] = rows.from - in.first;
        view.n[i] = rows.to - rows.from;
        view.top = rows.from - rows.start;
    }
    if (out->next - out->first == y.rows && !make_room(e, g, k, &y)) {
        return false;
    }
    view.first[inputs] = out->next - out->first;
    view.n[inputs] = 1;
    e->view = &view;
    sp_dispatch(e, &op);
    e->view = NULL;
    ++out->next;
    return e->error == SPROUT_OK;
}

static void run_group(exec_t *e, const group_t *g) {
    for (int32_t k = g->n - 1; k >= 0 && e->error == SPROUT_OK; --k) {
        if (give_row(e, g, k)) {
            k = g->n;
        }
    }
}

// Checks the members as if each had a row of all that it reads.
static void check_members(exec_t *e, const op_t *op, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        op_t member;
        if (!sp_read_op(e, (uint32_t)(op->p[0] + i), &member)) {
            return;
        }
        if (!is_member(&member) || !(member.flags & MEMBER)) {
            sp_fail(e, SPROUT_E_OPCODE, member.opcode);
            return;
        }
        view_t view = {0};
        for (int32_t i = 0; i <= inputs_of(&member); ++i) {
            view.n[i] = 1;
        }
        e->view = &view;
        sp_dispatch(e, &member);
        e->view = NULL;
    }
}

void sp_stream(exec_t *e, const op_t *op) {
    uint8_t *constants;
    const group_t g = open_group(e, op, &constants);
    sp_bind_value(e, op, 0, 0, (int32_t)e->head->n_ops - g.n);
    const bool fed = sp_bind_value(e, op, 2, 0, 1) == 1;
    if (e->mode == SPROUT_CHECK && e->error == SPROUT_OK) {
        check_members(e, op, g.n);
    }
    if (sp_stop(e)) {
        return;
    }
    if (!fed) {
        start_group(e, op, &g, constants);
        run_group(e, &g);
    }
    const op_t *last = &g.op[g.n - 1];
    const tensor_t y = sp_bind_number(e, last->tensor[inputs_of(last)], INT8);
    if (e->error == SPROUT_OK && g.held[g.n - 1].next != y.h) {
        sp_fail(e, fed ? SPROUT_E_INPUT : SPROUT_E_PARAMETER, fed ? g.held[g.n].next : 0);
    }
    e->kept = (kept_t){0};
}

// Writes a row of the input.
static void put_row(const exec_t *e, int8_t *to, const uint8_t *pixels, uint32_t n) {
    const uint32_t offset = e->head->input_table;
    const uint8_t *table = e->memory->program + e->head->program + offset;
    for (uint32_t i = 0; i < n; ++i) {
        to[i] = (int8_t)(offset ? table[pixels[i]] : pixels[i]);
    }
}

int32_t sprout_input(const sprout_memory_t *memory, const uint8_t *pixels, uint32_t length,
                     int32_t row) {
    exec_t e;
    if (sp_begin(&e, memory, NULL, SPROUT_PREDICT) != SPROUT_OK) {
        return e.error;
    }
    const tensor_t x = sp_bind_number(&e, e.head->input, INT8);
    const uint32_t table = e.head->input_table;
    if (table && (e.head->program_len < 256 || table > e.head->program_len - 256)) {
        sp_fail(&e, SPROUT_E_HEADER, 0);
    }
    if (e.error != SPROUT_OK) {
        return e.error;
    }
    const uint32_t width = (uint32_t)x.w * (uint32_t)x.c;
    const int32_t first = max32(row, 0);
    const uint32_t n = divide(length, width), most = (uint32_t)max32(x.h - first, 0);
    if (!pixels || n * width != length || n > most || (row < 0 && n != (uint32_t)x.h)) {
        return SPROUT_E_INPUT;
    }
    if (x.rows == x.h) {
        put_row(&e, (int8_t *)x.data + (uint32_t)first * width, pixels, length);
        return SPROUT_OK;
    }
    op_t op; // the group that takes rows is the first operator
    uint8_t *constants;
    if (!sp_read_op(&e, 0, &op)) {
        return e.error;
    }
    const group_t g = open_group(&e, &op, &constants);
    if (e.error != SPROUT_OK) {
        return e.error;
    }
    if (first == 0) {
        start_group(&e, &op, &g, constants);
    }
    held_t *held = &g.held[g.n];
    for (uint32_t i = 0; i < n && e.error == SPROUT_OK; ++i) {
        if (!holds_rows(held, &x) || held->next != first + (int32_t)i ||
            (held->next - held->first == x.rows && !make_room(&e, &g, g.n, &x))) {
            return SPROUT_E_INPUT;
        }
        put_row(&e, (int8_t *)x.data + (uint32_t)(held->next - held->first) * width,
                pixels + i * width, width);
        ++held->next;
        run_group(&e, &g);
    }
    return e.error;
}
