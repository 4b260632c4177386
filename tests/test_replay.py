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
from test_equality import load  # noqa: F401, a fixture
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


@pytest.fixture(scope="module")
def objects(shared, load, tmp_path_factory):
    """CIFAR-10 for the board: two classes come first, then two others, each sample once.

    A fresh last layer learns.
    """
    folder = tmp_path_factory.mktemp("objects")
    model = shared / "models" / "mlperf_resnet8_cifar10_int8.tflite"
    classes = ["airplane", "automobile", "horse", "ship"]
    put(folder, compiler.compile_model(model, "last", classes), np.zeros((1, 32, 32, 3), np.uint8))
    for part, n in (("train", 50), ("test", 25)):
        x, y, names = load.images(f"cifar10_{part}", 1200)
        rows = [np.flatnonzero(y == names.index(name))[:n] for name in classes]
        order = [np.stack(rows[i : i + 2], 1).ravel() for i in (0, 2)]
        (folder / f"{part}.bin").write_bytes(x[np.concatenate(order)].tobytes())
    return folder


OBJECTS = """
import sprout
net = sprout.load("net.sprout")
frame = bytearray(3072)
def samples(part, first, last):
    with open(part + ".bin", "rb") as file:
        file.seek(3072 * first)
        for i in range(first, last):
            file.readinto(frame)
            yield frame, i % 2 + 2 * (i >= (100 if part == "train" else 50))
def accuracy(first, last):
    hits = 0
    for x, label in samples("test", first, last):
        hits += net.classify(x) == label
    return hits / (last - first)
def learn(first, last):
    for x, label in samples("train", first, last):
        net.learn(x, label)
"""


def test_replay_keeps_what_comes_no_more(objects):
    code = OBJECTS + """
net.rate = 0.005
for size in (0, 2304):
    net.reset()
    net.replay(size, per_sample=4)
    learn(0, 100)
    learn(100, 200)
    print(accuracy(0, 50), accuracy(50, 100))
print(net._keeper, net.memory()["replay"] <= 2304)
"""
    without, with_replay, buffer = run(objects, code)
    old, new = map(float, without.split())
    assert old < 0.1 and new > 0.8
    old, new = map(float, with_replay.split())
    assert old > 0.6 and new > 0.8
    assert buffer == "<replay: 32 of 32 samples, latent, 64 bytes each> True"


def test_the_guard_undoes_what_poisoned_labels_did(objects):
    """Once with the checkpoint in RAM, once on flash, once with a warning only."""
    code = OBJECTS + """
def poison(n):
    for x, label in samples("train", 0, n):
        net.learn(x, 1 - label)
for action, path in (("restore", None), ("restore", "good"), ("warn", None)):
    net.reset()
    net.rate = 0.005
    kept = net.replay(4000)
    guard = net.guard(2000, action, every=16, path=path)
    learn(0, 100)
    good = accuracy(0, 50)
    guard.check()
    held, used = guard.held, kept.used
    net.rate = 0.02
    poison(72)
    guard.check()
    print(good, accuracy(0, 50), guard.undone, held - guard.held, used - kept.used)
    print(net.memory()["replay"] == guard.size < 7000)
print(net.guard(0) is kept)
"""
    lines = run(objects, code)
    said = [line for line in lines if line.startswith("learning did harm")]
    *rows, last = [line for line in lines if line not in said]
    assert last == "True"
    undone = 0
    for values, fits in zip(rows[::2], rows[1::2], strict=True):
        good, now, times, held, used = map(float, values.split())
        assert good > 0.8 and fits == "True"
        undone += times
        if fits == rows[-1] and values == rows[-2]:
            assert now < 0.6 and times and held < 0 and used == 0  # warned, and went on
        else:
            assert now > good - 0.1 and times and held == 0 < used
    assert len(said) == undone
    assert [line.endswith("undone") for line in said].count(False) == times


def test_drift_rises_when_the_input_changes(objects):
    code = OBJECTS + """
net.rate = 0.005
learn(0, 100)
print(net.drift)
most = 0
for _ in range(3):
    for x, label in samples("train", 0, 100):
        net.predict(x)
        most = max(most, abs(net.drift))
print(most)
for x, label in samples("train", 0, 50):
    for i in range(0, len(x)):
        x[i] = 128 + (x[i] >> 3)
    net.predict(x)
print(net.drift)
"""
    start, usual, pale = map(float, run(objects, code))
    assert start == 0
    assert usual < 3
    assert pale > 5
