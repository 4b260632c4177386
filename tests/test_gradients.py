"""Sprout's integer gradients against the float oracle; the oracle against finite differences.

Four whole networks on pictures of ``person_test``, at the start and after 200 steps of learning,
and the small networks with everything learning.  The models and pictures stand in ../shared.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from sprout.blob import Blob
from sprout.compile import compile_graph
from sprout.engine import Engine
from sprout.frontends import load
from sprout.frontends.head import replace_head
from sprout.graph import Graph, Op, Tensor, quantize_multiplier
from sprout.reference import Machine

PERSON = ("no_person", "person")


class Builder:
    """Chains random operators of a tiny network; ``x`` is the tensor that the next one reads."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ops: list[Op] = []
        self.x = self.input = Tensor("input", (7, 6, 3), scale=0.03, zero_point=5)

    def append(
        self, kind: str, shape: tuple[int, int, int], like: Tensor | None = None, **attrs: Any
    ) -> Op:
        """Append an operator on ``self.x``; its output is scaled as ``like`` or at random."""
        scale, zero = float(self.rng.uniform(0.02, 0.04)), int(self.rng.integers(-30, 30))
        if like is not None:
            scale, zero = like.scale, like.zero_point
        y = Tensor(f"{kind}{len(self.ops)}", shape, scale=scale, zero_point=zero)
        y.alias = self.x if kind == "reshape" else None
        op = Op(kind, [self.x], [y], dict(attrs), name=y.name)
        self.ops.append(op)
        self.x = y
        return op

    def clamp(self) -> dict[str, int]:
        """Return limits narrow enough to saturate some of the values."""
        return {
            "act_min": int(self.rng.integers(-90, -40)),
            "act_max": int(self.rng.integers(50, 100)),
        }

    def conv(
        self, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], kind: str = "conv"
    ) -> None:
        """Append a convolution with TFLite's SAME padding; its outputs reach about +-128."""
        (h, w, c), (kh, kw), (sh, sw) = self.x.shape, kernel, stride
        oh, ow = -(-h // sh), -(-w // sw)
        down, across = max((oh - 1) * sh + kh - h, 0), max((ow - 1) * sw + kw - w, 0)
        op = self.append(
            kind,
            (oh, ow, outputs),
            stride=stride,
            padding=(down // 2, across // 2, down - down // 2, across - across // 2),
            **self.clamp(),
        )
        shape = (outputs, kh, kw, c) if kind == "conv" else (outputs, kh, kw)
        per_output = int(np.prod(shape[1:]))
        op.params["weight"] = self.rng.integers(-127, 128, shape).astype(np.int8)
        op.params["bias"] = self.rng.integers(-3000, 3000, outputs).astype(np.int32)
        spread = self.rng.uniform(0.5, 2.0, outputs)
        op.params["weight_scales"] = (
            spread / (60 * np.sqrt(per_output)) * op.outputs[0].scale / op.inputs[0].scale
        )

    def graph(self) -> Graph:
        """Return the network, with ``self.x`` as its logits and a softmax behind them."""
        logits = self.x
        self.append("softmax", logits.shape, beta=1.0)
        return Graph("tiny", self.ops, self.input, self.x, logits)


def tiny_network(seed: int) -> Graph:
    """Return a network of all operators: strides, a depth multiplier, two residual adds, pools."""
    b = Builder(seed)
    b.append("requantize", b.x.shape, act_min=-128, act_max=127)
    b.append("pad", (9, 8, 3), like=b.x, padding=(1, 1, 1, 1), value=b.x.zero_point)
    b.conv(4, (3, 2), (2, 1))
    stem = b.x
    b.conv(8, (3, 3), (1, 1), kind="depthwise")
    b.conv(4, (1, 1), (1, 1))
    for kind in ("conv", "depthwise"):  # the first sum is read twice, by a layer and the next sum
        op = b.append("add", stem.shape, **b.clamp())
        op.inputs.append(stem)
        stem = b.x
        b.conv(4, (2, 3), (1, 1), kind)
    h, w, c = b.x.shape
    wide = {"act_min": -128, "act_max": 127}
    b.append(
        "max_pool", (h, w, c), like=b.x, kernel=(3, 2), stride=(1, 1), padding=(1, 0, 1, 1), **wide
    )
    b.append(
        "average_pool",
        (-(-h // 2), -(-w // 2), c),
        like=b.x,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1, 1, 1),
        act_min=-40,
        act_max=40,
    )
    if seed % 2:
        op = b.append("mean", (1, 1, c), act_min=-128, act_max=127)
        op.attrs["mult"], op.attrs["shift"] = quantize_multiplier(oracle.mean_scale(op))
    else:
        b.append("reshape", (1, 1, b.x.elements), like=b.x)
    b.conv(5, (1, 1), (1, 1))
    b.ops[-1].attrs["rounding"] = "single"  # as in a fully connected layer
    return b.graph()


@pytest.mark.parametrize("seed", range(4))
def test_oracle_equals_finite_differences(seed: int) -> None:
    graph, n_classes, label, step = tiny_network(seed), 4, 2, 1e-6
    for op in graph.convs:  # perturbed below
        op.params = {name: value.astype(np.float64) for name, value in op.params.items()}
    x = np.random.default_rng(seed).integers(-128, 128, graph.input.shape).astype(np.float64)
    truth = oracle.gradients(graph, x, label, n_classes, smooth=True)
    checks = [(x, truth.tensors[graph.input])]
    for n, op in enumerate(graph.convs):
        checks += [(op.params["weight"], truth.weights[n]), (op.params["bias"], truth.biases[n])]
    saturated = [(v != truth.tape.values[t]).mean() for t, v in truth.tape.before_clamp.items()]
    assert max(saturated) > 0.1, "the clamps of the network must matter"
    for values, gradient in checks:
        assert np.abs(gradient).max() > 0
        for i in np.ndindex(*values.shape):
            kept = values[i]
            values[i] = kept + step
            above = oracle.float_loss(graph, x, label, n_classes, smooth=True)
            values[i] = kept - step
            below = oracle.float_loss(graph, x, label, n_classes, smooth=True)
            values[i] = kept
            assert (above - below) / (2 * step) == pytest.approx(gradient[i], rel=1e-4, abs=1e-8)


Case = tuple[np.ndarray, int]  # int8 input [h, w, c], label


def compare(graph: Graph, blob: Blob, trained: bytes, cases: list[Case]) -> list[dict[str, Any]]:
    """Compare gradients summed over ``cases``; one row for each trained tensor.

    ``cosine`` is that of the sums, ``worst`` the least of a single image, ``ratio`` the quotient
    of the norms.  The forward passes must agree to the byte.
    """
    rows = blob.info["trained"]
    assert blob.trained_len == len(trained)
    graph = oracle.with_trained(graph, rows, trained)
    first = min(row["conv"] for row in rows)
    machine = Machine(blob, keep=True)
    got = [np.zeros(row["shape"]) for row in rows]
    truth = [np.zeros(row["shape"]) for row in rows]
    worst = [1.0] * len(rows)
    for x, label in cases:
        machine.trained[:] = trained
        machine.gradients.clear()
        machine.step(x, label, (1, -40), 0, 0, blob.n_classes)
        true = oracle.gradients(graph, x, label, blob.n_classes, first_conv=first)
        logits = machine.value(blob.logits).ravel()
        assert np.array_equal(logits, true.tape.values[graph.logits].ravel())
        for n, row in enumerate(rows):
            mine = oracle.integer_gradient(machine.gradients, row)
            his = oracle.expected(graph, true, row)
            worst[n] = min(worst[n], oracle.cosine(mine, his))
            got[n] += mine
            truth[n] += his
    return [
        {
            "layer": f"{row['conv']} {row['kind']}",
            "cosine": oracle.cosine(a, b),
            "worst": w,
            "ratio": float(np.linalg.norm(a) / max(float(np.linalg.norm(b)), 1e-300)),
        }
        for row, a, b, w in zip(rows, got, truth, worst, strict=True)
    ]


def report(title: str, results: list[dict[str, Any]]) -> None:
    """Print the comparison (pytest shows it with -s, and when the test fails)."""
    print(f"\n{title}")
    for row in results:
        print(
            "  {layer:>10}: {cosine:.6f}, worst image {worst:.6f}, norms {ratio:.5f}".format(**row)
        )


@pytest.mark.parametrize("plan", ["full", "b4,2:1/2,4:1/2", "b6", "last"])
@pytest.mark.parametrize("seed", range(4))
def test_every_operator(seed: int, plan: str) -> None:
    graph = tiny_network(seed)
    blob = compile_graph(graph, plan)
    rng = np.random.default_rng(seed)
    cases: list[Case] = [
        (rng.integers(-128, 128, graph.input.shape).astype(np.int8), n % 5) for n in range(16)
    ]
    results = compare(graph, blob, bytes(blob.initial), cases)
    report(f"tiny network {seed}, {plan}", results)
    assert plan != "full" or len(results) == 2 * len(graph.convs)
    assert all(row["cosine"] > 0.999 for row in results)
    assert all(abs(row["ratio"] - 1) < 0.01 for row in results)


# --- whole networks -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def pictures(folder: Path, name: str, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [count, size, size, 3], labels) of a set of ../shared/data."""
    sys.path.append(str(folder))
    import load as data  # ../shared/data/load.py

    x, y, _ = data.images(name, count, size)
    return x, y


def person_cases(shared: Path, blob: Blob, name: str, count: int) -> list[Case]:
    """Return pictures of people and of none as the blob's input takes them."""
    x, y = pictures(shared / "data", name, count, blob.tensors[blob.input].h)
    assert blob.lut is not None
    return [(blob.lut[picture], int(label)) for picture, label in zip(x, y, strict=True)]


def learned(blob: Blob, cases: list[Case]) -> bytes:
    """Return the trained bytes after one step on each case at the rate 0.002 (2097 / 2**20)."""
    engine = Engine(blob.to_bytes())
    for step, (x, label) in enumerate(cases):
        engine.step(x, label, (2097, -20), 1, step, blob.n_classes)
    return bytes(engine.trained)


NETWORKS = {
    "mcunet-5fps.pkl": "b20,24:1/4,27:1/2,30:1/2",
    "proxyless-w0.3.pkl": "b16,40:1/2,43:1/4,47,55:1/2",
    "mlperf_vww_96_int8.tflite": "b12,19,20,22:1/4,25,26",
    "mcunet_vww_int8.tflite": "b16,30:1/2,33:1/4,34,36:1/2",
}


@pytest.mark.parametrize("model", NETWORKS)
def test_networks(model: str, shared: Path) -> None:
    graph = load(shared / "models" / model)
    if model.endswith(".pkl"):
        graph = replace_head(graph, PERSON, 4)
    blob = compile_graph(graph, NETWORKS[model])
    cases = person_cases(shared, blob, "person_test", 16)
    start = bytes(blob.initial)
    later = learned(blob, person_cases(shared, blob, "person_train", 200))
    assert later != start
    for moment, trained in (("at the start", start), ("after 200 steps", later)):
        results = compare(graph, blob, trained, cases)
        report(f"{model} {moment}", results)
        assert min(row["cosine"] for row in results) >= 0.999
        assert min(row["ratio"] for row in results) > 0.9


@pytest.mark.parametrize(
    "model",
    [
        "mlperf_resnet8_cifar10_int8",
        "mlperf_kws_ref_model_int8",
        "emlearn_mnist_cnn_int8",
    ],
)
def test_full_plan(model: str, shared: Path) -> None:
    graph = load(shared / "models" / f"{model}.tflite")
    blob = compile_graph(graph, "full")
    inputs = np.load(shared / "models" / f"{model}.ref.npz")["x"]
    if inputs.dtype != np.int8:
        real = np.round(inputs / graph.input.scale) + graph.input.zero_point
        inputs = np.clip(real, -128, 127).astype(np.int8)
    n = blob.n_classes
    cases: list[Case] = [(x.reshape(graph.input.shape), i % n) for i, x in enumerate(inputs[:8])]
    results = compare(graph, blob, bytes(blob.initial), cases)
    report(model, results)
    assert len(results) == 2 * len(graph.convs)
    assert min(row["cosine"] for row in results) >= 0.999


@pytest.mark.parametrize("model", NETWORKS)
def test_full_plan_of_networks(model: str, shared: Path) -> None:
    graph = load(shared / "models" / model)
    if model.endswith(".pkl"):
        graph = replace_head(graph, PERSON, 4)
    blob = compile_graph(graph, "full")
    results = compare(
        graph, blob, bytes(blob.initial), person_cases(shared, blob, "person_test", 4)
    )
    report(f"{model}, everything", results)
    assert len(results) == 2 * len(graph.convs)
    assert min(row["cosine"] for row in results) >= 0.999


def test_residual_adds(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the last add the gradient is right; one that ignores the skip connection is not."""
    model = "mcunet-5fps.pkl"
    graph = replace_head(load(shared / "models" / model), PERSON, 4)
    blob = compile_graph(graph, NETWORKS[model])
    cases = person_cases(shared, blob, "person_test", 2)
    last_add = max(n for n, op in enumerate(graph.ops) if op.kind == "add")
    below = {n for n, op in enumerate(graph.convs) if graph.ops.index(op) < last_add}
    right = compare(graph, blob, bytes(blob.initial), cases)

    maker = {op.outputs[0]: n for n, op in enumerate(graph.ops)}
    both = oracle.add_backward

    def without_skip(op: Op, d: oracle.Floats) -> tuple[oracle.Floats, oracle.Floats]:
        a, b = both(op, d)
        return (a * 0, b) if maker[op.inputs[0]] < maker[op.inputs[1]] else (a, b * 0)

    monkeypatch.setattr(oracle, "add_backward", without_skip)
    wrong = compare(graph, blob, bytes(blob.initial), cases)
    report("the skip connection dropped", wrong)
    cosines = [
        (a["cosine"], b["cosine"])
        for a, b in zip(right, wrong, strict=True)
        if int(a["layer"].split()[0]) in below
    ]
    assert len(cosines) > 10
    assert min(a for a, _ in cosines) >= 0.999
    assert min(b for _, b in cosines) < 0.9
