"""Write fully int8 .tflite files: a thin layer over the flatbuffer builders of ``tflite``.

    writer = TfliteWriter("what this network is")
    x = writer.activation("input", (1, 96, 96, 3), 1 / 128, 0)
    y = writer.activation("conv", (1, 48, 48, 16), 6 / 255, -128)
    writer.conv2d(x, y, weight, weight_scale, bias, stride=2, relu6=True)
    data = writer.finish([x], [y])

Numbers follow TFLite's int8 specification: convolution weights are symmetric with one scale per
output channel (fully connected ones may have a single scale), a bias is int32 with scale s_x * s_w
and zero point 0, activations have one scale and zero point.
Formats and field names: tensorflow/lite/schema/schema.fbs.
"""

import flatbuffers
import numpy as np
import tflite

# Smallest operator versions that mean "int8", from tensorflow/compiler/mlir/lite/tools/versioning.
VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "RESHAPE": 1,
    "SOFTMAX": 2,
}
TYPES = {
    np.dtype(np.int8): tflite.TensorType.INT8,
    np.dtype(np.int32): tflite.TensorType.INT32,
}


class TfliteWriter:
    """Collects tensors and operators in execution order; ``finish`` makes the file."""

    def __init__(self, description):
        self.description = description
        self.tensors = []  # (name, shape, dtype, scales, zero point, axis, data)
        self.operators = []  # (name, inputs, outputs, function that builds the options)

    def _tensor(self, name, shape, dtype, scales=(), zero_point=0, axis=0, data=None):
        self.tensors.append(
            (name, tuple(shape), np.dtype(dtype), np.atleast_1d(scales), zero_point, axis, data)
        )
        return len(self.tensors) - 1

    def activation(self, name, shape, scale, zero_point):
        """Add an int8 tensor without data; return its index."""
        if not -128 <= zero_point <= 127:
            raise ValueError(f"{name}: zero point {zero_point} is not an int8")
        return self._tensor(name, shape, np.int8, scale, zero_point)

    def _weights(self, x, y, weight, weight_scale, bias, axis):
        """Add the weight and bias tensors of the operator that makes tensor ``y`` out of ``x``."""
        name, x_scale = self.tensors[y][0], self.tensors[x][3]
        weight_scale = np.asarray(weight_scale, np.float32)
        channels = weight.shape[axis]
        if weight.dtype != np.int8 or bias.dtype != np.int32:
            raise TypeError(
                f"{name}: int8 weights and int32 biases, not {weight.dtype}, {bias.dtype}"
            )
        single = axis == 0 and weight.ndim == 2 and weight_scale.shape == (1,)
        if bias.shape != (channels,) or not (single or weight_scale.shape == (channels,)):
            raise ValueError(f"{name}: {channels} channels need as many weight scales and biases")
        w = self._tensor(f"{name}/weight", weight.shape, np.int8, weight_scale, 0, axis, weight)
        scale = np.float32(x_scale) * weight_scale
        b = self._tensor(f"{name}/bias", bias.shape, np.int32, scale, 0, 0, bias)
        return [x, w, b]

    def conv2d(self, x, y, weight, weight_scale, bias, stride=1, relu6=False):
        """``weight`` int8 [out, height, width, in]; SAME padding."""

        def options(b):
            tflite.Conv2DOptionsStart(b)
            tflite.Conv2DOptionsAddPadding(b, tflite.Padding.SAME)
            tflite.Conv2DOptionsAddStrideW(b, stride)
            tflite.Conv2DOptionsAddStrideH(b, stride)
            tflite.Conv2DOptionsAddFusedActivationFunction(b, _activation(relu6))
            tflite.Conv2DOptionsAddDilationWFactor(b, 1)
            tflite.Conv2DOptionsAddDilationHFactor(b, 1)
            return tflite.BuiltinOptions.Conv2DOptions, tflite.Conv2DOptionsEnd(b)

        inputs = self._weights(x, y, weight, weight_scale, bias, 0)
        self.operators.append(("CONV_2D", inputs, [y], options))

    def depthwise_conv2d(self, x, y, weight, weight_scale, bias, stride=1, relu6=False):
        """``weight`` int8 [1, height, width, channels]; depth multiplier 1, SAME padding."""

        def options(b):
            tflite.DepthwiseConv2DOptionsStart(b)
            tflite.DepthwiseConv2DOptionsAddPadding(b, tflite.Padding.SAME)
            tflite.DepthwiseConv2DOptionsAddStrideW(b, stride)
            tflite.DepthwiseConv2DOptionsAddStrideH(b, stride)
            tflite.DepthwiseConv2DOptionsAddDepthMultiplier(b, 1)
            tflite.DepthwiseConv2DOptionsAddFusedActivationFunction(b, _activation(relu6))
            tflite.DepthwiseConv2DOptionsAddDilationWFactor(b, 1)
            tflite.DepthwiseConv2DOptionsAddDilationHFactor(b, 1)
            return tflite.BuiltinOptions.DepthwiseConv2DOptions, tflite.DepthwiseConv2DOptionsEnd(
                b
            )

        inputs = self._weights(x, y, weight, weight_scale, bias, 3)
        self.operators.append(("DEPTHWISE_CONV_2D", inputs, [y], options))

    def fully_connected(self, x, y, weight, weight_scale, bias):
        """``weight`` int8 [out, in]; ``x`` is [1, in]."""

        def options(b):
            tflite.FullyConnectedOptionsStart(b)
            return tflite.BuiltinOptions.FullyConnectedOptions, tflite.FullyConnectedOptionsEnd(b)

        inputs = self._weights(x, y, weight, weight_scale, bias, 0)
        self.operators.append(("FULLY_CONNECTED", inputs, [y], options))

    def add(self, a, c, y):
        """y = a + c, each with its own scale."""

        def options(b):
            tflite.AddOptionsStart(b)
            return tflite.BuiltinOptions.AddOptions, tflite.AddOptionsEnd(b)

        self.operators.append(("ADD", [a, c], [y], options))

    def average_pool2d(self, x, y):
        """Average over the whole image; ``y`` has the scale and zero point of ``x``."""
        height, width = self.tensors[x][1][1:3]

        def options(b):
            tflite.Pool2DOptionsStart(b)
            tflite.Pool2DOptionsAddPadding(b, tflite.Padding.VALID)
            tflite.Pool2DOptionsAddStrideW(b, width)
            tflite.Pool2DOptionsAddStrideH(b, height)
            tflite.Pool2DOptionsAddFilterWidth(b, width)
            tflite.Pool2DOptionsAddFilterHeight(b, height)
            return tflite.BuiltinOptions.Pool2DOptions, tflite.Pool2DOptionsEnd(b)

        self.operators.append(("AVERAGE_POOL_2D", [x], [y], options))

    def reshape(self, x, y):
        """``y`` is ``x`` with the shape of ``y``."""
        shape = self.tensors[y][1]
        wanted = np.array(shape, np.int32)
        s = self._tensor(f"{self.tensors[y][0]}/shape", wanted.shape, np.int32, data=wanted)

        def options(b):
            new_shape = b.CreateNumpyVector(wanted)
            tflite.ReshapeOptionsStart(b)
            tflite.ReshapeOptionsAddNewShape(b, new_shape)
            return tflite.BuiltinOptions.ReshapeOptions, tflite.ReshapeOptionsEnd(b)

        self.operators.append(("RESHAPE", [x, s], [y], options))

    def softmax(self, x, y):
        """``y`` must have scale 1/256 and zero point -128."""

        def options(b):
            tflite.SoftmaxOptionsStart(b)
            tflite.SoftmaxOptionsAddBeta(b, 1.0)
            return tflite.BuiltinOptions.SoftmaxOptions, tflite.SoftmaxOptionsEnd(b)

        self.operators.append(("SOFTMAX", [x], [y], options))

    def finish(self, inputs, outputs):
        """Return the bytes of the .tflite file with these input and output tensors."""
        b = flatbuffers.Builder(1 << 19)
        # By the schema buffer 0 is empty: tensors without data point at it.
        buffers, tensors = [_buffer(b, None)], []
        for name, shape, dtype, scales, zero_point, axis, data in self.tensors:
            index = 0
            if data is not None:
                index = len(buffers)
                buffers.append(_buffer(b, np.ascontiguousarray(data, dtype)))
            quantization = _quantization(b, scales, zero_point, axis) if len(scales) else None
            label = b.CreateString(name)
            dims = b.CreateNumpyVector(np.array(shape, np.int32))
            tflite.TensorStart(b)
            tflite.TensorAddShape(b, dims)
            tflite.TensorAddType(b, TYPES[dtype])
            tflite.TensorAddBuffer(b, index)
            tflite.TensorAddName(b, label)
            if quantization is not None:
                tflite.TensorAddQuantization(b, quantization)
            tensors.append(tflite.TensorEnd(b))

        kinds = sorted({name for name, *_ in self.operators})
        codes = [_operator_code(b, kind) for kind in kinds]
        operators = []
        for name, ins, outs, options in self.operators:
            kind, table = options(b)
            ins = b.CreateNumpyVector(np.array(ins, np.int32))
            outs = b.CreateNumpyVector(np.array(outs, np.int32))
            tflite.OperatorStart(b)
            tflite.OperatorAddOpcodeIndex(b, kinds.index(name))
            tflite.OperatorAddInputs(b, ins)
            tflite.OperatorAddOutputs(b, outs)
            tflite.OperatorAddBuiltinOptionsType(b, kind)
            tflite.OperatorAddBuiltinOptions(b, table)
            operators.append(tflite.OperatorEnd(b))

        tensors, operators = _vector(b, tensors), _vector(b, operators)
        ins = b.CreateNumpyVector(np.array(inputs, np.int32))
        outs = b.CreateNumpyVector(np.array(outputs, np.int32))
        name = b.CreateString("main")
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddInputs(b, ins)
        tflite.SubGraphAddOutputs(b, outs)
        tflite.SubGraphAddOperators(b, operators)
        tflite.SubGraphAddName(b, name)
        graphs = _vector(b, [tflite.SubGraphEnd(b)])
        codes, buffers = _vector(b, codes), _vector(b, buffers)
        description = b.CreateString(self.description)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, codes)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddDescription(b, description)
        tflite.ModelAddBuffers(b, buffers)
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())


