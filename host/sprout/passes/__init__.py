"""Graph -> Graph passes, one file each.

``run`` does what no plan changes; ``drop_silent`` comes after the plan is known.
"""

from __future__ import annotations

from ..graph import Graph
from .fuse import fold_padding
from .prune import drop_dead
from .silence import drop_silent

__all__ = ["drop_silent", "run"]

PASSES = (drop_dead, fold_padding)


def run(graph: Graph) -> Graph:
    """Apply every pass; each keeps the graph's outputs the same to the byte."""
    for step in PASSES:
        graph = step(graph)
    return graph
