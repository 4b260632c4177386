"""Which channels never carry anything: interval arithmetic over a quantised network.

Batch normalisation folded over a dead channel leaves weights with the largest real norm of their
layer behind an activation that never moves.  Ranking channels by norm alone would train just those
(all of the upper half in some depthwise layers of MLPerf Tiny's person detection).
"""

from __future__ import annotations

import numpy as np

from .graph import Graph, Op, Tensor, add_multipliers, quantize_multiplier
from .reference import mbqm, once

Range = tuple[np.ndarray, np.ndarray]  # least and greatest integer value, int64 [c]


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
    return np.full(t.shape[2], -128), np.full(t.shape[2], 127)


def _before_clamp(op: Op, ranges: dict[int, Range]) -> Range:
    """Bounds of an operator's result before its limits, per channel.

    Rounding never turns an order around, so the bounds are the results at the ends, by the very
    arithmetic of the operator.
    """
    x, y = op.inputs[0], op.outputs[0]
    low, high = ranges[id(x)]
    if op.kind in ("conv", "depthwise"):
        return _convolved(op, low - x.zero_point, high - x.zero_point)
    if op.kind == "add":
        return _added(op, ranges)
    if op.kind == "mean":
        count = x.elements // y.elements
        multiplier = np.array([op.attrs["mult"]]), np.array([op.attrs["shift"]])
        return _requantized(low - x.zero_point, high - x.zero_point, count, multiplier, y)
    if op.kind == "requantize":
        pair = quantize_multiplier(x.scale / y.scale)
        multiplier = np.array(pair[:1]), np.array(pair[1:])
        return _requantized(low - x.zero_point, high - x.zero_point, 1, multiplier, y)
    if op.kind == "pad":
        value = op.attrs["value"]
        return np.minimum(low, value), np.maximum(high, value)
    if op.kind in ("average_pool", "max_pool"):
        return low, high
    if op.kind == "reshape" and y.shape[2] == x.elements:
        pixels = x.shape[0] * x.shape[1]
        return np.tile(low, pixels), np.tile(high, pixels)
    return _everything(y)


def _added(op: Op, ranges: dict[int, Range]) -> Range:
    y, pairs = op.outputs[0], add_multipliers(op.inputs[0], op.inputs[1], op.outputs[0])
    ends = []
    for end in (0, 1):
        sides = [
            mbqm((ranges[id(t)][end] - t.zero_point) << 20, *pair)
            for t, pair in zip(op.inputs, pairs, strict=False)
        ]
        ends.append(mbqm(sides[0] + sides[1], *pairs[2]) + y.zero_point)
    return ends[0], ends[1]


def _convolved(op: Op, low: np.ndarray, high: np.ndarray) -> Range:
    """Bounds of a convolution of centred inputs; a padded tap reads 0."""
    x, y = op.inputs[0], op.outputs[0]
    weight = op.params["weight"].astype(np.int64)
    if max(op.attrs["padding"]) > 0:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if op.kind == "depthwise":
        multiplier = y.shape[2] // x.shape[2]
        low, high = (np.repeat(v, multiplier)[:, None, None] for v in (low, high))
    axes = tuple(range(1, weight.ndim))
    bias = op.params["bias"].astype(np.int64)
    least = bias + np.minimum(weight * low, weight * high).sum(axes)
    most = bias + np.maximum(weight * low, weight * high).sum(axes)
    reals = x.scale * op.params["weight_scales"].astype(np.float64) / y.scale
    pairs = np.array([quantize_multiplier(float(real)) for real in reals])
    return _requantized(least, most, 1, (pairs[:, 0], pairs[:, 1]), y, op.attrs.get("rounding"))


def _requantized(
    low: np.ndarray,
    high: np.ndarray,
    times: int,
    multiplier: tuple[np.ndarray, np.ndarray],
    y: Tensor,
    rounding: str | None = None,
) -> Range:
    """Bounds of a requantised sum; unbounded where int32 could wrap on the way."""
    scale = once if rounding == "single" else mbqm
    ends = [scale(v * times, *multiplier) + y.zero_point for v in (low, high)]
    reach = np.maximum(np.abs(low), np.abs(high)) * times << np.clip(multiplier[1], 0, 30)
    wraps = reach >= 1 << 31
    return np.where(wraps, -(1 << 31), ends[0]), np.where(wraps, 1 << 31, ends[1])
