"""Drops channels that never move, where nothing learns.

Dead filters and folded batch norms leave channels behind that stand at their zero point whatever
the input.  ``ranges`` proves it from the weights; what such a channel adds to the next layer is
nothing, or a constant that goes into its bias.  Every other value keeps its bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from .. import ranges
from ..graph import Graph, Op, Tensor


def drop_silent(graph: Graph, learning: set[int]) -> Graph:
    """Return the graph without silent channels between frozen layers.

    ``learning`` holds the ids of tensors that a gradient reaches (``autodiff.wanting``): layers
    that make one of them stay as they are, and so do the layers' inputs.
    """
    readers = Counter(id(t) for op in graph.ops for t in op.inputs)
    reader = {id(t): op for op in graph.ops for t in op.inputs}
    bounds = ranges.bounds(graph)
    new: dict[int, Op] = {}  # by id of the operator it takes the place of

    def frozen(t: Tensor, kind: str) -> Op | None:
        """The one operator that reads ``t``, if it is of this kind and nothing learns in it."""
        op = reader.get(id(t))
        alone = op is not None and readers[id(t)] == 1 and t is not graph.output
        if op is None or not alone or op.kind != kind or id(op.outputs[0]) in learning:
            return None
        return op

    for op in graph.ops:
        y = op.outputs[0]
        if op.kind != "conv" or id(y) in learning or y is graph.output:
            continue
        depthwise = frozen(y, "depthwise")
        if depthwise is not None and depthwise.outputs[0].shape[2] != y.shape[2]:
            continue
        last = depthwise or op
        z = last.outputs[0]
        taker = frozen(z, "conv")
        if taker is None:
            continue
        low, high = bounds[id(y)]
        low_z, high_z = bounds[id(z)]
        silent = (low == high) & (low == y.zero_point) & (low_z == high_z)
        if max(taker.attrs["padding"]) > 0:
            silent &= low_z == z.zero_point  # a constant is not there where the border cuts taps
        if not silent.any():
            continue
        silent[0] &= not silent.all()
        keep = ~silent
        _keep_outputs(new, op, keep)
        if depthwise is not None:
            _keep_outputs(new, depthwise, keep)
        _fold_inputs(new, taker, keep, low_z - z.zero_point)
    return _rewire(graph, new)


def _keep_outputs(new: dict[int, Op], op: Op, keep: np.ndarray) -> None:
    now = new.get(id(op), op)
    names = ("weight", "bias", "weight_scales")
    params = now.params | {name: now.params[name][keep] for name in names}
    h, w, _ = now.outputs[0].shape
    y = replace(now.outputs[0], shape=(h, w, int(keep.sum())))
    new[id(op)] = Op(op.kind, now.inputs, [y], now.attrs, params, op.name)


def _fold_inputs(new: dict[int, Op], op: Op, keep: np.ndarray, constant: np.ndarray) -> None:
    """Take input channels out of a convolution; ``constant`` is what the others read."""
    now = new.get(id(op), op)
    weight = now.params["weight"]
    silent = ~keep
    added = (weight[..., silent].astype(np.int64) * constant[silent].astype(np.int64)).sum(
        (1, 2, 3)
    )
    bias = now.params["bias"].astype(np.int64) + added
    params = now.params | {"weight": weight[..., keep], "bias": bias}
    new[id(op)] = Op(op.kind, now.inputs, now.outputs, now.attrs, params, op.name)


def _rewire(graph: Graph, new: dict[int, Op]) -> Graph:
    """Put the new operators in place, each reading the outputs of the new ones."""
    tensors: dict[int, Tensor] = {}
    ops = []
    for old in graph.ops:
        op = new.get(id(old), old)
        for before, after in zip(old.outputs, op.outputs, strict=True):
            if before is not after:
                tensors[id(before)] = after
        inputs = [tensors.get(id(t), t) for t in old.inputs]
        ops.append(replace(op, inputs=inputs) if inputs != old.inputs or op is not old else old)
    return replace(graph, ops=ops)
