// Reading files, over what MicroPython's files provide in native code as in firmware.

#ifndef SPROUT_STREAM_H
#define SPROUT_STREAM_H

#include "mp_runtime.h"

// Reads size bytes at an offset, moves the file's position and allocates nothing. Returns 0 or an
// errno (MP_EIO where the file ends early). Needs no `mp`, so the core can be handed this as its
// way to fetch weights.
static inline int mp_stream_read_at(const mp_stream_t *stream, mp_obj_t file, uint32_t offset,
                                    void *data, size_t size) {
    int error = 0;
    struct mp_stream_seek_t seek = {(mp_off_t)offset, MP_SEEK_SET};
    if (stream->ioctl(file, MP_STREAM_SEEK, (uintptr_t)&seek, &error) == MP_STREAM_ERROR) {
        return error;
    }
    for (size_t done = 0; done < size;) {
        mp_uint_t n = stream->read(file, (uint8_t *)data + done, size - done, &error);
        if (n == MP_STREAM_ERROR) {
            return error;
        }
        if (n == 0) {
            return MP_EIO;
        }
        done += n;
    }
    return 0;
}

#endif
