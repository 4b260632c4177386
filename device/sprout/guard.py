"""The guard: samples held aside tell when learning does harm, and it is undone."""

import gc
from array import array
from math import sqrt

from . import checkpoint
from .replay import Replay

_SHARE = 8  # of the samples of a class, one is held aside: the fourth, the twelfth and so on
_TURN = 4
_LEAST = 2  # samples held aside, beside one of each class, before they say anything
_HARM = 0.1  # nats: less is no harm


class Guard:
    """Watches the loss of samples held aside; net.guard() makes it.

    replay: the buffer of net.replay(), or None. held: samples held aside. loss, accuracy: of them
    at the last check, None before. checks, undone: how often it looked, and found harm. size:
    bytes of RAM.
    """

    def __init__(self, net, replay, size, on_regression, every, path):
        if on_regression not in ("restore", "warn"):
            text = "on_regression is %r and must be 'restore' or 'warn'"
            raise ValueError(text % (on_regression,))
        if every < 1:
            raise ValueError("every is %s and must be 1 or more" % every)
        self._net, self._restores, self.every = net, on_regression == "restore", every
        self._held = Replay(net, size, "auto", None, 0, False)
        self._turns = array("H")
        self.loss = self.accuracy = None
        self.checks = self.undone = self._learned = 0
        self.aside = False
        trained = net._memory[3]
        self._path, self._copy = path, None
        if self._restores and not path:
            gc.collect()
            if gc.mem_free() > 3 * len(trained):
                self._copy = bytearray(len(trained))
            else:
                self._path = net._checkpoint[:-5] + ".good"
        self.watch(replay)
        self._good()

    def __repr__(self):
        text = "<guard: %d samples held aside, %d checks, %d times harm" % (
            self.held,
            self.checks,
            self.undone,
        )
        if self.loss is not None:
            text += ", loss %.3f, %.0f %% right" % (self.loss, self.accuracy * 100)
        return text + ">"

    @property
    def held(self):
        return self._held.used

    @property
    def used(self):
        return self.replay.used if self.replay else 0

    @property
    def size(self):
        size = self._held.size + 5 * self._held.capacity + len(self._copy or b"")
        return size + (self.replay.size + self.replay.capacity if self.replay else 0)

    def watch(self, replay):
        """Answer for a replay buffer too."""
        self.replay = replay
        for buffer in (replay, self._held):
            if buffer:
                buffer.fresh = bytearray(buffer.capacity)

    def keep(self, label):
        """As Replay.keep; of samples that are held aside `aside` is true."""
        if self._net.classes is not self._classes:
            self._good()
        self._label = label
        turns = self._turns
        while len(turns) <= label:
            turns.append(0)
        turns[label] = (turns[label] + 1) % _SHARE
        self.aside = turns[label] == _TURN
        buffer = self._held if self.aside else self.replay
        return buffer.keep(label) if buffer else 0

    def after(self, loss, m, e):
        """What comes after a new sample of this loss, Q16, at the rate m * 2**e."""
        self._first.setdefault(self._label, loss >> 4)
        if self.aside:
            return
        if self.replay:
            self.replay.after(loss, m, e)
        self._learned += 1
        if self._learned >= self.every:
            self.check()

    def rehearse(self, steps, m, e):
        """As Replay.rehearse, and a check."""
        loss = self.replay.rehearse(steps, m, e)
        self.check()
        return loss

    def check(self):
        """Look at the samples held aside; true where learning has done harm since the last
        checkpoint.

        Harm: their loss rose by more than 0.1 nats and more than the standard error of that, in
        the mean over the classes.
        """
        self._learned = 0
        if self._net.classes is not self._classes:
            self._good()
            return False
        self.checks += 1
        losses = self._losses()
        rise, error = self._rise(losses)
        if rise is None:
            return False
        if rise > max(_HARM, error):
            self._harm(rise)
            return True
        if rise <= 0:
            self._good(losses)
        return False

    def _rise(self, losses):
        """(how far these losses have risen since the checkpoint, its standard error), in nats.

        Every class counts alike, so that one that is new can make up for what others lose.
        (None, None) of too few samples.
        """
        labels, fresh = self._held.labels, self._held.fresh
        tried = [labels[slot] for slot in range(len(losses)) if not fresh[slot]]
        classes = {}
        for slot in range(len(losses)):
            label = labels[slot]
            if not fresh[slot]:
                before = self._before[slot]
            elif label not in tried:
                before = self._first.get(label, losses[slot])
            else:
                continue  # its label came since and is not to be trusted
            if label >= 0:
                rises = classes.setdefault(label, [])
                rises.append((losses[slot] - before) / 4096)
        n = total = square = weight = 0
        for rises in classes.values():
            mean = sum(rises) / len(rises)
            n += len(rises)
            total += mean
            square += sum((d - mean) ** 2 for d in rises)
            weight += 1 / len(rises)
        degrees = n - len(classes)
        if degrees < _LEAST:
            return None, None
        return total / len(classes), sqrt(square / degrees * weight) / len(classes)

    def forget(self, label):
        """As Replay.forget."""
        for buffer in (self.replay, self._held):
            if buffer:
                buffer.forget(label)

    def flush(self):
        """As Replay.flush."""
        if self.replay:
            self.replay.flush()

    def _losses(self):
        """The losses of the samples held aside, Q12, -1 where a slot is empty."""
        net, held = self._net, self._held
        losses = array("i", [-1] * held.capacity)
        total = n = right = 0
        for slot in range(held.capacity):
            if held.labels[slot] >= 0:
                label = held.recall(slot)
                losses[slot] = held.loss(label) >> 4
                right += net._best() == label
                total += losses[slot]
                n += 1
        if n:
            self.loss, self.accuracy = total / n / 4096, right / n
        return losses

    def _good(self, losses=None):
        """Make a checkpoint: from here on it counts."""
        net = self._net
        self._before = losses or self._losses()  # Q12
        self._first = {}  # loss of the first sample of each class since then
        self._classes = net.classes
        for buffer in (self.replay, self._held):
            if buffer:
                for slot in range(len(buffer.fresh)):
                    buffer.fresh[slot] = 0
        if self._copy:
            self._copy[:] = net._memory[3]
        elif self._path:
            net.save(self._path)

    def _harm(self, rise):
        """Go back to the checkpoint, without the samples that came since."""
        net = self._net
        self.undone += 1
        text = "learning did harm: the loss of %d samples held aside rose by %.2f"
        text %= self.held, rise
        if not self._restores:
            print(text)
            self._good()
            return
        net.apply()  # of a batch, less than half an LSB stays
        if self._copy:
            net._memory[3][:] = self._copy
        else:
            of = bytes(net._memory[1][16:48])
            checkpoint.read(self._path, of, net.name, net._memory[3])
        for buffer in (self.replay, self._held):
            if buffer:
                for slot in range(min(len(buffer.fresh), buffer.capacity)):
                    if buffer.fresh[slot]:
                        buffer.drop(slot)
                        buffer.fresh[slot] = 0
        print(text + ", so it was undone")


def make(net, keeper, size, on_regression, every, path):
    """What net.guard() does."""
    replay = keeper.replay if isinstance(keeper, Guard) else keeper
    return Guard(net, replay, size, on_regression, every, path) if size else replay
