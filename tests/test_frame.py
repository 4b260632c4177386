"""sprout.Frame: Pillow's bytes in MicroPython, the same everywhere, and nothing touched beside.

The frames are scaled by the package and its native module in one MicroPython process, which takes
cases as lines of JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulator import CPUS, emulate
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import Machine
from nets import residual_net
from PIL import Image, ImageOps
from sprout import compile as compiler
from sprout.board import sim
from sprout.engine import Engine
from sprout.schedule import rate_parts
from test_device import HEAP, fails, run
from test_emulated import ALL

from native_modules import build

FORMATS = ("grey", "rgb888", "rgb565", "rgb565be")
SERVER = """
import json, sys, sprout
from binascii import hexlify, unhexlify
class Net:
    name = "net"
    def feed(self, row):
        self.fed += row
while True:
    width, height, format, shape, rows, mirror, flip, frame = json.loads(sys.stdin.readline())
    net = Net()
    net.shape, net.fed = tuple(shape), bytearray()
    net.input = None if rows else bytearray(shape[0] * shape[1] * shape[2])
    out = sprout.Frame(width, height, format, net, mirror, flip)(unhexlify(frame))
    print(hexlify(net.fed if out is None else out).decode())
"""


class Board:
    """MicroPython with the package, waiting for frames."""

    def __init__(self, folder: Path) -> None:
        (folder / "server.py").write_text(SERVER)
        sim.put(folder, {})
        command, environment = sim.command(heap=8 << 20)
        self.process = subprocess.Popen(
            [*command, "server.py"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def scale(self, size: tuple[int, int], format: str, shape: tuple[int, int, int],
              frame: bytes, rows: bool = False, mirror: bool = False, flip: bool = False
              ) -> np.ndarray:  # fmt: skip
        assert self.process.stdin and self.process.stdout
        case = [*size, format, shape, rows, mirror, flip, frame.hex()]
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return np.frombuffer(bytes.fromhex(line), np.uint8).reshape(shape)


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    with tempfile.TemporaryDirectory(prefix="sprout-") as name:
        board = Board(Path(name))
        yield board
        board.process.kill()
        board.process.communicate()


def pixels_of(frame: bytes, size: tuple[int, int], format: str) -> np.ndarray:
    """A frame's pixels, uint8 [height, width, 1 or 3]."""
    width, height = size
    if format in ("grey", "rgb888"):
        return np.frombuffer(frame, np.uint8).reshape(height, width, -1)
    v = np.frombuffer(frame, ">u2" if format == "rgb565be" else "<u2").reshape(height, width)
    r, g, b = v >> 11, v >> 5 & 63, v & 31
    full = [r << 3 | r >> 2, g << 2 | g >> 4, b << 3 | b >> 2]
    return np.stack(full, axis=-1).astype(np.uint8)


