"""Checkpoints and rings of samples: two slots, two file systems, board and host."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest
from emulator import Net
from nets import residual_net
from sprout import checkpoint as checkpoints
from sprout import compile as compiler
from sprout.engine import Engine
from sprout.graph import SproutError
from sprout.schedule import rate_parts
from test_device import START, fails, run
from test_emulated import MAIN

DEVICE = """
import os, vfs
class Flash:
    def __init__(self, block, blocks):
        self.block, self.data, self.written = block, bytearray(block * blocks), set()
        self.worn = False
    def readblocks(self, n, buf, off=0):
        at = n * self.block + off
        buf[:] = self.data[at:at + len(buf)]
    def writeblocks(self, n, buf, off=0):
        self.written.add(n)
        if self.worn:
            buf = b"?" + buf[1:]
        at = n * self.block + off
        self.data[at:at + len(buf)] = buf
    def ioctl(self, op, n):
        return len(self.data) // self.block if op == 4 else self.block if op == 5 else 0
def mount(kind, blocks):
    flash = Flash(4096 if kind == "lfs" else 512, blocks)
    system = vfs.VfsLfs2 if kind == "lfs" else vfs.VfsFat
    system.mkfs(flash)
    vfs.mount(system(flash), "/flash")
    with open("net.sprout", "rb") as a, open("/flash/net.sprout", "wb") as b:
        b.write(a.read())
    return flash
def hurt(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0] ^ 4
        f.seek(at)
        f.write(bytes((byte,)))
def fill():
    for i in range(4):
        try:
            while True:
                with open("/flash/filler%d" % i, "ab") as f:
                    f.write(bytes(256))
        except OSError:
            pass
"""
SLOTS = {"lfs": ("net.ckpt", "net.ckpt.1"), "fat": ("net.ckpt.0/slot", "net.ckpt.1/slot")}


@pytest.fixture(scope="module")
def blob():
    graph = residual_net(1)
    graph.classes = ["cup", "pen"]
    return compiler.compile_graph(graph, "full").to_bytes()


@pytest.fixture
def flash(tmp_path, blob):
    (tmp_path / "net.sprout").write_bytes(blob)
    return tmp_path


def mounted(kind: str, blocks: int) -> str:
    load = "import sprout\nnet = sprout.load('/flash/net.sprout')\nx = bytes(range(192))\n"
    return DEVICE + f"flash = mount({kind!r}, {blocks})\n" + load


# Two slots


@pytest.mark.parametrize("kind", ["lfs", "fat"])
def test_a_damaged_slot_falls_back_to_the_other_and_says_so(kind, flash):
    first, second = SLOTS[kind]
    code = f"""
digests = []
for i in range(3):
    net.learn(x, i & 1)
    net.save()
    digests.append(net.digest())
first, second = "/flash/{first}", "/flash/{second}"
hurt(second, 100)  # the older one: nothing to say
net.restore()
print(net.digest() == digests[2], net.step)
net.learn(x, 1)
net.save()  # in the place of the damaged one
digests.append(net.digest())
hurt(second, 100)
net.restore()
print(net.digest() == digests[2], net.step)
net.save()
net.reset()
net.restore()
print(net.digest() == digests[2], net.step)
hurt(first, 0)
net.restore()
print(net.digest() == digests[2], net.step)
hurt(second, 40)
try:
    net.restore()
except ValueError as e:
    print(e)
print(net.digest() == digests[2], net.step)
"""
    lines = run(flash, mounted(kind, 64 if kind == "lfs" else 256) + code)
    said = f"/flash/{second} is damaged or was cut short: this is the checkpoint before it, "
    assert lines == [
        "True 3",
        said + "of step 3",
        "True 3",
        "True 3",
        said.replace(second, first) + "of step 3",
        "True 3",
        f"/flash/{first} is not a checkpoint: give a file that save() wrote",
        "True 3",
    ]


def test_saving_on_fat_leaves_its_table_and_folders_alone(flash):
    """What is written is the slot, over its old bytes, and the sector of its folder."""
    code = """
for i in range(3):
    net.learn(x, i & 1)
    net.save()
