"""The kernels on some rows of an output: what they give for all of it.

Whoever runs an operator row by row hands a kernel a part of a tensor as if it were one, with a
window whose ``top`` counts from there: below zero where rows before the part are left out.  The
kernels are called by their names in the emulated modules, every part lies between guard pages.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulator import Processor, emulate
from test_kernels_armv6m import Rng, int8, window

WORD, INT = ctypes.c_uint32, ctypes.c_int32
CPUS = ("cortex-m0", "cortex-m4", "rv32")


def structure(name: str, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# The structures of internal.h and kernels.h as these processors have them.
Tensor = structure("Tensor", h=INT, w=INT, c=INT, n=WORD, zero_point=INT, exponent=WORD, data=WORD)
Window = structure(
    "Window", kh=INT, kw=INT, stride_h=INT, stride_w=INT, top=INT, left=INT, taps=INT
)
Output = structure("Output", min=INT, max=INT, zero_point=INT, y=WORD, mask=WORD)
Conv = structure(
    "Conv", x=Tensor, y=Tensor, k=Window, size=WORD, multiplier=WORD, out=Output,
    single=ctypes.c_bool,
)  # fmt: skip
ConvGrad = structure(
    "ConvGrad", g=Tensor, dx=Tensor, k=Window, size=WORD, multiplier=WORD, shift=INT
)


class Rows:
    """Calls kernels with parts of arrays (h, w, c), each in memory of its own."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def tensor(self, array: np.ndarray, zero: int = 0) -> tuple[Any, Any]:
        buffer = self.processor.place("rows", array.tobytes())
        return Tensor(*array.shape, array.size, zero, 0, buffer.address), buffer

    def call(self, kernel: str, argument: Any, records: bytes, *words: int) -> int:
        places = [
            self.processor.place(name, data, writable=False).address
            for name, data in (("argument", bytes(argument)), ("records", records))
        ]
        return self.processor.call_c(kernel, *places, *words)


def parts(rng: Rng, height: int) -> Iterator[tuple[int, int]]:
    """Cut rows 0 to height into some that follow one another; the first cut is none at all."""
    cuts = sorted({0, height, *rng.integers(0, height + 1, 3).tolist()})
    yield from [(0, height), *zip(cuts, cuts[1:], strict=False)]


def shape_of(rng: Rng, deep: bool) -> tuple[Any, Any, Any, list[int], tuple[int, int]]:
    sizes = int(rng.integers(1, 12)), int(rng.integers(1, 10))
    return *window(rng, 0 if deep else 0.5, sizes), sizes


def some_channels(rng: Rng, kernel: tuple[int, int], deep: bool) -> tuple[int, int, int]:
    """Channels of a block and those on the other side, and taps: what a block has room for."""
    taps = kernel[0] * kernel[1]
    n = int(rng.integers(1, 1 + min(32, 640 // taps if deep else 32)))
    return n, n if deep else int(rng.integers(1, 80)), taps


@pytest.fixture(scope="module", params=CPUS)
def processor(request: Any) -> Any:
    return emulate(request.param)


@pytest.mark.parametrize("seed", range(40))
def test_forward(processor: Processor, seed: int) -> None:
    rng, rows, deep = np.random.default_rng(seed), Rows(processor), seed % 2 == 1
    kernel, stride, first, out, sizes = shape_of(rng, deep)
    n, channels, taps = some_channels(rng, kernel, deep)
    x = int8(rng, *sizes, channels)
    weight = int8(rng, n, taps * (1 if deep else channels))
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % 4)))
    heads = np.stack([rng.integers(-9999, 9999, n), rng.integers(2**30, 2**31, n),
                      rng.integers(-12, 2, n), weight.sum(1, int)], 1)  # fmt: skip
    records = b"".join(
        h.tobytes() + w.tobytes() for h, w in zip(heads.astype("<i4"), padded, strict=True)
    )
    low, high = (-128, 127) if rng.random() < 0.5 else (-100, 90)
    zero = int(rng.integers(-128, 128))
    masked = out[1] * n % 8 == 0  # a part's bits start with a byte
    whole = None
    for start, end in parts(rng, out[0]):
        top = first[0] - start * stride[0]
        # All rows of x, or only those that the windows reach.
        begin, stop = max(0, -top), min(sizes[0], end * stride[0] - first[0] + kernel[0])
        if rng.random() < 0.5 or begin >= stop:
            begin, stop = 0, sizes[0]
        x_rows, _ = rows.tensor(x[begin:stop], zero)
        y_rows, y = rows.tensor(np.zeros((end - start, out[1], n), np.int8), 3)
        mask = processor.place("mask", (y_rows.n + 7) // 8)
        output = Output(low, high, 3, y.address, mask.address * masked)
        k = Window(*kernel, *stride, top + begin, first[1], taps)
        size = 16 + padded.shape[1]
        argument = Conv(x_rows, y_rows, k, size, 1, output, False)
        name = "sp_depthwise_block" if deep else "sp_conv_block"
        rows.call(name, argument, records, 0, 0, n)
        result = processor.read(y), processor.read(mask)
        whole = whole or result
        row = out[1] * n
        told = f"{kernel} {stride} {first} {sizes} {channels} {n}: rows {start} to {end}"
        assert result[0] == whole[0][start * row : end * row], told
        if masked:
            assert result[1] == whole[1][start * row // 8 : end * row // 8], told
    processor.check_surroundings()


@pytest.mark.parametrize("seed", range(40))
def test_input_gradients(processor: Processor, seed: int) -> None:
    rng, rows, deep = np.random.default_rng(seed), Rows(processor), seed % 2 == 1
    kernel, stride, first, out, sizes = shape_of(rng, deep)
    n, outputs, taps = some_channels(rng, kernel, deep)
    g = rng.integers(-(2**14), 2**14 + 1, (*out, outputs)).astype(np.int16)
    weight = int8(rng, n, taps * (1 if deep else outputs))
    padded = np.pad(weight, ((0, 0), (16 * deep, -weight.shape[1] % 4)))
    whole, lengths = b"", []
    for start, end in parts(rng, sizes[0]):
        top = first[0] + start
        begin = max(0, -(-(top - kernel[0] + 1) // stride[0]))
        stop = min(out[0], (top + end - start - 1) // stride[0] + 1)
        if rng.random() < 0.5 or begin >= stop:
            begin, stop = 0, out[0]
        g_rows, _ = rows.tensor(g[begin:stop])
        dx_rows, dx = rows.tensor(np.zeros((end - start, sizes[1], n), np.int16))
        k = Window(*kernel, *stride, top - begin * stride[0], first[1], taps)
        argument = ConvGrad(g_rows, dx_rows, k, padded.shape[1], 1, 7)
        name = "sp_depthwise_input_grad_block" if deep else "sp_conv_input_grad_block"
        lengths.append(rows.call(name, argument, padded.tobytes(), 0, n).bit_length())
        whole, row = whole or processor.read(dx), sizes[1] * n * 2
        told = f"{kernel} {stride} {first} {sizes} {outputs} {n}: rows {start} to {end}"
        assert processor.read(dx) == whole[start * row : end * row], told
    assert lengths[0] == max(lengths[1:])
    assert whole.strip(b"\0") or not weight.any() or max(lengths) < 7
    processor.check_surroundings()
