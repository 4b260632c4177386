"""Model files to Graphs: what comes out of good files, and the sentence that bad ones get."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite as schema
from sprout import frontends
from sprout.frontends.head import replace_head
from sprout.graph import Graph, SproutError, macs

from tools.tflite_writer import TfliteWriter

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
ACTIVATION = schema.ActivationFunctionType
RNG = np.random.default_rng(0)


def refusal(path: Path, data: bytes) -> str:
    """Return the message that reading ``data`` as a model gives: one line that names the file."""
    path.write_bytes(data)
    with pytest.raises(SproutError) as caught:
        frontends.load(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and message.endswith(".")
    return message


def well_formed(graph: Graph) -> None:
    """Check what every later stage relies on."""
    made = {id(graph.input)}
    for op in graph.ops:
        assert all(id(t) in made for t in op.inputs), f"{op} reads what nobody has written"
        made.update(id(t) for t in op.outputs)
        y = op.outputs[0]
        assert y.scale > 0 and -128 <= y.zero_point <= 127
        if op.kind == "reshape":
            assert y.alias is op.inputs[0] and y.elements == op.inputs[0].elements
    assert id(graph.output) in made and id(graph.logits) in made
    assert [op.attrs["conv_index"] for op in graph.convs] == list(range(len(graph.convs)))
    for op in graph.convs:
        x, y, weight = op.inputs[0], op.outputs[0], op.params["weight"]
        kh, kw = weight.shape[1:3]
        top, left, bottom, right = op.attrs["padding"]
        assert (x.shape[0] + top + bottom - kh) // op.attrs["stride"][0] + 1 == y.shape[0]
        assert (x.shape[1] + left + right - kw) // op.attrs["stride"][1] + 1 == y.shape[1]
        assert weight.shape[0] == y.shape[2] and weight.dtype == np.int8
        bias, scales = op.params["bias"], op.params["weight_scales"]
        assert bias.shape == scales.shape == (y.shape[2],)
        assert (bias.dtype, scales.dtype) == (np.int32, np.float64)
        if op.kind == "conv":
            assert weight.shape[3] == x.shape[2]
        else:
            assert y.shape[2] % x.shape[2] == 0


# The published models

PERSON = {"conv": 15, "depthwise": 13, "average_pool": 1, "softmax": 1}
# file: operators by kind, input, outputs, (float in, float out)
MODELS: dict[str, tuple[dict[str, int], tuple[int, ...], int, tuple[bool, bool]]] = {
    "emlearn_mnist_cnn_int8.tflite": (
        {"conv": 4, "mean": 1, "softmax": 1},
        (28, 28, 1),
        10,
        (False, False),
    ),
    "mcunet_vww_int8.tflite": (
        {"conv": 31, "depthwise": 15, "pad": 4, "add": 8, "mean": 2},
        (80, 80, 3),
        2,
        (True, True),
    ),
    "mlperf_kws_ref_model_int8.tflite": (
        {"conv": 6, "depthwise": 4, "average_pool": 1, "softmax": 1},
        (49, 10, 1),
        12,
        (False, False),
    ),
    "mlperf_resnet8_cifar10_int8.tflite": (
        {"conv": 10, "add": 3, "average_pool": 1, "softmax": 1},
        (32, 32, 3),
        10,
        (False, False),
    ),
    "mlperf_vww_96_int8.tflite": (PERSON, (96, 96, 3), 2, (False, False)),
    "tflm_hello_world_int8.tflite": ({"conv": 3}, (1,), 1, (False, False)),
    "tflm_person_detect_int8.tflite": (PERSON, (96, 96, 1), 2, (False, False)),
    "mcunet-5fps.pkl": (
        {"conv": 29, "depthwise": 14, "add": 7, "mean": 1},
        (128, 128, 3),
        1000,
        (False, False),
    ),
    "proxyless-w0.3.pkl": (
        {"conv": 41, "depthwise": 20, "add": 13, "mean": 1},
        (128, 128, 3),
        1000,
        (False, False),
    ),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", MODELS)
def test_published_model(shared: Path, name: str) -> None:
    kinds, shape, outputs, floats = MODELS[name]
    graph = frontends.load(shared / "models" / name)
    assert Counter(op.kind for op in graph.ops if op.kind != "reshape") == kinds
    assert graph.input_shape == shape
    assert graph.logits.shape == (1, 1, outputs) and graph.output_shape == (outputs,)
    assert (graph.input_float, graph.output_float) == floats
    assert graph.max_classes == outputs and graph.classes[0] == "class_0"
    well_formed(graph)


@pytest.mark.shared
def test_published_macs(shared: Path) -> None:
    graph = frontends.load(shared / "models/mlperf_vww_96_int8.tflite")
    assert sum(map(macs, graph.ops)) == 7_489_664


@pytest.mark.shared
def test_bias_quantised_on_a_dimension_it_has_not(shared: Path) -> None:
    """The original person_detect (quantized_dimension 3 on biases) reads as its mended copy."""
    original = frontends.load(shared / "models/tflm_person_detect_int8.tflite")
    mended = frontends.load(shared / "models/tflm_person_detect_int8_litert.tflite")
    for a, b in zip(original.convs, mended.convs, strict=True):
        assert all(np.array_equal(a.params[k], b.params[k]) for k in a.params)


@pytest.mark.shared
def test_mcunet_biases_cannot_wrap(shared: Path) -> None:
    graph = frontends.load(shared / "models/mcunet-5fps.pkl")
    for op in graph.convs:
        weight = np.abs(op.params["weight"].astype(np.int64)).reshape(len(op.params["bias"]), -1)
        reach = np.abs(op.params["bias"].astype(np.int64)) + weight.sum(axis=1) * 255
        assert reach.max() < 2**31


# Small .tflite files

CONV = {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1, "Padding": SAME}
Change = Callable[[TfliteWriter, dict[str, int]], None]


def small(change: Change | None = None) -> TfliteWriter:
    """A model of a convolution (tensors 0 to 3) and a dense layer (4, 5); ``change`` spoils it."""
    w = TfliteWriter()
    n = {"x": w.tensor("x", (1, 6, 5, 2), 0.05, -3)}
    weight = RNG.integers(-127, 128, (4, 3, 3, 2)).astype(np.int8)
    n["w"] = w.tensor("w", weight.shape, [0.01, 0.02, 0.01, 0.02], [0] * 4, values=weight)
    n["b"] = w.tensor("b", (4,), 5e-4, 0, "INT32", values=np.arange(4, dtype=np.int32))
    n["y"] = w.tensor("y", (1, 6, 5, 4), 0.1, 4)
    w.op("CONV_2D", [n["x"], n["w"], n["b"]], [n["y"]], **CONV)
    dense = RNG.integers(-127, 128, (3, 120)).astype(np.int8)
    n["dense"] = w.tensor("dense", dense.shape, 0.01, values=dense)
    n["out"] = w.tensor("out", (1, 3), 0.2, 1)
    w.op("FULLY_CONNECTED", [n["y"], n["dense"], -1], [n["out"]])
    if change is not None:
        change(w, n)
    return w


def one(
    kind: str,
    shape: tuple[int, ...],
    out: tuple[int, ...],
    constant: Any = None,
    quantization: tuple[float, int] = (0.1, 0),
    **options: Any,
) -> bytes:
    """A model of one operator, from int8 x of ``shape`` to y of ``out``."""
    w = TfliteWriter()
    x, y = w.tensor("x", shape), w.tensor("y", out, *quantization)
    extra = [] if constant is None else [w.constant("c", constant)]
    w.op(kind, [x, *extra], [y], **options)
    return w.finish([x], [y])


def load(tmp_path: Path, data: bytes) -> Graph:
    path = tmp_path / "small.tflite"
    path.write_bytes(data)
    graph = frontends.load(path)
    well_formed(graph)
    return graph


def test_small_model(tmp_path: Path) -> None:
    graph = load(tmp_path, small().finish([0], [5]))
    conv, reshape, dense = graph.ops
    assert (graph.name, graph.input.name, graph.output.index) == ("small", "x", 5)
    assert conv.attrs["padding"] == (1, 1, 1, 1) and "rounding" not in conv.attrs
    assert reshape.kind == "reshape" and reshape.outputs[0].shape == (1, 1, 120)
    assert (dense.kind, dense.attrs["layer"]) == ("conv", "FULLY_CONNECTED")
    assert dense.attrs["rounding"] == "single"
    assert dense.params["weight"].shape == (3, 1, 1, 120)
    assert not dense.params["bias"].any()  # the file gives none
    assert np.ptp(dense.params["weight_scales"]) == 0


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "want", "out"),
    [
        (6, 3, 2, SAME, (0, 0, 1, 1), 3),  # the odd row goes below
        (5, 3, 2, SAME, (1, 1, 1, 1), 3),
        (6, 3, 2, VALID, (0, 0, 0, 0), 2),
        (7, 1, 3, SAME, (0, 0, 0, 0), 3),
        (4, 4, 1, SAME, (1, 1, 2, 2), 4),
    ],
)
def test_padding(
    tmp_path: Path, size: int, kernel: int, stride: int, padding: int, want: Any, out: int
) -> None:
    window = {"FilterHeight": kernel, "FilterWidth": kernel, "StrideH": stride, "StrideW": stride}
    shapes = (1, size, size, 2), (1, out, out, 2)
    (op,) = load(tmp_path, one("MAX_POOL_2D", *shapes, Padding=padding, **window)).ops
    assert (op.attrs["padding"], op.attrs["kernel"]) == (want, (kernel, kernel))


@pytest.mark.parametrize(
    ("activation", "want"),
    [
        (ACTIVATION.NONE, (-128, 127)),
        (ACTIVATION.RELU, (-10, 127)),
        (ACTIVATION.RELU6, (-10, 50)),
        (ACTIVATION.RELU_N1_TO_1, (-20, 0)),
    ],
)
def test_activation(tmp_path: Path, activation: int, want: tuple[int, int]) -> None:
    w = TfliteWriter()
    x, y = w.tensor("x", (1, 4)), w.tensor("y", (1, 4), 0.1, -10)
    w.op("ADD", [x, x], [y], FusedActivationFunction=activation)
    (op,) = load(tmp_path, w.finish([x], [y])).ops
    assert (op.attrs["act_min"], op.attrs["act_max"]) == want


@pytest.mark.parametrize(("channels", "kind"), [(1, "conv"), (2, "depthwise")])
def test_depth_multiplier(tmp_path: Path, channels: int, kind: str) -> None:
    """Where there is one channel to read, a depthwise convolution is an ordinary one."""
    w = TfliteWriter()
    weight = RNG.integers(-127, 128, (1, 3, 3, 6)).astype(np.int8)
    x, k = w.tensor("x", (1, 9, 9, channels)), w.tensor("k", weight.shape, 0.1, values=weight)
    y = w.tensor("y", (1, 9, 9, 6))
    w.op("DEPTHWISE_CONV_2D", [x, k], [y], **CONV)
    (op,) = load(tmp_path, w.finish([x], [y])).ops
    assert op.kind == kind
    assert np.array_equal(op.params["weight"].reshape(6, 3, 3), weight[0].transpose(2, 0, 1))


def test_float_ends(tmp_path: Path) -> None:
    def change(w: TfliteWriter, n: dict[str, int]) -> None:
        a = w.tensor("float_in", (1, 6, 5, 2), None, 0, "FLOAT32")
        b = w.tensor("float_out", (1, 3), None, 0, "FLOAT32")
        w.ops.insert(0, ("QUANTIZE", [a], [n["x"]], {}))
        w.op("DEQUANTIZE", [n["out"]], [b])

    graph = load(tmp_path, small(change).finish([6], [7]))
    assert graph.input_float and graph.output_float
    assert (graph.input.name, graph.output.name) == ("x", "out")
    assert (graph.input_shape, graph.output_shape) == ((6, 5, 2), (3,))


def test_shape_arithmetic_is_passed_over(tmp_path: Path) -> None:
    """Keras' Flatten computes the shape of its RESHAPE, which the file states as well."""
    w = TfliteWriter()
    x, y = w.tensor("x", (1, 2, 3, 4)), w.tensor("y", (1, 24))
    parts = [w.tensor(t, (n,), None, 0, "INT32") for t, n in (("shape", 4), ("n", 1), ("to", 2))]
    w.op("SHAPE", [x], [parts[0]])
    w.op("STRIDED_SLICE", [parts[0], *[w.constant("c", [i]) for i in range(3)]], [parts[1]])
    w.op("PACK", [parts[1], w.constant("24", 24)], [parts[2]])
    w.op("RESHAPE", [x, parts[2]], [y])
    graph = load(tmp_path, w.finish([x], [y]))
    assert graph.ops == [] and graph.output is graph.input


