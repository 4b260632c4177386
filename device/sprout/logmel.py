"""Spoken words as pictures: one second of sound becomes 32 moments x 32 bands of pitch, grey.

    from sprout import logmel
    net.learn(frame(logmel.picture(pcm)), "seven")  # frame = sprout.Frame(32, 32, "grey", net)

host/sprout/logmel.py is the twin of this and says what is computed; they agree to one level.
"""

import math
from array import array

from micropython import const

RATE = 8000  # samples per second
SIZE = 32  # moments and bands

_SAMPLES = const(8000)
_WINDOW = const(256)
_HOP = const(250)
_SIZE = const(32)
_LEVELS_A_NAT = 255 / 60 * 10 / math.log(10)  # levels of the picture for a factor e of power


def _mel(frequency):
    return math.log(1 + frequency / 700)  # the scale's factor cancels


def _positions():
    """Where on the scale of bands each bin of the spectrum lies; below 0 and above 33 is none."""
    low = _mel(100)
    step = (_mel(3800) - low) / (_SIZE + 1)
    bins = range(_WINDOW // 2)
    return array("f", [(_mel(k * RATE / _WINDOW) - low) / step for k in bins])


def _bit_reversed():
    order = [0]
    while len(order) < _WINDOW:
        order = [2 * i for i in order] + [2 * i + 1 for i in order]
    return order


# 4 KB, allocated once. Complex numbers would take half the time, but 384 of them, that lie
# wherever there was room, leave a small heap no large piece.
_reversed = bytes(_bit_reversed())
_cos = array("f", [math.cos(2 * math.pi * k / _WINDOW) for k in range(_WINDOW)])
_position = _positions()
_re = array("f", bytes(4 * _WINDOW))
_im = array("f", bytes(4 * _WINDOW))


def picture(pcm, out=None):
    """A clip as a picture: uint8, 32 x 32, grey, in `out` or in a bytearray of its own.

    pcm: int16 samples, mono at 8 kHz, as array('h') or as bytes, little endian; less than a
    second is centred in silence, more is cropped to the middle. It takes 4 KB while it works.
    """
    pcm = _samples(pcm)
    if out is None:
        out = bytearray(_SIZE * _SIZE)
    n = len(pcm)
    first = (n - _SAMPLES) // 2 if n > _SAMPLES else -((_SAMPLES - n) // 2)
    energy = array("f", bytes(4 * _SIZE * _SIZE))
    for row in range(0, _SIZE, 2):
        at = first + row * _HOP
        # Two moments in one transform, as its real and its imaginary part.
        _window(pcm, at, first + _SAMPLES, _re)
        _window(pcm, at + _HOP, first + _SAMPLES, _im)
        _transform()
        _sum_bands(energy, row * _SIZE)
    loudest = max(energy)
    if not loudest:
        out[: len(energy)] = bytes(len(energy))
        return out
    top = math.log(loudest)
    for i, value in enumerate(energy):
        level = 255.5 + (math.log(value) - top) * _LEVELS_A_NAT if value > 0 else 0
        out[i] = int(level) if level > 0 else 0
    return out


def _samples(pcm):
    """What can be indexed by sample."""
    if isinstance(pcm, array):
        return pcm
    try:
        return array("h", pcm)
    except (TypeError, ValueError):
        text = "a clip is array('h') or bytes of int16 samples at 8 kHz, not %r"
        raise ValueError(text % type(pcm)) from None


def _window(pcm, at, end, to):
    """256 samples from `at` on, 0 outside the clip, times Hann's window, in bit-reversed order."""
    end = min(end, len(pcm))
    for i in range(_WINDOW):
        k = at + i
        to[_reversed[i]] = pcm[k] * (0.5 - 0.5 * _cos[i]) if 0 <= k < end else 0


def _transform():
    """The discrete Fourier transform of _re + i * _im, in place."""
    re, im, cos = _re, _im, _cos
    half, step = 1, _WINDOW // 2
    while half < _WINDOW:
        for k in range(half):
            angle = k * step
            c, s = cos[angle], cos[angle + _WINDOW // 4]  # -sin
            for a in range(k, _WINDOW, 2 * half):
                b = a + half
                x, y = re[b], im[b]
                u, v = x * c - y * s, x * s + y * c
                x, y = re[a], im[a]
                re[b], im[b] = x - u, y - v
                re[a], im[a] = x + u, y + v
        half *= 2
        step //= 2


def _sum_bands(energy, at):
    """Add the two moments' power to the bands of two rows of `energy`, from `at` on."""
    re, im = _re, _im
    for k in range(1, _WINDOW // 2):
        position = _position[k]
        if not 0 < position < _SIZE + 1:
            continue
        # The real part's spectrum is (X[k] + X*[-k]) / 2, the imaginary's (X[k] - X*[-k]) / 2i.
        a, b, c, d = re[k], im[k], re[_WINDOW - k], im[_WINDOW - k]
        first = ((a + c) * (a + c) + (b - d) * (b - d)) / 4
        second = ((a - c) * (a - c) + (b + d) * (b + d)) / 4
        band = int(position)  # peaks at band + 1
        part = position - band
        if band < _SIZE:
            energy[at + band] += part * first
            energy[at + _SIZE + band] += part * second
        if band > 0:
            energy[at + band - 1] += (1 - part) * first
            energy[at + _SIZE + band - 1] += (1 - part) * second
