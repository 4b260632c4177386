"""Replay: samples that are kept and learned again, so that what comes no more is not forgotten."""

import gc
import hashlib
import struct
from array import array
from binascii import crc32

from micropython import const

from .blobfile import read_json, trouble
from .reservoir import Reservoir

_LEARN = const(1)  # a mode of net._run; then positions in its arguments
_LABEL = const(3)
_RATE_M = const(5)
_RATE_E = const(6)
_LOSS = const(9)
_META = const(72)  # where the blob's header says where the meta section is
_CHUNK = const(4096)  # bytes of RAM in one piece, unless a sample takes more
_BESIDE = const(8)  # bytes of a sample's two labels, and of its share of a piece
_ROOM = const(3072)  # bytes that objects need beside the buffers


class Replay:
    """Kept samples of a net; net.replay() makes it.

    form: "raw", "latent" or "compact". per_sample: samples that learn() rehearses after each new
    one. record_bytes, capacity: bytes of a sample, samples there is room for. first: the operator
    that rehearsing begins with. fresh: a byte for each slot, 1 for what came since a guard's
    checkpoint; None without a guard. size: bytes of RAM.
    """

    aside = False  # a Guard holds some samples aside

    def __init__(self, net, size, form, path, per_sample, clear):
        if per_sample < 0:
            raise ValueError("per_sample is %s and must be 0 or more" % per_sample)
        self._net, self.per_sample = net, per_sample
        form, self.first, self._parts = _point(net, form)
        self.form = form
        self.record_bytes = record = sum(map(len, self._parts))
        if size < record + _BESIDE:
            trouble("mishap").replay_too_small(form, size, record + _BESIDE)
        if path:
            from .ring import Ring

            of = hashlib.sha256(net._memory[1][16:48])
            of.update(form.encode())
            self._store = Ring(path, record, size, of.digest(), clear)
            self._ids = _hashes
            self._seen = path + "/seen"
        else:
            self._store = _Ram(record, size)
            self._ids = self._store.ids
            self._seen = None
        self._reservoir = Reservoir(self._store.capacity, net.seed ^ net.step)
        self._known, self._torn = (), False
        self.fresh = None
        if path and not clear:
            self._recollect()
        self.sync()
        if path:
            self._remember()  # on FAT the file is made here, as those of the ring

    def __repr__(self):
        text = "<replay: %d of %d samples, %s, %d bytes each>"
        return text % (self.used, self.capacity, self.form, self.record_bytes)

    @property
    def used(self):
        """Samples that are kept."""
        return self._mend().used

    @property
    def capacity(self):
        return len(self.labels)

    @property
    def labels(self):
        """The number of the class in each slot, -1 where it is empty."""
        return self._mend().labels

    @property
    def size(self):
        return getattr(self._store, "size", 0) + 4 * self.capacity

    def counts(self):
        """Samples of each class, by name."""
        kept = self._mend().kept
        return {name: kept[i] if i < len(kept) else 0 for i, name in enumerate(self._net.classes)}

    def keep(self, label):
        """The frozen operators for the sample in the input; what they leave is kept if it is its
        turn.

        Returns the operator to go on with.
        """
        if self.first:
            self._net._run(0, self.first, _LEARN)
        reservoir, store = self._mend(), self._store
        self._torn = True  # until all is done, for Ctrl-C may come anywhere
        slot = reservoir.offer(label)
        if slot is not None:
            reservoir.set(slot, -1)
            if store.write(slot, self._known[label], *self._parts):
                reservoir.set(slot, label)
                if self.fresh:
                    self.fresh[slot] = 1
            else:
                self.sync()  # with less room than before
        self._torn = False
        return self.first

    def after(self, loss, m, e):
        """What is rehearsed after a new sample of this loss, Q16, at the rate m * 2**e."""
        if self.per_sample and self.used:
            self.rehearse(self.per_sample, m, e)

    def rehearse(self, steps, m, e):
        """Learn from kept samples; returns the mean loss before these steps, in nats."""
        total = 0
        for _ in range(steps):
            total += self.learn(self.recall(), m, e) >> 6
        return total / max(steps, 1) / 1024

    def learn(self, label, m, e):
        """A step at the rate m * 2**e from what recall() has put into the arena; the loss, Q16."""
        net = self._net
        net._args[_RATE_M] = m
        net._args[_RATE_E] = e
        loss = self.loss(label, net._n_ops, 1)
        if net._pending >= net.batch:
            net.apply()
        return loss

    def loss(self, label, last=0, steps=0):
        """The loss, Q16, of what recall() has put into the arena."""
        net = self._net
        net._args[_LABEL] = label
        net._run(self.first, last or net._n_forward + 1, _LEARN, steps)
        return net._args[_LOSS]

    def recall(self, slot=None):
        """Put a kept sample, any by default, into the arena; returns the number of its class."""
        reservoir = self._mend()
        while reservoir.used:
            self._torn = True
            at = reservoir.pick() if slot is None else slot
            self._torn = False
            if self._store.read(at, *self._parts) >= 0:
                return reservoir.labels[at]
            reservoir.set(at, -1)  # flash has damaged it
            if slot is not None:
                return -1
        trouble("mishap").nothing_to_rehearse()

    def forget(self, label):
        """Drop the samples of a class."""
        for slot in range(self.capacity):
            if self.labels[slot] == label:
                self.drop(slot)

    def drop(self, slot):
        """Drop a sample."""
        self._store.erase(slot)
        if self._store.capacity == self.capacity:
            self._reservoir.set(slot, -1)
        else:
            self.sync()  # with less room than before

    def flush(self):
        """Return when all that was kept is on flash."""
        if not self._store.flush():
            self.sync()  # with less room than before
        if self._seen:
            self._remember()

    def clear(self):
        """Drop all samples."""
        self._store.clear()
        self.sync()

    def sync(self):
        """Find out which samples belong to which class now, by their names.

        Samples of a class that the net does not have stay until their slot is needed.
        """
        reservoir, store = self._reservoir, self._store
        known = self._ids(self._net.classes)
        seen = {}
        for i in range(min(len(self._known), len(reservoir.seen))):
            seen[self._known[i]] = reservoir.seen[i]
        state = reservoir.state()[:1]
        state.extend(array("i", [seen.get(i, 0) for i in known]))
        number = {}
        for i in range(len(known)):
            number[known[i]] = i
        labels = array("h", [number.get(store.labels[i], -1) for i in range(store.capacity)])
        if len(labels) != len(reservoir.labels):
            self._reservoir = reservoir = Reservoir(len(labels))
        reservoir.restore(labels, state)
        self._known, self._classes, self._torn = known, self._net.classes, False

    def _remember(self):
        """Write how many samples of each class were seen, without which a restart would favour
        those that come after it: int32 number of the name and count of each class, CRC-32."""
        words = array("i", bytes(8 * self._net.max_classes + 4))
        seen = self._mend().seen
        for i in range(min(len(self._known), len(seen))):
            words[2 * i], words[2 * i + 1] = self._known[i], seen[i]
        words[-1] = _check(words)
        try:
            try:
                file = open(self._seen, "r+b")
            except OSError:
                file = open(self._seen, "wb")
            with file:
                file.write(words)
        except OSError:
            pass  # the flash is full

    def _recollect(self):
        """What was seen before a restart, if that can be read."""
        words = array("i", bytes(8 * self._net.max_classes + 4))
        try:
            with open(self._seen, "rb") as file:
                whole = file.readinto(words) == 4 * len(words)
        except OSError:
            return
        if whole and words[-1] == _check(words):
            state = self._reservoir.state()
            for i in range(0, len(words) - 1, 2):
                state.append(words[i + 1])
            self._known = [words[i] for i in range(0, len(words) - 1, 2)]
            self._reservoir.restore((), state)

    def _mend(self):
        """The reservoir, counted again after keep() was interrupted or the classes changed."""
        if self._torn or self._net.classes is not self._classes:
            self.sync()
        return self._reservoir


