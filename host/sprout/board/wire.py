"""Talks to a board's REPL over a serial port that may lose, repeat and damage what is sent.

Three layers.  A wire executes a program in the raw REPL: ``AmpyWire`` is adafruit-ampy's, taught
the raw-paste mode, in which the board says how much it can take, and to give up instead of waiting
for ever; ``MpremoteWire`` is mpremote's.  A ``Session`` puts requests to the agent, which it sends
to the board first (scripts/agent.py): each has a number and a digest, each answer too, and what
did not come through is asked again, but carried out once.  On top are whole files.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import serial
from ampy.pyboard import Pyboard, PyboardError
from mpremote import transport_serial
from mpremote.transport import TransportError, TransportExecError
from serial.tools import list_ports

from ..graph import SproutError

BAUD = 115_200
ATTEMPTS = 10  # to get one request through
CHUNK = 2048  # bytes of a file in one request, which takes three times as many of the board's heap
LEAST_CHUNK = 128
PIECE = 256  # bytes of the agent at a time
SUFFIX = ".sprout-new"  # of a file that is not whole yet, as in scripts/agent.py
AGENT = Path(__file__).with_name("scripts") / "agent.py"
_BANNER = b"raw REPL; CTRL-B to exit\r\n>"
_REPLY = 0.3  # seconds in which a board begins to answer
_QUIET = 0.05  # seconds without a byte after which a board has said what it had to


# Collects the agent's pieces in S and runs it when they are whole; F is the heap before.
_BOOTSTRAP = b"""
import binascii as b,gc,hashlib as h
gc.collect()
F=gc.mem_free()
S={}
def P(i,d,c):
 if i<0:d=b''.join(S[k]for k in sorted(S))
 if b.hexlify(h.sha256(d).digest())[:len(c)]==c:
  if i<0:
   S.clear()
   exec(d,globals())
   i='agent'
  else:S[i]=d
  print(i)
