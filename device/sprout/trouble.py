"""What to say when something goes wrong: loaded when it does, and gone when it is dealt with."""

import sys

from micropython import const

# Of firmware, by its number. Those of Cortex-M take the modules of the ones before, and armv7em
# is what a Cortex-M3 says too.
_ARCHES = const(
    "- x86 x64 armv6 armv6m armv7m armv7em armv7emsp armv7emdp xtensa xtensawin rv32imc rv64imc"
    " - - -"
)
_MODULES = const("x64 armv6m armv7m armv7emsp armv7emdp xtensawin rv32imc")

_E_ALIGNMENT = const(-2)
_E_OPCODE = const(-8)
_E_READ = const(-12)
_E_LABEL = const(-14)


def wrong_core(wrong, core, name="sprout_core"):
    """Say what is wrong with a native module, and what this board needs."""
    if core and not hasattr(core, "__file__"):
        text = "%s in this firmware is %s: copy the package of the firmware's release"
        raise ImportError(text % (name, wrong))
    raise ImportError("%s.mpy is %s: %s" % (name, wrong, needed(sys.implementation, name)))


def needed(implementation, name="sprout_core"):
    """Say which firmware this is and which native module, or which other firmware, it needs."""
    mpy = getattr(implementation, "_mpy", 0)
    version = "%d.%d" % (mpy & 255, mpy >> 8 & 3)
    arch = _ARCHES.split()[mpy >> 10 & 15]
    module = "armv7m" if arch == "armv7em" else arch
    if module not in _MODULES.split():
        native = "without native code" if arch == "-" else "for %s, for which there is none" % arch
        text = "this firmware takes .mpy %s %s: build one that holds it (native_modules/usermod)"
        return text % (version, native)
    text = "this firmware takes .mpy %s for %s, " % (version, arch)
    if version != "6.3":
        text += "install MicroPython 1.23 to 1.29 (.mpy 6.3) and "
    return text + "copy %s_%s.mpy to the board as lib/%s.mpy" % (name, module, name)


def refused(name, code, op, detail, n_classes):
    """Say what an error of the core means."""
    if code == _E_READ:
        text = "%s could not be read (error %d): put the file back and load it again"
        raise OSError(text % (name, detail))
    if code == _E_LABEL:  # a label was checked before
        text = "%s has %d classes, too many for predict(): use classify() or forward()"
        raise ValueError(text % (name, n_classes))
    if code == _E_ALIGNMENT:
        raise ValueError("%s begins at an odd address: load it from a file" % name)
    if code == _E_OPCODE:
        text = "%s uses operator %d, which this sprout_core does not have: install the whole one"
        raise ValueError(text % (name, detail))
    text = "%s does not run (error %d, operator %d, detail %d): compile it again"
    raise ValueError(text % (name, code, op, detail))


def not_a_blob(name):
    """Say that a file is something else."""
    raise ValueError("%s is not a Sprout blob: make one with 'sprout compile'" % name)


def wrong_format(name, found, known):
    """Say that a blob is of another release."""
    text = "%s is of blob format %d and this package reads %d: compile it again, with the same "
    raise ValueError((text + "release of sprout") % (name, found, known))


def damaged(name, what):
    """Say that a blob cannot be used."""
    raise ValueError("%s is damaged, %s: copy it again" % (name, what))


def replaced(name):
    """Say that a file is another one than before."""
    raise OSError("%s was replaced by another file: load it again" % name)
