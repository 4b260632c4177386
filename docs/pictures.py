"""Draws the pictures of docs/ with Sprout's own tools, when Sphinx builds the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sprout import blob as blobs
from sprout import inspect, learning, places
from sprout.compile import compile_model
from sprout.data import Samples

FOLDER = Path(__file__).resolve().parent / "pictures"
PLANS = ("none", "last", "b6,20", "full")


def draw(folder: Path) -> None:
    """Write every picture into a folder."""
    folder.mkdir(exist_ok=True)
    sizes = {}
    for plan in PLANS:
        blob = compile_model(
            places.MODELS / "person.tflite", plan=plan, classes=["across", "down"]
        )
        sizes[plan] = inspect.describe(blob, blob.to_bytes())["memory"]
        path = folder / f"{plan.split(',')[0]}.sprout"
        path.write_bytes(blob.to_bytes())
    (folder / "arena.png").write_bytes(
        inspect.picture(blobs.read((folder / "b6.sprout").read_bytes()))
    )
    draw_sizes(sizes, folder / "plans.png")
    draw_curves(folder)


def draw_sizes(sizes: dict[str, dict[str, Any]], path: Path) -> None:
    """RAM by part for each plan."""
    figure = inspect.new_figure(7, 2.6)
    axes = figure.add_subplot()
    left = np.zeros(len(PLANS))
    for part in inspect.RAM_PARTS:
        width = np.array([sizes[plan][part] / 1024 for plan in PLANS])
        axes.barh(PLANS, width, left=left, label=part)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel("RAM, KB")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_curves(folder: Path) -> None:
    """Loss while learning lines, with the head alone and with more."""
    figure = inspect.new_figure(7, 3)
    axes = figure.add_subplot()
    for plan in ("last", "b6,20"):
        path = folder / f"{plan.split(',')[0]}.sprout"
        shape = blobs.read(path.read_bytes())
        tensor = shape.tensors[shape.input]
        samples = [lines(seed, (tensor.h, tensor.w, tensor.c)) for seed in (0, 1)]
        result = learning.learn(path, *samples, rate=0.02)
        seen, loss, _ = np.array(result["curve"]).T
        smooth = np.convolve(loss, np.ones(5) / 5, "valid")
        said = f"{plan}: {result['accuracy_before']:.0%} → {result['accuracy_after']:.0%}"
        axes.plot(seen[4:], smooth, label=said)
    axes.set_xlabel("pictures learned from, each once")
    axes.set_ylabel("loss before the step (mean of 5)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(folder / "curves.png", dpi=110)


def lines(seed: int, shape: tuple[int, int, int], n: int = 80) -> Samples:
    """The pictures of README's five minutes: lines across and lines down, in noise."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 128, (n, 48, 48, 1), np.uint8)
    for picture in x[0::2]:
        picture[rng.integers(8) :: 8] += 120
    for picture in x[1::2]:
        picture[:, rng.integers(8) :: 8] += 120
    return Samples(x, np.arange(n) % 2, shape)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: draw(FOLDER))
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    draw(FOLDER)