print(S)
""".strip()


class LinkError(Exception):
    """Something did not come through; trying again may help."""


class Complaint(Exception):
    """What a board printed in place of an answer: the end of a traceback."""


class BoardError(SproutError):
    """An exception that a request raised on the board; ``kind`` is its type, ``number`` errno."""

    def __init__(self, kind: str, text: str, number: Any) -> None:
        sentence = f"The board says {kind}: {text}"
        if kind == "MemoryError":
            sentence = (
                f"The board's heap is too small for this ({text}): press its reset button and try "
                "again, or use one with more RAM."
            )
        super().__init__(sentence)
        self.kind, self.text, self.number = kind, text, number


class Silent(SproutError):
    """The board did not answer, however often it was asked."""


class Wire(Protocol):
    """A way to execute programs on a board; ``patience`` is 1 or, after failures, more."""

    patience: float

    def enter(self, reset: bool) -> None:
        """Enter the raw REPL, from whatever state the board is in."""

    def execute(self, program: bytes, timeout: float) -> bytes:
        """Return what a program prints; raises LinkError and Complaint."""

    def close(self) -> None:
        """Leave the board in its friendly REPL."""


def ports() -> list[Any]:
    """The serial ports of USB devices."""
    return [port for port in sorted(list_ports.comports()) if port.vid is not None]


def find_port(port: str | None) -> str:
    """Return the port to use: ``port``, or the only one there is."""
    if port is not None:
        return port
    found = ports()
    if len(found) == 1:
        return str(found[0].device)
    if not found:
        raise SproutError(
            "No board is connected by USB: plug one in, with a cable that carries data, or name "
            "its port with --port."
        )
    listed = "; ".join(
        f"{p.device} ({p.description}, serial number {p.serial_number or 'unknown'})"
        for p in found
    )
    raise SproutError(f"{len(found)} boards are connected, say which with --port: {listed}.")


def open_port(port: str, baud: int = BAUD) -> serial.Serial:
    """Open a port for ourselves alone; raises SproutError in one sentence."""
    try:
        return serial.Serial(port, baud, timeout=0.02, write_timeout=5, exclusive=True)
    except ValueError:
        raise SproutError(f"{port} does not know {baud} baud: give another --baud.") from None
    except (OSError, serial.SerialException) as error:
        number = error.errno
        if number in (errno.EACCES, errno.EPERM):
            text = "cannot be opened without permission: add yourself to its group (on Linux "
            text += "mostly 'sudo usermod -a -G dialout $USER') and log in again"
        elif number in (errno.EAGAIN, errno.EBUSY):
            text = "is in use by another program: close that (a serial monitor, Thonny, mpremote)"
        elif number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            there = ", ".join(str(p.device) for p in ports())
            text = f"does not exist: plug the board in, {f'or use {there}' if there else 'by USB'}"
        else:
            text = f"cannot be opened ({error}): plug the board in again"
        raise SproutError(f"{port} {text}.") from None


class Unplugged(SproutError):
    """The port is gone."""

    def __init__(self, port: str) -> None:
        super().__init__(
            f"{port} is gone, the cable was pulled or the board reset: plug it in and run the "
            "command again."
        )


class AmpyWire(Pyboard):
    """ampy's connection, which waits for no byte for ever and needs no pauses between chunks."""

    def __init__(self, port: str, baud: int = BAUD) -> None:
        self.port, self.patience = port, 1.0
        self.serial = open_port(port, baud)
        self._heard = bytearray()

    def read_until(
        self, min_num_bytes: int, ending: bytes, timeout: float = 10, data_consumer: Any = None
    ) -> bytes:
        """Return what comes up to ``ending``, or all there is after ``timeout`` s of silence."""
        last = time.monotonic()
        while True:
            at = self._heard.find(ending)
            if at >= 0:
                data = bytes(self._heard[: at + len(ending)])
                del self._heard[: at + len(ending)]
                return data
            if self._listen():
                last = time.monotonic()
            elif time.monotonic() - last > timeout:
                data = bytes(self._heard)
                self._heard.clear()
                return data

    def _listen(self) -> bool:
        """Take in what is there, after at most 20 ms."""
        data = self.serial.read(max(1, self.serial.in_waiting))
        self._heard += data
        return bool(data)

    def _take(self, n: int, timeout: float) -> bytes:
        """The next n bytes, fewer if no more come."""
        last = time.monotonic()
        while len(self._heard) < n and time.monotonic() - last < timeout:
            self._listen()
        data = bytes(self._heard[:n])
        del self._heard[:n]
        return data

    def enter(self, reset: bool) -> None:
        """Enter the raw REPL, from whatever state the board is in."""
        with _translated(self.port):
            for attempt in range(4):
                self.serial.write(b"\r\x03\x03")
                quiet = self.patience * _QUIET * (1 + attempt)
                until, last = time.monotonic() + 2 * _REPLY * (1 + attempt), time.monotonic()
                while last + quiet > time.monotonic() < until:
                    if self._listen():
                        last = time.monotonic()
                self._heard.clear()
                self.serial.write(b"\r\x01")
                # Answers to what the board was told before may come first.
                while b">" in (data := self.read_until(1, b">", _REPLY * self.patience)):
                    if data.endswith(_BANNER):
                        if reset:
                            self.serial.write(b"\x04")
                            data = self.read_until(1, _BANNER, 10)
                            if not data.endswith(_BANNER):
                                reset = False  # boot.py goes on for ever
                                break
                        self._heard.clear()
                        self._heard += b">"
                        return
            raise LinkError("no raw REPL")

    def exec_raw_no_follow(self, command: bytes) -> None:
        """Send a program in raw-paste mode where the board knows it."""
        wait = _REPLY * self.patience
        if not self.read_until(1, b">", wait).endswith(b">"):
            raise LinkError("no prompt")
        self.serial.write(b"\x05A\x01")
        answer = self._take(2, 2 * wait)
        if answer == b"ra":  # MicroPython before 1.14 starts the raw REPL anew
            self.read_until(1, b">", wait)
        if answer in (b"ra", b"R\x00"):
            self._write_slowly(command)
            return
        if answer != b"R\x01":
            raise LinkError("no raw-paste mode")
        (window,) = struct.unpack("<H", self._take(2, wait).ljust(2, b"\0"))
        if not 0 < window <= 4096:
            raise LinkError("no window")
        room, at = window, 0
        while at < len(command):
            part = command[at : at + room]
            self.serial.write(part)
            at += len(part)
            room -= len(part)
            while at < len(command) and (room == 0 or self._heard or self.serial.in_waiting):
                more = self._take(1, wait)
                if more != b"\x01":
                    raise LinkError("the board stopped reading")
                room += window
        self.serial.write(b"\x04")
        if b"\x04" not in self.read_until(1, b"\x04", wait):
            raise LinkError("the end did not arrive")

    def _write_slowly(self, command: bytes) -> None:
        """Send a program without flow control, as ampy does."""
        for at in range(0, len(command), 256):
            self.serial.write(command[at : at + 256])
            time.sleep(0.01)
        self.serial.write(b"\x04")
        if self._take(2, _REPLY * self.patience) != b"OK":
            raise LinkError("the program did not arrive")

    def execute(self, program: bytes, timeout: float) -> bytes:
        """Return what a program prints; raises LinkError and Complaint."""
        with _translated(self.port):
            out, problem = self.exec_raw(program, self.patience * timeout)
        if problem:
            raise Complaint(problem.decode(errors="replace"))
        return bytes(out)

    def close(self) -> None:
        """Leave the board in its friendly REPL."""
        with contextlib.suppress(OSError):
            self.exit_raw_repl()
        with contextlib.suppress(OSError):  # in the order that does not reset an ESP32
            self.serial.rts = False
            self.serial.dtr = False
        with contextlib.suppress(OSError):
            super().close()


