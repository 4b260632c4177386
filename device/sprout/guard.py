"""The guard: samples held aside tell when learning does harm, and it is undone."""

import gc
from array import array
from math import sqrt

from . import checkpoint
from .replay import Replay

_SHARE = 8  # of the samples of a class, one is held aside: the fourth, the twelfth and so on
_TURN = 4
_LEAST = 4  # samples held aside before they say anything
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
        self._held = Replay(net, size, "latent", None, 0, False)
        self._before = array("i", bytes(4 * self._held.capacity))  # losses at the checkpoint, Q12
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
        turns = self._turns
        while len(turns) <= label:
            turns.append(0)
        turns[label] = (turns[label] + 1) % _SHARE
        self.aside = turns[label] == _TURN
        buffer = self._held if self.aside else self.replay
        return buffer.keep(label) if buffer else 0

    def after(self, loss, m, e):
        """What comes after a new sample of this loss, Q16, at the rate m * 2**e."""
        if self.aside:
            if self._held.slot is not None:
                self._before[self._held.slot] = loss >> 4
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

        Harm: their mean loss rose by more than 0.1 nats and more than the standard error of that.
        """
        self._learned = 0
        if self._net.classes is not self._classes:
            self._good()
            return False
        n = rise = square = 0
        losses, labels, fresh = self._losses(), self._held.labels, self._held.fresh
        tried = [labels[slot] for slot in range(len(losses)) if not fresh[slot]]
        for slot in range(len(losses)):
            # Labels that came since are not to be trusted, unless the class is new.
            if losses[slot] >= 0 and (not fresh[slot] or labels[slot] not in tried):
                d = (losses[slot] - self._before[slot]) / 4096
                n += 1
                rise += d
                square += d * d
        self.checks += 1
        if n < _LEAST:
            return False
        rise /= n
        error = sqrt(max(square / n - rise * rise, 0) / (n - 1))
        if rise > max(_HARM, error):
            self._harm(rise)
            return True
        if rise <= 0:
            self._good(losses)
        return False

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
        self._before = losses or self._losses()
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
