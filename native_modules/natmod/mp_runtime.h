// What Sprout's native module uses of MicroPython: native ABI 6.3, which is MicroPython 1.23
// to 1.29. The header of the same name in usermod/ offers what the shell needs in firmware.
//
// A native module can have no variables, so nothing here is global. MicroPython calls every
// function with its function object `self`; self->context is the module, and the module leads to
// MicroPython's table of functions and to the names this module uses. Everything below takes that
// module as `mp`.
//
// A function that raises does not return: it jumps out of the C code, so C code owns nothing that
// needs freeing.

#ifndef SPROUT_MP_RUNTIME_H
#define SPROUT_MP_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Written by build.py: a constant NAME_... for every QSTR(...) in the module's sources.
#include "mp_names.h"

#define QSTR(name) NAME_##name

typedef void *mp_obj_t;
typedef intptr_t mp_int_t;
typedef uintptr_t mp_uint_t;
typedef size_t mp_qstr_t;
typedef int mp_name_t;

typedef intptr_t mp_off_t;

// MP_READ and MP_WRITE are the flags of mp_buffer_of.
enum { MP_READ = 1, MP_WRITE = 2, MP_RAISE = 4 };
enum { MP_NATIVE_BOOL = 1, MP_NATIVE_INT = 2, MP_NATIVE_UINT = 3 };
enum { MP_STREAM_CAN_READ = 1, MP_STREAM_CAN_IOCTL = 4, MP_STREAM_SEEK = 2, MP_SEEK_SET = 0 };
enum { MP_CODE_NATIVE = 4, MP_EIO = 5 };

#define MP_STREAM_ERROR UINTPTR_MAX

typedef struct {
    void *data;
    size_t size;
    int typecode;
} mp_buffer_t;

struct mp_stream_seek_t {
    mp_off_t offset;
    int whence;
};

// What an object that can be read like a file provides.
typedef struct {
    mp_uint_t (*read)(mp_obj_t file, void *data, mp_uint_t size, int *error);
    mp_uint_t (*write)(mp_obj_t file, const void *data, mp_uint_t size, int *error);
    mp_uint_t (*ioctl)(mp_obj_t file, mp_uint_t request, uintptr_t argument, int *error);
} mp_stream_t;

typedef struct mp_table_t mp_table_t;

// A loaded module; objects[0] is the function table (mpy.py puts it there).
typedef struct {
    mp_obj_t type;
    mp_obj_t globals;
    const uint16_t *qstrs;
    const mp_table_t *const *objects;
} mp_module_t;

// A function object of native code.
typedef struct {
    mp_obj_t type;
    const mp_module_t *context;
    const void *children;
    const void *code;
} mp_function_t;

// A function as MicroPython calls it; keyword arguments would follow the positional ones in args.
typedef mp_obj_t mp_native_t(const mp_function_t *self, size_t n_args, size_t n_kw,
                             const mp_obj_t *args);

// What MicroPython makes a function object from. Two zero bytes say that it is this struct, not
// bytecode.
typedef struct {
    uint8_t indicator[2];
    uint8_t kind;
    bool is_generator;
    mp_native_t *code;
    const void *children;
} mp_code_t;

// MicroPython's table of functions; the comments number its entries, unused ones are only counted.
struct mp_table_t {
    mp_obj_t none;                                                   // 0
    mp_obj_t false_;                                                 // 1
    mp_obj_t true_;                                                  // 2
    mp_uint_t (*to_native)(mp_obj_t object, mp_uint_t native_type);  // 3
    mp_obj_t (*from_native)(mp_uint_t value, mp_uint_t native_type); // 4
    const void *unused_5[2];
    mp_obj_t (*load_global)(mp_qstr_t name); // 7
    const void *unused_8;
    mp_obj_t (*load_attr)(mp_obj_t object, mp_qstr_t name);                 // 9
    void (*load_method)(mp_obj_t object, mp_qstr_t name, mp_obj_t *method); // 10
    const void *unused_11[2];
    void (*store_global)(mp_qstr_t name, mp_obj_t object); // 13
    const void *unused_14[5];
    mp_obj_t (*new_tuple)(size_t n, const mp_obj_t *items); // 19
    const void *unused_20[6];
    mp_obj_t (*new_function)(const mp_code_t *, const mp_module_t *,
                             const mp_obj_t *defaults);                          // 26
    mp_obj_t (*call)(mp_obj_t function, size_t n_args_kw, const mp_obj_t *args); // 27
    mp_obj_t (*call_method)(size_t n_args, size_t n_kw, const mp_obj_t *method); // 28
    const void *unused_29[5];
    void (*raise)(mp_obj_t exception); // 34
    const void *unused_35[4];
    void (*unpack)(mp_obj_t sequence, size_t n, mp_obj_t *items); // 39, last item first
    const void *unused_40[4];
    void (*check_args)(size_t n_args, size_t n_kw, uint32_t signature); // 44
    const void *unused_45[10];
    void (*raise_message)(mp_obj_t type, const char *message); // 55
    const void *unused_56[9];
    bool (*get_buffer)(mp_obj_t object, mp_buffer_t *buffer, mp_uint_t flags); // 65
    const mp_stream_t *(*get_stream)(mp_obj_t object, int flags);              // 66
};

