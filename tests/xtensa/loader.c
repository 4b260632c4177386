// Runs a native module on a bare Xtensa processor: loads the .mpy as MicroPython's port for the
// ESP32 does (code into memory of its own, constants elsewhere, addresses added to both), gives
// it a table of functions, and has it run a network on one sample after another.
//
// test_xtensa.py writes the file `job`: a job_t, the module, the blob, then for each sample the
// arguments of sprout_run and the input; a first operator of -1 asks for sprout_apply instead. The
// file `results` gets a result_t, arena and trained parameters for each. Errors end the program
// with a line of text.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t object_t; // of MicroPython: a small int or the address of a thing_t

typedef struct {
    uint32_t module_len, blob_len, program_len, initial, initial_len;
    uint32_t arena_len, trained_len, scratch_len, accum_len;
    uint32_t input, input_len; // where in the arena int8 inputs go
    uint32_t pixels;           // inputs are uint8 and go through set_input
    uint32_t streamed;         // the blob is an open file to the module
    uint32_t code_offset, n_samples;
} job_t;

enum { RUN_WORDS = 13 };

typedef struct {
    int32_t status, run[RUN_WORDS];
    uint32_t stack, ticks, emulated; // instructions that start.S puts together
} result_t;

int emulator(int call, ...);
uint32_t stack_pointer(void);
uint32_t clock(void);
extern uint32_t saved[5];
_Noreturn void on_fault(uint32_t cause, uint32_t at, uint32_t address);

// Semihosting

enum { EXIT = 1, READ = 3, WRITE = 4, OPEN = 5, NEW_FILE = 0x241, RIGHTS = 0x1a4 };

static void print(const char *text) {
    int n = 0;
    while (text[n]) {
        ++n;
    }
    emulator(WRITE, 1, text, n);
}

static void print_hex(uint32_t value) {
    char text[] = " 0x00000000";
    for (int i = 10; i > 2; --i, value >>= 4) {
        text[i] = "0123456789abcdef"[value & 15];
    }
    print(text);
}

static _Noreturn void stop(const char *why, uint32_t a, uint32_t b) {
    print(why);
    print_hex(a);
    print_hex(b);
    print("\n");
    emulator(EXIT, 1);
    for (;;) {
    }
}

// Memory: every block lies alone between bytes that must not change.

enum { GUARD = 64, PATTERN = 0xa5, MOST_BLOCKS = 32 };

typedef struct {
    uint8_t *start;
    uint32_t size;
} block_t;

extern uint8_t heap[];
static uint8_t *top = heap;
static block_t blocks[MOST_BLOCKS];
static int n_blocks;
static uint32_t code_address;

static void fill(uint8_t *at, uint8_t value, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        at[i] = value;
    }
}

static void copy(void *to, const void *from, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    }
}

static void *place(uint32_t size, uint32_t offset) {
    top = (uint8_t *)(((uintptr_t)top + 15) & ~(uintptr_t)15) + offset;
    fill(top, PATTERN, GUARD);
    uint8_t *start = top + GUARD;
    fill(start, 0, size);
    top = start + size;
    fill(top, PATTERN, GUARD);
    top += GUARD;
    if (n_blocks == MOST_BLOCKS) {
        stop("too many blocks", size, 0);
    }
    blocks[n_blocks++] = (block_t){start, size};
    return start;
}

static void check_guards(void) {
    for (int i = 0; i < n_blocks; ++i) {
        const block_t *b = &blocks[i];
        for (uint32_t j = 0; j < GUARD; ++j) {
            if (b->start[-1 - (int32_t)j] != PATTERN || b->start[b->size + j] != PATTERN) {
                stop("bytes beside a buffer were written: number, size", (uint32_t)i, b->size);
            }
        }
    }
}

_Noreturn void on_fault(uint32_t cause, uint32_t at, uint32_t address) {
    print("exception: cause, address, in the module at");
    print_hex(cause);
    stop("", address, at - code_address);
}

