"""What a net says of itself at the REPL: loaded when it is asked."""

from .blobfile import trouble


def show(net, size):
    """Classes, samples seen, recent accuracy, RAM."""
    text = "<%s: %d classes (%s)" % (net.name, len(net.classes), ", ".join(net.classes))
    if net._can_learn:
        text += ", %d samples seen" % net.step
    if net._seen:
        text += ", %.0f %% of the last %d right" % (net.recent * 100, net._seen)
    if net._diverges():
        text += ", loss far above chance: reset() and lower the rate, now %s" % net.rate
    return text + ", %d bytes of RAM>" % size


def ranking(classes, odds, top):
    """(label, probability) of the `top` most likely; odds are Q15."""
    if not isinstance(top, int) or top < 1:
        trouble("misuse").wrong_top(top)
    order = sorted(range(len(classes)), key=lambda i: -odds[i])
    return [(classes[i], odds[i] / 32768) for i in order[:top]]
