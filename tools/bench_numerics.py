"""Which form of the integers loses what (``make bench-numerics``).

Learns with the 49 KB plan of mcunet-5fps on the C core: a weight kept as bare int8, its steps
rounded stochastically, or with 4 bits more below its LSB; gradients of 14 bits (kept as int16) or
of 7 (what int8 would hold).  Memory: the largest live set of the backward pass (saved activations,
masks, gradients; for 7 bits as if a gradient took one byte an element) and the trained parameters
with their fractions.  Needs ../shared.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import bench_common as common
import numpy as np
from bench_common import CLASSES, PLAN, TRAIN, Dataset, Settings, Task
from sprout import memory
from sprout.blob import Blob

RATE = 0.002


@dataclasses.dataclass(frozen=True)
class Form:
    """How a weight is kept and how wide a gradient is."""

    title: str
    fractions: str = "none"
    gradient_bits: int = 14


FORMS = [
    Form("int8; 14-bit gradients"),
    Form("int8, fractions in the head; 14-bit gradients", "head"),
    Form("int8 + fractions; 14-bit gradients", "all"),
    Form("int8; 7-bit gradients", gradient_bits=7),
    Form("int8 + fractions; 7-bit gradients", "all", 7),
]


def backward_bytes(blob: Blob, form: Form) -> int:
    """Return the largest live set of the backward pass, gradients in bytes where they fit."""
    buffers = [
        memory.Buffer(
            t["nbytes"] // (2 if t["dtype"] == "int16" and form.gradient_bits <= 7 else 1),
            max(t["first"], blob.n_forward),
            t["last"],
        )
        for t in blob.info["tensors"]
        if not t["alias"] and t["last"] >= blob.n_forward
    ]
    return memory.lower_bound(buffers)


def tasks(name: str, form: Form, seeds: int, quick: bool) -> list[Task]:
    """Return the runs of a form on one data set; some are those of bench-accuracy."""
    samples, epochs = (200, 1) if quick else TRAIN[name]
    return [
        (
            Settings(
                name, PLAN, RATE, epochs, seed, samples,
                fractions=form.fractions, gradient_bits=form.gradient_bits,
            ),
            "test",
        )
        for seed in range(seeds)
    ]  # fmt: skip


def result_of(name: str, form: Form, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a form costs, and its accuracies."""
    blob = common.compiled(CLASSES[name], 0, PLAN, form.fractions, form.gradient_bits)
    accuracies = [run["accuracy"] for run in found]
    return {
        "form": form.title,
        "accuracies": accuracies,
        "mean": float(np.mean(accuracies)),
        "backward_bytes": backward_bytes(blob, form),
        "arena_bytes": blob.arena_len,
        "trained_bytes": blob.trained_len,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 samples, 1 epoch, 1 seed")
    parser.add_argument("--datasets", default="cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    common.add_jobs(parser)
    args = parser.parse_args()
    seeds = 1 if args.quick else args.seeds
    names = args.datasets.split(",")
    data = {
        name: Dataset(name, 200 if args.quick else TRAIN[name][0], args.quick) for name in names
    }
    wanted = [tasks(name, form, seeds, args.quick) for name in names for form in FORMS]
    made = iter(common.learn_all([task for group in wanted for task in group], data, args.jobs))
    found_runs = iter([[next(made) for _ in group] for group in wanted])
    results = {name: [result_of(name, form, next(found_runs)) for form in FORMS] for name in names}
    rows = []
    for i, form in enumerate(FORMS):  # the trained region holds the fractions too
        found = [results[name][i] for name in names]
        sizes = [found[0][k] for k in ("backward_bytes", "trained_bytes")]
        cells = [
            f"{r['mean']:.1f} ({min(r['accuracies']):.1f}-{max(r['accuracies']):.1f})"
            for r in found
        ]
        rows.append([form.title, *[f"{n:,}" for n in (*sizes, sum(sizes))], *cells])
    titles = [f"{n}, {TRAIN[n][0]:,} x {TRAIN[n][1]}" for n in names]
    print(f"\nmcunet-5fps, {PLAN}, rate {RATE}, batch 1, {seeds} seed(s); accuracy in percent\n")
    header = ["weights; gradients", "backward B", "trained B", "sum B"]
    common.print_table([*header, *titles], rows)
    if not args.quick:
        common.write_json("numerics", {"plan": PLAN, "rate": RATE, "results": results})


if __name__ == "__main__":
    main()
