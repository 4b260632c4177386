# ruff: noqa: UP031
# mypy: ignore-errors
"""Power cuts in MicroPython: a flash that fails on command, and what must hold after each cut.

test_powercut.py and tools/bench_powercut.py run this; settings from powercut.json, results as one
line of JSON.  Everything is compared with a log that is kept outside the flash.

A cut happens at one write or erase of a block device:

    before   nothing of it is done
    torn     the first part of its bytes is new, the rest is old
    garbled  all its bytes are random
    erased   all its bytes are 255: FAT on flash that is erased before it is written
    after    it is done, and nothing after it
"""

import gc
import json
import os
import time

import sprout
import vfs
from sprout.ring import Ring

TORN = ("torn", "after")  # before a write is after the one before it
ALL = {"lfs": ("garbled",) + TORN, "fat": ("erased", "garbled") + TORN}
SIZES = {"lfs": (4096, 96), "fat": (512, 1024)}  # bytes of a block, blocks
RECORD = 600  # bytes of a sample in the ring, and of a ring of a few
RING = 8 * 1024
TAG = bytes(range(32))


class PowerCut(BaseException):
    pass


CUT = PowerCut()  # made ahead, for where nothing can be allocated


class Flash:
    """Blocks in data, until the cut: number of a write or erase from 1, 0 for none.

    counts: [writes, bytes written, erases].
    """

    def __init__(self, kind, data, cut=0, mode="after", seed=1):
        self.block, self.blocks = SIZES[kind]
        self.kind, self.data, self.cut, self.mode, self.seed = kind, data, cut, mode, seed
        self.n, self.dead, self.gone = 0, False, False
        self.counts = [0, 0, 0]

    def readblocks(self, n, buffer, offset=0):
        if self.dead:
            return self._off()
        at = n * self.block + offset
        buffer[:] = self.data[at : at + len(buffer)]

    def writeblocks(self, n, buffer, offset=0):
        if self.dead:
            return self._off()
        at = n * self.block + offset
        if self.kind == "lfs":  # a bit becomes 0 by writing, 1 only by erasing
            assert self.data[at : at + len(buffer)] == b"\xff" * len(buffer), "not erased"
        self.counts[0] += 1
        self.counts[1] += len(buffer)
        self._change(at, buffer)

    def ioctl(self, op, n):
        if op == 4:
            return self.blocks
        if op == 5:
            return self.block
        if self.dead:
            return self._off()
        if op == 6 and self.kind == "lfs":
            self.counts[2] += 1
            self._change(n * self.block, b"\xff" * self.block)
        return 0

    def _off(self):
        """The program has ended once it is gone; then this is only about files left open."""
        if self.gone:
            return -5
        raise CUT

    def _change(self, at, new):
        self.n += 1
        n = len(new)
        if self.n == self.cut:
            self.dead = True
            if self.mode == "before":
                n = 0
            elif self.mode == "torn":
                n = 1 + self._random() % (n - 1)
            elif self.mode == "erased":
                new = b"\xff" * n
            elif self.mode == "garbled":
                new = bytes(self._random() & 255 for _ in range(n))
        self.data[at : at + n] = memoryview(new)[:n]
        if self.dead:
            raise CUT

    def _random(self):
        self.seed = (self.seed * 1103515245 + 12345) & 0x7FFFFFFF
        return self.seed >> 12


class Board:
    """The flash of one kind over data, mounted; the same power cut ends whatever it is doing."""

    def __init__(self, kind, data, cut=0, mode="after", seed=1, mkfs=False):
        self.flash = Flash(kind, data, cut, mode, seed)
        system = vfs.VfsLfs2 if kind == "lfs" else vfs.VfsFat
        if mkfs:
            system.mkfs(self.flash)
        vfs.mount(system(self.flash), "/flash")

    def off(self):
        vfs.umount("/flash")
        self.flash.dead = self.flash.gone = True


def blank(kind, blob):
    """A flash with the blob and nothing else."""
    block, blocks = SIZES[kind]
    data = bytearray(b"\xff" * (block * blocks))
    board = Board(kind, data, mkfs=True)
    with open("/flash/net.sprout", "wb") as file:
        file.write(blob)
    board.off()
    return data