class _Ram:
    """Samples in RAM, in pieces that fit between other things: what a Ring is on flash."""

    def __init__(self, record, size):
        self.capacity = size // (record + _BESIDE)
        self._record, self._per = record, max(1, _CHUNK // record)
        self._names = []
        self._pieces = pieces = []
        gc.collect()
        try:
            self.labels = array("h", b"\xff\xff" * self.capacity)
            left = self.capacity
            while left:
                n = min(left, self._per)
                pieces.append(memoryview(bytearray(n * record)))
                left -= n
            short = gc.mem_free() < _ROOM
        except MemoryError:
            short = True
        if short:
            self._pieces = pieces = None
            gc.collect()
            trouble("mishap").no_ram_for_replay(size, max(gc.mem_free() - _ROOM, 0))
        self.size = self.capacity * (record + 2)

    def ids(self, names):
        """Numbers of names, which stay the same."""
        for name in names:
            if name not in self._names:
                self._names.append(name)
        return [self._names.index(name) for name in names]

    def read(self, slot, *parts):
        piece, at = self._pieces[slot // self._per], slot % self._per * self._record
        for part in parts:
            part[:] = piece[at : at + len(part)]
            at += len(part)
        return self.labels[slot]

    def write(self, slot, label, *parts):
        piece, at = self._pieces[slot // self._per], slot % self._per * self._record
        self.labels[slot] = -1
        for part in parts:
            piece[at : at + len(part)] = part
            at += len(part)
        self.labels[slot] = label
        return True

    def erase(self, slot):
        self.labels[slot] = -1

    def clear(self):
        for slot in range(self.capacity):
            self.labels[slot] = -1

    def flush(self):
        return True


def make(net, keeper, size, form, path, per_sample, clear):
    """What net.replay() does."""
    guard = keeper if hasattr(keeper, "watch") else None
    if guard:
        guard.watch(None)
    else:
        net._keeper = None
    keeper = None  # an old buffer makes room
    new = Replay(net, size, form, path, per_sample, clear) if size else None
    if guard:
        guard.watch(new)
    else:
        net._keeper = new
    return new


def rehearse(net, keeper, steps, rate):
    """What net.rehearse() does."""
    if not keeper or not keeper.used:
        trouble("mishap").nothing_to_rehearse()
    if net._next_row:
        trouble("mishap").not_between_rows(net._next_row)
    m, e = net._usual, net._exponent
    if rate is not None:
        m, e = net._parts(rate)
    net._whole = False
    return keeper.rehearse(steps, m, e)


def _check(words):
    """CRC-32 of all words but the last, in 31 bits."""
    return crc32(memoryview(words)[:-1]) & 0x7FFFFFFF


def _hashes(names):
    """Numbers of names that are the same after every restart, 15 bits."""
    known = [crc32(name.encode()) & 0x7FFF for name in names]
    for i in range(len(known)):
        if known[i] in known[:i]:
            trouble("mishap").same_on_flash(names[known.index(known[i])], names[i])
    return known


def _point(net, form):
    """(form, operator to begin with, views of the parts of the arena that it needs)."""
    if form not in ("auto", "raw", "latent", "compact"):
        raise ValueError("form is %r and must be 'auto', 'raw', 'latent' or 'compact'" % (form,))
    if not net._can_learn:
        trouble("misuse").cannot_learn(net._name)
    if form == "raw":
        if net.input is None:
            trouble("mishap").no_raw_rows(net._name)
        return form, 0, [net.input]
    net._begin()
    source, program, arena = net._memory[:3]
    meta = read_json(net._name, source, *struct.unpack_from("<II", program, _META))
    net._broken = False
    points = meta.get("latent")
    if not points:
        trouble("mishap").no_latents(net._name)
    first, parts = 0, []
    try:
        first, spans = points[0 if form == "latent" else -1]
        for at, size in spans:
            part = memoryview(arena)[at : at + size]
            if at < 0 or size < 1 or len(part) != size:
                raise ValueError
            parts.append(part)
        if not parts or not 0 <= first <= net._n_forward:
            raise ValueError
    except (TypeError, ValueError):
        trouble().damaged(net._name, "its boundary for replay is none")
    if form == "auto":
        if net.input is not None and len(net.input) <= sum(map(len, parts)):
            return "raw", 0, [net.input]
        form = "compact"
    return form, first, parts
