"""Schedule -> schedule: depthwise gradients that take the place of what they are computed from.

A channel of a depthwise convolution's input gradient needs that channel of its output's gradient
alone, so with equal shapes one may be written over the other: half the memory where gradients are
largest.  The price is computing it twice, once for the exponent alone, because what is overwritten
cannot be computed again; so it is done only where the arena's peak would be higher.
"""

from __future__ import annotations

from . import memory
from .autodiff import Schedule
from .graph import Op


def saving(ops: list[Op], step: int) -> int:
    """Return the bytes that operator ``step`` saves if it writes its result over its input; 0
    where it cannot, or does so already."""
    op = ops[step]
    if op.kind != "depthwise_input_grad":
        return 0
    g, dx = op.inputs[0], op.outputs[0]
    later = {id(t.root()) for other in ops[step + 1 :] for t in other.inputs}
    fits = g.shape == dx.shape and dx.alias is None and id(g.root()) not in later
    return dx.nbytes if fits else 0


def depthwise_gradients(schedule: Schedule) -> Schedule:
    """Return the schedule with overwriting where that lowers the arena's peak.

    The gradient tensors of ``schedule`` become aliases.
    """
    ops = [op for op in schedule.ops if op.kind != "reshape"]
    while True:
        alive = memory.live(memory.lifetimes(schedule).values(), len(ops))
        step = alive.index(max(alive))
        if not saving(ops, step):
            return schedule
        g, dx = ops[step].inputs[0], ops[step].outputs[0]
        dx.alias = g
        schedule.gradients.remove(dx)
