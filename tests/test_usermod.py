"""Sprout in firmware: against a contract everywhere, in real MicroPython where that is built.

``usermod/`` holds the contract: what the shell needs of MicroPython's headers.  `make firmware`
builds real firmware from MicroPython's sources, for this machine and for processors that QEMU
emulates.  It trains a real network here, its frozen weights once in place and once streamed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_device as device
import test_frame as frames
from sprout import compile as compiler
from sprout.board import sim
from sprout.engine import Engine

from native_modules import build, mpy

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "tests" / "usermod"
USERMOD = ROOT / "native_modules" / "usermod"
FIRMWARE = ROOT / "build" / "firmware"
STEPS, RATE, SEED = 6, 0.003, 7

# How QEMU runs a firmware, where memory is free for a net and its pictures, what sort of native
# code the firmware takes and which of the committed modules that is.
MACHINES = {
    "cortex-m0": (
        "qemu-system-arm -machine microbit -global nrf51-soc.flash-size=1048576 "
        "-global nrf51-soc.sram-size=262144",
        0x70000,
        "armv6m",
        "armv6m",
    ),
    "cortex-m4": ("qemu-system-arm -machine mps2-an386", 0x21000000, "armv7em", "armv7m"),
    "rv32": (
        "qemu-system-riscv32 -machine virt -bios none", 0x84000000, "rv32imc", "rv32imc",
    ),
}  # fmt: skip


def firmware(name: str) -> Path:
    """The folder of a firmware, brought up to date; skips where it was never built."""
    folder = FIRMWARE / name
    if not list(folder.glob("firmware.elf")) + list(folder.glob("micropython")):
        pytest.skip(f"NOT TESTED: no firmware for {name}, run `make firmware` (Debian 12)")
    command = [sys.executable, ROOT / "tools" / "firmware.py", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


# Against the contract


def make_variables() -> tuple[list[Path], str]:
    """What micropython.mk adds to a port: C files and flags."""
    makefile = (
        f"USERMOD_DIR := {USERMOD}\nBUILD := b\ninclude {USERMOD}/micropython.mk\n"
        "show: ; @echo '$(SRC_USERMOD_C) $(SRC_USERMOD_LIB_C)'; echo '$(CFLAGS_USERMOD)'\n"
    )
    command = ["make", "-s", "-f", "-", "show"]
    done = subprocess.run(command, input=makefile, capture_output=True, text=True, check=True)
    sources, flags = done.stdout.splitlines()
    return [Path(source) for source in sources.split()], flags


def compile_all(sources: list[Path], arch: str, folder: Path, *flags: str) -> list[Path]:
    """Compiles C files against the contract into a new folder; returns the objects in order."""
    folder.mkdir()
    shells = [build.SHELL / "shell.c", build.FRAME / "module.c"]
    names = [*build.find_names(shells), "sprout_core", "sprout_frame", "__name__"]
    rows = "".join(f"    MP_QSTR_{name},\n" for name in names)
    (folder / "names.h").write_text(f"enum {{\n{rows}}};\n")
    objects = [folder / f"{i}.o" for i in range(len(sources))]
    for source, out in zip(sources, objects, strict=True):
        includes = (f"-I{CONTRACT}", f"-I{folder}", f"-I{USERMOD}")
        options = [*build.WARNINGS, *includes, *flags, "-o", out]
        build.ALL_TOOLCHAINS[arch].compile(source, options)
    return objects


def link(objects: list[Path], arch: str, folder: Path) -> set[str]:
    """Links with nothing but what the contract names; returns the functions and tables."""
    functions = re.findall(r"\b(mp_\w+)\(", (CONTRACT / "functions.h").read_text())
    externals = [*functions, "mp_type_module", "mp_type_dict", "mp_type_fun_builtin_var"]
    known = [f"--defsym={name}=0x1000" for name in [*externals, "mp_const_none_obj"]]
    out = folder / "module.elf"
    entries = ["-e", "sprout_core_module", "-u", "sprout_frame_module"]
    options = ["--gc-sections", *entries, *known, "-o", out]
    build.ALL_TOOLCHAINS[arch].link([*options, *objects])
    return functions_of(out)


def functions_of(program: Path) -> set[str]:
    return {symbol.name for symbol in mpy.read_elf(program.read_bytes()).symbols if symbol.size}


def test_make_lists_every_source_and_one_folder_of_headers():
    sources, flags = make_variables()
    own = [*build.CORE.rglob("*.c"), *build.FRAME.glob("*.c"), build.SHELL / "shell.c"]
    assert sorted(sources) == sorted(own)
    assert flags == f"-I{USERMOD}"


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_needs_nothing_but_the_contract(arch, tmp_path):
    """Of all kernels, those for the processor are in it and no others, unless it wants none."""
    sources, _ = make_variables()
    objects = compile_all(sources, arch, tmp_path / "all")
    helpers = compile_all(list(build.Toolchain.helpers), arch, tmp_path / "helpers")
    kernels = [source for source in sources if source.parent.parent == build.CORE]
    own = build.ALL_TOOLCHAINS[arch].kernels
    plain, fitting = [*helpers], [*helpers]
    for source, out in zip(sources, objects, strict=True):
        plain += [] if source in kernels else [out]
        fitting += [out] if source not in kernels or source.parent.name == own else []
    linked = link([*helpers, *objects], arch, tmp_path)
    assert {"sprout_core_module", "sprout_run", "sp_conv_block", "sprout_frame"} <= linked
    assert linked == link(fitting, arch, tmp_path)
    assert (linked == link(plain, arch, tmp_path)) == (not own)
    empty = compile_all(kernels, arch, tmp_path / "empty", "-DSPROUT_PLAIN_KERNELS")
    assert link([*plain, *empty], arch, tmp_path) == link(plain, arch, tmp_path)


def test_the_contract_is_that_of_the_real_headers(tmp_path):
    folder = firmware("unix")
    top = next(FIRMWARE.glob("micropython-*"))
    source = tmp_path / "contract.c"
    source.write_text(
        f'#include "py/runtime.h"\n#include "py/stream.h"\n#include "{CONTRACT / "functions.h"}"\n'
    )
    port = top / "ports" / "unix"
    includes = [f"-I{at}" for at in (port, port / "variants" / "standard", top, folder)]
    command = ["gcc", "-std=gnu99", "-Werror", *includes, "-fsyntax-only", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source.write_text(source.read_text() + "mp_obj_t mp_load_global(const char *name);\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode


def test_architectures_have_the_numbers_of_the_real_headers():
    """In sys.implementation._mpy, and in the files that build.py writes."""
    firmware("unix")
    (header,) = FIRMWARE.glob("micropython-*/py/persistentcode.h")
    names = re.findall(r"^ +MP_NATIVE_ARCH_(\w+)\b", header.read_text(), re.MULTILINE)
    assert (names[0], names[-1]) == ("NONE", "DEBUG")
    real = {name.lower(): number for number, name in enumerate(names[:-1])}
    assert mpy.ARCHES.items() <= real.items()
    trouble = (sim.DEVICE / "trouble.py").read_text()
    table = re.search(r'_ARCHES = const\(\n    "(.*)"', trouble)[1].split()
    assert table[: len(real)] == ["-", *list(real)[1:]]
    modules = re.search(r'_MODULES = const\("(.*)"\)', trouble)[1].split()
    assert sorted(modules) == sorted(build.ALL_TOOLCHAINS)


# In real MicroPython


@pytest.fixture(scope="module")
def task(person_model):
    """A blob of the project's own network, pictures, labels, and what the host makes of them."""
    data = compiler.compile_model(person_model, "b6,20").to_bytes()
    engine = Engine(data)
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (STEPS, 96, 96, 3), np.uint8), rng.integers(0, 2, STEPS)
    before = engine.digest()
    device.train(engine, x, y, RATE, SEED)
    assert engine.digest() != before
    return data, x, y, engine.digest()


