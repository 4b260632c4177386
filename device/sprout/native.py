"""Imports the native module `sprout_core`, or says in one sentence which file this board needs."""

import os

from micropython import const

_ABI = const(2)

try:
    import sprout_core as core

    wrong = None if core.ABI == _ABI else "of another release than this package"
except ImportError:
    wrong = "missing"
except ValueError:  # MicroPython's "incompatible .mpy file"
    wrong = "not for this board"
if wrong:
    from .trouble import needed

    raise ImportError("sprout_core.mpy is %s: %s" % (wrong, needed()))


share = None  # what a second core has in common with this one: second.py


def code_bytes():
    """Size of sprout_core.mpy, nearly all of it code in RAM; 0 where firmware holds it."""
    try:
        return os.stat(core.__file__)[6]
    except (AttributeError, OSError):
        return 0
