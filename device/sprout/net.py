"""The net: a blob, its buffers and what one does with them."""

import gc
import hashlib
import struct
from array import array
from math import log

from micropython import const

from . import checkpoint, native
from .blobfile import passing, read_at, trouble
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

_INITIAL = const(64)  # where its header says where the initial parameters are
_RECENT = const(32)  # samples that the running accuracy looks back on

# Words of what history.py reads: steps of a point, points, steps, losses (1/64 nat) and hits since
# the last one, the step before the first; then losses and hits of each point.
_EVERY = const(0)
_POINTS = const(1)
_STEPS = const(2)
_LOSSES = const(3)
_HITS = const(4)
_BEFORE = const(5)
_CURVE = const(6)
_MOST_POINTS = const(32)
_MOST_STEPS = const(1 << 18)  # a point's losses stay small ints, which take no RAM


def load(path, *, classes=None, batch=1, verify=True, scratch=None):
    """A net from a .sprout file, or from the bytes of one.

    classes: names in place of the blob's. batch: samples whose steps are added up and then
    applied (2 bytes more a weight). verify: check the file's SHA-256. scratch: bytes of working
    memory; more than the least means fewer reads.
    """
    return Net(path, classes, batch, verify, scratch)


def _execute(memory, args, share):
    if share:
        return core.run(memory, args, share)
    return core.run(memory, args)