static void read_into(int file, uint8_t *data, uint32_t size) {
    for (uint32_t done = 0; done < size;) {
        const int n = emulator(READ, file, data + done, size - done);
        if (n <= 0) {
            stop("the file ends early: size, read", size, done);
        }
        done += (uint32_t)n;
    }
}

static void *read_new(int file, uint32_t size) {
    uint8_t *data = place(size, 0);
    read_into(file, data, size);
    return data;
}

static void write_out(int file, const void *data, uint32_t size) {
    for (uint32_t done = 0; done < size;) {
        const int n = emulator(WRITE, file, (const uint8_t *)data + done, size - done);
        if (n <= 0) {
            stop("cannot write: size, written", size, done);
        }
        done += (uint32_t)n;
    }
}

// Things: what the module gets as objects

enum { NONE, BUFFER, FILE_, TUPLE, NAME_BASE = 100, MOST_NAMES = 64 };

typedef struct {
    int kind;
    uint8_t *data; // or the items of a tuple
    uint32_t size, position;
} thing_t;

typedef struct {
    const void *type;
    const void *context;
    const void *children;
    void *code;
} function_t;

typedef object_t native_t(const function_t *self, uint32_t n_args, uint32_t n_kw,
                          const object_t *args);

static thing_t none;
static char names[MOST_NAMES][32];
static object_t globals[MOST_NAMES];
static const void *table[96], *objects[1] = {table};
static uint16_t qstrs[MOST_NAMES];
static const void *context[4] = {NULL, NULL, qstrs, objects};
static function_t functions[16];
static int n_functions;

static object_t small(int32_t value) { return (uint32_t)value << 1 | 1; }

static const thing_t *thing(object_t object) {
    if (object & 3) {
        stop("an int where an object belongs", object, 0);
    }
    return (const thing_t *)object;
}

static uint32_t to_native(object_t object, uint32_t kind) {
    if (!(object & 1)) {
        stop("an object where an int belongs: kind", kind, object);
    }
    return (uint32_t)((int32_t)object >> 1);
}

static object_t from_native(uint32_t value, uint32_t kind) {
    (void)kind;
    return small((int32_t)value);
}

static object_t load_global(uint32_t name) { return globals[name - NAME_BASE]; }

static void store_global(uint32_t name, object_t object) { globals[name - NAME_BASE] = object; }

// A function's code follows a word that begins with two zero bytes.
typedef struct {
    uint8_t indicator[2], kind;
    bool is_generator;
    void *code;
    const void *children;
} code_t;

static object_t new_function(const code_t *code, const void *module, const object_t *defaults) {
    if (code->indicator[0] || code->indicator[1] || code->kind != 4 || code->is_generator ||
        module != context || defaults) {
        stop("a function of an unknown kind", code->kind, 0);
    }
    functions[n_functions] = (function_t){NULL, module, code->children, code->code};
    return (object_t)&functions[n_functions++];
}

static void raise_(object_t exception) { stop("raised", exception, 0); }

static void raise_message(object_t type, const char *message) {
    print(message);
    stop(": raised", type, 0);
}

static void unpack(object_t sequence, uint32_t n, object_t *items) {
    const thing_t *tuple = thing(sequence);
    if (tuple->kind != TUPLE || tuple->size != n) {
        stop("not a tuple of this length", (uint32_t)tuple->kind, n);
    }
    for (uint32_t i = 0; i < n; ++i) {
        items[n - 1 - i] = ((object_t *)(void *)tuple->data)[i];
    }
}

static void check_args(uint32_t n_args, uint32_t n_kw, uint32_t signature) {
    if (n_kw || n_args < signature >> 17 || n_args > (signature >> 1 & 0xffff)) {
        stop("wrong number of arguments", n_args, signature);
    }
}

typedef struct {
    void *data;
    uint32_t size;
    int typecode;
} buffer_t;