@pytest.mark.parametrize("keep", [True, False])
def test_mean_over_the_picture(tmp_path: Path, keep: bool) -> None:
    out = (1, 1, 1, 3) if keep else (1, 3)
    data = one("MEAN", (1, 4, 5, 3), out, [-2, 1], (0.05, 7), KeepDims=keep)
    (op,) = load(tmp_path, data).ops
    assert (op.kind, op.outputs[0].shape) == ("mean", (1, 1, 3))
    real = op.attrs["mult"] / 2**31 * 2.0 ** op.attrs["shift"]
    assert real == pytest.approx(0.1 / 0.05 / 20, rel=1e-7)


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_mean_of_each_row(tmp_path: Path, columns: int) -> None:
    """PyTorch's x.mean(3) comes as a mean over width alone, which keeps the rows."""
    out = (1, 2, 4)
    (op,) = load(tmp_path, one("MEAN", (1, 2, columns, 4), out, [2], KeepDims=False)).ops
    assert op.kind == "mean"
    assert op.inputs[0].shape == (2, columns, 4) and op.outputs[0].elements == 8


def test_folded_transpose(tmp_path: Path) -> None:
    """Channels first before a flatten: the weights' columns move instead of the elements."""
    w = TfliteWriter()
    weight = RNG.integers(-127, 128, (2, 24)).astype(np.int8)
    x, t = w.tensor("x", (1, 2, 3, 4)), w.tensor("t", (1, 4, 2, 3))
    f, y = w.tensor("f", (1, 24)), w.tensor("y", (1, 2), 20.0)
    w.op("TRANSPOSE", [x, w.constant("p", [0, 3, 1, 2])], [t])
    w.op("RESHAPE", [t, w.constant("s", [1, 24])], [f])
    w.op("FULLY_CONNECTED", [f, w.tensor("w", (2, 24), 0.01, values=weight)], [y])
    graph = load(tmp_path, w.finish([x], [y]))
    value = RNG.integers(-128, 128, (1, 2, 3, 4))
    want = weight.astype(int) @ value.transpose(0, 3, 1, 2).reshape(-1)
    assert np.array_equal(graph.convs[0].params["weight"].reshape(2, -1) @ value.reshape(-1), want)
    assert np.array_equal(graph.source_tensors[t].restore(value), value.transpose(0, 3, 1, 2))


