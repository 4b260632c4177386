"""Writes native modules as MicroPython .mpy files (format version 6, native ABI 6.3).

A real linker lays out the machine code; this file checks that the result is one block of bytes
that runs wherever it is loaded, and wraps it. The block is linked twice, at two addresses: bytes
that differ hold an absolute address. That finds every kind of relocation on every architecture
without knowing any of them.

The format, from MicroPython's documentation ("MicroPython .mpy files") and what its loader
(py/persistentcode.c) reads:

    'M'  6  arch << 2 | 3  31        version, architecture and ABI sub-version, bits of a small int
    n_names  n_objects               numbers: 7 bits a byte, high first, bit 7 set if more follow
    length << 1, text, 0             for each name
    0                                the one object: a pointer to MicroPython's table of functions
    code length << 3 | 2, code       2: native code, called as f(self, n_args, n_kw, args)
    flags                            16: relocations, 32: constants apart from the code
    length, constants                where the flag is set
    to << 2 | 1, word << 1 | part    where the flag is set: relocations, numbers like the others;
    255                              the loader adds an address (of the code 0, of the constants 1)
                                     to a 32-bit word (of the code 0, of the constants 1)

Importing the file calls the first byte of the code. Code that runs anywhere needs no relocations.
Xtensa's does: it loads addresses from words before the code. There the code goes into memory that
only whole words can be read from, so its constants lie apart, in the heap.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MPY_VERSION = 6
MPY_SUB_VERSION = 3
SMALL_INT_BITS = 31
CODE_NATIVE = 2
OBJECT_FUNCTION_TABLE = 0
HAS_RELOCATIONS, HAS_CONSTANTS = 0x10, 0x20
END_OF_RELOCATIONS = 0xFF

# MicroPython's numbers for the architectures (MP_NATIVE_ARCH_*).
ARCHES = {
    "x86": 1,
    "x64": 2,
    "armv6m": 4,
    "armv7m": 5,
    "armv7em": 6,
    "armv7emsp": 7,
    "armv7emdp": 8,
    "xtensa": 9,
    "xtensawin": 10,
    "rv32imc": 11,
}

# The loader's allocations are aligned to this (16 bytes is a heap block of a 32-bit board).
MAX_ALIGN = 16
# Relocated words are this long, and an ESP32's memory for code is aligned to no more.
WORD = 4

ELF_RELOCATABLE = 1
SECTION_NOBITS = 8
SECTION_SYMBOLS = 2
SECTION_ALLOCATED = 2
SYMBOL_OBJECT = 1
SYMBOL_FUNCTION = 2


class MpyError(Exception):
    """The image cannot become a native module, or the bytes are no native module."""


@dataclass(frozen=True)
class Section:
    """A section of a linked program: `data` is empty where the section holds only zeros."""

    name: str
    address: int
    size: int
    align: int
    data: bytes


@dataclass(frozen=True)
class Symbol:
    """A function or variable of a linked program."""

    name: str
    address: int
    size: int


@dataclass(frozen=True)
class Program:
    """What a native module needs to know of a linked ELF file."""

    entry: int
    sections: list[Section]
    symbols: list[Symbol]


@dataclass(frozen=True)
class Relocation:
    """The loader adds the address of part `to` to word `word` of `part`; 0: code, 1: constants."""

    part: int
    word: int
    to: int


@dataclass(frozen=True)
class Image:
    """What the loader puts into memory: code and, where they lie apart, constants."""

    code: bytes
    constants: bytes = b""
    relocations: tuple[Relocation, ...] = ()


@dataclass(frozen=True)
class MpyInfo:
    """What a native .mpy file says of itself; the loader allocates `code_bytes` for its code."""

    version: int
    sub_version: int
    arch: str
    names: list[str]
    image: Image

    @property
    def code(self) -> bytes:
        return self.image.code

    @property
    def code_bytes(self) -> int:
        return len(self.code)


def read_elf(data: bytes) -> Program:
    """Reads the sections in memory and the symbols of a linked little-endian ELF file."""
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise MpyError("the linker's output is not a little-endian ELF file")
    wide = data[4] == 2
    header = struct.unpack_from("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", data, 16)
    kind, entry, table, entry_size, count, names_index = (header[i] for i in (0, 3, 5, 10, 11, 12))
    if kind == ELF_RELOCATABLE:
        raise MpyError("the image is an object file that still has relocations: link it first")
    layout = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    headers = [struct.unpack_from(layout, data, table + i * entry_size) for i in range(count)]

    def body(i: int) -> bytes:
        return b"" if headers[i][1] == SECTION_NOBITS else data[headers[i][4] :][: headers[i][5]]

    def text(strings: bytes, at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode()

    names = body(names_index)
    sections = []
    symbols = []
    for i, (name, kind, flags, address, _, size, link, _, align, _) in enumerate(headers):
        if flags & SECTION_ALLOCATED:
            sections.append(Section(text(names, name), address, size, align, body(i)))
        if kind == SECTION_SYMBOLS:
            strings = body(link)
            for fields in struct.iter_unpack("<IBBHQQ" if wide else "<IIIBBH", body(i)):
                if wide:
                    at, info, _, _, address, size = fields
                else:
                    at, address, size, info, _, _ = fields
                if info & 15 in (SYMBOL_OBJECT, SYMBOL_FUNCTION):
                    symbols.append(Symbol(text(strings, at), address, size))
    return Program(entry, sections, symbols)


def _name_at(program: Program, address: int) -> str:
    """The function or variable that covers an address, else the address."""
    for symbol in program.symbols:
        if symbol.address & ~1 <= address < (symbol.address & ~1) + symbol.size:
            return symbol.name
    return f"address {address:#x}"


def _names_in(program: Program, section: Section) -> str:
    found = [
        symbol.name
        for symbol in program.symbols
        if section.address <= symbol.address < section.address + section.size
    ]
    return ", ".join(found) or f"{section.size} bytes"


def _words(section: Section) -> list[int]:
    padded = section.data + bytes(-len(section.data) % 4)
    return list(struct.unpack(f"<{len(padded) // 4}I", padded))


def _relocate(program: Program, parts: list[Section], moved: list[Section]) -> Image:
    """The image of code and constants, each of which moved by a distance of its own."""
    distances = [b.address - a.address for a, b in zip(parts, moved, strict=True)]
    contents, relocations = [], []
    for part, (section, other) in enumerate(zip(parts, moved, strict=True)):
        words = _words(section)
        for i, (word, there) in enumerate(zip(words, _words(other), strict=True)):
            if word == there:
                continue
            distance = (there - word) % (1 << 32)
            if distance not in distances:
                raise MpyError(
                    f"{_name_at(program, section.address + 4 * i)} holds an address that is no "
                    "word of its own: MicroPython adds addresses to whole words only"
                )
            to = distances.index(distance)
            relocations.append(Relocation(part, i, to))
            words[i] = (word - parts[to].address) % (1 << 32)
        contents.append(struct.pack(f"<{len(words)}I", *words))
    return Image(contents[0], b"".join(contents[1:]), tuple(relocations))


def make_image(first: bytes, second: bytes, relocate: bool = False) -> Image:
    """Checks two links of one program at different addresses and returns its code and constants.

    first, second: ELF files with all code in the section `.image`, the entry point first, and
    constants there too or, where `relocate` allows absolute addresses, in `.constants`. The two
    sections must move by different distances.

    Raises MpyError for absolute addresses, variables, another entry point or a wide alignment.
    """
    program, moved = read_elf(first), read_elf(second)
    sections = {section.name: section for section in program.sections if section.size}
    image = sections.pop(".image", None)
    constants = sections.pop(".constants", None) if relocate else None
    if image is None:
        raise MpyError("the image is empty: the linker found no code in the section .image")
    for section in sections.values():
        kind = "zeroed variables" if section.name == ".bss" else f"{section.name} variables"
        raise MpyError(
            f"the image has {kind} ({_names_in(program, section)}), which a native module cannot "
            "keep: make them const, or take memory from the caller"
        )
    most = WORD if relocate else MAX_ALIGN
    if image.align > most:
        raise MpyError(
            f"the image wants {image.align}-byte alignment and MicroPython gives {most}: "
            "remove the wide constant or the alignment attribute"
        )
    if program.entry & ~1 != image.address:
        raise MpyError(
            f"the entry point is {program.entry - image.address} bytes into the image and "
            "MicroPython calls its first byte: mark the entry function with MP_ENTRY"
        )
    parts = [image, constants] if constants else [image]
    others = {section.name: section for section in moved.sections}
    if relocate:
        return _relocate(program, parts, [others[part.name] for part in parts])
    other = others[".image"]
    if image.data != other.data:
        pairs = zip(image.data, other.data, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
        raise MpyError(
            f"the image needs a relocation: {_name_at(program, image.address + at)} holds an "
            "absolute address, as tables of pointers do; store offsets or indices, or use a switch"
        )
    return Image(image.data)


def _number(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def write_mpy(image: Image, arch: str, names: Sequence[str]) -> bytes:
    """The .mpy file of an image; its C code knows a name by its index in `names`."""
    if arch not in ARCHES:
        raise MpyError(
            f"{arch!r} is no architecture of MicroPython: use one of {', '.join(ARCHES)}"
        )
    out = bytearray(b"M")
    out += bytes([MPY_VERSION, ARCHES[arch] << 2 | MPY_SUB_VERSION, SMALL_INT_BITS])
    out += _number(len(names)) + _number(1)
    for name in names:
        text = name.encode()
        out += _number(len(text) << 1) + text + b"\0"
    out.append(OBJECT_FUNCTION_TABLE)
    out += _number(len(image.code) << 3 | CODE_NATIVE) + image.code
    flags = HAS_RELOCATIONS * bool(image.relocations) | HAS_CONSTANTS * bool(image.constants)
    out += _number(flags)
    if image.constants:
        out += _number(len(image.constants)) + image.constants
    if image.relocations:
        for one in image.relocations:
            out += bytes([one.to << 2 | 1]) + _number(one.word << 1 | one.part)
        out.append(END_OF_RELOCATIONS)
    return bytes(out)


def read_mpy(data: bytes) -> MpyInfo:
    """Reads back what `write_mpy` writes; raises MpyError for anything else."""
    if data[:1] != b"M" or len(data) < 5:
        raise MpyError("the file is no .mpy file: it does not begin with 'M'")
    position = 4

    def number() -> int:
        nonlocal position
        value = 0
        while True:
            value = value << 7 | data[position] & 0x7F
            position += 1
            if not data[position - 1] & 0x80:
                return value

    arches = {number: name for name, number in ARCHES.items()}
    arch = arches.get(data[2] >> 2 & 0x0F)
    if data[1] != MPY_VERSION or arch is None:
        raise MpyError(
            f"the .mpy file has version {data[1]}, or no native code: build it for {MPY_VERSION}"
        )
    try:
        n_names, n_objects = number(), number()
        names = []
        for _ in range(n_names):
            length = number() >> 1
            names.append(data[position : position + length].decode())
            position += length + 1
        position += n_objects
        kind = number()
    except IndexError:
        raise MpyError("the .mpy file ends early: copy or build it again") from None
    if kind & 7 != CODE_NATIVE or position + (kind >> 3) >= len(data):
        raise MpyError("the .mpy file holds no complete native module: copy or build it again")
    code = data[position : position + (kind >> 3)]
    position += len(code)
    constants, relocations = b"", []
    try:
        flags = number()
        if flags & HAS_CONSTANTS:
            length = number()
            constants = data[position : position + length]
            position += length
        while flags & HAS_RELOCATIONS and data[position] != END_OF_RELOCATIONS:
            to = data[position] >> 2
            position += 1
            where = number()
            relocations.append(Relocation(where & 1, where >> 1, to))
    except IndexError:
        raise MpyError("the .mpy file ends early: copy or build it again") from None
    image = Image(code, constants, tuple(relocations))
    return MpyInfo(data[1], data[2] & 3, arch, names, image)


def code_bytes(path: Path) -> int:
    """Bytes the loader allocates for a native module's code: in a board's heap, outside unix's."""
    return read_mpy(path.read_bytes()).code_bytes
