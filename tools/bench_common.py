"""What the benches share: data, networks, integer learning, output.

Integer learning here is ``sprout.engine.Engine``, the C core that the boards run, with the frozen
part of a network run once for each image (``sprout.replay``, checked by ``check_replay``).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BUILD = ROOT / "build"
sys.path[:0] = [str(ROOT / "host"), str(ROOT)]

from sprout import compile as compiler  # noqa: E402
from sprout import frontends, passes  # noqa: E402
from sprout import plan as plans  # noqa: E402
from sprout import replay as replays  # noqa: E402
from sprout.blob import Blob  # noqa: E402
from sprout.cache import Cache  # noqa: E402
from sprout.engine import LEARN, Engine  # noqa: E402
from sprout.frontends.head import replace_head  # noqa: E402
from sprout.graph import Graph  # noqa: E402
from sprout.replay import Replay  # noqa: E402
from sprout.schedule import sample_order  # noqa: E402

Array = np.ndarray
MODEL = SHARED / "models" / "mcunet-5fps.pkl"
PLAN = "b20,24:1/4,27:1/2,30:1/2"
SIZE = 128


# ------------------------------------------------------------------------------------------------
# Data


@dataclasses.dataclass
class Samples:
    """Pictures x uint8 [n, h, w, 3] and labels y int64 [n]."""

    x: Array
    y: Array

    def __getitem__(self, part: slice) -> Samples:
        return Samples(self.x[part], self.y[part])

    def __len__(self) -> int:
        return len(self.y)


def load(name: str, limit: int | None = None) -> tuple[Samples, list[str]]:
    """Return the first ``limit`` pictures of a set of ../shared/data, 128x128, and its classes."""
    path = SHARED / "data" / "load.py"
    if not path.exists():
        sys.exit(f"{path} is missing: this bench measures on the data of ../shared.")
    spec = importlib.util.spec_from_file_location("shared_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y, classes = module.images(name, limit, SIZE)
    return Samples(x, y), classes


# ------------------------------------------------------------------------------------------------
# Networks


def network(classes: Sequence[str], seed: int, plan: str) -> Graph:
    """Return mcunet-5fps with a fresh head by ``seed``, marked with the plan."""
    graph = passes.run(replace_head(frontends.load(MODEL), list(classes), None, seed=seed))
    plans.apply(plans.parse(plan, len(graph.convs)), graph)
    return graph


@functools.cache
def compiled(
    classes: tuple[str, ...], seed: int, plan: str, fractions: str = "all", gradient_bits: int = 14
) -> Blob:
    """Return the blob of the same; ``fractions`` and ``gradient_bits`` as in ``compile_graph``."""
    graph = replace_head(frontends.load(MODEL), list(classes), None, seed=seed)
    return compiler.compile_graph(graph, plan, fractions=fractions, gradient_bits=gradient_bits)


def replay(blob: Blob, x: Array, note: str = "") -> Replay:
    """Run images through the frozen operators of a blob."""
    bar = Progress(f"frozen part {note}", len(x))
    frozen = Replay(blob, x, bar.update)
    bar.close()
    return frozen


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run of learning: everything that its result depends on besides code and data."""

    dataset: str
    plan: str
    rate: float
    epochs: int
    seed: int
    samples: int
    batch: int = 1
    fractions: str = "none"
    gradient_bits: int = 14


def orders(settings: Settings) -> Array:
    """Return the sample numbers in the order of learning: the same for integers and floats."""
    return sample_order(settings.samples, settings.epochs, settings.seed)


