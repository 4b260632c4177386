"""Forward graph + update plan -> training schedule, at compile time.

The result is a plain list of operators: the forward ones, with masks and saved activations only
where a gradient needs them, then the backward ones.  Nothing is emitted that the plan does not
need: the reverse walk carries gradients only to tensors that some trained parameter stands behind.
A layer's updates follow its input gradient directly, because that one must still see the weights
of the forward pass, and its gradient buffer is free right after.

Gradients are by integer values (see ``blob``): y = zy + clamp(round(M * acc)), so dL/dacc = M *
mask * dL/dy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .graph import BITS, INT8, INT16, INT32, Graph, Op, SproutError, Tensor, macs


@dataclass
class Schedule:
    """Operators in order, the first ``n_forward`` of them forward; ``exponents`` is None when
    nothing learns."""

    graph: Graph
    ops: list[Op]
    n_forward: int
    exponents: Tensor | None = None
    gradients: list[Tensor] = field(
        default_factory=list
    )  # owners of an exponent slot, in slot order

    @property
    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates of a forward pass and of a backward pass."""
        backward = sum(int(op.attrs.get("macs", 0)) for op in self.ops[self.n_forward :])
        return sum(macs(op) for op in self.ops[: self.n_forward]), backward


def wanting(graph: Graph) -> set[int]:
    """Ids of the tensors whose gradient some trained parameter needs."""
    wanted: set[int] = set()
    for op in graph.ops:
        own = op.attrs.get("train_bias") or op.attrs.get("train_weight")
        if own or any(id(t) in wanted for t in op.inputs):
            wanted.update(id(t) for t in op.outputs)
    return wanted


def differentiate(graph: Graph) -> Schedule:
    """Return the schedule that trains ``graph`` as ``plan.apply`` marked it.

    Raises SproutError if the way from the loss to a trained layer passes an operator without a
    gradient.
    """
    wanted = wanting(graph)
    if id(graph.logits) not in wanted:
        return Schedule(graph, list(graph.ops), len(graph.ops))
    walk = _Reverse(graph, wanted)
    forward = walk.forward()
    backward = walk.backward()
    # no gradient flows through what follows the logits (a softmax): it only serves predictions
    after = False
    for op in forward:
        after = after or graph.logits in op.inputs
        op.attrs["infer_only"] = after
    exponents = Tensor("exponents", (1, 1, len(walk.gradients)), INT32)
    return Schedule(graph, forward + backward, len(forward), exponents, walk.gradients)


