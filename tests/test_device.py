"""The device package in real MicroPython: the host's bytes, and an answer to every mishap."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nets import everything_net, residual_net
from sprout import blob as blobs
from sprout import checkpoint as checkpoints
from sprout import compile as compiler
from sprout import places
from sprout.board import sim, table
from sprout.engine import Engine
from sprout.frontends.head import replace_head
from sprout.graph import SproutError
from sprout.schedule import rate_at, rate_parts, sample_order

from native_modules import build, mpy

HEAP = 1 << 20
START = "import sprout\nnet = sprout.load('net.sprout')\nx = bytes(range(192))\n"

BYTES_PER_STEP = 32
"""What learn() allocates on 64-bit words: the loss, a float; with 32-bit words it is 16."""


def start(folder: Path, code: str, heap: int = HEAP) -> subprocess.Popen[str]:
    (folder / "main.py").write_text(code)
    sim.put(folder, {})
    command, environment = sim.command(heap=heap)
    return subprocess.Popen(
        [*command, "main.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, code: str, heap: int = HEAP) -> list[str]:
    """The lines that a program prints in MicroPython."""
    process = start(folder, code, heap)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, out + errors
    return out.splitlines()


def fails(folder: Path, code: str, heap: int = HEAP) -> tuple[str, str]:
    """The exception at the end of a program: its type and its one sentence."""
    process = start(folder, code, heap)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1, out + errors
    kind, _, message = (out + errors).strip().splitlines()[-1].partition(": ")
    assert 20 < len(message) < 240, message
    assert not message.endswith("."), message
    return kind, message


@pytest.fixture(scope="module")
def blob():
    """residual_net: pixels 8 x 8 x 3, four classes, everything learns."""
    return compiler.compile_graph(residual_net(), "full").to_bytes()


@pytest.fixture
def flash(tmp_path, blob):
    """A folder in place of the flash, with the blob."""
    (tmp_path / "net.sprout").write_bytes(blob)
    return tmp_path


def train(engine, x, y, rate, seed, batch=1):
    parts = rate_parts(rate)
    losses = []
    for t, (frame, label) in enumerate(zip(x, y, strict=True)):
        losses.append(engine.step(frame, int(label), parts, seed, t))
        if engine.accum is not None and (t + 1) % batch == 0:
            engine.apply()
    return losses


def learn_code(source: str, rate: float, seed: int, options: str = "") -> str:
    return f"""
import sprout
def samples():
    with open("x.bin", "rb") as frames, open("y.bin", "rb") as labels:
        for label in labels.read():
            frames.readinto(net.input)
            yield label
net = sprout.load({source}{options})
net.rate, net.seed = {rate}, {seed}
for label in samples():
    print(net.learn(net.input, label))
