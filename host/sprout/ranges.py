"""Which channels never carry anything: interval arithmetic over a quantised network.

Batch normalisation folded over a dead channel leaves weights with the largest real norm of their
layer behind an activation that never moves.  Ranking channels by norm alone would train just those
(all of the upper half in some depthwise layers of MLPerf Tiny's person detection).
"""

from __future__ import annotations

import numpy as np

from .graph import Graph, Op, Tensor

Range = tuple[np.ndarray, np.ndarray]  # least and greatest integer value, float64 [c]


def silent_channels(graph: Graph) -> dict[int, np.ndarray]:
    """Return, by id of each convolution, which channels of it cannot learn (bool [channels]).

    Of a convolution they are the input channels that always stand at their zero point, of a
    depthwise one those and the outputs that always saturate.  The bounds are those of every
    possible input, so a channel that is not listed may still be silent on real ones.
    """
    ranges = bounds(graph)
    silent: dict[int, np.ndarray] = {}
    for op in graph.convs:
        x, y = op.inputs[0], op.outputs[0]
        silent[id(op)] = (ranges[id(x)][0] == x.zero_point) & (ranges[id(x)][1] == x.zero_point)
        if op.kind == "depthwise":
            low, high = _before_clamp(op, ranges)
            stuck = (high < op.attrs["act_min"]) | (low > op.attrs["act_max"])
            silent[id(op)] = np.repeat(silent[id(op)], y.shape[2] // x.shape[2]) | stuck
    return silent


def bounds(graph: Graph) -> dict[int, Range]:
    """Return, by id of each tensor, the least and greatest value of every channel."""
    ranges: dict[int, Range] = {id(graph.input): _everything(graph.input)}
    for op in graph.ops:
        low, high = _before_clamp(op, ranges)
        limits = op.attrs.get("act_min", -128), op.attrs.get("act_max", 127)
        ranges[id(op.outputs[0])] = np.clip(low, *limits), np.clip(high, *limits)
    return ranges


def _everything(t: Tensor) -> Range:
    return np.full(t.shape[2], -128.0), np.full(t.shape[2], 127.0)


def _before_clamp(op: Op, ranges: dict[int, Range]) -> Range:
    """Bounds of an operator's rounded result before its limits, per channel."""
    x, y = op.inputs[0], op.outputs[0]
    low, high = ranges[id(x)]
    if op.kind in ("conv", "depthwise"):
        return _convolved(op, low - x.zero_point, high - x.zero_point)
    if op.kind == "add":
        other = op.inputs[1]
        low2, high2 = ranges[id(other)]
        ends = [
            (a - x.zero_point) * x.scale + (b - other.zero_point) * other.scale
            for a, b in ((low, low2), (high, high2))
        ]
        return _rounded(ends[0] / y.scale, ends[1] / y.scale, y)
    if op.kind in ("mean", "requantize"):
        m = x.scale / y.scale
        return _rounded((low - x.zero_point) * m, (high - x.zero_point) * m, y)
    if op.kind == "pad":
        value = op.attrs["value"]
        return np.minimum(low, value), np.maximum(high, value)
    if op.kind in ("average_pool", "max_pool"):
        return low, high
    if op.kind == "reshape" and y.shape[2] == x.elements:
        pixels = x.shape[0] * x.shape[1]
        return np.tile(low, pixels), np.tile(high, pixels)
    return _everything(y)


def _convolved(op: Op, low: np.ndarray, high: np.ndarray) -> Range:
    """Bounds of a convolution of centred inputs; a padded tap reads 0."""
    x, y = op.inputs[0], op.outputs[0]
    weight = op.params["weight"].astype(np.float64)
    if max(op.attrs["padding"]) > 0:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if op.kind == "depthwise":
        multiplier = y.shape[2] // x.shape[2]
        low, high = (np.repeat(v, multiplier)[:, None, None] for v in (low, high))
    axes = tuple(range(1, weight.ndim))
    least = np.minimum(weight * low, weight * high).sum(axes)
    most = np.maximum(weight * low, weight * high).sum(axes)
    m = x.scale * op.params["weight_scales"] / y.scale
    bias = op.params["bias"].astype(np.float64)
    return _rounded((bias + least) * m, (bias + most) * m, y)


def _rounded(low: np.ndarray, high: np.ndarray, y: Tensor) -> Range:
    return np.floor(low + 0.5) + y.zero_point, np.floor(high + 0.5) + y.zero_point
