"""What one does with a net at the REPL, in real MicroPython, against the host or by hand."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from nets import Maker, picture, residual_net
from sprout import blob as blobs
from sprout import compile as compiler
from sprout.board import sim
from sprout.engine import LEARN, Engine
from sprout.frontends.head import replace_head
from sprout.graph import mean_multiplier
from sprout.schedule import rate_at, rate_parts
from test_device import run

sys.path.append(str(ROOT / "tools"))
import bench_steps  # noqa: E402

NAMES = ["cup", "pen", "key"]
START = """
import sprout
net = sprout.load("net.sprout")
with open("x.bin", "rb") as f:
    xs = [f.read(192) for _ in range(30)]
ys = [i % 3 for i in range(30)]
"""


def samples() -> np.ndarray:
    """30 pictures, uint8 [30, 8, 8, 3], of three kinds in turn."""
    x = np.random.default_rng(2).integers(0, 256, (30, 8, 8, 3), np.uint8)
    x[1::3] //= 4
    x[2::3, :4] = 255
    return x


def odd_net():
    """A head whose rows have an odd number of weights, so that their fractions share bytes."""
    m = Maker(4)
    x = picture()
    a = m.conv(x, 7, 3, 2)
    mult, shift = mean_multiplier(6 / 255, 6 / 255, 16)
    b = m.op("mean", [a], (1, 1, 7), 6 / 255, -128, mult=mult, shift=shift)
    return m.graph(x, m.conv(b, 4, relu=False))


@pytest.fixture(scope="module")
def blob() -> blobs.Blob:
    """Three classes and room for two more; everything learns."""
    return compiler.compile_graph(replace_head(residual_net(), NAMES, 5), "full")


@pytest.fixture
def flash(tmp_path, blob) -> Path:
    """A folder in place of the flash, with net.sprout and the samples."""
    (tmp_path / "net.sprout").write_bytes(blob.to_bytes())
    (tmp_path / "x.bin").write_bytes(samples().tobytes())
    return tmp_path


def test_a_sample_is_anything_that_has_its_bytes(flash):
    code = """
from array import array
class ndarray(bytearray):  # what ulab has offers its bytes too
    pass
x = xs[0]
many = (x, bytearray(x), memoryview(x), memoryview(b"12" + x)[2:], array("B", x), array("b", x),
        ndarray(x))
print({tuple(net.predict(one, top=3)) for one in many} == {tuple(net.predict(x, 3))})
for one in many:
    net.reset()
    net.learn(one, "pen")
    print(net.digest())
"""
    same, *digests = run(flash, START + code)
    assert same == "True"
    assert len(digests) == 7
    assert len(set(digests)) == 1


# -------------------------------------------------------------------------------------------------
# Classes


def head_rows(blob: blobs.Blob, trained: bytes) -> list[np.ndarray]:
    """The rows of the last layer in the trained region, by what inspect says: weights, fractions
    (if any), biases; a view of each [rows, ...], fractions unpacked."""
    last = max(part["conv"] for part in blob.info["trained"])
    data = np.frombuffer(trained, np.uint8)
    found = []
    for part in blob.info["trained"]:
        if part["conv"] != last:
            continue
        rows, size = part["shape"][0], int(np.prod(part["shape"]))
        if part["kind"] == "bias":
            found.append(data[part["offset"] :][: 4 * size].view("<i4"))
            continue
        found.append(data[part["offset"] :][:size].view(np.int8).reshape(rows, -1))
        if blob.fractions:
            packed = data[part["offset"] + (size + 3) // 4 * 4 :][: (size + 1) // 2]
            nibbles = np.stack([packed & 15, packed >> 4], 1).ravel()[:size]
            found.append(nibbles.reshape(rows, -1))
    return found


REMOVE = """
import json
net = sprout.load("net.sprout", batch=BATCH)
net.rate = 0.02
net.add_class("mug")
for i in range(37):
    net.learn(xs[i % 30], i % 4)
def put(name):
    with open(name, "wb") as f:
        f.write(net._memory[3])
    with open(name + ".accum", "wb") as f:
        f.write(net._memory[5] or b"")
def logits():
    return [(v ^ 128) - 128 for v in bytes(net.forward(xs[4]))]
