"""Takes a fused activation out of a max pool, so that it has a gradient."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Op


def split_activation(graph: Graph) -> Graph:
    """Return the graph with each max pool's limits in a requantisation of their own.

    That keeps the scale, changes no value and knows, as a max pool does not, what it cut.
    """
    ops: list[Op] = []
    for op in graph.ops:
        limits = {k: op.attrs.get(k) for k in ("act_min", "act_max")}
        full = {"act_min": -128, "act_max": 127}
        if op.kind == "max_pool" and limits != full:
            y = op.outputs[0]
            pooled = replace(y, name=f"{y.name}/pooled", alias=None)
            ops.append(Op(op.kind, op.inputs, [pooled], op.attrs | full, op.params, op.name))
            ops.append(Op("requantize", [pooled], [y], limits, name=op.name))
        else:
            ops.append(op)
    return replace(graph, ops=ops)
