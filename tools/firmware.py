"""Builds MicroPython firmware with Sprout compiled in, from Debian packages alone.

    python tools/firmware.py [unix] [cortex-m0] [cortex-m4] [rv32]

MicroPython's sources are Debian's: the package of a later release than Debian 12, whose own is too
old.  USER_C_MODULES brings in the core and its shell, a manifest the Python package.  `unix` is
a program for this machine, the others run on processors that QEMU emulates.  Everything lands in
build/firmware/; nothing is left elsewhere but packages.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from debian import ToolError, Workshop

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "firmware"
WORKSHOP = Workshop(BUILD)
MODULES = ROOT / "native_modules"
RELEASE = "trixie"  # MicroPython 1.25.0
ARM = ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm")
ARM_NEEDED = ("arm-none-eabi-gcc", "/usr/lib/arm-none-eabi/lib/libc.a", "qemu-system-arm")


@dataclass(frozen=True)
class Firmware:
    """A port of MicroPython, what `make` is told there, the packages and programs it takes."""

    port: str
    program: str
    options: tuple[str, ...]
    packages: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


FIRMWARES = {
    "unix": Firmware(
        "unix",
        "micropython",
        (
            *("MICROPY_PY_BTREE=0", "MICROPY_PY_FFI=0", "MICROPY_PY_SSL=0"),
            *("MICROPY_SSL_MBEDTLS=0", "CFLAGS_EXTRA=-DSPROUT_CORES=2"),
        ),
    ),
    # Loads native modules as a Pico does, which this board's own configuration leaves out.
    "cortex-m0": Firmware(
        "qemu",
        "firmware.elf",
        (
            "BOARD=MICROBIT",
            "MICROPY_HEAP_SIZE=180000",
            "CFLAGS_EXTRA=-DMICROPY_EMIT_THUMB=1 -DMICROPY_EMIT_THUMB_ARMV7M=0",
        ),
        ARM,
        ARM_NEEDED,
    ),
    # The board with an M3, told that it is the same board with an M4.
    "cortex-m4": Firmware(
        "qemu",
        "firmware.elf",
        ("BOARD=MPS2_AN385", "MICROPY_HEAP_SIZE=180000", "CFLAGS_EXTRA=-mcpu=cortex-m4"),
        ARM,
        ARM_NEEDED,
    ),
    # The older specification has the instructions for control registers in rv32i itself, as
    # Debian's libraries were built.
    "rv32": Firmware(
        "qemu",
        "firmware.elf",
        ("BOARD=VIRT_RV32", "MICROPY_HEAP_SIZE=180000", "RV32_ARCH=rv32imac -misa-spec=2.2"),
        ("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf", "qemu-system-misc"),
        ("riscv64-unknown-elf-gcc", "/usr/lib/picolibc", "qemu-system-riscv32"),
    ),
}
PACKAGES = ("gcc", "libc6-dev", "make", "xz-utils", "python3", "cmake")
NEEDED = ("gcc", "/usr/include/stdio.h", "make", "xz", "python3", "cmake")


def fetch_source() -> Path:
    """Fetches MicroPython's sources unless they are there; returns their folder."""
    if found := sorted(BUILD.glob("micropython-*")):
        return found[0]
    tar = WORKSHOP.fetch_source("micropython", RELEASE)
    new = BUILD / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    WORKSHOP.run("tar", "-xf", tar, "-C", new)
    (folder,) = new.iterdir()
    folder.rename(BUILD / folder.name)
    shutil.rmtree(new)
    shutil.rmtree(tar.parent)
    return BUILD / folder.name


def build(name: str) -> Path:
    """Builds a firmware, only what has changed of it; returns the program."""
    firmware = FIRMWARES[name]
    top = fetch_source()
    # Without git, which would put this repository's state into MicroPython's version.
    make = ("env", "GIT_DIR=/dev/null", "make", "-j", os.environ.get("JOBS", "1"))
    WORKSHOP.run(*make, "-C", top / "mpy-cross")
    WORKSHOP.run(
        *make,
        *("-C", top / "ports" / firmware.port),
        f"BUILD={BUILD / name}",
        f"USER_C_MODULES={MODULES}",
        f"FROZEN_MANIFEST={MODULES / 'usermod' / 'manifest.py'}",
        f"MPY_LIB_DIR={top / 'lib'}",  # Debian leaves micropython-lib out; nothing needs it
        *firmware.options,
    )
    return BUILD / name / firmware.program


def main() -> int:
    """Builds what the command line names, or everything; returns the exit status."""
    names = sys.argv[1:] or list(FIRMWARES)
    if unknown := [name for name in names if name not in FIRMWARES]:
        print(f"firmware.py: no firmware is called {unknown[0]!r}: choose from "
              f"{', '.join(FIRMWARES)}", file=sys.stderr)  # fmt: skip
        return 2
    try:
        for name in names:
            firmware = FIRMWARES[name]
            WORKSHOP.install(NEEDED + firmware.needed, PACKAGES + firmware.packages)
            print(f"Building MicroPython for {name}, with Sprout in it", flush=True)
            print(build(name))
    except ToolError as error:
        print(f"firmware.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
