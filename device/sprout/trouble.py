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


def wrong_core(wrong, core):
    """Say what is wrong with sprout_core, and what this board needs."""
    if core and not hasattr(core, "__file__"):
        text = "sprout_core in this firmware is %s: copy the package of the firmware's release"
        raise ImportError(text % wrong)
    raise ImportError("sprout_core.mpy is %s: %s" % (wrong, needed(sys.implementation)))


def needed(implementation):
    """Say which firmware this is and which sprout_core.mpy, or which other firmware, it needs."""
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
    return text + "copy sprout_core_%s.mpy to the board as lib/sprout_core.mpy" % module


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


def size_of(x, what):
    """Bytes of x; where it has none, say what it has to be."""
    try:
        view = memoryview(x)
        return len(view) * len(bytes(view[:1]))
    except TypeError:
        text = "%s bytes, bytearray, memoryview, array or ndarray, not %s"
        raise ValueError(text % (what, _short(x))) from None


def _short(x):
    """x in a sentence: itself, or what it is where that is long."""
    if x is None or isinstance(x, (int, float)) or isinstance(x, str) and len(x) < 40:
        return repr(x)
    return "a " + type(x).__name__


def wrong_sample(x, shape):
    """Say what a sample is."""
    size = size_of(x, "a sample is")
    h, w, c = shape
    if size == h * w * c:  # rows of it begin the forward pass
        raise OSError("the blob could not be read: put the file back and load it again")
    text = "a sample has %d bytes (%d x %d x %d), not %d: sprout.Frame crops and scales pictures"
    raise ValueError(text % (h * w * c, h, w, c, size))


def wrong_rows(rows, row, shape):
    """Say which rows come next."""
    size = size_of(rows, "rows are")
    h, w, c = shape
    text = "%d bytes are no whole rows of %d (%d x %d), or more than the %d that are left: feed "
    text += "the frame again from the top"
    raise ValueError(text % (size, w * c, w, c, h - row))


def no_frame(row, shape):
    """Say what a net that takes rows waits for."""
    text = "%d of the %d rows of a frame are there: feed() the others, or give a whole frame"
    raise ValueError(text % (row, shape[0]))


def wrong_label(label, name, classes):
    """Say which labels there are."""
    text = "%s is no class of %s: give one of %s, or a number from 0, or call add_class()"
    some = classes[:8] + ["..."] if len(classes) > 8 else classes
    raise ValueError(text % (_short(label), name, ", ".join(some)))


def wrong_classes(name, most, twice):
    """Say why these classes cannot be."""
    if twice is None:
        text = "%s has room for %d classes: remove_class() one, or compile it with a larger "
        text += "--max-classes"
        raise ValueError(text % (name, most))
    raise ValueError("%r is no name for a class, or is one twice" % (twice[0],))


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


def not_written(path, error, size):
    """Say what a checkpoint needs."""
    message = "%s cannot be written (%s): make %d bytes of room"
    raise OSError(message % (path, error, size)) from None


def not_a_checkpoint(path):
    """Say that a file is something else."""
    raise ValueError("%s is not a checkpoint: give a file that save() wrote" % path)


def damaged_checkpoint(path):
    """Say that a checkpoint cannot be used."""
    raise ValueError("%s is damaged or cut short: restore another one" % path)


def other_version(path, found, known):
    """Say that a checkpoint is of another release."""
    text = (
        "%s is of checkpoint version %d and this package reads %d: use the release that wrote it"
    )
    raise ValueError(text % (path, found, known))


def other_blob(path, of, name):
    """Say that a checkpoint belongs elsewhere."""
    text = "%s belongs to another blob (%s), not to this %s: load that one to restore it"
    raise ValueError(text % (path, of, name))


def wrong_rate(rate):
    """Say which rates there are."""
    text = "the learning rate is %s and must lie between 1e-9 and 1, most nets want about 0.002"
    raise ValueError(text % _short(rate))


def wrong_time(t, n):
    """Say what decay() takes."""
    text = "decay() takes the number of a sample, from 0, and of how many, not %s and %s"
    raise ValueError(text % (_short(t), _short(n)))


def wrong_top(top):
    """Say how many answers there are."""
    raise ValueError("top is %s and must be 1 or more" % _short(top))


def replaced(name):
    """Say that a file is another one than before."""
    raise OSError("%s was replaced by another file: load it again" % name)


def no_samples(samples):
    """Say what samples are."""
    text = "samples are pairs (x, label) in a list, a generator or a function that returns one, "
    raise ValueError(text + "not %s" % _short(samples))


def no_pair(item):
    """Say what one of many samples is."""
    raise ValueError("each sample is a pair (x, label), not %s" % _short(item))


def no_more_samples(epoch):
    """Say why an epoch had no samples."""
    if epoch:
        text = "samples can be gone through once only: give a list, or a function that returns an "
        raise ValueError(text + "iterator")
    raise ValueError("there are no samples: give one pair (x, label) or more")


def no_epochs(epochs, patience):
    """Say how long one can learn."""
    text = "epochs is %s and patience is %s, and both must be 1 or more"
    raise ValueError(text % (_short(epochs), _short(patience)))


def nothing_to_keep():
    """Say what the best epoch is found with."""
    raise ValueError("keep saves the epoch with the best test: give test=, samples to test on")


def last_class(name):
    """Say that a net needs a class."""
    text = "it is the last class of %s: add_class() another one before you remove it, or reset()"
    raise ValueError(text % name)


def fixed_classes(name):
    """Say that a class cannot go."""
    text = "%s cannot remove a class: compile it with --classes and with --plan last or more"
    raise ValueError(text % name)


def no_help(name):
    """Say which names there is help on."""
    raise ValueError("there is no help on %s: help() shows all names" % _short(name))


def no_manual():
    """Say where help comes from."""
    raise OSError("there is no help.txt on this board: copy it to lib/sprout")
