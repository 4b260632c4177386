// A module that uses every helper of mp_runtime.h once; test_natmod.py calls it in MicroPython.

#include "mp_runtime.h"
#include "stream.h"

void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);

static const uint16_t squares[4] = {0, 1, 4, 9};

// numbers(a, b) -> (a + b as a signed word, a as an unsigned 32-bit number, is a true)
MP_FUNCTION(numbers, 2, 2) {
    const mp_int_t a = mp_get_int(mp, args[0]);
    const mp_obj_t items[3] = {
        mp_new_int(mp, a + mp_get_int(mp, args[1])),
        mp_new_uint(mp, (uint32_t)a),
        mp_bool(mp, mp_is_true(mp, args[0])),
    };
    return mp_new_tuple(mp, 3, items);
}

// many(a0, ..., a7[, a8[, a9]]) -> sum of i * ai
MP_FUNCTION(many, 8, 10) {
    mp_int_t sum = 0;
    for (size_t i = 0; i < n_args; ++i) {
        sum += (mp_int_t)i * mp_get_int(mp, args[i]);
    }
    return mp_new_int(mp, sum);
}

// first_byte(text or bytes) -> (length, first byte or -1)
MP_FUNCTION(first_byte, 1, 1) {
    const mp_buffer_t buffer = mp_buffer_of(mp, args[0], MP_READ);
    const mp_int_t byte = buffer.size != 0 ? *(const uint8_t *)buffer.data : -1;
    const mp_obj_t items[2] = {mp_new_uint(mp, buffer.size), mp_new_int(mp, byte)};
    return mp_new_tuple(mp, 2, items);
}

// shift(buffer, by): moves the bytes up in place; whether the first two blocks of `by` bytes are
// then equal
MP_FUNCTION(shift, 2, 2) {
    const mp_buffer_t buffer = mp_buffer_of(mp, args[0], MP_READ | MP_WRITE);
    const size_t by = (size_t)mp_get_int(mp, args[1]);
    if (by > buffer.size / 2) {
        mp_raise(mp, QSTR(ValueError), "the shift exceeds half of the buffer: give a smaller one");
    }
    uint8_t *data = buffer.data;
    memmove(data + by, data, buffer.size - by);
    return mp_bool(mp, memcmp(data, data + by, by) == 0);
}

// square(i) -> from a constant table, so that constants in the image are read too
MP_FUNCTION(square, 1, 1) { return mp_new_int(mp, squares[(size_t)mp_get_int(mp, args[0]) & 3]); }

// read_at(file, offset, buffer)
MP_FUNCTION(read_at, 3, 3) {
    const mp_stream_t *stream = mp_stream_of(mp, args[0]);
    const mp_buffer_t buffer = mp_buffer_of(mp, args[2], MP_WRITE);
    const uint32_t offset = (uint32_t)mp_get_int(mp, args[1]);
    const int error = mp_stream_read_at(stream, args[0], offset, buffer.data, buffer.size);
    if (error != 0) {
        mp_raise_os_error(mp, error);
    }
    return mp_none(mp);
}

// callback(function, list, object): appends function(41, 1) to the list and returns object.value
MP_FUNCTION(callback, 3, 3) {
    const mp_obj_t values[2] = {mp_new_int(mp, 41), mp_new_int(mp, 1)};
    mp_obj_t call[3];
    mp_load_method(mp, args[1], QSTR(append), call);
    call[2] = mp_call(mp, args[0], 2, values);
    mp_call_method(mp, 1, call);
    return mp_load_attr(mp, args[2], QSTR(value));
}

// fail(): raises MemoryError
MP_FUNCTION(fail, 0, 0) { mp_raise(mp, QSTR(MemoryError), "no room for a test"); }

#define EXPORTS(NUMBER, FUNCTION)                                                                 \
    NUMBER(QSTR(ABI), 7)                                                                          \
    FUNCTION(QSTR(numbers), numbers)                                                              \
    FUNCTION(QSTR(many), many)                                                                    \
    FUNCTION(QSTR(first_byte), first_byte)                                                        \
    FUNCTION(QSTR(shift), shift)                                                                  \
    FUNCTION(QSTR(square), square)                                                                \
    FUNCTION(QSTR(read_at), read_at)                                                              \
    FUNCTION(QSTR(callback), callback)                                                            \
    FUNCTION(QSTR(fail), fail)

MP_MODULE(probe, EXPORTS)
