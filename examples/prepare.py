"""Make what an example needs on its board, and run it on the simulated one.

    .venv/bin/python examples/prepare.py gestures [--board pico] [--to FOLDER]

With --to the files go into a folder, to be copied to a board; without, the example runs here, in
MicroPython with that board's heap.  The recordings are in ../shared/data, which is no part of the
project.  What a board knows at first is a checkpoint that the host trained.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DATA = ROOT.parent / "shared" / "data"
sys.path[:0] = [str(ROOT / "host"), str(ROOT / "tools")]

from sprout import learning, logmel  # noqa: E402
from sprout.board import sim  # noqa: E402
from sprout.compile import compile_model  # noqa: E402
from sprout.data import Samples  # noqa: E402
from sprout.graph import SproutError  # noqa: E402
from tflite_writer import TfliteWriter  # noqa: E402

PERSON, MOTION = ROOT / "models" / "person.tflite", ROOT / "models" / "motion.tflite"
GESTURES = ("other", "squat", "lunge", "jumpingjack")  # the network has never met the last
LOW, HIGH = -32768, 32767  # readings that become pixels 0 and 255
SPEAKER = "nicolas"  # the new one
OBJECTS = ("automobile", "horse", "frog")  # the last is new
SEED = 0


def images(name: str, limit: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures uint8 [N, H, W, 3], labels and classes of a file of JPEGs."""
    with np.load(DATA / f"{name}.npz") as file:
        ends, jpeg, y = file["offsets"], file["jpeg"], file["y"][:limit].astype(int)
        classes = [str(one) for one in file["classes"]]
    streams = [io.BytesIO(jpeg[ends[i] : ends[i + 1]].tobytes()) for i in range(len(y))]
    return np.stack([np.asarray(Image.open(s).convert("RGB")) for s in streams]), y, classes


def put(to: Path, name: str, x: np.ndarray, y: np.ndarray) -> None:
    """Write samples as sources.Packed reads them."""
    (to / f"{name}.bin").write_bytes(np.ascontiguousarray(x).tobytes())
    (to / f"{name}.labels").write_bytes(np.ascontiguousarray(y, "<u2").tobytes())


