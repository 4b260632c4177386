"""Writes .tflite files: tensors and operators with the schema's own builders, and int8 layers.

    writer = TfliteWriter("what this network is")
    x = writer.activation("input", (1, 96, 96, 3), 1 / 128, 0)
    y = writer.activation("conv", (1, 48, 48, 16), 6 / 255, -128)
    writer.conv2d(x, y, weight, weight_scale, bias, stride=2, relu6=True)
    data = writer.finish([x], [y])

Numbers follow TFLite's int8 specification: convolution weights are symmetric with one scale per
output channel (fully connected ones may have a single scale), a bias is int32 with scale s_x * s_w
and zero point 0, activations have one scale and zero point.  ``tensor`` and ``op`` write anything,
sense or nonsense.  Formats and field names: tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import tflite

# Smallest operator versions that mean "int8", from tensorflow/compiler/mlir/lite/tools/versioning;
# 2 for others.
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1}
OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
}
SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID


class TfliteWriter:
    """Collects tensors and operators in execution order; ``finish`` makes the file."""

    def __init__(self, description: str = "") -> None:
        self.description = description
        self.tensors: list[dict[str, Any]] = []
        self.ops: list[tuple[str, list[int], list[int], dict[str, Any]]] = []

    # Anything

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        scale: float | Sequence[float] | None = 0.1,
        zero_point: int | Sequence[int] = 0,
        kind: str = "INT8",
        values: np.ndarray | None = None,
        axis: int = 0,
        signature: Sequence[int] | None = None,
    ) -> int:
        """Add a tensor and return its number; with ``values`` it is a constant."""
        self.tensors.append(
            {
                "name": name,
                "shape": tuple(shape),
                "scale": [] if scale is None else np.atleast_1d(scale).tolist(),
                "zero": np.atleast_1d(zero_point).tolist(),
                "kind": kind,
                "data": b"" if values is None else np.ascontiguousarray(values).tobytes(),
                "axis": axis,
                "signature": signature,
            }
        )
        return len(self.tensors) - 1

    def constant(self, name: str, values: Any, kind: str = "INT32") -> int:
        """Add an unquantised constant, such as axes or a shape."""
        array = np.asarray(values, np.dtype(kind.lower()))
        return self.tensor(name, array.shape, None, 0, kind, array)

    def op(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator; ``options`` are the fields of its options table (``StrideH=2``)."""
        self.ops.append((kind, list(inputs), list(outputs), options))

    # Layers of an int8 network

    def activation(self, name: str, shape: Sequence[int], scale: float, zero_point: int) -> int:
        """Add an int8 tensor without data; return its number."""
        if not -128 <= zero_point <= 127:
            raise ValueError(f"{name}: zero point {zero_point} is not an int8")
        return self.tensor(name, shape, scale, zero_point)

    def conv2d(
        self, x: int, y: int, weight: np.ndarray, weight_scale: Any, bias: np.ndarray,
        stride: int = 1, relu6: bool = False,
    ) -> None:  # fmt: skip
        """``weight`` int8 [out, height, width, in]; SAME padding."""
        self.op(
            "CONV_2D", self._parameters(x, y, weight, weight_scale, bias, 0), [y],
            Padding=SAME, StrideW=stride, StrideH=stride,
            FusedActivationFunction=_activation(relu6),
            DilationWFactor=1, DilationHFactor=1,
        )  # fmt: skip

    def depthwise_conv2d(
        self, x: int, y: int, weight: np.ndarray, weight_scale: Any, bias: np.ndarray,
        stride: int = 1, relu6: bool = False,
    ) -> None:  # fmt: skip
        """``weight`` int8 [1, height, width, channels]; depth multiplier 1, SAME padding."""
        self.op(
            "DEPTHWISE_CONV_2D", self._parameters(x, y, weight, weight_scale, bias, 3), [y],
            Padding=SAME, StrideW=stride, StrideH=stride, DepthMultiplier=1,
            FusedActivationFunction=_activation(relu6),
            DilationWFactor=1, DilationHFactor=1,
        )  # fmt: skip

    def fully_connected(
        self, x: int, y: int, weight: np.ndarray, weight_scale: Any, bias: np.ndarray
    ) -> None:
        """``weight`` int8 [out, in]; ``x`` is [1, in]."""
        self.op("FULLY_CONNECTED", self._parameters(x, y, weight, weight_scale, bias, 0), [y])

    def add(self, a: int, b: int, y: int) -> None:
        """y = a + b, each with its own scale."""
        self.op("ADD", [a, b], [y])

    def average_pool2d(self, x: int, y: int) -> None:
        """Average over the whole image; ``y`` has the scale and zero point of ``x``."""
        height, width = self.tensors[x]["shape"][1:3]
        self.op(
            "AVERAGE_POOL_2D", [x], [y], Padding=VALID, StrideW=width, StrideH=height,
            FilterWidth=width, FilterHeight=height,
        )  # fmt: skip

    def reshape(self, x: int, y: int) -> None:
        """``y`` is ``x`` with the shape of ``y``."""
        shape = np.array(self.tensors[y]["shape"], np.int32)
        number = self.constant(f"{self.tensors[y]['name']}/shape", shape)
        self.op("RESHAPE", [x, number], [y], NewShape=shape)

    def softmax(self, x: int, y: int) -> None:
        """``y`` must have scale 1/256 and zero point -128."""
        self.op("SOFTMAX", [x], [y], Beta=1.0)

    def _parameters(
        self, x: int, y: int, weight: np.ndarray, weight_scale: Any, bias: np.ndarray, axis: int
    ) -> list[int]:
        """Add the weight and bias of the layer that makes ``y`` out of ``x``; its inputs."""
        name = self.tensors[y]["name"]
        scale = np.asarray(weight_scale, np.float32)
        channels = weight.shape[axis]
        if weight.dtype != np.int8 or bias.dtype != np.int32:
            raise TypeError(
                f"{name}: int8 weights and int32 biases, not {weight.dtype}, {bias.dtype}"
            )
        single = axis == 0 and weight.ndim == 2 and scale.shape == (1,)
        if bias.shape != (channels,) or not (single or scale.shape == (channels,)):
            raise ValueError(f"{name}: {channels} channels need as many weight scales and biases")
        zeros = [0] * scale.size
        w = self.tensor(f"{name}/weight", weight.shape, scale, zeros, "INT8", weight, axis)
        scale = np.float32(self.tensors[x]["scale"][0]) * scale
        b = self.tensor(f"{name}/bias", bias.shape, scale, zeros, "INT32", bias)
        return [x, w, b]

    # The file

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], subgraphs: int = 1) -> bytes:
        """Return the bytes of the file with these input and output tensors."""
        b = flatbuffers.Builder(1 << 19)
        # By the schema buffer 0 is empty: tensors without data point at it.
        buffers, tensors = [_buffer(b, b"")], []
        for t in self.tensors:
            buffer = len(buffers) if t["data"] else 0
            if t["data"]:
                buffers.append(_buffer(b, t["data"]))
            tensors.append(_tensor(b, t, buffer))
        kinds = sorted({kind for kind, *_ in self.ops})
        codes = [_operator_code(b, kind) for kind in kinds]
        ops = [_operator(b, kinds.index(op[0]), *op) for op in self.ops]
        vectors = _vector(b, tensors), _vector(b, ops), _ints(b, inputs), _ints(b, outputs)
        name = b.CreateString("main")
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, vectors[0])
        tflite.SubGraphAddInputs(b, vectors[2])
        tflite.SubGraphAddOutputs(b, vectors[3])
        tflite.SubGraphAddOperators(b, vectors[1])
        tflite.SubGraphAddName(b, name)
        graphs = _vector(b, [tflite.SubGraphEnd(b)] * subgraphs)
        vectors = _vector(b, codes), _vector(b, buffers)
        description = b.CreateString(self.description)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, vectors[0])
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddDescription(b, description)
        tflite.ModelAddBuffers(b, vectors[1])
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())


