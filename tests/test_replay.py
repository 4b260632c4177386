"""Replay: rehearsing gives the bytes of whole steps, costs less, survives, and helps."""

from __future__ import annotations

import numpy as np
import pytest
from nets import everything_net, residual_net
from sprout import blob as blobs
from sprout import compile as compiler
from sprout import inspect, latent, replay
from sprout.engine import Engine
from sprout.schedule import rate_parts
from test_device import run, train
from test_stream import PAPER, random_net

NETWORKS = {
    "mcunet-5fps.pkl": PAPER,
    "mlperf_vww_96_int8.tflite": "b10",
}
RATE, SEED = 0.003, 5


def compiled(shared, name, **options):
    classes = ["a", "b"] if name.endswith(".pkl") else None
    return compiler.compile_model(shared / "models" / name, NETWORKS[name], classes, **options)


def frames(blob, n, seed=0):
    shape = blob.tensors[blob.input].shape
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


# --- where a step can be taken up again ----------------------------------------------------------


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_steps_taken_up_anywhere_give_the_bytes_of_whole_steps(seed, rows):
    check_everywhere(compiler.compile_graph(random_net(seed), "b2", rows=rows))


@pytest.mark.parametrize("net", [residual_net, everything_net])
@pytest.mark.parametrize("plan", ["last", "b3", "full"])
def test_every_operator_can_be_taken_up_again(net, plan):
    check_everywhere(compiler.compile_graph(net(), plan))


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_can_be_taken_up_again(name, rows, shared):
    blob = compiled(shared, name, rows=rows)
    points = latent.points(blob)
    assert points[0] == latent.boundary(blob)
    assert blob.meta["latent"] == [[cut, [[a, b] for _, a, b in spans]] for cut, spans in points]
    check(blob, points, 3)
    sizes = [latent.size(spans) for _, spans in points]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1
    if name == "mcunet-5fps.pkl":
        whole = sum(blob.info["macs"].values())
        costs = [latent.macs(blob, cut) / whole for cut, _ in points]
        assert costs[0] <= 0.6
        assert costs == sorted(costs)
        assert sizes == [10240, 2560]
        assert inspect.rehearses_text(blob) == (
            "a sample kept for replay: 10,240 bytes, 18,589,536 MACs (59% of a step), "
            "or 2,560 bytes, 19,255,136 MACs (61% of a step)"
        )


def check_everywhere(blob):
    """At every operator up to the boundary, as long as it is no member of a stream."""
    last, _ = latent.boundary(blob)
    first = 1 if blob.takes_rows else 0
    cuts = [i for i in range(first, last + 1) if not blob.ops[i].flags & blobs.MEMBER]
    assert cuts
    check(blob, [(cut, latent.alive(blob, cut)) for cut in cuts], 4)


def check(blob, points, n):
    """The arena is full of noise, but for what the point says is needed."""
    x = frames(blob, n)
    rng, rate = np.random.default_rng(1), rate_parts(RATE)
    for point in points:
        kept = replay.Replay.of(blob, x, point=point)
        whole, part = Engine(blob.to_bytes()), Engine(blob.to_bytes())
        for t in range(2 * n):
            label, i = int(rng.integers(blob.n_classes)), t % n
            loss = whole.step(x[i], label, rate, SEED, t)
            part.arena[:] = rng.integers(0, 256, part.arena.size, np.uint8)
            kept.put(part.arena, i)
            run = part.run_ops(
                kept.cut, len(blob.ops), 1, label=label, rate=rate, seed=SEED, step=t
            )
            assert run.loss_q16 / 65536 == loss
        assert part.digest() == whole.digest() != Engine(blob.to_bytes()).digest()


# --- on the board --------------------------------------------------------------------------------

START = """
import sprout
net = sprout.load("net.sprout")
net.rate, net.seed = %s, %s
frame = bytearray(%d)
def sample(i):
    with open("x.bin", "rb") as file:
        file.seek(i * len(frame))
        file.readinto(frame)
    return frame
"""


def put(folder, blob, x):
    (folder / "net.sprout").write_bytes(blob.to_bytes())
    (folder / "x.bin").write_bytes(x.tobytes())
    return START % (RATE, SEED, x[0].size)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [False, True])
def test_rehearsing_gives_the_bytes_of_whole_steps(name, rows, shared, tmp_path):
    blob = compiled(shared, name, rows=rows)
    x, y, order = frames(blob, 3), [0, 1, 1], [2, 0, 1, 2, 0]
    engine = Engine(blob.to_bytes())
    train(engine, x[[0, 1, 2, *order]], [*y, *(y[i] for i in order)], RATE, SEED)
    forms = ["latent", "compact"] + ["raw"] * (not rows)
    code = put(tmp_path, blob, x) + f"""
for form in {forms}:
    for path in (None, "kept" + form):
        net.reset()
        kept = net.replay(200000, form, path, per_sample=0)
        for i in range(3):
            if {rows}:
                view, n = memoryview(sample(i)), len(frame) // 8
                for at in range(0, len(frame), n):
                    net.feed(view[at : at + n])
                net.learn(label={y}[i])
            else:
                net.learn(sample(i), {y}[i])
        for slot in {order}:
            net._train(kept.first, kept.recall(slot), None)
        print(kept.used, net.step, net.digest(), net.memory()["replay"] <= 200000)
"""
    assert run(tmp_path, code) == [f"3 8 {engine.digest()} True"] * 2 * len(forms)