print(net.digest())
"""


# The same bytes as the host


@pytest.mark.parametrize("net", [residual_net, everything_net])
@pytest.mark.parametrize("in_place", [False, True])
def test_predicts_what_the_host_predicts(net, in_place, tmp_path):
    blob = compiler.compile_graph(net(1))
    engine = Engine(blob.to_bytes())
    x = np.random.default_rng(0).integers(0, 256, (64, *blob.tensors[blob.input].shape), np.uint8)
    expected = []
    for frame in x:
        engine.set_input(frame)
        expected.append(engine.forward().ravel())
    file = tmp_path / "net.sprout"
    file.write_bytes(blob.to_bytes())
    assert (sim.run_on_board(file, x, in_place=in_place) == np.array(expected)).all()


@pytest.mark.parametrize("source", ["'net.sprout'", "open('net.sprout', 'rb').read()"])
@pytest.mark.parametrize(
    ("options", "accumulate", "batch"),
    [("", False, 1), (", batch=5", True, 5)],
)
def test_learns_what_the_host_learns(source, options, accumulate, batch, flash, blob):
    engine = Engine(blob, accumulate=accumulate)
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (20, 8, 8, 3), np.uint8), rng.integers(0, 4, 20)
    losses = train(engine, x, y, 0.003, 11, batch)
    (flash / "x.bin").write_bytes(x.tobytes())
    (flash / "y.bin").write_bytes(bytes(y.tolist()))
    *printed, digest = run(flash, learn_code(source, 0.003, 11, options))
    assert digest == engine.digest()
    assert [float(loss) for loss in printed] == pytest.approx(losses)


@pytest.mark.parametrize("source", ["'net.sprout'", "open('net.sprout', 'rb').read()"])
def test_resnet_learns_what_the_host_learns(source, shared, tmp_path):
    model = shared / "models" / "mlperf_resnet8_cifar10_int8.tflite"
    data = compiler.compile_model(model, "b6,6:1/2,7,8:1/4").to_bytes()
    engine = Engine(data)
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 256, (50, 32, 32, 3), np.uint8), rng.integers(0, 10, 50)
    before = engine.digest()
    train(engine, x, y, 0.0005, 3)
    assert engine.digest() != before
    (tmp_path / "net.sprout").write_bytes(data)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    (tmp_path / "y.bin").write_bytes(bytes(y.tolist()))
    assert run(tmp_path, learn_code(source, 0.0005, 3))[-1] == engine.digest()


def test_rates_are_those_of_the_host(flash):
    rng = np.random.default_rng(3)
    rates = [float(f"{r:.3e}") for r in 10 ** rng.uniform(-9, 9, 200)] + [1e-9, 1e9, 1, 4096, 0.5]
    points = [(int(m), int(t), int(n)) for m, n in rng.integers(2048, 4096, (50, 2))
              for t in (0, 1, n // 3, n - 1, n)]  # fmt: skip
    code = f"""
from sprout.schedule import rate_at, rate_parts
print([rate_parts(r) for r in {rates}])
print([rate_at(*p) for p in {points}])
"""
    parts, scheduled = run(flash, code)
    assert parts == str([rate_parts(rate) for rate in rates])
    assert scheduled == str([rate_at(*point) for point in points])


@pytest.mark.parametrize("rate", [1e-9, 0.002, 1 / 3, 1.0, 2.0, 4095.6, 1e9])
def test_a_rate_is_kept_to_twelve_bits(rate):
    mantissa, exponent = rate_parts(rate)
    assert 2048 <= mantissa < 4096
    assert mantissa * 2.0**exponent == pytest.approx(rate, rel=2**-11)


def test_an_order_holds_every_sample_once_an_epoch():
    order = sample_order(100, 3, 5).reshape(3, 100)
    assert order.dtype == np.uint32
    assert (np.sort(order) == np.arange(100)).all()
    assert (order[0] != order[1]).any()


def test_uses_a_blob_where_a_romfs_holds_it(flash, blob):
    """Files of a ROMFS have an address; romfs.md of MicroPython specifies the image."""

    def number(value: int) -> bytes:
        groups = [value & 127]
        while value := value >> 7:
            groups.append(value & 127 | 128)
        return bytes(reversed(groups))

    def record(kind: int, payload: bytes) -> bytes:
        return number(kind) + number(len(payload)) + payload

    def image(padding: int) -> bytes:
        name = b"net.sprout"
        filler = record(1, bytes(padding))
        body = filler + record(5, number(len(name)) + name + record(2, blob))
        return b"\xd2\xcd\x31" + number(len(body)) + body

    images = (image(padding) for padding in range(4))
    (flash / "rom").write_bytes(next(i for i in images if i.index(blob) % 4 == 0))
    code = """
