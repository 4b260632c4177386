"""Sprout: a neural network that goes on learning on the board.

    import sprout
    net = sprout.load("person.sprout")
    net.predict(frame)              # ('person', 0.93)
    net.learn(frame, "no_person")   # one training step, returns the loss
    net.save()
"""

import gc

# Collecting often while modules load leaves few holes, and the arena needs one long piece.
_threshold = gc.threshold()
gc.threshold(1024)
from .blobfile import passing  # noqa: E402
from .net import Net, load  # noqa: E402

gc.threshold(_threshold)
del gc, _threshold


def cores(n=None):
    """Use 1 or 2 cores of an RP2040 or RP2350; returns how many are in use, at first 1.

    With 2 the second core takes half the rows of every large layer, for all nets, with the same
    results. It needs 4.5 KB of RAM, and nothing else may run there.
    """
    from .second import use

    return use(n)


def Frame(width, height, format, net, mirror=False, flip=False):
    """What makes a net's input from a camera's frames of another size or format.

    frame = sprout.Frame(320, 240, "rgb565", net); net.learn(frame(buffer), "cat"). The largest
    part from the middle that has the input's proportions is scaled to it, as Pillow's box filter
    does. format: "grey", "rgb888", "rgb565" or, high byte first, "rgb565be". mirror, flip: swap
    left and right, top and bottom.
    """
    from .frame import Frame

    return Frame(width, height, format, net, mirror, flip)


def help(name=None):
    """Say what there is, or all about one name."""
    passing("manual").show(name)


__all__ = ("Frame", "Net", "cores", "help", "load")
__version__ = "0.1.0"
