"""Every misuse at the REPL, in real MicroPython: it says what to do, and the net stays usable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nets import residual_net
from sprout import compile as compiler
from sprout.frontends.head import replace_head
from test_device import run
from test_stream import rows_blob

START = """
import sprout
x = bytes(range(192))
y = bytes(reversed(x))
net = sprout.load("net.sprout")
"""

FILES = """
def usable(net):
    # Predicting, learning, saving and restoring, after which everything is as it was.
    before = net.digest(), net.classes, net.step
    net.save("kept")
    assert net.predict(x)[0] in net.classes
    net.learn(x, 0)
    net.save("now")
    now = net.digest(), net.step
    net.learn(y, 0)
    net.restore("now")
    assert (net.digest(), net.step) == now != (before[0], before[2])
    net.restore("kept")
    assert (net.digest(), net.classes, net.step) == before
"""


@pytest.fixture(scope="module")
def blobs(tmp_path_factory) -> Path:
    """net.sprout learns three classes and has room for two; still.sprout learns nothing."""
    folder = tmp_path_factory.mktemp("blobs")
    graph = replace_head(residual_net(), ["cup", "pen", "key"], 5)
    (folder / "net.sprout").write_bytes(compiler.compile_graph(graph, "full").to_bytes())
    (folder / "still.sprout").write_bytes(compiler.compile_graph(residual_net()).to_bytes())
    (folder / "fixed.sprout").write_bytes(compiler.compile_graph(residual_net(), "b2").to_bytes())
    other = replace_head(residual_net(7), ["left", "right"])
    other.name = "other"
    (folder / "other.sprout").write_bytes(compiler.compile_graph(other, "last").to_bytes())
    return folder


@pytest.fixture
def flash(blobs, tmp_path) -> Path:
    """A folder in place of the flash."""
    for file in blobs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


MISUSES = [
    # Nothing loaded, or what cannot do it
    ("net.learn(x, 0)", "NameError", "'net' isn't defined"),  # MicroPython's own words
    ("sprout.learn(x, 0)", "AttributeError", "module 'sprout' has no attribute 'learn'"),
    ("sprout.help('lern')", "ValueError", r"there is no help on 'lern': help\(\) shows all names"),
    ("still.learn(x, 0)", "ValueError", "still.sprout cannot learn: compile it with --plan last"),
    ("still.learn_all([(x, 0)])", "ValueError", "still.sprout cannot learn: compile it with"),
    ("fixed.remove_class(0)", "ValueError", "fixed.sprout cannot remove a class: compile"),
    ("still.remove_class(0)", "ValueError", "still.sprout cannot remove a class: .*--plan last"),
    # Loading
    ("sprout.load('no')", "OSError", r"no cannot be opened .*: copy it to the board"),
    ("sprout.load(3)", "ValueError", r"load\(\) takes a file name or the bytes of a blob"),
    ("sprout.load('main.py')", "ValueError", "main.py is not a Sprout blob: make one with"),
    ("sprout.load(b'SPRT')", "ValueError", "the blob is not a Sprout blob"),
    ("sprout.load('net.sprout', batch=0)", "ValueError", "batch is 0 and must be 1 or more"),
    ("sprout.load('net.sprout', batch='x')", "ValueError", "batch is 'x' and must be 1 or more"),
    ("sprout.load('net.sprout', classes=['a', 'a'])", "ValueError", "'a' is no name for a class"),
    ("sprout.load('net.sprout', classes=['a', 1])", "ValueError", "1 is no name for a class"),
    ("sprout.load('net.sprout', scratch=1 << 24)", "MemoryError", r"needs \d+ .* and \d+ are mis"),
    # Samples
    ("n.learn(x[1:], 1)", "ValueError", r"192 bytes \(8 x 8 x 3\), not 191: sprout.Frame crops"),
    ("n.predict(array('H', range(192)))", "ValueError", "192 bytes .*, not 384: sprout.Frame"),
    ("n.predict(7)", "ValueError", "a sample is bytes, bytearray, .*, not 7"),
    ("n.predict('frame')", "ValueError", "a sample has 192 bytes .* not 5"),
    ("n.predict([1] * 3000)", "ValueError", "a sample is bytes, bytearray, memoryview, array or "),
    ("n.predict(x, top='a')", "ValueError", "top is 'a' and must be 1 or more"),
    ("n.predict(x, top=0)", "ValueError", "top is 0 and must be 1 or more"),
    ("n.evaluate(7)", "ValueError", r"samples are pairs \(x, label\) in a list, .*, not 7"),
    ("n.evaluate([x])", "ValueError", r"each sample is a pair \(x, label\), not a bytes"),
    ("n.evaluate([(x, 'cat')])", "ValueError", "'cat' is no class of net: give one of cup, pen, "),
    ("n.learn_all([])", "ValueError", "there are no samples: give one pair"),
    ("n.learn_all([(x, 0)], epochs=0)", "ValueError", "epochs is 0 and patience is 2"),
    ("n.learn_all([(x, 0)], keep='a')", "ValueError", "keep saves the epoch with the best test"),
    ("n.learn_all([(x, 9)])", "ValueError", "9 is no class of net"),
    # Labels and classes
    ("n.learn(x, 'cat')", "ValueError", r"'cat' is no class of net: .* or call add_class\(\)"),
    ("n.learn(x, 4)", "ValueError", "4 is no class of net"),
    ("n.learn(x, -1)", "ValueError", "-1 is no class of net"),
    ("n.learn('cup', x)", "ValueError", "a bytes is no class of net: give one of cup, pen, key"),
    ("n.learn(x)", "ValueError", "None is no class of net"),
    ("n.add_class('cup')", "ValueError", "'cup' is no name for a class, or is one twice"),
    ("n.add_class(3)", "ValueError", "3 is no name for a class"),
    ("n.remove_class('cat')", "ValueError", "'cat' is no class of net"),
    ("n.remove_class(3)", "ValueError", "3 is no class of net"),
    # Settings
    ("n.rate = 0", "ValueError", "the learning rate is 0 and must lie between 1e-9 and 1"),
    ("n.rate = float('nan')", "ValueError", "the learning rate is nan"),
    ("n.rate = 30", "ValueError", "the learning rate is 30 and must lie between 1e-9 and 1, most"),
    ("n.rate = 'fast'", "ValueError", "the learning rate is 'fast' and must lie between"),
    ("n.learn(x, 1, rate=5)", "ValueError", "the learning rate is 5 and must lie between"),
    ("n.decay(3, 0)", "ValueError", "decay.. takes the number of a sample, .*, not 3 and 0"),
    ("n.seed = 'x'", "ValueError", "the seed is x and must lie between 0 and"),
    ("n.seed = 1 << 32", "ValueError", "the seed is 4294967296 and must lie between 0 and"),
    ("n.seed = -1", "ValueError", "the seed is -1 and must lie between 0 and"),
    # Checkpoints
    ("n.restore()", "OSError", r"net.ckpt holds no checkpoint: net.save\(\) writes one"),
    ("n.restore('other.ckpt')", "ValueError", r"other.ckpt belongs to another blob \(other\)"),
    ("n.restore('cut.ckpt')", "ValueError", "cut.ckpt is damaged or cut short: restore another"),
    ("n.restore('bad.ckpt')", "ValueError", "bad.ckpt is damaged"),
    ("n.restore('net.sprout')", "ValueError", "net.sprout is not a checkpoint: give a file"),
    ("n.restore('main.py')", "ValueError", r"main.py is not a checkpoint: give a file that save"),
    ("n.save('/no/where')", "OSError", "/no/where cannot be written .*: make [0-9]+ bytes of"),
    ("n.save('/flash/n.ckpt')", "OSError", "/flash/n.ckpt cannot be written .*: make [0-9]+ byt"),
]

TABLE = """
import vfs
from array import array
class Flash:  # too small for a checkpoint
    data = bytearray(4 * 512)
    def readblocks(self, n, buf, off=0):
        buf[:] = self.data[n * 512 + off : n * 512 + off + len(buf)]
    def writeblocks(self, n, buf, off=0):
        self.data[n * 512 + off : n * 512 + off + len(buf)] = buf
    def ioctl(self, op, arg):
        return 4 if op == 4 else 512 if op == 5 else 0
