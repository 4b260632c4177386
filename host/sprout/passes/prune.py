"""Drops operators that nothing reads."""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Op


def drop_dead(graph: Graph) -> Graph:
    """Return the graph without operators that neither the output nor the logits depend on."""
    needed = {id(graph.output), id(graph.logits)}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if any(id(t) in needed for t in op.outputs):
            kept.append(op)
            needed.update(id(t) for t in op.inputs)
    return replace(graph, ops=kept[::-1])
