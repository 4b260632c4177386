"""Builds the C core: as a native module for a board, or as a shared library for this machine.

    python native_modules/build.py natmod --arch x64 [--frame | --for BLOB ...] [-o OUT.mpy]
    python native_modules/build.py prebuilt [--arch xtensawin]
    python native_modules/build.py host [-o build/libsprout.so]

`pip install ziglang` is the whole toolchain, but for xtensawin, whose own is made by
tools/xtensa_toolchain.py. Everything is written under build/, Zig's caches included, or to the
user's cache where there is no checkout; nothing is compiled again while sources and flags stay the
same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

# Run as a program, this file's folder is on the path and the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from native_modules import mpy

HERE = Path(__file__).resolve().parent


def _build_folder() -> Path:
    if (HERE.parent / "Makefile").exists():
        return HERE.parent / "build"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sprout")


BUILD = _build_folder()
CORE = HERE / "core"
SHELL = HERE / "shell"
FRAME = HERE / "frame"
NATMOD = HERE / "natmod"
PREBUILT = HERE / "prebuilt"
HEADER_BYTES, OPERATOR_BYTES = 128, 64  # of a blob
XTENSA_TOOLS = BUILD / "xtensa" / "bin"


WARNINGS = ("-Wall", "-Wextra", "-Werror")
LANGUAGE = ("-std=c99", "-fno-common", "-fshort-enums", "-fno-sanitize=all")
HOST_FLAGS = ("-O3", "-mcpu=native", "-fPIC", "-shared")
HOST_KERNELS = "x86_64" if platform.machine() == "x86_64" else ""
# Hidden visibility and direct access keep every address relative to the code: no GOT.
NATMOD_FLAGS = (
    "-ffreestanding",
    "-fPIC",
    "-fvisibility=hidden",
    "-fdirect-access-external-data",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-builtin",
    "-fno-jump-tables",
    "-fno-stack-protector",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
)

# Zig's driver takes -Oz for -Os. Addresses of functions that are called more than once go into
# registers: those of other files must not come from a GOT.
LEAN_FLAGS = ("-Xclang", "-Oz", "-Xclang", "-fapply-global-visibility-to-externs")

LINKER_SCRIPT = """\
ENTRY(mpy_entry)
SECTIONS {
  . = IMAGE_BASE;
  .image : { KEEP(*(.text.mpy_entry)) *(.text .text.*) *(.rodata .rodata.* .srodata .srodata.*)
             *(.data.rel.ro .data.rel.ro.*) }
  .data : { *(.data .data.* .sdata .sdata.*) }
  .bss : { *(.bss .bss.* .sbss .sbss.* COMMON) }
  /DISCARD/ : { *(.comment) *(.note .note.*) *(.eh_frame*) *(.ARM.exidx*) *(.ARM.attributes)
                *(.riscv.attributes) *(.llvm_addrsig) }
}
"""
# The same where code cannot run anywhere: it loads addresses from words (.literal) before it, and
# constants lie apart, moved by twice the distance.
XTENSA_SCRIPT = """\
ENTRY(mpy_start)
SECTIONS {
  . = IMAGE_BASE;
  .image : { KEEP(*(.start)) *(.literal .literal.*) *(.text .text.*) }
  . = 2 * IMAGE_BASE + 0x100000;
  .constants : { *(.rodata .rodata.*) *(.data.rel.ro .data.rel.ro.*) }
  .data : { *(.data .data.*) }
  .bss : { *(.bss .bss.* COMMON) }
  /DISCARD/ : { *(.comment) *(.note .note.*) *(.eh_frame*) *(.xtensa.info) }
}
"""
# Far apart in every byte that an address can occupy, and within reach of 32-bit addresses.
BASES = (0x10000, 0x7120000)


class BuildError(Exception):
    """The compiler, the linker or the .mpy writer refused; the message says what and where."""


def _run(command: Sequence[str | Path]) -> None:
    environment = dict(os.environ)
    for kind in ("GLOBAL", "LOCAL"):
        environment[f"ZIG_{kind}_CACHE_DIR"] = str(BUILD / "zig-cache" / kind.lower())
    words = [str(word) for word in command]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        message = result.stderr.strip()
        raise BuildError(message or f"`{' '.join(words)}` failed without a message")


def _zig(args: Sequence[str | Path]) -> None:
    _run([sys.executable, "-m", "ziglang", *args])


def _zig_version() -> str:
    try:
        return metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        raise BuildError(
            f"the C compiler is missing from {sys.executable}: run `pip install ziglang`"
        ) from None


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """How to compile for one of MicroPython's architectures: clang's target and its flags.

    `kernels` is the folder of core/ whose functions replace the plain ones (core/kernels.h), and
    `lean` are the C files whose size counts and whose time does not.
    """

    target: str
    flags: tuple[str, ...] = ()
    kernels: str = ""
    lean: tuple[str, ...] = ()

    common: ClassVar[tuple[str, ...]] = NATMOD_FLAGS
    script: ClassVar[str] = LINKER_SCRIPT
    relocates: ClassVar[bool] = False
    helpers: ClassVar[tuple[Path, ...]] = (NATMOD / "libc.c",)

    @property
    def version(self) -> str:
        return _zig_version()

    def compile(self, source: Path, args: Sequence[str | Path]) -> None:
        is_lean = source.is_relative_to(HERE) and str(source.relative_to(HERE)) in self.lean
        flags = (*self.flags, *LANGUAGE, *self.common, *(LEAN_FLAGS if is_lean else ()))
        _zig(["cc", "-target", self.target, *flags, *args, "-c", source])

    def link(self, args: Sequence[str | Path]) -> None:
        _zig(["ld.lld", *args])


class XtensaToolchain(Toolchain):
    """The same with Debian's gcc, and the assembler and linker of tools/xtensa_toolchain.py."""

    common = tuple(
        flag for flag in NATMOD_FLAGS if flag not in ("-fPIC", "-fdirect-access-external-data")
    )
    script = XTENSA_SCRIPT
    relocates = True
    helpers = (*Toolchain.helpers, NATMOD / "xtensawin.S")
    version = "gcc 12.2.0, binutils 2.40"

    @property
    def missing(self) -> str:
        """What has to be done first, in a sentence; "" if nothing."""
        if shutil.which(f"{self.target}-gcc") and (XTENSA_TOOLS / "ld").exists():
            return ""
        return "the toolchain for xtensawin is missing: run `make natmod-xtensawin` (Debian 12)"

    def compile(self, source: Path, args: Sequence[str | Path]) -> None:
        if self.missing:
            raise BuildError(self.missing)
        compiler = (f"{self.target}-gcc", "-B", f"{XTENSA_TOOLS}/")
        _run([*compiler, *self.flags, *LANGUAGE, *self.common, *args, "-c", source])

    def link(self, args: Sequence[str | Path]) -> None:
        _run([XTENSA_TOOLS / "ld", *args])


