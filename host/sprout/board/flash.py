"""Puts MicroPython's firmware onto a board: a UF2 file onto the drive that an RP2 becomes, an
image over the serial port of an ESP32.

The file and the chip are checked before anything is erased.  UF2: github.com/microsoft/uf2.  ESP
images: docs.espressif.com, "Firmware Image Format" of esptool, "Partition Tables" of ESP-IDF.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import click

from ..graph import SproutError
from . import table
from .table import BOARDS, Board, Esp, Uf2

INFO = "INFO_UF2.TXT"
_AGAIN = "download it again"
_BLOCK = struct.Struct("<8I")  # of UF2: what stands before the payload
_BLOCK_BYTES, _LAST_WORD = 512, 508
_MAGIC = (0x0A324655, 0x9E5D5157, 0x0AB16F30)
_HAS_FAMILY = 0x2000
_ABSOLUTE = 0xE48BFF57  # a block that only the RP2350's boot ROM reads
_FAMILIES = {
    0xE48BFF56: "the RP2040",
    0xE48BFF59: "the RP2350's Arm cores",
    0xE48BFF5A: "the RP2350's RISC-V cores",
}
_RP2_FLASH = 0x10000000  # where it has an address
_CHIPS = {0: "ESP32", 2: "ESP32-S2", 5: "ESP32-C3", 9: "ESP32-S3", 13: "ESP32-C6", 16: "ESP32-H2"}
_IMAGE = 0xE9  # the first byte of an ESP image
_HEADER, _SEGMENT = 24, 8  # bytes of an image's header and of a segment's
_PARTITIONS = 0x8000  # where the table of partitions is in flash
_PARTITION = struct.Struct("<2sBBII16sI")
_TABLE_BYTES = 0xC00


# --- the file -----------------------------------------------------------------------------------


def check_firmware(data: bytes, name: str, board: Board) -> None:
    """Raise SproutError unless ``data``, of the file ``name``, is whole and for this board."""
    if isinstance(board.way, Uf2):
        _check_uf2(data, name, board, board.way)
    elif isinstance(board.way, Esp):
        _check_esp(data, name, board, board.way)
    else:
        raise SproutError(f"{board.title} takes no firmware: give another --board.")


def _check_uf2(data: bytes, name: str, board: Board, way: Uf2) -> None:
    if data[:4] != _MAGIC[0].to_bytes(4, "little"):
        raise SproutError(f"{name} is no UF2 file, which {board.title} takes: give a .uf2.")
    there: set[int] = set()
    count = 1
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        if len(block) < _BLOCK_BYTES:
            raise SproutError(f"{name} ends in the middle of a block: {_AGAIN}.")
        first, second, flags, address, size, number, total, family = _BLOCK.unpack_from(block)
        (last,) = struct.unpack_from("<I", block, _LAST_WORD)
        if (first, second, last) != _MAGIC:
            raise SproutError(f"{name} is damaged at byte {at}: {_AGAIN}.")
        family = family if flags & _HAS_FAMILY else 0
        if family == _ABSOLUTE and way.board_id == "RP2350":
            continue
        if family != way.family:
            what = _FAMILIES.get(family, f"another chip (UF2 family {family:#x})")
            raise SproutError(f"{name} is for {what}, not for {board.title}: give the other one.")
        if not _RP2_FLASH <= address <= address + size <= _RP2_FLASH + board.flash:
            raise SproutError(
                f"{name} writes outside the {board.flash >> 20} MB of flash of {board.title}: "
                "give firmware for this board."
            )
        there.add(number)
        count = total
    missing = set(range(count)) - there
    if missing:
        raise SproutError(f"{name} lacks block {min(missing)}, {len(missing)} in all: {_AGAIN}.")


def _check_esp(data: bytes, name: str, board: Board, way: Esp) -> None:
    _check_image(data, 0, name, board, way)
    for kind, subtype, at in _partitions(data, name, way):
        if kind == 0 and subtype in (0x00, 0x10):  # the app that starts first
            _check_image(data, at - way.offset, name, board, way)
            break
    else:
        raise SproutError(f"{name} has no program in its partition table: {_AGAIN}.")
    if way.offset + len(data) > board.flash:
        raise SproutError(
            f"{name} is larger than the {board.flash >> 20} MB of flash of {board.title}: "
            "give firmware for this board."
        )


def _partitions(data: bytes, name: str, way: Esp) -> list[tuple[int, int, int]]:
    """Type, subtype and address in flash of each partition."""
    start = _PARTITIONS - way.offset
    if data[start : start + 2] != b"\xaa\x50":
        raise SproutError(
            f"{name} is a program without a boot loader and partitions, for updates: give the "
            "file that the board's download page names first."
        )
    found = []
    for magic, kind, subtype, at, _, _, _ in _PARTITION.iter_unpack(
        data[start : start + _TABLE_BYTES]
    ):
        if magic != b"\xaa\x50":
            break
        found.append((kind, subtype, at))
    return found


def _check_image(data: bytes, start: int, name: str, board: Board, way: Esp) -> None:
    """Check the image that begins at ``start``: for this chip, whole and with its SHA-256."""
    head = data[start : start + _HEADER]
    if head[:1] != bytes([_IMAGE]) or len(head) < _HEADER:
        raise SproutError(f"{name} is no firmware of an ESP32 at byte {start}: {_AGAIN}.")
    (chip,) = struct.unpack_from("<H", head, 12)
    if chip != way.chip_id:
        what = _CHIPS.get(chip, f"another chip ({chip})")
        raise SproutError(f"{name} is for the {what}, not for {board.title}: give the other one.")
    end = start + _HEADER
    for _ in range(head[1]):
        if end + _SEGMENT > len(data):
            break
        end += _SEGMENT + struct.unpack_from("<I", data, end + 4)[0]
    end += 16 - (end - start) % 16  # up to a checksum in the last byte of 16
    if end + 32 * head[23] > len(data):
        raise SproutError(f"{name} is cut short: {_AGAIN}.")
    if head[23] and hashlib.sha256(data[start:end]).digest() != data[end : end + 32]:
        raise SproutError(f"{name} is damaged, its SHA-256 does not match: {_AGAIN}.")


# --- RP2: a drive -------------------------------------------------------------------------------


def drives(mounts: Path = Path("/proc/mounts")) -> list[Path]:
    """The mounted drives that take a UF2 file."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # macOS
        places = sorted(Path("/Volumes").glob("*"))
    else:  # spaces and the like stand there in octal
        names = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line) for line in
                 (line.split(" ")[1] for line in lines))  # fmt: skip
        places = [Path(name) for name in names]
    return [place for place in places if (place / INFO).is_file()]