def with_pillow(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The largest part from the middle, scaled by Pillow's box filter."""
    height, width = pixels.shape[:2]
    h, w, c = shape
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image = image.convert("L" if c == 1 else "RGB")
    if width * h > height * w:
        part = max(1, (2 * height * w + h) // (2 * h)), height
    else:
        part = width, max(1, (2 * width * h + w) // (2 * w))
    left, top = (width - part[0]) // 2, (height - part[1]) // 2
    image = image.crop((left, top, left + part[0], top + part[1]))
    return np.asarray(image.resize((w, h), Image.Resampling.BOX)).reshape(shape)


def a_frame(size: tuple[int, int], format: str, seed: int = 0) -> bytes:
    n = {"grey": 1, "rgb888": 3}.get(format, 2)
    return np.random.default_rng(seed).bytes(size[0] * size[1] * n)


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


SIDES = st.integers(1, 70)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(SIDES, SIDES), st.sampled_from(FORMATS), st.tuples(SIDES, SIDES),
    st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 999),
)  # fmt: skip
def test_pillow_to_the_level(
    board: Board, size: tuple[int, int], format: str, to: tuple[int, int], c: int, rows: bool,
    mirror: bool, flip: bool, seed: int,
) -> None:  # fmt: skip
    frame, shape = a_frame(size, format, seed), (*to, c)
    scaled = board.scale(size, format, shape, frame, rows, mirror, flip)
    expected = with_pillow(pixels_of(frame, size, format), shape)[:: -1 if flip else 1]
    assert apart(scaled, expected[:, :: -1 if mirror else 1]) == 0


@pytest.mark.parametrize("size", [(160, 120), (200, 200), (320, 240)])
@pytest.mark.parametrize("to", [(96, 96, 3), (80, 80, 1), (128, 128, 3)])
def test_what_cameras_give_and_networks_take(
    board: Board, size: tuple[int, int], to: tuple[int, int, int]
) -> None:
    frame = a_frame(size, "rgb565")
    scaled = board.scale(size, "rgb565", to, frame)
    assert (scaled == with_pillow(pixels_of(frame, size, "rgb565"), to)).all()


def test_the_middle_is_kept_of_what_is_too_wide() -> None:
    """What with_pillow takes is what Pillow itself takes where that is whole pixels."""
    pixels = pixels_of(a_frame((160, 120), "rgb888"), (160, 120), "rgb888")
    box = Image.Resampling.BOX
    expected = np.asarray(ImageOps.fit(Image.fromarray(pixels), (96, 96), box))
    assert (with_pillow(pixels, (96, 96, 3)) == expected).all()


# On emulated processors


CASES = [((37, 23), (16, 20, 3)), ((9, 14), (19, 11, 1))]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], bytes]:
    """The plans that the package makes for the kernel, by case and format."""
    code = f"""
import sprout
class Net:
    input, name = None, "net"
for (width, height), Net.shape in {CASES}:
    for format in {FORMATS}:
        print(bytes(sprout.Frame(width, height, format, Net)._plan).hex())
"""
    lines = iter(run(tmp_path_factory.mktemp("plans"), code))
    return {(i, format): bytes.fromhex(next(lines)) for i in range(2) for format in FORMATS}


def fill(machine: Machine, plan: bytes, frame: bytes, out: int, row: int = 0) -> tuple[int, bytes]:
    place = machine.place
    buffers = place("plan", plan), place("frame", frame, writable=False), place("out", out)
    code = machine.call("fill", *buffers, row)
    machine.check_surroundings()
    return code, machine.read(buffers[2])


@pytest.mark.parametrize("cpu", ALL)
def test_every_processor_gives_the_same_bytes(
    cpu: str, plans: dict[tuple[int, str], bytes]
) -> None:
    for (i, format), plan in plans.items():
        size, shape = CASES[i]
        frame = a_frame(size, format, i)
        expected = with_pillow(pixels_of(frame, size, format), shape)
        machine = emulate(cpu, build.build_frame(CPUS[cpu].arch), edge=("end", "start")[i])
        assert fill(machine, plan, frame, expected.size) == (0, expected.tobytes())
        assert machine.stack_used <= 256
        line = shape[1] * shape[2]
        assert fill(machine, plan, frame, 2 * line, 5) == (0, expected[5:7].tobytes())


MACHINES: dict[str, Machine] = {}
WILD = st.one_of(
    st.integers(0, 9),
    st.integers(65530, 65540),
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(0, 9), st.integers(0, 65535)).map(lambda v: v[0] | v[1] << 16),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("cpu", [cpu for cpu in ALL if cpu.values[0] in ("cortex-m0", "rv32")])
def test_no_plan_leads_outside_the_buffers(cpu: str, data: st.DataObject) -> None:
    """Guard pages lie before or after each buffer; a plan or its size may say anything."""
    size, shape, format = (7, 5), (3, 4, 3), data.draw(st.sampled_from(range(4)))
    bytes_per_pixel = (1, 3, 2, 2)[format]
    spans = [v for i in range(7) for v in (i % 5 | (i % 5 + 1) << 16, 1 << 22)]
    words = [*size, format, *shape, *spans, *[0] * 12]
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 31), WILD), max_size=4)):
        words[at] = value
    cut = data.draw(st.sampled_from([None, None, None, None, -1, -4, -50, -128]))
    plan = np.array(words, np.uint32).tobytes()[:cut]
    frame = bytes(7 * 5 * bytes_per_pixel + data.draw(st.sampled_from([0, 0, 0, -1, 1])))
    if cpu not in MACHINES:
        MACHINES[cpu] = emulate(cpu, build.build_frame(CPUS[cpu].arch))
    out, row = data.draw(st.sampled_from([36, 36, 12, 0, 13, 48])), data.draw(WILD)
    code, _ = fill(MACHINES[cpu], plan, frame, out, row if row < 1 << 30 else 0)
    assert code in (0, -1, -2, -3)


