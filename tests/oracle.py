"""A float oracle: the true gradient of a quantised network, in numpy, written to be read.

The forward pass gives the exact integers of the network (its own implementation: it shares
nothing with ``sprout.reference`` but ``quantize_multiplier``).  The reverse pass is float64.
Three rules make it the gradient of the *quantised* network:

* rounding is straight-through: y = round(v) has dy/dv = 1;
* saturation is a mask: y = clamp(v) passes the gradient where act_min <= v <= act_max, both
  ends included;
* zero points are subtracted: a weight sees x - zero_point, and padding contributes nothing.

So an operator whose output is y = clamp(zy + M * acc) has d/dacc = M * d/dy * mask with
M = sx * sw / sy, and all derivatives are by the *integer* values of activations, weights and
biases.  The loss is the softmax cross-entropy, in nats, of the dequantised logits over the first
``n_classes``.

With ``smooth=True`` nothing is rounded: the forward pass is then piecewise smooth and the reverse
pass its exact derivative, which finite differences can check.

Activations are float64 [h, w, c] that hold integers, exact below 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sprout.graph import Graph, Op, Tensor, quantize_multiplier

Floats = NDArray[np.float64]


@dataclass
class Tape:
    """What a forward pass leaves behind: values after the clamp and, where it has one, before."""

    values: dict[Tensor, Floats] = field(default_factory=dict)
    before_clamp: dict[Tensor, Floats] = field(default_factory=dict)


@dataclass
class Gradients:
    """Derivatives of ``loss`` by integer values.

    ``weights`` and ``biases`` are keyed by the number of the convolution (its place in
    ``graph.convs``) and shaped as ``params["weight"]`` and ``params["bias"]``; ``tensors`` by
    activation, shaped [h, w, c].
    """

    loss: float
    weights: dict[int, Floats]
    biases: dict[int, Floats]
    tensors: dict[Tensor, Floats]
    tape: Tape


# --- fixed point --------------------------------------------------------------------------------


def multiply(acc: Floats, real: float | Floats, smooth: bool, once: bool = False) -> Floats:
    """Return acc [..., c] times ``real`` (a number or [c]), rounded as TFLite unless ``smooth``.

    TFLite rounds twice, in a fully connected layer (``once``) a single time.
    """
    if smooth:
        return acc * real
    pairs = [quantize_multiplier(float(r)) for r in np.atleast_1d(real)]
    mult = np.array([m for m, _ in pairs], np.int64)
    shift = np.array([s for _, s in pairs], np.int64)
    return (single_multiply if once else fixed_multiply)(acc, mult, shift)


def fixed_multiply(acc: Floats, mult: NDArray[np.int64], shift: NDArray[np.int64]) -> Floats:
    """Return round(round(acc * 2**left * mult / 2**31) / 2**right).

    gemmlowp's SaturatingRoundingDoublingHighMul (halves up: -0.5 becomes 0) and then its
    RoundingDivideByPOT (halves away from zero).
    """
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    product = (acc.astype(np.int64) << left) * mult
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    total = product + nudge
    high = np.where(total >= 0, total >> 31, -(-total >> 31))  # a division that truncates
    half = (1 << right) >> 1
    rounded = np.where(high >= 0, (high + half) >> right, -((-high + half) >> right))
    return rounded.astype(np.float64)


def single_multiply(acc: Floats, mult: NDArray[np.int64], shift: NDArray[np.int64]) -> Floats:
    """Return round(acc * mult / 2**31 * 2**shift), halves away from zero."""
    product, right = acc.astype(np.int64) * mult, 31 - shift
    size = (np.abs(product) + (np.int64(1) << (right - 1))) >> right
    return (np.sign(product) * size).astype(np.float64)


def divide(total: Floats, count: float | Floats, smooth: bool) -> Floats:
    """Return total / count, rounded half away from zero unless ``smooth``."""
    if smooth:
        return total / count
    return np.sign(total) * np.floor((np.abs(total) + np.floor(np.asarray(count) / 2)) / count)


# --- windows ------------------------------------------------------------------------------------


def pad_to_windows(op: Op, x: Floats, kernel: tuple[int, int], value: float) -> Floats:
    """Return x [h, w, c] with borders of ``value``, large enough for every window of ``op``."""
    (kh, kw), (sh, sw), (top, left) = kernel, op.attrs["stride"], op.attrs["padding"][:2]
    oh, ow, _ = op.outputs[0].shape
    h, w, c = x.shape
    height, width = max((oh - 1) * sh + kh, top + h), max((ow - 1) * sw + kw, left + w)
    padded = np.full((height, width, c), value)
    padded[top : top + h, left : left + w] = x
    return padded


def inside(op: Op, padded: Floats) -> Floats:
    """Undo ``pad_to_windows``."""
    (top, left), (h, w, _) = op.attrs["padding"][:2], op.inputs[0].shape
    return padded[top : top + h, left : left + w]


def taps(op: Op, kernel: tuple[int, int]) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Yield (ky, kx, slices): what that tap of all windows sees of the padded input, [oh, ow]."""
    (sh, sw), (oh, ow, _) = op.attrs["stride"], op.outputs[0].shape
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            rows = slice(ky, ky + (oh - 1) * sh + 1, sh)
            columns = slice(kx, kx + (ow - 1) * sw + 1, sw)
            yield ky, kx, (rows, columns)