ARM_HARD_FLOAT = "thumb-freestanding-eabihf"
LEAN = (
    "core/bind.c",
    "core/execute.c",
    "core/layer.c",
    "core/pool.c",
    "core/rows.c",
    "core/shape.c",
    "core/share.c",
    "core/softmax.c",
    "core/store.c",
    "core/stream.c",
    "shell/shell.c",
)
# Where the code lives in the heap, these too, which cost a step less than 1 % in all. Elsewhere
# some of them would call the compiler's library for shifts of 64 bits.
LEAN_ARMV6M = (
    *LEAN,
    "core/conv.c",
    "core/mean.c",
    "core/update.c",
    "core/armv6m/depthwise.c",
    "core/armv6m/gradient.c",
    "core/armv6m/pointwise.c",
    "core/depthwise.c",
    "core/add.c",
    "core/scale.c",
)
CORES = "-DSPROUT_CORES=2"  # for RP2040 and RP2350, and for this machine to prove it
TOOLCHAINS = {
    "x64": Toolchain("x86_64-linux-musl", ("-O2", "-mcpu=x86_64", CORES)),
    "armv6m": Toolchain(
        "thumb-freestanding-eabi", ("-Os", "-mcpu=cortex_m0plus", CORES), "armv6m", LEAN_ARMV6M
    ),
    "armv7m": Toolchain("thumb-freestanding-eabi", ("-Os", "-mcpu=cortex_m3"), "", LEAN),
    "armv7emsp": Toolchain(
        ARM_HARD_FLOAT, ("-Os", "-mcpu=cortex_m4+vfp4d16sp", CORES), "armv7em", LEAN
    ),
    "armv7emdp": Toolchain(ARM_HARD_FLOAT, ("-Os", "-mcpu=cortex_m7"), "armv7em", LEAN),
    "rv32imc": Toolchain(
        "riscv32-freestanding-none",
        ("-Os", "-mcpu=generic_rv32+m+c+a-f-d", "-mabi=ilp32", CORES),
        "rv32imc",
        LEAN,
    ),
}
XTENSA = XtensaToolchain("xtensa-lx106-elf", ("-Os", "-mabi=windowed"), "xtensawin")
ALL_TOOLCHAINS = {**TOOLCHAINS, "xtensawin": XTENSA}  # TOOLCHAINS: those from pip