import vfs, sprout
vfs.mount(vfs.VfsRom(open("rom", "rb").read()), "/rom")
net = sprout.load("/rom/net.sprout")
same = net.predict(bytes(192)) == sprout.load("net.sprout").predict(bytes(192))
print(net.memory()["program"], same)
net.save()
import os
print("net.ckpt" in os.listdir())
"""
    assert run(flash, code) == ["0 True", "True"]


# What stays


def test_goes_on_after_a_restart_as_if_there_had_been_none(flash):
    steps = "for i in range({}): net.learn(x, i % 4)\n"
    whole = run(flash, START + "net.seed = 9\n" + steps.format(40) + "print(net.digest())")
    run(flash, START + "net.seed = 9\n" + steps.format(20) + "net.save()")
    code = START + "net.restore()\nprint(net.step)\n" + steps.format(20) + "print(net.digest())"
    assert run(flash, code) == ["20", *whole]


def test_reset_forgets_everything(flash):
    code = """
first = net.digest()
for i in range(9): net.learn(x, 1)
net.save()
learned = net.digest()
net.reset()
print(net.digest() == first != learned, net.step)
net.restore("net.ckpt")
print(net.digest() == learned, net.step)
"""
    assert run(flash, START + code) == ["True 0", "True 9"]


def test_reads_checkpoints_of_the_host(flash, blob):
    engine = Engine(blob)
    train(engine, np.full((5, 8, 8, 3), 77, np.uint8), [0, 1, 2, 3, 0], 0.01, 4)
    learned = checkpoints.of(blob, bytes(engine.trained), 5, 4)
    checkpoints.write(flash / "host.ckpt", learned)
    assert checkpoints.read(flash / "host.ckpt").trained == bytes(engine.trained)
    code = START + "net.restore('host.ckpt')\nprint(net.digest(), net.step, net.seed)"
    assert run(flash, code) == [f"{engine.digest()} 5 4"]


def test_a_damaged_checkpoint_changes_nothing(flash):
    run(flash, START + "net.learn(x, 1)\nnet.save()")
    good = (flash / "net.ckpt").read_bytes()
    for i in range(0, len(good), 29):
        (flash / f"{i}.ckpt").write_bytes(good[:i] + bytes([good[i] ^ 16]) + good[i + 1 :])
        (flash / f"{i}.cut.ckpt").write_bytes(good[:i])
    code = """
import os
before = net.digest()
messages = set()
for name in os.listdir():
    if name.endswith(".ckpt") and name != "net.ckpt":
        try:
            net.restore(name)
            print("not refused:", name)
        except (OSError, ValueError) as e:
            messages.add(str(e)[len(name):])
print(net.digest() == before, net.step)
net.restore()
print(net.digest() == before, net.step)
for m in sorted(messages): print(m)
"""
    first, second, *messages = run(flash, START + code)
    assert (first, second) == ("True 0", "False 1")
    assert messages == [
        " holds no checkpoint: net.save() writes one",
        " is damaged or cut short: restore another one",
        *[m for m in messages if "checkpoint version" in m],
        " is not a checkpoint: give a file that save() wrote",
    ]


def test_a_checkpoint_of_another_blob_is_refused_by_name(flash):
    graph = residual_net(5)
    graph.name = "flowers"
    (flash / "flowers.sprout").write_bytes(compiler.compile_graph(graph, "full").to_bytes())
    run(flash, START + "sprout.load('flowers.sprout').save()")
    code = START + "net.restore('flowers.ckpt')"
    assert fails(flash, code) == (
        "ValueError",
        "flowers.ckpt belongs to another blob (flowers), not to this net: "
        "load that one to restore it",
    )


def test_a_full_flash_keeps_the_old_checkpoint(flash):
    code = """
import os, vfs
class Flash:
    def __init__(self):
        self.data = bytearray(10 * 4096)
    def readblocks(self, n, buf, off=0):
        at = n * 4096 + off
        buf[:] = self.data[at:at + len(buf)]
    def writeblocks(self, n, buf, off=0):
        at = n * 4096 + off
        self.data[at:at + len(buf)] = buf
    def ioctl(self, op, arg):
        return 10 if op == 4 else 4096 if op == 5 else 0
