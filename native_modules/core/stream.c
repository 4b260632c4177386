// Groups of operators that work on a few rows at a time, and the rows of the input.
//
// A group's operators pass rows on through buffers that hold a few of them. Always the last
// operator that can give its rows gives them, so that rows are used up before there are more; no
// row is computed twice. A buffer that is full drops, from its start, what no operator will read.

#include "internal.h"

// What is on the stack of these is not there while an operator runs.
#define APART __attribute__((noinline))

enum { ADD = 3, MAX_POOL = 5, REQUANTIZE = 10 };
// Of a member: p10 says which operand comes from which member, 16 bits each; p11 how many rows it
// gives at a time.
enum { SOURCES = 10, AT_A_TIME = 11, NO_MEMBER = -1 };

// Rows [first, next) of a tensor are in its buffer, `first` at its start.
typedef struct {
    int16_t first, next;
} held_t;

_Static_assert(sizeof(held_t) == 4, "held_t is not what a group's buffer has");
_Static_assert(sizeof(view_t) == 28, "view_t is not what a group's buffer has");

// The rows of what each member gives; the last are those of the input, where the group takes it
// row by row.
static held_t *held_of(const group_t *g) { return (held_t *)(void *)(g->op + g->n); }

// Behind those, the view of the member that runs.
static view_t *view_of(const group_t *g) { return (view_t *)(void *)(held_of(g) + g->n + 1); }

static int32_t inputs_of(const op_t *op) { return op->opcode == ADD ? 2 : 1; }

static bool is_member(const op_t *op) {
    return (op->opcode >= CONV && op->opcode <= MAX_POOL) || op->opcode == REQUANTIZE;
}

static int32_t source_of(const op_t *op, int32_t i) {
    return (int16_t)(op->p[SOURCES] >> (16 * i));
}

// The rows of the input that n rows of the output are made from, from row `start` on.
static span_t rows_behind(const op_t *op, int32_t row, int32_t n, int32_t height) {
    if (op->opcode == ADD || op->opcode == REQUANTIZE) {
        return (span_t){row, row, row + n};
    }
    const int32_t kernel = op->p[0] & 255, stride = op->p[0] >> 16 & 255, top = op->p[1] & 255;
    const int32_t start = row * stride - top, end = start + (n - 1) * stride + kernel;
    return (span_t){start, max32(0, start), min32(height, end)};
}

// Binds the group's buffer: its members, what they hold, and the constants that they use.
static APART group_t open_group(exec_t *e, const op_t *op, uint8_t **constants) {
    group_t g = {0};
    const uint32_t n = (uint32_t)sp_bind_value(e, op, 1, 1, 64);
    const uint32_t length = (uint32_t)op->p[4];
    const tensor_t buffer = sp_bind(e, op, 0, INT32);
    const uint32_t words = (n * (uint32_t)sizeof(op_t) + sizeof(view_t)) / 4 + n + 1;
    sp_require(e, buffer.n == size_add(words, (length + 3) >> 2), 0);
    const records_t kept = sp_bind_records(e, op, 3, length, 1, 1);
    if (e->error == SPROUT_OK) {
        g.op = buffer.data;
        g.n = (int32_t)n;
        *constants = (uint8_t *)(view_of(&g) + 1);
        e->kept = (kept_t){*constants, kept.offset, length};
    }
    return g;
}

// Fetches members and constants; nothing is held yet.
static APART void start_group(exec_t *e, const op_t *op, const group_t *g, uint8_t *constants) {
    for (int32_t i = 0; i < g->n && sp_read_op(e, (uint32_t)(op->p[0] + i), g->op + i); ++i) {
    }
    if (!e->memory->blob && e->error == SPROUT_OK) {
        sp_fetch(e, e->kept.offset, constants, e->kept.length);
    }
    sp_fill(held_of(g), 0, ((uint32_t)g->n + 1) * sizeof(held_t) + sizeof(view_t));
}