def find_drive(board: Board, way: Uf2, drive: Path | None) -> Path:
    """Return the drive of this board, or the one given; raises SproutError if it is none."""
    hold = "hold BOOTSEL while you plug the board in"
    if drive and not (drive / INFO).is_file():
        raise SproutError(f"{drive} has no {INFO}: {hold}, and give the drive that appears.")
    found = [drive] if drive else drives()
    fitting = [place for place in found if _board_id(place) == way.board_id]
    if not found:
        raise SproutError(f"No drive {way.board_id} is mounted: {hold}, or give --drive PATH.")
    if not fitting:
        raise SproutError(
            f"{found[0]} is the drive of another board ({_board_id(found[0])}), not of "
            f"{board.title} ({way.board_id}): give the right --board or --drive."
        )
    if len(fitting) > 1:
        names = ", ".join(map(str, fitting))
        raise SproutError(f"Several boards wait ({names}): give one of them with --drive.")
    return fitting[0]


def _board_id(drive: Path) -> str:
    match = re.search(r"^Board-ID: *(\S+)", (drive / INFO).read_text(errors="replace"), re.M)
    return match[1] if match else "unknown"


def copy_uf2(data: bytes, name: str, drive: Path) -> None:
    """Copy firmware onto the drive; the board starts it when the last block has come."""
    try:
        with (drive / name).open("wb", buffering=0) as file:
            for at in range(0, len(data), 1 << 16):
                file.write(data[at : at + (1 << 16)])
            os.fsync(file.fileno())
    except OSError as error:
        if (drive / INFO).exists():  # else the board has all and is gone
            raise SproutError(
                f"{drive} stopped taking {name} ({error.strerror}): plug the board in again with "
                "BOOTSEL held, and repeat."
            ) from None


# --- ESP32: esptool -----------------------------------------------------------------------------


def esptool(way: Esp, port: str | None, *words: str) -> list[str]:
    """Return a command of esptool, a program of its own and not a library of ours (its licence
    is the GPL)."""
    if importlib.util.find_spec("esptool") is None:
        raise SproutError("Flashing an ESP32 needs esptool: run 'pip install esptool'.")
    where = ["--port", port] if port else []
    return [sys.executable, "-m", "esptool", "--chip", way.chip, *where, *words]