# With real nets


@pytest.mark.parametrize("rows", [False, True])
def test_a_net_learns_from_frames(rows: bool, tmp_path: Path) -> None:
    """What it does with the picture that Pillow makes of each, whole and by rows."""
    blob = compiler.compile_graph(residual_net(), "last", rows=rows).to_bytes()
    (tmp_path / "net.sprout").write_bytes(blob)
    frames = [a_frame((20, 14), "rgb565", i) for i in range(6)]
    (tmp_path / "x.bin").write_bytes(b"".join(frames))
    code = """
import sprout
net = sprout.load("net.sprout")
frame = sprout.Frame(20, 14, "rgb565", net)
buffer = bytearray(20 * 14 * 2)
with open("x.bin", "rb") as file:
    for i in range(6):
        file.readinto(buffer)
        net.learn(frame(buffer), i % 4)
print(net.input is None, net.digest())
"""
    engine = Engine(blob)
    pixels = [pixels_of(frame, (20, 14), "rgb565") for frame in frames]
    for i, p in enumerate(pixels):
        engine.step(with_pillow(p, (8, 8, 3)), i % 4, rate_parts(0.002), 0, i)
    assert run(tmp_path, code) == [f"{rows} {engine.digest()}"]


def test_a_frame_after_one_that_was_cut_short_begins_at_the_top(tmp_path: Path) -> None:
    blob = compiler.compile_graph(residual_net(), "last", rows=True).to_bytes()
    (tmp_path / "net.sprout").write_bytes(blob)
    code = """
import sprout
net = sprout.load("net.sprout")
frame = sprout.Frame(9, 9, "grey", net)
once = net.predict(frame(bytes(range(81))))
net.feed(bytes(3 * 8 * 3))
print(net.predict(frame(bytes(range(81)))) == once)
"""
    assert run(tmp_path, code) == ["True"]


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("(20, 14, 'rgb', net)", "ValueError", "'rgb' is no format: give one of grey, rgb888,"),
        ("(0, 14, 'grey', net)", "ValueError", "a frame of 0 x 14 pixels is none, or"),
        ("(21846, 14, 'rgb888', net)", "ValueError", "longer than 65535 bytes"),
        ("(4, 4, 'grey', net)(bytes(15))", "ValueError", "in grey has 16 bytes, not 15: give"),
        ("(4, 4, 'rgb565', net)(bytes(16))", "ValueError", "in rgb565 has 32 bytes, not 16:"),
        ("(4, 4, 'grey', net)(None)", "ValueError", "a frame is bytes, bytearray, memoryview"),
    ],
)
def test_mistakes_get_a_sentence(code: str, kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.sprout").write_bytes(compiler.compile_graph(residual_net()).to_bytes())
    start = "import sprout\nnet = sprout.load('net.sprout')\nsprout.Frame"
    raised, text = fails(tmp_path, start + code)
    assert raised == kind and message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "sprout_frame.mpy is missing: this firmware takes .mpy 6.3 for x64, copy "
               "sprout_frame_x64.mpy to the board as lib/sprout_frame.mpy"),
        ("ABI = 2", "sprout_frame.mpy is of another release than this package: this firmware"),
        ("armv6m", "sprout_frame.mpy is not for this board: this firmware takes .mpy 6.3 for x64"),
    ],
)  # fmt: skip
def test_says_which_module_the_board_needs(
    content: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "net.sprout").write_bytes(compiler.compile_graph(residual_net()).to_bytes())
    sim.put(tmp_path, {})
    library = (tmp_path / "lib").resolve()
    (tmp_path / "lib").unlink()
    shutil.copytree(library, tmp_path / "lib")
    module = tmp_path / "lib" / "sprout_frame.mpy"
    module.unlink()
    if content == "armv6m":
        shutil.copy(build.PREBUILT / "sprout_frame_armv6m.mpy", module)
    elif content:
        module.with_suffix(".py").write_text(content)
    code = "import sprout\nnet = sprout.load('net.sprout')\nsprout.Frame(4, 4, 'grey', net)"
    (tmp_path / "main.py").write_text(code)
    command, environment = sim.command(heap=HEAP)
    done = subprocess.run([*command, "main.py"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert f"ImportError: {message}" in done.stdout + done.stderr