// Drops rows that nobody will read from the buffer of member k, or of the input for k = n, for n
// more; false: there are too few.
static APART bool make_room(exec_t *e, const group_t *g, int32_t k, int32_t n) {
    held_t *held = &held_of(g)[k];
    const op_t *member = &g->op[k];
    const tensor_t t =
        sp_bind_number(e, k == g->n ? e->head->input : member->tensor[inputs_of(member)], INT8);
    int32_t keep = held->next;
    for (int32_t j = k == g->n ? 0 : k + 1; j < g->n; ++j) {
        const op_t *op = &g->op[j];
        const int32_t inputs = inputs_of(op), next = held_of(g)[j].next;
        const tensor_row_t *y = sp_row_of(e, op->tensor[inputs]);
        for (int32_t i = 0; i < inputs; ++i) {
            if (source_of(op, i) == k && y && next < y->h) {
                keep = min32(keep, rows_behind(op, next, 1, t.h).from);
            }
        }
    }
    const int32_t drop = keep - held->first;
    if (e->error != SPROUT_OK || drop <= 0 || held->next - held->first > t.h ||
        held->next - keep + n > t.h) {
        return false;
    }
    const uint32_t row = (uint32_t)t.w * (uint32_t)t.c;
    sp_copy(t.data, (const int8_t *)t.data + (uint32_t)drop * row,
            (uint32_t)(held->next - keep) * row);
    held->first = (int16_t)keep;
    return true;
}

static bool holds_rows(const held_t *held, const tensor_row_t *t) {
    return held->first >= 0 && held->first <= held->next && held->next <= t->h &&
           held->next - held->first <= (t->rows ? t->rows : t->h);
}

// The view for the next rows of member k, and how many they are; 0: not all is there that it
// takes.
static APART int32_t find_rows(exec_t *e, const group_t *g, int32_t k, view_t *view) {
    const op_t *op = &g->op[k];
    const int32_t inputs = inputs_of(op);
    const held_t *out = &held_of(g)[k];
    const tensor_row_t *y = sp_row_of(e, op->tensor[inputs]);
    if (!y || !is_member(op)) {
        sp_fail(e, SPROUT_E_OPCODE, op->opcode);
        return 0;
    }
    const int32_t n = min32(op->p[AT_A_TIME], y->h - out->next);
    if (n <= 0) {
        return 0;
    }
    for (int32_t i = 0; i < inputs; ++i) {
        const tensor_row_t *x = sp_row_of(e, op->tensor[i]);
        const int32_t source = source_of(op, i);
        if (!x || (source != NO_MEMBER && source != g->n && (source < 0 || source >= k))) {
            sp_fail(e, SPROUT_E_PARAMETER, SOURCES);
            return 0;
        }
        const span_t rows = rows_behind(op, out->next, n, x->h);
        const held_t in = source == NO_MEMBER ? (held_t){0, (int16_t)x->h} : held_of(g)[source];
        sp_require(e, holds_rows(&in, x) && rows.from >= in.first && rows.from <= rows.to, i);
        if (e->error != SPROUT_OK || rows.to > in.next) {
            return 0;
        }
        view->top = rows.from - rows.start;
        view->first[i] = (int16_t)(rows.from - in.first);
        view->n[i] = (int16_t)max32(1, rows.to - rows.from);
    }
    const bool full = y->rows && out->next - out->first + n > y->rows;
    if (full && !make_room(e, g, k, n)) {
        return 0;
    }
    sp_require(e, holds_rows(out, y), inputs);
    view->first[inputs] = (int16_t)(out->next - out->first);
    view->n[inputs] = (int16_t)n;
    return e->error == SPROUT_OK ? n : 0;
}

static void run_group(exec_t *e, const group_t *g) {
    for (int32_t k = g->n - 1; k >= 0 && e->error == SPROUT_OK; --k) {
        const int32_t n = find_rows(e, g, k, view_of(g));
        if (n) {
            e->view = view_of(g);
            sp_dispatch(e, &g->op[k]);
            e->view = NULL;
            held_of(g)[k].next = (int16_t)(held_of(g)[k].next + n);
            k = g->n;
        }
    }
}

