"""Learning rates as the core takes them: integers, so that all boards step alike."""

from micropython import const

_ONE = const(4096)


def rate_parts(rate):
    """(mantissa, exponent) with rate = mantissa * 2**exponent and 2048 <= mantissa < 4096.

    Four significant digits of the rate count: 32-bit and 64-bit floats agree on those.
    """
    if not 1e-9 <= rate <= 1e9:
        raise ValueError("the learning rate is %s and must lie between 1e-9 and 1e9" % rate)
    digits, power = ("%.3e" % rate).split("e")
    power = int(power) - 3
    top = int(digits.replace(".", "")) * 10 ** max(power, 0)
    bottom = 10 ** max(-power, 0)
    exponent = 0
    while top >= _ONE * bottom:
        bottom *= 2
        exponent += 1
    while 2 * top < _ONE * bottom:
        top *= 2
        exponent -= 1
    mantissa = (2 * top + bottom) // (2 * bottom)
    return (mantissa, exponent) if mantissa < _ONE else (_ONE // 2, exponent + 1)


def rate_at(mantissa, t, n):
    """The mantissa at sample t of n: falls much like half a cosine to 0, but not below 1."""
    x = (t << 12) // n
    # s = x * x * (3 * 4096 - 2 * x) >> 24, in parts that are small ints on 32-bit boards.
    square = x * x
    y = 3 * _ONE - 2 * x
    s = ((square >> 10) * y + ((square & 1023) * y >> 10)) >> 14
    return max(1, mantissa * (_ONE - s) >> 12)
