"""The commands for boards, against a simulated one behind a serial port: good links and bad."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import complaint, sprout
from nets import residual_net
from sprout import compile as compiler
from sprout.board import install, wire
from sprout.board.serialsim import USB, Link, SerialBoard
from sprout.engine import Engine

BIN = Path(sys.executable).parent
ABI_6_2 = 6 | 2 << 8 | 4 << 10  # what a Cortex-M0+ with MicroPython 1.22 says
DATA = np.random.default_rng(5).integers(0, 256, 5000, np.uint8).tobytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tool(name: str, *args: object) -> str:
    """What one of the libraries' own command lines prints."""
    done = subprocess.run(
        [BIN / name, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serial") / "net.sprout"
    path.write_bytes(compiler.compile_graph(residual_net(), "full").to_bytes())
    return path


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SerialBoard]:
    """A board on a good cable, which tests leave as they like."""
    with SerialBoard(tmp_path_factory.mktemp("board") / "flash") as board:
        yield board


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


# The board is one


def test_ampy_works_on_it_unmodified(board, local, tmp_path):
    (tmp_path / "by_ampy.bin").write_bytes(DATA[:300])
    tool("ampy", "--port", board.port, "put", tmp_path / "by_ampy.bin")
    listed = tool("ampy", "--port", board.port, "ls", "-l")
    assert "/by_ampy.bin - 300 bytes" in listed.splitlines()
    tool("ampy", "--port", board.port, "get", "by_ampy.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == DATA[:300]


def test_mpremote_works_on_it_unmodified(board, local, tmp_path):
    connect = ("connect", board.port)
    tool("mpremote", *connect, "fs", "cp", local, ":by_mpremote.bin")
    found = tool("mpremote", *connect, "fs", "sha256sum", "by_mpremote.bin")
    assert sha256(DATA) in found
    tool("mpremote", *connect, "fs", "cp", ":by_mpremote.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == DATA
    code = "import os, sys; print(os.statvfs('/')[:3], sys.path)"
    assert "(4096, 4096, 352) ['', '.frozen', '/lib']" in tool("mpremote", *connect, "exec", code)


def test_it_has_the_heap_of_a_pico_and_a_fresh_one_after_a_reset(board):
    with wire.Session(board.port) as session:
        first = session.call("State.held = bytes(50000)\nanswer = F")
        assert 190_000 < first < 236_544
        session.reset()
        session._send_agent()
        assert abs(session.call("answer = F") - first) < 1000
        with pytest.raises(wire.BoardError, match="heap is too small for this"):
            session.call("State.held = bytes(230000)")


# What users do, on a good link


def test_install_sends_what_changed_and_no_more(board, blob, capsys):
    assert sprout("install", "--port", board.port, blob) == 0
    out = capsys.readouterr().out
    assert ".mpy 6.3 for x64" in out
    assert ">>> net = sprout.load('net.sprout')" in out
    files = board.files()
    lib = {f"/lib/{name}": sha256(data) for name, data in install.library("x64").items()}
    assert lib.items() <= files.items()
    assert files["/net.sprout"] == sha256(blob.read_bytes())
    assert sprout("install", "--port", board.port, blob) == 0
    assert "Everything was there already." in capsys.readouterr().out
    with wire.Session(board.port) as session:
        session.call("import os\nwith open('/lib/sprout/net.mpy', 'ab') as f: f.write('x')")
        session.call("with open('/lib/sprout/net.py', 'w') as f: f.write('0/0')")
    assert sprout("install", "--port", board.port, "--via", "mpremote", blob) == 0
    assert "Sent 1 of Sprout's files into /lib.\n" in capsys.readouterr().out
    assert board.files() == files  # and the net.py that would have been imported is gone


def test_doctor_finds_the_same_bytes_on_the_board(board, blob, capsys):
    assert sprout("install", "--port", board.port, blob) == 0
    capsys.readouterr()
    for args in ([blob], ["--via", "mpremote"]):
        assert sprout("doctor", "--port", board.port, *args) == 0
        out = capsys.readouterr().out
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert all(line.split()[1] == "ok" for line in lines.values()), out
        assert list(lines) == [
            *("board", "firmware", "ABI", "space", "package", "heap", "module", "blob"),
            *("inference", "training"),
        ]
        assert re.search(r"same bytes as on this computer, [\d.,]+ ms", lines["training"])


def test_doctor_says_what_is_wrong(board, blob, tmp_path, capsys):
    assert sprout("install", "--port", board.port, blob) == 0
    other = tmp_path / "net.sprout"
    other.write_bytes(compiler.compile_graph(residual_net(1), "last").to_bytes())
    assert "1 of the checks failed" in complaint(capsys, "doctor", "--port", board.port, other)
    with wire.Session(board.port) as session:
        session.call("os.remove('/lib/sprout_core.mpy')")
    capsys.readouterr()
    assert sprout("doctor", "--port", board.port, blob) == 1
    out = capsys.readouterr().out
    assert re.search(r"package\s+FAILED\s+differs from this \(1 of \d+ files\)", out)
    assert re.search(r"module\s+FAILED\s+does not load: sprout_core.mpy is missing", out)


@pytest.mark.parametrize("via", ["ampy", "mpremote"])
def test_put_and_get_bring_a_file_there_and_back(via, board, local, tmp_path, capsys):
    args = ("--port", board.port, "--via", via)
    assert sprout("put", local, "--as", f"data/{via}.bin", *args) == 0
    assert board.files()[f"/data/{via}.bin"] == sha256(DATA)
    assert sprout("get", f"data/{via}.bin", "-o", tmp_path / "back", *args) == 0
    assert (tmp_path / "back").read_bytes() == DATA
    capsys.readouterr()
    assert sprout("put", local, "--as", f"data/{via}.bin", *args) == 0
    assert "was there already" in capsys.readouterr().out


def test_folders_go_there_and_back(board, tmp_path):
    samples = tmp_path / "samples"
    (samples / "more").mkdir(parents=True)
    (samples / "0").write_bytes(DATA[:100])
    (samples / "more" / "1").write_bytes(b"")
    assert sprout("put", samples, "--port", board.port) == 0
    assert board.files()["/samples/more/1"] == sha256(b"")
    assert sprout("get", "samples", "-o", tmp_path / "back", "--port", board.port) == 0
    assert (tmp_path / "back" / "0").read_bytes() == DATA[:100]
    assert (tmp_path / "back" / "more" / "1").read_bytes() == b""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *args: object) -> None:
        self.fd, terminal = pty.openpty()
        program = [BIN / "sprout", *map(str, args)]
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        self.process = subprocess.Popen(
            program, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(terminal)

    def until(self, text: bytes) -> bytes:
        """What it prints up to ``text``."""
        heard, end = b"", time.monotonic() + 30
        while text not in heard and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                heard += os.read(self.fd, 1000)
        assert text in heard
        return heard

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def status(self) -> int:
        """Its exit status, when it has ended."""
        status = self.process.wait(30)
        os.close(self.fd)
        return status


def test_repl_is_a_terminal_to_the_board(board):
    terminal = Terminal("repl", "--port", board.port)
    terminal.until(b">>> ")
    terminal.type(b"6*7\r")
    terminal.until(b"42\r\n>>> ")
    terminal.type(b"while True: print('busy')\r\r")
    terminal.until(b"busy\r\n")
    terminal.type(b"\x03")
    terminal.until(b"KeyboardInterrupt")
    terminal.type(b"\x1d")
    assert terminal.status() == 0


def test_the_simulated_board_is_for_users_too_and_its_cable_can_be_pulled(tmp_path, local):
    simulated = Terminal("sim-board", "--board", "pico2", "--flash", tmp_path / "flash")
    port = simulated.until(b"\n").strip().decode()
    assert sprout("put", local, "--port", port) == 0
    terminal = Terminal("repl", "--port", port)
    terminal.until(b">>> ")
    simulated.process.send_signal(signal.SIGINT)
    terminal.until(b"is gone, the cable was pulled")
    assert (terminal.status(), simulated.status()) == (1, 0)


def test_repl_ends_with_its_terminal(board):
    terminal = Terminal("repl", "--port", board.port)
    terminal.until(b">>> ")
    os.close(terminal.fd)
    assert terminal.process.wait(30) == 0


def test_a_program_that_runs_for_ever_is_interrupted(tmp_path, local):
    with SerialBoard(tmp_path / "flash", blocks=32) as board:
        (tmp_path / "main.py").write_text("while True: print('busy')\n")
        assert sprout("put", tmp_path / "main.py", "--port", board.port) == 0
        board.power_cycle()
        time.sleep(0.3)
        assert sprout("put", local, "--port", board.port) == 0
        assert board.files()["/data.bin"] == sha256(DATA)


# Bad links

BAD = {
    "drops": Link(rate=200_000, drop=1 / 1500, seed=1),
    "duplicates": Link(rate=200_000, duplicate=1 / 1000, seed=2),
    "corrupts": Link(rate=200_000, corrupt=1 / 1500, seed=3),
    "delays": Link(rate=200_000, stall=1 / 2000, stall_seconds=0.1, seed=4),
    "everything": Link(rate=200_000, drop=1 / 4000, duplicate=1 / 4000, corrupt=1 / 4000, seed=5),
}


@pytest.mark.parametrize("link", BAD.values(), ids=BAD)
def test_files_arrive_whole_over_a_bad_link(link, tmp_path):
    data = DATA[:3000]
    with SerialBoard(tmp_path / "flash", blocks=32, link=link) as board:
        with wire.Session(board.port) as session:
            session.stage("/data.bin", data, lambda done: None)
            session.swap(["/data.bin"])
            assert session.fetch("/data.bin", len(data), lambda done: None) == data
        assert board.files() == {"/data.bin": sha256(data)}


@pytest.mark.parametrize("via", ["ampy", "mpremote"])
def test_the_commands_work_over_a_bad_link(via, tmp_path, blob, local, capsys):
    odds = 1 / 25_000
    link = Link(drop=odds, duplicate=odds, corrupt=odds, stall=odds, stall_seconds=0.1, seed=6)
    with SerialBoard(tmp_path / "flash", link=link) as board:
        options = ("--port", board.port, "--via", via)
        assert sprout("install", blob, *options) == 0
        assert sprout("doctor", *options) == 0
        assert sprout("put", local, *options) == 0
        assert sprout("get", "data.bin", "-o", tmp_path / "back", *options) == 0
        assert (tmp_path / "back").read_bytes() == DATA
        assert board.files()["/net.sprout"] == sha256(blob.read_bytes())


def test_a_cable_pulled_at_any_byte_leaves_the_old_file_or_the_new(tmp_path, local, capsys):
    flash, old, new = tmp_path / "flash", sha256(DATA), sha256(DATA[::-1])
    with SerialBoard(flash, blocks=32) as board:
        assert sprout("put", local, "--port", board.port) == 0
    local.write_bytes(DATA[::-1])
    first, seen = flash.read_bytes(), set()
    with SerialBoard(flash, blocks=32) as board:
        assert sprout("put", local, "--port", board.port) == 0
        total = board.passed
    # The agent takes the first half, the new name the last few hundred bytes; greetings differ.
    middle = range(total // 2, total, total // 8)
    for die_after in (30, total // 3, *middle, *range(total - 800, total + 240, 130)):
        flash.write_bytes(first)
        link = Link(die_after=die_after)
        with SerialBoard(flash, blocks=32, link=link) as board:
            capsys.readouterr()
            status = sprout("put", local, "--port", board.port)
            err = capsys.readouterr().err
            if status:
                assert re.fullmatch(
                    r"sprout: /dev/\S+ is gone, the cable was pulled or the board reset: "
                    r"plug it in and run the command again\.\n",
                    err,
                )
            board.power_cycle()
        found = board.files()
        assert found["/data.bin"] in (old, new)
        assert status == 1 or found["/data.bin"] == new
        assert set(found) <= {"/data.bin", "/data.bin.sprout-new"}
        seen.add((found["/data.bin"], len(found)))
    # Cut before anything, in the middle, and when all was done.
    assert seen == {(old, 1), (old, 2), (new, 1)}
    with SerialBoard(flash, blocks=32) as board:
        assert sprout("put", local, "--port", board.port) == 0
        assert board.files() == {"/data.bin": new}


def test_an_installation_that_is_cut_leaves_one_release_or_the_other(
    tmp_path, blob, capsys, monkeypatch
):
    def release(fill: bytes) -> dict[str, bytes]:
        return {f"sprout/{name}.mpy": fill * 700 for name in "abc"}

    old, new = ({f"/lib/{n}": sha256(d) for n, d in release(f).items()} for f in (b"o", b"n"))
    flash, net = tmp_path / "flash", {"/net.sprout": sha256(blob.read_bytes())}
    monkeypatch.setattr(install, "library", lambda arch: release(b"o"))
    with SerialBoard(flash, blocks=64) as board:
        assert sprout("install", "--port", board.port, blob) == 0
        assert board.files() == old | net
    monkeypatch.setattr(install, "library", lambda arch: release(b"n"))
    first, seen = flash.read_bytes(), []
    with SerialBoard(flash, blocks=64) as board:
        assert sprout("install", "--port", board.port, blob) == 0
        total = board.passed
    # Greetings differ by some hundred bytes from run to run.
    for die_after in (total // 2, *range(total - 900, total + 300, 240)):
        flash.write_bytes(first)
        with SerialBoard(flash, blocks=64, link=Link(die_after=die_after)) as board:
            sprout("install", "--port", board.port, blob)
            board.power_cycle()
        found = {n: d for n, d in board.files().items() if not n.endswith(".sprout-new")}
        assert found in (old | net, new | net)
        seen.append(found == new | net)
    assert not seen[0] and any(seen)


def test_a_board_that_restarts_meanwhile_is_sent_the_rest(tmp_path):
    with SerialBoard(tmp_path / "flash", blocks=32) as board, wire.Session(board.port) as session:
        restarts = iter([1])

        def progress(done: int) -> None:
            if done > len(DATA) // 2 and next(restarts, 0):
                board.power_cycle()

        session.stage("/data.bin", DATA, progress)
        session.swap(["/data.bin"])
        assert board.files() == {"/data.bin": sha256(DATA)}


def test_a_link_that_falls_silent_ends_in_a_sentence(tmp_path, local, capsys, monkeypatch):
    monkeypatch.setattr(wire, "_REPLY", 0.1)
    link = Link(die_after=6000, silent=True)
    with SerialBoard(tmp_path / "flash", blocks=32, link=link) as board:
        told = complaint(capsys, "put", local, "--port", board.port)
        assert "stopped answering" in told


# Misuse


def test_no_port(capsys, monkeypatch):
    monkeypatch.setattr(wire, "ports", lambda: [])
    assert "No board is connected by USB" in complaint(capsys, "install")
    assert "/dev/none does not exist" in complaint(capsys, "install", "--port", "/dev/none")


def test_several_ports_are_listed(capsys, monkeypatch):
    class Port:
        def __init__(self, name):
            self.device, self.serial_number = name, "e66" + name
            self.description = "Board in FS mode"

    monkeypatch.setattr(wire, "ports", lambda: [Port("ttyACM0"), Port("ttyACM1")])
    told = complaint(capsys, "doctor")
    assert "2 boards are connected, say which with --port: ttyACM0 (Board in FS mode, " in told
    assert "serial number e66ttyACM1" in told


def test_a_port_in_use(board, capsys):
    with open(board.port) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for via in ("ampy", "mpremote"):
            told = complaint(capsys, "install", "--port", board.port, "--via", via)
            assert told.startswith(f"{board.port} is in use by another program: close that")


def test_something_else_at_the_port(capsys, monkeypatch):
    host, device = pty.openpty()
    monkeypatch.setattr(wire, "_REPLY", 0.05)
    try:
        told = complaint(capsys, "install", "--port", os.ttyname(device))
        assert "does not answer as MicroPython does" in told
    finally:
        os.close(host)
        os.close(device)


def test_other_firmware(tmp_path, blob, capsys):
    changed = {"_mpy": ABI_6_2, "version": (1, 22, 0, "")}
    flash = tmp_path / "flash"
    with SerialBoard(flash, blocks=32, changed=changed, raw_paste=False) as board:
        told = complaint(capsys, "install", "--port", board.port, blob)
        assert told == (
            "The board has MicroPython 1.22.0, and this firmware takes .mpy 6.2 for armv6m, "
            "install MicroPython 1.23 to 1.29 (.mpy 6.3) and run the command again."
        )
        capsys.readouterr()
        assert sprout("doctor", "--port", board.port) == 1
        assert re.search(r"firmware\s+FAILED.*MicroPython 1\.22", capsys.readouterr().out)
        assert board.files() == {}
    with SerialBoard(flash, blocks=32, changed={"name": "circuitpython"}) as board:
        told = complaint(capsys, "install", "--port", board.port)
        assert "runs circuitpython: install MicroPython" in told


def test_a_board_without_space_changes_nothing(tmp_path, blob, local, capsys):
    with SerialBoard(tmp_path / "flash", blocks=12) as board:
        assert sprout("put", local, "--port", board.port) == 0
        before = board.files()
        told = complaint(capsys, "install", "--port", board.port, blob)
        assert re.search(r"has [\d,]+ bytes of room and Sprout needs [\d,]+ more", told)
        assert "--delete NAME what you can do without: /data.bin (5,000 bytes)" in told
        assert board.files() == before
        # Not even its own successor has room beside it, and it can be given up.
        local.write_bytes(bytes(40_000))
        told = complaint(capsys, "put", local, "--port", board.port, "--as", "more.bin")
        assert "more.bin needs" in told
        local.write_bytes(bytes(20_000))
        args = ("put", local, "--port", board.port, "--as", "more.bin", "--delete", "data.bin")
        assert sprout(*args) == 0
        assert board.files() == {"/more.bin": sha256(bytes(20_000))}
        told = complaint(capsys, "put", local, "--port", board.port, "--delete", "no.bin")
        assert told == "/no.bin is not on the board, which has /more.bin."


def test_a_file_system_that_fills_up_after_all_keeps_the_old_file(
    tmp_path, local, capsys, monkeypatch
):
    with SerialBoard(tmp_path / "flash", blocks=12) as board:
        assert sprout("put", local, "--port", board.port) == 0
        local.write_bytes(bytes(60_000))
        monkeypatch.setattr(install.Probe, "room_for", lambda probe, size: 0)
        told = complaint(capsys, "put", local, "--port", board.port)
        assert re.search(r"has [\d,]+ bytes of room and /data.bin needs [\d,]+ more", told)
        assert board.files() == {"/data.bin": sha256(DATA)}


def test_a_board_without_heap_changes_nothing(tmp_path, person_model, capsys):
    blob = tmp_path / "big.sprout"
    assert sprout("compile", person_model, "-o", blob, "--plan", "full") == 0
    with SerialBoard(tmp_path / "flash", blocks=300, heap=100_000) as board:
        told = complaint(capsys, "install", "--port", board.port, blob)
        assert re.fullmatch(
            r"big\.sprout needs [\d,]+ bytes of heap, code included, and the board has [\d,]+ "
            r"free: compile it with a smaller plan\.",
            told,
        )
        assert board.files() == {}


def test_a_blob_of_a_newer_version(board, blob, tmp_path, capsys):
    newer = tmp_path / "newer.sprout"
    raw = bytearray(blob.read_bytes())
    raw[4] += 1
    newer.write_bytes(raw)
    before = board.files()
    for command in ("install", "put", "doctor"):
        told = complaint(capsys, command, "--port", board.port, newer)
        assert "newer.sprout is a blob of format" in told
    assert board.files() == before


def test_missing_files_and_wrong_words(board, local, capsys):
    told = complaint(capsys, "put", "no.bin", "--port", board.port)
    assert told.startswith("no.bin does not exist")
    told = complaint(capsys, "get", "no.bin", "--port", board.port)
    assert told.startswith("/no.bin is not on the board, which has ")
    told = complaint(capsys, "put", local, local, "--as", "x", "--port", board.port)
    assert told.startswith("--as is one name")


@pytest.mark.parametrize("arch", ["armv6m", "armv7m", "armv7emsp", "xtensawin", "rv32imc"])
def test_every_board_gets_its_module(arch):
    from native_modules import mpy

    number = mpy.ARCHES[arch]
    said = 6 | 3 << 8 | number << 10
    probe = install.Probe("micropython", [1, 27, 0], said, "", 0, "", 1, 0, 0, {})
    assert install.architecture(probe) == arch
    assert mpy.read_mpy(install.library(arch)["sprout_core.mpy"]).arch == arch


def test_usb_is_simulated_at_its_speed(tmp_path, local):
    with SerialBoard(tmp_path / "flash", blocks=32, link=USB) as board:
        assert sprout("put", local, "--port", board.port) == 0


# What comes back


def test_a_checkpoint_is_shown_and_baked_into_a_blob(board, blob, tmp_path, capsys):
    assert sprout("install", "--port", board.port, blob) == 0
    program = (
        "import sprout\nn = sprout.load('net.sprout')\n"
        "for i in range(4):\n n.learn(bytes(range(192)), 2)\n n.save('x.ckpt')\n"
        "answer = n.digest()"
    )
    with wire.Session(board.port) as session:
        digest = session.call(program, timeout=10)
    checkpoint, baked = tmp_path / "x.ckpt", tmp_path / "baked.sprout"
    assert sprout("get", "x.ckpt", "-o", checkpoint, "--port", board.port) == 0
    capsys.readouterr()
    assert sprout("inspect", checkpoint, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["digest"]) == (4, digest)  # the newest of two slots
    assert sprout("inspect", checkpoint) == 0
    assert digest in capsys.readouterr().out
    assert sprout("bake", blob, checkpoint, "-o", baked) == 0
    assert Engine(baked).digest() == digest
    # Moved to another board: it goes on where the first one was.
    with wire.Session(board.port) as session:
        session.call("for name in ('x.ckpt', 'x.ckpt.1'): os.remove(name)")
    assert sprout("put", checkpoint, "--port", board.port) == 0
    program = (
        "import sprout\nn = sprout.load('net.sprout')\nn.restore('x.ckpt')\n"
        "answer = [n.step, n.digest()]"
    )
    with wire.Session(board.port) as session:
        assert session.call(program, timeout=10) == [4, digest]
    other = tmp_path / "other.sprout"
    other.write_bytes(compiler.compile_graph(residual_net(1), "full").to_bytes())
    told = complaint(capsys, "bake", other, checkpoint, "-o", baked)
    assert "belongs to another blob" in told
