"""Folds a padding into the convolution that reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..graph import Graph, Op

_LIMIT = 255  # the blob packs a padding into a byte


def fold_padding(graph: Graph) -> Graph:
    """Return the graph with every pad by the zero point moved into the convolutions that alone
    read it.

    Taps outside the input read the zero point anyway, so the bytes stay the same and the padded
    copy never exists.
    """
    readers = Counter(id(t) for op in graph.ops for t in op.inputs)
    makers = {id(op.outputs[0]): op for op in graph.ops if op.kind == "pad"}
    ops: list[Op] = []
    folded: set[int] = set()
    for op in graph.ops:
        pad = makers.get(id(op.inputs[0])) if op.kind in ("conv", "depthwise") else None
        if (
            pad is not None
            and readers[id(pad.outputs[0])] == 1
            and pad.outputs[0] is not graph.output
        ):
            x = pad.inputs[0]
            both = tuple(
                a + b for a, b in zip(pad.attrs["padding"], op.attrs["padding"], strict=True)
            )
            if (
                pad.attrs["value"] == x.zero_point == pad.outputs[0].zero_point
                and max(both) <= _LIMIT
            ):
                op = Op(op.kind, [x], op.outputs, op.attrs | {"padding": both}, op.params, op.name)
                folded.add(id(pad))
        ops.append(op)
    return replace(graph, ops=[op for op in ops if id(op) not in folded])
