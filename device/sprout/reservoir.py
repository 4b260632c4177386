"""Which samples a replay buffer keeps, and which of them comes next: a class-balanced reservoir.

What is kept follows Chrysakis and Moens, "Online Continual Learning from Imbalanced Data" (ICML
2020), algorithm 1.  What comes next is of the class that has waited longest, new samples counted:
where one class comes again and again, it is the others that are rehearsed.  The board and the
host's benches run this very file, so it holds nothing but small integers.
"""

from array import array


class Reservoir:
    """Slots for samples, by the numbers of their classes, from a stream of any length.

    Each class keeps a uniform choice of what was seen of it, and no class grows while it is the
    largest. labels: the class in each slot, int16, -1 where it is empty. kept, seen: samples of
    each class. used: slots that are not empty. A call allocates nothing, except where it meets a
    class for the first time.
    """

    def __init__(self, capacity, seed=1):
        """capacity: slots. seed: equal seeds choose alike."""
        self.labels = array("h", b"\xff\xff" * capacity)
        self.kept, self.seen, self._full = array("i"), array("i"), bytearray()
        self._turn = array("h")  # classes, the one that has waited longest first
        self.used = 0
        self._random = (seed ^ seed >> 30) & 0x3FFFFFFF or 1
        for _ in range(8):  # small seeds differ in few bits
            self._next()

    def offer(self, label):
        """The slot for a new sample of class `label`, or None if it is not to be kept.

        The slot counts as taken at once: set(slot, -1) if the sample could not be stored.
        """
        self._meet(label)
        self._now(label)
        seen, kept = self.seen, self.kept
        if seen[label] < 0xFFFFF:  # from there on the newest samples count for more
            seen[label] += 1
        if self.used < len(self.labels):
            slot = self._find(-1, 0)
        elif not self.used:
            return None
        else:
            largest = self._largest()
            if not self._full[label]:
                slot = self._find(largest, self._below(kept[largest]))
            elif self._below(seen[label]) < kept[label]:
                slot = self._find(label, self._below(kept[label]))
            else:
                return None
        self.set(slot, label)
        return slot

    def pick(self):
        """The slot to rehearse next, None if all are empty: any of the class whose turn it is."""
        if not self.used:
            return None
        kept, turn = self.kept, self._turn
        i = 0
        while not kept[turn[i]]:
            i += 1
        label = turn[i]
        self._now(label)
        return self._find(label, self._below(kept[label]))

    def set(self, slot, label):
        """Say what is in a slot, -1 for nothing, without counting it as seen."""
        old = self.labels[slot]
        if old >= 0:
            self.kept[old] -= 1
            self.used -= 1
        if label >= 0:
            self._meet(label)
            self.kept[label] += 1
            self.used += 1
        self.labels[slot] = label

    def state(self):
        """What `restore` needs beside the labels, int32: the generator, then what was seen."""
        state = array("i", [self._random])
        state.extend(self.seen)
        return state

    def restore(self, labels, state=None):
        """Go on with these labels in the slots, as after a restart; more labels are left out.

        Without a state, each class counts as seen as often as it is there. Whatever a call that
        was broken off has left is in order then.
        """
        self._meet(len(self.kept) - 1)
        for i in range(len(self.seen)):
            self.kept[i] = self.seen[i] = self._full[i] = 0
        if sorted(self._turn) != list(range(len(self._turn))):
            for i in range(len(self._turn)):
                self._turn[i] = i
        self.used = 0
        for slot in range(len(self.labels)):
            label = labels[slot] if slot < len(labels) else -1
            self.labels[slot] = -1
            self.set(slot, label)
        if state:
            self._random = state[0] & 0x3FFFFFFF or 1
            self._meet(len(state) - 2)
        for i in range(len(self.seen)):
            seen = state[i + 1] if state and i + 1 < len(state) else 0
            self.seen[i] = max(self.kept[i], min(seen, 0xFFFFF))

    def _meet(self, label):
        while len(self._turn) <= label:
            n = len(self._turn)
            for counts in (self.kept, self.seen, self._full):
                if len(counts) == n:
                    counts.append(0)
            self._turn.append(n)

    def _now(self, label):
        """It was the turn of a class."""
        turn = self._turn
        i = 0
        while turn[i] != label:
            i += 1
        while i < len(turn) - 1:
            turn[i] = turn[i + 1]
            i += 1
        turn[i] = label

    def _largest(self):
        """A class with the most samples; it and its equals are full from now on."""
        kept, full = self.kept, self._full
        best = 0
        for i in range(len(kept)):
            if kept[i] > kept[best]:
                best = i
        for i in range(len(kept)):
            if kept[i] == kept[best]:
                full[i] = 1
        return best

    def _find(self, label, n):
        """The slot of the n-th sample of a class, from 0."""
        labels = self.labels
        slot = 0
        while n or labels[slot] != label:
            n -= labels[slot] == label
            slot += 1
        return slot

    def _below(self, n):
        """A number from 0 to n - 1."""
        return (self._next() >> 4) % n

    def _next(self):
        """The next of 2**30 - 1 numbers: Marsaglia's xorshift, in what a small int holds."""
        x = self._random
        x ^= (x & 0x7FFFF) << 11
        x ^= x >> 13
        x ^= (x & 0x3FFFFF) << 8
        self._random = x
        return x