def load():
    return sprout.load("/flash/net.sprout")


def state(net):
    return "%d %s" % (net.step, net.digest())


def restored(net):
    """The state of the checkpoint, None where there is none yet."""
    try:
        net.restore()
    except (OSError, ValueError):
        return None
    return state(net)


def learn(net, steps):
    """Steps with random samples, and more of them until the parameters have changed."""
    x = bytearray(SAMPLE)
    before = net.digest()
    for _ in range(200):
        t = net.step * 7919 + 1
        for i in range(0, SAMPLE, 1 + SAMPLE // 500):
            t = (t * 1103515245 + 12345) & 0x7FFFFFFF
            x[i] = t >> 16 & 255
        net.learn(x, (t >> 12) % len(net.classes), rate=0.001)
        steps -= 1
        if steps <= 0 and net.digest() != before:
            return
    must(False, "nothing learned")


def payload(stamp):
    """A record that says which it is."""
    return bytes((stamp & 255, stamp >> 8)) * (RECORD // 2)


class Loss(Exception):
    pass


def must(condition, what, *details):
    if not condition:
        raise Loss("%s: %s" % (what, details))


# Every single write


def cuts(kind, base, act, check, modes, result):
    """Cut act() at each of its writes in each mode; check() after the restart."""
    board = Board(kind, bytearray(base))
    act(board)
    board.off()
    n = board.flash.n
    result["writes"] = result.get("writes", 0) + n
    for cut in range(1, n + 1):
        for mode in modes if cut > 1 else ("before",) + modes:
            data = bytearray(base)
            board = Board(kind, data, cut, mode, cut)
            try:
                act(board)
                must(False, "no cut", cut)
            except PowerCut:
                pass
            board.off()
            board = Board(kind, data)
            try:
                check(cut == n and mode == "after")
            except Exception as e:
                must(False, "%s, write %d of %d, %s" % (kind, cut, n, mode), repr(e))
            board.off()
            result["cuts"] = result.get("cuts", 0) + 1


def modes_of(kind, number):
    """What a cut may leave; FAT must not be garbled while files are made, at number 0."""
    return TORN if kind == "fat" and not number else ALL[kind]


def each_write_of_a_save(kind, blob, first, result):
    """Of four saves, the last two of which are what all others are like, from number first on."""
    data = blank(kind, blob)
    before = None
    for number in range(4):
        modes = modes_of(kind, number) if number >= first else ()
        before = one_save(kind, data, before, modes, result)


def one_save(kind, data, before, modes, result):
    """Returns the state that was saved; before: the one on flash until then; modes: () no cuts."""
    learned = []

    def act(board):
        net = load()
        restored(net)
        learn(net, 2)
        learned.append(state(net))
        net.save()

    def check(whole):
        net = load()
        must(restored(net) in (before, learned[0]), "checkpoint")
        must(len(set(learned)) == 1, "learning")
        if whole:
            must(state(net) == learned[0], "not the one saved")
        learn(net, 1)
        net.save()
        new = state(net)
        must(restored(load()) == new, "saving after the cut")

    if modes:
        cuts(kind, data, act, check, modes, result)
    board = Board(kind, data)
    act(board)
    board.off()
    return learned[0]


def each_write_of_a_ring(kind, blob, result):
    """Making it, filling it, replacing records in it."""
    data = blank(kind, blob)
    board = Board(kind, data)
    net = load()
    learn(net, 3)
    net.save()
    learn(net, 3)
    net.save()
    board.off()
    there = {}
    for number, slots in enumerate(((), (0, 1, 8), (0, 2, 2))):
        writes = [(slot, 100 * number + i) for i, slot in enumerate(slots)]
        some_records(kind, data, state(net), there, writes, modes_of(kind, number), result)
        there.update(writes)


def some_records(kind, data, saved, there, writes, modes, result):
    """saved: state of the checkpoint; there, writes: slots and stamps, before and in this go."""

    def act(board):
        ring = Ring("/flash/ring", RECORD, RING, TAG)
        for slot, stamp in writes:
            must(ring.write(slot, slot % 4, payload(stamp)), "full")
        must(ring.flush(), "full")

    def check(whole):
        must(restored(load()) == saved, "checkpoint")
        ring = Ring("/flash/ring", RECORD, RING, TAG)
        buffer = bytearray(RECORD)
        lost = 0
        for slot in range(ring.capacity):
            new = [stamp for at, stamp in writes if at == slot]
            if ring.read(slot, buffer) < 0:
                lost += slot in there and (whole or kind == "lfs" or not new)
                continue
            must(ring.labels[slot] == slot % 4, "label", slot)
            stamp = buffer[0] | buffer[1] << 8
            must(buffer == payload(stamp), "mixed", slot)
            must(stamp == there.get(slot) or stamp in new, "unknown", slot, stamp)
            must(not whole or not new or stamp == new[-1], "old", slot, stamp)
        result["lost"] = max(result.get("lost", 0), lost)
        must(kind == "fat" or not lost, "lost", lost)
        must(ring.write(4, 1, payload(9999)) and ring.flush(), "writing after the cut")
        ring = Ring("/flash/ring", RECORD, RING, TAG)
        must(ring.read(4, buffer) == 1 and buffer == payload(9999), "reading after the cut")

    cuts(kind, data, act, check, modes, result)
    board = Board(kind, data)
    act(board)
    board.off()


# Random cuts


class Life:
    """A net that learns, saves and keeps samples, and the log of what its flash must hold."""

    def __init__(self, kind, blob, seed, garbled):
        self.kind, self.seed, self.garbled = kind, seed, garbled
        self.data = blank(kind, blob)
        self.done = self.saving = None  # states at the last whole save and at one under way
        self.known = {}  # stamp of the record in a slot
        self.open = {}  # slot: stamps written since the last flush
        self.stamp = 0
        board = Board(kind, bytearray(self.data))
        net = load()
        for _ in range(4):
            net.save()
        board.off()
        self.reach = 50 + board.flash.n // 2  # writes of two saves and some samples

    def random(self, below):
        self.seed = (self.seed * 1103515245 + 12345) & 0x7FFFFFFF
        return (self.seed >> 12) % below

    def go(self, mode, result):
        """From a restart to a power cut at a random write."""
        board = Board(self.kind, self.data, 1 + self.random(self.reach), mode, self.seed)
        try:
            net = load()
            found = restored(net)
            must(found in (self.done, self.saving), "checkpoint")
            result["older"] += found == self.done != self.saving
            self.done = self.saving = found
            samples = self._samples(net, result)
            while True:
                step = net.step
                learn(net, 1 + self.random(3))
                self.saving = state(net)
                net.save()
                self.done = self.saving
                result["saves"] += 1
                result["steps"] += net.step - step
                self._saved(samples, result)
        except PowerCut:
            pass
        finally:
            board.off()
        result["cuts"] += 1

    def _samples(self, net, result):
        """The ring, compared with the log."""
        ring = Ring("/flash/ring", RECORD, 3 * RING, TAG)
        buffer = bytearray(RECORD)
        found = {}
        for slot in range(ring.capacity):
            if ring.read(slot, buffer) >= 0:
                found[slot] = stamp = buffer[0] | buffer[1] << 8
                must(buffer == payload(stamp) and ring.labels[slot] == slot % 4, "mixed", slot)
                must(stamp == self.known.get(slot) or stamp in self.open.get(slot, ()), "unknown")
            elif slot in self.known:
                fat = self.kind == "fat" and slot in self.open
                must(fat or self.garbled, "record lost", slot)
                result["lost"] += 1
        self.known, self.open = found, {}
        return ring

    def _saved(self, ring, result):
        """Some records more."""
        for _ in range(self.random(4)):
            slot = self.random(ring.capacity)
            self.stamp = (self.stamp + 1) & 0xFFFF
            self.open.setdefault(slot, []).append(self.stamp)
            must(ring.write(slot, slot % 4, payload(self.stamp)), "full")
            result["records"] += 1
        if self.random(2):
            must(ring.flush(), "full")
            for slot, stamps in self.open.items():
                self.known[slot] = stamps[-1]
            self.open = {}


class Replaying(Life):
    """The same, with the samples that the net keeps and rehearses by itself."""

    kept = 0

    def _samples(self, net, result):
        replay = net.replay(3 * RING, "raw", "/flash/ring")
        lost = max(0, self.kept - replay.used)
        must(not lost or self.kind == "fat", "samples lost", lost)
        result["lost"] += lost
        for slot in range(replay.capacity):
            if replay.labels[slot] >= 0:
                must(replay.recall(slot) >= 0, "damaged", slot)
        return replay

    def _saved(self, replay, result):
        self.kept = replay.used
        result["records"] += 1


def random_cuts(kind, blob, n, garbled, seed, result, make=Life):
    """n cuts, each at a random write of a net that learns, saves and keeps samples.

    FAT is cut before, after and in the middle of writes, and the first loss is an exception. With
    garbled its sectors are erased and garbled as well, which can cost its table, and with it
    everything: these losses are counted, and a new life begins.
    """
    modes = ("before",) + TORN if kind == "fat" and not garbled else ("before",) + ALL[kind]
    result.update(cuts=0, saves=0, steps=0, records=0, older=0, lost=0, losses=0)
    life = make(kind, blob, seed, garbled)
    while result["cuts"] < n:
        mode = modes[life.random(len(modes))]
        try:
            life.go(mode, result)
        except Exception as e:
            if not garbled:
                raise Loss("%s, cut %d, %s: %r" % (kind, result["cuts"], mode, e)) from e
            result["losses"] += 1
            life = make(kind, blob, life.seed, garbled)
        gc.collect()


def wear(kind, blob, result):
    """[writes, bytes, erases] of a save and of records as a ring fills and once it is full, each
    the mean of many; allocated: blocks that the ring takes."""
    board = Board(kind, blank(kind, blob))
    counts = board.flash.counts
    net = load()

    def mean(act, n):
        counts[:] = [0, 0, 0]
        for i in range(n):
            act(i)
        return [count / n for count in counts]

    def save(i):
        learn(net, 1)
        net.save()

    mean(save, 3)  # from now on there are both slots
    result["save"] = mean(save, 20)
    free = os.statvfs("/flash")[3]
    ring = Ring("/flash/ring", RECORD, RING, TAG)
    n = ring.capacity
    order = [i * 7 % n for i in range(n)] if n % 7 else [i * 5 % n for i in range(n)]

    def record(i):
        must(ring.write(i if i < n else order[i % n], 0, payload(i)), "full")
        if i in (n - 1, 5 * n - 1):
            must(ring.flush(), "full")

    result["records"] = n
    result["fill"] = mean(record, n)
    result["replace"] = mean(lambda i: record(n + i), 4 * n)
    result["allocated"] = (free - os.statvfs("/flash")[3]) * os.statvfs("/flash")[0]


with open("powercut.json") as file:
    config = json.load(file)
with open("net.sprout", "rb") as file:
    blob = file.read()
SAMPLE = len(sprout.load("net.sprout").input)
kind = config["kind"]
SIZES[kind] = SIZES[kind][0], config.get("blocks", SIZES[kind][1])
RECORD, RING = config.get("record", RECORD), config.get("ring", RING)
result = {}
start = time.ticks_ms()
if config["what"] == "save":
    each_write_of_a_save(kind, blob, config.get("first", 0), result)
elif config["what"] == "ring":
    each_write_of_a_ring(kind, blob, result)
elif config["what"] == "random":
    random_cuts(kind, blob, config["n"], config.get("garbled", False), config["seed"], result)
elif config["what"] == "replay":
    random_cuts(kind, blob, config["n"], False, config["seed"], result, Replaying)
else:
    wear(kind, blob, result)
result["seconds"] = time.ticks_diff(time.ticks_ms(), start) / 1000
print(json.dumps(result))
