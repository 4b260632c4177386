"""Sources of samples, in MicroPython: files, and cameras and sensors that fakes stand in for.

The fakes have what the real modules have of what is used: micropython-camera-API's `camera`
(src/modcamera_api.c there), OpenMV's `sensor` and image (py_sensor.c, py_image.c), machine's Pin
and I2S.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from nets import residual_net
from sprout import compile as compiler
from sprout import logmel
from sprout.board import sim
from sprout.engine import Engine
from sprout.schedule import rate_parts
from test_api import members
from test_device import fails, run
from test_frame import a_frame, pixels_of, with_pillow

CAMERA = """
from array import array
class PixelFormat:
    RGB565, YUV422, GRAYSCALE, JPEG = 0, 1, 3, 4
class Camera:
    def __init__(self, pixel_format=PixelFormat.RGB565):
        self._format, self._file = pixel_format, open("frames.bin", "rb")
        self._buffer = array("b", bytes(20 * 14 * 2))
    def get_pixel_format(self):
        return self._format
    def get_pixel_width(self):
        return 20
    def get_pixel_height(self):
        return 14
    def capture(self):
        n = self._file.readinto(self._buffer)
        return memoryview(self._buffer) if n else None
"""
SENSOR = """
RGB565 = GRAYSCALE = 0
file = open("frames.bin", "rb")
class Image:
    def __init__(self, data):
        self._data = data
    def width(self):
        return 20
    def height(self):
        return 14
    def size(self):
        return len(self._data)
    def bytearray(self):
        return self._data
def snapshot():
    return Image(bytearray(file.read(20 * 14 * 2)))
"""
LOAD = "import sprout\nfrom sprout import sources\nnet = sprout.load('net.sprout')\n"


@pytest.fixture
def flash(tmp_path: Path) -> Path:
    """A board's folder with a net of 8 x 8 RGB pixels and four classes, and the fakes."""
    (tmp_path / "net.sprout").write_bytes(
        compiler.compile_graph(residual_net(), "last").to_bytes()
    )
    (tmp_path / "camera.py").write_text(CAMERA)
    (tmp_path / "sensor.py").write_text(SENSOR)
    return tmp_path


def learned(flash: Path, pairs: list[tuple[np.ndarray, int]]) -> str:
    """The digest after learning from these."""
    engine = Engine((flash / "net.sprout").read_bytes())
    for t, (x, label) in enumerate(pairs):
        engine.step(x, label, rate_parts(0.002), 0, t)
    return engine.digest()


LEARN = "for x, label in samples:\n    net.learn(x, label)\nprint(net.digest())\n"