flash = Flash()
vfs.VfsLfs2.mkfs(flash)
vfs.mount(flash, "/flash")
with open("net.sprout", "rb") as a, open("/flash/net.sprout", "wb") as b:
    b.write(a.read())
net = sprout.load("/flash/net.sprout")
net.learn(x, 1)
net.save()
digest = net.digest()
full = 0
while full < 3:
    try:
        with open("/flash/filler%d" % full, "ab") as f:
            f.write(bytes(256))
    except OSError:
        full += 1
net.learn(x, 2)
try:
    net.save()
except OSError as e:
    print(e)
net.restore()
print(net.digest() == digest, "net.ckpt.tmp" in os.listdir("/flash"))
for i in range(full): os.remove("/flash/filler%d" % i)
net.save()
"""
    message, kept = run(flash, START + code)
    assert re.fullmatch(
        r"/flash/net\.ckpt cannot be written \(.*28.*\): make \d+ bytes of room", message
    )
    assert kept == "True False"


# The REPL


def test_a_session_at_the_repl(flash):
    graph = residual_net()
    graph.classes = ["cup", "pen"]
    (flash / "net.sprout").write_bytes(compiler.compile_graph(graph, "full").to_bytes())
    code = """
print(net)
for i in range(60): loss = net.learn(x, "pen")
label, odds = net.predict(x)
print(label, odds > 0.9, loss < 0.2, abs(net.loss(x, "pen") - loss) < 0.1, net.step)
net.add_class("key")
for i in range(60): net.learn(x, "key")
print([name for name, odds in net.predict(x, top=2)][0], net.classes, round(sum(
    odds for name, odds in net.predict(x, 3)), 3))
net.save()
net.reset()
print(net.classes)
net.restore()
print(net.classes)
print(net)
print(net.memory())
"""
    lines = run(flash, START + code)
    assert lines[0].startswith("<net: 2 classes (cup, pen), 0 samples seen, ")
    assert lines[1] == "pen True True True 60"
    assert lines[2] == "key ['cup', 'pen', 'key'] 1.0"
    assert lines[3:5] == ["['cup', 'pen']", "['cup', 'pen', 'key']"]
    assert lines[5].startswith("<net: 3 classes (cup, pen, key), 120 samples seen, ")
    parts = json.loads(lines[6].replace("'", '"'))
    kinds = {"arena", "trained", "scratch", "accum", "program", "native", "replay"}
    assert set(parts) == kinds
    assert parts["native"] > 10000


def test_ctrl_c_between_two_steps_leaves_the_net_usable(flash):
    code = """
print("ready")
try:
    while True:
        net.learn(x, net.step % 4)
except KeyboardInterrupt:
    steps = net.step
net.learn(x, 1)
print(net.step == steps + 1, len(net.digest()), net.predict(x)[0] in net.classes)
"""
    process = start(flash, START + code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert out == "True 64 True\n", errors


# Memory


def test_a_step_allocates_one_float(flash):
    code = """
import gc
def cost(call):
    call()
    gc.collect()
    before = gc.mem_alloc()
    for i in range(20): call()
    return (gc.mem_alloc() - before) / 20
