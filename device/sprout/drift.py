"""What net.drift tells: whether the net is less sure of what it sees than it used to be."""

from math import sqrt

from micropython import const

from .native import core

_FAST = const(32)  # samples that the running means look back on
_SLOW = const(512)
_FIRST = const(64)  # before so many there is nothing to compare
_LEAST = const(1)  # spread in 1/64: nets are often all but certain


class Drift:
    """Running means of the probability of the likeliest class, in integers.

    A control chart of the kind of Roberts, "Control Chart Tests Based on Geometric Moving
    Averages" (1959), whose centre line follows slowly.
    """

    def __init__(self):
        self._n = self._fast = self._slow = self._spread = 0  # Q24, Q24, squares in Q29

    def note(self, odds):
        """Take in the probability of the likeliest class, Q15; allocates nothing."""
        self._n = n = min(self._n + 1, _SLOW)
        distance = (odds - (self._slow >> 9)) >> 3
        self._fast += ((odds << 9) - self._fast) // min(n, _FAST)
        self._slow += ((odds << 9) - self._slow) // n
        if n > 1:
            self._spread += ((distance * distance << 5) - self._spread) // n

    def see(self, net, best):
        """Take in a forward pass of a net, whose likeliest class is `best`."""
        odds = net._odds
        if not core.probabilities(net._memory, len(net.classes), net._p0, odds):
            self.note(odds[best])

    def value(self):
        """How far the fast mean lies below the slow one, in standard errors of the fast one."""
        if self._n < _FIRST:
            return 0.0
        spread = max(sqrt(self._spread / 32) / 4096, _LEAST / 64)
        return (self._slow - self._fast) / 16777216 / spread * sqrt(2 * _FAST - 1)