transport_serial.print = lambda *args: None  # what it did not expect: that is for us to say


class _Transport(transport_serial.SerialTransport):
    """mpremote's connection, which gives up sooner."""

    def read_until(
        self,
        min_num_bytes: int,
        ending: bytes,
        timeout: float | None = None,
        data_consumer: Any = None,
        timeout_overall: float | None = None,
    ) -> bytes:
        usual = timeout if timeout is not None else self.serial.timeout
        found: bytes = super().read_until(
            min_num_bytes, ending, usual, data_consumer, timeout_overall
        )
        return found


class MpremoteWire:
    """mpremote's connection, behind our questions."""

    def __init__(self, port: str, baud: int = BAUD) -> None:
        open_port(port, baud).close()  # says what is wrong
        self.port, self.patience = port, 1.0
        self._transport = _Transport(port, baud, timeout=2 * _REPLY)

    def enter(self, reset: bool) -> None:
        """Enter the raw REPL, from whatever state the board is in."""
        with _translated(self.port):
            for attempt in range(4):
                try:
                    if attempt:
                        self._transport.serial.write(b"\r\x03\x03")
                        time.sleep(4 * _QUIET * attempt)
                    return self._transport.enter_raw_repl(soft_reset=reset, timeout_overall=3)
                except TransportError:
                    if attempt == 3:
                        raise
        return None

    def execute(self, program: bytes, timeout: float) -> bytes:
        """Return what a program prints; raises LinkError and Complaint."""
        with _translated(self.port):
            self._transport.serial.timeout = 2 * _REPLY * self.patience
            out, problem = self._transport.exec_raw(program, self.patience * timeout)
        if problem:
            raise Complaint(problem.decode(errors="replace"))
        return bytes(out)

    def close(self) -> None:
        """Leave the board in its friendly REPL."""
        with contextlib.suppress(OSError):
            self._transport.exit_raw_repl()
        with contextlib.suppress(OSError):
            self._transport.close()


@contextlib.contextmanager
def _translated(port: str) -> Iterator[None]:
    """What the libraries raise, as this module's errors."""
    try:
        yield
    except serial.SerialTimeoutException:
        raise LinkError("the board takes nothing") from None
    except (OSError, serial.SerialException):
        raise Unplugged(port) from None
    except (PyboardError, TransportError, TransportExecError, struct.error) as error:
        raise LinkError(str(error)) from None


