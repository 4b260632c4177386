"""Replay: rehearsing gives the bytes of whole steps, costs less, survives, and helps."""

from __future__ import annotations

import copy

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
    forms = ["latent", "compact", "auto"] if rows else ["latent", "compact", "raw"]
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
            kept.learn(kept.recall(slot), net._usual, net._exponent)
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
    kept = net.replay(size, per_sample=4)
    learn(0, 100)
    learn(100, 200)
    print(accuracy(0, 50), accuracy(50, 100))
print(kept, net.memory()["replay"] <= 2304)
net.reset()
kept.clear()
guard = net.guard(2000, every=16)
learn(0, 100)
learn(100, 200)
print(accuracy(0, 50), accuracy(50, 100), guard.checks, guard.undone)
"""
    without, with_replay, buffer, guarded = run(objects, code)
    old, new, checks, undone = map(float, guarded.split())  # new classes are no harm
    assert old > 0.6 and new > 0.8 and checks == 11 and undone <= 1
    old, new = map(float, without.split())
    assert old < 0.1 and new > 0.8
    old, new = map(float, with_replay.split())
    assert old > 0.6 and new > 0.8
    assert buffer == "<replay: 32 of 32 samples, compact, 64 bytes each> True"


def test_the_guard_undoes_what_poisoned_labels_did(objects):
    """Once with the checkpoint in RAM, once on flash, once with a warning only."""
    code = OBJECTS + """
for action, path in (("restore", None), ("restore", "good"), ("warn", None)):
    net.reset()
    net.rate = 0.005
    kept = net.replay(4000)
    guard = net.guard(2000, action, every=16, path=path)
    learn(0, 100)
    guard._good()
    digest, held, used = net.digest(), guard.held, kept.used
    net.rate = 0.1
    for x, label in samples("train", 0, 64):
        net.learn(x, 1 - label)
        if guard.undone:
            break
    print(action, net.digest() == digest, guard.held - held, kept.used < used, guard.undone)
    print(net.memory()["replay"] == guard.size < 7000, accuracy(0, 50))
print(net.guard(0) is kept)
"""
    lines = run(objects, code)
    said = [line for line in lines if line.startswith("learning did harm: the loss of ")]
    assert [line.endswith(", so it was undone") for line in said] == [True, True, False]
    ram, one, flash, two, warned, three, end = [line for line in lines if line not in said]
    assert ram == flash == "restore True 0 True 1"
    assert warned == "warn False 2 False 1"
    fits, accuracies = zip(*(line.split() for line in (one, two, three)), strict=True)
    assert fits == ("True",) * 3 and end == "True"
    assert accuracies[0] == accuracies[1] and float(accuracies[1]) > 0.75 > float(accuracies[2])


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


# --- what may happen -----------------------------------------------------------------------------


@pytest.fixture
def flash(tmp_path):
    """A folder in place of the flash; residual_net, whose last layer learns 4 classes of 6."""
    from sprout.frontends.head import replace_head

    graph = replace_head(residual_net(), list("abcd"), 6)
    x = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), np.uint8)
    put(tmp_path, compiler.compile_graph(graph, "last"), x)
    return tmp_path


SMALL = START % (RATE, SEED, 192)


def test_goes_on_with_a_ring_after_a_restart(flash):
    code = SMALL + """
kept = net.replay(4096, "raw", "kept", 0)
for i in range(30):
    net.learn(sample(i), i % 4)
net.save()
print(sorted(kept.counts().items()), kept.used, kept.capacity)
print(list(kept.labels), list(kept._reservoir.seen)[:4])
kept.recall(3)
print([bytes(part) for part in kept._parts])
"""
    before = run(flash, code)
    code = SMALL + """
net.restore()
kept = net.replay(4096, "raw", "kept", 0)
print(sorted(kept.counts().items()), kept.used, kept.capacity)
print(list(kept.labels), list(kept._reservoir.seen)[:4])
kept.recall(3)
print([bytes(part) for part in kept._parts])
print(net.rehearse(20) > 0, net.step)
"""
    *after, last = run(flash, code)
    assert after == before
    assert "[8, 8, 7, 7]" in before[1]
    assert last == "True 50"
    for damage in (b"", bytes(52), b"garbage" * 9):
        (flash / "kept" / "seen").write_bytes(damage)
        labels = before[1].partition("]")[0]
        kept = [labels.count(str(i)) for i in range(4)]
        assert run(flash, code)[1] == before[1].replace("[8, 8, 7, 7]", str(kept))


def test_samples_belong_to_the_names_of_classes(flash):
    """They survive that classes come, go, or are not there yet after a restart."""
    code = SMALL + """
def show(kept):
    print(sorted(kept.counts().items()))
net.add_class("e")
for path in (None, "kept"):
    kept = net.replay(8000, path=path, per_sample=0)
    for i in range(20):
        net.learn(sample(i), i % 5)
    net.classes = ["d", "b", "x"]
    show(kept)
    net.classes = list("abcde")
    show(kept)
    kept.forget(1)
    net.classes = ["a", "c", "d", "e"]
    show(kept)
    net.add_class("b")
    show(kept)
    net.classes = list("abcde")
