"""A simulated board behind a serial port: real MicroPython with its REPL, flash and cable.

The port is a pseudo-terminal, which ampy, mpremote and pyserial open like a USB port.  Behind it
is MicroPython's unix port, which speaks the friendly, raw and raw-paste REPL by itself.  Its root
is a littlefs (VfsLfs2) in a file of this machine with the size and blocks of the board's flash,
its heap the board's, as in ``sim``.  What the unix port lacks is added here: a soft reset starts
it again, in the same kind of REPL, and runs boot.py and main.py.

Between port and MicroPython lies a ``Link``: as fast and as good as it is told to be.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import pty
import random
import re
import select
import struct
import subprocess
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..graph import SproutError
from . import sim
from .table import Board

BLOCK = 4096  # bytes that flash erases at once
_MOUNTED, _STARTED = b"\x00mounted\x00", b"\x00started\x00"
_PROMPT, _RAW = b">>> ", b"raw REPL; CTRL-B to exit\r\n>"

# Ctrl-C must interrupt programs: the terminal sends SIGINT to whom it belongs to.
_OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"

_FLASH = """
import os, sys, time, vfs
class Flash:
    def __init__(self, name, blocks, pause):
        self.file, self.blocks, self.pause = open(name, "r+b"), blocks, pause
        self.sleep = time.sleep_ms
    def readblocks(self, block, buffer, at=0):
        self.file.seek(4096 * block + at)
        self.file.readinto(buffer)
    def writeblocks(self, block, buffer, at=0):
        self.file.seek(4096 * block + at)
        self.file.write(buffer)
    def ioctl(self, what, block):
        if what == 4:
            return self.blocks
        if what == 5:
            return 4096
        if what == 6:
            self.sleep(self.pause)
            return 0
def mount(name, blocks, pause):
    flash = Flash(name, blocks, pause)
    try:
        files = vfs.VfsLfs2(flash, progsize=256)
    except OSError:
        vfs.VfsLfs2.mkfs(flash, progsize=256)
        files = vfs.VfsLfs2(flash, progsize=256)
    vfs.umount("/")
    vfs.mount(files, "/")
mount(*{flash!r})
"""

_BOOT = """
def boot(changed, programs):
    if changed:
        from collections import namedtuple
        class Sys:
            def __init__(self, real):
                self.real = real
            def __getattr__(self, name):
                return getattr(self.real, name)
        values = {{"name": "micropython", "version": sys.implementation.version,
            "_machine": sys.implementation._machine, "_mpy": sys.implementation._mpy}}
        values.update(changed)
        fake = Sys(sys)
        fake.implementation = namedtuple("implementation", tuple(values))(*values.values())
        sys.modules["sys"] = fake
    try:
        sys.stdout.write("\\x00mounted\\x00")
        for name in programs:
            try:
                os.stat(name)
            except OSError:
                continue
            with open(name) as file:
                exec(file.read(), {{"__name__": "__main__"}})
    except BaseException as error:
        sys.print_exception(error)
    finally:
        sys.stdout.write("\\x00started\\x00")
boot({changed!r}, {programs!r})
del Flash, mount, boot, os, sys, time, vfs
"""

_LIST = """
import binascii, hashlib, json
def walk(folder):
    for name, kind, _, size in os.ilistdir(folder or "/"):
        path = folder + "/" + name
        if kind == 0x4000:
            yield from walk(path)
        else:
            with open(path, "rb") as file:
                yield path, binascii.hexlify(hashlib.sha256(file.read()).digest()).decode()
