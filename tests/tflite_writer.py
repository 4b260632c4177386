"""Writes small .tflite files for tests, with the schema's own builders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import tflite as schema

OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "SOFTMAX": "SoftmaxOptions",
}


class TfliteWriter:
    """A model in the making: ``tensor`` and ``op`` add to it, ``data`` gives the file."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.ops: list[tuple[str, list[int], list[int], dict[str, Any]]] = []

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
                "shape": list(shape),
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
        dtype = {"INT32": np.int32, "INT64": np.int64, "INT8": np.int8, "FLOAT32": np.float32}[
            kind
        ]
        array = np.asarray(values, dtype)
        return self.tensor(name, array.shape, None, 0, kind, array)

    def op(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Add an operator; ``options`` are the fields of its options table (``StrideH=2``)."""
        self.ops.append((kind, list(inputs), list(outputs), options))

    def data(self, inputs: Sequence[int], outputs: Sequence[int], subgraphs: int = 1) -> bytes:
        """Return the file."""
        b = flatbuffers.Builder(1024)
        kinds = sorted({kind for kind, *_ in self.ops})

        def ints(values: Sequence[int], start: Any = None) -> int:
            return int(b.CreateNumpyVector(np.asarray(values, np.int32)))

        def offsets(values: Sequence[int]) -> int:
            b.StartVector(4, len(values), 4)
            for value in reversed(values):
                b.PrependUOffsetTRelative(value)
            return int(b.EndVector())

        buffers = []
        for raw in [b""] + [t["data"] for t in self.tensors]:
            vector = b.CreateByteVector(raw) if raw else None
            schema.BufferStart(b)
            if vector is not None:
                schema.BufferAddData(b, vector)
            buffers.append(schema.BufferEnd(b))
        tensors = []
        for i, t in enumerate(self.tensors):
            name, shape = b.CreateString(t["name"]), ints(t["shape"])
            signature = None if t["signature"] is None else ints(t["signature"])
            quantization = None
            if t["scale"]:
                scale = b.CreateNumpyVector(np.asarray(t["scale"], np.float32))
                zero = b.CreateNumpyVector(np.asarray(t["zero"], np.int64))
                schema.QuantizationParametersStart(b)
                schema.QuantizationParametersAddScale(b, scale)
                schema.QuantizationParametersAddZeroPoint(b, zero)
                schema.QuantizationParametersAddQuantizedDimension(b, t["axis"])
                quantization = schema.QuantizationParametersEnd(b)
            schema.TensorStart(b)
            schema.TensorAddName(b, name)
            schema.TensorAddShape(b, shape)
            if signature is not None:
                schema.TensorAddShapeSignature(b, signature)
            schema.TensorAddType(b, getattr(schema.TensorType, t["kind"]))
            schema.TensorAddBuffer(b, i + 1 if t["data"] else 0)
            if quantization is not None:
                schema.TensorAddQuantization(b, quantization)
            tensors.append(schema.TensorEnd(b))
        ops = []
        for kind, ins, outs, options in self.ops:
            ends = ints(ins), ints(outs)
            table = None
            if kind in OPTIONS:
                getattr(schema, f"{OPTIONS[kind]}Start")(b)
                for field, value in options.items():
                    getattr(schema, f"{OPTIONS[kind]}Add{field}")(b, value)
                table = getattr(schema, f"{OPTIONS[kind]}End")(b)
            schema.OperatorStart(b)
            schema.OperatorAddOpcodeIndex(b, kinds.index(kind))
            schema.OperatorAddInputs(b, ends[0])
            schema.OperatorAddOutputs(b, ends[1])
            if table is not None:
                union = getattr(schema.BuiltinOptions, OPTIONS[kind])
                schema.OperatorAddBuiltinOptionsType(b, union)
                schema.OperatorAddBuiltinOptions(b, table)
            ops.append(schema.OperatorEnd(b))
        codes = []
        for kind in kinds:
            custom = None
            if not hasattr(schema.BuiltinOperator, kind):
                custom, kind = b.CreateString(kind), "CUSTOM"
            code = getattr(schema.BuiltinOperator, kind)
            schema.OperatorCodeStart(b)
            schema.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
            schema.OperatorCodeAddBuiltinCode(b, code)
            if custom is not None:
                schema.OperatorCodeAddCustomCode(b, custom)
            schema.OperatorCodeAddVersion(b, 2)
            codes.append(schema.OperatorCodeEnd(b))
        parts = offsets(tensors), ints(inputs), ints(outputs), offsets(ops)
        schema.SubGraphStart(b)
        schema.SubGraphAddTensors(b, parts[0])
        schema.SubGraphAddInputs(b, parts[1])
        schema.SubGraphAddOutputs(b, parts[2])
        schema.SubGraphAddOperators(b, parts[3])
        graph = schema.SubGraphEnd(b)
        vectors = offsets(codes), offsets([graph] * subgraphs), offsets(buffers)
        schema.ModelStart(b)
        schema.ModelAddVersion(b, 3)
        schema.ModelAddOperatorCodes(b, vectors[0])
        schema.ModelAddSubgraphs(b, vectors[1])
        schema.ModelAddBuffers(b, vectors[2])
        b.Finish(schema.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())
