"""What net.learn_all() does."""

from .blobfile import trouble
from .evaluate import evaluate, pairs
from .schedule import rate_at


class Course:
    """What came of learning.

    epochs: a row for each: (mean loss in nats, fraction right before learning, fraction right of
    the test or None). best: number of the epoch with the best test, from 1; None without a test.
    stopped: why learning ended early, or None.
    """

    def __init__(self):
        self.epochs = []
        self.best = self.stopped = None

    def line(self, i):
        """Epoch i, from 0, as a line of text."""
        loss, right, tested = self.epochs[i]
        text = "epoch %d: loss %.3f, %.1f %% right before learning" % (i + 1, loss, right * 100)
        if tested is not None:
            text += ", %.1f %% of the test" % (tested * 100)
        return text

    def __repr__(self):
        lines = [self.line(i) for i in range(len(self.epochs))]
        if self.best:
            lines.append("best: epoch %d" % self.best)
        if self.stopped:
            lines.append("stopped: %s" % self.stopped)
        return "<%s>" % "\n".join(lines)


def learn_all(net, samples, epochs, test, patience, keep, report):
    """Learn; see Net.learn_all."""
    if epochs < 1 or patience < 1:
        trouble("misuse").no_epochs(epochs, patience)
    if keep and not test:
        trouble("misuse").nothing_to_keep()
    try:
        total = epochs * len(samples)
    except TypeError:  # nobody knows how many there are
        total = 0
    mantissa, exponent = net._mantissa, net._exponent
    course = Course()
    best = None
    t = 0
    for epoch in range(epochs):
        loss = hits = n = 0
        for x, label in pairs(samples):
            m = rate_at(mantissa, min(t, total), total) if total else mantissa
            one = net._learn(x, label, m, exponent)
            if net._keeper:
                net._keeper.after(one, m, exponent)
            loss += one >> 8
            hits += net.hit
            n += 1
            t += 1
            if net._diverges():
                course.stopped = "it diverges, lower the rate and reset() or restore()"
                break
        net.apply()
        if not n:
            trouble("misuse").no_more_samples(epoch)
        tested = evaluate(net, test) if test else None
        if tested and not tested.n:
            trouble("misuse").no_more_samples(epoch)
        course.epochs.append((loss / n / 256, hits / n, tested and tested.accuracy))
        if report:
            report(course.line(epoch))
        if tested:
            score = tested.accuracy, -tested.loss
            if best is None or score > best:
                best, course.best = score, epoch + 1
                if keep:
                    net.save(keep)
            elif epoch + 1 - course.best >= patience:
                course.stopped = course.stopped or "no better for %d epochs" % patience
        if course.stopped:
            break
    if keep and course.best < len(course.epochs):
        net.restore(keep)
    return course
