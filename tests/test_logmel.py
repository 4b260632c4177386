"""Sound as pictures: the board's and the host's agree, and show what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sprout import logmel
from sprout.graph import SproutError
from test_device import fails, run

CODE = """
from array import array
from sprout import logmel
for n in {sizes}:
    with open("%d.pcm" % n, "rb") as file, open("%d.out" % n, "wb") as out:
        out.write(logmel.picture({make}))
"""


def on_board(folder: Path, clips: list[np.ndarray], make: str = "file.read()") -> np.ndarray:
    for i, clip in enumerate(clips):
        (folder / f"{i}.pcm").write_bytes(clip.astype("<i2").tobytes())
    run(folder, CODE.format(sizes=f"range({len(clips)})", make=make))
    raw = [(folder / f"{i}.out").read_bytes() for i in range(len(clips))]
    return np.array([np.frombuffer(picture, np.uint8).reshape(32, 32, 1) for picture in raw])


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def test_board_and_host_agree_on_speech(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "data" / "spoken_digits.npz") as digits:
        pcm, ends = digits["pcm"], digits["offsets"]
    clips = [pcm[ends[i] : ends[i + 1]] for i in range(0, 2000, 97)]
    expected = np.array([logmel.picture(pcm) for pcm in clips])
    assert apart(on_board(tmp_path, clips), expected) <= 1
    assert expected.max() == 255 and 40 < expected.mean() < 160


def test_board_and_host_agree_at_the_edges(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [
        np.zeros(0, np.int16),
        np.zeros(8000, np.int16),
        np.full(8000, -32768, np.int16),
        np.array([32767], np.int16),
        rng.integers(-3, 4, 7999).astype(np.int16),
        rng.integers(-32768, 32768, 8001).astype(np.int16),
        rng.integers(-32768, 32768, 20001).astype(np.int16),
    ]
    expected = np.array([logmel.picture(pcm) for pcm in clips])
    assert apart(on_board(tmp_path, clips), expected) <= 1
    assert not expected[:2].any()
    assert apart(on_board(tmp_path, clips, "array('h', file.read())"), expected) <= 1


@pytest.mark.parametrize("frequency", [200, 440, 1000, 3000])
def test_a_tone_lies_where_its_pitch_says(frequency: int) -> None:
    time = np.arange(8000) / 8000
    pcm = (10000 * np.sin(2 * np.pi * frequency * time)).astype(np.int16)
    low, high = np.log1p(100 / 700), np.log1p(3800 / 700)
    band = (np.log1p(frequency / 700) - low) * 33 / (high - low) - 1
    loudest = logmel.picture(pcm)[4:28, :, 0].argmax(axis=1)
    assert (np.abs(loudest - band) < 1).all()


def test_sound_stands_where_it_was_heard() -> None:
    pcm = np.random.default_rng(0).integers(-9000, 9000, 1000).astype(np.int16)
    loud = logmel.picture(pcm)[..., 0].max(axis=1) > 200
    assert np.flatnonzero(loud).tolist() == list(np.arange(14, 19)[loud[14:19]])
    assert loud[14:18].all()


def test_what_is_no_clip_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SproutError, match=r"A clip is float64 \[8\] and must be int16"):
        logmel.picture(np.zeros(8))
    kind, message = fails(tmp_path, "from sprout import logmel\nlogmel.picture(8000)")
    assert (kind, message.split(" is ")[0]) == ("ValueError", "a clip")