def _digest(
    files: Sequence[Path], *settings: object, version: str | None = None, programs: bool = True
) -> str:
    """Of the files, the headers beside them, the settings, the compiler (Zig, or another's
    `version`) and, where `programs`, this program."""
    folders = {NATMOD, SHELL, *(file.parent for file in files)}
    headers = {header for folder in folders for header in folder.glob("*.h")}
    result = hashlib.sha256(repr((settings, version or _zig_version())).encode())
    tools = [HERE / "build.py", HERE / "mpy.py"] if programs else []
    for file in [*files, *sorted(headers), *tools]:
        result.update(f"\n{file.name}\n".encode())
        result.update(file.read_bytes())
    return result.hexdigest()


def _is_current(out: Path, digest: str) -> bool:
    mark = out.with_name(out.name + ".digest")
    return out.exists() and mark.exists() and mark.read_text() == digest


def _deliver(built: Path, out: Path, digest: str) -> None:
    """Moves a finished file into place in one step: another build may be reading the old one."""
    mark = out.with_name(out.name + ".digest")
    mark.unlink(missing_ok=True)
    os.replace(built, out)
    mark.write_text(digest)


def _folder(out: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for temporary files on the file system of the result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=out.parent, prefix=".build-")


def core_sources(kernels: str = "") -> list[Path]:
    """The C files of the core, those of a folder of kernels last, in a fixed order."""
    own = sorted((CORE / kernels).glob("*.c")) if kernels else []
    return [*sorted(CORE.glob("*.c")), *own]


def build_host(out: Path | None = None, plain: bool = False) -> Path:
    """Builds the core for this machine as a shared library for ctypes; returns its path.

    Where `plain`, without the kernels made for this machine: the same bytes, slowly.
    """
    sources = core_sources(HOST_KERNELS)
    if not sources:
        raise BuildError(f"{CORE} holds no .c files: there is no core to build")
    if plain:
        out = out or BUILD / "libsprout_plain.so"
        return build_shared(sources, out, ["-DSPROUT_PLAIN_KERNELS"])
    return build_shared(sources, out or BUILD / "libsprout.so")


