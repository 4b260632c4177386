// The functions of MicroPython that the shell calls. These stand after the contract's types, or
// after MicroPython's own headers, where a difference does not compile.

mp_int_t mp_obj_get_int_truncated(mp_const_obj_t object);
bool mp_obj_is_true(mp_obj_t object);
mp_obj_t mp_obj_new_int(mp_int_t value);
void mp_unpack_sequence(mp_obj_t sequence, size_t n, mp_obj_t *items);
bool mp_get_buffer(mp_obj_t object, mp_buffer_info_t *buffer, mp_uint_t flags);
const mp_stream_p_t *mp_get_stream_raise(mp_obj_t object, int flags);
mp_obj_t mp_load_global(qstr name);
__attribute__((noreturn)) void mp_raise_msg(const mp_obj_type_t *type, mp_rom_error_text_t text);