kept.flush()
net = sprout.load("net.sprout")
show(net.replay(8000, path="kept"))
net.add_class("e")
show(net._keeper)
"""
    found = [dict(eval(line)) for line in run(flash, code)]
    once = [
        {"d": 4, "b": 4, "x": 0},
        dict.fromkeys("abcde", 4),
        dict.fromkeys("acde", 4),
        {"a": 4, "c": 4, "d": 4, "e": 4, "b": 0},
    ]
    all_but_b = {"a": 4, "b": 0, "c": 4, "d": 4}
    assert found == [*once, *once, all_but_b, {**all_but_b, "e": 4}]


MISUSE = [
    ("net.replay(8)", "ValueError", "replay of 8 bytes holds no compact sample"),
    ("net.replay(form='big')", "ValueError", "form is 'big' and must be"),
    ("net.replay(per_sample=-1)", "ValueError", "per_sample is -1 and must be 0 or more"),
    ("net.replay(10**7)", "MemoryError", "replay needs 10000000 bytes of RAM and about"),
    ("net.rehearse(3)", "ValueError", "no sample is kept: call net.replay()"),
    ("net.replay()\nnet.rehearse(3)", "ValueError", "no sample is kept: call net.replay()"),
    ("net.guard(on_regression='cry')", "ValueError", "on_regression is 'cry' and must be"),
    ("net.guard(every=0)", "ValueError", "every is 0 and must be 1 or more"),
    ("net.replay(5000, path='no/such/folder')", "OSError", "no/such/folder cannot hold samples"),
    ("net.classes = ['byt', 'daa']\nnet.replay(path='k')", "ValueError", "cannot tell"),
    ("net.replay(path='k')\nnet.replay(9000, 'raw', 'k')", "ValueError", "k holds samples"),
]


def test_says_what_is_wrong_and_stays_usable(flash):
    code = SMALL
    for mistake, kind, _ in MISUSE:
        lines = *mistake.split("\n"), f"print('nothing wrong with', {mistake!r})"
        code += "\n    ".join(["try:", *lines]) + f"\nexcept {kind} as e:\n    print(e)\n"
        code += "net.classes = list('abcd')\nnet.learn(sample(1), 'a')\n"
    code += "net.guard(0)\nprint(net.replay(5000), net.learn(sample(1), 'a') > 0)"
    *said, last = run(flash, code)
    assert len(said) == len(MISUSE)
    for (mistake, _, message), text in zip(MISUSE, said, strict=True):
        assert message in text, mistake
        assert 20 < len(text) < 240 and not text.endswith("."), text
    assert last.endswith("True") and last.startswith("<replay: 1 of 312 samples, compact")


@pytest.mark.parametrize("path", [None, "kept"])
def test_ctrl_c_loses_at_most_a_sample(path, flash):
    """At the beginning and at the end of each call to the reservoir."""
    code = SMALL + f"""
from sprout import reservoir
kept = net.replay(4096, "raw", {path!r}, per_sample=2)
class Break:
    def __init__(self, after):
        self.left = after
    def __call__(self, *_):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
broken = 0
for method in ("set", "_find", "_below", "_next"):
    usual = getattr(reservoir.Reservoir, method)
    for after in range(1, 9):
        tick = Break(after)
        def breaks(self, *args):
            tick()
            result = usual(self, *args)
            tick()
            return result
        setattr(reservoir.Reservoir, method, breaks)
        try:
            for i in range(8):
                net.learn(sample(i), i % 4)
        except KeyboardInterrupt:
            broken += 1
        setattr(reservoir.Reservoir, method, usual)
        for i in range(4):
            net.learn(sample(i), i % 4)
        net.rehearse(3)
        labels = list(kept.labels)
        counts = [labels.count(i) for i in range(4)]
        if counts != [kept.counts()[name] for name in net.classes] or kept.used != sum(counts):
            print("miscounted", method, after)
print(broken, kept.used > 15, labels == list(kept._store.labels) or {path!r})
"""
    broken, full, same = run(flash, code)[-1].split()
    assert int(broken) > 25 and full == "True" and same in ("True", "kept")


LITTLE = """
import os, vfs
class Flash:
    def __init__(self, blocks):
        self.data = bytearray(blocks * 4096)
    def readblocks(self, n, buf, off=0):
        at = n * 4096 + off
        buf[:] = self.data[at : at + len(buf)]
    def writeblocks(self, n, buf, off=0):
        at = n * 4096 + off
        self.data[at : at + len(buf)] = buf
    def ioctl(self, op, arg):
        return len(self.data) // 4096 if op == 4 else 4096 if op == 5 else 0
flash = Flash(16)
vfs.VfsLfs2.mkfs(flash)
vfs.mount(flash, "/flash")
"""


def test_a_full_flash_makes_the_buffer_smaller(flash):
    code = SMALL + LITTLE + """