# --- operators: forward beside backward ---------------------------------------------------------
# A forward function returns the value before the clamp; a backward one takes d, the gradient by it
# with the clamp's mask applied.


def conv_scale(op: Op) -> Floats:
    """Return M [O] = sx * sw / sy, the real factor from accumulator to output."""
    x, y = op.inputs[0], op.outputs[0]
    return x.scale * op.params["weight_scales"].astype(np.float64) / y.scale


def conv(op: Op, x: Floats, smooth: bool) -> Floats:
    """A sum of 1x1 convolutions, one for each tap.  x is [h, w, I], weight [O, KH, KW, I]."""
    weight, zero = op.params["weight"].astype(np.float64), op.inputs[0].zero_point
    kernel = weight.shape[1], weight.shape[2]
    padded = pad_to_windows(op, x - zero, kernel, 0.0)
    acc = np.zeros(op.outputs[0].shape) + op.params["bias"]
    for ky, kx, window in taps(op, kernel):
        acc += padded[window] @ weight[:, ky, kx].T
    once = op.attrs.get("rounding") == "single"
    return op.outputs[0].zero_point + multiply(acc, conv_scale(op), smooth, once)


def conv_backward(op: Op, x: Floats, d: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the gradients by x, weight and bias."""
    weight, zero = op.params["weight"].astype(np.float64), op.inputs[0].zero_point
    kernel = weight.shape[1], weight.shape[2]
    padded = pad_to_windows(op, x - zero, kernel, 0.0)
    dacc = d * conv_scale(op)
    rows = dacc.reshape(-1, weight.shape[0])  # [pixels, O]
    dx, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for ky, kx, window in taps(op, kernel):
        dx[window] += dacc @ weight[:, ky, kx]
        dweight[:, ky, kx] = rows.T @ padded[window].reshape(len(rows), -1)
    return inside(op, dx), dweight, rows.sum(0)


def depthwise(op: Op, x: Floats, smooth: bool) -> Floats:
    """weight is [C, KH, KW]; output channel c reads input channel c // multiplier."""
    weight, zero = op.params["weight"].astype(np.float64), op.inputs[0].zero_point
    kernel = weight.shape[1], weight.shape[2]
    repeated = np.repeat(x - zero, len(weight) // x.shape[2], axis=2)
    padded = pad_to_windows(op, repeated, kernel, 0.0)
    acc = np.zeros(op.outputs[0].shape) + op.params["bias"]
    for ky, kx, window in taps(op, kernel):
        acc += padded[window] * weight[:, ky, kx]
    return op.outputs[0].zero_point + multiply(acc, conv_scale(op), smooth)


def depthwise_backward(op: Op, x: Floats, d: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the gradients by x, weight and bias."""
    weight, zero = op.params["weight"].astype(np.float64), op.inputs[0].zero_point
    kernel = weight.shape[1], weight.shape[2]
    multiplier = len(weight) // x.shape[2]
    padded = pad_to_windows(op, np.repeat(x - zero, multiplier, axis=2), kernel, 0.0)
    dacc = d * conv_scale(op)
    dx, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for ky, kx, window in taps(op, kernel):
        dx[window] += dacc * weight[:, ky, kx]
        dweight[:, ky, kx] = np.einsum("hwc,hwc->c", dacc, padded[window])
    dx = inside(op, dx).reshape(*x.shape, multiplier).sum(3)  # every output channel that read it
    return dx, dweight, dacc.sum((0, 1))


def add(op: Op, a: Floats, b: Floats, smooth: bool) -> Floats:
    """TFLite's ADD: both sides brought to one scale with 20 spare bits, then to the output's."""
    (ta, tb), y = op.inputs, op.outputs[0]
    common = 2.0 * max(ta.scale, tb.scale)
    total = multiply((a - ta.zero_point) * 2.0**20, ta.scale / common, smooth)
    total = total + multiply((b - tb.zero_point) * 2.0**20, tb.scale / common, smooth)
    return y.zero_point + multiply(total, common / (2.0**20 * y.scale), smooth)


def add_backward(op: Op, d: Floats) -> tuple[Floats, Floats]:
    """Return the gradients by both sides."""
    (ta, tb), y = op.inputs, op.outputs[0]
    return d * (ta.scale / y.scale), d * (tb.scale / y.scale)


def pool_counts(op: Op) -> Floats:
    """Return [oh, ow, 1]: how many taps of each window lie inside the input."""
    h, w, _ = op.inputs[0].shape
    ones = pad_to_windows(op, np.ones((h, w, 1)), op.attrs["kernel"], 0.0)
    return np.sum([ones[window] for _, _, window in taps(op, op.attrs["kernel"])], axis=0)


def average_pool(op: Op, x: Floats, smooth: bool) -> Floats:
    """The mean over the taps inside the input; scale and zero point of x and y are the same."""
    padded = pad_to_windows(op, x, op.attrs["kernel"], 0.0)
    total = np.sum([padded[window] for _, _, window in taps(op, op.attrs["kernel"])], axis=0)
    return divide(total, pool_counts(op), smooth)


def average_pool_backward(op: Op, x: Floats, d: Floats) -> Floats:
    """Every tap gets an equal share."""
    dx = pad_to_windows(op, np.zeros_like(x), op.attrs["kernel"], 0.0)
    share = d / pool_counts(op)
    for _, _, window in taps(op, op.attrs["kernel"]):
        dx[window] += share
    return inside(op, dx)


def max_pool(op: Op, x: Floats) -> Floats:
    """The largest tap inside the input."""
    padded = pad_to_windows(op, x, op.attrs["kernel"], -np.inf)
    return np.max([padded[window] for _, _, window in taps(op, op.attrs["kernel"])], axis=0)


def max_pool_backward(op: Op, x: Floats, d: Floats) -> Floats:
    """The first largest tap, in the order ky, kx, gets all."""
    kernel = op.attrs["kernel"]
    padded = pad_to_windows(op, x, kernel, -np.inf)
    first = np.argmax([padded[window] for _, _, window in taps(op, kernel)], axis=0)
    dx = np.zeros_like(padded)
    for n, (_, _, window) in enumerate(taps(op, kernel)):
        dx[window] += d * (first == n)
    return inside(op, dx)


def mean(op: Op, x: Floats, smooth: bool) -> Floats:
    """The mean over h and w (over w where the output has rows), at the output's scale."""
    tx, y, attrs = op.inputs[0], op.outputs[0], op.attrs
    total = (x - tx.zero_point).sum((0, 1) if y.shape[0] == 1 else (1,), keepdims=True)
    if smooth:
        return y.zero_point + total * mean_scale(op)
    mult, shift = np.array([attrs["mult"]]), np.array([attrs["shift"]])
    return y.zero_point + fixed_multiply(total, mult, shift)


def mean_scale(op: Op) -> float:
    """Return dy/dx of every element."""
    x, y = op.inputs[0], op.outputs[0]
    return x.scale / y.scale / (x.elements // y.elements)


def requantize(op: Op, x: Floats, smooth: bool) -> Floats:
    """The same real value at another scale."""
    tx, y = op.inputs[0], op.outputs[0]
    return y.zero_point + multiply(x - tx.zero_point, tx.scale / y.scale, smooth)


def pad(op: Op, x: Floats) -> Floats:
    """x with borders of ``value``, an int8 as it lies in the tensor."""
    y = np.full(op.outputs[0].shape, float(op.attrs["value"]))
    inside(op, y)[:] = x
    return y


# --- a whole network ----------------------------------------------------------------------------


def forward(graph: Graph, x: NDArray[np.int8] | Floats, smooth: bool = False) -> Tape:
    """Run the network up to its logits on x [h, w, c], the integer values of ``graph.input``."""
    tape = Tape()
    tape.values[graph.input] = np.asarray(x, np.float64).reshape(graph.input.shape)
    for op in graph.ops:
        if op.kind == "softmax":  # the loss is on the logits
            continue
        out = op.outputs[0]
        value = run(op, [tape.values[t] for t in op.inputs], smooth)
        if "act_min" in op.attrs:
            tape.before_clamp[out] = value
            value = np.clip(value, op.attrs["act_min"], op.attrs["act_max"])
        tape.values[out] = value
    return tape


def run(op: Op, inputs: list[Floats], smooth: bool) -> Floats:
    """Return the output of one operator before its clamp."""
    x = inputs[0]
    match op.kind:
        case "conv":
            return conv(op, x, smooth)
        case "depthwise":
            return depthwise(op, x, smooth)
        case "add":
            return add(op, x, inputs[1], smooth)
        case "average_pool":
            return average_pool(op, x, smooth)
        case "max_pool":
            return max_pool(op, x)
        case "mean":
            return mean(op, x, smooth)
        case "requantize":
            return requantize(op, x, smooth)
        case "pad":
            return pad(op, x)
        case "reshape":
            return x.reshape(op.outputs[0].shape)
    raise ValueError(f"the oracle knows no operator {op.kind} ({op.name})")


def cross_entropy(logits: Floats, label: int) -> tuple[float, Floats]:
    """Return the loss in nats and its gradient by the real logits [n]: softmax minus one-hot."""
    exps = np.exp(logits - logits.max())
    probabilities = exps / exps.sum()
    return -float(np.log(probabilities[label])), probabilities - np.eye(len(logits))[label]


def loss_on(graph: Graph, tape: Tape, label: int, n_classes: int) -> tuple[float, Floats]:
    """Return the loss and its gradient by the integer logits; 0 for classes past ``n_classes``."""
    t = graph.logits
    real = t.scale * (tape.values[t].reshape(-1)[:n_classes] - t.zero_point)
    loss, dreal = cross_entropy(real, label)
    dlogits = np.zeros(t.elements)
    dlogits[:n_classes] = t.scale * dreal
    return loss, dlogits.reshape(t.shape)


def float_loss(
    graph: Graph, x: NDArray[np.int8] | Floats, label: int, n_classes: int, smooth: bool = False
) -> float:
    """Return the loss in nats; the forward pass is in integers unless ``smooth``."""
    return loss_on(graph, forward(graph, x, smooth), label, n_classes)[0]


def gradients(
    graph: Graph,
    x: NDArray[np.int8] | Floats,
    label: int,
    n_classes: int,
    smooth: bool = False,
    first_conv: int | None = None,
) -> Gradients:
    """Return the gradient of the loss of one sample by everything above ``first_conv``.

    ``first_conv`` (its place in ``graph.convs``) is included; None: by everything, the input too.
    """
    tape = forward(graph, x, smooth)
    loss, dlogits = loss_on(graph, tape, label, n_classes)
    result = Gradients(loss, {}, {}, {graph.logits: dlogits}, tape)
    number = {op: n for n, op in enumerate(graph.convs)}
    start = 0 if first_conv is None else graph.ops.index(graph.convs[first_conv])
    for op in reversed(graph.ops[start:]):
        out = op.outputs[0]
        if op.kind == "softmax" or out not in result.tensors:
            continue
        d = result.tensors[out]
        if out in tape.before_clamp:
            v = tape.before_clamp[out]
            d = d * ((v >= op.attrs["act_min"]) & (v <= op.attrs["act_max"]))
        inputs = [tape.values[t] for t in op.inputs]
        if op.kind in ("conv", "depthwise"):
            back = conv_backward if op.kind == "conv" else depthwise_backward
            dx, result.weights[number[op]], result.biases[number[op]] = back(op, inputs[0], d)
            parts: tuple[Floats, ...] = (dx,)
        else:
            parts = run_backward(op, inputs, d)
        for t, part in zip(op.inputs, parts, strict=True):  # every consumer adds its part
            result.tensors[t] = result.tensors.get(t, 0.0) + part
    return result


def run_backward(op: Op, inputs: list[Floats], d: Floats) -> tuple[Floats, ...]:
    """Return the gradients by the inputs of an operator without parameters."""
    x = inputs[0]
    match op.kind:
        case "add":
            return add_backward(op, d)
        case "average_pool":
            return (average_pool_backward(op, x, d),)
        case "max_pool":
            return (max_pool_backward(op, x, d),)
        case "mean":
            return (np.broadcast_to(d * mean_scale(op), x.shape),)
        case "requantize":
            return (d * (op.inputs[0].scale / op.outputs[0].scale),)
        case "pad":
            return (inside(op, d),)
        case "reshape":
            return (d.reshape(x.shape),)
    raise ValueError(f"the oracle knows no operator {op.kind} ({op.name})")


# --- against a blob -----------------------------------------------------------------------------
# A row of ``blob.info["trained"]`` says what one trained tensor is: ``offset``, ``kind`` (weight
# or bias), ``conv``, ``shape``, ``channels`` (those that learn; None: all) and ``layer``.

Row = Mapping[str, Any]


def trained_part(op: Op, row: Row, values: NDArray[Any]) -> NDArray[Any]:
    """Return the elements of ``values``, shaped as a parameter of ``op``, that ``row`` trains."""
    if row["channels"] is None or row["kind"] == "bias":
        return values
    return values[..., row["channels"]] if op.kind == "conv" else values[row["channels"]]


def expected(graph: Graph, truth: Gradients, row: Row) -> Floats:
    """Return the true gradient by the trained tensor ``row``, in its shape."""
    n = row["conv"]
    whole = truth.biases[n] if row["kind"] == "bias" else truth.weights[n]
    return trained_part(graph.convs[n], row, whole).reshape(row["shape"])


def integer_gradient(gradients: Mapping[int, tuple[NDArray[Any], int]], row: Row) -> Floats:
    """Return what ``Machine.gradients`` says of ``row``, as numbers; 0 if it says nothing."""
    if row["offset"] not in gradients:
        return np.zeros(row["shape"])
    mantissas, exponent = gradients[row["offset"]]
    return mantissas.reshape(row["shape"]) * 2.0 ** max(exponent, -1000)  # below: all are 0


def with_trained(graph: Graph, rows: list[Row], trained: bytes) -> Graph:
    """Return a copy of ``graph`` (its tensors shared) whose trained parameters are ``trained``."""
    copies = [replace(op, params={k: v.copy() for k, v in op.params.items()}) for op in graph.ops]
    graph = replace(graph, ops=copies)
    for row in rows:
        op, dtype = graph.convs[row["conv"]], "<i4" if row["kind"] == "bias" else "i1"
        values = np.frombuffer(trained, dtype, int(np.prod(row["shape"])), row["offset"])
        target = op.params[row["kind"]]
        if row["channels"] is None or row["kind"] == "bias":
            target[...] = values.reshape(target.shape)
        elif op.kind == "conv":
            target[..., row["channels"]] = values.reshape(row["shape"])
        else:
            target[row["channels"]] = values.reshape(row["shape"])
    return graph


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the cosine of the angle between two tensors; 1 if both are 0, 0 if one is."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return float(np.array_equal(a, b))
    return float(a @ b) / norms