static bool get_buffer(object_t object, buffer_t *buffer, uint32_t flags) {
    const thing_t *t = thing(object);
    if (t->kind != BUFFER) {
        if (flags & 4) {
            stop("an object without a buffer", (uint32_t)t->kind, 0);
        }
        return false;
    }
    *buffer = (buffer_t){t->data, t->size, 'B'};
    return true;
}

static uint32_t stream_read(thing_t *file, void *data, uint32_t size, int *error) {
    (void)error;
    const uint32_t rest = file->size - file->position, n = size < rest ? size : rest;
    copy(data, file->data + file->position, n);
    file->position += n;
    return n;
}

static uint32_t stream_ioctl(thing_t *file, uint32_t request, uint32_t *seek, int *error) {
    (void)error;
    if (request != 2 || seek[1] != 0 || seek[0] > file->size) {
        stop("an unknown request to a stream", request, seek[0]);
    }
    file->position = seek[0];
    return 0;
}

static const void *stream[3] = {(void *)stream_read, NULL, (void *)stream_ioctl};

static const void *get_stream(object_t object, int flags) {
    (void)flags;
    if (thing(object)->kind != FILE_) {
        stop("an object that is no file", object, 0);
    }
    return stream;
}

static void unused(void) { stop("an entry of the function table that is not there", 0, 0); }

// Loading, as py/persistentcode.c and the ESP32's esp_native_code_commit do it

static const uint8_t *next;

static uint32_t number(void) {
    uint32_t value = 0;
    do {
        value = value << 7 | (*next & 0x7f);
    } while (*next++ & 0x80);
    return value;
}

static function_t load(const uint8_t *module, uint32_t offset) {
    next = module;
    if (next[0] != 'M' || next[1] != 6 || next[2] != (10 << 2 | 3) || next[3] != 31) {
        stop("not a native module for xtensawin", next[1], next[2]);
    }
    next += 4;
    const uint32_t n_names = number(), n_objects = number();
    if (n_names > MOST_NAMES || n_objects != 1) {
        stop("names, objects", n_names, n_objects);
    }
    for (uint32_t i = 0; i < n_names; ++i) {
        const uint32_t length = number() >> 1;
        copy(names[i], next, length + 1);
        qstrs[i] = (uint16_t)(NAME_BASE + i);
        globals[i] = (object_t)&none;
        next += length + 1;
    }
    if (*next++ != 0) {
        stop("an object that is not the function table", next[-1], 0);
    }
    const uint32_t kind = number(), length = kind >> 3;
    if ((kind & 7) != 2) {
        stop("not one native function", kind, 0);
    }
    uint8_t *loaded = place(length + 3, 0);
    copy(loaded, next, length);
    next += length;
    const uint32_t flags = number();
    const uint32_t constants_len = flags & 0x20 ? number() : 0;
    uint8_t *constants = place(constants_len, 0);
    copy(constants, next, constants_len);
    next += constants_len;
    uint8_t *code = place((length + 3) & ~3u, offset);
    while (flags & 0x10 && *next != 0xff) {
        const uint32_t what = *next++;
        const uint32_t where = number();
        if (!(what & 1) || (what & 2) || what >> 2 > 1) {
            stop("an unknown relocation", what, where);
        }
        uint32_t *words = (uint32_t *)(void *)(where & 1 ? constants : loaded);
        words[where >> 1] += (uint32_t)(what >> 2 ? constants : code);
    }
    copy(code, loaded, (length + 3) & ~3u);
    fill(loaded, 0xff, length);
    code_address = (uint32_t)code;
    return (function_t){NULL, context, constants, code};
}

static object_t call(const char *name, uint32_t n_args, const object_t *args) {
    for (int i = 0; i < MOST_NAMES; ++i) {
        int j = 0;
        while (name[j] && names[i][j] == name[j]) {
            ++j;
        }
        if (name[j] == names[i][j]) {
            const function_t *function = (const function_t *)globals[i];
            return ((native_t *)function->code)(function, n_args, 0, args);
        }
    }
    stop("the module has no such function", 0, 0);
}

