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
from bench_common import PLAN, Replay, Settings
from sprout import memory
from sprout.blob import Blob
from sprout.replay import fingerprint

FOLDER = "bench-accuracy"  # some of the runs are that bench's too
RATE = 0.002
TRAIN = {"person": ("person_train", 4000, 3), "cifar10": ("cifar10_train", 10000, 2)}
"""Training set, samples and epochs."""


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


def measure(name: str, seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Learn in every form on one data set."""
    file, samples, epochs = TRAIN[name]
    if quick:
        samples, epochs = 200, 1
    train, classes = common.load(file, samples)
    test, _ = common.load(file.replace("train", "test"))
    results = []
    for form in FORMS:
        inputs: list[Replay] = []
        accuracies = []
        for seed in range(seeds):
            blob = common.compiled(tuple(classes), seed, PLAN, form.fractions, form.gradient_bits)
            run = Settings(
                name, PLAN, RATE, epochs, seed, samples,
                fractions=form.fractions, gradient_bits=form.gradient_bits,
            )  # fmt: skip
            key = common.run_key("int", "test", fingerprint(blob), run)

            def make(run: Settings = run, blob: Blob = blob) -> dict[str, Any]:
                if not inputs:  # noqa: B023
                    inputs.extend(common.replay(blob, part.x, name) for part in (train, test))  # noqa: B023
                return common.learn(blob, run, inputs[0], train.y, inputs[1], test.y)  # noqa: B023

            accuracies.append(common.cached(FOLDER, key, make)["accuracy"])
        results.append(
            {
                "form": form.title,
                "accuracies": accuracies,
                "mean": float(np.mean(accuracies)),
                "backward_bytes": backward_bytes(blob, form),
                "arena_bytes": blob.arena_len,
                "trained_bytes": blob.trained_len,
            }
        )
    return results


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 samples, 1 epoch, 1 seed")
    parser.add_argument("--datasets", default="cifar10")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    seeds = 1 if args.quick else args.seeds
    results = {name: measure(name, seeds, args.quick) for name in args.datasets.split(",")}
    names = list(results)
    rows = []
    for i, form in enumerate(FORMS):  # the trained region holds the fractions too
        found = [results[name][i] for name in names]
        sizes = [found[0][k] for k in ("backward_bytes", "trained_bytes")]
        cells = [
            f"{r['mean']:.1f} ({min(r['accuracies']):.1f}-{max(r['accuracies']):.1f})"
            for r in found
        ]
        rows.append([form.title, *[f"{n:,}" for n in (*sizes, sum(sizes))], *cells])
    titles = [f"{n}, {TRAIN[n][1]:,} x {TRAIN[n][2]}" for n in names]
    print(f"\nmcunet-5fps, {PLAN}, rate {RATE}, batch 1, {seeds} seed(s); accuracy in percent\n")
    header = ["weights; gradients", "backward B", "trained B", "sum B"]
    common.print_table([*header, *titles], rows)
    if not args.quick:
        common.write_json("numerics", {"plan": PLAN, "rate": RATE, "results": results})


if __name__ == "__main__":
    main()
