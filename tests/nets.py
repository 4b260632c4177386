"""Small hand-made networks for tests: every forward operator at sizes where a loop is quick."""

import numpy as np
from sprout.graph import Graph, Op, Tensor, mean_multiplier


class Maker:
    """Adds layers one after another to a list of operators, with random weights of one seed."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ops = []

    def conv(self, x, outputs, kernel=1, stride=1, depthwise=False, relu=True, padding=None):
        """Append a convolution and return its output; ``relu`` clamps at the zero point."""
        pad = kernel // 2 if padding is None else padding
        h, w = ((n + 2 * pad - kernel) // stride + 1 for n in x.shape[:2])
        taps = (outputs, kernel, kernel) if depthwise else (outputs, kernel, kernel, x.shape[2])
        zero = -128 if relu else 3
        y = Tensor(f"t{len(self.ops)}", (h, w, outputs), scale=6 / 255 if relu else 0.05)
        y.zero_point = zero
        params = {
            "weight": self.rng.integers(-127, 128, taps).astype(np.int8),
            "bias": self.rng.integers(-500, 500, outputs).astype(np.int32),
            "weight_scales": 0.01 * self.rng.uniform(0.5, 1.5, outputs),
        }
        attrs = {
            "stride": (stride, stride),
            "padding": (pad,) * 4,
            "act_min": zero if relu else -128,
            "act_max": 127,
        }
        kind = "depthwise" if depthwise else "conv"
        self.ops.append(Op(kind, [x], [y], attrs, params, y.name))
        return y

    def op(self, kind, inputs, shape, scale, zero_point, **attrs):
        """Append any other operator and return its output."""
        y = Tensor(f"t{len(self.ops)}", shape, scale=scale, zero_point=zero_point)
        if kind != "reshape":
            attrs = {"act_min": -128, "act_max": 127} | attrs
        else:
            y.alias = inputs[0]
        self.ops.append(Op(kind, inputs, [y], attrs, {}, y.name))
        return y

    def graph(self, x, logits, output=None):
        """Return the network from ``x`` to ``logits``."""
        names = [f"class_{i}" for i in range(logits.shape[2])]
        return Graph("net", self.ops, x, output or logits, logits, names)


def picture(h=8, w=8, c=3):
    """An input tensor of pixels, one LSB a grey level."""
    return Tensor("x", (h, w, c), scale=2 / 255, zero_point=0)


def residual_net(seed=0):
    """conv, pointwise, depthwise, pointwise, residual add, mean, head: five convolutions."""
    m = Maker(seed)
    x = picture()
    a = m.conv(x, 8, 3, 2, relu=False)
    b = m.conv(a, 16)
    c = m.conv(b, 16, 3, depthwise=True)
    d = m.conv(c, 8, relu=False)
    e = m.op("add", [a, d], (4, 4, 8), 0.06, -1)
    mult, shift = mean_multiplier(0.06, 0.06, 16)
    f = m.op("mean", [e], (1, 1, 8), 0.06, -1, mult=mult, shift=shift)
    return m.graph(x, m.conv(f, 4, relu=False))


def everything_net(seed=0):
    """Every forward operator: pads, both pools, multiplied depthwise, reshape, softmax."""
    m = Maker(seed)
    x = picture(11, 9, 1)
    a = m.op("pad", [x], (13, 11, 1), x.scale, x.zero_point, padding=(1, 1, 1, 1), value=0)
    b = m.conv(a, 6, 3, 1, padding=0)
    c = m.op(
        "max_pool", [b], (6, 5, 6), b.scale, b.zero_point,
        kernel=(3, 2), stride=(2, 2), padding=(1, 0, 1, 1), act_min=-120, act_max=90,
    )  # fmt: skip
    d = m.conv(c, 12, 5, 1, depthwise=True)
    e = m.conv(d, 6, 3, 1, relu=False)
    f = m.op("requantize", [c], (6, 5, 6), 0.031, -100)
    g = m.op("add", [f, e], (6, 5, 6), 0.06, -4)
    h = m.op(
        "average_pool", [g], (3, 3, 6), g.scale, g.zero_point,
        kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 1),
    )  # fmt: skip
    mult, shift = mean_multiplier(h.scale, 0.04, 3)
    rows = m.op("mean", [h], (3, 1, 6), 0.04, 2, mult=mult, shift=shift)
    flat = m.op("reshape", [rows], (1, 1, 18), rows.scale, rows.zero_point)
    k = m.conv(flat, 10)
    logits = m.conv(k, 5, relu=False)
    y = m.op("softmax", [logits], (1, 1, 5), 1 / 256, -128, beta=1.0)
    return m.graph(x, logits, y)
