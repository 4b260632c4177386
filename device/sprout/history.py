"""What net.history shows."""

from micropython import const

# Positions in the array that net.py writes.
_EVERY = const(0)
_POINTS = const(1)
_STEPS = const(2)
_BEFORE = const(5)
_CURVE = const(6)

_BARS = "▁▂▃▄▅▆▇█"


class History:
    """Loss and accuracy of learning, in points of equally many steps; only the last has fewer.

    Gives a row for each: (step, mean loss in nats, fraction right before learning), both over the
    steps since the row before. It goes on with the net.
    """

    def __init__(self, curve):
        self._curve = curve

    def __len__(self):
        return self._curve[_POINTS] + (self._curve[_STEPS] > 0)

    def __iter__(self):
        h = self._curve
        step, every = h[_BEFORE], h[_EVERY]
        for i in range(_CURVE, _CURVE + 2 * h[_POINTS], 2):
            step += every
            yield step, h[i] / every / 64, h[i + 1] / every
        n = h[_STEPS]
        if n:
            yield step + n, h[_STEPS + 1] / n / 64, h[_STEPS + 2] / n

    def __repr__(self):
        rows = list(self)
        if not rows:
            return "<history: nothing learned yet>"
        losses, rights = [row[1] for row in rows], [row[2] for row in rows]
        text = "<history: steps %d to %d, %d a bar\nloss      %s  %.2f -> %.2f\n"
        text %= (self._curve[_BEFORE] + 1, rows[-1][0], self._curve[_EVERY],
                 bars(losses, max(losses)), losses[0], losses[-1])  # fmt: skip
        ends = bars(rights, 1), rights[0] * 100, rights[-1] * 100
        return text + "accuracy  %s  %.0f %% -> %.0f %%>" % ends


def bars(values, most):
    """A line of bars from 0 to `most`."""
    return "".join(_BARS[min(7, int(v * 8 / most)) if most else 0] for v in values)
