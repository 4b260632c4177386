"""What to say to a person who asks a net for what it cannot do: gone when it is said."""


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


def cannot_learn(name):
    """Say what a blob that only predicts needs."""
    raise ValueError("%s cannot learn: compile it with --plan last" % name)


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