class _Reverse:
    """One reverse walk: the gradient tensor of each activation, and the operators emitted so
    far."""

    def __init__(self, graph: Graph, wanted: set[int]) -> None:
        self.graph = graph
        self.wanted = wanted
        self.grads: dict[int, Tensor] = {}
        self.ops: list[Op] = []
        self.gradients: list[Tensor] = []
        self.saved: dict[int, Tensor] = {}  # id(conv) -> what its weight update reads
        self.masks: dict[int, Tensor] = {}  # id(op) -> saturation mask, or argmax of a max pool

    def forward(self) -> list[Op]:
        """The forward operators, each with the mask its gradient needs and its trained input
        channels saved."""
        ops: list[Op] = []
        for op in self.graph.ops:
            new = Op(
                op.kind, list(op.inputs), list(op.outputs), dict(op.attrs), op.params, op.name
            )
            if op.attrs.get("train_weight"):
                self.saved[id(op)] = op.inputs[0]
                channels = op.attrs["train_channels"]
                if channels is not None:
                    h, w, _ = op.inputs[0].shape
                    part = Tensor(f"{op.inputs[0].name}/saved", (h, w, len(channels)))
                    part.zero_point = op.inputs[0].zero_point
                    self.saved[id(op)] = part
                    ops.append(
                        Op("gather", [op.inputs[0]], [part], {"channels": channels}, name=op.name)
                    )
            if id(op.outputs[0]) in self.wanted and _saturates(op):
                y = op.outputs[0]
                mask = Tensor(f"{y.name}/mask", y.shape, INT8 if op.kind == "max_pool" else BITS)
                self.masks[id(op)] = mask
                new.outputs.append(mask)
            ops.append(new)
        return ops

    def gradient(self, of: Tensor, alias: Tensor | None = None) -> Tensor:
        """A new gradient tensor for ``of``; as an alias it shares another's bytes and exponent."""
        g = Tensor(f"d {of.name}", of.shape, INT16, alias=alias)
        if alias is None:
            self.gradients.append(g)
        return g

    def emit(
        self, kind: str, inputs: list[Tensor], outputs: list[Tensor], op: Op, **attrs: object
    ) -> None:
        """Append a backward operator that belongs to the forward operator ``op``."""
        self.ops.append(Op(kind, inputs, outputs, attrs, op.params, op.name))

    def contribute(self, x: Tensor, dx: Tensor, op: Op) -> None:
        """Add ``dx``, which some operator has just written, to the gradient of ``x``."""
        if id(x) in self.grads:
            total = self.grads[id(x)]
            self.emit("add_grads", [total, dx], [total], op)
        else:
            self.grads[id(x)] = dx

    def pass_on(self, kind: str, inputs: list[Tensor], op: Op, x: Tensor, **attrs: object) -> None:
        """Emit the operator that computes the gradient of ``x`` from ``inputs``, and add it up."""
        dx = self.gradient(x)
        self.emit(kind, inputs, [dx], op, **attrs)
        self.contribute(x, dx, op)

    def backward(self) -> list[Op]:
        logits = self.graph.logits
        g = self.gradient(logits)
        self.grads[id(logits)] = g
        self.ops.append(Op("cross_entropy", [logits], [g], name="loss"))
        ops = self.graph.ops
        end = next((i for i, op in enumerate(ops) if logits in op.inputs), len(ops))
        for op in reversed(ops[:end]):
            y = op.outputs[0]
            if id(y) not in self.wanted:
                continue
            if id(y) not in self.grads:
                raise SproutError(
                    f"tensor {y.name} ({op.kind}) has no way to the loss, so what stands before "
                    "it cannot learn; choose a plan of later layers."
                )
            backward = getattr(self, "_" + op.kind, None)
            if backward is None:
                raise SproutError(
                    f"operator {op.kind} at {y.name} has no gradient; "
                    "choose a plan whose layers all come after it."
                )
            backward(op, self.grads[id(y)])
        return self.ops

    def _masked(self, op: Op, g: Tensor) -> list[Tensor]:
        return [g, self.masks[id(op)]] if id(op) in self.masks else [g]

    def _conv(self, op: Op, g: Tensor) -> None:
        """dL/dacc in place of dL/dy; then the input gradient, then the updates that change what it
        read."""
        x, y = op.inputs[0], op.outputs[0]
        channels = op.attrs["train_channels"]
        geometry = {k: op.attrs[k] for k in ("stride", "padding", "conv_index")}
        self.emit(
            "scale_grad",
            self._masked(op, g),
            [g],
            op,
            multipliers=x.scale * op.params["weight_scales"] / y.scale,
            conv=op,
            input_grad=id(x) in self.wanted,
        )
        if op.attrs["train_bias"]:
            self.emit("bias_update", [g], [], op, **geometry, x_scale=x.scale)
        if id(x) in self.wanted:
            trained = {k: op.attrs[k] for k in ("train_weight", "train_channels")}
            kind = f"{op.kind}_input_grad"
            self.pass_on(kind, [g], op, x, **geometry, **trained, macs=macs(op))
        if op.attrs["train_weight"]:
            total = op.params["weight"].shape[0 if op.kind == "depthwise" else 3]
            part = total if channels is None else len(channels)
            kind, inputs = f"{op.kind}_weight_update", [g, self.saved[id(op)]]
            count = macs(op) * part // total
            self.emit(kind, inputs, [], op, **geometry, train_channels=channels, macs=count)

    _depthwise = _conv

    def _add(self, op: Op, g: Tensor) -> None:
        """Each side's share; the last one is written over the gradient of the sum."""
        y = op.outputs[0]
        *others, last = [x for x in op.inputs if id(x) in self.wanted]
        for x in others:
            m = np.array([x.scale / y.scale])
            self.pass_on("scale_grad", self._masked(op, g), op, x, multipliers=m)
        m = np.array([last.scale / y.scale])
        self.emit("scale_grad", self._masked(op, g), [g], op, multipliers=m)
        self.contribute(last, g, op)

    def _requantize(self, op: Op, g: Tensor) -> None:
        x = op.inputs[0]
        m = np.array([x.scale / op.outputs[0].scale])
        self.pass_on("scale_grad", self._masked(op, g), op, x, multipliers=m)

    def _mean(self, op: Op, g: Tensor) -> None:
        x, y = op.inputs[0], op.outputs[0]
        m = x.scale / y.scale / (x.elements // y.elements)
        self.pass_on("mean_grad", self._masked(op, g), op, x, multiplier=m)

    def _average_pool(self, op: Op, g: Tensor) -> None:
        self.pass_on("average_pool_grad", self._masked(op, g), op, op.inputs[0], **_window(op))

    def _max_pool(self, op: Op, g: Tensor) -> None:
        if (op.attrs["act_min"], op.attrs["act_max"]) != (-128, 127):
            raise SproutError(
                f"max pool {op.outputs[0].name} has a fused activation, which the pass "
                "split_activation takes out; run the passes."
            )
        self.pass_on("max_pool_grad", [g, self.masks[id(op)]], op, op.inputs[0], **_window(op))

    def _pad(self, op: Op, g: Tensor) -> None:
        self.pass_on("pad_grad", [g], op, op.inputs[0], padding=op.attrs["padding"])

    def _reshape(self, op: Op, g: Tensor) -> None:
        x = op.inputs[0]
        self.contribute(x, self.gradient(x, alias=g), op)


def _window(op: Op) -> dict[str, object]:
    return {k: op.attrs[k] for k in ("kernel", "stride", "padding")}


def _saturates(op: Op) -> bool:
    """Whether the operator's gradient needs what only the forward pass knows: a mask, or a max
    pool's choice."""
    if op.kind in ("conv", "depthwise", "add", "requantize", "max_pool"):
        return True
    full = (op.attrs.get("act_min", -128), op.attrs.get("act_max", 127)) == (-128, 127)
    if op.kind == "average_pool":
        return not full  # a mean of int8 values is inside int8
    if op.kind == "mean":
        x, y = op.inputs[0], op.outputs[0]
        return not full or x.scale != y.scale or x.zero_point != y.zero_point
    return False
