"""A terminal to a board: mpremote's, opened and closed in our words."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import SimpleNamespace

from mpremote.console import Console
from mpremote.repl import do_repl_main_loop
from mpremote.transport_serial import SerialTransport

from ..graph import SproutError
from .wire import Unplugged, find_port, open_port


class _Console(Console):
    """Ends the REPL where its terminal has gone: mpremote's would wait for it for ever, busily."""

    def readchar(self) -> bytes | None:
        found: bytes | None = super().readchar()
        if found == b"":
            raise EOFError
        return found


def repl(port: str | None, baud: int) -> int:
    """Connect the terminal to a board until Ctrl-]; return the exit status."""
    port = find_port(port)
    if not sys.stdin.isatty():
        raise SproutError("The REPL needs a terminal: run 'sprout repl' without a pipe.")
    open_port(port, baud).close()  # says what is wrong
    transport = SerialTransport(port, baud)
    print(f"{port}: Ctrl-] ends this, Ctrl-C stops the board's program, Ctrl-D restarts it.")
    sys.stdout.flush()
    transport.serial.write(b"\r\x02")  # the friendly REPL shows its prompt
    time.sleep(0.05)
    console = _Console()
    console.enter()
    try:
        gone = do_repl_main_loop(
            SimpleNamespace(transport=transport),
            console,
            console.write,
            escape_non_printable=False,
            code_to_inject=None,
            file_to_inject=None,
        )
    except EOFError:
        gone = False
    except OSError:
        gone = True
    finally:
        with suppress(Exception):  # each system has its own for a terminal that has gone
            console.exit()
            print()
        try:
            transport.close()
        except OSError:
            gone = True
    if gone:
        raise Unplugged(port)
    return 0