def test_files_of_samples_and_labels(flash: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    y = np.array([0, 3, 1, 2, 2, 0, 1], "<u2")
    (flash / "train.bin").write_bytes(x.tobytes())
    (flash / "train.labels").write_bytes(y.tobytes())
    code = LOAD + "samples = sources.Packed('train', net)\n" + LEARN
    code += "print(len(samples), [label for x, label in samples])\n"
    code += "samples = sources.Packed('train', net, classes='abcd')\n"
    code += "print(*[label for x, label in samples])"
    digest = learned(flash, [(x[i], int(y[i])) for i in range(7)])
    assert run(flash, code) == [digest, "7 [0, 3, 1, 2, 2, 0, 1]", "a d b c c a b"]


@pytest.mark.parametrize("rows", [False, True])
def test_files_of_frames_in_folders(flash: Path, rows: bool) -> None:
    """From each class in turn, as long as it has any; scaled to the net."""
    blob = compiler.compile_graph(residual_net(), "last", rows=rows).to_bytes()
    (flash / "net.sprout").write_bytes(blob)
    order, pairs = [0, 1, 0, 1, 1], []
    for i, label in enumerate(order):
        frame = a_frame((12, 9), "rgb888", label)
        folder = flash / "taught" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.bin").write_bytes(frame)
        pairs.append((with_pillow(pixels_of(frame, (12, 9), "rgb888"), (8, 8, 3)), label))
    (flash / "taught" / "notes.txt").write_text("no class")
    (flash / "taught" / "0" / "notes.txt").write_text("no sample")
    code = LOAD + "frame = sprout.Frame(12, 9, 'rgb888', net)\n"
    code += "samples = sources.Folder('taught', net, frame)\nprint(len(samples))\n"
    code += LEARN.replace("label)", "int(label))")
    assert run(flash, code) == ["5", learned(flash, pairs)]


@pytest.mark.parametrize(
    ("take", "format"),
    [
        ("sources.camera(camera.Camera(), net, mirror=True)", "rgb565be"),
        ("sources.sensor(sensor, net, mirror=True)", "rgb565"),
    ],
)
def test_cameras_and_buttons(flash: Path, take: str, format: str) -> None:
    """What is seen is learned while a button is held, by the button's name."""
    frames = [a_frame((20, 14), format, i) for i in range(4)]
    (flash / "frames.bin").write_bytes(b"".join(frames))
    code = f"""{LOAD}
import camera, sensor
script = [1, 0, 2, 0, 0, 2, 1]
class Pin:
    def __init__(self, name):
        self.name = name
    def value(self):
        return int(script[0] != self.name)
button = sources.buttons({{1: Pin(1), 2: Pin(2)}})
def held():
    name = button()
    script.pop(0)
    return name
samples = sources.Labelled({take}, held, 4)
{LEARN}print(script)
"""
    labels = [1, 2, 2, 1]
    x = [with_pillow(pixels_of(frame, (20, 14), format), (8, 8, 3))[:, ::-1] for frame in frames]
    assert run(flash, code) == [learned(flash, list(zip(x, labels, strict=True))), "[]"]


def test_windows_of_a_sensor(flash: Path) -> None:
    """The last rows of readings; all that there are, and no more."""
    code = """
from sprout import sources
readings = [(i, -i, 100 * i) for i in range(8)]
take = sources.windows(lambda: readings.pop(0) if readings else None, -4, 251, 4, 2)
print([(bytes(x), label) for x, label in sources.Labelled(take, "up")])
"""
    rows = np.array([(i, -i, 100 * i) for i in range(8)])
    pixels = np.clip(rows + 4, 0, 255).astype(np.uint8)
    windows = [(pixels[at : at + 4].tobytes(), "up") for at in (0, 2, 4)]
    assert run(flash, code) == [repr(windows)]


def test_readings_come_at_the_rate_that_was_asked_for(flash: Path) -> None:
    code = """
import time
from sprout import sources
start = time.ticks_us()
take = sources.windows(lambda: (0,), 0, 255, 10, rate=200)
take(), take()
print(time.ticks_diff(time.ticks_us(), start))
"""
    assert 95_000 <= int(run(flash, code)[0]) < 200_000


def test_sounds_become_pictures(flash: Path) -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, 16000).astype("<i2")
    pcm[8000:] //= np.arange(1, 8001)
    (flash / "mic.bin").write_bytes(pcm.tobytes() + b"too short")
    code = LOAD + "samples = sources.Labelled(sources.sounds(open('mic.bin', 'rb'), net), 2)\n"
    code += "for x, label in samples:\n    print(bytes(x).hex(), label)"
    for line, clip in zip(run(flash, code), (pcm[:8000], pcm[8000:]), strict=True):
        pixels, label = line.split()
        x = np.frombuffer(bytes.fromhex(pixels), np.uint8).reshape(8, 8, 3)
        expected = with_pillow(logmel.picture(clip), (8, 8, 3))
        assert label == "2" and np.abs(x.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("sources.Packed('none', net)", "OSError", "none.labels cannot be read ([Errno 2] ENOENT"),
        ("sources.Packed('net', net)", "ValueError", "net.bin has 7 bytes and must have 384, 192"),
        (
            "list(sources.Folder('taught', net))",
            "ValueError",
            "taught/a/0.bin ends before a whole",
        ),
        ("sources.Folder('none', net).__len__()", "OSError", "none cannot be read ([Errno 2]"),
        ("sources.camera(camera.Camera(4), net)", "ValueError", "must have pixel_format="),
        ("sources.camera(camera.Camera(), net)()", "OSError", "the camera gave no frame: try"),
        ("sources.sensor(sensor, net)()", "ValueError", "must have set_pixformat(RGB565 or"),
    ],
)
def test_mistakes_get_a_sentence(flash: Path, code: str, kind: str, message: str) -> None:
    (flash / "net.labels").write_bytes(b"\0" * 4)
    (flash / "net.bin").write_bytes(b"\0" * 7)
    (flash / "frames.bin").write_bytes(b"")
    (flash / "taught" / "a").mkdir(parents=True)
    (flash / "taught" / "a" / "0.bin").write_bytes(b"short")
    raised, text = fails(flash, LOAD + "import camera, sensor\n" + code)
    assert raised == kind and message in text


@pytest.mark.parametrize("module", ["frame", "logmel", "sources"])
def test_stubs_agree_with_the_package(module: str) -> None:
    """Names, arguments, defaults, of functions and of methods."""
    found = []
    for suffix in (".py", ".pyi"):
        body = ast.parse((sim.DEVICE / (module + suffix)).read_text()).body
        classes = {
            node.name: members(node.body) for node in body if isinstance(node, ast.ClassDef)
        }
        found.append((members(body), classes))
    assert found[0] == found[1]
