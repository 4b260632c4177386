"""One side of ``bench_pockengine`` in a process of its own: start, learn, print JSON.

Arguments: "int" and a blob file, or "float" and a plan; PyTorch's threads; steps; the time
(``time.time()``) at which this process was started.  Imports no more than its side needs.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable

Step = Callable[[], object]


def integer_step(blob: str) -> Step:
    """Return a function that makes one step on the C core with a blob from a file."""
    import numpy as np
    from sprout.engine import Engine

    engine = Engine(blob)
    shape = engine.blob.tensors[engine.blob.input].shape
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    count = iter(range(1 << 30))

    def step() -> None:
        t = next(count)
        engine.step(picture, t % 2, (2048, -20), 0, t)

    return step


def float_step(plan: str, threads: int) -> Step:
    """Return a function that makes one step in PyTorch: forward, backward and plain SGD, without
    what ``torch.optim`` adds to it."""
    import bench_common as common
    import numpy as np
    import torch
    from sprout.compile import input_table
    from torch_net import FloatNet

    torch.set_num_threads(threads)
    net = FloatNet([common.network(common.CLASSES["person"], 0, plan)])
    table = input_table(net.graph)
    assert table is not None
    picture = np.random.default_rng(0).integers(0, 256, (1, common.SIZE, common.SIZE, 3), np.uint8)
    rates = torch.full((1, 1), 0.002)
    count = iter(range(1 << 30))

    def step() -> None:
        labels = torch.tensor([[next(count) % 2]])
        net.step([x[None] for x in net.prefix(picture, table)], labels, rates, 2)

    return step


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def warm_up(kind: str) -> None:
    """Load what a side needs before its own network: code, and threads that stay."""
    if kind == "int":
        import numpy.random  # noqa: F401  # loaded at first use
        import sprout.engine

        sprout.engine.load_library()
        return
    import bench_common as common
    import torch
    import torch_net  # noqa: F401

    common.network(common.CLASSES["person"], 0, "full")
    torch.ones(256, 256) @ torch.ones(256, 256)


def main() -> None:
    """Measure and print."""
    kind, what, threads, steps, began = sys.argv[1:]
    warm_up(kind)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from here
    step = integer_step(what) if kind == "int" else float_step(what, int(threads))
    step()
    first = time.time() - float(began)
    for _ in range(int(steps) - 1):
        step()
    whole = time.time() - float(began)
    most = resident("VmHWM")
    found = {"first": first, "whole": whole, "growth": max(most - before, 0), "process": most}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
