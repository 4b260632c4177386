"""A quantised network as a float32 PyTorch module, to measure integer learning against.

Weights and biases are the dequantised integers; nothing is rounded.  An output is clamped only
where its quantised range stands for an activation function: a lower limit at real zero (ReLU,
ReLU6).  Outputs of linear layers are not clamped.  What the update plan trains is trainable,
everything else is frozen.

``models`` copies of the network train side by side, each with its own trained parameters, own
sample and own rate, but one pass of Python and PyTorch over all of them: at batch 1 nearly all
the time of a step is overhead, so that three seeds cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sprout.graph import Graph, Op, Tensor


def first_trained(graph: Graph) -> int:
    """Return the number of the first operator with a trained parameter: what precedes is frozen.

    ``plan.apply`` must have marked the graph; with nothing to train it is the number of operators.
    """
    marks = [bool(op.attrs["train_bias"] or op.attrs["train_weight"]) for op in graph.convs]
    first = {id(op) for op, mark in zip(graph.convs, marks, strict=True) if mark}
    return next((i for i, op in enumerate(graph.ops) if id(op) in first), len(graph.ops))


def boundary(graph: Graph, cut: int) -> list[Tensor]:
    """Return the tensors that operators from ``cut`` on read and earlier ones (or nobody) made."""
    made = {id(graph.input)} | {id(t) for op in graph.ops[:cut] for t in op.outputs}
    read = [t for op in graph.ops[cut:] for t in op.inputs] or [graph.logits]
    return list({id(t): t for t in read if id(t) in made}.values())


def limits(op: Op) -> tuple[float | None, float | None]:
    """Return the real limits (low, high) of the operator's activation function, None for none."""
    y = op.outputs[0]
    low, high = op.attrs.get("act_min", -128), op.attrs.get("act_max", 127)
    if low != y.zero_point:
        return None, None
    return 0.0, y.scale * (high - y.zero_point)


