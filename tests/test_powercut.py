"""Power cuts, in real MicroPython on a flash that fails on command (powercut.py).

All cuts of a small net's saves and of a ring, and some hundred at random; ``make bench-powercut``
runs ten thousand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nets import everything_net
from sprout import compile as compiler
from test_device import run

HEAP = 1 << 24
SCRIPT = Path(__file__).with_name("powercut.py").read_text()


@pytest.fixture(scope="module")
def blob():
    """A net that goes on changing for as long as it is taught."""
    return compiler.compile_graph(everything_net(2), "full").to_bytes()


def cut(folder, blob, **config):
    """What powercut.py counts; it fails at the first loss."""
    (folder / "net.sprout").write_bytes(blob)
    (folder / "powercut.json").write_text(json.dumps(config))
    return json.loads(run(folder, SCRIPT, HEAP)[-1])


@pytest.mark.parametrize("kind", ["lfs", "fat"])
def test_every_write_of_a_save(kind, tmp_path, blob):
    result = cut(tmp_path, blob, kind=kind, what="save")
    assert result["cuts"] > 2 * result["writes"] > 90


@pytest.mark.parametrize("kind", ["lfs", "fat"])
def test_every_write_of_a_ring(kind, tmp_path, blob):
    result = cut(tmp_path, blob, kind=kind, what="ring")
    assert result["cuts"] > 2 * result["writes"] > 80
    # Garbled sectors of FAT cost the records that lie in them or that their folder knows of.
    assert (result["lost"] == 0) == (kind == "lfs")


@pytest.mark.parametrize("kind", ["lfs", "fat"])
@pytest.mark.parametrize("what", ["random", "replay"])
def test_random_cuts(what, kind, tmp_path, blob):
    """Of a net with a ring beside it, or with one that is its replay buffer."""
    result = cut(tmp_path, blob, kind=kind, what=what, n=120, seed=3)
    assert result["cuts"] == 120
    assert result["losses"] == 0
    assert result["older"] > 30  # cuts in the middle of a save
    assert result["saves"] > 30
