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
import subprocess
import sys
import tarfile
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build" / "xtensa"
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
NEEDED = (GCC, "qemu-system-xtensa", "gcc", "make", "xz", "bison", "flex", "makeinfo")
PATIENCE = ("-o", "DPkg::Lock::Timeout=300")  # seconds, while another apt is at work
CORE = "target/xtensa/core-dc233c"
SOURCES = (
    "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    "http://deb.debian.org/debian bookworm main\n"
)
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


class ToolchainError(Exception):
    """A step failed; the message says which and what to do."""


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command with its output in build/xtensa/log; raises ToolchainError if it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (BUILD / "log").open("a") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        result = subprocess.run(
            command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if result.returncode:
        tail = (BUILD / "log").read_text(errors="replace").splitlines()[-8:]
        raise ToolchainError(
            f"`{' '.join(map(str, command))}` failed; the end of {BUILD / 'log'}:\n"
            + "\n".join(tail)
        )


def install_packages() -> None:
    """Installs what is missing; raises ToolchainError where that takes another user or system."""
    if all(shutil.which(program) for program in NEEDED) and BINUTILS.exists():
        return
    install = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ToolchainError(f"Debian 12 packages are missing: run `{install}` as root")
    run("apt-get", "update", *PATIENCE)
    run(*install.split(), "--yes", *PATIENCE)
    if not BINUTILS.exists():
        raise ToolchainError(f"the packages bring no {BINUTILS}: this takes Debian 12")


def fetch_core() -> Path:
    """Fetches the tables of the dc233c core from QEMU's source package; returns their folder."""
    if found := sorted(BUILD.glob(f"qemu-*/{CORE}")):
        return found[0]
    apt = BUILD / "apt"
    (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(SOURCES)
    options = [
        *("-o", f"Dir::Etc::SourceList={apt / 'sources.list'}"),
        *("-o", "Dir::Etc::SourceParts=-"),
        *("-o", f"Dir::State::Lists={apt / 'lists'}"),
        *("-o", f"Dir::Cache={apt}"),
        *("-o", f"APT::Sandbox::User={os.environ.get('USER', 'root')}"),
    ]
    run("apt-get", "update", *options)
    run("apt-get", "source", "--download-only", "--tar-only", *options, "qemu", cwd=apt)
    tar = next(apt.glob("qemu_*.orig.tar.xz"))
    with tarfile.open(tar) as archive:
        for member in archive:
            if CORE + "/" in member.name:
                archive.extract(member, BUILD)
    shutil.rmtree(apt)
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
    run("tar", "-xf", BINUTILS, "-C", BUILD)
    configure_core(source, core)
    run(source / "configure", *CONFIGURE, cwd=build)
    jobs = os.environ.get("JOBS", "1")
    run("make", "-j", jobs, "all-gas", "all-ld", "all-binutils", cwd=build)
    TOOLS.mkdir(exist_ok=True)
    for tool, built in (
        ("as", "gas/as-new"),
        ("objdump", "binutils/objdump"),
        ("ld", "ld/ld-new"),  # the last: where it is, all are
    ):
        run("strip", "-o", TOOLS / tool, build / built)
    for folder in (source, build):
        shutil.rmtree(folder)


def main() -> int:
    """Makes what is missing; returns the exit status."""
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        install_packages()
        if not (TOOLS / "ld").exists():
            print("Building binutils for xtensawin (once, some minutes)", flush=True)
            build_binutils(fetch_core())
    except ToolchainError as error:
        print(f"xtensa_toolchain.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
