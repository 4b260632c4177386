// A native module on a bare Xtensa processor, led by qemu.py through two pipes: this loads a .mpy
// as MicroPython's port for the ESP32 does (code into memory of its own, constants elsewhere,
// addresses added to both), gives it a table of functions, and calls it.
//
// Standard input is commands, each a command_t and what follows it; answers go to standard output.
// Errors end the program with a line of text on standard error.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t object_t; // of MicroPython: a small int or the address of a thing_t

// READ: b bytes at a are the answer. WRITE: b bytes follow, which go to a. MAP: a megabyte from a
// on gets memory with the attribute b. LOAD: the module at a is imported, its code at b and its
// constants at c; the answer is the address of None. CALL: the function named at a is called with
// b objects at c; the answer is an answer_t.
enum { READ, WRITE, MAP, LOAD, CALL };

typedef struct {
    uint32_t what, a, b, c;
} command_t;

typedef struct {
    object_t result;
    uint32_t ticks, emulated, stack; // instructions that start.S puts together; bytes
} answer_t;

int emulator(int call, ...);
uint32_t stack_pointer(void);
uint32_t clock(void);
void unmap(void);
void translate(uint32_t entry, uint32_t at);
extern uint32_t saved[5];
_Noreturn void on_fault(uint32_t cause, uint32_t at, uint32_t address);

// Semihosting

enum { EXIT = 1, INPUT = 3, OUTPUT = 4 };

static void print(const char *text) {
    int n = 0;
    while (text[n]) {
        ++n;
    }
    emulator(OUTPUT, 2, text, n);
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
    emulator(EXIT, 1);
    for (;;) {
    }
}

static void transfer(int call, void *data, uint32_t size) {
    for (uint32_t done = 0; done < size;) {
        const int n = emulator(call, call == OUTPUT, (uint8_t *)data + done, size - done);
        if (n <= 0) {
            stop("a pipe ends early: size, done", size, done);
        }
        done += (uint32_t)n;
    }
}

// Memory. Of the second 512 MB a megabyte is there when it was asked for, backed by one of the
// first.

enum { DISTANCE = 0x2c000000, WAY = 4 };

static uint32_t code_address;

static void map(uint32_t at, uint32_t attribute) {
    translate((at - DISTANCE) | attribute, at + WAY);
}

static void copy(void *to, const void *from, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    }
}

_Noreturn void on_fault(uint32_t cause, uint32_t at, uint32_t address) {
    print("exception");
    print_hex(cause);
    stop("", address, at - code_address);
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

static void raise_(object_t exception) { stop("raised: an exception", exception, 0); }

static void raise_message(object_t type, const char *message) {
    print("raised: ");
    print(message);
    stop("", type, 0);
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

static object_t load(uint32_t module, uint32_t code, uint32_t constants) {
    next = (const uint8_t *)module;
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
    copy((void *)code, next, length);
    next += length;
    const uint32_t flags = number();
    const uint32_t constants_len = flags & 0x20 ? number() : 0;
    copy((void *)constants, next, constants_len);
    next += constants_len;
    while (flags & 0x10 && *next != 0xff) {
        const uint32_t what = *next++;
        const uint32_t where = number();
        if (!(what & 1) || (what & 2) || what >> 2 > 1) {
            stop("an unknown relocation", what, where);
        }
        uint32_t *words = (uint32_t *)(where & 1 ? constants : code);
        words[where >> 1] += what >> 2 ? constants : code;
    }
    code_address = code;
    const function_t entry = {NULL, context, (const void *)constants, (void *)code};
    ((native_t *)entry.code)(&entry, 0, 0, NULL);
    return (object_t)&none;
}

static const function_t *find(const char *name) {
    for (int i = 0; i < MOST_NAMES; ++i) {
        int j = 0;
        while (name[j] && names[i][j] == name[j]) {
            ++j;
        }
        if (name[j] == names[i][j] && globals[i] != (object_t)&none) {
            return (const function_t *)globals[i];
        }
    }
    stop("the module has no such function", 0, 0);
}

// Bytes of stack that a call takes, from what it changes below this frame
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

static answer_t call(const char *name, uint32_t n_args, const object_t *args) {
    const function_t *function = find(name);
    native_t *const code = (native_t *)function->code;
    wipe_stack();
    const uint32_t sp = stack_pointer(), emulated = saved[4], before = clock();
    const object_t result = code(function, n_args, 0, args);
    const uint32_t after = clock();
    return (answer_t){result, after - before, saved[4] - emulated, stack_used(sp)};
}

static void fill_table(void) {
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
}

int main(void) {
    unmap();
    fill_table();
    for (;;) {
        command_t c;
        answer_t answer;
        transfer(INPUT, &c, sizeof(c));
        switch (c.what) {
        case READ:
            transfer(OUTPUT, (void *)c.a, c.b);
            break;
        case WRITE:
            transfer(INPUT, (void *)c.a, c.b);
            break;
        case MAP:
            map(c.a, c.b);
            break;
        case LOAD:
            answer.result = load(c.a, c.b, c.c);
            transfer(OUTPUT, &answer.result, sizeof(answer.result));
            break;
        case CALL:
            answer = call((const char *)c.a, c.b, (const object_t *)c.c);
            transfer(OUTPUT, &answer, sizeof(answer));
            break;
        default:
            stop("an unknown command", c.what, c.a);
        }
    }
}
