"""Imports the native module `sprout_core`, or says in one sentence which file this board needs."""

import os
import sys

from micropython import const

_ABI = const(1)
_ARCHES = const(
    "- x86 x64 armv6 armv6m armv7m armv7em armv7emsp armv7emdp xtensa xtensawin rv32imc rv64imc"
    " - - -"
)


def _needed():
    mpy = getattr(sys.implementation, "_mpy", 0)
    arch = _ARCHES.split()[mpy >> 10 & 15]
    version = "%d.%d" % (mpy & 255, mpy >> 8 & 3)
    if arch == "-":
        return "this firmware loads no native modules, install one of MicroPython 1.23 to 1.29"
    if version != "6.3":
        return "this firmware is .mpy %s, install MicroPython 1.23 to 1.29 (.mpy 6.3)" % version
    return "copy sprout_core_%s.mpy to the board as lib/sprout_core.mpy" % arch


try:
    import sprout_core as core
except ImportError:
    raise ImportError("sprout_core.mpy is missing: " + _needed()) from None
except ValueError:  # MicroPython's "incompatible .mpy file"
    raise ImportError("sprout_core.mpy is not for this board: " + _needed()) from None
if core.ABI != _ABI:
    raise ImportError("sprout_core.mpy is of another release than this package: " + _needed())


def code_bytes():
    """Size of sprout_core.mpy, nearly all of it code in RAM; 0 where firmware holds it."""
    try:
        return os.stat(core.__file__)[6]
    except (AttributeError, OSError):
        return 0