def flash_size(board: Board, way: Esp, port: str | None) -> int:
    """Connect and return the bytes of flash; raises SproutError if it is another chip or none."""
    command = esptool(way, port, "--after", "no-reset", "flash-id")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    out = done.stdout + done.stderr
    wrong = re.search(r"This chip is (\S+), not", out)
    if wrong:
        raise SproutError(
            f"The chip at {port or 'the port'} is an {wrong[1].rstrip(',.')}, and {board.title} "
            "was asked for: give the right --board and its firmware."
        )
    if done.returncode:
        said = re.search(r"(?:fatal error occurred:|Error:)\s*(.+)", out)
        raise SproutError(
            f"No {board.title} answers at {port or 'any port'} "
            f"({said[1].strip().rstrip('.') if said else 'esptool says nothing'}): hold BOOT, "
            "press RESET, and repeat."
        )
    size = re.search(r"[Ff]lash size: (\d+)([KM])B", out)
    if not size:
        raise SproutError(f"{board.title} does not tell its flash's size: press RESET and repeat.")
    return int(size[1]) << {"K": 10, "M": 20}[size[2]]


def write_esp(way: Esp, port: str | None, firmware: Path, erase: bool) -> None:
    """Write firmware, and verify it; esptool shows how far it is."""
    words = ["write-flash", *(["--erase-all"] if erase else []), hex(way.offset), str(firmware)]
    if subprocess.run(esptool(way, port, *words), check=False).returncode:
        raise SproutError(
            f"{firmware.name} was not written whole and the board does not start now: repeat, "
            "with a shorter cable or another port if it fails again."
        )


# --- the command --------------------------------------------------------------------------------


@click.command("flash", short_help="Put MicroPython's firmware onto a board.")
@click.option(
    "--board",
    "name",
    required=True,
    metavar="NAME",
    help=f"Which board: {', '.join(row.name for row in BOARDS.values() if row.way)}.",
)
@click.option(
    "--firmware",
    required=True,
    type=click.Path(path_type=Path),
    help="The .uf2 (RP2) or .bin (ESP32) of micropython.org/download.",
)
@click.option("--port", help="ESP32: the serial port; esptool looks for one if not given.")
@click.option("--drive", type=click.Path(path_type=Path), help="RP2: where its drive is mounted.")
@click.option("--erase", is_flag=True, help="ESP32: erase the files on the board too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(
    name: str, firmware: Path, port: str | None, drive: Path | None, erase: bool, yes: bool
) -> None:
    """Put MicroPython's firmware onto a board.

    File and chip are checked first, then you are asked. The files on the board stay.
    """
    board = table.find(name)
    try:
        data = firmware.read_bytes()
    except OSError as error:
        raise SproutError(
            f"{firmware} cannot be read ({error.strerror}): download the board's firmware from "
            "micropython.org/download."
        ) from None
    check_firmware(data, firmware.name, board)
    for option, given, kind in zip(
        ("--drive", "--port", "--erase"), (drive, port, erase), (Uf2, Esp, Esp), strict=True
    ):
        if given and not isinstance(board.way, kind):
            raise SproutError(f"{option} is not for {board.title}: leave it out.")
    if isinstance(board.way, Uf2):
        drive = find_drive(board, board.way, drive)
        _confirm(f"Write {firmware.name} ({len(data)} bytes) to {board.title} at {drive}?", yes)
        copy_uf2(data, firmware.name, drive)
        click.echo(f"{firmware.name} is on the board, which starts it by itself.")
    elif isinstance(board.way, Esp):
        size = flash_size(board, board.way, port)
        if board.way.offset + len(data) > size:
            raise SproutError(
                f"{firmware.name} does not fit the {size >> 20} MB of flash of this board: give "
                "firmware for a smaller one."
            )
        what = "and erase all files on it" if erase else "and keep its files"
        _confirm(
            f"Write {firmware.name} ({len(data)} bytes) to {board.title}, {size >> 20} MB of "
            f"flash, {what}?",
            yes,
        )
        write_esp(board.way, port, firmware, erase)
    click.echo("Next: sprout install")


def _confirm(question: str, yes: bool) -> None:
    if not yes and not click.confirm(question):
        raise SproutError("Nothing was written.")
