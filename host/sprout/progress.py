"""Progress with the time left: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

QUIET_SECONDS = 5.0
"""Time between two lines where there is no terminal."""


class _Bars(Progress):
    """The bars, and something of one's own below them."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below is not None:
            yield self.below


class Reporter:
    """Shows how far the phases of a task are; call it as ``report(phase, done, total, text)``.

    A phase of which less is done than before begins once more.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._spoken = self._called = time.monotonic()
        self._bars = _Bars(
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Reporter:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, phase: str, done: int, total: int, text: str = "") -> None:
        begins = phase not in self._done or done < self._done[phase]  # maybe once more
        self._done[phase] = done
        if self.console.is_terminal:
            if phase not in self._tasks:
                self._tasks[phase] = self._bars.add_task(phase, total=total, text=text)
            elif begins:
                self._bars.reset(self._tasks[phase], total=total)
            self._bars.update(self._tasks[phase], completed=done, text=text)
            return
        now = time.monotonic()
        if begins:  # what is done already was begun after the last report
            self._started[phase] = self._called if done else now
        self._called, start = now, self._started[phase]
        if now - self._spoken >= QUIET_SECONDS and 0 < done < total:
            self._spoken = now
            left = (now - start) / done * (total - done)
            self.console.print(
                f"{phase}: {done:,} of {total:,}, {left:.0f} s left  {text}".rstrip()
            )

    def point(self, seen: int, loss: float, accuracy: float, tested: float | None) -> None:
        """A point of the learning curve; ``tested`` is the test accuracy where it was measured."""

    def show(self, below: RenderableType) -> None:
        """Show something below the bars, on a terminal."""
        self._bars.below = below