def _activation(relu6):
    kinds = tflite.ActivationFunctionType
    return kinds.RELU6 if relu6 else kinds.NONE


def _vector(b, offsets):
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def _buffer(b, array):
    data = None
    if array is not None:
        # Interpreters read the data in place, so the schema asks for 16-byte alignment.
        raw = array.tobytes()
        b.StartVector(1, len(raw), 16)
        b.head -= len(raw)
        b.Bytes[b.head : b.head + len(raw)] = raw
        data = b.EndVector()
    tflite.BufferStart(b)
    if data is not None:
        tflite.BufferAddData(b, data)
    return tflite.BufferEnd(b)


def _quantization(b, scales, zero_point, axis):
    scale = b.CreateNumpyVector(np.asarray(scales, np.float32))
    zero = b.CreateNumpyVector(np.full(len(scales), zero_point, np.int64))
    tflite.QuantizationParametersStart(b)
    tflite.QuantizationParametersAddScale(b, scale)
    tflite.QuantizationParametersAddZeroPoint(b, zero)
    tflite.QuantizationParametersAddQuantizedDimension(b, axis)
    return tflite.QuantizationParametersEnd(b)


def _operator_code(b, kind):
    code = getattr(tflite.BuiltinOperator, kind)
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
    tflite.OperatorCodeAddBuiltinCode(b, code)
    tflite.OperatorCodeAddVersion(b, VERSIONS[kind])
    return tflite.OperatorCodeEnd(b)