gc.disable()
print(cost(lambda: net.learn(x, 1)), cost(lambda: net.learn(x, "class_2")))
print(cost(lambda: net.learn(net.input, 1)), cost(lambda: net.decay(5, 50)))
print(cost(lambda: net.classify(x)), cost(lambda: net.forward(x)))
net = sprout.load("net.sprout", batch=3)
print(cost(lambda: net.learn(x, 3)))
"""
    learn, predict = f"{BYTES_PER_STEP:.1f}", "0.0 0.0"
    assert run(flash, START + code) == [f"{learn} {learn}", f"{learn} 0.0", predict, learn]


def test_a_small_heap_says_how_many_bytes_are_missing(tmp_path, shared):
    model = shared / "models" / "mlperf_resnet8_cifar10_int8.tflite"
    (tmp_path / "net.sprout").write_bytes(compiler.compile_model(model, "last").to_bytes())
    heap = 70_000
    kind, message = fails(tmp_path, START, heap)
    assert kind == "MemoryError"
    found = re.search(r"net.sprout needs (\d+) bytes of RAM and (\d+) are missing: load", message)
    assert found
    needed, missing = map(int, found.groups())
    assert 0 < missing < needed
    run(tmp_path, START, heap + missing)
    kind, message = fails(tmp_path, START, heap + missing - 2000)
    assert kind == "MemoryError"


def test_names_of_a_thousand_classes_need_their_room(tmp_path):
    """Even the heap that cannot hold the names alone says how many bytes are missing."""
    graph = residual_net()
    names = [f"something with a name, number {i}" for i in range(1000)]
    data = compiler.compile_graph(replace_head(graph, names)).to_bytes()
    (tmp_path / "net.sprout").write_bytes(data)
    code = START + "net.save()\n"
    kind, message = fails(tmp_path, code, 120_000)
    found = re.search(r" and (\d+) are missing", message)
    assert kind == "MemoryError"
    assert found
    run(tmp_path, code, 120_000 + int(found[1]))


def test_learning_on_a_simulated_pico(flash, blob):
    engine = Engine(blob)
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 256, (30, 8, 8, 3), np.uint8), rng.integers(0, 4, 30)
    order = sample_order(30, 2, 1)
    mantissa, exponent = rate_parts(0.01)
    losses = []
    for t, i in enumerate(order):
        rate = rate_at(mantissa, t, len(order)), exponent
        losses.append(engine.step(x[i], int(y[i]), rate, 6, t))
    file, lines = flash / "net.sprout", []
    result = sim.learn_on_board(
        file, x, y, order, x[:7], y[:7], 0.01, seed=6, every=20, test_every=30,
        save=flash / "kept.ckpt", on_progress=lines.append,
    )  # fmt: skip
    assert result["digest"] == engine.digest()
    assert [row["step"] for row in result["curve"]] == [20, 30, 50, 60]
    assert result["curve"][0]["loss"] == pytest.approx(np.mean(losses[:20]))
    assert ["test_accuracy" in row for row in result["curve"]] == [False, True, False, False]
    assert result["heap_limit"] == table.find("pico").heap > result["heap_peak"]
    assert result["heap_peak"] > result["native_bytes"] + result["arena_bytes"]
    assert [line["kind"] for line in lines] == ["start", "before", *["progress"] * 4, "result"]
    code = START + "net.restore('kept.ckpt')\nprint(net.digest(), net.step)"
    assert run(flash, code) == [f"{engine.digest()} 60"]


def test_failures_on_the_board_are_errors_of_the_host(flash, shared):
    x, y = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64)
    file = flash / "net.sprout"
    order = np.zeros(1, np.uint32)
    with pytest.raises(SproutError, match="too small, Sprout's code alone takes"):
        sim.learn_on_board(file, x, y, order, x, y, 0.01, heap=40_000)
    with pytest.raises(SproutError, match="the learning rate is -1 and must lie"):
        sim.learn_on_board(file, x, y, order, x, y, -1)
    with pytest.raises(SproutError, match=r"uint8 pixels or int8 values, not float64"):
        sim.run_on_board(file, x / 255)
    with pytest.raises(SproutError, match="There is no board 'pcio'; the boards are pico, pico2"):
        sim.run_on_board(file, x, "pcio")
    with pytest.raises(SproutError, match="took over 0.2 s"):
        sim.learn_on_board(file, x, y, np.zeros(10**6, np.uint32), x, y, 0.01, timeout=0.2)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SproutError, match=r"net.sprout has \d+ of its \d+ bytes: copy it again"):
        sim.run_on_board(file, x)


def test_the_simulated_repl(flash):
    code = "import sys; from pathlib import Path; from sprout.board import sim; "
    code += "sys.exit(sim.repl(Path('net.sprout')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=flash,
        env={"PYTHONPATH": str(places.ROOT / "host")},
        input="print(net.learn(bytes(192), 1) > 0, net.step)\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "<net: 4 classes" in done.stdout, done.stderr
    assert "True 1" in done.stdout


# Files from elsewhere


def test_damaged_blobs_are_refused_before_anything_is_used(flash, blob):
    wrong = {
        "cut": blob[:-8],
        "longer": blob + bytes(8),
        "header only": blob[:128],
        "half a header": blob[:60],
        "future": blob[:4] + struct.pack("<H", 3) + blob[6:],
        "empty": b"",
    }
    for at in range(0, len(blob), 997):
        wrong[f"byte {at}"] = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    for i, data in enumerate(wrong.values()):
        (flash / f"{i}.bad").write_bytes(data)
    code = f"""