// Checks the members as if each had a row of all that it reads.
static APART void check_members(exec_t *e, const op_t *op, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        op_t member;
        if (!sp_read_op(e, (uint32_t)(op->p[0] + i), &member)) {
            return;
        }
        if (!is_member(&member) || !(member.flags & MEMBER) || member.p[AT_A_TIME] <= 0) {
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

static APART void check_finished(exec_t *e, const group_t *g) {
    const op_t *last = &g->op[g->n - 1];
    const tensor_row_t *y = sp_row_of(e, last->tensor[inputs_of(last)]);
    if (!y || held_of(g)[g->n - 1].next != y->h) {
        sp_fail(e, SPROUT_E_INPUT, 0);
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
    if (fed) {
        check_finished(e, &g);
    } else {
        start_group(e, op, &g, constants);
        e->group = g;
    }
}

void sp_run_group(exec_t *e) {
    run_group(e, &e->group);
    check_finished(e, &e->group);
    e->group.n = 0;
    e->kept = (kept_t){0};
}

// Checks what is given for the input's rows from `row` on, and makes ready for the first; returns
// how many there are, or an error.
static APART int32_t open_input(exec_t *e, group_t *g, const uint8_t *pixels, uint32_t length,
                                int32_t row) {
    const tensor_t x = sp_bind_number(e, e->head->input, INT8);
    const uint32_t table = e->head->input_table;
    if (table && (e->head->program_len < 256 || table > e->head->program_len - 256)) {
        return SPROUT_E_HEADER;
    }
    if (e->error != SPROUT_OK) {
        return e->error;
    }
    const tensor_row_t *whole = sp_row_of(e, e->head->input);
    const uint32_t width = (uint32_t)x.w * (uint32_t)x.c, n = divide(length, width);
    const int32_t first = max32(row, 0);
    if (!pixels || n * width != length || n > (uint32_t)max32(whole->h - first, 0) ||
        (row < 0 && n != whole->h)) {
        return SPROUT_E_INPUT;
    }
    if (HAS(STREAM) && whole->rows) { // the group that takes rows is the first operator
        op_t op;
        uint8_t *constants;
        if (sp_read_op(e, 0, &op)) {
            *g = open_group(e, &op, &constants);
        }
        if (e->error == SPROUT_OK && first == 0) {
            start_group(e, &op, g, constants);
        }
    }
    return e->error != SPROUT_OK ? e->error : (int32_t)n;
}

// Writes row `row` of the input; the pixels after it, or NULL if it is not the next one.
static APART const uint8_t *put_row(exec_t *e, const group_t *g, const uint8_t *pixels,
                                    int32_t row) {
    const tensor_t x = sp_bind_number(e, e->head->input, INT8);
    if (HAS(STREAM) && g->n) {
        held_t *held = &held_of(g)[g->n];
        if (held->next != row || (held->next - held->first == x.h && !make_room(e, g, g->n, 1))) {
            return NULL;
        }
        row = held->next++ - held->first;
        if (row < 0 || row >= x.h) { // the buffer holds something else by now
            return NULL;
        }
    }
    const uint32_t width = (uint32_t)x.w * (uint32_t)x.c, at = e->head->input_table;
    const uint8_t *table = e->memory->program + e->head->program + at;
    int8_t *to = (int8_t *)x.data + (uint32_t)row * width;
    for (uint32_t i = 0; i < width; ++i, ++pixels) {
        to[i] = (int8_t)(at ? table[*pixels] : *pixels);
    }
    return pixels;
}

int32_t sprout_input(const sprout_memory_t *memory, const uint8_t *pixels, uint32_t length,
                     int32_t row) {
    exec_t e;
    group_t g = {0};
    if (sp_begin(&e, memory, NULL, SPROUT_PREDICT) != SPROUT_OK) {
        return e.error;
    }
    int32_t n = open_input(&e, &g, pixels, length, row);
    if (n < 0) {
        return n;
    }
    for (row = max32(row, 0); n > 0 && e.error == SPROUT_OK; --n, ++row) {
        pixels = put_row(&e, &g, pixels, row);
        if (!pixels) {
            return SPROUT_E_INPUT;
        }
        if (HAS(STREAM)) {
            run_group(&e, &g);
        }
    }
    return e.error;
}
