"""The reservoir that picks what is rehearsed: balanced, unbiased, the same on every machine."""

from __future__ import annotations

import collections
from array import array

import numpy as np
import pytest
from sprout.replay import Reservoir
from test_device import run


def imbalanced(n: int, seed: int, classes: int = 5) -> list[int]:
    """Labels of a stream in which class k is half as frequent as class k - 1."""
    odds = 0.5 ** np.arange(classes)
    return np.random.default_rng(seed).choice(classes, n, p=odds / odds.sum()).tolist()


def balance(reservoir) -> list[int]:
    kept = collections.Counter(label for label in reservoir.labels if label >= 0)
    assert list(reservoir.kept) == [kept[i] for i in range(len(reservoir.kept))]
    assert reservoir.used == kept.total()
    return list(reservoir.kept)


@pytest.mark.parametrize("ordered", [False, True])
def test_classes_get_equal_shares_of_any_stream(ordered):
    labels = imbalanced(3000, 0)
    reservoir = Reservoir(42, 1)
    for label in sorted(labels) if ordered else labels:
        reservoir.offer(label)
    assert reservoir.used == 42
    kept = balance(reservoir)
    assert max(kept) - min(kept) <= 1, kept


def test_a_rare_class_keeps_everything():
    reservoir = Reservoir(40, 2)
    for t in range(2000):
        reservoir.offer(1 if t % 400 == 0 else 0)
    assert balance(reservoir) == [35, 5]


def test_what_a_class_keeps_is_a_uniform_choice_of_what_was_seen():
    """Two classes, 200 samples each, 10 kept: each fifth of the stream gives a fifth of them."""
    found = np.zeros(5)
    for seed in range(400):
        reservoir, at = Reservoir(20, seed), {}
        for t in range(400):
            slot = reservoir.offer(t % 2)
            if slot is not None:
                at[slot] = t
        found += np.histogram(list(at.values()), 5, (0, 400))[0]
    expected = 400 * 20 / 5
    assert ((found - expected) ** 2 / expected).sum() < 18.5  # chi2, 4 degrees, p = 0.001


def test_rehearses_every_class_alike():
    reservoir = Reservoir(12, 3)
    for label in [0] * 8 + [1, 3, 3]:
        reservoir.offer(label)
    picked = collections.Counter(reservoir.pick() for _ in range(9000))
    for slot, label in enumerate(reservoir.labels):
        expected = 3000 / reservoir.kept[label] if label >= 0 else 0
        assert abs(picked[slot] - expected) < 5 * max(expected, 1) ** 0.5


def test_a_class_that_comes_again_and_again_leaves_its_turn_to_the_others():
    reservoir = Reservoir(12, 3)
    for label in [0, 1, 2, 3] * 3:
        reservoir.offer(label)
    picked = []
    for _ in range(8):
        reservoir.offer(1)
        picked.append(reservoir.labels[reservoir.pick()])
    assert picked == [0, 2, 3, 0, 2, 3, 0, 2]
    labels = [-1 if label == 2 else label for label in reservoir.labels]
    reservoir.restore(labels, reservoir.state())
    assert [reservoir.labels[reservoir.pick()] for _ in range(6)] == [3, 0, 1, 3, 0, 1]


def test_nothing_to_rehearse():
    empty, none = Reservoir(3, 1), Reservoir(0, 1)
    assert empty.pick() is None
    assert none.offer(2) is None
    assert none.pick() is None


def test_a_slot_that_was_not_written_is_empty_again():
    reservoir = Reservoir(2, 5)
    slot = reservoir.offer(1)
    reservoir.set(slot, -1)
    assert balance(reservoir) == [0, 0]
    assert reservoir.offer(0) == slot