kept = net.replay(40960, "raw", "/flash/kept", per_sample=1)
before = kept.capacity
with open("/flash/other", "wb") as file:
    for _ in range(8):
        file.write(bytes(4096))
for i in range(300):
    net.learn(sample(i % 40), i % 4)
print(before > kept.capacity > 10, kept.used == kept.capacity == len(kept.labels), net.step)
counts = kept.counts()
print(max(counts.values()) - min(counts.values()) <= 1, net.rehearse(50) > 0)
kept.flush()
again = sprout.load("net.sprout").replay(40960, "raw", "/flash/kept")
print(again.counts() == counts)
"""
    *said, first, second, third = run(flash, code)
    assert said and all(line.startswith("the flash is full: /flash/kept") for line in said)
    assert first.startswith("True True ") and (second, third) == ("True True", "True")


def test_a_damaged_sample_is_dropped(flash):
    code = SMALL + """
kept = net.replay(4096, "raw", "kept", per_sample=0)
for i in range(30):
    net.learn(sample(i), i % 4)
kept.flush()
whole = kept.used
with open("kept/0", "r+b") as file:
    file.seek(500)
    file.write(b"damaged")
net.rehearse(200)
print(whole - kept.used, net.step)
for i in range(30):
    net.learn(sample(i), i % 4)
print(whole - kept.used)
"""
    assert run(flash, code) == ["1 230", "0"]


def test_an_unfit_boundary_in_a_blob_gets_a_sentence(flash):
    """Those that only lie are taken: the core stays within its buffers whatever it is told."""
    made = blobs.read((flash / "net.sprout").read_bytes())
    first, spans = made.meta["latent"][0]
    far = made.arena_len
    unfit = [7, [[]], [[first]], [[first, 5]], [["1", spans]], [[first, []]], [[-1, spans]],
             [[999, spans]], [[first, [[0, 0]]]], [[first, [[-8, 8]]]], [[first, [[far, 1]]]],
             [[first, [["0", 8]]]], [[first, [[0, 2**40]]]], [{"a": 1}]]  # fmt: skip
    lies = [[cut, [[at, 12]]] for cut in range(made.n_forward) for at in (0, far - 12)]
    for i, point in enumerate([*unfit, *([lie] for lie in lies)]):
        forged = copy.deepcopy(made)
        forged.meta["latent"] = point
        (flash / f"{i}.sprout").write_bytes(forged.to_bytes())
    made.meta.pop("latent")
    (flash / "old.sprout").write_bytes(made.to_bytes())
    code = f"""
import sprout
for i in range({len(unfit) + len(lies)}):
    net = sprout.load("%d.sprout" % i)
    try:
        net.replay(5000)
        for t in range(5):
            net.learn(bytes(range(192)), t % 4)
        print("took", i)
    except ValueError as e:
        print(e)
    net.learn(bytes(192), 0)
try:
    sprout.load("old.sprout").replay()
except ValueError as e:
    print(e)
"""
    *said, old = run(flash, code)
    assert old == "old.sprout does not say what to keep for replay: compile it again"
    for i, line in enumerate(said):
        if i < len(unfit):
            assert line == f"{i}.sprout is damaged, its boundary for replay is none: copy it again"
        else:
            assert line == f"took {i}" or "does not run" in line


def test_a_net_that_takes_rows_keeps_no_frames_and_rehearses_between_them(shared, tmp_path):
    blob = compiled(shared, "mlperf_vww_96_int8.tflite", rows=True)
    code = put(tmp_path, blob, frames(blob, 1)) + """
try:
    net.replay(10**5, "raw")
except ValueError as e:
    print(e)
net.replay(10**5)
net.learn(sample(0), 0)
view = memoryview(sample(0))
net.feed(view[: len(view) // 2])
try:
    net.rehearse(1)
except ValueError as e:
    print(e)
net.feed(view[len(view) // 2 :])
net.rehearse(1)
try:
    net.predict()
except ValueError as e:
    print(e)
"""
    first, second, third = run(tmp_path, code)
    assert "takes frames by rows and never has a whole one" in first
    assert second.startswith("48 rows of a frame are there: feed() the others")
    assert third.startswith("0 of the 96 rows of a frame are there")


def test_what_a_step_with_replay_allocates(flash):
    """Floats and slices, the same at every step; nothing stays."""
    code = SMALL + """
import gc
def cost(call):
    call()
    gc.collect()
    before = gc.mem_alloc()
    for i in range(20):
        call()
    return (gc.mem_alloc() - before) // 20
gc.disable()
x = sample(0)
net.replay(3000)
for i in range(300):
    net.learn(x, i % 4)
print(cost(lambda: net.rehearse(1)))
print(cost(lambda: net.learn(x, 1)))
gc.enable()
gc.collect()
free = gc.mem_free()
for i in range(2000):
    net.learn(x, i % 4)
gc.collect()
print(free - gc.mem_free())
"""
    rehearsing, learning, left = map(int, run(flash, code))
    assert rehearsing <= 200
    assert learning <= 250
    assert left <= 0
