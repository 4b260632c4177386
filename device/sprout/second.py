"""A second core that helps with the layers: loaded when it is asked for."""

import sys
import time
from array import array

from micropython import const

from . import native

# Words of the buffer that the cores share: share_t in native_modules/core/layer.h.
_WORDS = const(96)
_PRESENT = const(0)
_BLOCKS = const(1)

_STACK = const(4096)  # bytes; kernels take half of it
_PATIENCE = const(1000)  # ms


def use(n):
    """What sprout.cores() does."""
    if n not in (None, 1, 2):
        raise ValueError("cores is %s and must be 1 or 2" % n)
    if n == 2 and not native.share:
        _start()
    elif n == 1 and native.share:
        _stop()
    return 2 if native.share else 1


def blocks():
    """How many blocks of channels the second core has had a half of."""
    return native.share[_BLOCKS] if native.share else 0


def _start():
    try:
        import _thread
    except ImportError:
        _thread = None
    # Firmware before 1.26 does not say whether its threads take turns.
    kind = getattr(sys.implementation, "_thread", "unsafe" if sys.platform == "rp2" else "GIL")
    if not _thread or kind != "unsafe" or not hasattr(native.core, "assist"):
        raise RuntimeError("this board has no second core for sprout: an RP2040 or RP2350 has one")
    try:
        share = array("I", bytes(4 * _WORDS))
        usual = _thread.stack_size(_STACK)
        try:
            _thread.start_new_thread(native.core.assist, (share, True))
        finally:
            _thread.stack_size(usual)
    except MemoryError:
        text = "the second core needs %d bytes of RAM in one piece: call cores(2) before load()"
        raise MemoryError(text % _STACK) from None
    except OSError as error:
        text = "the second core is not free (%s): end the thread that runs there"
        raise OSError(text % error) from None
    native.share = share
    _wait(share, 1)


def _stop():
    share, native.share = native.share, None
    native.core.assist(share, False)
    _wait(share, 0)


def _wait(share, present):
    """Until the second core has come or gone; without it the first one does everything."""
    for _ in range(_PATIENCE):
        time.sleep_ms(1)
        if share[_PRESENT] == present:
            return
