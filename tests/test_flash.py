"""Firmware goes onto a board only if both fit: files as they come, a drive, a chip in its boot
loader."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from esp_chip import ESP32, ESP32_C3, ESP32_S3, Chip
from sprout import cli
from sprout.board import flash, table

RP2040, RP2350_ARM, RP2350_RISCV, ABSOLUTE = 0xE48BFF56, 0xE48BFF59, 0xE48BFF5A, 0xE48BFF57
INFO = "UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: {}\r\n"


def uf2(family: int, blocks: int = 20, start: int = 0x10000000) -> bytearray:
    """A UF2 file: 256 bytes of payload a block."""
    out = bytearray()
    for number in range(blocks):
        words = (0x0A324655, 0x9E5D5157, 0x2000, start + 256 * number, 256, number, blocks, family)
        out += struct.pack("<8I", *words) + bytes([number]) * 476 + struct.pack("<I", 0x0AB16F30)
    return out


def image(chip: int, size: int) -> bytes:
    """An ESP image of one segment with its checksum and SHA-256."""
    head = struct.pack("<BBBBI4xH9xB", 0xE9, 1, 2, 0x20, 0x40080000, chip, 1)
    body = bytes(i * 7 & 255 for i in range(size))
    out = head + struct.pack("<II", 0x3FC80000, size) + body
    out += bytes(15 - len(out) % 16)
    check = 0xEF
    for byte in body:
        check ^= byte
    out += bytes([check])
    return out + hashlib.sha256(out).digest()


def esp(chip: int, offset: int, size: int = 5000) -> bytearray:
    """Firmware as MicroPython's: a boot loader, partitions and a program at their places."""
    partitions = b""
    for name, kind, subtype, at in ((b"nvs", 1, 2, 0x9000), (b"factory", 0, 0, 0x10000)):
        partitions += struct.pack("<2sBBII16sI", b"\xaa\x50", kind, subtype, at, 0x6000, name, 0)
    out = bytearray(b"\xff" * (0x10000 - offset))
    boot = image(chip, 1000)
    out[: len(boot)] = boot
    out[0x8000 - offset : 0x8000 - offset + len(partitions)] = partitions
    return out + image(chip, size)