// Bytes of stack that one call of sprout_core.run takes, from what it changes below this frame
enum { MOST_STACK = 8192 };

static void wipe_stack(void) {
    uint32_t *sp = (uint32_t *)stack_pointer();
    for (uint32_t *at = sp - MOST_STACK / 4; at < sp - 64; ++at) {
        *at = 0xa5a5a5a5u;
    }
}

static uint32_t stack_used(uint32_t sp) {
    uint32_t *at = (uint32_t *)(sp - MOST_STACK);
    while (*at == 0xa5a5a5a5u) {
        ++at;
    }
    return sp - (uint32_t)at;
}

static thing_t make_buffer(uint32_t size) { return (thing_t){BUFFER, place(size, 0), size, 0}; }

int main(void) {
    const int file = emulator(OPEN, "job", 0, 0);
    const job_t *job = read_new(file, sizeof(job_t));
    for (int i = 0; i < 96; ++i) {
        table[i] = (void *)unused;
    }
    table[0] = &none;
    table[3] = (void *)to_native;
    table[4] = (void *)from_native;
    table[7] = (void *)load_global;
    table[13] = (void *)store_global;
    table[26] = (void *)new_function;
    table[34] = (void *)raise_;
    table[39] = (void *)unpack;
    table[44] = (void *)check_args;
    table[55] = (void *)raise_message;
    table[65] = (void *)get_buffer;
    table[66] = (void *)get_stream;
    const function_t module = load(read_new(file, job->module_len), job->code_offset);
    ((native_t *)module.code)(&module, 0, 0, NULL);

    thing_t source = {job->streamed ? FILE_ : BUFFER, read_new(file, job->blob_len), job->blob_len,
                      0};
    thing_t program = make_buffer(job->program_len);
    copy(program.data, source.data, job->program_len);
    thing_t arena = make_buffer(job->arena_len), trained = make_buffer(job->trained_len);
    copy(trained.data, source.data + job->initial, job->initial_len);
    thing_t scratch = make_buffer(job->scratch_len), accum = make_buffer(job->accum_len);
    object_t items[6] = {(object_t)&source,  (object_t)&program,
                         (object_t)&arena,   (object_t)&trained,
                         (object_t)&scratch, (object_t)(job->accum_len ? &accum : &none)};
    thing_t memory = {TUPLE, (uint8_t *)items, 6, 0};
    thing_t run = make_buffer(4 * RUN_WORDS);
    const object_t args[2] = {(object_t)&memory, (object_t)&run};
    const object_t status = call("check", 1, args);
    if (status != small(0)) {
        stop("check fails", status, 0);
    }
    const int out = emulator(OPEN, "results", NEW_FILE, RIGHTS);
    thing_t input = make_buffer(job->input_len);
    const object_t set[2] = {(object_t)&memory, (object_t)&input};
    for (uint32_t i = 0; i < job->n_samples; ++i) {
        read_into(file, run.data, run.size);
        read_into(file, input.data, input.size);
        if (!job->pixels) {
            copy(arena.data + job->input, input.data, input.size);
        } else if (call("set_input", 2, set) != small(0)) {
            stop("set_input fails", i, 0);
        }
        const bool apply = *(int32_t *)(void *)run.data < 0;
        wipe_stack();
        const uint32_t sp = stack_pointer(), before = clock(), emulated = saved[4];
        const object_t status = apply ? call("apply", 1, args) : call("run", 2, args);
        result_t result = {(int32_t)status >> 1, {0}, 0, clock() - before, saved[4] - emulated};
        result.stack = stack_used(sp);
        copy(result.run, run.data, sizeof(result.run));
        check_guards();
        write_out(out, &result, sizeof(result));
        write_out(out, arena.data, job->arena_len);
        write_out(out, trained.data, job->trained_len);
    }
    emulator(EXIT, 0);
    return 0;
}
