"""Imports `sprout_core`, native or in firmware, or says in one sentence what this board needs."""

import os

from micropython import const

_ABI = const(2)

core = None
try:
    import sprout_core as core

    wrong = None if getattr(core, "ABI", 0) == _ABI else "of another release than this package"
except ImportError:
    wrong = "missing"
except ValueError:  # MicroPython's "incompatible .mpy file", "incompatible .mpy arch" and others
    wrong = "not for this board"
if wrong:
    from .trouble import wrong_core

    wrong_core(wrong, core)


share = None  # what a second core has in common with this one: second.py


def code_bytes():
    """Size of sprout_core.mpy, nearly all of it code in RAM; 0 where firmware holds it."""
    try:
        return os.stat(core.__file__)[6]
    except (AttributeError, OSError):
        return 0