import sprout
for i in range({len(wrong)}):
    for source in ("%d.bad" % i, open("%d.bad" % i, "rb").read()):
        try:
            sprout.load(source)
            print("loaded")
        except ValueError as e:
            print(e)
"""
    sentences = (
        r"(\d+\.bad|the blob) (is not a Sprout blob: make one with 'sprout compile'"
        r"|is of blob format \d+ and this package reads 2: compile it again, .*"
        r"|has \d+ of its \d+ bytes: copy it again"
        r"|is damaged, its SHA-256 does not match: copy it again)"
    )
    lines = run(flash, code)
    assert len(lines) == 2 * len(wrong)
    for line in lines:
        assert re.fullmatch(sentences, line), line


def test_a_wrong_plan_is_refused_even_where_nothing_is_verified(flash, blob):
    """With verify=False the core's own check is what stands between a bad file and the arena."""
    data = bytearray(blob)
    (program,) = struct.unpack_from("<I", data, 48)
    struct.pack_into("<I", data, program, 1 << 20)  # the first tensor far outside the arena
    (flash / "bad.sprout").write_bytes(data)
    kind, message = fails(flash, "import sprout\nsprout.load('bad.sprout', verify=False)")
    assert kind == "ValueError"
    assert re.match(r"bad.sprout does not run \(error -9, operator \d+, detail 0\): comp", message)


def forged(made: blobs.Blob, **changes: object) -> bytes:
    """A blob with other fields and the right digest."""
    made = copy.deepcopy(made)
    for name, value in changes.items():
        setattr(made, name, value)
    return made.to_bytes()


def test_a_forged_blob_gets_a_sentence(flash):
    made = compiler.compile_graph(residual_net(), "last")
    raw = made.to_bytes()
    start, length = struct.unpack_from("<II", raw, 72)
    broken = bytearray(raw)
    broken[start + 2] = 0xFF
    broken[16:48] = hashlib.sha256(broken[48:]).digest()
    wrong = {
        "outputs": forged(made, n_classes=9, max_classes=9),
        "tensor 99": forged(made, input=99),
        "tensor 98": forged(made, logits=98),
        "meta": bytes(broken),
        "meta section": forged(made, meta={"logits": []}),
        "meta section ": forged(made, meta={"logits": {"p0": "x"}}),
        "no name for a class": forged(made, meta={"classes": [1, 2, 3, 4]}),
    }
    for i, data in enumerate(wrong.values()):
        (flash / f"{i}.sprout").write_bytes(data)
    code = f"""
import sprout
for i in range({len(wrong)}):
    try:
        sprout.load("%d.sprout" % i).predict(bytes(192))
        print("loaded")
    except ValueError as e:
        print(e)
"""
    for said, line in zip(wrong, run(flash, code), strict=True):
        assert said.strip() in line or "error -1" in line, line


