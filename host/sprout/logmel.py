"""Spoken words as pictures: one second of sound becomes 32 moments x 32 bands of pitch, grey.

device/sprout/logmel.py is the twin of this; they agree to one level.  A picture goes where any
grey picture goes: ``data.fit`` or ``sprout.Frame`` scales it to a model's input.
"""

from __future__ import annotations

import numpy as np

from .graph import SproutError

RATE = 8000  # samples per second
SAMPLES = 8000  # of a clip
WINDOW, HOP = 256, 250  # samples
SIZE = 32  # moments and bands
LOW, HIGH = 100.0, 3800.0  # Hz, where the first band begins and the last ends
RANGE_DB = 60.0  # below the clip's loudest, what is black


def picture(pcm: np.ndarray) -> np.ndarray:
    """Return a clip as a picture, uint8 [32, 32, 1]: time downwards, pitch to the right.

    pcm: int16 [N], mono at 8 kHz, less than a second centred in silence, more cropped to the
    middle.  255 is the loudest value of the clip, 0 what is 60 dB or more below; silence is 0.

    Bands are triangles on the mel scale, 1127 ln(1 + f / 700) (O'Shaughnessy, *Speech
    Communication*, 1987).  Raises SproutError.
    """
    pcm = np.asarray(pcm)
    if pcm.dtype != np.int16 or pcm.ndim != 1:
        raise SproutError(
            f"A clip is {pcm.dtype} {list(pcm.shape)} and must be int16 [N], mono at {RATE} Hz."
        )
    sound = np.zeros((SIZE - 1) * HOP + WINDOW)
    if len(pcm) > SAMPLES:
        pcm = pcm[(len(pcm) - SAMPLES) // 2 :][:SAMPLES]
    start = (SAMPLES - len(pcm)) // 2
    sound[start : start + len(pcm)] = pcm
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * _WINDOW)) ** 2
    energy = power @ _BANDS
    loudest = energy.max()
    if loudest == 0:
        return np.zeros((SIZE, SIZE, 1), np.uint8)
    decibels = 10 * np.log10(np.maximum(energy / loudest, 1e-30))
    levels = np.floor(255 * (1 + decibels / RANGE_DB) + 0.5)
    return np.maximum(levels, 0).astype(np.uint8)[..., None]


def _bands() -> np.ndarray:
    """What each bin of the spectrum adds to each band, float [129, 32]: overlapping triangles."""
    frequency = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    low, high = _mel(LOW), _mel(HIGH)
    # Band b begins at position b, peaks at b + 1 and ends at b + 2.
    position = (_mel(frequency) - low) * (SIZE + 1) / (high - low)
    peaks = np.arange(SIZE) + 1
    return np.maximum(0, 1 - np.abs(position[:, None] - peaks))


def _mel(frequency: float | np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(frequency) / 700)


_WINDOW = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # Hann's
_BANDS = _bands()