def teach(
    to: Path, model: Path, plan: str, classes: Sequence[str], x: np.ndarray, y: np.ndarray,
    rate: float, epochs: int = 1, input_range: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Compile a model for a board, with room for more classes, and train it for what it knows.

    Writes net.sprout and net.ckpt.
    """
    blob = compile_model(model, plan, classes, input_range=input_range)
    path = to / "net.sprout"
    path.write_bytes(blob.to_bytes())
    shape = blob.tensors[blob.input].shape
    learning.learn(
        path, Samples(x, y, shape), Samples(x[:1], y[:1], shape), rate=rate, epochs=epochs,
        seed=SEED, save=to / "net.ckpt",
    )  # fmt: skip


def person(to: Path) -> None:
    """Photographs as a small grey camera sees them in the dark: 48 x 48 pixels, a quarter of the
    light, noise.  No photograph was used to train models/person.tflite."""
    x, y, _ = images("person_test", 500)
    rng = np.random.default_rng(SEED)
    grey = [Image.fromarray(one).convert("L").resize((48, 48), Image.Resampling.BOX) for one in x]
    dim = np.stack([np.asarray(one) for one in grey]) / 4 + rng.normal(0, 5, (len(x), 48, 48))
    x = np.clip(dim, 0, 255).astype(np.uint8)
    put(to, "train", x[:300], y[:300])
    put(to, "test", x[300:], y[300:])
    (to / "net.sprout").write_bytes(compile_model(PERSON, "b9,15,18,20,21").to_bytes())


def button(to: Path) -> None:
    """Two kinds of objects that the board knows and one that it does not, 32 x 32 pixels, RGB."""
    x, y, classes = images("cifar10_train", 4000)
    parts = [x[y == classes.index(name)] for name in OBJECTS]
    known = np.concatenate([part[:150] for part in parts[:2]])
    teach(to, PERSON, "b9,15,18,20,21", OBJECTS[:2], known, np.repeat([0, 1], 150), 0.02)
    rng = np.random.default_rng(SEED)
    for name, first, n in (("train", 150, 60), ("test", 210, 60)):
        order = rng.permutation(3 * n)
        x = np.concatenate([part[first : first + n] for part in parts])
        put(to, name, x[order], np.repeat([0, 1, 2], n)[order])


def recordings() -> tuple[list[tuple[np.ndarray, int]], list[tuple[np.ndarray, int]]]:
    """Recordings at 25 Hz, int16 [N, 3], with the number of their gesture: to learn and to test.

    Of each gesture every third is for the test.  Those below 64 readings are left out.
    """
    with np.load(DATA / "motion.npz") as file:
        ends, names, xyz = file["offsets"], file["classes"][file["y"]], file["xyz"]
    parts: tuple[list[tuple[np.ndarray, int]], ...] = [], []
    for label, name in enumerate(GESTURES):
        long = [i for i in np.flatnonzero(names == name) if ends[i + 1] - ends[i] >= 128]
        for n, i in enumerate(long):
            parts[n % 3 == 2].append((xyz[ends[i] : ends[i + 1] : 2], label))
    return parts[0], parts[1]


def windows(recording: np.ndarray, hop: int = 64, n: int = 64) -> np.ndarray:
    """What sources.windows() makes of a recording: pixels, uint8 [N, n, 1, 3]."""
    pixels = (recording.astype(np.int32) - LOW) * 255 // (HIGH - LOW)
    views = np.lib.stride_tricks.sliding_window_view(pixels, n, axis=0)[::hop]  # [N, axes, n]
    return views.transpose(0, 2, 1)[:, :, None].astype(np.uint8)


def gestures(to: Path) -> None:
    """Readings of an accelerometer, each with its gesture: three int16 and a byte."""
    learn, test = recordings()
    known = [(windows(xyz), label) for xyz, label in learn if label < 3]
    x = np.concatenate([w for w, _ in known])
    y = np.concatenate([np.full(len(w), label) for w, label in known])
    reach = -1, 127 / 128  # pixel - 128
    teach(to, MOTION, "b5,5,6,7,8", GESTURES[:3], x, y, 0.01, input_range=reach)
    row = np.dtype([("xyz", "<i2", 3), ("label", "u1")])
    for name, part in (("train", learn), ("test", test)):
        order = np.random.default_rng(SEED).permutation(len(part))
        with (to / f"{name}.bin").open("wb") as file:
            for xyz, label in (part[i] for i in order):
                rows = np.zeros(len(xyz) // 64 * 64, row)  # whole windows
                rows["xyz"], rows["label"] = xyz[: len(rows)], label
                file.write(rows.tobytes())


def digits(to: Path) -> None:
    """Spoken digits: the board knows three speakers, and is spoken to by a fourth."""
    with np.load(DATA / "spoken_digits.npz") as file:
        pcm, ends, y = file["pcm"], file["offsets"], file["y"].astype(int)
        new, take = file["speaker"] == SPEAKER, file["take"]
    clips = [pcm[ends[i] : ends[i + 1]] for i in range(len(y))]
    known = np.flatnonzero(~new)
    x = np.stack([logmel.picture(clips[i]) for i in known])
    model = to / "untrained.tflite"
    untrained(model)
    teach(to, model, "full", [str(digit) for digit in range(10)], x, y[known], 0.05, 4)
    model.unlink()
    for name, part in (("train", new & (take < 30)), ("test", new & (take >= 30))):
        order = np.random.default_rng(SEED).permutation(np.flatnonzero(part))
        with (to / f"{name}.bin").open("wb") as file:
            for i in order:  # a second each, as a microphone records it
                silence = 8000 - len(clips[i])
                padded = np.pad(clips[i], (silence // 2, silence - silence // 2))
                file.write(padded.astype("<i2").tobytes())
        (to / f"{name}.labels").write_bytes(y[order].astype("<u2").tobytes())


def untrained(path: Path) -> None:
    """Write a small network for pictures of 32 x 32 grey pixels, with random weights.

    409 216 multiplications; He's initial weights (*Delving Deep into Rectifiers*, 2015).
    """
    rng = np.random.default_rng(SEED)
    writer = TfliteWriter("Sprout: a small network to be trained from scratch")
    x = source = writer.activation("input", (1, 32, 32, 1), 1 / 128, 0)
    side, before = 32, 1
    for i, (kernel, channels, stride) in enumerate(
        [(3, 12, 2), (3, 24, 2), (3, 48, 2), (1, 64, 1)]
    ):
        side //= stride
        deviation = np.sqrt(2 / (kernel * kernel * before))
        weight = rng.normal(0, deviation, (channels, kernel, kernel, before))
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        y = writer.activation(f"conv{i}", (1, side, side, channels), 4 / 255, -128)
        weight = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        writer.conv2d(x, y, weight, scale, np.zeros(channels, np.int32), stride, relu6=True)
        x, before = y, channels
    pooled = writer.activation("pooled", (1, 1, 1, before), 4 / 255, -128)
    writer.average_pool2d(x, pooled)
    features = writer.activation("features", (1, before), 4 / 255, -128)
    writer.reshape(pooled, features)
    weight, scale = rng.integers(-127, 128, (10, before)).astype(np.int8), np.array([1 / 512])
    logits = writer.activation("logits", (1, 10), 16 / 255, 0)
    writer.fully_connected(features, logits, weight, scale, np.zeros(10, np.int32))
    path.write_bytes(writer.finish([source], [logits]))


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "person": person, "button": button, "gestures": gestures, "digits": digits,
}  # fmt: skip


def prepare(name: str, to: Path) -> None:
    """Write the files of an example into a folder; SproutError where the recordings are absent."""
    if not DATA.is_dir():
        raise SproutError(f"The recordings for {name} are not here: put them into {DATA}.")
    EXAMPLES[name](to)
    (to / "main.py").write_bytes((HERE / f"{name}.py").read_bytes())


def run(name: str, board: str = "pico") -> int:
    """Prepare and run an example on a simulated board; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="sprout-") as folder:
        prepare(name, Path(folder))
        sim.put(Path(folder), {})
        command, environment = sim.command(board)
        command = [*command, "main.py"]
        return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Prepare an example, and run it.")
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--board", default="pico", help="whose heap it gets; default pico")
    parser.add_argument("--to", type=Path, help="write the files there and run nothing")
    options = parser.parse_args()
    try:
        if not options.to:
            return run(options.example, options.board)
        options.to.mkdir(parents=True, exist_ok=True)
        prepare(options.example, options.to)
    except SproutError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
