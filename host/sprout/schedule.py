"""Learning rates and sample orders, the same on the host and on the board.

``rate_parts`` and ``rate_at`` are the twins of device/sprout/schedule.py: integers, so that ports
with 32-bit and with 64-bit floats step by the same amount.
"""

from __future__ import annotations

import numpy as np

from .graph import SproutError

LEAST_RATE, MOST_RATE = 1e-9, 1e9


def rate_parts(rate: float) -> tuple[int, int]:
    """Return (mantissa, exponent) with rate = mantissa * 2**exponent and 2048 <= mantissa < 4096.

    Four significant digits of ``rate`` count: 32-bit and 64-bit floats agree on those. Raises
    SproutError outside [1e-9, 1e9].
    """
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise SproutError(f"The learning rate is {rate} and must lie between 1e-9 and 1e9.")
    digits, text = f"{rate:.3e}".split("e")
    power = int(text) - 3
    top = int(digits.replace(".", "")) * 10 ** max(power, 0)
    bottom = 10 ** max(-power, 0)
    exponent = 0
    while top >= 4096 * bottom:
        bottom *= 2
        exponent += 1
    while top < 2048 * bottom:
        top *= 2
        exponent -= 1
    mantissa = (2 * top + bottom) // (2 * bottom)
    return (mantissa, exponent) if mantissa < 4096 else (2048, exponent + 1)


def rate_at(mantissa: int, t: int, n: int) -> int:
    """Return the mantissa at sample ``t`` of ``n``: it falls smoothly to 0, but not below 1.

    The factor is 1 - (3 x**2 - 2 x**3), x = t / n in 12 bits, and never farther than 0.0101 from
    (1 + cos(pi x)) / 2.
    """
    x = (t << 12) // n
    s = (x * x * (3 * 4096 - 2 * x)) >> 24
    return max(1, (mantissa * (4096 - s)) >> 12)


def sample_order(n: int, epochs: int, seed: int) -> np.ndarray:
    """Return the order to learn ``n`` samples in, uint32 [epochs * n], shuffled per epoch."""
    order = np.empty((epochs, n), np.uint32)
    for epoch in range(epochs):
        order[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
    return order.ravel()
