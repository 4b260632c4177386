"""Runs the code in README.md and docs/, so that what they show is what happens.

A page is a story: its blocks run one after the other in one folder.  The language of a fenced
block says how:

    sh       lines after `$ ` are commands; they must succeed
    text     what the commands before printed: its lines, in order, numbers apart, `...` apart
    python   a program, saved under the name in its first line (`# pictures.py`), else run
    pycon    what one types at the board's prompt and what it answers, numbers apart

A comment before a block says more: `<!-- BLOB.sprout -->`, before pycon or python, that
MicroPython runs it with this blob on a Pico, where `BOARD` is defined; `<!-- skip: REASON -->`
that it is not run here, for one of SKIPS.  Commands for a port of PORTS get that of a simulated
board, which is there until the story ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sprout.board.serialsim import SerialBoard

PORTS = {"/dev/ttyACM0": "pico", "/dev/ttyUSB0": "esp32"}
SKIPS = (
    "sets up",  # what the test has done in its own way
    "needs a board",
    "takes minutes",
    "another repository",  # MicroPython's own
)
BOARD = """
class camera:  # some camera, in the dark
    @staticmethod
    def readinto(buffer):
        for i in range(len(buffer)):
            buffer[i] = 0
frame = bytes(96 * 96 * 3)
"""
_TYPED = """
def typed(text):
    print("\\x01")
    try:
        value = eval(text)
    except SyntaxError:
        exec(text, globals())
    else:
        if value is not None:
            print(repr(value))
"""
_FENCE = re.compile(r"^(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
                    re.MULTILINE | re.DOTALL)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is where it begins, `section` the heading above it."""

    page: Path
    line: int
    section: str
    language: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of an sh block."""
        lines = self.text.splitlines()
        assert all(line.startswith("$ ") for line in lines), f"{self}: a line without `$ `"
        return [line[2:] for line in lines]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", before), re.MULTILINE)
        section = headings[-1] if headings else ""
        line = before.count("\n") + 1
        note = (match["note"] or "").strip()
        found.append(Block(page, line, section, match["language"], note, match["text"]))
    return found


def run(story: list[Block], folder: Path, programs: Path) -> Iterator[Block]:
    """Run the blocks of a story in a folder, with `programs` first on the path; yields each that
    has run."""
    with contextlib.ExitStack() as stack:
        yield from _run(story, folder, programs, Ports(folder, stack))


class Ports:
    """The simulated boards of a story, made when they are first asked for."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._boards: dict[str, SerialBoard] = {}

    def here(self, command: str) -> str:
        """A command of a page with the ports that there are on this machine."""
        for name, board in PORTS.items():
            if name in command and name not in self._boards:
                simulated = SerialBoard(self._folder / f"{board}.flash", board)
                self._boards[name] = self._stack.enter_context(simulated)
        for name, simulated in self._boards.items():
            command = command.replace(name, simulated.port)
        return command

    def there(self, output: str) -> str:
        """What a command printed, with the ports of the page."""
        for name, simulated in self._boards.items():
            output = output.replace(simulated.port, name)
        return output


def _run(story: list[Block], folder: Path, programs: Path, ports: Ports) -> Iterator[Block]:
    output = ""
    for block in story:
        if block.note.startswith("skip: "):
            assert block.note.removeprefix("skip: ") in SKIPS, f"{block}: {block.note}"
            output = ""
            continue
        if block.language == "sh":
            commands = map(ports.here, block.commands)
            printed = [_shell(block, command, folder, programs) for command in commands]
            output = ports.there("".join(printed))
        elif block.language == "text":
            if not output:
                continue
            _compare(block, output)
        elif block.language == "python":
            output = _python(block, folder, programs)
        elif block.language == "pycon":
            _session(block, folder, programs)
        else:
            raise AssertionError(f"{block}: the language {block.language} is not run")
        yield block


def _environment(programs: Path) -> dict[str, str]:
    path = f"{programs}:{os.environ['PATH']}"
    return dict(os.environ, PATH=path, XDG_CACHE_HOME=str(programs.parent / "cache"))


def _shell(block: Block, command: str, folder: Path, programs: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(programs),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _python(block: Block, folder: Path, programs: Path) -> str:
    name = re.match(r"# ([\w.-]+\.py)$", block.text.splitlines()[0])
    if name:
        (folder / name[1]).write_text(block.text)
        return ""
    if block.note:
        return _on_board(block, BOARD + block.text, folder, programs)
    (folder / "block.py").write_text(block.text)
    return _shell(block, "python block.py", folder, programs)


def _on_board(block: Block, program: str, folder: Path, programs: Path) -> str:
    """What a program prints in MicroPython with a Pico's heap and the blob of the block's note."""
    (folder / "block.py").write_text(program)
    return _shell(block, f"sprout sim {block.note} block.py", folder, programs)


def _session(block: Block, folder: Path, programs: Path) -> None:
    """Type a session, compare the answers."""
    typed: list[str] = []
    answers: list[str] = []
    for line in block.text.splitlines():
        if line.startswith(">>> "):
            typed.append(line[4:])
            answers.append("")
        elif line.startswith("..."):
            typed[-1] += "\n" + line[4:]
        else:
            answers[-1] += line + "\n"
    calls = "".join(f"typed({text!r})\n" for text in typed)
    output = _on_board(block, BOARD + _TYPED + calls, folder, programs)
    for text, wanted, answer in zip(typed, answers, output.split("\x01\n")[1:], strict=True):
        said = f"{block}: {text!r} answers {answer!r}, not {wanted!r}"
        assert _plain(answer) == _plain(wanted), said


def _plain(line: str) -> str:
    """A line without what differs from machine to machine: numbers, bars and the space between."""
    return re.sub(r"\s+", " ", re.sub(r"[▁▂▃▄▅▆▇█]+|[\d.,]*\d", "#", line)).strip()


def _compare(block: Block, output: str) -> None:
    """Each line of a block must be in the output, after the one before."""
    lines = [_plain(line) for line in output.splitlines()]
    for line in block.text.splitlines():
        wanted = _plain(line)
        if wanted in ("", "..."):
            continue
        assert wanted in lines, f"{block}: {line!r} is not in what follows of\n{output}"
        del lines[: lines.index(wanted) + 1]
