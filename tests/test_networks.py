"""Whole networks, forward: the bytes of LiteRT's reference kernels, in every tensor.

``X.ref.npz`` holds inputs and LiteRT's outputs, ``X.layers.npz`` every tensor of one run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sprout import frontends
from sprout.compile import compile_graph
from sprout.graph import Graph
from sprout.reference import Machine

pytestmark = pytest.mark.shared

NETWORKS = {  # activations among the file's tensors, float ends aside
    "emlearn_mnist_cnn_int8": 7,
    "mcunet_vww_int8": 62,
    "mlperf_kws_ref_model_int8": 14,
    "mlperf_resnet8_cifar10_int8": 17,
    "mlperf_vww_96_int8": 32,
    "tflm_hello_world_int8": 4,
    "tflm_person_detect_int8": 32,
}


def recorded(shared: Path, name: str, what: str) -> np.lib.npyio.NpzFile:
    """Return LiteRT's record; it ran the mended copy of person_detect."""
    name += "_litert" if name == "tflm_person_detect_int8" else ""
    return np.load(shared / "models" / f"{name}.{what}.npz")


def quantized(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Return a sample as int8, float32 as LiteRT's QUANTIZE does it: halves away from zero."""
    if x.dtype == np.int8:
        return x
    ratio = x / np.float32(graph.input.scale)
    rounded = np.copysign(np.floor(np.abs(ratio) + np.float32(0.5)), ratio)
    return np.clip(rounded + graph.input.zero_point, -128, 127).astype(np.int8)


def dequantized(graph: Graph, y: np.ndarray) -> np.ndarray:
    """Return the network's output in the form of the model file."""
    if not graph.output_float:
        return y
    real = (y.astype(np.int32) - graph.output.zero_point) * np.float64(graph.output.scale)
    return real.astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_litert(shared: Path, name: str) -> None:
    graph = frontends.load(shared / "models" / f"{name}.tflite")
    machine = Machine(compile_graph(graph, plan="none"))
    record = recorded(shared, name, "ref")
    for i, (x, want) in enumerate(zip(record["x"], record["y0_ref"], strict=True)):
        machine.set_input(quantized(graph, x))
        y = dequantized(graph, machine.forward()).reshape(want.shape)
        assert y.dtype == want.dtype and np.array_equal(y, want), f"input {i}"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_equals_litert(shared: Path, name: str) -> None:
    graph = frontends.load(shared / "models" / f"{name}.tflite")
    sources = dict(graph.source_tensors)
    blob = compile_graph(graph, plan="none", run_passes=False)  # a pass may fuse tensors away
    rows = {tensor["name"]: row for row, tensor in enumerate(blob.info["tensors"])}
    machine, layers = Machine(blob), recorded(shared, name, "layers")
    x = recorded(shared, name, "ref")["x"][int(layers["input_index"][0])]
    machine.set_input(quantized(graph, x))
    machine.forward()
    compared = 0
    for key in layers.files:
        source = sources.get(int(key[1:4])) if key.startswith("t") else None
        if source is None:  # a constant, or a float end of the model
            continue
        value = source.restore(machine.value(rows[source.tensor.name]))
        assert np.array_equal(value, layers[key].reshape(value.shape)), key
        compared += 1
    assert compared == NETWORKS[name]


@pytest.mark.parametrize(
    ("picture", "scores"), [("person", [-113, 113]), ("no_person", [57, -57])]
)
def test_person_detect_on_its_own_pictures(shared: Path, picture: str, scores: list[int]) -> None:
    """The pictures of TensorFlow Lite Micro's example: int8 already, rows from below."""
    graph = frontends.load(shared / "models/tflm_person_detect_int8.tflite")
    machine = Machine(compile_graph(graph, plan="none"))
    data = (shared / "models" / f"{picture}.bmp").read_bytes()
    pixels = np.frombuffer(data, np.int8, 96 * 96, int.from_bytes(data[10:14], "little"))
    machine.set_input(pixels.reshape(96, 96, 1)[::-1])
    assert machine.forward().reshape(-1).tolist() == scores