# Refusals


def op_option(**options: Any) -> Change:
    return lambda w, n: w.ops[0][3].update(options)


def field(name: str, **fields: Any) -> Change:
    return lambda w, n: w.tensors[n[name]].update(fields)


def extra_op(kind: str, **options: Any) -> Change:
    def change(w: TfliteWriter, n: dict[str, int]) -> None:
        w.op(kind, [n["out"]], [w.tensor("last", (1, 3), 0.2, 1)], **options)

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "other operator": (extra_op("LOGISTIC"), "LOGISTIC at tensor 6 (last)"),
    "operator named like a method": (extra_op("SPLIT"), "SPLIT at tensor 6 (last)"),
    "custom operator": (extra_op("TfSomething"), "custom operator TfSomething"),
    "dilation": (op_option(DilationWFactor=2), "CONV_2D at tensor 3 (y) has dilation 1x2"),
    "activation": (op_option(FusedActivationFunction=ACTIVATION.TANH), "activation TANH"),
    "zero stride": (op_option(StrideW=0), "stride 1x0"),
    "wrong size": (op_option(Padding=VALID), "the operator makes [4, 3, 4]"),
    "grouped": (field("x", shape=[1, 6, 5, 4]), "filters over 2 of 4 channels"),
    "uint8": (field("x", kind="UINT8"), "is UINT8, not INT8"),
    "int16": (field("y", kind="INT16"), "is INT16, not INT8"),
    "float": (field("y", kind="FLOAT32", scale=[]), "is FLOAT32, not INT8"),
    "hybrid": (field("x", kind="FLOAT32", scale=[]), "is FLOAT32, not INT8"),
    "int4 weights": (field("w", kind="INT4", data=b"\0" * 36), "has INT4 where INT8"),
    "int64 bias": (field("b", kind="INT64", data=b"\0" * 32), "has INT64 where INT32"),
    "weights computed": (field("w", data=b""), "tensor 1 (w) is not a constant"),
    "weight zero point": (field("w", zero=[0, 1, 0, 0]), "weights with a zero point"),
    "weight scales": (field("w", scale=[0.1] * 3), "3 weight scales on axis 0"),
    "weight axis": (field("w", axis=3), "4 weight scales on axis 3"),
    "no scale": (field("y", scale=[]), "no single scale and zero point"),
    "nonsense scale": (field("y", scale=[float("nan")]), "has scale nan"),
    "batch": (field("x", shape=[2, 6, 5, 2]), "has a batch of 2"),
    "dynamic": (field("x", signature=[-1, -1, 5, 2]), "not all of it known"),
    "softmax scale": (extra_op("SOFTMAX", Beta=1.0), "not 1/256 and -128"),
    "lost operand": (lambda w, n: w.ops[1][1].__setitem__(0, -1), "lacks operand 0"),
    "used too early": (lambda w, n: w.ops.reverse(), "used before an operator computes it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    change, words = REFUSED[case]
    w = small(change)
    assert words in refusal(tmp_path / "m.tflite", w.finish([0], [len(w.tensors) - 1]))


def test_refused_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    assert "2 inputs" in refusal(path, small().finish([0, 1], [5]))
    assert "2 outputs" in refusal(path, small().finish([0], [3, 5]))
    assert "2 subgraphs" in refusal(path, small().finish([0], [5], subgraphs=2))


def test_refused_shapes(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    data = one("MEAN", (1, 4, 4, 2), (1, 4), [1, 3], KeepDims=False)
    assert "do not lie together" in refusal(path, data)
    data = one("PAD", (1, 4, 4, 2), (1, 4, 4, 4), [[0, 0], [0, 0], [0, 0], [1, 1]])
    assert "pads batch or channels" in refusal(path, data)
    data = one("TRANSPOSE", (1, 4, 5, 2), (1, 2, 4, 5), [0, 3, 1, 2])
    assert "output at tensor 1 (y) is transposed" in refusal(path, data)

    w = TfliteWriter()
    a, b, y = w.tensor("a", (1, 4, 4, 2)), w.tensor("b", (1, 1, 1, 2)), w.tensor("y", (1, 4, 4, 2))
    w.op("MEAN", [a, w.constant("axes", [1, 2])], [b], KeepDims=True)
    w.op("ADD", [a, b], [y])
    assert "adds [1, 4, 4, 2] and [1, 1, 1, 2]" in refusal(path, w.finish([a], [y]))

    w = TfliteWriter()
    x, t, y = w.tensor("x", (1, 2, 4, 4)), w.tensor("t", (1, 4, 4, 2)), w.tensor("y", (1, 4, 4, 2))
    w.op("TRANSPOSE", [x, w.constant("p", [0, 2, 3, 1])], [t])
    w.op("MAX_POOL_2D", [t], [y], FilterHeight=1, FilterWidth=1, StrideH=1, StrideW=1)
    assert "MAX_POOL_2D at tensor 1 (t) needs the elements" in refusal(path, w.finish([x], [y]))


def test_no_model(tmp_path: Path) -> None:
    assert "no model that Sprout knows" in refusal(tmp_path / "m.bin", b"")
    assert "no model that Sprout knows" in refusal(tmp_path / "m.onnx", bytes(1000))
    with pytest.raises(SproutError, match=r"nowhere\.tflite: No such file"):
        frontends.load(tmp_path / "nowhere.tflite")
    assert "is damaged" in refusal(tmp_path / "m.tflite", b"\0\0\0\0TFL3")


def mutations(data: bytes, count: int, keep: int) -> list[bytes]:
    """Cut and changed copies of ``data``; the first ``keep`` bytes stay."""
    rng = np.random.default_rng(1)
    copies = []
    for i in range(count):
        copy = bytearray(data)
        if i % 4 == 0:
            del copy[rng.integers(keep, len(copy)) :]
        else:
            for at in rng.integers(keep, len(copy), rng.integers(1, 6)):
                copy[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        copies.append(bytes(copy))
    return copies


def survives(path: Path, copies: list[bytes]) -> int:
    """Load every copy; return how many are refused.  Anything but SproutError fails the test."""
    refused = 0
    for copy in copies:
        path.write_bytes(copy)
        try:
            frontends.load(path)
        except SproutError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error)
            assert "while reading it" not in str(error), error.__cause__  # the last resort
    return refused


def test_damaged_tflite(tmp_path: Path) -> None:
    copies = mutations(small().finish([0], [5]), 1500, keep=8)
    assert survives(tmp_path / "m.tflite", copies) > 500


# MCUNet


def mcunet(**changes: Any) -> dict[str, Any]:
    """A small MCUNet: a convolution, a block with a residual, a classifier."""

    def conv(
        i: int, o: int, k: int, stride: int = 1, groups: int = 1, x: Any = (0.02, -128)
    ) -> dict[str, Any]:
        weight = RNG.integers(-127, 128, (o, i // groups, k, k)).astype(np.int8)
        params = {"weight": weight, "bias": np.arange(o, dtype=np.int32)}
        params |= {"x_scale": x[0], "x_zero": x[1], "y_scale": 0.02, "y_zero": -128}
        params |= {"w_scales": np.full(o, 0.01, np.float32)}
        geometry = {"in_channel": i, "in_shape": 16, "kernel_size": (k, k), "stride": stride}
        return {**geometry, "groups": groups, "act": None, "params": params}

    add = {"x_scale": 0.02, "x_zero": -128, "y_scale": 0.03, "y_zero": -100}
    block = {
        "pointwise1": conv(8, 16, 1),
        "depthwise": conv(16, 16, 5, groups=16),
        "pointwise2": conv(16, 8, 1),
        "residual": {"params": add},
        "se": None,
    }
    model = {
        "first_conv": conv(3, 8, 3, stride=2, x=(0.0078, 0)),
        "blocks": [block],
        "feature_mix": None,
        "classifier": conv(8, 10, 1, x=(0.03, -100)),
    }
    return {**model, **changes}


def torch_zip(data: bytes, member: str = "archive/data.pkl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_small_mcunet(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = tmp_path / "m.pkl"
    model = mcunet()
    data = pickle.dumps(model, protocol)
    path.write_bytes(torch_zip(data) if zipped else data)
    graph = frontends.load(path)
    well_formed(graph)
    kinds = ["conv", "conv", "depthwise", "conv", "add", "mean", "conv"]
    assert [op.kind for op in graph.ops] == kinds
    assert graph.ops[0].attrs["padding"] == (1, 1, 1, 1)  # unlike TFLite's SAME at stride 2
    weight = model["first_conv"]["params"]["weight"]
    assert np.array_equal(graph.ops[0].params["weight"], weight.transpose(0, 2, 3, 1))
    assert graph.ops[4].inputs[0] is graph.ops[0].outputs[0]


def test_mcunet_variants(tmp_path: Path) -> None:
    """A feature mix, an array in Fortran order, numpy scalars, and a scale that needs a bridge."""
    path = tmp_path / "m.pkl"
    model = mcunet(feature_mix=mcunet()["blocks"][0]["pointwise1"])
    params = model["first_conv"]["params"]
    params["weight"] = np.asfortranarray(params["weight"])
    params["x_scale"], params["x_zero"] = np.float64(0.0078), np.int64(0)
    model["classifier"]["params"]["weight"] = np.ones((10, 16, 1, 1), np.int8)
    for protocol in (2, 5):
        path.write_bytes(torch_zip(pickle.dumps(model, protocol)))
        graph = frontends.load(path)
        well_formed(graph)
        kinds = ["requantize", "conv", "requantize", "mean", "conv"]
        assert [op.kind for op in graph.ops[5:]] == kinds
        want = params["weight"].transpose(0, 2, 3, 1)
        assert np.array_equal(graph.ops[0].params["weight"], want)


def test_mcunet_residual_with_convolution(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    model = mcunet()
    residual = {**mcunet()["classifier"], "groups": 1}
    residual["params"] = {
        **mcunet()["first_conv"]["params"],
        "weight": np.ones((8, 8, 1, 1), np.int8),
        "out_scale": 0.03,
        "out_zero": -100,
        "x_scale": 0.02,
        "x_zero": -128,
    }
    model["blocks"][0]["residual"] = residual
    path.write_bytes(pickle.dumps(model, 2))
    graph = frontends.load(path)
    well_formed(graph)
    add = next(op for op in graph.ops if op.kind == "add")
    assert [t.name for t in add.inputs] == ["block0.residual", "block0.pointwise2"]
    assert add.outputs[0].scale == 0.03


def test_refused_mcunet(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"

    def refused(model: Any) -> str:
        return refusal(path, torch_zip(pickle.dumps(model, 2)))

    model = mcunet()
    model["blocks"][0]["se"] = {"reduce": 1}
    assert "block0 has a squeeze-and-excite part" in refused(model)
    model = mcunet()
    del model["blocks"][0]["depthwise"]["params"]["y_zero"]
    assert "block0.depthwise has no y_zero" in refused(model)
    model = mcunet()
    model["classifier"]["params"]["w_scales"] = np.ones(3, np.float32)
    assert "classifier has 10 biases and 3 scales" in refused(model)
    model = mcunet()
    model["first_conv"]["params"]["weight"] = np.full((8, 3, 3, 3), 200)
    assert "first_conv has a weight that is not int8" in refused(model)
    assert "the file has no first_conv" in refused([1, 2, 3])
    assert "the file has no blocks" in refused({"first_conv": {"groups": 1}})
    assert "no data.pkl" in refusal(path, torch_zip(b"", "x.npy"))


class Evil:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_malicious_pickles_execute_nothing(tmp_path: Path) -> None:
    path, victim = tmp_path / "m.pkl", tmp_path / "victim"
    touch = f"touch {victim}"
    text = b"X" + len(touch).to_bytes(4, "little") + touch.encode()
    attacks = {
        "a reference to": [
            pickle.dumps(Evil(os.system, touch), 2),
            pickle.dumps(mcunet(extra=Evil(os.system, touch)), 4),
            pickle.dumps(Evil(eval, f"open({str(victim)!r}, 'w')"), 2),
            pickle.dumps(Evil(exec, f"open({str(victim)!r}, 'w')"), 5),
            pickle.dumps(Evil(open, str(victim), "w"), 3),
            pickle.dumps(Evil(np.save, str(victim), 1), 2),
            b"\x80\x02cos\nsystem\n(" + text + b"tR.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        ],
        "an array of type O8": [
            pickle.dumps({"first_conv": np.array([Evil(os.system, touch)], object)}, 2)
        ],
        "an array of type V": [pickle.dumps({"first_conv": np.zeros(1, [("a", np.int8)])}, 2)],
        "a call of numpy.ndarray": [pickle.dumps(Evil(np.ndarray, (2,)), 2)],
        "the pickle instruction": [
            b"\x80\x02(" + text + b"ios\nsystem\n.",  # INST
            b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
            b"\x80\x02X\x01\0\0\0aQ.",  # a torch tensor's persistent id
            b"\x80\x02\x82\x01.",  # the extension registry
        ],
        "a damaged pickle": [
            b"\x80\x02cnumpy\nndarray\n}X\x01\0\0\0aK\x01sb.",  # BUILD on a name
            b"\x80\x02]q\0h\0a.",  # a list inside itself
        ],
    }
    for words, pickles in attacks.items():
        for attack in pickles:
            for data in (attack, torch_zip(attack)):
                assert words in refusal(path, data)
            assert not victim.exists()


def test_damaged_pickles(tmp_path: Path) -> None:
    data = pickle.dumps(mcunet(), 2)
    assert survives(tmp_path / "m.pkl", mutations(data, 400, keep=2)) > 100
    assert survives(tmp_path / "m.pkl", mutations(torch_zip(data), 200, keep=4)) > 50


# Heads


def test_fresh_head(tmp_path: Path) -> None:
    old = load(tmp_path, small().finish([0], [5]))
    graph = replace_head(old, ["no", "yes"], 6, seed=3)
    well_formed(graph)
    op = graph.convs[-1]
    assert graph.logits is graph.output is op.outputs[0]
    assert (graph.classes, graph.max_classes, graph.output_shape) == (["no", "yes"], 6, (6,))
    assert (graph.logits.scale, graph.logits.zero_point) == (1 / 8, 0)
    assert op.params["weight"].shape == (6, 1, 1, 120) and not op.params["bias"].any()
    real = op.params["weight"] * op.params["weight_scales"][0]
    assert np.abs(real).max() == pytest.approx(1 / np.sqrt(120), rel=0.05)
    assert old.convs[-1].outputs[0] is old.output and old.max_classes == 3  # untouched
    same, other = (replace_head(old, ["a"], 6, seed=s).convs[-1].params["weight"] for s in (3, 4))
    assert np.array_equal(same[:1], op.params["weight"][:1]) and not np.array_equal(other, same)
    assert not same[1:].any(), "a class that nobody named yet starts with no opinion"


def test_fresh_head_drops_softmax_and_reshape(tmp_path: Path) -> None:
    w = TfliteWriter()
    x, y = w.tensor("x", (1, 1, 1, 8)), w.tensor("y", (1, 1, 1, 4))
    r, p = w.tensor("r", (1, 2, 2)), w.tensor("p", (1, 2, 2), 1 / 256, -128)
    weight = w.tensor("w", (4, 1, 1, 8), 0.1, values=np.ones((4, 1, 1, 8), np.int8))
    w.op("CONV_2D", [x, weight], [y], **CONV)
    w.op("RESHAPE", [y, w.constant("s", [1, 2, 2])], [r])
    w.op("SOFTMAX", [r], [p], Beta=1.0)
    graph = load(tmp_path, w.finish([x], [p]))
    assert [op.kind for op in graph.ops] == ["conv", "reshape", "softmax"]
    fresh = replace_head(graph, ["a", "b"])
    assert [op.kind for op in fresh.ops] == ["conv"]
    assert fresh.max_classes == 5 and x in fresh.source_tensors and y not in fresh.source_tensors


def test_head_refusals(tmp_path: Path) -> None:
    graph = load(tmp_path, small().finish([0], [5]))
    with pytest.raises(SproutError, match="different names"):
        replace_head(graph, ["a", "a"])
    with pytest.raises(SproutError, match="cannot hold the 2 named"):
        replace_head(graph, ["a", "b"], 1)
    pooled = load(tmp_path, one("MEAN", (1, 4, 5, 3), (1, 3), [1, 2], KeepDims=False))
    with pytest.raises(SproutError, match="no new head fits"):
        replace_head(pooled, ["a"])
