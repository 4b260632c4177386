"""Makes the assembler and linker for ESP32-class Xtensa processors, from Debian 12 packages alone.

    python tools/xtensa_toolchain.py

Debian's gcc-xtensa-lx106 writes code for the windowed registers of an ESP32, an ESP32-S2 and an
ESP32-S3 when asked to, but the assembler beside it knows the ESP8266 only.  This builds GNU
binutils (from binutils-source) for an Xtensa with windowed registers.  What instructions such a
processor has is a table that its maker publishes for each core: the one for dc233c comes with
QEMU's source package.  Everything lands in build/xtensa/; nothing is left elsewhere but packages.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

from debian import ToolError, Workshop

BUILD = Path(__file__).resolve().parent.parent / "build" / "xtensa"
WORKSHOP = Workshop(BUILD)
TOOLS = BUILD / "bin"
GCC = "xtensa-lx106-elf-gcc"
BINUTILS = Path("/usr/src/binutils/binutils-2.40.tar.xz")
PACKAGES = (
    "gcc-xtensa-lx106",
    "binutils-source",
    "qemu-system-misc",
    "gcc",
    "libc6-dev",
    "make",
    "xz-utils",
    "bison",
    "flex",
    "texinfo",
)
NEEDED = (GCC, "qemu-system-xtensa", "gcc", "make", "xz", "bison", "flex", "makeinfo", BINUTILS)
CORE = "target/xtensa/core-dc233c"
CONFIGURE = (
    "--target=xtensa-elf",
    "--disable-nls",
    "--disable-werror",
    "--disable-gdb",
    "--disable-gdbserver",
    "--disable-sim",
    "--disable-gprof",
    "--disable-gprofng",
    "--disable-plugins",
    "--disable-shared",
    "--disable-separate-code",
    "--without-zstd",
    "--without-debuginfod",
    "MAKEINFO=true",
    "CFLAGS=-O1",
)


def fetch_core() -> Path:
    """Fetches the tables of the dc233c core from QEMU's source package; returns their folder."""
    if found := sorted(BUILD.glob(f"qemu-*/{CORE}")):
        return found[0]
    tar = WORKSHOP.fetch_source("qemu", "bookworm")
    with tarfile.open(tar) as archive:
        for member in archive:
            if CORE + "/" in member.name:
                archive.extract(member, BUILD)
    shutil.rmtree(tar.parent)
    return next(BUILD.glob(f"qemu-*/{CORE}"))


def configure_core(source: Path, core: Path) -> None:
    """Makes a tree of binutils one for the core: its instructions, and what it has of options."""
    modules = (core / "xtensa-modules.c.inc").read_text()
    modules = modules.replace('#include "qemu/osdep.h"', '#include "ansidecl.h"')
    (source / "bfd" / "xtensa-modules.c").write_text(modules)
    isa = (core / "core-isa.h").read_text()
    values = dict(re.findall(r"^#define\s+(XCHAL_\w+)\s+(\w+)", isa, re.MULTILINE))
    config = source / "include" / "xtensa-config.h"
    text = re.sub(
        r"^(#define\s+(XCHAL_\w+)\s+)\w+",
        lambda line: line[1] + values.get(line[2], line[0].split()[-1]),
        config.read_text(),
        flags=re.MULTILINE,
    )
    config.write_text(text)


def build_binutils(core: Path) -> None:
    """Builds the assembler, the linker and the disassembler into build/xtensa/bin/."""
    source, build = BUILD / BINUTILS.name.removesuffix(".tar.xz"), BUILD / "binutils"
    for folder in (source, build):
        shutil.rmtree(folder, ignore_errors=True)
    build.mkdir()
    WORKSHOP.run("tar", "-xf", BINUTILS, "-C", BUILD)
    configure_core(source, core)
    WORKSHOP.run(source / "configure", *CONFIGURE, cwd=build)
    jobs = os.environ.get("JOBS", "1")
    WORKSHOP.run("make", "-j", jobs, "all-gas", "all-ld", "all-binutils", cwd=build)
    TOOLS.mkdir(exist_ok=True)
    for tool, built in (
        ("as", "gas/as-new"),
        ("objdump", "binutils/objdump"),
        ("ld", "ld/ld-new"),  # the last: where it is, all are
    ):
        WORKSHOP.run("strip", "-o", TOOLS / tool, build / built)
    for folder in (source, build):
        shutil.rmtree(folder)


def main() -> int:
    """Makes what is missing; returns the exit status."""
    try:
        WORKSHOP.install(NEEDED, PACKAGES)
        if not (TOOLS / "ld").exists():
            print("Building binutils for xtensawin (once, some minutes)", flush=True)
            build_binutils(fetch_core())
    except ToolError as error:
        print(f"xtensa_toolchain.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