def test_more_classes_than_probabilities_are_computed_for(flash):
    graph = replace_head(residual_net(), ["a"], 1025)
    (flash / "net.sprout").write_bytes(compiler.compile_graph(graph).to_bytes())
    assert run(flash, START + "print(net.predict(x)[0])") == ["a"]
    names = "[str(i) for i in range(1025)]"
    code = f"import sprout\nsprout.load('net.sprout', classes={names}).predict(bytes(192))"
    kind, message = fails(flash, code)
    assert kind == "ValueError"
    assert message.startswith("net.sprout has 1025 classes, too many for predict()")


def library_with(folder: Path, module: bytes | None) -> str:
    """A library with another native module, or none; returns what puts it on the path."""
    library = folder / "else" / "sprout"
    library.mkdir(parents=True)
    for file in (sim.library() / "sprout").iterdir():
        (library / file.name).write_bytes(file.read_bytes())
    if module is not None:
        (library.parent / "sprout_core.mpy").write_bytes(module)
    return "import sys\nsys.path[:] = ['else', '.frozen']\n"


@pytest.mark.parametrize("plan", ["none", "last", "full"])
def test_a_module_for_one_net_runs_that_net(plan, tmp_path):
    """It has the net's operators and no others, and is smaller for it."""
    data = compiler.compile_graph(residual_net(), plan).to_bytes()
    net = tmp_path / "net.sprout"
    net.write_bytes(data)
    module = build.build_natmod("x64", tmp_path / "own.mpy", [net])
    assert build.operators_of(net) == {blobs.OPCODES[op.kind] for op in blobs.read(data).ops}
    whole = build.manifest(build.build_natmod("x64"))["code_bytes"]
    assert build.manifest(module)["code_bytes"] < whole - 4096
    start = library_with(tmp_path, module.read_bytes())
    engine = Engine(data)
    frame = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    engine.set_input(frame)
    expected = [str(engine.forward().ravel().tolist())]
    code = "import sprout, struct\nnet = sprout.load('net.sprout')\n"
    code += "print(list(struct.unpack('4b', net.forward(bytes(range(192))))))\n"
    if plan != "none":
        train(engine, [frame] * 5, [1, 2, 3, 0, 1], 0.01, 0)
        expected.append(engine.digest())
        code += "net.rate = 0.01\nfor label in (1, 2, 3, 0, 1):\n"
        code += "    net.learn(bytes(range(192)), label)\nprint(net.digest())\n"
    assert run(tmp_path, start + code) == expected


def test_a_module_for_one_net_refuses_another(tmp_path):
    small, large = tmp_path / "small.sprout", tmp_path / "net.sprout"
    small.write_bytes(compiler.compile_graph(residual_net(), "none").to_bytes())
    large.write_bytes(compiler.compile_graph(everything_net(), "none").to_bytes())
    module = build.build_natmod("x64", tmp_path / "own.mpy", [small]).read_bytes()
    assert fails(tmp_path, library_with(tmp_path, module) + START) == (
        "ValueError",
        "net.sprout uses operator 5, which this sprout_core does not have: install the whole one",
    )


