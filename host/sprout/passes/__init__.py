"""Graph -> Graph passes, one file each, in the order in which ``compile`` runs them."""

from __future__ import annotations

from ..graph import Graph
from .fuse import fold_padding
from .prune import drop_dead

PASSES = (drop_dead, fold_padding)


def run(graph: Graph) -> Graph:
    """Apply every pass; each keeps the graph's outputs the same to the byte."""
    for step in PASSES:
        graph = step(graph)
    return graph
