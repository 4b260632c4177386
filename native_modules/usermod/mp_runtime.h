// What the shell uses of MicroPython in firmware, over MicroPython's own headers. Means the same
// as ../natmod/mp_runtime.h, which says what; nothing needs a context, so `mp` is NULL here.

#ifndef SPROUT_MP_RUNTIME_H
#define SPROUT_MP_RUNTIME_H

#include "py/mperrno.h"
#include "py/runtime.h"
#include "py/stream.h"

#define QSTR(name) MP_QSTR_##name

typedef void mp_module_t;
typedef mp_stream_p_t mp_stream_t;

enum { MP_READ = MP_BUFFER_READ, MP_WRITE = MP_BUFFER_WRITE };

typedef struct {
    void *data;
    size_t size;
    int typecode;
} mp_buffer_t;

#define MP_BODY(name)                                                                             \
    static inline mp_obj_t name##_body(const mp_module_t *mp __attribute__((unused)),             \
                                       size_t n_args __attribute__((unused)),                     \
                                       const mp_obj_t *args __attribute__((unused)))

#define MP_FUNCTION(name, min, max)                                                               \
    MP_BODY(name);                                                                                \
    static mp_obj_t name(size_t n_args, const mp_obj_t *args) {                                   \
        return name##_body(NULL, n_args, args);                                                   \
    }                                                                                             \
    static MP_DEFINE_CONST_FUN_OBJ_VAR_BETWEEN(name##_object, min, max, name);                    \
    MP_BODY(name)

#define MP_MODULE(module, EXPORTS)                                                                \
    static const mp_rom_map_elem_t module##_table[] = {                                           \
        {MP_ROM_QSTR(MP_QSTR___name__), MP_ROM_QSTR(MP_QSTR_##module)},                           \
        EXPORTS(MP_NUMBER_ROW, MP_FUNCTION_ROW)};                                                 \
    static MP_DEFINE_CONST_DICT(module##_globals, module##_table);                                \
    const mp_obj_module_t module##_module = {                                                     \
        .base = {&mp_type_module},                                                                \
        .globals = (mp_obj_dict_t *)&module##_globals,                                            \
    };                                                                                            \
    MP_REGISTER_MODULE(MP_QSTR_##module, module##_module);
#define MP_NUMBER_ROW(name, value) {MP_ROM_QSTR(name), MP_ROM_INT(value)},
#define MP_FUNCTION_ROW(name, function) {MP_ROM_QSTR(name), MP_ROM_PTR(&function##_object)},

static inline mp_obj_t mp_none(const mp_module_t *mp) {
    (void)mp;
    return mp_const_none;
}

static inline bool mp_is_true(const mp_module_t *mp, mp_obj_t object) {
    (void)mp;
    return mp_obj_is_true(object);
}

static inline mp_int_t mp_get_int(const mp_module_t *mp, mp_obj_t object) {
    (void)mp;
    return mp_obj_get_int_truncated(object);
}

static inline mp_obj_t mp_new_int(const mp_module_t *mp, mp_int_t value) {
    (void)mp;
    return mp_obj_new_int(value);
}

static inline void mp_unpack(const mp_module_t *mp, mp_obj_t sequence, size_t n, mp_obj_t *items) {
    (void)mp;
    mp_unpack_sequence(sequence, n, items);
}

static inline bool mp_has_buffer(const mp_module_t *mp, mp_obj_t object, mp_buffer_t *buffer,
                                 mp_uint_t flags) {
    (void)mp;
    mp_buffer_info_t info;
    if (!mp_get_buffer(object, &info, flags)) {
        return false;
    }
    *buffer = (mp_buffer_t){info.buf, info.len, info.typecode};
    return true;
}

static inline mp_buffer_t mp_buffer_of(const mp_module_t *mp, mp_obj_t object, mp_uint_t flags) {
    (void)mp;
    mp_buffer_info_t info;
    mp_get_buffer_raise(object, &info, flags);
    return (mp_buffer_t){info.buf, info.len, info.typecode};
}

static inline const mp_stream_t *mp_stream_of(const mp_module_t *mp, mp_obj_t file) {
    (void)mp;
    return mp_get_stream_raise(file, MP_STREAM_OP_READ | MP_STREAM_OP_IOCTL);
}

// A macro, since firmware keeps its messages compressed.
#define mp_raise(mp, type, message)                                                               \
    mp_raise_msg(MP_OBJ_TO_PTR(mp_load_global(type)), MP_ERROR_TEXT(message))

#endif
