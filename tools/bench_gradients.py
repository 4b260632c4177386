"""Sprout's integer gradients and the tests' oracle against PyTorch (``make bench-gradients``).

PyTorch runs the same quantised forward pass, bit for bit, and differentiates it by itself:
rounding is straight-through (``StraightThrough``), saturation is ``torch.clamp``.  The gradients
are summed over the images, at the start and after some steps of training; the table gives the
cosine to PyTorch's for every trained tensor.  Needs PyTorch (requirements-train.txt) and
../shared.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "host"), str(ROOT / "tests")]

import oracle  # noqa: E402
from sprout.blob import Blob  # noqa: E402
from sprout.compile import compile_graph  # noqa: E402
from sprout.engine import Engine  # noqa: E402
from sprout.frontends import load  # noqa: E402
from sprout.frontends.head import replace_head  # noqa: E402
from sprout.graph import Graph, Op, quantize_multiplier  # noqa: E402
from sprout.reference import Machine  # noqa: E402


class StraightThrough(torch.autograd.Function):
    """``exact`` forward, backward as if it were ``smooth``."""

    @staticmethod
    def forward(ctx: Any, smooth: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        return exact.to(smooth.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def times(x: torch.Tensor, real: torch.Tensor | float, once: bool = False) -> torch.Tensor:
    """Return x [n, c, h, w] times ``real`` (a number or [c]), rounded as TFLite does."""
    real = torch.as_tensor(real, dtype=torch.float64).reshape(1, -1, 1, 1)
    pairs = [quantize_multiplier(r) for r in real.flatten().tolist()]
    mult, shift = torch.tensor(pairs, dtype=torch.int64).T.reshape(2, 1, -1, 1, 1)
    exact = (single_multiply if once else fixed_multiply)(x.detach().long(), mult, shift)
    return StraightThrough.apply(x * real, exact)


def fixed_multiply(x: torch.Tensor, mult: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return x * mult / 2**31 * 2**shift in int64, with gemmlowp's two roundings."""
    product = (x << shift.clamp(min=0)) * mult
    product = product + torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product, 1 << 31, rounding_mode="trunc")
    right = (-shift).clamp(min=0)
    remainder, mask = high & ((1 << right) - 1), (1 << right) - 1
    return (high >> right) + (remainder > (mask >> 1) + (high < 0)).long()


