"""An ESP32 in its boot loader behind a pseudo terminal, as esptool meets it.

It speaks the serial protocol (docs.espressif.com, esptool: "Serial Protocol") of the ROM and, when
a flasher stub was uploaded, of the stub, and has flash that can be looked at.
"""

from __future__ import annotations

import hashlib
import os
import pty
import select
import struct
import threading
import tty
import zlib

ESP32, ESP32_C3, ESP32_S3 = 0, 5, 9
_MAGIC_ADDRESS, _ESP32_MAGIC = 0x40001000, 0x00F01D83
# Where the answer of the flash to its "who are you" stands.
_ANSWERS = {ESP32: 0x3FF42080, ESP32_C3: 0x60002058, ESP32_S3: 0x60002058}
NAMES = {
    0x02: "flash_begin",
    0x04: "flash_end",
    0x05: "mem_begin",
    0x06: "mem_end",
    0x07: "mem_data",
    0x08: "sync",
    0x09: "write_reg",
    0x0A: "read_reg",
    0x0B: "spi_set_params",
    0x0D: "spi_attach",
    0x10: "deflated_begin",
    0x11: "deflated_data",
    0x12: "deflated_end",
    0x13: "md5",
    0x14: "security_info",
    0xD0: "erase_flash",
}
_UNKNOWN, _FAILED = b"\x01\x05", b"\x01\x06"


class Chip:
    """The chip on a thread; `port` is its terminal, `commands` what it was asked to do so far.

    With `fails` it refuses what carries that name.
    """

    def __init__(self, chip_id: int, flash: int = 1 << 22, fails: str = "") -> None:
        self.chip_id = chip_id
        self.fails = fails
        self.flash = bytearray(b"\x00" * flash)  # all zero: written by somebody before
        self.commands: list[str] = []
        self._registers = {_ANSWERS[chip_id]: (flash.bit_length() - 1) << 16 | 0x40C8}
        if chip_id == ESP32:
            self._registers[_MAGIC_ADDRESS] = _ESP32_MAGIC
        self._is_stub = False
        self._at = 0
        self._unpacker = zlib.decompressobj()
        self._wire, self._terminal = pty.openpty()
        tty.setraw(self._terminal)
        self.port = os.ttyname(self._terminal)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Chip:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for file in (self._wire, self._terminal, self._stop, self._stopped):
            os.close(file)

    def _listen(self) -> None:
        waiting = b""
        while True:
            ready, _, _ = select.select([self._wire, self._stop], [], [])
            if self._stop in ready:
                return
            waiting += os.read(self._wire, 1 << 16)
            *packets, waiting = waiting.split(b"\xc0")
            for packet in packets:
                if len(packet) >= 8:
                    self._obey(packet.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb"))

    def _send(self, packet: bytes) -> None:
        coded = packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
        os.write(self._wire, b"\xc0" + coded + b"\xc0")

    def _answer(
        self, code: int, value: int = 0, data: bytes = b"", status: bytes = b"\0\0"
    ) -> None:
        data += status + (b"" if self._is_stub else b"\0\0")
        self._send(struct.pack("<BBHI", 1, code, len(data), value) + data)

    def _obey(self, packet: bytes) -> None:
        _, code, length, _ = struct.unpack_from("<BBHI", packet)
        data = packet[8 : 8 + length]
        words = struct.unpack_from(f"<{min(len(data), 16) // 4}I", data)
        name = NAMES.get(code, f"{code:#x}")
        if name == "security_info" and self.chip_id == ESP32 or code not in NAMES:
            self._answer(code, status=_UNKNOWN)
            return
        if name == self.fails:
            self._answer(code, status=_FAILED)
            return
        if name != "flash_begin" or words[0]:  # of no bytes: the way to flash_end
            self.commands.append(name)
        if name == "sync":
            self._is_stub = False
            for _ in range(8):
                self._answer(code, 0x20120707)
        elif name == "read_reg":
            self._answer(code, self._registers.get(words[0], 0))
        elif name == "security_info":
            self._answer(code, data=struct.pack("<I8xII", 0, self.chip_id, 0))
        elif name == "md5":
            part = self.flash[words[0] : words[0] + words[1]]
            self._answer(code, data=hashlib.md5(part).digest())
        else:
            if name == "deflated_begin":
                self._at, self._unpacker = words[3], zlib.decompressobj()
            elif name == "deflated_data":
                part = self._unpacker.decompress(data[16 : 16 + words[0]])
                self.flash[self._at : self._at + len(part)] = part
                self._at += len(part)
            elif name == "erase_flash":
                self.flash[:] = b"\xff" * len(self.flash)
            self._answer(code)
            if name == "flash_end":  # back to the ROM
                self._is_stub = False
            if name == "mem_end" and words[1]:
                self._is_stub = True
                self._send(b"OHAI")
