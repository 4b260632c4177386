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


def other_blob(path, of, name):
    """Say that a checkpoint belongs elsewhere."""
    text = "%s belongs to another blob (%s), not to this %s: load that one to restore it"
    raise ValueError(text % (path, of, name))


def no_checkpoint(path, number, kind, slot):
    """Say why there is nothing to restore; kinds are those of checkpoint.py."""
    if kind == 0:
        raise OSError("%s holds no checkpoint: net.save() writes one" % path)
    if kind == 1:
        raise ValueError("%s is not a checkpoint: give a file that save() wrote" % slot)
    if kind == 2:
        text = "%s is of checkpoint version %d and this package reads 2: use the release that "
        raise ValueError((text + "wrote it") % (slot, number))
    raise ValueError("%s is damaged or cut short: restore another one" % slot)


def fell_back(slot, step):
    """Say that an older checkpoint had to do."""
    text = "%s is damaged or was cut short: this is the checkpoint before it, of step %d"
    print(text % (slot, step))


def not_kept(slot):
    """Say that flash did not keep what was written."""
    text = "%s reads back otherwise than it was written: the checkpoint before it is whole, save "
    raise OSError(text % slot + "to another path or replace the flash")


def ring_not_written(path, error):
    """Say that a ring's folder cannot be used."""
    text = "%s cannot hold samples (%s): give a folder on a file system that can be written"
    raise OSError(text % (path, error)) from None


def ring_too_small(path, size, least):
    """Say what one sample takes."""
    text = "%s cannot hold one sample in %d bytes: give it at least %d"
    raise ValueError(text % (path, size, least))


def other_ring(path, found, size):
    """Say that a ring belongs elsewhere; found: bytes of its samples where only they differ."""
    what = "samples of %d bytes, not %d" % (found, size) if found else "samples of another net"
    raise ValueError("%s holds %s: give another folder, or clear=True to drop them" % (path, what))


def wrong_record(label, size, expected):
    """Say what a sample in a ring is."""
    text = "a sample of this ring has %d bytes and a label from 0 to 32767, not %d and %s"
    raise ValueError(text % (expected, size, label))


def ring_full(path, capacity):
    """Say that a ring has become smaller."""
    print("the flash is full: %s goes on with room for %d samples" % (path, capacity))


def cannot_learn(name):
    """Say what a blob that only predicts needs."""
    raise ValueError("%s cannot learn: compile it with --plan last" % name)


def replay_too_small(form, size, least):
    """Say what a replay buffer holds at least."""
    text = "replay of %d bytes holds no %s sample: give it %d or more, or another form"
    raise ValueError(text % (size, form, least))


def no_ram_for_replay(size, free):
    """Say how much RAM there is for a replay buffer."""
    text = "replay needs %d bytes of RAM and about %d are free: give it fewer, or a path on flash"
    raise MemoryError(text % (size, free))


def nothing_to_rehearse():
    """Say where kept samples come from."""
    raise ValueError("no sample is kept: call net.replay(), then learn() some or give its path")


def not_between_rows(row):
    """Say when a net that takes rows can rehearse."""
    text = "%d rows of a frame are there: feed() the others and use it before rehearse()"
    raise ValueError(text % row)


def no_raw_rows(name):
    """Say why there are no frames to keep."""
    text = "%s takes frames by rows and never has a whole one: keep form='latent' instead of 'raw'"
    raise ValueError(text % name)


def no_latents(name):
    """Say that a blob is too old for latent replay."""
    raise ValueError("%s does not say what to keep for replay: compile it again" % name)


def same_on_flash(first, second):
    """Say that two classes cannot be told apart on flash."""
    text = "replay on flash cannot tell %r from %r: load() with another name for one of them"
    raise ValueError(text % (first, second))
def wrong_frame(x, width, height, format, size):
    """Say what a camera's frame is."""
    found = size_of(x, "a frame is")
    text = "a frame of %d x %d pixels in %s has %d bytes, not %d: give sprout.Frame() the camera's"
    raise ValueError((text + " size and format") % (width, height, format, size, found))


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
