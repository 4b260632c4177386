"""A fresh classifier in place of the one the model came with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Op, SourceTensor, SproutError, Tensor

SPARE_CLASSES = 3
"""Outputs beyond the named classes, for ``add_class`` on the board."""

WEIGHT_REACH = 4.0
"""An int8 weight of 127 is this many times the bound of the initial ones.

So one LSB is 4 / (127 * sqrt(fan_in)) in real units: 0.0025 for the 160 features of mcunet-5fps,
whose ImageNet head has 0.0023 in the median; proxyless-w0.3 has 0.0025 where this gives 0.0032.
Heads of trained networks have about this reach; more would only make the steps of learning
coarser.
"""

LOGITS_SCALE = 1 / 8
"""Real value of one LSB of the logits.

With zero point 0 they span +-16.  A difference of 16 is a probability of 1e-7, beyond what
learning from samples needs, and half an LSB moves a probability by 6 % of itself at most.
"""


def replace_head(
    graph: Graph, classes: Sequence[str], max_classes: int | None = None, seed: int = 0
) -> Graph:
    """Return ``graph`` with a new, untrained last layer for ``classes``.

    The layer has ``max_classes`` outputs (default: three more than ``classes``), of which the
    first ``len(classes)`` are in use.  What follows the old layer (a reshape, a softmax) goes, so
    the output is the logits.  The weights are those of ``seed``: uniform within +-1/sqrt(fan_in).
    ``graph`` itself stays as it is.

    Raises SproutError if the classes do not make sense or the model does not end in a layer.
    """
    names = [str(c) for c in classes]
    if not names or len(set(names)) != len(names) or not all(names):
        raise SproutError(
            f"{graph.name}: the classes {names} are not one or more different names; "
            "name each once."
        )
    outputs = len(names) + SPARE_CLASSES if max_classes is None else max_classes
    if not len(names) <= outputs <= 0xFFFF:
        raise SproutError(
            f"{graph.name}: a head for {outputs} classes cannot hold the {len(names)} named; "
            "give a larger number of classes."
        )
    old = _last_layer(graph)
    x = old.inputs[0]
    _, *taps = old.params["weight"].shape
    bound = 1 / np.sqrt(np.prod(taps))
    scale = WEIGHT_REACH * bound / 127
    # RandomState's streams are frozen by numpy, so a seed means the same weights for ever.
    real = np.random.RandomState(seed).uniform(-bound, bound, size=(outputs, *taps))
    real[len(names) :] = 0  # a class that is added later starts with no opinion
    logits = Tensor("logits", (1, 1, outputs), scale=LOGITS_SCALE)
    new = Op("conv", [x], [logits], {**old.attrs, "act_min": -128, "act_max": 127}, name="logits")
    new.attrs.pop("rounding", None)
    new.params = {
        "weight": np.rint(real / scale).astype(np.int8),
        "bias": np.zeros(outputs, np.int32),
        "weight_scales": np.full(outputs, scale),
    }
    dropped = {id(t) for t in old.outputs}
    ops: list[Op] = []
    for op in graph.ops:
        if op is old:
            ops.append(new)
        elif any(id(t) in dropped for t in op.inputs):
            dropped.update(id(t) for t in op.outputs)
        else:
            ops.append(op)
    kept: dict[int, SourceTensor] = {
        n: source for n, source in graph.source_tensors.items() if id(source.tensor) not in dropped
    }
    return dataclasses.replace(
        graph,
        ops=ops,
        output=logits,
        logits=logits,
        classes=names,
        max_classes=outputs,
        output_shape=(outputs,),
        source_tensors=kept,
    )


def _last_layer(graph: Graph) -> Op:
    """Return the convolution or fully connected layer whose output the logits are."""
    logits = graph.logits.root()
    for op in reversed(graph.ops):
        if op.kind == "conv" and op.outputs[0] is logits and logits.shape[:2] == (1, 1):
            return op
    raise SproutError(
        f"{graph.name}: its last layer ({logits.name}) is neither fully connected nor a "
        "convolution to one pixel, so no new head fits; leave the classes as they are."
    )