def _processor() -> str:
    """What this processor can do, as far as Linux tells: -mcpu=native depends on it, and a folder
    may be seen by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def build_shared(sources: Sequence[Path], out: Path, flags: Sequence[str] = ()) -> Path:
    """Builds C files for this machine as the shared library `out`; returns `out`."""
    flags = [*HOST_FLAGS, *LANGUAGE, *WARNINGS, *flags]
    digest = _digest(sources, flags, _processor())
    if not _is_current(out, digest):
        with _folder(out) as folder:
            library = Path(folder, out.name)
            _zig(["cc", *flags, *sources, "-o", library])
            _deliver(library, out, digest)
    return out


def find_names(files: Sequence[Path]) -> list[str]:
    """Every x of a QSTR(x) in C files, each once, sorted."""
    names = set()
    for file in files:
        lines = file.read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#define QSTR"))
        names |= set(re.findall(r"\bQSTR\((\w+)\)", text))
    return sorted(names)


def compile_objects(
    sources: Sequence[Path], toolchain: Toolchain, folder: Path, defines: Sequence[str] = ()
) -> list[Path]:
    """Compiles C files for one architecture into a folder, which holds `mp_names.h`."""
    flags = [*WARNINGS, *defines]
    for include in (folder, NATMOD, SHELL):
        flags += ["-I", str(include)]
    objects = []
    for i, source in enumerate(sources):
        objects.append(folder / f"{i}-{source.stem}.o")
        toolchain.compile(source, [*flags, "-o", objects[-1]])
    return objects


def link_image(objects: Sequence[Path], arch: str, folder: Path) -> mpy.Image:
    """Links objects into one image whose first byte is where the module starts."""
    toolchain = ALL_TOOLCHAINS[arch]
    script = folder / "image.ld"
    script.write_text(toolchain.script)
    links = []
    for base in BASES:
        program = folder / f"image-{base:x}.elf"
        options = ["-static", "--gc-sections", "--build-id=none", f"--defsym=IMAGE_BASE={base:#x}"]
        try:
            toolchain.link([*options, "-T", script, "-o", program, *objects])
        except BuildError as error:
            pattern = r"undefined (?:symbol: |reference to `)([\w.]+)"
            missing = sorted(set(re.findall(pattern, str(error))))
            if not missing:
                raise
            raise BuildError(
                f"the module uses {', '.join(missing)}, which no C file here defines; a native "
                "module has no C library or compiler helpers: write it or avoid the operation"
            ) from None
        links.append(program.read_bytes())
    return mpy.make_image(links[0], links[1], toolchain.relocates)


def build_module(
    sources: Sequence[Path],
    arch: str,
    out: Path,
    defines: Sequence[str] = (),
    lean: bool = True,
) -> Path:
    """Builds C files, one of which defines `mpy_entry`, as the native module `out`; returns `out`.

    Without `lean` no file is compiled for size alone.  Raises BuildError or
    mpy.MpyError where the sources cannot become a module.
    """
    if arch not in ALL_TOOLCHAINS:
        raise BuildError(f"no toolchain for {arch!r}: choose one of {', '.join(ALL_TOOLCHAINS)}")
    toolchain = ALL_TOOLCHAINS[arch]
    if not lean:
        toolchain = dataclasses.replace(toolchain, lean=())
    sources = [*sources, *toolchain.helpers]
    settings = (arch, toolchain, LANGUAGE, toolchain.common, WARNINGS, toolchain.script, defines)
    digest = _digest(sources, *settings, version=toolchain.version)
    if _is_current(out, digest):
        return out
    with _folder(out) as name:
        folder = Path(name)
        names = find_names([*sources, NATMOD / "mp_runtime.h"])
        constants = "".join(f"    NAME_{name} = {i},\n" for i, name in enumerate(names))
        (folder / "mp_names.h").write_text(f"// Written by build.py.\nenum {{\n{constants}}};\n")
        objects = compile_objects(sources, toolchain, folder, defines)
        image = link_image(objects, arch, folder)
        module = folder / out.name
        module.write_bytes(mpy.write_mpy(image, arch, names))
        # The linked program stays beside the module for its symbols: profiles, disassembly.
        os.replace(folder / f"image-{BASES[0]:x}.elf", out.with_suffix(".elf"))
        _deliver(module, out, digest)
    return out


def module_sources(arch: str) -> list[Path]:
    """The C files of the native module for one architecture."""
    return [*core_sources(ALL_TOOLCHAINS[arch].kernels), SHELL / "shell.c"]


def build_natmod(arch: str, out: Path | None = None, blobs: Sequence[Path] = ()) -> Path:
    """Builds the core and its shell as a native module for one architecture; returns its path.

    Where `blobs` are given, it has only the operators that those need.
    """
    name, defines = f"sprout_core_{arch}", []
    if blobs:
        name += "_for_" + "_".join(blob.stem for blob in blobs)
        bits = {1 << code for blob in blobs for code in operators_of(blob)}
        defines = [f"-DSPROUT_OPERATORS={sum(bits):#x}ull"]
    return build_module(module_sources(arch), arch, out or BUILD / f"{name}.mpy", defines)


def frame_sources() -> list[Path]:
    """The C files of the module of sprout.Frame, for every architecture."""
    return sorted(FRAME.glob("*.c"))


def build_frame(arch: str, out: Path | None = None) -> Path:
    """Builds the kernel of sprout.Frame as a native module of its own; returns its path."""
    return build_module(frame_sources(), arch, out or BUILD / f"sprout_frame_{arch}.mpy")


def find_natmod(arch: str, frame: bool = False) -> Path:
    """The committed module (`frame`: that of sprout.Frame) where it is made of these sources, else
    one built now."""
    path = PREBUILT / "manifest.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    entry = content.get("frames" if frame else "modules", {}).get(arch)
    if entry and entry["source_digest"] == source_digest(arch, frame):
        return PREBUILT / str(entry["file"])
    return build_frame(arch) if frame else build_natmod(arch)


def operators_of(blob: Path) -> set[int]:
    """The operators that a blob needs (host/sprout/blob.py specifies where they stand)."""
    try:
        data = blob.read_bytes()
    except OSError as error:
        raise BuildError(
            f"{blob} cannot be read ({error.strerror}): give a .sprout file"
        ) from None
    if len(data) < HEADER_BYTES or data[:4] != b"SPRT":
        raise BuildError(f"{blob} is no blob: give what 'sprout compile' wrote")
    (first,), (count,) = struct.unpack_from("<I", data, 56), struct.unpack_from("<H", data, 106)
    records = data[first : first + count * OPERATOR_BYTES]
    codes = {code for (code,) in struct.iter_unpack(f"<H{OPERATOR_BYTES - 2}x", records)}
    if len(records) != count * OPERATOR_BYTES or max(codes, default=0) > 63:
        raise BuildError(f"{blob} is damaged: compile it again")
    return codes


def source_digest(arch: str, frame: bool = False) -> str:
    """Of everything a prebuilt module is made of: sources, flags, compiler."""
    toolchain = ALL_TOOLCHAINS[arch]
    sources = [*(frame_sources() if frame else module_sources(arch)), *toolchain.helpers]
    flags = (*LANGUAGE, *toolchain.common)
    settings = (arch, toolchain, flags, LEAN_FLAGS, toolchain.script)
    return _digest(sources, *settings, version=toolchain.version, programs=False)


def build_prebuilt(folder: Path = PREBUILT, arches: Sequence[str] = tuple(TOOLCHAINS)) -> Path:
    """Builds modules into a folder, with a manifest of all there; returns the manifest's path.

    The modules are committed: who has a board need not have a compiler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content["ziglang"] = _zig_version()
    for key, build in (("modules", build_natmod), ("frames", build_frame)):
        entries = content.setdefault(key, {})
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            modules = list(pool.map(build, arches))
        for arch, module in zip(arches, modules, strict=True):
            out = folder / module.name
            out.write_bytes(module.read_bytes())
            toolchain = ALL_TOOLCHAINS[arch]
            entries[arch] = manifest(out) | {
                "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
                "source_digest": source_digest(arch, key == "frames"),
                "target": toolchain.target,
                "flags": " ".join((*toolchain.flags, *LANGUAGE, *toolchain.common)),
            }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def manifest(module: Path) -> dict[str, Any]:
    """What a native module costs: `file_bytes` of flash, `code_bytes` of memory once loaded.

    A board loads the code into the MicroPython heap (ESP32: into instruction RAM), in blocks of
    16 bytes. MicroPython's unix port maps whole pages outside its heap instead, so a simulated
    board must add the `code_bytes` of that board's module to what `gc.mem_alloc()` says.
    """
    info = mpy.read_mpy(module.read_bytes())
    return {
        "file": module.name,
        "abi": f"{info.version}.{info.sub_version}",
        "arch": info.arch,
        "file_bytes": module.stat().st_size,
        "code_bytes": (info.code_bytes + 15) // 16 * 16,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the C core of Sprout.")
    commands = parser.add_subparsers(dest="command", required=True)
    natmod = commands.add_parser("natmod", help="a native module for MicroPython")
    natmod.add_argument("--arch", choices=ALL_TOOLCHAINS, default="x64")
    natmod.add_argument("--for", dest="blobs", type=Path, nargs="+", default=[], metavar="BLOB",
                        help="leave out the operators that these do not need")  # fmt: skip
    natmod.add_argument("--frame", action="store_true", help="the module of sprout.Frame instead")
    natmod.add_argument("-o", "--output", type=Path)
    prebuilt = commands.add_parser("prebuilt", help="the native modules that are committed")
    prebuilt.add_argument("--arch", choices=ALL_TOOLCHAINS, nargs="*", default=list(TOOLCHAINS))
    host = commands.add_parser("host", help="a shared library for this machine")
    host.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(argv)
    try:
        if options.command == "host":
            print(build_host(options.output))
        elif options.command == "prebuilt":
            path = build_prebuilt(arches=options.arch)
            content = json.loads(path.read_text())
            for entry in (*content["modules"].values(), *content["frames"].values()):
                print(f"{entry['file']:26} {entry['file_bytes']:6} bytes, "
                      f"code {entry['code_bytes']}")  # fmt: skip
        elif options.frame:
            print(json.dumps(manifest(build_frame(options.arch, options.output)), indent=2))
        else:
            result = manifest(build_natmod(options.arch, options.output, options.blobs))
            if options.blobs:
                whole = mpy.code_bytes(build_natmod(options.arch))
                result["saved_bytes"] = (whole + 15) // 16 * 16 - result["code_bytes"]
            print(json.dumps(result, indent=2))
    except (BuildError, mpy.MpyError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
