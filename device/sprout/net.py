"""The net: a blob, its buffers and what one does with them."""

import gc
import hashlib
import struct
import sys
from array import array

from micropython import const

from . import checkpoint, native
from .blobfile import HEADER, open_blob, read_at, read_header, read_meta, trouble
from .native import code_bytes, core
from .schedule import rate_at, rate_parts

# Positions in the arguments of core.run: sprout_run_t in native_modules/core/sprout.h.
_FIRST = const(0)
_LAST = const(1)
_MODE = const(2)
_LABEL = const(3)
_CLASSES = const(4)
_RATE_M = const(5)
_RATE_E = const(6)
_SEED = const(7)
_STEP = const(8)
_LOSS = const(9)
_ERROR_OP = const(11)
_DETAIL = const(12)
_N_ARGS = const(13)

_PREDICT = const(0)
_LEARN = const(1)
_CHECK = const(2)

_CAN_LEARN = const(4)  # flag of the blob
_INITIAL = const(64)  # where its header says where the initial parameters are
_ROOM = const(3072)  # bytes that objects need beside the buffers
_RECENT = const(32)  # samples that the running accuracy looks back on


def load(path, *, classes=None, batch=1, verify=True, scratch=None):
    """A net from a .sprout file, or from the bytes of one.

    classes: names in place of the blob's. batch: samples whose steps are added up and then
    applied (2 bytes more a weight). verify: check the file's SHA-256. scratch: bytes of working
    memory; more than the least means fewer reads.
    """
    return Net(path, classes, batch, verify, scratch)


def _buffers(sizes, room):
    """Buffers of these sizes, or None; no trace of them is left on the stack then."""
    buffers = []
    try:
        for size in sizes:
            buffers.append(bytearray(size))
    except MemoryError:
        return None
    return buffers if gc.mem_free() >= room else None


def _allocate(name, sizes, room):
    """Buffers of these sizes, with bytes of room beside them.

    Tries before it counts: the heap of an ESP32 grows on demand.
    """
    gc.collect()
    buffers = _buffers(sizes, room)
    if not buffers:
        _short(name, sizes, room)
    return buffers


def _short(name, sizes, room):
    """Say how many bytes are missing for buffers of these sizes and room beside them."""
    gc.collect()
    free = gc.mem_free()
    low, high = 0, free  # the buffers have to fit the largest piece that is free
    while high - low > 32:
        size = (low + high) >> 1
        if _buffers((size,), 0):
            low = size
        else:
            high = size
    needs = sum(sizes) + room
    missing = max(needs - free, sum(sizes) - low) + 768  # what holes among small objects cost
    # Of a larger heap, 3 bits a block of 4 words go to the heap itself.
    missing += missing // (84 if sys.maxsize >> 32 else 42) + 1
    raise MemoryError(
        "%s needs %d bytes of RAM and %d are missing: load it right after a reset, or "
        "compile it with a smaller plan" % (name, needs, missing)
    )