put("before")
before = logits()
net.remove_class(GONE)
put("after")
after = logits()
net.learn(xs[3], "mug" if GONE != 3 else "cup")
net.add_class("jar")
net.learn(xs[5], "jar")
net.remove_class("jar")
print(json.dumps([before, after, net.classes]))
"""


@pytest.mark.parametrize("gone", [0, 1, 3])
@pytest.mark.parametrize(
    ("net", "fractions", "batch"),
    [
        (residual_net, "all", 1),
        (odd_net, "all", 1),
        (odd_net, "none", 1),
        (residual_net, "all", 5),
    ],
)
def test_a_class_goes_and_the_others_keep_what_they_learned(net, fractions, batch, gone, tmp_path):
    graph = replace_head(net(), NAMES, 6)
    made = compiler.compile_graph(graph, "full", fractions=fractions)
    made.fractions = fractions != "none"
    (tmp_path / "net.sprout").write_bytes(made.to_bytes())
    (tmp_path / "x.bin").write_bytes(samples().tobytes())
    code = START + f"BATCH, GONE = {batch}, {gone}\n" + REMOVE
    before, after, names = json.loads(run(tmp_path, code)[0])
    assert names == [name for i, name in enumerate([*NAMES, "mug"]) if i != gone]
    order = [*(i for i in range(4) if i != gone), 4, 4, 5]
    assert after == [before[i] for i in order]
    old, new = (tmp_path / "before").read_bytes(), (tmp_path / "after").read_bytes()
    parts = list(zip(head_rows(made, old), head_rows(made, new), strict=True))
    assert len(parts) == 2 + made.fractions
    for was, now in parts:
        assert (now == was[order]).all()
        assert was[:4].any() or batch > 1  # whose remainders stay in the accumulators
        assert not now[3:].any()
    # Nothing else changed
    heads = [row for part in parts for row in part]
    assert sum(a != b for a, b in zip(old, new, strict=True)) <= sum(p.nbytes for p in heads)
    first = min(p["offset"] for p in made.info["trained"] if p["conv"] == len(graph.convs) - 1)
    assert old[:first] == new[:first]
    assert (batch > 1) == bool((tmp_path / "after.accum").stat().st_size)


def test_rows_of_accumulators_move_along(tmp_path):
    """One class learned in a batch that another one leaves: as if it had never been there."""
    graph = replace_head(residual_net(), ["cup", "pen", "key"], 3)
    (tmp_path / "net.sprout").write_bytes(compiler.compile_graph(graph, "last").to_bytes())
    (tmp_path / "x.bin").write_bytes(samples().tobytes())
    code = """
net = sprout.load("net.sprout", batch=50)
meta = __import__("sprout.blobfile").blobfile
for i in range(20):
    net.learn(xs[i], i % 3)
