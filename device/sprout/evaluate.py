"""What net.evaluate() does."""

from array import array

from micropython import const

from .blobfile import trouble

_MOST = const(64)  # classes, for a table of who is taken for whom


def pairs(samples):
    """(x, label) by (x, label); samples: any iterable of them, or a function that returns one."""
    try:
        items = iter(samples() if callable(samples) else samples)
    except TypeError:
        trouble("misuse").no_samples(samples)
    for item in items:
        try:
            x, label = item
        except (TypeError, ValueError):
            trouble("misuse").no_pair(item)
        yield x, label


def evaluate(net, samples):
    """Test a net; see Net.evaluate."""
    result = Evaluation(net)
    for x, label in pairs(samples):
        result._add(net, x, label)
    return result


class Evaluation:
    """What a test found.

    n: samples. right: of them. accuracy: their fraction (None without samples). loss: mean, in
    nats; None where the net cannot learn. classes: their names. per_class: {name: fraction right,
    None without samples}. confusion: for each class an array of how often it was taken for each;
    None where there are more than 64.
    """

    def __init__(self, net):
        self.classes = list(net.classes)
        n = len(self.classes)
        self._learns = net._can_learn  # the net itself would stay in RAM as long as this
        self.n = self.right = self._loss = 0
        self._seen = array("I", bytes(4 * n))
        self._hits = array("I", bytes(4 * n))
        self.confusion = None
        if n <= _MOST:
            self.confusion = [array("I", bytes(4 * n)) for _ in range(n)]

    def _add(self, net, x, label):
        number = net._number(label)
        if self._learns:
            self._loss += net.loss(x, number)
            best = net._best()
        else:
            best = net.classify(x)
        hit = best == number
        self.n += 1
        self.right += hit
        self._seen[number] += 1
        self._hits[number] += hit
        if self.confusion:
            self.confusion[number][best] += 1

    @property
    def accuracy(self):
        return self.right / self.n if self.n else None

    @property
    def loss(self):
        return self._loss / self.n if self.n and self._learns else None

    @property
    def per_class(self):
        rows = zip(self.classes, self._hits, self._seen)  # noqa: B905
        return {name: hits / seen if seen else None for name, hits, seen in rows}

    def __repr__(self):
        if not self.n:
            return "<evaluation: no samples>"
        text = "<%.1f %% of %d right" % (self.accuracy * 100, self.n)
        if self.loss is not None:
            text += ", loss %.3f" % self.loss
        width = max(map(len, self.classes))
        for i, name in enumerate(self.classes):
            if self._seen[i]:
                text += "\n%-*s %4d of %d" % (width, name, self._hits[i], self._seen[i])
                text += self._mistakes(i)
        return text + ">"

    def _mistakes(self, i):
        """What class i was taken for most often."""
        if not self.confusion:
            return ""
        row = self.confusion[i]
        others = [j for j in range(len(row)) if row[j] and j != i]
        others.sort(key=lambda j: -row[j])
        if not others:
            return ""
        some = ["%s (%d)" % (self.classes[j], row[j]) for j in others[:3]]
        return ", taken for " + ", ".join(some)