net.add_class("a name of some length")
before = bytes(flash.data)
for i in range(2):
    flash.written.clear()
    net.learn(x, 1)
    net.save()
    sectors = sorted(flash.written)
    size = os.stat("/flash/net.ckpt.%d/slot" % (1 - i))[6]
    whole = sectors[-1] - sectors[0] == len(sectors) - 1
    print(len(sectors) <= size // 512, sectors[0] > 4, whole)
    folder = sectors[0] * 512
    print(before[folder:folder + 64] == flash.data[folder:folder + 64])
"""
    lines = run(flash, mounted("fat", 256) + code)
    assert lines == ["True True True", "True"] * 2


def test_room_for_two_on_littlefs_is_enough(flash):
    """The old slot gives way where the new one does not fit beside it."""
    code = """
net.save()
net.save()
fill()
net.learn(x, 1)
net.save()
digest = net.digest()
net.restore()
print(net.digest() == digest)
"""
    assert run(flash, mounted("lfs", 24) + code) == ["True"]


def test_no_room_for_the_slots_on_fat(flash):
    code = """
fill()
net.learn(x, 1)
digest = net.digest()
for i in range(2):
    try:
        net.save()
    except OSError as e:
        print(e)
print(net.digest() == digest)
for i in range(4): os.remove("/flash/filler%d" % i)
net.save()
net.reset()
net.restore()
print(net.digest() == digest)
"""
    *errors, kept, saved = run(flash, mounted("fat", 128) + code)
    assert len(errors) == 2
    for error in errors:
        text = r"/flash/net\.ckpt cannot be written \(.*\): make \d+ bytes of room"
        assert re.fullmatch(text, error)
    assert (kept, saved) == ("True", "True")


def test_a_flash_that_does_not_keep_what_is_written(flash):
    code = """
net.save()
flash.worn = True
net.learn(x, 1)
net.save()
"""
    kind, message = fails(flash, mounted("fat", 256) + code)
    assert kind == "OSError"
    assert message.startswith("/flash/net.ckpt.1/slot reads back otherwise than it was written")


# Board and host


@pytest.mark.parametrize("folder", [False, True])
def test_the_host_reads_the_newest_slot(folder, flash, blob):
    run(flash, START + "net.learn(x, 1)\nnet.add_class('key')\nnet.save()")
    code = "net.restore()\nnet.learn(x, 2)\nnet.save()\nprint(net.digest())"
    (digest,) = run(flash, START + code)
    slots = checkpoints.slots(flash / "net.ckpt")
    if folder:  # as a FAT holds it
        saved = [slot.read_bytes() for slot in slots[:2]]
        for old, new, data in zip(slots[:2], slots[2:], saved, strict=True):
            old.unlink()
            new.parent.mkdir()
            new.write_bytes(data)
    found = checkpoints.read(flash / "net.ckpt")
    engine = Engine(blob)
    engine.trained[:] = np.frombuffer(found.trained, np.uint8)
    assert engine.digest() == digest
    assert (found.name, found.classes, found.step) == ("net", ["cup", "pen", "key"], 2)
    newest = slots[3 if folder else 1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.read(flash / "net.ckpt").step == 1
    newest.unlink()
    other = slots[2 if folder else 0]
    other.write_bytes(b"SPCK\x01\0" + bytes(99))
    with pytest.raises(SproutError, match=r"slot|net.ckpt is of checkpoint version 1 and this"):
        checkpoints.read(flash / "net.ckpt")
    other.unlink()
    with pytest.raises(SproutError, match=r"net.ckpt holds no checkpoint: net.save\(\) writes"):
        checkpoints.read(flash / "net.ckpt")


def test_what_the_host_writes_is_newer_than_what_the_board_saved(flash, blob):
    """And what the board saves after that is newer again; its bytes are the host's."""
    learned = checkpoints.of(blob, Engine(blob).trained.tobytes(), 77, 5)
    for path in ("net.ckpt", "other.ckpt"):
        run(flash, START + f"for i in range(3): net.learn(x, i & 1), net.save({path!r})")
    checkpoints.write(flash / "net.ckpt", learned)
    code = "net.restore()\nprint(net.step, net.seed)\nnet.save()\nnet.learn(x, 1)\nnet.save()"
    assert run(flash, START + code) == ["77 5"]
    assert checkpoints.read(flash / "net.ckpt").step == 78
    saved = checkpoints.from_bytes((flash / "net.ckpt.1").read_bytes())
    number = checkpoints.from_bytes((flash / "net.ckpt").read_bytes()).number
    assert number == saved.number + 1
    text = b'{"classes": ["cup", "pen"], "name": "net"}'
    assert (flash / "net.ckpt.1").read_bytes().find(text) in (-1, 88)
    assert saved == dataclasses.replace(learned, number=saved.number)
    # Slots of a board into one file, which any board restores.
    checkpoints.write(flash / "one.ckpt", checkpoints.read(flash / "other.ckpt"))
    assert run(flash, START + "net.restore('one.ckpt')\nprint(net.step)") == ["3"]


def test_a_baked_blob_starts_with_what_was_learned(flash, blob):
    code = "net.add_class('key')\nfor i in range(9): net.learn(x, i % 3)\nnet.save()\n"
    (digest,) = run(flash, START + code + "print(net.digest())")
    learned = checkpoints.read(flash / "net.ckpt")
    baked = checkpoints.bake(blob, learned)
    (flash / "net.sprout").write_bytes(baked)
    code = "print(net.digest(), net.step, net.classes)\nnet.restore()"
    kind, message = fails(flash, START + code)
    assert (kind, message[:39]) == ("ValueError", "net.ckpt belongs to another blob (net),")
    code = START + code.partition("\n")[0] + "\nfor i in range(5): net.learn(x, i % 3)\n"
    first, last = run(flash, code + "print(net.digest())")
    assert first == f"{digest} 0 ['cup', 'pen', 'key']"
    engine = Engine(blob)
    engine.trained[:] = np.frombuffer(learned.trained, np.uint8)
    engine.blob.n_classes = 3
    frame = np.arange(192, dtype=np.uint8)
    for t in range(5):
        engine.step(frame.reshape(8, 8, 3), t % 3, rate_parts(0.002), 0, t)
    assert engine.digest() == last
    with pytest.raises(SproutError, match=r"belongs to another blob \(net\), not to this net:"):
        checkpoints.bake(baked, learned)
    learned.classes = list("abcdefg")
    with pytest.raises(SproutError, match="has 7 classes and the blob room for 4"):
        checkpoints.bake(blob, learned)


@pytest.mark.parametrize("cpu", MAIN)
def test_a_checkpoint_is_good_on_every_processor(cpu, flash, blob):
    """Learned here in MicroPython, learned on there: the same bytes as here."""
    run(flash, START + "for i in range(9): net.learn(x, i & 1)\nnet.save()")
    baked = checkpoints.bake(blob, checkpoints.read(flash / "net.ckpt"))
    frame = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    digests = []
    for net in (Net(baked, cpu), Engine(baked)):
        for t in range(4):
            net.step(frame, t & 1, rate_parts(0.01), 3, t)
        digests.append(net.digest())
    assert digests[0] == digests[1]


# Rings

RING = """
from sprout.ring import Ring
tag = bytes(range(32))
def sample(i, n=300):
    return bytes((i * 7 + j) & 255 for j in range(n))
"""


def test_a_ring_on_board_and_host(flash):
    code = """
ring = Ring("ring", 300, 8192, tag)
print(len(ring), ring.capacity, list(ring.labels) == [-1] * ring.capacity)
for slot in (0, 5, 3, 5):
    ring.write(slot, slot + 1, sample(slot)[:9], memoryview(sample(slot))[9:])
ring.flush()
ring = Ring("ring", 300, 8192, tag)
buffer = bytearray(300)
print(len(ring), list(ring.labels[:7]), ring.read(3, buffer), buffer == sample(3))
ring.write(3, 9, sample(30))
print(ring.read(3, buffer), buffer == sample(30), ring.read(1, buffer))
ring.flush()
hurt("ring/0", 308 * 5 + 20)
print(ring.read(5, buffer), len(ring), ring.dropped, ring.labels[5])
ring = Ring("ring", 300, 8192, tag)
print(len(ring), ring.dropped)
ring = Ring("ring", 300, 4096, tag)  # with less room
print(len(ring), ring.capacity, list(ring.labels[:3]))
"""
    lines = run(flash, DEVICE + RING + code)
    assert lines == [
        "0 24 True",
        "3 [1, -1, -1, 4, -1, 6, -1] 4 True",
        "9 True -1",
        "-1 2 1 -1",
        "2 1",
        "2 12 [1, -1, -1]",
    ]
    found = checkpoints.read_ring(flash / "ring")
    assert found.tag == bytes(range(32))
    assert found.slots.tolist() == [0, 3]
    assert found.labels.tolist() == [1, 9]
    expected = (np.arange(300) + 7 * np.array([[0], [30]])) & 255
    assert np.array_equal(found.samples, expected)
    assert found.dropped == 1
    shutil.rmtree(flash / "ring")
    with pytest.raises(SproutError, match="holds no samples that a board kept: copy the folder"):
        checkpoints.read_ring(flash / "ring")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Ring('ring', 300, 8192, bytes(32))", "ring holds samples of another net: give another"),
        ("Ring('ring', 301, 8192, tag)", "ring holds samples of 300 bytes, not 301: give another"),
        ("Ring('small', 300, 4, tag)", "small cannot hold one sample in 4 bytes: give it at"),
        ("ring.write(0, 1, bytes(299))", "has 300 bytes and a label from 0 to 32767, not 299"),
        ("ring.write(0, 40000, bytes(300))", "a label from 0 to 32767, not 300 and 40000"),
        ("ring.read(0, bytearray(9))", "a sample of this ring has 300 bytes and .* not 9 and -1"),
    ],
)
def test_misuse_of_a_ring(call, message, flash):
    kind, said = fails(flash, RING + f"ring = Ring('ring', 300, 8192, tag)\n{call}")
    assert kind == "ValueError"
    assert re.search(message, said)