class Net:
    """A network that predicts and learns; sprout.load() makes it.

    input: the input tensor (int8), to read a frame straight into, again for each sample; None
    where frames arrive by rows (sprout compile --rows).
    shape: (height, width, channels) of a frame. output: the output tensor (int8) after forward().
    classes: names. recent: fraction of about
    the last 32 samples that were recognised before they were learned; hit: whether the last was.
    """

    def __init__(self, path, classes, batch, verify, scratch):
        self._name, source, resident = open_blob(path)
        head = read_header(self._name, source, verify)
        self._can_learn = head[4] & _CAN_LEARN
        self._n_tensors, self._n_ops, self._n_forward, x, y, logits = head[20:26]
        self.max_classes, n = head[27:29]
        if batch < 1:
            raise ValueError("batch is %s and must be 1 or more" % batch)
        self.batch = batch
        self._sizes = (
            head[16],
            head[17],
            max(head[19], scratch or 0),
            head[18] if self._can_learn and batch > 1 else 0,
            0 if resident else HEADER + head[7],
        )
        # save() writes the names, which are most of the meta section.
        room = max(_ROOM, 1024 + 4 * self.max_classes + 3 * head[13])
        gc.collect()  # what stays from here on lies low in the heap, the arena after it
        try:
            self.name, names, self._p0 = read_meta(self._name, source, head)
            self._named = self._checked(list(classes or names or map(str, range(n))))
        except MemoryError:
            _short(self._name, self._sizes, room + 64 * self.max_classes + 2 * head[13])
        # A ROMFS cannot be written: there, and for bytes, the current folder takes checkpoints.
        stem = self.name if resident else path[:-7] if path.endswith(".sprout") else path
        self._checkpoint = stem + ".ckpt"
        names = None
        arena, trained, working, accum, program = _allocate(self._name, self._sizes, room)
        if resident:
            program = source[: HEADER + head[7]]
        else:
            self._read(source, 0, program)
        self._memory = (source, program, arena, trained, working, accum or None)
        self._keeper = None  # of samples: a Replay, or a Guard
        self._args = array("i", [0] * _N_ARGS)
        self._odds = array("i", bytes(4 * self.max_classes))
        code = core.check(self._memory)
        if code:
            self._run(0, self._n_ops, _CHECK)  # says which operator it is
            self._fail(code)
        self.input, self.shape = self._tensor(x)
        self._next_row, self._whole = 0, False
        if len(self.input) < self.shape[0] * self.shape[1] * self.shape[2]:
            self.input = None
        self.output, _ = self._tensor(y)
        self._logits, _ = self._tensor(logits)
        if self.max_classes > len(self._logits):
            trouble().damaged(self._name, "it has %d outputs" % len(self._logits))
        self.rate = 0.002
        self.reset()

    def feed(self, rows):
        """The next rows of a frame, uint8 pixels, from the top; True after the last of them.

        Then predict(), learn(label=...) and so on take no frame of their own.
        """
        h, w, c = self.shape
        try:
            code = core.set_input(self._memory, rows, self._next_row)
            n = len(rows) // (w * c)
        except TypeError:
            code = -1
        if code:
            row, self._next_row = self._next_row, 0
            trouble().wrong_rows(rows, row, self.shape)
        self._next_row = (self._next_row + n) % h
        self._whole = self._next_row == 0
        return self._whole

    def predict(self, x=None, top=1):
        """(label, probability) of a sample, or a list of the `top` most likely.

        x: uint8 pixels, as many as the input has; None if `input` is filled already, or all rows
        were fed.
        """
        best = self.classify(x)
        classes, odds = self.classes, self._odds
        code = core.probabilities(self._memory, len(classes), self._p0, odds)
        if code:
            self._fail(code, len(classes))
        if top == 1:
            return classes[best], odds[best] / 32768
        order = sorted(range(len(classes)), key=lambda i: -odds[i])
        return [(classes[i], odds[i] / 32768) for i in order[:top]]

    def classify(self, x=None):
        """The number of the most likely class; allocates nothing."""
        self.forward(x)
        return self._best()

    def forward(self, x=None):
        """The output tensor, int8, for a sample."""
        self._feed(x)
        self._run(0, self._n_forward, _PREDICT)
        return self.output

    def learn(self, x=None, label=None, rate=None):
        """One training step; returns the sample's loss before it, in nats.

        label: name or number of the class. rate: for this step only.
        """
        if rate is not None:
            rate = rate_parts(rate)
        keeper = self._keeper
        label = self._feed_labelled(x, label)
        self._run(keeper.keep(label) if keeper else 0, self._n_forward, _LEARN)
        hit = self._best() == label
        loss = self._train(self._n_forward, label, rate)
        self.hit = hit
        self._seen = min(self._seen + 1, _RECENT)
        self._recent += ((hit << 15) - self._recent) // self._seen
        if keeper:
            keeper.after()
        return loss

    def loss(self, x=None, label=None):
        """The sample's loss, in nats, without learning from it."""
        return self._loss(0, self._feed_labelled(x, label))

    def apply(self):
        """Apply an unfinished batch."""
        if self._pending:
            self._pending = 0
            code = core.apply(self._memory)
            if code:
                self._fail(code)

    def decay(self, t, n):
        """Set the rate for sample t of n, which falls smoothly from `rate` to 0."""
        self._args[_RATE_M] = rate_at(self._mantissa, t, n)

    def add_class(self, name):
        """Add a class, as long as the blob has room (max_classes)."""
        self._know(self._checked(self.classes + [name]))

    def replay(self, bytes=32768, form="latent", path=None, per_sample=1, clear=False):
        """Keep what learn() gets, a fair share of each class, and rehearse it; returns the buffer.

        bytes: of RAM, or of flash where path names a folder, whose samples stay after a restart;
        0: no more replay. form: "latent", what the layers that learn get to see, so that
        rehearsing skips the others; "compact", the same from where it takes fewest bytes; "raw",
        the frames. per_sample: samples rehearsed after each new one. clear: drop what the folder
        holds, another net's samples too.
        """
        from .replay import make

        self._keeper = None  # an old one makes room
        self._keeper = make(self, bytes, form, path, per_sample, clear)
        return self._keeper

    def rehearse(self, steps, rate=None):
        """Learn from the replay buffer alone, so many steps; returns their mean loss, in nats."""
        from .replay import rehearse

        return rehearse(self, self._keeper, steps, rate)

    def save(self, path=None):
        """Write a checkpoint, beside the blob by default, without an unfinished batch."""
        _, program, _, trained, _, _ = self._memory
        if self._keeper:
            self._keeper.flush()
        args = bytes(program[16:48]), self.name, self.classes, self.step, self.seed, trained
        checkpoint.write(path or self._checkpoint, *args)

    def restore(self, path=None):
        """Go on where save() was called."""
        _, program, _, trained, _, _ = self._memory
        args = bytes(program[16:48]), self.name, trained
        self._start(*checkpoint.read(path or self._checkpoint, *args))

    def reset(self):
        """Forget everything learned, added classes too."""
        source, program, _, trained, _, _ = self._memory
        self._read(source, struct.unpack_from("<I", program, _INITIAL)[0], trained)
        self._start(self._named, 0, self.seed)

    def digest(self):
        """SHA-256 of the trained parameters, in hex."""
        return hashlib.sha256(self._memory[3]).digest().hex()

    def memory(self):
        """Bytes of RAM by part; native: the code of sprout_core, 0 where firmware holds it."""
        arena, trained, scratch, accum, program = self._sizes
        return {
            "arena": arena,
            "trained": trained,
            "scratch": scratch,
            "accum": accum,
            "program": program,
            "native": code_bytes(),
            "replay": self._keeper.size if self._keeper else 0,
        }

    @property
    def step(self):
        return self._args[_STEP]

    @property
    def recent(self):
        return self._recent / 32768

    @property
    def seed(self):
        return self._args[_SEED] & 0xFFFFFFFF

    @seed.setter
    def seed(self, value):
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError("the seed is %s and must lie between 0 and 2**32 - 1" % value)
        self._args[_SEED] = value - (value >> 31 << 32)

    @property
    def rate(self):
        return self._rate

    @rate.setter
    def rate(self, value):
        self._mantissa, self._args[_RATE_E] = rate_parts(value)
        self._args[_RATE_M] = self._mantissa
        self._rate = value

    def __repr__(self):
        text = "<%s: %d classes (%s)" % (self.name, len(self.classes), ", ".join(self.classes))
        if self._can_learn:
            text += ", %d samples seen" % self.step
        if self._seen:
            text += ", %.0f %% of the last %d right" % (self.recent * 100, self._seen)
        return text + ", %d bytes of RAM>" % sum(self._sizes)

    def _start(self, classes, step, seed):
        self._know(list(classes))
        self.seed = seed
        args = self._args
        args[_STEP] = step
        args[_RATE_M] = self._mantissa
        self._seen = self._recent = self._pending = 0
        self.hit = False
        accum = self._memory[5]
        if accum:
            view, zeros = memoryview(accum), bytes(64)
            for i in range(0, len(view), 64):
                view[i : i + 64] = zeros[: len(view) - i]

    def _know(self, classes):
        """Have these classes from now on."""
        self.classes = classes
        self._args[_CLASSES] = len(classes)
        if self._keeper:
            self._keeper.sync()

    def _feed(self, x):
        whole, self._whole = self._whole, False
        if x is None:
            if self.input is None and not whole:
                trouble().no_frame(self._next_row, self.shape)
            return
        self._next_row = 0
        try:
            code = core.set_input(self._memory, x)
        except TypeError:
            code = -1
        if code:
            trouble().wrong_sample(x, self.shape)

    def _feed_labelled(self, x, label):
        """The sample's label as a number, with the sample in the input."""
        if not self._can_learn:
            trouble().cannot_learn(self._name)
        classes = self.classes
        if label in classes:
            label = classes.index(label)
        elif not isinstance(label, int) or not 0 <= label < len(classes):
            trouble().wrong_label(label, self.name, classes)
        self._feed(x)
        return label

    def _train(self, first, label, rate):
        """A step from operator `first` on; returns the loss before it, in nats.

        rate: its parts, None for the usual one.
        """
        args = self._args
        args[_LABEL] = label
        usual_m, usual_e = args[_RATE_M], args[_RATE_E]
        if rate is not None:
            args[_RATE_M], args[_RATE_E] = rate
        try:
            self._run(first, self._n_ops, _LEARN)
        finally:
            args[_RATE_M] = usual_m
            args[_RATE_E] = usual_e
        args[_STEP] += 1
        loss = args[_LOSS] / 65536
        if self._memory[5]:
            self._pending += 1
            if self._pending >= self.batch:
                self.apply()
        return loss

    def _loss(self, first, label):
        """The loss, in nats, from operator `first` on."""
        self._args[_LABEL] = label
        self._run(first, self._n_forward + 1, _LEARN)  # the loss is the first one after the others
        return self._args[_LOSS] / 65536

    def _best(self):
        """The class with the largest logit; the view shows int8 as bytes."""
        best, most, logits = 0, -1, self._logits
        for i in range(len(self.classes)):
            value = logits[i] ^ 128
            if value > most:
                best, most = i, value
        return best

    def _checked(self, classes):
        if len(classes) > self.max_classes:
            trouble().wrong_classes(self._name, self.max_classes, None)
        for name in classes:
            if not isinstance(name, str) or classes.count(name) > 1:
                trouble().wrong_classes(self._name, 0, (name,))
        return classes

    def _tensor(self, number):
        """(view of its bytes, shape) of a tensor; the table is the first thing in the program."""
        _, program, arena, _, _, _ = self._memory
        if number >= self._n_tensors:
            trouble().damaged(self._name, "tensor %d is missing" % number)
        row = struct.unpack_from("<IHHH4xH", program, HEADER + 16 * number)
        size = (row[4] or row[1]) * row[2] * row[3]
        view = memoryview(arena)[row[0] : row[0] + size]
        if len(view) != size:
            trouble().damaged(self._name, "tensor %d is outside the arena" % number)
        return view, row[1:4]

    def _read(self, source, offset, buffer):
        if not read_at(source, offset, buffer):
            raise OSError("%s cannot be read: copy it again" % self._name)

    def _run(self, first, last, mode):
        args = self._args
        args[_FIRST] = first
        args[_LAST] = last
        args[_MODE] = mode
        share = native.share
        code = core.run(self._memory, args, share) if share else core.run(self._memory, args)
        if code:
            self._fail(code)

    def _fail(self, code, n_classes=0):
        args = self._args
        trouble().refused(self._name, code, args[_ERROR_OP], args[_DETAIL], n_classes)