class Net:
    """A network that predicts and learns; sprout.load() makes it.

    input: the input tensor (int8), to read a frame straight into, again for each sample; None
    where frames arrive by rows (sprout compile --rows).
    shape: (height, width, channels) of a frame. output: the output tensor (int8) after forward().
    classes: names. recent: fraction of about the last 32 samples that were recognised before they
    were learned; hit: whether the last was. step: samples learned. rate: of learning, at first
    what the blob says or 0.002. seed: of the random rounding, 0 to 2**32 - 1.
    """

    def __init__(self, path, classes=None, batch=1, verify=True, scratch=None):
        gc.collect()  # what stays from here on lies low in the heap, the arena after it
        self._broken = False  # a call of the core, or a read, began and has not ended
        self._args = array("i", [0] * _N_ARGS)
        self._curve = array("i", bytes(4 * (_CURVE + 2 * _MOST_POINTS)))
        self._memory = (None,) * 6
        self._next_row, self._whole, self.input = 0, False, None
        self._keeper = self._drift = None  # a Replay or a Guard; a Drift
        self.rate = 0.002  # where the blob names none
        self._start((), 0, 0)
        passing("opening").open_net(self, path, classes, batch, verify, scratch)
        self.reset()

    def feed(self, rows):
        """The next rows of a frame, uint8 pixels, from the top; True after the last of them.

        Then predict(), learn(label=...) and so on take no frame of their own.
        """
        h, w, c = self.shape
        row, self._next_row, self._whole = self._next_row, 0, False
        if self._set_input(rows, row):
            trouble("misuse").wrong_rows(rows, row, self.shape)
        self._next_row = (row + len(rows) // (w * c)) % h
        self._whole = self._next_row == 0
        return self._whole

    def predict(self, x=None, top=1):
        """(label, probability) of a sample, or a list of the `top` most likely.

        x: uint8 pixels, as many as the input has, in bytes, a bytearray, memoryview, array or
        ndarray; None if `input` is filled already, or all rows were fed.
        """
        best = self.classify(x)
        classes, odds = self.classes, self._odds
        code = core.probabilities(self._memory, len(classes), self._p0, odds)
        if code:
            self._fail(code, len(classes))
        if self._drift:
            self._drift.note(odds[best])
        if top == 1:
            return classes[best], odds[best] / 32768
        return passing("show").ranking(classes, odds, top)

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

        label: name or number of the class. rate: for this step only, not for what is rehearsed
        after it.
        """
        m, e = self._usual, self._exponent
        if rate is not None:
            m, e = self._parts(rate)
        loss = self._learn(x, label, m, e)
        if self._keeper:
            self._keeper.after(loss, self._usual, self._exponent)
        return loss / 65536

    def learn_all(self, samples, epochs=1, test=None, patience=2, keep=None, report=print):
        """Learn all samples, at a rate that falls smoothly from `rate` to 0 if they have a len().

        samples: pairs (x, label): a list, or a function that returns an iterator for each epoch.
        test: samples that are not learned but tested after every epoch; learning then stops when
        `patience` epochs in a row have not been better than the best. keep: file for a checkpoint
        of the best epoch, which the net goes back to at the end. report: gets a line of text an
        epoch, or None. Learning that diverges stops. Returns what happened, to be looked at.
        """
        return passing("course").learn_all(self, samples, epochs, test, patience, keep, report)

    def evaluate(self, samples):
        """Test on pairs (x, label), in any iterable, without learning; returns what came of it.

        That has n, right, accuracy (a fraction), loss (nats; None where the net cannot learn),
        per_class and confusion, and shows them.
        """
        return passing("evaluate").evaluate(self, samples)

    def loss(self, x=None, label=None):
        """The sample's loss, in nats, without learning from it."""
        self._feed_labelled(x, label)
        self._run(0, self._n_forward + 1, _LEARN)  # the loss comes right after the forward pass
        return self._args[_LOSS] / 65536

    def apply(self):
        """Apply an unfinished batch."""
        if self._memory[5] and self._pending:
            self._begin()
            code = core.apply(self._memory)
            self._broken = False
            if code:
                self._fail(code)
        self._pending = 0

    def decay(self, t, n):
        """Set the rate for sample t of n, from 0, so that it falls smoothly from `rate` to 0.

        learn_all() does it by itself; set `rate` to end it.
        """
        if not 0 <= t <= n or n == 0:
            trouble("misuse").wrong_time(t, n)
        self._usual = rate_at(self._mantissa, t, n)

    def add_class(self, name):
        """Add a class, as long as the blob has room (max_classes)."""
        self.classes = self._checked(self.classes + [name])

    def remove_class(self, name):
        """Forget a class, by name or number; the others keep their order and what they learned.

        Takes a blob that was compiled with --classes and learns.
        """
        passing("classes").remove(self, name)

    def replay(self, bytes=32768, form="auto", path=None, per_sample=1, clear=False):
        """Keep what learn() gets, a fair share of each class, and rehearse it; returns the buffer.

        bytes: of RAM, or of flash where path names a folder, whose samples stay after a restart;
        0: no more replay. form: "latent", what the layers that learn get to see, so that
        rehearsing skips the others; "compact", the same from where it takes fewest bytes; "raw",
        the frames; "auto", the smaller of these two. per_sample: samples rehearsed after each new
        one. clear: drop what the folder holds, another net's samples too.
        """
        from .replay import make

        return make(self, self._keeper, bytes, form, path, per_sample, clear)

    def rehearse(self, steps, rate=None):
        """Learn from the replay buffer alone, so many steps; returns their mean loss, in nats."""
        from .replay import rehearse

        return rehearse(self, self._keeper, steps, rate)

    def guard(self, bytes=16384, on_regression="restore", every=32, path=None):
        """Hold one sample in eight aside and see by them whether learning does harm.

        They are not learned. When their loss has risen, at a look after `every` samples, the net
        goes back to the last good checkpoint and drops what it kept since ("restore"), or only
        says so ("warn"). bytes: of RAM for them; 0: no more guard. path: file for the checkpoint;
        by default it is in RAM where there is plenty, else beside the blob, named .good.
        """
        from .guard import make

        self._keeper = make(self, self._keeper, bytes, on_regression, every, path)
        return self._keeper

    @property
    def drift(self):
        """How much less sure of its predictions the net has become, in standard errors.

        The mean probability of the likeliest class over about the last 32 samples against the
        last 512; above 4 the input has probably changed. It begins with the first look, with 0.
        """
        if not self._drift:
            from .drift import Drift

            self._drift = Drift()
        return self._drift.value()

    def save(self, path=None):
        """Write a checkpoint, beside the blob by default, without an unfinished batch."""
        _, program, _, trained, _, _ = self._memory
        if self._keeper:
            self._keeper.flush()
        args = bytes(program[16:48]), self.name, self.classes, self.step, self.seed, trained
        checkpoint.write(path or self._checkpoint, *args)

    def restore(self, path=None):
        """Go on where save() was called; Ctrl-C waits until it is done."""
        self._surely(path or self._checkpoint)

    def reset(self):
        """Forget everything learned, added classes too; Ctrl-C waits until it is done."""
        self._surely("")

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
    def history(self):
        """Loss and accuracy since load(), restore() or reset(), in at most 33 points.

        Shows as two curves; gives rows (step, mean loss in nats, fraction right before learning).
        """
        return passing("history").History(self._curve)

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
        if not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
            raise ValueError("the seed is %s and must lie between 0 and 2**32 - 1" % value)
        self._args[_SEED] = value - (value >> 31 << 32)

    @property
    def rate(self):
        return self._rate

    @rate.setter
    def rate(self, value):
        self._mantissa, self._exponent = self._parts(value)
        self._usual = self._mantissa  # what decay() lowers
        self._rate = value

    def __repr__(self):
        return passing("show").show(self, sum(self._sizes))

    def _surely(self, path):
        """Go to a checkpoint, or ("") to the start; once more where Ctrl-C broke that off."""
        try:
            self._go_back(path)
        except (OSError, ValueError):
            raise
        except BaseException:
            self._go_back(path)
            raise

    def _go_back(self, path):
        _, program, _, trained, _, _ = self._memory
        if path:
            state = checkpoint.read(path, bytes(program[16:48]), self.name, trained)
        else:
            self._begin()
            at = struct.unpack_from("<I", program, _INITIAL)[0]
            self._read(self._memory[0], at, trained)
            state = self._named, 0, self.seed
        self._start(*state)

    def _start(self, classes, step, seed):
        self.classes = list(classes)
        self.seed = seed
        self._args[_STEP] = step
        self._usual = self._mantissa
        self._seen = self._recent = self._loss = self._pending = 0
        self.hit = False
        curve = self._curve
        for i in range(len(curve)):
            curve[i] = 0
        curve[_EVERY] = 1
        curve[_BEFORE] = step
        accum = self._memory[5]
        if accum:
            view, zeros = memoryview(accum), bytes(64)
            for i in range(0, len(view), 64):
                view[i : i + 64] = zeros[: len(view) - i]

    def _set_input(self, x, row):
        """Pixels into the input tensor, from a row on or (-1) all; the core's answer."""
        self._begin()
        try:
            code = core.set_input(self._memory, x, row)
        except TypeError:
            code = -1
        self._broken = False
        return code

    def _feed(self, x):
        whole, self._whole = self._whole, False
        if x is None:
            if self.input is None and not whole:
                trouble("misuse").no_frame(self._next_row, self.shape)
            return
        self._next_row = 0
        if self._set_input(x, -1):
            trouble("misuse").wrong_sample(x, self.shape)

    def _feed_labelled(self, x, label):
        """The sample into the input, and its label into the arguments."""
        if not self._can_learn:
            trouble("misuse").cannot_learn(self._name)
        self._args[_LABEL] = self._number(label)
        self._feed(x)

    def _learn(self, x, label, m, e):
        """One step at the rate m * 2**e; returns the loss, Q16.

        Without replay it allocates nothing. With it, its after() comes next.
        """
        args, keeper = self._args, self._keeper
        self._feed_labelled(x, label)
        self._run(keeper.keep(args[_LABEL]) if keeper else 0, self._n_forward, _LEARN)
        best = self._best()
        hit = best == args[_LABEL]
        if self._drift:
            self._drift.see(self, best)
        args[_RATE_M] = m
        args[_RATE_E] = e
        if keeper and keeper.aside:
            self._run(self._n_forward, self._n_forward + 1, _LEARN)
        else:
            self._run(self._n_forward, self._n_ops, _LEARN, 1)
        loss = args[_LOSS]
        self.hit = hit
        self._seen = min(self._seen + 1, _RECENT)
        self._recent += ((hit << 15) - self._recent) // self._seen
        self._loss += (loss - self._loss) // self._seen
        self._record(loss, hit)
        if self._pending >= self.batch:
            self.apply()
        return loss

    def _record(self, loss, hit):
        """Into the history; when it is full, every two points become one."""
        h = self._curve
        if h[_POINTS] >= _MOST_POINTS:
            half = h[_POINTS] = _MOST_POINTS // 2
            if h[_EVERY] < _MOST_STEPS:
                h[_EVERY] *= 2
                for i in range(_CURVE, _CURVE + _MOST_POINTS, 2):
                    j = 2 * i - _CURVE
                    h[i] = h[j] + h[j + 2]
                    h[i + 1] = h[j + 1] + h[j + 3]
            else:  # the older half goes
                h[_BEFORE] += h[_EVERY] * half
                for i in range(_CURVE, _CURVE + _MOST_POINTS):
                    h[i] = h[i + _MOST_POINTS]
        h[_STEPS] += 1
        h[_LOSSES] += (loss + 512) >> 10
        h[_HITS] += hit
        if h[_STEPS] >= h[_EVERY]:
            i = _CURVE + 2 * h[_POINTS]
            h[i] = h[_LOSSES]
            h[i + 1] = h[_HITS]
            h[_STEPS] = h[_LOSSES] = h[_HITS] = 0
            h[_POINTS] += 1

    def _diverges(self):
        """Whether the last samples cost much more than guessing would."""
        return self._seen == _RECENT and self._loss / 65536 > log(len(self.classes)) + 1

    def _number(self, label):
        classes = self.classes
        if label in classes:
            return classes.index(label)
        if not isinstance(label, int) or not 0 <= label < len(classes):
            trouble("misuse").wrong_label(label, self.name, classes)
        return label

    def _parts(self, rate):
        """(mantissa, exponent) of a learning rate."""
        try:
            if rate <= 1:
                return rate_parts(rate)
        except TypeError:
            pass
        trouble("misuse").wrong_rate(rate)

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
            trouble("misuse").wrong_classes(self._name, self.max_classes, None)
        for name in classes:
            if not isinstance(name, str) or classes.count(name) > 1:
                trouble("misuse").wrong_classes(self._name, 0, (name,))
        return classes

    def _read(self, source, offset, buffer):
        self._broken = True
        whole = read_at(source, offset, buffer)
        self._broken = False
        if not whole:
            raise OSError("%s cannot be read: copy it again" % self._name)

    def _begin(self):
        """Before anything reads the blob, which ends with _broken = False."""
        if self._broken:
            self._memory = passing("mend").mend(self._name, self._memory)
        self._broken = True

    def _run(self, first, last, mode, steps=0):
        """Run operators, and count steps."""
        self._begin()
        args, memory = self._args, self._memory
        args[_FIRST] = first
        args[_LAST] = last
        args[_MODE] = mode
        args[_CLASSES] = len(self.classes)
        # MicroPython looks for Ctrl-C at jumps, and there is none until a step is counted too.
        code = _execute(memory, args, native.share)
        steps *= not code
        args[_STEP] += steps
        self._pending += steps
        self._broken = False
        if code:
            self._fail(code)

    def _fail(self, code, n_classes=0):
        args = self._args
        trouble().refused(self._name, code, args[_ERROR_OP], args[_DETAIL], n_classes)