def test_a_module_for_no_blob_is_not_built(tmp_path, capsys):
    (tmp_path / "net.sprout").write_bytes(compiler.compile_graph(residual_net()).to_bytes()[:500])
    (tmp_path / "text").write_text("no blob")
    for name, sentence in (
        ("none", "cannot be read (No such file or directory): give a .sprout file"),
        ("text", "is no blob: give what 'sprout compile' wrote"),
        ("net.sprout", "is damaged: compile it again"),
    ):
        assert build.main(["natmod", "--for", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err == f"build.py: {tmp_path / name} {sentence}\n"


X64 = "this firmware takes .mpy 6.3 for x64, copy sprout_core_x64.mpy to the board as lib/"


def another_release(module: bytes) -> bytes:
    """The module with another name for its number of release."""
    assert module.count(b"\x06ABI\0") == 1
    return module.replace(b"\x06ABI\0", b"\x06ABX\0")


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        (None, "missing"),
        ("armv6m", "not for this board"),
        ("xtensawin", "not for this board"),
        (lambda module: module[:2] + bytes([2 << 2 | 2]) + module[3:], "not for this board"),
        (lambda module: b"M\5" + module[2:], "not for this board"),
        (another_release, "of another release than this package"),
    ],
    ids=["missing", "armv6m", "xtensawin", "6.2", "5", "release"],
)
def test_a_wrong_native_module_is_named(module, wrong, tmp_path):
    """Files that are really there for other boards, and what other releases would have built."""
    content = None
    if module is not None:
        right = (sim.library() / "sprout_core.mpy").read_bytes()
        other = build.PREBUILT / f"sprout_core_{module}.mpy"
        content = module(right) if callable(module) else other.read_bytes()
    kind, message = fails(tmp_path, library_with(tmp_path, content) + "import sprout")
    assert kind == "ImportError"
    assert message == f"sprout_core.mpy is {wrong}: {X64}sprout_core.mpy"


def test_a_module_in_firmware_of_another_release_is_named(tmp_path):
    code = """
import sys
class core:
    ABI = 0
sys.modules["sprout_core"] = core
import sprout
"""
    expected = (
        "sprout_core in this firmware is of another release than this package: copy the package "
        "of the firmware's release"
    )
    assert fails(tmp_path, code) == ("ImportError", expected)


COPY = "copy sprout_core_{}.mpy to the board as lib/sprout_core.mpy"
BUILD = "build one that holds it (native_modules/usermod)"
INSTALL = "install MicroPython 1.23 to 1.29 (.mpy 6.3) and "


@pytest.mark.parametrize(
    ("sub_version", "arch", "firmware", "remedy"),
    [
        (3, "armv6m", "6.3 for armv6m, ", COPY.format("armv6m")),
        (3, "armv7m", "6.3 for armv7m, ", COPY.format("armv7m")),
        # What a Cortex-M3 says, and a Cortex-M4 or M7 without an FPU.
        (3, "armv7em", "6.3 for armv7em, ", COPY.format("armv7m")),
        (3, "armv7emsp", "6.3 for armv7emsp, ", COPY.format("armv7emsp")),
        (3, "armv7emdp", "6.3 for armv7emdp, ", COPY.format("armv7emdp")),
        (3, "xtensawin", "6.3 for xtensawin, ", COPY.format("xtensawin")),
        (3, "rv32imc", "6.3 for rv32imc, ", COPY.format("rv32imc")),
        (2, "xtensawin", "6.2 for xtensawin, ", INSTALL + COPY.format("xtensawin")),
        (1, "armv6m", "6.1 for armv6m, ", INSTALL + COPY.format("armv6m")),
        (3, "xtensa", "6.3 for xtensa, for which there is none: ", BUILD),
        (3, None, "6.3 without native code: ", BUILD),
    ],
)
def test_the_board_is_told_which_module_it_needs(sub_version, arch, firmware, remedy, flash):
    number = mpy.ARCHES[arch] if arch else 0
    code = f"""
import sprout.trouble as trouble
class implementation:
    _mpy = {6 | sub_version << 8 | number << 10}
print(trouble.needed(implementation))
"""
    (line,) = run(flash, code)
    assert line == f"this firmware takes .mpy {firmware}{remedy}"
    if arch and remedy != BUILD:
        (named,) = re.findall(r"sprout_core_\w+\.mpy", line)
        assert (build.PREBUILT / named).exists()


def test_native_code_counts_as_on_the_board():
    code = build.manifest(build.build_natmod("armv6m"))["code_bytes"]
    assert sim.native_bytes("pico") == sim.native_bytes("esp32") == code
    assert sim.native_bytes("unix") > code
