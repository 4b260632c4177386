"""The update plan: which biases, layers and channel fractions learn.

Convolutions (fully connected layers among them) are numbered from 0 in order, as in MCUNetV3's
configurations. The last one is the head; it learns, weight and bias, under every plan but
``none``.

Short form: comma- or space-separated items.  ``bK``: the last K biases, the head's included.
``N:F``: the fraction F (``1/4``, ``0.25``, ``1``) of the weight of convolution N; ``N`` alone is
``N:1``.  ``none``, ``last`` (the head) and ``full`` (everything) stand alone.  JSON form:
``{"biases": 20, "weights": {"24": 0.25, "27": "1/2"}}``.
"""

from __future__ import annotations

import json
import pathlib
import re
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from . import ranges
from .graph import Graph, Op, SproutError


@dataclass
class UpdatePlan:
    """Number of last biases and fraction of each weight that learn; ``head`` False means that
    nothing does, ``full`` that this is everything the network has."""

    biases: int = 0
    weights: dict[int, Fraction] = field(default_factory=dict)
    head: bool = True
    full: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        if not self.head or self.full:
            return "full" if self.head else "none"
        items = [f"b{self.biases}"] if self.biases else []
        items += [f"{n}:{f}" for n, f in sorted(self.weights.items())]
        return ",".join(items) or "last"


def _fraction(text: object, where: str) -> Fraction:
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        raise SproutError(
            f"plan: {where} has the fraction '{text}'; write it as 1/4, 0.25 or 1."
        ) from None
    if not 0 < value <= 1:
        raise SproutError(
            f"plan: {where} has the fraction {value}; it must lie above 0 and at most at 1."
        )
    return value


def parse(text: str, n_convs: int) -> UpdatePlan:
    """Read a plan for a network of ``n_convs`` convolutions: a word, the short form or the name of
    a JSON file.

    Raises SproutError naming the item that is wrong.
    """
    text = text.strip()
    if text == "none":
        return UpdatePlan(head=False)
    if text == "last":
        return UpdatePlan()
    if text == "full":
        return _check(UpdatePlan(n_convs, {n: Fraction(1) for n in range(n_convs)}), n_convs)
    if text.endswith(".json"):
        return _check(_from_json(text), n_convs)
    plan = UpdatePlan()
    for item in text.replace(",", " ").split():
        number, _, fraction = item.partition(":")
        if re.fullmatch("b[0-9]{1,9}", item):
            _once(plan.biases, "the number of biases")
            plan.biases = int(item[1:])
        elif re.fullmatch("[0-9]{1,9}", number):
            _once(int(number) in plan.weights, f"layer {int(number)}")
            plan.weights[int(number)] = _fraction(fraction or "1", f"'{item}'")
        else:
            raise SproutError(
                f"plan: '{item}' is not understood; write none, last, full, a .json file or a "
                "list such as b20,24:1/4,30."
            )
    if not plan.biases and not plan.weights:
        raise SproutError(
            "plan: it is empty; write none, last, full or a list such as b20,24:1/4,30."
        )
    return _check(plan, n_convs)


def _from_json(path: str) -> UpdatePlan:
    try:
        data = json.loads(pathlib.Path(path).read_text())
    except OSError as e:
        raise SproutError(
            f"plan: {path} cannot be read ({e.strerror}); give the name of a JSON file."
        ) from None
    except (ValueError, RecursionError) as e:
        raise SproutError(
            f"plan: {path} is not JSON ({e}); see 'sprout compile --help' for the form."
        ) from None
    if not isinstance(data, dict) or set(data) - {"biases", "weights"}:
        raise SproutError(
            f'plan: {path} must be an object with the keys "biases" and "weights" only.'
        )
    biases, weights = data.get("biases", 0), data.get("weights", {})
    if type(biases) is not int or biases < 0 or not isinstance(weights, dict):
        raise SproutError(
            f'plan: {path} needs "biases" as a count and "weights" as an object of fractions '
            "by layer."
        )
    plan = UpdatePlan(biases)
    for key, value in weights.items():
        if not re.fullmatch("[0-9]{1,9}", key):
            raise SproutError(
                f"plan: {path} names the layer '{key}'; layers are numbers, from 0 in order."
            )
        _once(int(key) in plan.weights, f"layer {int(key)}")
        plan.weights[int(key)] = _fraction(value, f"layer {key}")
    return plan


def _once(there: object, what: str) -> None:
    if there:
        raise SproutError(f"plan: {what} is there twice; name each once.")


def _check(plan: UpdatePlan, n_convs: int) -> UpdatePlan:
    if plan.biases > n_convs:
        raise SproutError(
            f"plan: b{plan.biases} asks for more biases than the {n_convs} this network has."
        )
    for number in plan.weights:
        if number >= n_convs:
            raise SproutError(
                f"plan: layer {number} does not exist; "
                f"this network has the layers 0 to {n_convs - 1}."
            )
    plan.full = plan.biases == n_convs and all(
        plan.weights.get(n) == 1 for n in range(n_convs - 1)
    )
    return plan


def important_channels(
    op: Op, fraction: Fraction, silent: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the trained channels of ``op`` (int64, ascending), or None for all of them.

    They are the input channels (of a depthwise layer: the channels) whose real weights have the
    largest L2 norm, as 'On-Device Training Under 256KB Memory', section 3.2, ranks them; ties go
    to the lower number.  Channels that are ``silent`` (bool, see ``ranges``) come last.
    """
    weight = op.params["weight"].astype(np.float64)
    real = weight * op.params["weight_scales"].reshape(-1, *[1] * (weight.ndim - 1))
    norm = np.sqrt((real**2).sum(axis=(1, 2) if op.kind == "depthwise" else (0, 1, 2)))
    if silent is not None:
        norm[silent] = -1.0
    count = max(1, round(len(norm) * fraction))
    if count >= len(norm):
        return None
    return np.sort(np.argsort(-norm, kind="stable")[:count])


def apply(plan: UpdatePlan, graph: Graph) -> None:
    """Write the plan into the convolutions' attrs: ``train_bias``, ``train_weight``,
    ``train_channels``.  Raises SproutError where something should learn and nothing can."""
    convs = graph.convs
    if plan.head and not convs:
        raise SproutError(
            "plan: this network has no convolution and no fully connected layer, so that nothing "
            "in it can learn; compile it with --plan none."
        )
    silent = ranges.silent_channels(graph)
    for number, op in enumerate(convs):
        head = plan.head and number == len(convs) - 1
        op.attrs["conv_index"] = number
        op.attrs["train_bias"] = plan.head and (head or number >= len(convs) - plan.biases)
        op.attrs["train_weight"] = plan.head and (head or number in plan.weights)
        op.attrs["train_channels"] = None
        if number in plan.weights and not head:
            multiplied = op.kind == "depthwise" and op.inputs[0].shape[2] != op.outputs[0].shape[2]
            if plan.weights[number] < 1 and multiplied:
                raise SproutError(
                    f"plan: layer {number} ({op.name}) is a depthwise convolution with a depth "
                    "multiplier, which learns whole or not at all; write it without a fraction."
                )
            op.attrs["train_channels"] = important_channels(
                op, plan.weights[number], silent[id(op)]
            )