_Static_assert(offsetof(mp_table_t, get_stream) == 66 * sizeof(void *),
               "the function table has lost an entry");

#define MP_ARGUMENTS const mp_function_t *self, size_t n_args, size_t n_kw, const mp_obj_t *args

#define MP_BODY(name)                                                                             \
    static inline mp_obj_t name##_body(const mp_module_t *mp __attribute__((unused)),             \
                                       size_t n_args __attribute__((unused)),                     \
                                       const mp_obj_t *args __attribute__((unused)))

// Head of a function of min to max arguments: MP_FUNCTION(name, min, max) { ... }, which has `mp`,
// n_args and args. Others raise TypeError, keyword arguments too.
#define MP_FUNCTION(name, min, max)                                                               \
    MP_BODY(name);                                                                                \
    static mp_obj_t name(MP_ARGUMENTS) {                                                          \
        return name##_body(mp_begin(self, n_args, n_kw, min, max), n_args, args);                 \
    }                                                                                             \
    MP_BODY(name)

// Head of what runs at import, which build.py makes the first byte of the code.
#define MP_ENTRY                                                                                  \
    __attribute__((section(".text.mpy_entry"), used)) mp_obj_t mpy_entry(MP_ARGUMENTS);           \
    mp_obj_t mpy_entry(MP_ARGUMENTS)

// The whole of it: EXPORTS(NUMBER, FUNCTION) gives each with its name, as shell.c does.
#define MP_MODULE(module, EXPORTS)                                                                \
    MP_ENTRY {                                                                                    \
        (void)n_args, (void)n_kw, (void)args;                                                     \
        const mp_module_t *mp = mp_begin_module(self);                                            \
        EXPORTS(MP_STORE_NUMBER, MP_STORE_FUNCTION)                                               \
        return mp_none(mp);                                                                       \
    }
#define MP_STORE_NUMBER(name, value) mp_store_global(mp, name, mp_new_int(mp, value));
#define MP_STORE_FUNCTION(name, function) mp_store_function(mp, name, function);

static inline const mp_table_t *mp_table(const mp_module_t *mp) { return mp->objects[0]; }

static inline mp_qstr_t mp_qstr(const mp_module_t *mp, mp_name_t name) { return mp->qstrs[name]; }

// Calls and names

// The first thing in a function. Raises TypeError unless min <= n_args <= max and there are no
// keyword arguments.
static inline const mp_module_t *mp_begin(const mp_function_t *self, size_t n_args, size_t n_kw,
                                          unsigned min, unsigned max) {
    const mp_module_t *mp = self->context;
    mp_table(mp)->check_args(n_args, n_kw, (uint32_t)min << 17 | (uint32_t)max << 1);
    return mp;
}

// A global of the module that runs now, or a builtin.
static inline mp_obj_t mp_load_global(const mp_module_t *mp, mp_name_t name) {
    return mp_table(mp)->load_global(mp_qstr(mp, name));
}

// Only while the module is imported: later the caller's globals are the current ones.
static inline void mp_store_global(const mp_module_t *mp, mp_name_t name, mp_obj_t object) {
    mp_table(mp)->store_global(mp_qstr(mp, name), object);
}

// Adds a function to the module that is being imported.
static inline void mp_store_function(const mp_module_t *mp, mp_name_t name,
                                     mp_native_t *function) {
    const mp_code_t code = {{0, 0}, MP_CODE_NATIVE, false, function, NULL};
    mp_store_global(mp, name, mp_table(mp)->new_function(&code, mp, NULL));
}

static inline mp_obj_t mp_load_attr(const mp_module_t *mp, mp_obj_t object, mp_name_t name) {
    return mp_table(mp)->load_attr(object, mp_qstr(mp, name));
}

