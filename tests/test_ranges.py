"""Convolutions of ranges of output rows: the bytes of the whole output, on Xtensa.

A range is a view: y starts at its first row and has only its rows, and the window's top is less by
the rows of x that lie before, which makes it negative.  The kernels of a processor are compiled
with an operator around them that asks for the output so, in ranges of all sizes; test_rows.py has
the other processors, whose functions can be called by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_kernels_armv6m as cases
from emulator import CPUS, emulate
from machine import Machine
from test_emulated import emulated_cpu

from native_modules import build

KINDS = ("conv", "depthwise")
STACK = cases.STACK + 256  # what is around the kernels takes some too
AROUND = """\
#define sp_{kind}_block {kind}_kernel
#include "{source}"
#undef sp_{kind}_block

{kind}_block_t sp_{kind}_block;

void sp_{kind}_block(const {kind}_t *c, const uint8_t *records, const int32_t *bias,
                     uint32_t first, uint32_t n) {{
    if (c->out.mask) {{ // whose rows begin within bytes
        {kind}_kernel(c, records, bias, first, n);
        return;
    }}
    int32_t rows = 1;
    for (int32_t row = 0; row < c->y.h; row += rows++) {{
        {kind}_t part = *c;
        part.y.h = min32(rows, c->y.h - row);
        part.y.data = (int8_t *)c->y.data + at(&c->y, row, 0);
        part.out.y = part.y.data;
        part.k.top = c->k.top - row * c->k.stride_h;
        {kind}_kernel(&part, records, bias, first, n);
    }}
}}
"""


@pytest.fixture(scope="module", params=[emulated_cpu("xtensa")])
def processor(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A processor whose convolutions go by ranges of rows."""
    arch = CPUS[request.param].arch
    folder: Path = tmp_path_factory.mktemp(arch)
    sources = build.module_sources(arch)
    for kind in KINDS:
        pattern = f"\nvoid sp_{kind}_block(const"
        source = next(file for file in sources if pattern in file.read_text())
        around = folder / f"rows_{kind}.c"
        around.write_text(AROUND.format(kind=kind, source=source))
        sources[sources.index(source)] = around
    return emulate(request.param, build.build_module(sources, arch, folder / "rows.mpy"))


@pytest.mark.parametrize("seed", range(20))
def test_convolution(processor: Machine, seed: int) -> None:
    cases.test_convolution(processor, seed + 100, STACK)


@pytest.mark.parametrize("seed", range(20))
def test_depthwise(processor: Machine, seed: int) -> None:
    cases.test_depthwise(processor, seed + 100, STACK)
