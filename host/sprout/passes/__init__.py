"""Graph -> Graph passes, one file each.

``run`` does what no plan changes; ``drop_silent`` comes after the plan is known.
"""

from __future__ import annotations

from ..graph import Graph
from .fuse import fold_padding
from .prune import drop_dead
from .reorder import order_branches
from .silence import drop_silent
from .split import split_activation

__all__ = ["drop_silent", "run"]

PASSES = (drop_dead, fold_padding, split_activation, order_branches)


def run(graph: Graph) -> Graph:
    """Apply every pass; each keeps the graph's outputs the same to the byte."""
    for step in PASSES:
        graph = step(graph)
    return graph
