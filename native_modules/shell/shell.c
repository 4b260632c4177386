// sprout_core: the C core as a MicroPython module, native (../natmod) or in firmware (../usermod):
// each has an mp_runtime.h of its own, which binds this to MicroPython. The package in
// device/sprout is its one user and words the errors; here every function checks types, calls the
// core and returns its result, 0 or a negative SPROUT_E code. No call allocates unless it raises.
//
// `memory` is the tuple (source, program, arena, trained, scratch, accum). source is the whole
// blob in memory (bytes, a memoryview, a file of a ROMFS), used where it lies, or an open binary
// file, from which the core reads what it needs when it needs it. accum may be None.

#include "../core/sprout.h"
#include "mp_runtime.h"
#include "stream.h"

enum { ABI = 2, FORMAT = 2, MEMORY_ITEMS = 6 };

// An open file, as the core's read function gets it.
typedef struct {
    const mp_stream_t *stream;
    mp_obj_t object;
} file_t;

static int32_t read_file(void *ctx, uint32_t offset, void *dst, uint32_t length) {
    const file_t *file = ctx;
    return mp_stream_read_at(file->stream, file->object, offset, dst, length);
}

// Fills `memory`, which then refers to `file`: both live in the caller.
static void get_memory(const mp_module_t *mp, mp_obj_t tuple, sprout_memory_t *memory,
                       file_t *file) {
    mp_obj_t items[MEMORY_ITEMS];
    mp_unpack(mp, tuple, MEMORY_ITEMS, items);
    const mp_obj_t source = items[5];
    mp_buffer_t buffer;
    if (mp_has_buffer(mp, source, &buffer, MP_READ)) {
        memory->blob = buffer.data;
        memory->blob_len = (uint32_t)buffer.size;
        memory->read = NULL;
        memory->read_ctx = NULL;
    } else {
        file->stream = mp_stream_of(mp, source);
        file->object = source;
        memory->blob = NULL;
        memory->blob_len = 0;
        memory->read = read_file;
        memory->read_ctx = file;
    }
    buffer = mp_buffer_of(mp, items[4], MP_READ);
    memory->program = buffer.data;
    memory->program_len = (uint32_t)buffer.size;
    buffer = mp_buffer_of(mp, items[3], MP_WRITE);
    memory->arena = buffer.data;
    memory->arena_len = (uint32_t)buffer.size;
    buffer = mp_buffer_of(mp, items[2], MP_WRITE);
    memory->trained = buffer.data;
    memory->trained_len = (uint32_t)buffer.size;
    buffer = mp_buffer_of(mp, items[1], MP_WRITE);
    memory->scratch = buffer.data;
    memory->scratch_len = (uint32_t)buffer.size;
    memory->accum = NULL;
    memory->accum_len = 0;
    memory->share = NULL;
    if (items[0] != mp_none(mp)) {
        buffer = mp_buffer_of(mp, items[0], MP_WRITE);
        memory->accum = buffer.data;
        memory->accum_len = (uint32_t)buffer.size;
    }
}

// An array('i') of at least n items.
static void *get_words(const mp_module_t *mp, mp_obj_t object, size_t n) {
    const mp_buffer_t buffer = mp_buffer_of(mp, object, MP_WRITE);
    if (buffer.size / sizeof(int32_t) < n || (uintptr_t)buffer.data % sizeof(void *) != 0) {
        mp_raise(mp, QSTR(ValueError), "the array('i') of this call is too short");
    }
    return buffer.data;
}

// check(memory): header, buffers and every operator
MP_FUNCTION(check, 1, 1) {
    sprout_memory_t memory;
    file_t file;
    get_memory(mp, args[0], &memory, &file);
    return mp_new_int(mp, sprout_check(&memory));
}

static void *get_share(const mp_module_t *mp, mp_obj_t object) {
    return get_words(mp, object, SPROUT_SHARE / sizeof(int32_t));
}

// run(memory, args[, share]): args is an array('i') in the order of sprout_run_t, results included
MP_FUNCTION(run, 2, 1 + SPROUT_CORES) {
    sprout_memory_t memory;
    file_t file;
    get_memory(mp, args[0], &memory, &file);
    if (n_args > 2) {
        memory.share = get_share(mp, args[2]);
    }
    void *run = get_words(mp, args[1], sizeof(sprout_run_t) / sizeof(int32_t));
    return mp_new_int(mp, sprout_run(&memory, run));
}

// apply(memory): accumulators into parameters
MP_FUNCTION(apply, 1, 1) {
    sprout_memory_t memory;
    file_t file;
    get_memory(mp, args[0], &memory, &file);
    return mp_new_int(mp, sprout_apply(&memory));
}

// set_input(memory, pixels, row=-1): pixels may be the input tensor's own bytes
MP_FUNCTION(set_input, 2, 3) {
    sprout_memory_t memory;
    file_t file;
    get_memory(mp, args[0], &memory, &file);
    const mp_buffer_t pixels = mp_buffer_of(mp, args[1], MP_READ);
    const int32_t row = n_args < 3 ? -1 : (int32_t)mp_get_int(mp, args[2]);
    return mp_new_int(mp, sprout_input(&memory, pixels.data, (uint32_t)pixels.size, row));
}

// probabilities(memory, n, p0, out): of the first n classes into the array('i') out, Q15
MP_FUNCTION(probabilities, 4, 4) {
    sprout_memory_t memory;
    file_t file;
    get_memory(mp, args[0], &memory, &file);
    const mp_int_t n = mp_get_int(mp, args[1]);
    int32_t *out = get_words(mp, args[3], n < 0 ? 0 : (size_t)n);
    const int32_t p0 = (int32_t)mp_get_int(mp, args[2]);
    return mp_new_int(mp, sprout_probabilities(&memory, (int32_t)n, p0, out));
}

#if SPROUT_CORES == 2
// assist(share, stay): to be run by a second core, which returns after assist(share, False) of the
// first. share is an array('i') of zeros.
MP_FUNCTION(assist, 2, 2) {
    void *share = get_share(mp, args[0]);
    if (mp_is_true(mp, args[1])) {
        sprout_assist(share);
    } else {
        sprout_dismiss(share);
    }
    return mp_none(mp);
}
#define ASSIST(FUNCTION) FUNCTION(QSTR(assist), assist)
#else
#define ASSIST(FUNCTION)
#endif

#define EXPORTS(NUMBER, FUNCTION)                                                                 \
    NUMBER(QSTR(ABI), ABI)                                                                        \
    NUMBER(QSTR(FORMAT), FORMAT)                                                                  \
    FUNCTION(QSTR(check), check)                                                                  \
    FUNCTION(QSTR(run), run)                                                                      \
    FUNCTION(QSTR(apply), apply)                                                                  \
    FUNCTION(QSTR(set_input), set_input)                                                          \
    FUNCTION(QSTR(probabilities), probabilities)                                                  \
    ASSIST(FUNCTION)

MP_MODULE(sprout_core, EXPORTS)