trained, accum = net._memory[3], net._memory[5]
rows = [(5 if which else 3, at, bits // 8) for which, at, bits in PARTS]
def row(i):
    return [bytes(net._memory[which])[at + i * n : at + (i + 1) * n] for which, at, n in rows]
second, third = row(1), row(2)
net.remove_class("cup")
print(row(0) == second, row(1) == third, [any(part) for part in row(2)] == [False] * len(rows))
net.apply()
print(row(0) != second)
"""
    parts = blobs.read((tmp_path / "net.sprout").read_bytes()).meta["head"]
    assert {which for which, _, _ in parts} == {0, 1}
    assert len(parts) == 5
    assert run(tmp_path, START + f"PARTS = {parts}\n" + code) == ["True True True", "True"]


def test_only_rows_that_are_alike_can_change_places():
    """A fresh head has one scale, so that a weight means the same in each row."""
    fresh = replace_head(residual_net(), NAMES, 5)
    assert "head" in compiler.compile_graph(fresh, "last").meta
    assert "head" not in compiler.compile_graph(fresh, "none").meta
    assert "head" not in compiler.compile_graph(residual_net(), "full").meta  # scales differ


# -------------------------------------------------------------------------------------------------
# Learning and testing many samples


def logits_of(engine: Engine, x: np.ndarray) -> np.ndarray:
    engine.set_input(x)
    return engine.forward(learn=True).ravel()[:3]


def test_evaluate_finds_what_the_host_finds(flash, blob):
    engine, x, parts = Engine(blob.to_bytes()), samples(), rate_parts(0.02)
    for t in range(12):
        engine.step(x[t], t % 3, parts, 0, t, 3)
    table, loss = np.zeros((3, 3), int), 0.0
    for t in range(30):
        table[t % 3, logits_of(engine, x[t]).argmax()] += 1
        run_ops = engine.run_ops
        run_ops(engine.blob.n_forward, engine.blob.n_forward + 1, LEARN, label=t % 3, n_classes=3)
        loss += engine.run.loss_q16 / 65536 / 30
    code = """
net.rate = 0.02
for i in range(12):
    net.learn(xs[i], ys[i])
digest = net.digest()
found = net.evaluate(zip(xs, ys))
import json
print(json.dumps([found.n, found.right, found.accuracy, found.loss, found.per_class,
    [list(row) for row in found.confusion], net.digest() == digest, net.step]))
print(repr(net.evaluate(lambda: ((x, net.classes[y]) for x, y in zip(xs, ys)))) == repr(found))
print(found)
print(net.evaluate([]), net.evaluate([]).accuracy)
"""
    first, same, *shown, nothing = run(flash, START + code)
    n, right, accuracy, mean, per_class, confusion, unchanged, step = json.loads(first)
    assert (n, right, unchanged, step) == (30, np.trace(table), True, 12)
    assert accuracy == pytest.approx(right / 30)
    assert mean == pytest.approx(loss, abs=1e-4)
    assert confusion == table.tolist()
    assert 0 < right < 30
    assert per_class == pytest.approx(dict(zip(NAMES, np.diag(table) / 10, strict=True)))
    assert same == "True"
    assert shown[0].startswith(f"<{right * 100 / 30:.1f} % of 30 right, loss {loss:.3f}")
    assert [line.split()[0] for line in shown[1:]] == NAMES
    assert nothing == "<evaluation: no samples> None"


def test_evaluates_a_net_that_cannot_learn(flash):
    data = compiler.compile_graph(replace_head(residual_net(), NAMES)).to_bytes()
    (flash / "net.sprout").write_bytes(data)
    engine = Engine(data)
    right = 0
    for t, x in enumerate(samples()):
        engine.set_input(x)
        right += int(engine.forward().ravel()[:3].argmax()) == t % 3
    code = "found = net.evaluate(zip(xs, ys))\nprint(found.right, found.loss)"
    assert run(flash, START + code) == [f"{right} None"]


def test_learning_all_is_learning_one_after_the_other(flash, blob):
    """With a length the rate falls as on the host, without it stays; a step is one of learn()."""
    x = samples()
    digests = []
    for falls in (True, False):
        engine = Engine(blob.to_bytes())
        mantissa, exponent = rate_parts(0.01)
        for t in range(60):
            rate = rate_at(mantissa, t, 60) if falls else mantissa, exponent
            engine.step(x[t % 30], t % 3, rate, 0, t, 3)
        digests.append(engine.digest())
    code = """
net.rate = 0.01
said = []
course = net.learn_all(list(zip(xs, ys)), epochs=2, report=said.append)
print(net.digest())
print(len(course.epochs), course.best, course.stopped, said == repr(course)[1:-1].split("\\n"))
net.learn(xs[0], 0)
net.reset()
net.learn_all(lambda: zip(xs, ys), epochs=2, report=None)
print(net.digest(), net.rate, net.step)
"""
    falling, course, steady = run(flash, START + code)
    assert falling == digests[0]
    assert course == "2 None None True"
    assert steady == f"{digests[1]} 0.01 60"


def test_learning_stops_when_the_test_gets_no_better(flash):
    """keep: the net is then that of the best epoch, and not of the last."""
    code = """
digests = []
def samples():
    digests.append(net.digest())
    return zip(xs, ys)
# Half of the test is labelled wrong: what is right pays at first, being sure of it does not.
test = [(xs[i], (ys[i] + i % 2) % 3) for i in range(30)]
course = net.learn_all(samples, 30, test, patience=2, keep="best", report=None)
digests.append(net.digest())
print(course.best, len(course.epochs), course.stopped)
print(digests[-1] == digests[course.best], len(digests) == len(course.epochs) + 1)
best = max(tested for _, _, tested in course.epochs)
print(course.epochs[course.best - 1][2] == best, net.evaluate(test).accuracy == best)
print(course)
"""
    first, kept, tested, *shown = run(flash, START + code)
    best, epochs, *stopped = first.split(maxsplit=2)
    assert 3 < int(epochs) == int(best) + 2 < 30
    assert stopped == ["no better for 2 epochs"]
    assert kept == "True True"
    assert tested == "True True"
    assert shown[-2:] == [f"best: epoch {best}", "stopped: no better for 2 epochs>"]


def test_learning_that_diverges_is_noticed(flash):
    code = """
net.rate = 1
course = net.learn_all(list(zip(xs, ys)) * 9, report=None)
print(course.stopped, 32 <= net.step < 270)
print(net)
net.reset()
net.rate = 0.002
net.learn_all(list(zip(xs, ys)) * 3, report=None)
print(net)
"""
    stopped, diverged, well = run(flash, START + code)
    assert stopped == "it diverges, lower the rate and reset() or restore() True"
    assert "loss far above chance: reset() and lower the rate, now 1" in diverged
    assert "chance" not in well


def test_the_rate_comes_from_the_blob(flash, blob):
    for rate, said in (
        (None, "0.002"),
        (0.0125, "0.0125"),
        (7, "the learning rate is 7.0 and must lie between 1e-9 and 1, .*"),
        ("x", "net.sprout is damaged, its meta section cannot be read: .*"),
    ):
        meta = {**blob.meta, **({} if rate is None else {"rate": rate})}
        usual, blob.meta = blob.meta, meta
        (flash / "net.sprout").write_bytes(blob.to_bytes())
        blob.meta = usual
        code = """
import sprout
try:
    net = sprout.load("net.sprout")
    print(net.rate)
except ValueError as e:
    print(e)
"""
        (line,) = run(flash, code)
        assert line.startswith(said.removesuffix(".*")), line


# -------------------------------------------------------------------------------------------------
# Looking back


HISTORY = """
print(net.history)
losses, hits = [], []
def learn(n):
    for i in range(n):
        k = len(losses) % 30
        losses.append(net.learn(xs[k], ys[k]))
        hits.append(net.hit)
def same():
    step = worst = 0
    ok = True
    for end, loss, right in net.history:
        n = end - step
        worst = max(worst, abs(loss - sum(losses[step:end]) / n))
        ok = ok and right == sum(hits[step:end]) / n
        step = end
    print(step == len(losses), ok, worst < 1 / 128, len(list(net.history)), len(net.history))
for n in (1, 30, 1, 5, 700):
    learn(n)
    same()
print(net.history)
net.save()
net.restore()
learn(5)
print([step for step, _, _ in net.history])
every, most = 1 << 18, 32  # as after months
net.reset()
net._curve[0] = every
for k in range(40):
    net._curve[2] = every - 1
    net._record(65536 * (k + 1), 1)
rows = list(net.history)
print(len(rows), rows[0][0] // every, rows[-1][0] // every)
print(round(rows[0][1] * every), round(rows[-1][1] * every))
"""


def test_the_history_is_that_of_the_steps_in_bounded_memory(flash):
    nothing, *lines = run(flash, START + HISTORY)
    assert nothing == "<history: nothing learned yet>"
    points = [line.split() for line in lines[:5]]
    assert all(line[:3] == ["True"] * 3 and line[3] == line[4] for line in points)
    assert [int(line[3]) for line in points] == [1, 31, 32, 19, 24]
    title, loss, accuracy, restored, months, losses = lines[5:]
    assert title == "<history: steps 1 to 737, 32 a bar"
    assert loss.startswith("loss      █")
    assert accuracy.startswith("accuracy  ")
    assert restored == str(list(range(738, 743)))
    assert months == "24 17 40"
    assert losses == "17 40"


# -------------------------------------------------------------------------------------------------
# What the REPL and editors are told


def members(body: list[ast.stmt]) -> dict[str, str]:
    """Public functions and properties, with arguments and defaults, without annotations."""
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name == "__init__"):
            if any(isinstance(d, ast.Attribute) for d in node.decorator_list):
                continue  # a setter
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
            found[node.name] = "" if node.decorator_list else ast.unparse(node.args)
    return found


def parsed(name: str) -> tuple[dict[str, str], ast.ClassDef | None]:
    """Public functions of a file of the device package, and its class Net."""
    body = ast.parse((sim.DEVICE / name).read_text()).body
    net = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == "Net"), None)
    return members(body), net


@pytest.fixture(scope="module")
def attributes() -> set[str]:
    """The public attributes of Net that net.pyi declares."""
    net = parsed("net.pyi")[1]
    return {n.target.id for n in net.body if isinstance(n, ast.AnnAssign)}


def test_stubs_agree_with_the_package(attributes):
    """Names, arguments, defaults: what changes in net.py or __init__.py, changes in its .pyi."""
    assert parsed("__init__.py")[0] == parsed("__init__.pyi")[0]
    (functions, net), (stubs, stub) = parsed("net.py"), parsed("net.pyi")
    assert functions == stubs
    assert members(net.body) == members(stub.body)
    opening = ast.parse((sim.DEVICE / "opening.py").read_text())  # gives a Net its attributes
    assigned = {
        node.attr
        for node in [*ast.walk(net), *ast.walk(opening)]
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name) and node.value.id in ("self", "net")
    }  # fmt: skip
    assert attributes == {n for n in assigned if n[0] != "_"} - set(members(net.body))


def test_tab_shows_what_the_stubs_declare(flash, attributes):
    code = "print(*[name for name in dir(net) if name[0] != '_'])\nprint(*sprout.__all__)"
    shown, names = run(flash, START + code)
    assert set(shown.split()) == attributes | set(members(parsed("net.py")[1].body)) - {"__init__"}
    assert set(names.split()) == {*parsed("__init__.pyi")[0], "Net", "load"}


def test_help_says_all_that_docstrings_say(flash):
    """MicroPython keeps no docstrings, so they come from a file, line by line."""
    public = [*parsed("__init__.py")[0], *parsed("net.py")[0]]
    net = parsed("net.py")[1]
    documented = [
        n.name for n in net.body
        if isinstance(n, ast.FunctionDef) and n.name[0] != "_" and ast.get_docstring(n)
    ]  # fmt: skip
    code = """
import gc
sprout.help("learn")
gc.collect()
before = gc.mem_alloc()
sprout.help()
gc.collect()
print(gc.mem_alloc() - before)
sprout.help(net.history.__class__.__name__.lower())
"""
    lines = run(flash, START + code)
    learn = lines.index("sprout.load(path, *, classes=None, batch=1, verify=True, scratch=None)")
    assert lines[:2] == [
        "net.learn(x=None, label=None, rate=None)",
        "    One training step; returns the sample's loss before it, in nats.",
    ]
    end = next(i for i, line in enumerate(lines) if line.startswith("sprout.help('learn') says"))
    titles = [line.split("(")[0] for line in lines[learn:end]]
    assert set(titles) == {f"sprout.{n}" for n in public} | {"net"} | {
        f"net.{n}" for n in documented
    }
    assert int(lines[end + 1]) < 64
    assert lines[end + 2] == "net.history"
    undocumented = set(members(net.body)) - set(documented) - {"__init__"}
    words = ast.get_docstring(net)
    assert all(f"{name}: " in words for name in undocumented)


# -------------------------------------------------------------------------------------------------
# Memory


def test_three_thousand_steps_leave_memory_as_it_was():
    """`make bench-steps` does a million."""
    blob, x = bench_steps.blob_and_samples()
    found = bench_steps.on_board(blob, x, 3000)
    assert found["first"] == found["last"] == found["least"] == found["most"]
    assert found["bytes"] <= bench_steps.BYTES_PER_STEP
    assert found["digest"] == bench_steps.on_host(blob, x, 3000)


def test_an_error_takes_memory_only_for_a_moment(flash):
    """Its sentences are read again for the next one; the names in them stay known once read."""
    code = """
import gc
def live():
    gc.collect()
    return gc.mem_alloc()
def wrong():
    try:
        net.predict(b"")
    except ValueError as e:
        return len(str(e))
at_first = live()
wrong()
once = live()
wrong()
print(once - at_first, live() - once)
"""
    first, second = map(int, run(flash, START + code)[0].split())
    assert first < 1024
    assert second <= 0


def test_every_sentence_is_where_it_is_asked_for():
    """trouble("KIND").NAME is a function of KIND.py, and each of those has someone who asks."""
    asked, there = set(), set()
    for file in sim.DEVICE.glob("*.py"):
        text = file.read_text()
        calls = re.findall(r'\btrouble\((?:"(\w+)")?\)\.(\w+)', text)
        asked |= {(kind or "trouble", name) for kind, name in calls}
    for kind in {kind for kind, _ in asked}:
        functions = members(ast.parse((sim.DEVICE / f"{kind}.py").read_text()).body)
        there |= {(kind, name) for name in functions}
    assert asked <= there
    assert {name for _, name in there - asked} == {"needed", "size_of"}  # used by others of them
