// sprout_frame: the kernel of sprout.Frame as a MicroPython module, native or in firmware. The
// package's frame.py is its one user: it makes the plans and words the errors.

#include "frame.h"
#include "mp_runtime.h"

enum { FRAME_ABI = 1 };

// fill(plan, frame, out, row): plan is an array('I'); rows of the scaled frame, from `row` on,
// into the whole of out. Returns 0 or a negative FRAME_E code.
MP_FUNCTION(fill, 4, 4) {
    const mp_buffer_t plan = mp_buffer_of(mp, args[0], MP_WRITE);
    const mp_buffer_t frame = mp_buffer_of(mp, args[1], MP_READ);
    const mp_buffer_t out = mp_buffer_of(mp, args[2], MP_WRITE);
    const mp_int_t row = mp_get_int(mp, args[3]);
    if ((uintptr_t)plan.data % sizeof(uint32_t) != 0) {
        return mp_new_int(mp, FRAME_E_PLAN);
    }
    return mp_new_int(mp, sprout_frame(plan.data, (uint32_t)(plan.size / sizeof(uint32_t)),
                                       frame.data, (uint32_t)frame.size, out.data,
                                       (uint32_t)out.size, (uint32_t)row));
}

#define FRAME_EXPORTS(NUMBER, FUNCTION)                                                           \
    NUMBER(QSTR(ABI), FRAME_ABI)                                                                  \
    FUNCTION(QSTR(fill), fill)

MP_MODULE(sprout_frame, FRAME_EXPORTS)
