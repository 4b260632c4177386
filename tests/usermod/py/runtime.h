// What the shell of Sprout uses of MicroPython's headers, and no more: what it compiles against
// where MicroPython's sources are absent. functions.h is held against the real ones where they
// are present.

#ifndef CONTRACT_RUNTIME_H
#define CONTRACT_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void *mp_obj_t;
typedef const void *mp_const_obj_t;
typedef intptr_t mp_int_t;
typedef uintptr_t mp_uint_t;
typedef size_t qstr;
typedef intptr_t mp_off_t;

typedef struct _mp_obj_type_t mp_obj_type_t;
typedef struct _mp_obj_dict_t mp_obj_dict_t;
typedef struct {
    const char *text;
} *mp_rom_error_text_t;

typedef struct {
    void *buf;
    size_t len;
    int typecode;
} mp_buffer_info_t;

typedef struct {
    const mp_obj_type_t *type;
} mp_obj_base_t;

typedef struct {
    mp_obj_base_t base;
    mp_obj_dict_t *globals;
} mp_obj_module_t;

typedef struct {
    const void *key, *value;
} mp_rom_map_elem_t;

typedef struct {
    mp_obj_base_t base;
    size_t least, most;
    mp_obj_t (*function)(size_t n_args, const mp_obj_t *args);
} function_t;

typedef struct {
    mp_obj_base_t base;
    size_t used;
    const mp_rom_map_elem_t *table;
} dict_t;

// What an object that can be read like a file provides.
typedef struct {
    mp_uint_t (*read)(mp_obj_t file, void *data, mp_uint_t size, int *error);
    mp_uint_t (*write)(mp_obj_t file, const void *data, mp_uint_t size, int *error);
    mp_uint_t (*ioctl)(mp_obj_t file, mp_uint_t request, uintptr_t argument, int *error);
} mp_stream_p_t;

struct mp_stream_seek_t {
    mp_off_t offset;
    int whence;
};

enum { MP_EIO = 5, MP_BUFFER_READ = 1, MP_BUFFER_WRITE = 2, BUFFER_RAISE = 4 };
enum { MP_STREAM_OP_READ = 1, MP_STREAM_OP_IOCTL = 4, MP_STREAM_SEEK = 2, MP_SEEK_SET = 0 };
#define MP_STREAM_ERROR ((mp_uint_t) - 1)

extern const mp_obj_type_t mp_type_module, mp_type_dict, mp_type_fun_builtin_var;
extern const mp_obj_base_t mp_const_none_obj;
#define mp_const_none ((mp_obj_t) & mp_const_none_obj)

#define MP_OBJ_TO_PTR(object) ((void *)(object))
#define MP_ERROR_TEXT(text) ((mp_rom_error_text_t)(text))
#define MP_ROM_QSTR(name) ((const void *)((uintptr_t)(name) << 3 | 2))
#define MP_ROM_INT(value) ((const void *)((uintptr_t)(value) << 1 | 1))
#define MP_ROM_PTR(pointer) (pointer)
#define MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(object, least, most, function)                        \
    const function_t object = {{&mp_type_fun_builtin_var}, least, most, function}
#define MP_DEFINE_CONST_DICT(dict, table)                                                         \
    const dict_t dict = {{&mp_type_dict}, sizeof(table) / sizeof(table[0]), table}
#define MP_REGISTER_MODULE(name, module)

#include "../functions.h"
#include "names.h" // of the test: a constant for every MP_QSTR_...

static inline void mp_get_buffer_raise(mp_obj_t object, mp_buffer_info_t *buffer,
                                       mp_uint_t flags) {
    mp_get_buffer(object, buffer, flags | BUFFER_RAISE);
}

#endif