def _activation(relu6: bool) -> int:
    kinds = tflite.ActivationFunctionType
    return kinds.RELU6 if relu6 else kinds.NONE


def _ints(b: flatbuffers.Builder, values: Sequence[int]) -> int:
    return b.CreateNumpyVector(np.asarray(values, np.int32))


def _vector(b: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def _buffer(b: flatbuffers.Builder, raw: bytes) -> int:
    data = None
    if raw:
        # Interpreters read the data in place, so the schema asks for 16-byte alignment.
        b.StartVector(1, len(raw), 16)
        b.head -= len(raw)
        b.Bytes[b.head : b.head + len(raw)] = raw
        data = b.EndVector()
    tflite.BufferStart(b)
    if data is not None:
        tflite.BufferAddData(b, data)
    return tflite.BufferEnd(b)


def _tensor(b: flatbuffers.Builder, t: dict[str, Any], buffer: int) -> int:
    quantization = None
    if t["scale"]:
        scale = b.CreateNumpyVector(np.asarray(t["scale"], np.float32))
        zero = b.CreateNumpyVector(np.asarray(t["zero"], np.int64))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, scale)
        tflite.QuantizationParametersAddZeroPoint(b, zero)
        tflite.QuantizationParametersAddQuantizedDimension(b, t["axis"])
        quantization = tflite.QuantizationParametersEnd(b)
    name, shape = b.CreateString(t["name"]), _ints(b, t["shape"])
    signature = None if t["signature"] is None else _ints(b, t["signature"])
    tflite.TensorStart(b)
    tflite.TensorAddShape(b, shape)
    if signature is not None:
        tflite.TensorAddShapeSignature(b, signature)
    tflite.TensorAddType(b, getattr(tflite.TensorType, t["kind"]))
    tflite.TensorAddBuffer(b, buffer)
    tflite.TensorAddName(b, name)
    if quantization is not None:
        tflite.TensorAddQuantization(b, quantization)
    return tflite.TensorEnd(b)