WIRES: dict[str, Callable[..., Wire]] = {"ampy": AmpyWire, "mpremote": MpremoteWire}


class Session:
    """A conversation with the agent on a board; a context manager.

    Raises SproutError in one sentence when the board cannot be reached, and BoardError for what
    goes wrong on it.
    """

    def __init__(self, port: str, via: str = "ampy", baud: int = BAUD) -> None:
        self.port = port
        self._wire = WIRES[via](port, baud)
        self._number = random.randrange(1 << 20)
        self.chunk, self._good = CHUNK, 0
        self._silences = 0  # one after the other; after two the link is dead
        try:
            self._greet()
        except BaseException:
            self._wire.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._wire.close()

    def reset(self) -> None:
        """Give the board its heap back."""
        with contextlib.suppress(LinkError):
            self._wire.enter(reset=True)

    def _greet(self) -> None:
        for attempt in range(2):
            try:
                self._wire.enter(reset=attempt == 0)
                break
            except LinkError:
                self._wire.patience *= 2
        else:
            raise SproutError(
                f"{self.port} does not answer as MicroPython does: install MicroPython on the "
                "board, press its reset button, or give another --port."
            )
        self._send_agent()

    def _send_agent(self) -> None:
        """Send the agent in small pieces, each with its digest, and start it."""
        source = _without_comments(AGENT.read_text()).encode()
        digest = hashlib.sha256(source).hexdigest()
        pieces = [source[i : i + PIECE] for i in range(0, len(source), PIECE)]
        for _ in range(3):
            try:
                self._persist(_BOOTSTRAP, b"{}")
                for i, piece in enumerate(pieces):
                    check = hashlib.sha256(piece).hexdigest()[:8]
                    self._persist(f"P({i},{piece!r},b{check!r})".encode(), str(i).encode())
                self._persist(f"P(-1,b'',b{digest!r})".encode(), b"agent", 3)
                return
            except (Silent, _Restarted):  # the collector itself may have come through damaged
                if self._silences == 2:
                    break
        raise Silent(_silence(self.port, ""))

    def _persist(self, program: bytes, expected: bytes, attempts: int | None = None) -> None:
        """Execute a program until it prints what it should."""
        self._try(lambda: self._wire.execute(program, 2).strip() == expected or None, attempts)

    def _try(self, attempt: Callable[[], Any], attempts: int | None = None) -> Any:
        """Call ``attempt`` until it returns something; between two calls the link is put right."""
        complaint, broken = "", False
        self._wire.patience = 1.0
        for n in range(0 if self._silences == 2 else attempts or ATTEMPTS):
            try:
                if broken:
                    self._silences += 1
                    self._wire.enter(reset=False)
                    broken, self._silences = False, 0
                result = attempt()
                if result is not None:
                    return result
            except LinkError:
                broken = True
                if self._silences == 2:
                    break
                self._wire.patience = min(8.0, 1.5 * self._wire.patience)
            except Complaint as error:
                complaint = str(error).strip().splitlines()[-1]
                if complaint.startswith("MemoryError"):
                    raise BoardError("MemoryError", complaint[13:].lstrip(), 0) from None
                if "NameError" in complaint and n and not self._has_agent():
                    raise _Restarted from None
        raise Silent(_silence(self.port, complaint))

    def _has_agent(self) -> bool:
        try:
            return self._wire.execute(b"print('ask' in globals())", 2).strip() != b"False"
        except (LinkError, Complaint):
            return True

    def call(
        self, code: str, data: bytes = b"", timeout: float = 2, attempts: int | None = None
    ) -> Any:
        """Run ``code`` on the board, once, and return what it leaves in ``answer``.

        data: what it finds in ``data``.  timeout: seconds that it may take.  An agent that a reset
        took away is sent again, and the code run again.
        """
        self._number += 1
        text = base64.b64encode(data)
        check = _check(self._number, code, text)
        program = f"ask({self._number},{ascii(code)},{text!r},{check!r})".encode()
        for _ in range(3):
            try:
                result = self._try(
                    lambda: self._answer(self._wire.execute(program, timeout)), attempts
                )
                break
            except _Restarted:
                self._send_agent()
        else:
            raise SproutError(
                f"The board at {self.port} resets again and again: check its supply."
            )
        if "error" in result:
            raise BoardError(*result["error"])
        return result["answer"]

    def _answer(self, out: bytes) -> Any:
        """The answer in what a board printed, None where it is not whole."""
        found = re.match(rb"(\d+) ([0-9a-f]{8}) (.*?)\r?\n?$", out, re.DOTALL)
        if not found or int(found[1]) != self._number:
            return None
        try:
            text = found[3].decode()
            return json.loads(text) if _check(self._number, text).encode() == found[2] else None
        except ValueError:
            return None

    def _sized(self, code: str, data: bytes = b"") -> Any:
        """Run ``code`` on as many bytes, ``size`` to it, as the link and the board's heap are
        good for; ``data``: where they come from."""
        while True:
            smallest = self.chunk <= LEAST_CHUNK
            attempts = None if smallest else 2
            try:
                result = self.call(
                    f"size = {self.chunk}\n{code}", data[: self.chunk], 1 + bool(data), attempts
                )
            except BoardError as error:
                if error.kind != "MemoryError" or smallest:
                    raise
            except Silent:
                if smallest or self._silences == 2:
                    raise
            else:
                self._good += 1
                if self._good % 8 == 0 and self.chunk < CHUNK:
                    self.chunk *= 2
                return result
            self._good, self.chunk = 0, self.chunk // 2

    def stage(self, path: str, data: bytes, progress: Callable[[int], None]) -> None:
        """Send a file under a temporary name; its SHA-256 is computed on the board.

        progress: called with the bytes that are there.
        """
        digest = hashlib.sha256(data).hexdigest()
        for _ in range(3):
            self.call(f"start({path!r})")
            at = 0
            while 0 <= at < len(data):
                at = self._sized(f"answer = write({path!r}, {at}, data)", data[at : at + CHUNK])
                progress(max(0, at))
            if self.call(f"answer = finish({path!r})", timeout=_reading(len(data))) == digest:
                return
        raise SproutError(
            f"{path} does not arrive whole at {self.port}: use a shorter cable or another port."
        )

    def sha256(self, path: str, size: int) -> str | None:
        """The digest of a file of ``size`` bytes, computed on the board; None if it has none."""
        found: str | None = self.call(f"answer = sha256({path!r})", timeout=_reading(size))
        return found

    def swap(self, paths: list[str], stale: list[str] | None = None) -> None:
        """Put staged files in the place of the old ones; take ``stale`` ones away."""
        self.call(f"swap({paths!r}, {stale or []!r})", timeout=10)

    def fetch(self, path: str, size: int, progress: Callable[[int], None]) -> bytes:
        """Return a file of the board's."""
        data = bytearray()
        while len(data) < size:
            part = self._sized(f"answer = read({path!r}, {len(data)}, size)")
            if not part:
                break
            data += base64.b64decode(part)
            progress(len(data))
        if hashlib.sha256(data).hexdigest() != self.sha256(path, size):
            raise SproutError(f"{path} changed on the board meanwhile: get it again.")
        return bytes(data)


class _Restarted(Exception):
    """The agent is not on the board any more."""


def _check(number: int, text: str, data: bytes = b"") -> str:
    return hashlib.sha256(f"{number}\n{text}\n".encode() + data).hexdigest()[:8]


def _silence(port: str, complaint: str) -> str:
    why = f" ({complaint})" if complaint else ""
    return (
        f"{port} stopped answering{why}: check the cable, press the board's reset button and "
        "run the command again."
    )


def _reading(size: int) -> float:
    """Seconds that a board may take to read so many bytes."""
    return 3 + size / 100_000


def _without_comments(source: str) -> str:
    """A program in fewer bytes."""
    return re.sub(r"(?m)^\s*(#.*|\"\"\".*\"\"\")?\n", "", source)