def drive(folder: Path, board_id: str) -> Path:
    """A folder that looks like the drive of an RP2."""
    folder.mkdir()
    (folder / "INFO_UF2.TXT").write_text(INFO.format(board_id))
    return folder


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs `sprout flash` with firmware that it refuses; returns its one sentence."""

    def run(board: str, data: bytes, *options: object) -> str:
        firmware = tmp_path / "firmware.bin"
        firmware.write_bytes(data)
        words = ["flash", "--board", board, "--firmware", str(firmware), *map(str, options)]
        capsys.readouterr()
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("sprout: ")
        assert error.count("\n") == 1
        return error

    return run


# --- RP2 ----------------------------------------------------------------------------------------


def test_a_uf2_file_is_copied_onto_the_drive(tmp_path, capsys):
    where = drive(tmp_path / "RPI-RP2", "RPI-RP2")
    firmware = tmp_path / "pico.uf2"
    firmware.write_bytes(uf2(RP2040))
    words = ["flash", "--board", "pico", "--firmware", str(firmware), "--drive", str(where)]
    assert cli.main([*words, "--yes"]) == 0
    assert (where / "pico.uf2").read_bytes() == firmware.read_bytes()
    assert "Next: sprout install" in capsys.readouterr().out


def test_no_is_an_answer(tmp_path, capsys, monkeypatch):
    where = drive(tmp_path / "RPI-RP2", "RPI-RP2")
    firmware = tmp_path / "pico.uf2"
    firmware.write_bytes(uf2(RP2040))
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: "n")
    words = ["flash", "--board", "pico", "--firmware", str(firmware), "--drive", str(where)]
    assert cli.main(words) == 1
    assert "Nothing was written." in capsys.readouterr().err
    assert [path.name for path in where.iterdir()] == ["INFO_UF2.TXT"]


def test_the_rp2350_has_a_block_of_its_own(tmp_path):
    where = drive(tmp_path / "RP2350", "RP2350")
    firmware = tmp_path / "pico2.uf2"
    firmware.write_bytes(uf2(ABSOLUTE, 1, 0x10FFFF00) + uf2(RP2350_ARM))
    words = ["flash", "--board", "pico2", "--firmware", str(firmware), "--drive", str(where)]
    assert cli.main([*words, "--yes"]) == 0


def test_wrong_uf2_files_are_refused(tmp_path, refuses):
    where = drive(tmp_path / "RPI-RP2", "RPI-RP2")
    damaged = uf2(RP2040)
    damaged[512 * 3 + 510] ^= 1
    cases = {
        "is for the RP2350's Arm cores, not for Raspberry Pi Pico": uf2(RP2350_ARM),
        "is for another chip (UF2 family 0xada52840)": uf2(0xADA52840),
        "is no UF2 file": esp(ESP32, 0x1000),
        "ends in the middle of a block": uf2(RP2040)[:-100],
        "lacks block 19, 1 in all": uf2(RP2040)[:-512],
        "lacks block 0, 1 in all": uf2(RP2040)[512:],
        "is damaged at byte 1536": damaged,
        "writes outside the 2 MB of flash": uf2(RP2040, 20, 0x101FFF00),
    }
    for sentence, data in cases.items():
        assert sentence in refuses("pico", data, "--drive", where, "--yes")
    assert "RISC-V cores" in refuses("pico2", uf2(RP2350_RISCV), "--yes")
    assert [path.name for path in where.iterdir()] == ["INFO_UF2.TXT"]


def test_the_wrong_drive_is_refused(tmp_path, refuses):
    where = drive(tmp_path / "RP2350", "RP2350")
    assert "another board (RP2350)" in refuses("pico", uf2(RP2040), "--drive", where, "--yes")
    assert "has no INFO_UF2.TXT" in refuses("pico", uf2(RP2040), "--drive", tmp_path, "--yes")
    assert [path.name for path in where.iterdir()] == ["INFO_UF2.TXT"]


def test_mounted_drives_are_found(tmp_path, monkeypatch, refuses):
    first, second = (drive(tmp_path / name, "RPI-RP2") for name in ("RPI RP2", "other"))
    mounts = tmp_path / "mounts"
    line = "/dev/sda1 {} vfat rw 0 0\n"
    real = flash.drives
    monkeypatch.setattr(flash, "drives", lambda: real(mounts))
    board = table.find("pico")
    mounts.write_text("proc /proc proc rw 0 0\n" + line.format(str(first).replace(" ", r"\040")))
    assert flash.find_drive(board, board.way, None) == first
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert "hold BOOTSEL" in refuses("pico", uf2(RP2040), "--yes")
    mounts.write_text(line.format(str(first).replace(" ", r"\040")) + line.format(second))
    assert "give one of them with --drive" in refuses("pico", uf2(RP2040), "--yes")


def test_a_drive_that_is_full(tmp_path, refuses, monkeypatch):
    where = drive(tmp_path / "RPI-RP2", "RPI-RP2")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flash.os, "fsync", full)
    assert "stopped taking" in refuses("pico", uf2(RP2040), "--drive", where, "--yes")


# --- ESP32 --------------------------------------------------------------------------------------

ESPS = {"esp32": (ESP32, 0x1000), "esp32c3": (ESP32_C3, 0), "esp32s3": (ESP32_S3, 0)}
HARMLESS = {"sync", "read_reg", "write_reg", "security_info", "spi_attach", "spi_set_params",
            "mem_begin", "mem_data", "mem_end", "flash_end"}  # fmt: skip


@pytest.mark.parametrize("board", ["esp32", "esp32c3"])
def test_esptool_writes_what_the_chip_then_holds(board, tmp_path):
    chip_id, offset = ESPS[board]
    firmware = tmp_path / "firmware.bin"
    firmware.write_bytes(esp(chip_id, offset))
    erase = ["--erase"] if board == "esp32c3" else []
    with Chip(chip_id, table.find(board).flash) as chip:
        words = ["flash", "--board", board, "--firmware", str(firmware), "--port", chip.port]
        assert cli.main([*words, *erase, "--yes"]) == 0
        data = firmware.read_bytes()
        assert chip.flash[offset : offset + len(data)] == data
        assert ("erase_flash" in chip.commands) == bool(erase)
        assert chip.flash[-1] == (0xFF if erase else 0)  # where the files are


def test_another_chip_is_refused_before_anything_is_erased(tmp_path, refuses):
    with Chip(ESP32_S3) as chip:
        sentence = refuses("esp32c3", esp(ESP32_C3, 0), "--port", chip.port, "--yes", "--erase")
        assert "is an ESP32-S3, and ESP32-C3 was asked for" in sentence
        assert set(chip.commands) <= HARMLESS
        assert not any(chip.flash)


def test_flash_that_is_too_small_is_refused(tmp_path, refuses):
    with Chip(ESP32_C3, 1 << 20) as chip:
        big = esp(ESP32_C3, 0, 1_100_000)
        assert "does not fit the 1 MB" in refuses("esp32c3", big, "--port", chip.port, "--yes")
        assert set(chip.commands) <= HARMLESS


def test_a_write_that_fails_says_so(tmp_path, refuses):
    with Chip(ESP32_C3, fails="deflated_data") as chip:
        sentence = refuses("esp32c3", esp(ESP32_C3, 0), "--port", chip.port, "--yes")
        assert "was not written whole and the board does not start now" in sentence


def test_no_chip_answers(refuses, tmp_path):
    sentence = refuses("esp32", esp(ESP32, 0x1000), "--port", tmp_path / "nothere", "--yes")
    assert "No ESP32 without PSRAM answers at" in sentence


def test_wrong_images_are_refused(refuses):
    good = esp(ESP32, 0x1000)
    damaged = bytearray(good)
    damaged[-1000] ^= 1
    cases = {
        "is for the ESP32-S3, not for ESP32 without PSRAM": esp(ESP32_S3, 0),
        "is a program without a boot loader": image(ESP32, 100_000),
        "is no firmware of an ESP32": uf2(RP2040),
        "is cut short": good[:-500],
        "its SHA-256 does not match": damaged,
        "is no firmware of an ESP32 at byte 61440": good[:0xF000],
        "has no program": good[: 0x7000 + 32] + bytes(32) + good[0x7000 + 64 :],
        "is larger than the 4 MB of flash": esp(ESP32, 0x1000, 1 << 22),
    }
    for sentence, data in cases.items():
        assert sentence in refuses("esp32", data, "--yes")


def test_options_of_the_other_kind_are_refused(refuses, tmp_path):
    assert "--port is not for" in refuses("pico", uf2(RP2040), "--port", "/dev/ttyACM0")
    assert "--drive is not for" in refuses("esp32", esp(ESP32, 0x1000), "--drive", tmp_path)
    assert "takes no firmware" in refuses("unix", b"")
    assert "There is no board 'uno'" in refuses("uno", b"")
    assert "download the board's firmware" in refuses("pico", b"", "--firmware", tmp_path / "no")