static inline mp_obj_t mp_call(const mp_module_t *mp, mp_obj_t function, size_t n_args,
                               const mp_obj_t *args) {
    return mp_table(mp)->call(function, n_args, args);
}

// Looks up a method into call[0] and call[1]; the arguments go into call[2] and up, then
// mp_call_method.
static inline void mp_load_method(const mp_module_t *mp, mp_obj_t object, mp_name_t name,
                                  mp_obj_t *call) {
    mp_table(mp)->load_method(object, mp_qstr(mp, name), call);
}

static inline mp_obj_t mp_call_method(const mp_module_t *mp, size_t n_args, const mp_obj_t *call) {
    return mp_table(mp)->call_method(n_args, 0, call);
}

// Values

static inline mp_obj_t mp_none(const mp_module_t *mp) { return mp_table(mp)->none; }

static inline mp_obj_t mp_bool(const mp_module_t *mp, bool value) {
    return value ? mp_table(mp)->true_ : mp_table(mp)->false_;
}

static inline bool mp_is_true(const mp_module_t *mp, mp_obj_t object) {
    return mp_table(mp)->to_native(object, MP_NATIVE_BOOL) != 0;
}

// Low bits of an int (32 on a board, 64 on x64); raises TypeError for anything else.
static inline mp_int_t mp_get_int(const mp_module_t *mp, mp_obj_t object) {
    return (mp_int_t)mp_table(mp)->to_native(object, MP_NATIVE_INT);
}

// Values beyond 31 bits are allocated on a 32-bit board.
static inline mp_obj_t mp_new_int(const mp_module_t *mp, mp_int_t value) {
    return mp_table(mp)->from_native((mp_uint_t)value, MP_NATIVE_INT);
}

static inline mp_obj_t mp_new_uint(const mp_module_t *mp, mp_uint_t value) {
    return mp_table(mp)->from_native(value, MP_NATIVE_UINT);
}

static inline mp_obj_t mp_new_tuple(const mp_module_t *mp, size_t n, const mp_obj_t *items) {
    return mp_table(mp)->new_tuple(n, items);
}

// The n items of a tuple or list, the last one first; raises ValueError unless there are n.
static inline void mp_unpack(const mp_module_t *mp, mp_obj_t sequence, size_t n, mp_obj_t *items) {
    mp_table(mp)->unpack(sequence, n, items);
}

// Memory of bytes, bytearray, array, memoryview or str. flags is MP_READ, MP_WRITE or both; raises
// TypeError for other objects and for read-only ones if MP_WRITE. Valid while the object lives and
// is not resized.
static inline mp_buffer_t mp_buffer_of(const mp_module_t *mp, mp_obj_t object, mp_uint_t flags) {
    mp_buffer_t buffer;
    mp_table(mp)->get_buffer(object, &buffer, flags | MP_RAISE);
    return buffer;
}

// The same without an exception: whether the object has such memory.
static inline bool mp_has_buffer(const mp_module_t *mp, mp_obj_t object, mp_buffer_t *buffer,
                                 mp_uint_t flags) {
    return mp_table(mp)->get_buffer(object, buffer, flags);
}

// Errors

// Raises the builtin exception named type: mp_raise(mp, QSTR(ValueError), "why; what to do").
__attribute__((noreturn)) static inline void mp_raise(const mp_module_t *mp, mp_name_t type,
                                                      const char *message) {
    mp_table(mp)->raise_message(mp_load_global(mp, type), message);
    __builtin_unreachable();
}

__attribute__((noreturn)) static inline void mp_raise_os_error(const mp_module_t *mp, int error) {
    const mp_obj_t arg = mp_new_int(mp, error);
    mp_table(mp)->raise(mp_call(mp, mp_load_global(mp, QSTR(OSError)), 1, &arg));
    __builtin_unreachable();
}

// Files

// The reading side of an open binary file, good while the file is; raises OSError for what cannot
// be read.
static inline const mp_stream_t *mp_stream_of(const mp_module_t *mp, mp_obj_t file) {
    return mp_table(mp)->get_stream(file, MP_STREAM_CAN_READ | MP_STREAM_CAN_IOCTL);
}

// The first thing at import. The global it stores keeps `self` alive, and `self` is the only
// pointer to the start of the code: functions point into the middle of it, which the garbage
// collector does not follow.
static inline const mp_module_t *mp_begin_module(const mp_function_t *self) {
    mp_store_global(self->context, QSTR(_code), (mp_obj_t)(uintptr_t)self);
    return self->context;
}

#endif