def test_clearing_a_ring(flash):
    code = """
for kind in ("lfs", "fat"):
    flash = mount(kind, 64 if kind == "lfs" else 256)
    for clear in (False, True):
        ring = Ring("/flash/ring", 300, 9000, bytes((clear,)) * 32, clear=clear)
        for slot in range(ring.capacity): ring.write(slot, 1, sample(slot))
        ring.flush()
        if clear: ring.clear()
        print(len(ring), len(Ring("/flash/ring", 300, 9000, bytes((clear,)) * 32)))
    vfs.umount("/flash")
"""
    assert run(flash, DEVICE + RING + code) == ["24 24", "0 0", "25 25", "0 0"]


@pytest.mark.parametrize("kind", ["lfs", "fat"])
def test_a_ring_goes_on_with_fewer_samples_on_a_full_flash(kind, flash):
    code = """
ring = Ring("/flash/ring", 1000, 90000, tag)
first, known = ring.capacity, {}
for i in range(4 * first):
    slot = i * 37 % first
    if slot < ring.capacity:
        if ring.write(slot, i & 1, sample(i, 1000)):
            known[slot] = i
ring.flush()
print(8 <= ring.capacity < 50, len(ring) == len([s for s in known if s < ring.capacity]))
ring = Ring("/flash/ring", 1000, 90000, tag)
buffer = bytearray(1000)
slots = [slot for slot in known if slot < ring.capacity]
print(all(ring.read(slot, buffer) in (-1, known[slot] & 1) for slot in slots))
print(len(ring) > 8, ring.dropped)
net.learn(x, 1)
"""
    blocks = 16 if kind == "lfs" else 96
    text = r"the flash is full: /flash/ring goes on with room for \d+ samples"
    lines = run(flash, mounted(kind, blocks) + RING + code)
    said = [line for line in lines if re.fullmatch(text, line)]
    assert said
    assert [line for line in lines if line not in said] == ["True True", "True", "True 0"]