small = Flash()
vfs.VfsLfs2.mkfs(small)
vfs.mount(small, "/flash")
n = net
del net
still, fixed = sprout.load("still.sprout"), sprout.load("fixed.sprout")
sprout.load("other.sprout").save()
n.save("good.ckpt")
data = bytearray(open("good.ckpt", "rb").read())
with open("cut.ckpt", "wb") as f:
    f.write(data[:-9])
data[len(data) // 2] ^= 1
with open("bad.ckpt", "wb") as f:
    f.write(data)
import json
def tries(call):
    before = n.digest(), n.step, n.classes, n.rate, n.seed
    try:
        exec(call)
        print("nothing raised")
    except Exception as e:
        print(json.dumps([type(e).__name__, str(e)]))
    assert before == (n.digest(), n.step, n.classes, n.rate, n.seed), call
    usable(n)
"""


def test_every_misuse_gets_one_sentence_and_leaves_the_net_as_it_was(flash):
    """All in one session, each after all before; the net must be whole and usable every time."""
    code = START + FILES + TABLE + "".join(f"tries({call!r})\n" for call, _, _ in MISUSES)
    code += """
n.add_class("a")
n.add_class("b")
tries("n.add_class('c')")
for name in ("cup", "pen", "key", "a"):
    n.remove_class(name)
tries("n.remove_class('b')")
"""
    lines = run(flash, code)
    last = [
        ("", "ValueError", r"net.sprout has room for 5 classes: remove_class\(\) one, or compile"),
        ("", "ValueError", r"it is the last class of net: add_class\(\) another one before"),
    ]
    for (call, kind, pattern), line in zip([*MISUSES, *last], lines, strict=True):
        assert line.startswith("["), (call, line)
        found, message = json.loads(line)
        assert found == kind, (call, message)
        assert re.search(pattern, message), (call, message)
        assert len(message) < 240, call
        assert "\n" not in message


# -------------------------------------------------------------------------------------------------
# Ctrl-C

FLASH = """
import vfs
class Flash:  # of 512-byte blocks; `left` accesses from now on Ctrl-C comes
    def __init__(self, n):
        self.data, self.n, self.left = bytearray(n * 512), n, 0
    def tick(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
    def readblocks(self, n, buf, off=0):
        self.tick()
        buf[:] = self.data[n * 512 + off : n * 512 + off + len(buf)]
    def writeblocks(self, n, buf, off=0):
        self.data[n * 512 + off : n * 512 + off + len(buf)] = buf
    def ioctl(self, op, arg):
        return self.n if op == 4 else 512 if op == 5 else 0
flash = Flash(256)
vfs.VfsLfs2.mkfs(flash)
vfs.mount(flash, "/flash")
def copy(name):
    with open(name, "rb") as a, open("/flash/net.sprout", "wb") as b:
        b.write(a.read())
copy("net.sprout")
"""

BREAKS = """
import os
def breaks(name, act, batch=1):
    net = sprout.load("/flash/net.sprout", batch=batch)
    for i in range(5):
        net.learn(y, i % 3)
    net.save("/flash/goal")
    for i in range(5):
        net.learn(x, i % 3)
    net.save("back")
    trained = net._memory[3]
    base, classes, step = bytes(trained), net.classes, net.step
    flash.left = 0
    act(net)
    n = -flash.left
    goal, goal_classes, goal_step = bytes(trained), net.classes, net.step
    net.restore("back")
    odds = net.predict(y, top=3)
    seen = {}
    for k in range(1, n + 1):
        net.restore("back")
        flash.left = k
        try:
            act(net)
            print("no Ctrl-C at", k)
        except KeyboardInterrupt:
            pass
        if (trained, net.classes, net.step) == (base, classes, step):
            what = "before"
        elif (trained, net.classes, net.step) == (goal, goal_classes, goal_step):
            what = "after"
        else:  # part of one step, which does not count
            assert (net.classes, net.step) == (classes, step)
            assert all(trained[i] in (base[i], goal[i]) for i in range(len(base)))
            what = "between"
        seen[what] = seen.get(what, 0) + 1
        if k % 8 == 1:
            usable(net)
        net.restore("back")
        assert net.predict(y, top=3) == odds
    print(name, n, *sorted(seen))
"""

ACTS = {
    "predict": ("lambda net: net.predict(x)", "before"),
    "loss": ("lambda net: net.loss(x, 0)", "before"),
    "evaluate": ("lambda net: net.evaluate([(x, 0), (y, 1)])", "before"),
    "learn": ("lambda net: net.learn(x, 0)", "before between"),
    "remove": ("lambda net: net.remove_class('pen')", "before"),
    "reset": ("lambda net: net.reset()", "after"),
    "restore": ("lambda net: net.restore('/flash/goal')", "after"),
}


def test_ctrl_c_while_the_blob_is_read(flash):
    """At every access to the flash: the parameters are those before, or after where said so, and
    within a step each is that of before or after."""
    code = START + FILES + FLASH + BREAKS
    code += "".join(f"breaks({name!r}, {act})\n" for name, (act, _) in ACTS.items())
    for line, (name, (_, seen)) in zip(run(flash, code), ACTS.items(), strict=True):
        assert re.fullmatch(rf"{name} \d+ {seen}", line), line


def test_ctrl_c_while_rows_are_fed(flash):
    """The frame begins again; the layers that work row by row have kept nothing of the old one."""
    (flash / "net.sprout").write_bytes(rows_blob().to_bytes())
    code = """
net = sprout.load("/flash/net.sprout")
odds = net.predict(x, top=3)
def act():
    for i in range(0, 192, 48):
        net.feed(x[i : i + 48])
    return net.predict(top=3)
flash.left = 0
assert act() == odds
n = -flash.left
net.feed(x)
for k in range(1, n + 1):
    flash.left = k
    try:
        act()
        print("no Ctrl-C at", k)
    except KeyboardInterrupt:
        pass
    flash.left = 0
    try:
        net.predict()
        print("half a frame was enough")
    except ValueError as e:
        if k == 1:
            print(e)
    assert act() == odds == net.predict(x, top=3)
print(n > 20)
"""
    said, many = run(flash, START + FLASH + code)
    assert said.startswith("0 of the 8 rows of a frame are there: feed() the others")
    assert many == "True"


def test_a_blob_that_is_gone_or_another_one_after_ctrl_c(flash):
    code = """
net = sprout.load("/flash/net.sprout")
flash.left = 50
try:
    net.predict(x)
except KeyboardInterrupt:
    pass
import os
os.rename("/flash/net.sprout", "/flash/moved")
def says():
    try:
        net.predict(x)
    except OSError as e:
        print(e)
says()
copy("other.sprout")
says()
os.remove("/flash/net.sprout")
os.rename("/flash/moved", "/flash/net.sprout")
usable(net)
"""
    gone, other = run(flash, START + FILES + FLASH + code)
    assert re.fullmatch(r"/flash/net.sprout cannot be opened \(.*\): copy it to the board", gone)
    assert other == "/flash/net.sprout was replaced by another file: load it again"


CUTS = """
import os
from sprout import checkpoint
class Cut:  # os and open(), as checkpoint.py sees them, with a Ctrl-C at the left-th call
    left = 0
    def __getattr__(self, name):
        self.tick()
        return getattr(os, name)
    def tick(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
class File:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *args):
        self.file.close()
    def __getattr__(self, name):
        cut.tick()
        return getattr(self.file, name)
cut = Cut()
checkpoint.os = cut
checkpoint.open = lambda *args: File(open(*args))
net.learn(x, 0)
old = net.digest()
net.save()
net.learn(x, 1)
new = net.digest()
def times(act):
    cut.left = 0
    act()
    return -cut.left
n = times(net.save)
seen = set()
for k in range(1, n + 1):
    net.restore()
    cut.left = k
    try:
        net.save()
    except KeyboardInterrupt:
        pass
    net.learn(y, 2)
    net.restore()
    seen.add(net.digest() in (old, new))
    usable(net)
print(n > 4, seen)
net.reset()
net.save("other.ckpt")
fresh = net.digest()
n = times(net.restore)
for k in range(1, n + 1):
    net.restore("other.ckpt")
    cut.left = k
    try:
        net.restore()
    except KeyboardInterrupt:
        seen.add(net.digest() in (old, new))
print(n > 3, seen)
"""


def test_ctrl_c_while_a_checkpoint_is_written_or_read(flash):
    """Between any two calls of the file system: the last checkpoint or the one before is there,
    and restoring is done before Ctrl-C goes on."""
    lines = run(flash, START + FILES + CUTS)
    assert [line for line in lines if "is damaged or was cut short" not in line] == [
        "True {True}",
        "True {True}",
    ]