def learn(
    blob: Blob, settings: Settings, train: Replay, labels: Array, test: Replay, truth: Array
) -> dict[str, Any]:
    """Learn on the integer engine; return accuracy (percent) after each epoch, and more."""
    engine = Engine(blob.to_bytes(), accumulate=settings.batch > 1)
    order = orders(settings)
    bar = Progress(describe("int", settings), len(order))
    start, curve = time.perf_counter(), []

    def after(seen: int) -> None:
        if seen % settings.samples == 0:
            curve.append(accuracy(engine, test, truth))
        bar.update(seen, f"{curve[-1]:.1f} %" if curve else "")

    losses = replays.learn(
        engine, train, labels, order, settings.rate, settings.seed, settings.batch, after
    )
    bar.close()
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "loss": float(np.mean(losses[-settings.samples :])),
        "seconds": time.perf_counter() - start,
        "digest": engine.digest(),
    }


def check_replay(blob: Blob, train: Replay, data: Samples) -> None:
    """Check that a few steps from kept inputs give the bytes of whole steps."""
    whole, part = Engine(blob.to_bytes()), Engine(blob.to_bytes())
    for t in range(4):
        common = {"label": int(data.y[t]), "rate": (3000, -20), "seed": 1, "step": t}
        whole.set_input(data.x[t])
        whole.run_ops(0, len(blob.ops), LEARN, **common)
        train.put(part.arena, t)
        part.run_ops(train.cut, len(blob.ops), LEARN, **common)
    if whole.digest() != part.digest():
        raise AssertionError(f"{blob.info['plan']}: replayed steps differ from whole ones")


def accuracy(engine: Engine, test: Replay, truth: Array) -> float:
    """Return the percentage of ``truth`` that the engine's logits find."""
    return 100.0 * float(np.mean(replays.logits(engine, test).argmax(1) == truth))


def code_digest(thing: object) -> str:
    """Return a digest of the module that defines ``thing``, blind to comments and imports."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(thing)))  # type: ignore[arg-type]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    imports = (ast.Import, ast.ImportFrom)
    tree.body = [node for node in tree.body if not isinstance(node, imports)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def parameters_digest(graph: Graph) -> str:
    """Return a digest of a network's parameters and of what learns; spare classes do not count."""
    digest = hashlib.sha256()
    for op in graph.convs:
        rows = len(graph.classes) if op is graph.convs[-1] else None
        for name in ("weight", "bias", "weight_scales"):
            digest.update(np.ascontiguousarray(op.params[name][:rows]).tobytes())
        channels = op.attrs["train_channels"]
        marks = (op.attrs["train_bias"], op.attrs["train_weight"], channels is not None)
        digest.update(repr(marks).encode() + (b"" if channels is None else channels.tobytes()))
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------
# Results


def cached(folder: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result kept under ``key`` in build/folder, or make and keep it."""
    cache = Cache(BUILD / folder)
    result = cache.get(key)
    if result is None:
        result = make()
        cache.put(key, result)
    return result


def run_key(side: str, on: str, code: str, run: Settings) -> dict[str, Any]:
    """Return all that a run's result depends on: "int" or "float", test set, code, settings."""
    return {"side": side, "on": on, "code": code, **dataclasses.asdict(run)}


def write_json(name: str, data: dict[str, Any]) -> None:
    """Write build/bench-NAME.json."""
    BUILD.mkdir(exist_ok=True)
    path = BUILD / f"bench-{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{path.relative_to(ROOT)} written")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a markdown table, the first column to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    print(line(cells[0]))
    rules = ["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]
    print("|" + "|".join(rules) + "|")
    for row in cells[1:]:
        print(line(row))


def describe(side: str, s: Settings) -> str:
    """Return a short name of a run."""
    return f"{side} {s.dataset} {s.plan} rate {s.rate:g} batch {s.batch} seed {s.seed}"


class Progress:
    """A line on stderr with the time left; on no terminal, one line at the end."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.start = self.last = time.monotonic()
        self.done, self.note = 0, ""

    def update(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        now = time.monotonic()
        if now - self.last < 0.5 or not sys.stderr.isatty():
            return
        self.last = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        text = f"{self.what}: {done}/{self.total} {note} {left:.0f} s left"
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - self.start
        print(f"{clear}{self.what}: {self.note} {seconds:.0f} s", file=sys.stderr, flush=True)