def run_unix(folder: Path, code: str) -> list[str]:
    """The lines that a program prints in the unix firmware, with no other Sprout on its path."""
    (folder / "main.py").write_text(code)
    program = firmware("unix") / "micropython"
    done = subprocess.run(
        [program, "-X", "heapsize=1m", "main.py"],
        cwd=folder, env={"MICROPYPATH": ".frozen"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("source", ["'net.sprout'", "open('net.sprout', 'rb').read()"])
def test_unix_firmware_learns_what_the_host_learns(source, task, tmp_path):
    data, x, y, digest = task
    (tmp_path / "net.sprout").write_bytes(data)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    (tmp_path / "y.bin").write_bytes(bytes(y.tolist()))
    code = device.learn_code(source, RATE, SEED)
    code += "print(net.memory()['native'], hasattr(sprout.native.core, '__file__'))\n"
    *_, learned, parts = run_unix(tmp_path, code)
    assert (learned, parts) == (digest, "0 False")


def test_unix_firmware_scales_what_pillow_scales(tmp_path):
    size, format, shape = (20, 14), "rgb565be", (9, 8, 3)
    pixels = frames.a_frame(size, format)
    (tmp_path / "x.bin").write_bytes(pixels)
    code = f"""
import sprout, sprout_frame
class Net:
    shape, input, name = {shape}, bytearray({9 * 8 * 3}), "net"
print(bytes(sprout.Frame(20, 14, {format!r}, Net)(open("x.bin", "rb").read())).hex())
print(hasattr(sprout_frame, "__file__"))
"""
    expected = frames.with_pillow(frames.pixels_of(pixels, size, format), shape)
    assert run_unix(tmp_path, code) == [expected.tobytes().hex(), "False"]


def test_firmware_answers_what_the_native_module_answers(tmp_path):
    """All that is in the module, and what every wrong call raises."""
    calls = """
import sprout_core as core
from array import array
b, w = bytearray(128), array("i", bytes(64))
memory = (b, b, b, b, b, None)
print(sorted(name for name in dir(core) if name[0] != "_"), core.ABI, core.FORMAT)
for call in (
    lambda: core.check(memory),
    lambda: core.check(memory, 1),
    lambda: core.check(memory=memory),
    lambda: core.check(memory[1:]),
    lambda: core.check(list(memory)),
    lambda: core.check((b, b, b"", b, b, None)),
    lambda: core.check((b, b, b, b, b, 3)),
    lambda: core.check((3, b, b, b, b, None)),
    lambda: core.check(5),
    lambda: core.run(memory, w),
    lambda: core.run(memory, w[:12]),
    lambda: core.run(memory, memoryview(bytearray(64))[1:]),
    lambda: core.apply(memory),
    lambda: core.set_input(memory, b),
    lambda: core.set_input(memory, None),
    lambda: core.probabilities(memory, 16, 0, w),
    lambda: core.probabilities(memory, 17, 0, w),
    lambda: core.probabilities(memory, -1, 0, w),
    lambda: core.probabilities(memory, "1", 0, w),
    lambda: core.probabilities(memory, 1, 1 << 40, w),
):
    try:
        print(call())
    except Exception as e:
        print(type(e), "" if isinstance(e, TypeError) else e)
"""
    answers = run_unix(tmp_path, calls)
    assert answers == device.run(tmp_path, calls)
    assert len(answers) == 21
    assert sum("Error" in answer for answer in answers) >= 12


QEMU_PROGRAM = """
import io, struct, sys, uctypes, vfs

def at(offset, n):
    return uctypes.bytearray_at(BASE + offset, n)

class File(io.IOBase):
    def __init__(self, offset, n):
        self.data, self.n, self.at = memoryview(at(offset, n)), n, 0
    def seek(self, at, whence=0):
        self.at = at + (0, self.at, self.n)[whence]
        return self.at
    def readinto(self, buffer):
        n = min(len(buffer), self.n - self.at)
        buffer[:n] = self.data[self.at:self.at + n]
        self.at += n
        return n
    def ioctl(self, request, address):
        if request == 2:
            seek = uctypes.bytearray_at(address, 8)
            seek[:4] = struct.pack("i", self.seek(*struct.unpack("ii", seek)))
        return 0

class Flash:
    def mount(self, *_):
        pass
    def stat(self, path):
        if path.lstrip("/") not in FILES:
            raise OSError(2)
        return (0x8000,) + 9 * (0,)
    def open(self, path, mode):
        return File(*FILES[path.lstrip("/")])

vfs.mount(Flash(), "/flash")
if WAY == "native":
    sys.path[:] = ["/flash", ".frozen"]
    import native
    sys.modules["sprout_core"] = native
import sprout
from sprout.trouble import needed
net = sprout.load(at(*FILES["net.sprout"]) if WAY == "in place" else "/flash/net.sprout")
net.rate, net.seed = RATE, SEED
for i, label in enumerate(LABELS):
    net.learn(at(FILES["x"][0] + i * FRAME, FRAME), label)
print(WAY, hasattr(sprout.native.core, "__file__"), net.memory()["program"] > 0, net.digest())
print(needed(sys.implementation))
"""


def run_qemu(name: str, folder: Path, files: dict[str, bytes], settings: dict[str, object]) -> str:
    """What the program above prints in a firmware; QEMU puts all into memory at one place."""
    elf = firmware(name) / "firmware.elf"
    command, base, _, _ = MACHINES[name]
    image, places = b"", {}
    for file, content in files.items():
        places[file] = len(image), len(content)
        image += content + bytes(-len(content) % 4)
    constants = {"BASE": base, "FILES": places, **settings}
    program = "".join(f"{key} = {value!r}\n" for key, value in constants.items()) + QEMU_PROGRAM
    (folder / "image.bin").write_bytes(image + program.encode())
    text = f"uctypes.bytearray_at({base + len(image)}, {len(program)})"
    lines = f"import machine, uctypes; exec(str({text}, 'utf8'))\r\nmachine.reset()\r\n"
    loader = f"loader,file={folder / 'image.bin'},addr={base:#x},force-raw=on"
    done = subprocess.run(
        [
            *command.split(), "-nographic", "-monitor", "null", "-semihosting", "-serial", "stdio",
            "-kernel", elf, "-device", loader,
        ],
        input=lines, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", ["in place", "streamed", "native"])
@pytest.mark.parametrize("name", MACHINES)
def test_firmware_on_an_emulated_board_learns_what_the_host_learns(name, way, task, tmp_path):
    """The net lies in memory, as in a mapped flash, or in a file without an address.

    Or MicroPython's own loader takes the committed native module, as on stock firmware.
    """
    *_, takes, module = MACHINES[name]
    data, x, y, digest = task
    files = {"net.sprout": data, "x": x.tobytes()}
    if way == "native":
        files["native.mpy"] = (build.PREBUILT / f"sprout_core_{module}.mpy").read_bytes()
    settings = {"FRAME": x[0].size, "LABELS": y.tolist(), "RATE": RATE, "SEED": SEED, "WAY": way}
    printed = run_qemu(name, tmp_path, files, settings)
    expected = f"{way} {way == 'native'} {way != 'in place'} {digest}"
    assert expected in printed.splitlines(), printed
    assert f"takes .mpy 6.3 for {takes}, copy sprout_core_{module}.mpy to" in printed


def test_cmake_builds_it(tmp_path):
    """As a port does, with the real usermod.cmake and headers, for a Cortex-M0."""
    generated = firmware("cortex-m0")
    top = next(FIRMWARE.glob("micropython-*"))
    (tmp_path / "main.c").write_text(
        "extern const char sprout_core_module;\nconst void *keep;\n"
        "int main(void) {\n    keep = &sprout_core_module;\n    return 0;\n}\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(f"""\
cmake_minimum_required(VERSION 3.13)
project(port C)
set(USER_C_MODULES {USERMOD}/micropython.cmake)
include({top}/py/usermod.cmake)
add_executable(port main.c)
target_include_directories(port PRIVATE {top}/ports/qemu {top} {generated})
target_link_libraries(port usermod)
""")
    built = tmp_path / "build"
    settings = {
        "CMAKE_SYSTEM_NAME": "Generic",
        "CMAKE_C_COMPILER": "arm-none-eabi-gcc",
        "CMAKE_C_FLAGS": "-mthumb -mcpu=cortex-m0 -Os -DQEMU_SOC_NRF51 -Wall -Werror",
        "CMAKE_EXE_LINKER_FLAGS": "-nostartfiles -Wl,--unresolved-symbols=ignore-all",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
    }
    options = [f"-D{key}={value}" for key, value in settings.items()]
    for command in (
        ["cmake", "-S", tmp_path, "-B", built, *options],
        ["cmake", "--build", built],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    names = functions_of(built / "port")
    assert {"sprout_core_module", "sp_requantize_sums"} <= names  # the latter is armv6m's own
