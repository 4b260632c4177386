"""Says how much RAM a net lacks: loaded when it does."""

import gc
import sys


def short(name, sizes, room):
    """Say how many bytes are missing for buffers of these sizes and room beside them."""
    gc.collect()
    free = gc.mem_free()
    low, high = 0, free  # the buffers have to fit the largest piece that is free
    while high - low > 32:
        size = (low + high) >> 1
        try:
            bytearray(size)
            low = size
        except MemoryError:
            high = size
    needs = sum(sizes) + room
    missing = max(needs - free, sum(sizes) - low) + 768  # what holes among small objects cost
    # Of a larger heap, 3 bits a block of 4 words go to the heap itself.
    missing += missing // (84 if sys.maxsize >> 32 else 42) + 1
    raise MemoryError(
        "%s needs %d bytes of RAM and %d are missing: load it right after a reset, or "
        "compile it with a smaller plan" % (name, needs, missing)
    )