def test_goes_on_from_labels_and_state_as_if_there_had_been_no_restart():
    labels = imbalanced(600, 6)
    whole = Reservoir(30, 7)
    for label in labels[:300]:
        whole.offer(label)
    again, without = Reservoir(30, 99), Reservoir(30, 99)
    again.restore(whole.labels, whole.state())
    without.restore(whole.labels)
    assert balance(again) == balance(without) == balance(whole)
    for label in labels[300:]:
        assert again.offer(label) == whole.offer(label)
        without.offer(label)
    assert again.labels == whole.labels
    assert abs(np.subtract(balance(without), balance(whole))).max() <= 1


def test_the_generator_has_its_whole_period():
    """2**30 - 1 states: the linear map of one step has that order, and no divisor of it."""
    reservoir = Reservoir(1, 1)

    def step(x: int) -> int:
        reservoir._random = x
        return reservoir._next()

    def apply(rows: list[int], x: int) -> int:
        out = 0
        for i in range(30):
            out ^= rows[i] if x >> i & 1 else 0
        return out

    def power(n: int) -> list[int]:
        out, rows = [1 << i for i in range(30)], [step(1 << i) for i in range(30)]
        while n:
            out = [apply(rows, x) for x in out] if n & 1 else out
            rows = [apply(rows, x) for x in rows]
            n >>= 1
        return out

    unit = [1 << i for i in range(30)]
    period = 2**30 - 1
    assert power(period) == unit
    assert all(power(period // p) != unit for p in (3, 7, 11, 31, 151, 331))


def test_is_the_same_on_the_board_and_allocates_nothing(tmp_path):
    labels = bytes(imbalanced(500, 8))
    reservoir = Reservoir(25, 10)
    slots = [reservoir.offer(label) for label in labels]
    picks = [reservoir.pick() for _ in range(50)]
    code = f"""
import gc
from sprout.reservoir import Reservoir
r = Reservoir(25, 10)
i = free = 0
labels = {labels!r}
print([r.offer(i) for i in labels])
print([r.pick() for _ in range(50)])
print(list(r.state()))
gc.collect()
free = gc.mem_free()
for i in range(500):
    r.offer(labels[i])
    r.pick()
print(free - gc.mem_free())
"""
    assert run(tmp_path, code) == [str(slots), str(picks), str(list(reservoir.state())), "0"]


def test_needs_no_more_than_the_small_integers_of_32_bits():
    """Of every number that the generator works with, on the way too."""
    reservoir = Reservoir(1, 12345)
    for _ in range(10000):
        x = reservoir._random
        y = x ^ (x & 0x7FFFF) << 11
        assert max(x, y, y ^ y >> 13, reservoir._next()) < 2**30


class Trips(list):
    """A list at whose n-th access Ctrl-C comes, before it is done or after."""

    left = 0

    def trip(self):
        Trips.left -= 1
        if not Trips.left:
            raise KeyboardInterrupt

    def __getitem__(self, i):
        self.trip()
        return super().__getitem__(i)

    def __setitem__(self, i, value):
        self.trip()
        super().__setitem__(i, value)
        self.trip()

    def append(self, value):
        self.trip()
        super().append(value)
        self.trip()


def test_a_call_that_is_broken_off_can_be_mended():
    broken = 0
    for n in range(1, 400):
        reservoir = Reservoir(6, n)
        for label in (0, 1, 2, 0, 1, 0, 0, 2, 1):
            reservoir.offer(label)
        for name in ("labels", "kept", "seen", "_full", "_turn"):
            setattr(reservoir, name, Trips(getattr(reservoir, name)))
        Trips.left = n
        try:
            for label in (3, 0, 1, 3):
                reservoir.offer(label)
                reservoir.pick()
        except KeyboardInterrupt:
            broken += 1
        Trips.left = 0
        reservoir.restore(array("h", reservoir.labels), reservoir.state())
        balance(reservoir)
        for label in range(5):
            reservoir.offer(label)
            assert reservoir.labels[reservoir.pick()] >= 0
        assert sorted(reservoir._turn) == list(range(5))
        assert reservoir.used == sum(balance(reservoir))
    assert 200 < broken < 399
