"""Progress: the time left is told from what was done and how long it took."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sprout import progress
from sprout.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    """Set ``clock[0]`` to move the time on."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def told(console):
    lines = console.file.getvalue().splitlines()
    console.file.truncate(console.file.seek(0))
    return lines


def test_the_first_line_knows_how_long_the_first_part_took(clock):
    console = Console(file=io.StringIO(), width=99)
    with Reporter(console) as report:
        clock[0] += 10
        report("sizing", 2, 10)
        assert told(console) == ["sizing: 2 of 10, 40 s left"]
        clock[0] += 60
        report("learning", 0, 4)
        clock[0] += 6
        report("learning", 1, 4)
        assert told(console) == ["learning: 1 of 4, 18 s left"]


def test_a_phase_that_begins_once_more_counts_from_there(clock):
    console = Console(file=io.StringIO(), width=99)
    with Reporter(console) as report:
        for done in (1, 2, 3):
            clock[0] += 1
            report("trying", done, 3)
        clock[0] += 8
        report("trying", 1, 5)
        assert told(console) == ["trying: 1 of 5, 32 s left"]


def test_a_bar_takes_the_new_total():
    console = Console(file=io.StringIO(), width=99, force_terminal=True)
    with Reporter(console) as report:
        report("trying", 3, 3)
        report("trying", 1, 5)
        (task,) = report._bars.tasks
        assert (task.completed, task.total) == (1, 5)