class FloatNet:
    """The operators of a Graph in float32 on a device; activations are [models, batch, c, h, w].

    ``graphs``: one Graph per model, alike but for their initial parameters (a head by another
    seed).  All carry the same plan (``plan.apply``).  A final softmax is left out: the result is
    the logits.
    """

    def __init__(self, graphs: Sequence[Graph], device: str = "cpu") -> None:
        self.graph, self.device = graphs[0], device
        self.models = len(graphs)
        ops = self.graph.ops
        end = next((i for i, op in enumerate(ops) if self.graph.logits in op.inputs), len(ops))
        self.ops = ops[:end]
        self.cut = min(first_trained(self.graph), end)
        self.weights: dict[int, torch.Tensor] = {}  # by id(op): [models, ...] or, frozen, [1, ...]
        self.biases: dict[int, torch.Tensor] = {}
        self.trained: list[torch.Tensor] = []
        self.masks: list[torch.Tensor | None] = []  # which elements learn, None for all of them
        for number, op in enumerate(self.graph.convs):
            self._add_conv(op, [g.convs[number] for g in graphs])

    def _add_conv(self, op: Op, copies: list[Op]) -> None:
        weights, biases = zip(*(dequantise(c) for c in copies), strict=True)
        train_weight, train_bias = op.attrs["train_weight"], op.attrs["train_bias"]
        weight = torch.stack(weights if train_weight else weights[:1]).to(self.device)
        bias = torch.stack(biases if train_bias else biases[:1]).to(self.device)
        self.weights[id(op)], self.biases[id(op)] = weight, bias
        if train_weight:
            mask = None
            channels = op.attrs["train_channels"]
            if channels is not None:
                mask = torch.zeros_like(weight[:1])
                axis = 1 if op.kind == "depthwise" else 2
                mask.index_fill_(axis, torch.as_tensor(channels, device=self.device), 1.0)
            self._train(weight, mask)
        if train_bias:
            self._train(bias, None)

    def _train(self, values: torch.Tensor, mask: torch.Tensor | None) -> None:
        values.requires_grad_(True)
        self.trained.append(values)
        self.masks.append(mask)

    # forward

    def _conv(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        """Convolution of any kind; x [models, batch, c, h, w]."""
        models, batch, c, h, w = x.shape
        weight, bias = self.weights[id(op)], self.biases[id(op)]
        top, left, bottom, right = op.attrs["padding"]
        kh, kw = weight.shape[-2:]
        stride = op.attrs["stride"]
        depthwise = op.kind == "depthwise"
        if len(weight) == 1:  # shared: the models are just more of the batch
            flat = x.reshape(models * batch, c, h, w)
            shared_bias = bias[0] if len(bias) == 1 else None
            padding: Any = (top, left)
            if (top, left) != (bottom, right):
                flat, padding = F.pad(flat, (left, right, top, bottom)), 0
            groups = c if depthwise else 1
            y = F.conv2d(flat, weight[0], shared_bias, stride, padding, groups=groups)
            y = y.reshape(models, batch, *y.shape[1:])
            return y if shared_bias is not None else y + bias[:, None, :, None, None]
        if kh * kw == 1 and not depthwise and tuple(stride) == (1, 1):
            out = weight.shape[1]
            if batch == 1:
                y = torch.baddbmm(
                    bias.expand(models, -1)[:, :, None],
                    weight.reshape(models, out, c),
                    x.reshape(models, c, h * w),
                )
            else:
                y = weight.reshape(models, 1, out, c) @ x.reshape(models, batch, c, h * w)
                y = y + bias[:, None, :, None]
            return y.reshape(models, batch, out, h, w)
        # one grouped convolution over the models' channels, [batch, models * c, h, w]
        flat = F.pad(x, (left, right, top, bottom)).transpose(0, 1).flatten(1, 2)
        groups = models * (c if depthwise else 1)
        y = F.conv2d(flat, weight.flatten(0, 1), None, stride, groups=groups)
        y = y.reshape(batch, models, -1, *y.shape[2:]).transpose(0, 1)
        return y + bias[:, None, :, None, None]

    def _run(self, op: Op, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        kind, y = op.kind, op.outputs[0]
        if kind in ("conv", "depthwise"):
            result = self._conv(op, x)
            h, w, _ = y.shape
            if result.shape[3:] != (h, w):
                result = result[..., :h, :w]
        elif kind == "add":
            result = x + inputs[1]
        elif kind == "mean":
            rows = op.outputs[0].shape[0] > 1
            result = x.mean((4,) if rows else (3, 4), keepdim=True)
        elif kind in ("average_pool", "max_pool"):
            result = self._pool(op, x)
        elif kind == "pad":
            top, left, bottom, right = op.attrs["padding"]
            result = F.pad(x, (left, right, top, bottom))
        elif kind == "requantize":
            result = x
        elif kind == "reshape":
            h, w, c = y.shape
            result = x.permute(0, 1, 3, 4, 2).reshape(*x.shape[:2], h, w, c)
            result = result.permute(0, 1, 4, 2, 3)
        else:
            raise ValueError(f"no PyTorch for {kind} ({op.name})")
        low, high = limits(op)
        if low is not None and kind not in ("pad", "reshape", "max_pool", "average_pool", "mean"):
            result = result.clamp(low, high)
        return result

    def _pool(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = op.attrs["padding"]
        kernel, stride = op.attrs["kernel"], op.attrs["stride"]
        flat = x.flatten(0, 1)
        if op.kind == "max_pool":
            flat = F.pad(flat, (left, right, top, bottom), value=-float("inf"))
            result = F.max_pool2d(flat, kernel, stride)
        else:
            edges = (left, right, top, bottom)
            total = F.avg_pool2d(F.pad(flat, edges), kernel, stride, divisor_override=1)
            ones = F.pad(torch.ones_like(flat[:1, :1]), edges)
            result = total / F.avg_pool2d(ones, kernel, stride, divisor_override=1)
        h, w, _ = op.outputs[0].shape
        return result[..., :h, :w].reshape(*x.shape[:3], h, w)

    def run(
        self, values: dict[int, torch.Tensor], start: int, stop: int
    ) -> dict[int, torch.Tensor]:
        """Run operators [start, stop) on ``values`` (by id of the Graph's tensor); return all."""
        for op in self.ops[start:stop]:
            values[id(op.outputs[0])] = self._run(op, [values[id(t)] for t in op.inputs])
        return values

    def prefix(self, pixels: np.ndarray, table: np.ndarray) -> list[torch.Tensor]:
        """Return what the frozen operators make of pictures uint8 [n, h, w, c].

        ``table`` (int8 [256]) gives the quantised input of a pixel.  One tensor [n, c, h, w] for
        each of ``boundary``: what ``logits`` takes.
        """
        kept = boundary(self.graph, self.cut)
        parts: list[list[torch.Tensor]] = [[] for _ in kept]
        source = self.graph.input
        reals = (torch.as_tensor(table).float() - source.zero_point) * source.scale
        reals = reals.to(self.device)
        with torch.no_grad():
            for i in range(0, len(pixels), 50):
                real = reals[torch.as_tensor(pixels[i : i + 50]).to(self.device).int()]
                real = real.permute(0, 3, 1, 2).contiguous()[None]
                values = self.run({id(source): real}, 0, self.cut)
                for part, t in zip(parts, kept, strict=True):
                    part.append(values[id(t)][0].clone())
        return [torch.cat(part) for part in parts]

    def logits(self, inputs: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return real logits [models, batch, outputs] from ``prefix``'s tensors.

        Each is [models, batch, c, h, w].
        """
        kept = boundary(self.graph, self.cut)
        values = {id(t): x for t, x in zip(kept, inputs, strict=True)}
        values = self.run(values, self.cut, len(self.ops))
        return values[id(self.graph.logits)].flatten(2)

    # learning

    def step(
        self, inputs: Iterable[torch.Tensor], labels: torch.Tensor, rates: torch.Tensor, n: int
    ) -> torch.Tensor:
        """One step of plain SGD; return the losses [models] before it, summed over the batch.

        labels and rates [models, batch]; ``n`` classes.  The step is the *sum* of the samples'
        gradients, each times its rate: models do not touch each other, so that scaling a
        sample's loss by its rate scales just its gradients.
        """
        logits = self.logits(inputs)[..., :n]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.reshape(labels.shape)
        grads = torch.autograd.grad((losses * rates).sum(), self.trained)
        with torch.no_grad():
            masked = [g if m is None else g * m for g, m in zip(grads, self.masks, strict=True)]
            torch._foreach_sub_(self.trained, masked)
        return losses.detach().sum(1)


def dequantise(op: Op) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the real weight ([o, i, kh, kw]; depthwise [c, 1, kh, kw]) and bias [o]."""
    scales = torch.as_tensor(op.params["weight_scales"], dtype=torch.float64)
    weight = torch.as_tensor(op.params["weight"]).double()
    if op.kind == "depthwise":
        weight = weight.unsqueeze(1)
    else:
        weight = weight.permute(0, 3, 1, 2)
    real = weight * scales[:, None, None, None]
    bias = torch.as_tensor(op.params["bias"]).double() * scales * op.inputs[0].scale
    return real.float().contiguous(), bias.float()