def single_multiply(x: torch.Tensor, mult: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return x * mult / 2**31 * 2**shift in int64, once, halves away from zero."""
    size = (torch.abs(x * mult) + (1 << (30 - shift))) >> (31 - shift)
    return torch.where(x < 0, -size, size)


def divide(total: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Return total / count, halves away from zero."""
    count = torch.as_tensor(count, dtype=torch.int64)
    whole = total.detach().long()
    half = torch.where(whole > 0, count // 2, -(count // 2))
    return StraightThrough.apply(
        total / count, torch.div(whole + half, count, rounding_mode="trunc")
    )


def padded(x: torch.Tensor, op: Op, value: float) -> torch.Tensor:
    """Return x [n, c, h, w] with the borders of ``op``."""
    top, left, bottom, right = op.attrs["padding"]
    return F.pad(x, (left, right, top, bottom), value=value)


def run(op: Op, inputs: list[torch.Tensor], params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the output [n, c, h, w] of one operator before its clamp."""
    x, y = inputs[0], op.outputs[0]
    scales, zeros = [t.scale for t in op.inputs], [t.zero_point for t in op.inputs]
    if op.kind in ("conv", "depthwise"):
        weight = params["weight"]
        weight = weight.permute(0, 3, 1, 2) if op.kind == "conv" else weight.unsqueeze(1)
        groups = 1 if op.kind == "conv" else x.shape[1]
        acc = F.conv2d(
            padded(x - zeros[0], op, 0.0),
            weight,
            params["bias"],
            stride=op.attrs["stride"],
            groups=groups,
        )
        acc = acc[:, :, : y.shape[0], : y.shape[1]]
        factors = torch.as_tensor(op.params["weight_scales"], dtype=torch.float64)
        once = op.attrs.get("rounding") == "single"
        return y.zero_point + times(acc, scales[0] * factors / y.scale, once)
    if op.kind == "add":
        common = 2.0 * max(scales)
        total = times((x - zeros[0]) * 2**20, scales[0] / common)
        total = total + times((inputs[1] - zeros[1]) * 2**20, scales[1] / common)
        return y.zero_point + times(total, common / (2**20 * y.scale))
    if op.kind == "average_pool":
        kernel, stride = op.attrs["kernel"], op.attrs["stride"]
        ones = F.avg_pool2d(
            padded(torch.ones_like(x[:1, :1]), op, 0.0), kernel, stride, divisor_override=1
        )
        total = F.avg_pool2d(padded(x, op, 0.0), kernel, stride, divisor_override=1)
        return divide(total, ones.round().long())
    if op.kind == "max_pool":
        return F.max_pool2d(padded(x, op, -1e9), op.attrs["kernel"], op.attrs["stride"])
    if op.kind == "mean":
        total = (x - zeros[0]).sum((3,) if y.shape[0] > 1 else (2, 3), keepdim=True)
        smooth = total * (scales[0] / y.scale * total.numel() / x.numel())
        mult, shift = torch.tensor([op.attrs["mult"]]), torch.tensor([op.attrs["shift"]])
        exact = fixed_multiply(total.detach().long(), mult, shift)
        return y.zero_point + StraightThrough.apply(smooth, exact)
    if op.kind == "requantize":
        return y.zero_point + times(x - zeros[0], scales[0] / y.scale)
    if op.kind == "pad":
        return padded(x, op, float(op.attrs["value"]))
    if op.kind == "reshape":
        h, w, c = y.shape
        return x.permute(0, 2, 3, 1).reshape(-1, h, w, c).permute(0, 3, 1, 2)
    raise ValueError(f"no PyTorch for {op.kind} ({op.name})")


def autograd(
    graph: Graph, images: np.ndarray, labels: np.ndarray, n_classes: int, rows: list[oracle.Row]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return (gradient summed over int8 images [n, h, w, c] for each row, logits [n, classes])."""
    learning = {row["conv"] for row in rows}
    params = {}
    for number, op in enumerate(graph.convs):
        params[op] = {
            name: torch.tensor(op.params[name], dtype=torch.float64).requires_grad_(
                number in learning
            )
            for name in ("weight", "bias")
        }
    values = {graph.input: torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)}
    for op in graph.ops:
        if op.kind == "softmax":
            continue
        value = run(op, [values[t] for t in op.inputs], params.get(op, {}))
        if "act_min" in op.attrs:
            value = value.clamp(op.attrs["act_min"], op.attrs["act_max"])
        values[op.outputs[0]] = value
    logits = values[graph.logits].flatten(1)
    real = graph.logits.scale * (logits[:, :n_classes] - graph.logits.zero_point)
    F.cross_entropy(real, torch.tensor(labels), reduction="sum").backward()
    sums = []
    for row in rows:
        op = graph.convs[row["conv"]]
        grad = params[op][row["kind"]].grad
        assert grad is not None
        sums.append(oracle.trained_part(op, row, grad.numpy()).reshape(row["shape"]))
    return sums, logits.detach().numpy()


def pictures(blob: Blob, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 [count, h, w, c] as the blob's input takes them, labels) of ../shared/data."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        raise SystemExit(f"{folder} is absent: bench-gradients needs its pictures of people.")
    sys.path.insert(0, str(folder))
    import load as data

    x, y, _ = data.images(name, count, blob.tensors[blob.input].h)
    assert blob.lut is not None
    return blob.lut[x], y


def learned(blob: Blob, steps: int) -> bytes:
    """Return the trained bytes after ``steps`` steps of batch 1 at the rate 2097 / 2**20."""
    engine = Engine(blob.to_bytes())
    for step, (x, label) in enumerate(zip(*pictures(blob, "person_train", steps), strict=True)):
        engine.step(x, int(label), (2097, -20), 1, step, blob.n_classes)
    return bytes(engine.trained)


def compare(
    graph: Graph, blob: Blob, trained: bytes, images: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Return a row for each trained tensor: cosines of the summed gradients to PyTorch's."""
    rows = blob.info["trained"]
    graph = oracle.with_trained(graph, rows, trained)
    truth, logits = autograd(graph, images, labels, blob.n_classes, rows)
    machine = Machine(blob, keep=True)
    ours = [np.zeros(row["shape"]) for row in rows]
    light = [np.zeros(row["shape"]) for row in rows]
    first = min(row["conv"] for row in rows)
    for x, label, theirs in zip(images, labels, logits, strict=True):
        machine.trained[:] = trained
        machine.gradients.clear()
        machine.step(x, int(label), (1, -40), 0, 0, blob.n_classes)
        if not np.array_equal(machine.value(blob.logits).ravel(), theirs):
            raise SystemExit("PyTorch's forward pass differs from Sprout's: nothing to compare.")
        oracles = oracle.gradients(graph, x, int(label), blob.n_classes, first_conv=first)
        for n, row in enumerate(rows):
            ours[n] += oracle.integer_gradient(machine.gradients, row)
            light[n] += oracle.expected(graph, oracles, row)
    return [
        {
            "conv": row["conv"],
            "kind": row["kind"],
            "layer": row["layer"],
            "elements": int(np.prod(row["shape"])),
            "sprout": oracle.cosine(a, t),
            "norm_ratio": float(np.linalg.norm(a) / np.linalg.norm(t)),
            "oracle": oracle.cosine(b, t),
        }
        for row, a, b, t in zip(rows, ours, light, truth, strict=True)
    ]


def main() -> None:
    """Print the table and write build/bench-gradients.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mcunet-5fps.pkl", help="file in ../shared/models")
    parser.add_argument("--plan", default="b20,24:1/4,27:1/2,30:1/2")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="steps of training in between")
    args = parser.parse_args()
    began = time.time()
    graph = load(ROOT.parent / "shared" / "models" / args.model)
    if args.model.endswith(".pkl"):
        graph = replace_head(graph, ("no_person", "person"))
    blob = compile_graph(graph, args.plan)
    images, labels = pictures(blob, "person_test", args.images)
    stages = {}
    for moment, trained in (
        ("start", bytes(blob.initial)),
        (f"after {args.steps} steps", learned(blob, args.steps)),
    ):
        stages[moment] = results = compare(graph, blob, trained, images, labels)
        print(f"\n{args.model}, plan {args.plan}, {args.images} images, {moment}")
        print(f"{'tensor':>12} {'elements':>9} {'Sprout':>9} {'norms':>8} {'oracle':>13}")
        for r in results:
            print(
                f"{r['conv']:>5} {r['kind']:<6} {r['elements']:>9} {r['sprout']:>9.6f} "
                f"{r['norm_ratio']:>8.5f} {r['oracle']:>13.10f}"
            )
    everything = [r for results in stages.values() for r in results]
    least = {name: min(r[name] for r in everything) for name in ("sprout", "oracle")}
    print(
        f"\nleast cosine to PyTorch: Sprout {least['sprout']:.6f}, oracle {least['oracle']:.12f}"
    )
    out = ROOT / "build" / "bench-gradients.json"
    out.parent.mkdir(exist_ok=True)
    record = {
        "model": args.model,
        "plan": args.plan,
        "images": args.images,
        "torch": torch.__version__,
        "seconds": round(time.time() - began, 1),
        "least": least,
        "stages": stages,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