def _operator_code(b: flatbuffers.Builder, kind: str) -> int:
    custom = None
    version = VERSIONS.get(kind, 2)
    if not hasattr(tflite.BuiltinOperator, kind):
        custom, kind = b.CreateString(kind), "CUSTOM"
    code = getattr(tflite.BuiltinOperator, kind)
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
    tflite.OperatorCodeAddBuiltinCode(b, code)
    if custom is not None:
        tflite.OperatorCodeAddCustomCode(b, custom)
    tflite.OperatorCodeAddVersion(b, version)
    return tflite.OperatorCodeEnd(b)


def _operator(
    b: flatbuffers.Builder, code: int, kind: str, inputs: list[int], outputs: list[int],
    options: dict[str, Any],
) -> int:  # fmt: skip
    table, name = None, OPTIONS.get(kind)
    if name:
        fields = {
            field: _ints(b, value) if isinstance(value, np.ndarray) else value
            for field, value in options.items()
        }
        getattr(tflite, f"{name}Start")(b)
        for field, value in fields.items():
            getattr(tflite, f"{name}Add{field}")(b, value)
        table = getattr(tflite, f"{name}End")(b)
    ends = _ints(b, inputs), _ints(b, outputs)
    tflite.OperatorStart(b)
    tflite.OperatorAddOpcodeIndex(b, code)
    tflite.OperatorAddInputs(b, ends[0])
    tflite.OperatorAddOutputs(b, ends[1])
    if table is not None:
        tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, name))
        tflite.OperatorAddBuiltinOptions(b, table)
    return tflite.OperatorEnd(b)