print(json.dumps(dict(walk(""))))
"""


@dataclass(frozen=True)
class Link:
    """What a cable does to the bytes, in both directions; as it is, nothing.

    rate: bytes a second, 0 for no limit.  latency: seconds on the way.  drop, duplicate, corrupt,
    stall: the probability that a byte is lost, comes twice, comes with a bit turned, or holds up
    all that follow for stall_seconds.  buffer: bytes that the board can hold while it does
    something else, more are lost (a UART without flow control); 0: the sender waits, as on USB.
    die_after: bytes, both directions together, until the cable is pulled or, with ``silent``,
    nothing comes through any more.  The same ``seed`` damages the same bytes.
    """

    rate: float = 0
    latency: float = 0
    drop: float = 0
    duplicate: float = 0
    corrupt: float = 0
    stall: float = 0
    stall_seconds: float = 0.3
    buffer: int = 0
    die_after: int | None = None
    silent: bool = False
    seed: int = 0


USB = Link(rate=400_000, latency=0.0005)
"""USB full speed: a serial device gets about that much, and answers within a frame or two."""
UART = Link(rate=11_520, latency=0.001, buffer=256)
"""115 200 baud through a bridge chip, into the 256 bytes that MicroPython keeps."""


class _Way:
    """One direction of a link."""

    def __init__(self, link: Link, seed: int) -> None:
        self.link, self.random = link, random.Random(seed)
        self.kinds = ("drop", "duplicate", "corrupt", "stall")
        self.odds = [getattr(link, kind) for kind in self.kinds]
        self.queue: deque[tuple[float, bytes]] = deque()
        self.free_at = 0.0  # when the line has sent what it was given
        self.good = self._next_damage()

    def _next_damage(self) -> float:
        """How many bytes come through before the next one that does not."""
        odds = sum(self.odds)
        if not odds:
            return math.inf
        return int(math.log(1 - self.random.random()) / math.log1p(-odds)) if odds < 1 else 0

    def _damaged(self, data: bytes) -> tuple[bytes, float]:
        """What arrives of ``data``, and by how much later."""
        out, late = bytearray(), 0.0
        while len(data) > self.good:
            at = int(self.good)
            out += data[:at]
            byte = data[at]
            kind = self.random.choices(self.kinds, self.odds)[0]
            if kind == "duplicate":
                out += bytes([byte, byte])
            elif kind == "corrupt":
                out.append(byte ^ 1 << self.random.randrange(8))
            elif kind == "stall":
                late += self.link.stall_seconds
                out.append(byte)
            data = data[at + 1 :]
            self.good = self._next_damage()
        self.good -= len(data)
        return bytes(out + data), late

    def send(self, data: bytes, now: float) -> None:
        """Put bytes on the line."""
        data, late = self._damaged(data)
        self.free_at = max(now, self.free_at) + late
        step = max(1, int(self.link.rate / 500)) if self.link.rate else len(data) or 1
        for i in range(0, len(data), step):
            piece = data[i : i + step]
            if self.link.rate:
                self.free_at += len(piece) / self.link.rate
            self.queue.append((self.free_at + self.link.latency, piece))

    def ready(self, now: float) -> bool:
        """Whether the line takes more."""
        return self.free_at < now + 0.01

    def due(self) -> float:
        """When the next bytes arrive."""
        return self.queue[0][0] if self.queue else math.inf

    def arrived(self, now: float) -> bytes:
        """The bytes that are there by now."""
        out = []
        while self.queue and self.queue[0][0] <= now:
            out.append(self.queue.popleft()[1])
        return b"".join(out)


class SerialBoard:
    """A board whose serial port is ``port``, the path of a terminal; a context manager.

    flash: the file of its flash, made where there is none.  board, heap: as in ``sim.command``.
    blocks: of 4 096 bytes, the board's file system if None.  link: of the cable.  changed: what
    sys.implementation says in place of the truth, such as {"_mpy": 0x1206}.  erase_ms: how long
    flash takes to erase a block.  raw_paste: False for a REPL as before MicroPython 1.14.
    ``passed`` counts the bytes that went through the cable, in both directions.
    """

    def __init__(
        self,
        flash: Path,
        board: str | Board = "pico",
        heap: int | None = None,
        *,
        blocks: int | None = None,
        link: Link | None = None,
        changed: Mapping[str, Any] | None = None,
        erase_ms: int = 0,
        raw_paste: bool = True,
    ) -> None:
        self.blocks = blocks or sim._board(board).filesystem // BLOCK
        self.flash, self.changed, self.erase_ms = flash.absolute(), changed, erase_ms
        self.link, self.raw_paste = link or Link(), raw_paste
        if not flash.exists():
            with flash.open("wb") as file:
                file.truncate(self.blocks * BLOCK)
        command, environment = sim.command(board, heap)
        self._command = [*command[:2], _OWN_TERMINAL + command[2], *command[3:], "-i", "-c"]
        self._environment = environment | {"MICROPYPATH": ".frozen:/lib"}
        self._to_board, self._to_host = (_Way(self.link, 2 * self.link.seed + i) for i in (0, 1))
        self.passed = 0
        self._raw = self._stopping = self.dead = False
        self._for_board, self._for_host = b"", b""
        self._process: subprocess.Popen[bytes] | None = None
        self._host, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._board, self._terminal = pty.openpty()
        self._prepare_terminal()
        for fd in (self._host, self._board):
            os.set_blocking(fd, False)
        self._wake, self._waker = os.pipe()
        self._lock = threading.Lock()
        self._start()
        self._thread = threading.Thread(target=self._serve, name="serial board", daemon=True)
        self._thread.start()

    def _prepare_terminal(self) -> None:
        """Let everything through but Ctrl-C, which is a signal while a program runs."""
        tty.setraw(self._terminal)
        settings = termios.tcgetattr(self._terminal)
        settings[3] |= termios.ISIG
        for key in range(len(settings[6])):
            settings[6][key] = b"\x00"
        settings[6][termios.VINTR], settings[6][termios.VMIN] = b"\x03", 1
        settings[6][termios.VTIME] = 0
        termios.tcsetattr(self._terminal, termios.TCSANOW, settings)
        self._settings = settings

    def __enter__(self) -> SerialBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything away but the flash."""
        self._stopping = True
        os.write(self._waker, b"x")
        self._thread.join()
        self._stop()
        if not self.dead:
            self._hang_up()
        for fd in (self._board, self._terminal, self._wake, self._waker):
            os.close(fd)

    def pull(self) -> None:
        """Pull the cable."""
        with self._lock:
            self._hang_up()

    def power_cycle(self) -> None:
        """Take the power away at this instant, and give it back."""
        with self._lock:
            self._stop()
            self._raw = False
            self._start()

    def files(self) -> dict[str, str]:
        """Return the SHA-256 of every file in the flash, by path."""
        flash = (str(self.flash), self.blocks, 0)
        done = subprocess.run(
            [*sim.micropython(), "-c", _FLASH.replace("{flash!r}", repr(flash)) + _LIST],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SproutError(f"{self.flash} cannot be read: {done.stderr.strip()}")
        return dict(json.loads(done.stdout))

    def _start(self) -> None:
        flash = (str(self.flash), self.blocks, self.erase_ms)
        programs = ("boot.py",) if self._raw else ("boot.py", "main.py")
        boot = _BOOT.format(changed=dict(self.changed or {}), programs=programs)
        termios.tcflush(self._terminal, termios.TCIOFLUSH)
        termios.tcsetattr(self._terminal, termios.TCSANOW, self._settings)
        self._process = subprocess.Popen(
            [*self._command, _FLASH.replace("{flash!r}", repr(flash)) + boot],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
            env=self._environment,
            start_new_session=True,
        )
        self._exited = os.pidfd_open(self._process.pid)
        self._phase, self._seen, self._tail = "mounting", b"", b""

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            os.close(self._exited)

    def _hang_up(self) -> None:
        if not self.dead:
            self.dead = True
            os.close(self._slave)
            os.close(self._host)

    def _serve(self) -> None:
        while not self._stopping:
            with self._lock:
                now = time.monotonic()
                wait = self._turn(now)
                readers = [self._wake, self._board, self._exited]
                writers = []
                if not self.dead:
                    if self._to_board.ready(now) and len(self._for_board) < BLOCK:
                        readers.append(self._host)
                    if self._for_host:
                        writers.append(self._host)
                if len(self._for_host) > BLOCK or not self._to_host.ready(now):
                    readers.remove(self._board)
                if self._for_board and self._phase in ("user", "running") and not self.link.buffer:
                    writers.append(self._board)
            try:
                select.select(readers, writers, [], wait)
            except (OSError, ValueError):  # the cable was pulled just now
                continue

    def _turn(self, now: float) -> float:
        """Move what can be moved; return for how long there is nothing more to do, at most."""
        if not self.dead and self._to_board.ready(now):
            self._to_board.send(self._count(_read(self._host)), now)
        from_board = _read(self._board)
        if from_board:
            self._to_host.send(self._count(self._heard(from_board)), now)
        elif self._process is not None and self._process.poll() is not None:
            self._stop()
            self._to_host.send(self._count(b"MPY: soft reboot\r\n"), now)
            self._start()
        arrived = self._to_board.arrived(now)
        if not self.raw_paste:
            arrived = arrived.replace(b"\x05A\x01", b"\x01")
        self._for_board += arrived
        self._for_host += self._to_host.arrived(now)
        if self._phase in ("user", "running"):
            self._for_board = self._for_board[self._give(self._for_board) :]
        if not self.dead:
            self._for_host = self._for_host[_write(self._host, self._for_host) :]
            if self.link.die_after is not None and self.passed >= self.link.die_after:
                rest: Any = self._for_board or self._for_host
                rest = rest or self._to_board.queue or self._to_host.queue
                if not rest and not self.link.silent:
                    self._hang_up()
        else:
            self._for_host = b""
        due = min(self._to_board.due(), self._to_host.due())
        if not self._to_board.ready(now) or not self._to_host.ready(now):
            due = min(due, now + 0.001)
        if self.link.buffer and self._for_board:
            due = min(due, now + 0.001)
        return max(0.0, min(0.2, due - now))

    def _count(self, data: bytes) -> bytes:
        """What of ``data`` still comes through before the link dies."""
        if self.link.die_after is not None:
            data = data[: max(0, self.link.die_after - self.passed)]
        self.passed += len(data)
        return data

    def _give(self, data: bytes) -> int:
        """Give bytes to MicroPython; return how many are off the line."""
        if not self.link.buffer:
            return _write(self._board, data)
        held = struct.unpack("i", fcntl.ioctl(self._terminal, termios.FIONREAD, b"\0" * 4))[0]
        _write(self._board, data[: max(0, self.link.buffer - held)])
        return len(data)

    def _heard(self, data: bytes) -> bytes:
        """What a board would have sent where MicroPython printed ``data``."""
        self._seen += data
        if self._phase == "mounting":
            _, found, rest = self._seen.partition(_MOUNTED)
            if not found:
                return b""
            self._phase, self._seen = "user", rest
        if self._phase == "user":
            before, found, rest = self._seen.partition(_STARTED)
            if not found:
                self._seen = b""
                return self._cooked(before)
            self._phase = "banner" if self._raw else "running"
            data, self._seen = before, rest
            return self._cooked(data) + self._heard(b"")
        if self._phase == "banner":
            if _PROMPT not in self._seen:
                return b""
            self._phase, self._seen = "entering", b""
            _write(self._board, b"\x01")
            return b""
        if self._phase == "entering":
            if _RAW[-12:-3] not in self._seen or not self._seen.endswith(b">"):
                return b""
            self._phase, self._seen = "running", self._seen.lstrip(b"\r\n")
        data, self._seen = self._cooked(self._seen), b""
        self._note_mode(data)
        return data

    def _note_mode(self, data: bytes) -> None:
        """Keep in mind which REPL it is."""
        self._tail = (self._tail + data)[-4096:]
        raw, friendly = self._tail.rfind(_RAW[:-3]), self._tail.rfind(_PROMPT)
        if max(raw, friendly) >= 0:
            self._raw = raw > friendly

    def _cooked(self, data: bytes) -> bytes:
        """Lines end with CR LF on a board."""
        return re.sub(rb"\r*\n", b"\r\n", data)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, BLOCK)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data) if data else 0
    except BlockingIOError:
        return 0
