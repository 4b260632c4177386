"""The boards Sprout knows, one row each."""

from __future__ import annotations

from typing import NamedTuple

from ..graph import SproutError


class Uf2(NamedTuple):
    """Flashed by copying a UF2 file onto the drive that the chip becomes."""

    board_id: str  # in the drive's INFO_UF2.TXT
    family: int  # of UF2 files


class Esp(NamedTuple):
    """Flashed over a serial port, with esptool."""

    chip: str  # to esptool
    chip_id: int  # in the headers of images
    offset: int  # of firmware in flash


class Board(NamedTuple):
    """What stock MicroPython offers on a board."""

    name: str
    title: str
    arch: str  # of native modules
    heap: int  # bytes free after boot; on ESP32s the heap grows up to this
    filesystem: int  # bytes of flash for files
    flash: int  # bytes, of the smallest board of this kind
    way: Uf2 | Esp | None  # how firmware gets there


_KIB = 1024
_MIB = 1024 * _KIB
_RP2040 = Uf2("RPI-RP2", 0xE48BFF56)
_RP2350 = Uf2("RP2350", 0xE48BFF59)  # its Arm cores
_ROWS = (
    # Measured on stock firmware: 231 to 241 KB free after boot.
    Board("pico", "Raspberry Pi Pico (RP2040)", "armv6m", 236_544, 1408 * _KIB, 2 * _MIB, _RP2040),
    # 520 KB of SRAM less what ports/rp2 keeps for itself (estimated from the Pico's 264 - 231 KB);
    # file system: 4 MB of flash less 1.5 MB (ports/rp2/boards/RPI_PICO2/mpconfigboard.h).
    Board(
        *("pico2", "Raspberry Pi Pico 2 (RP2350)", "armv7emsp", 487_424, 2560 * _KIB, 4 * _MIB),
        _RP2350,
    ),
    # The heap once it has grown, in one of several regions (github.com/micropython/micropython/
    # pull/13219); file system: ports/esp32/partitions-4MiB.csv.
    Board(
        *("esp32", "ESP32 without PSRAM", "xtensawin", 111_936, 2048 * _KIB, 4 * _MIB),
        Esp("esp32", 0, 0x1000),
    ),
    # 64 000 bytes at first, "max new split" 188 352 (micropython/pull/12141); 8 MB of flash.
    Board(
        *("esp32s3", "ESP32-S3 without PSRAM", "xtensawin", 252_352, 6144 * _KIB, 8 * _MIB),
        Esp("esp32s3", 9, 0),
    ),
    # Not measured: 400 KB of SRAM less radio, IDF and cache, a cautious guess.
    Board(
        *("esp32c3", "ESP32-C3", "rv32imc", 163_840, 2048 * _KIB, 4 * _MIB),
        Esp("esp32c3", 5, 0),
    ),
    # This machine: MicroPython's unix port with its usual heap for 64-bit words.
    Board("unix", "MicroPython on this machine", "x64", 2048 * _KIB, 1 << 30, 1 << 30, None),
)
BOARDS = {board.name: board for board in _ROWS}


def find(name: str) -> Board:
    """Return the board called ``name``; raises SproutError with the list of names."""
    if name not in BOARDS:
        raise SproutError(f"There is no board '{name}'; the boards are {', '.join(BOARDS)}.")
    return BOARDS[name]
