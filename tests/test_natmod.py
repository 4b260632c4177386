"""The toolchain for native modules: C through zig and our .mpy writer into MicroPython."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from native_modules import build, mpy

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests" / "natmod" / "probe.c"
MICROPYTHON = shutil.which("micropython") or str(Path(sys.executable).with_name("micropython"))

ENTRY = """
#include "mp_runtime.h"
MP_ENTRY {
    return (mp_obj_t)((uintptr_t)self + n_args + n_kw + (uintptr_t)args + %s);
}
"""


@pytest.fixture(scope="module")
def probe() -> Path:
    """The probe module for this machine."""
    return build.build_module([PROBE], "x64", build.BUILD / "tests" / "probe.mpy")


def run(folder: Path, script: str) -> str:
    """What a script prints in MicroPython with a folder on its module path."""
    code = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{script}"
    result = subprocess.run(
        [MICROPYTHON, "-X", "heapsize=256k", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def raised(folder: Path, call: str) -> str:
    """The exception a call of the probe raises in MicroPython, as text."""
    script = (
        f"try:\n    import probe\n    print({call})\nexcept Exception as e:\n    print(repr(e))"
    )
    return run(folder, script)


def build_c(tmp_path: Path, text: str, arch: str = "x64") -> Path:
    """Builds one C file, given as text, as a module."""
    source = tmp_path / "case.c"
    source.write_text(text)
    return build.build_module([source], arch, tmp_path / "case.mpy")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("probe.ABI", "7"),
        ("probe.numbers(40, 2)", "(42, 40, True)"),
        ("probe.numbers(-1, 0)", "(-1, 4294967295, True)"),
        ("probe.numbers(0, 1 << 62)", "(4611686018427387904, 0, False)"),
        ("probe.many(*range(8))", "140"),
        ("probe.many(*range(10))", "285"),
        ("probe.first_byte('zero')", "(4, 122)"),
        ("probe.first_byte(b'')", "(0, -1)"),
        ("[probe.square(i) for i in range(4)]", "[0, 1, 4, 9]"),
    ],
)
def test_values(probe: Path, call: str, expected: str) -> None:
    assert run(probe.parent, f"import probe\nprint({call})") == expected


def test_writes_a_buffer_in_place(probe: Path) -> None:
    script = "import probe\nb = bytearray(range(40))\nprint(probe.shift(b, 17), list(b))"
    assert run(probe.parent, script) == f"True {[*range(17), *range(23)]}"


def test_calls_back_into_python(probe: Path) -> None:
    script = """
import probe
class Box:
    value = 'box'
got = []
print(probe.callback(lambda a, b: a + b, got, Box()), got)
"""
    assert run(probe.parent, script) == "box [42]"


def test_reads_a_file_without_allocating(probe: Path, tmp_path: Path) -> None:
    data = bytes(i * 7 % 256 for i in range(5000))
    (tmp_path / "weights").write_bytes(data)
    script = f"""
import micropython, probe
f = open({str(tmp_path / "weights")!r}, 'rb')
b = bytearray(100)
part = memoryview(b)[10:20]
micropython.heap_lock()
probe.read_at(f, 4900, b)
probe.read_at(f, 3, part)
micropython.heap_unlock()
print(bytes(b).hex())
"""
    expected = data[4900:4910] + data[3:13] + data[4920:]
    assert run(probe.parent, script) == expected.hex()


def test_reads_a_littlefs_file_and_reports_its_end(probe: Path) -> None:
    script = """
import probe, vfs
class Flash:
    def __init__(self):
        self.data = bytearray(64 * 512)
    def readblocks(self, n, buf, off=0):
        at = n * 512 + off
        buf[:] = self.data[at:at + len(buf)]
    def writeblocks(self, n, buf, off=0):
        at = n * 512 + off
        self.data[at:at + len(buf)] = buf
    def ioctl(self, op, arg):
        return 64 if op == 4 else 512 if op == 5 else 0
flash = Flash()
vfs.VfsLfs2.mkfs(flash)
vfs.mount(flash, '/flash')
with open('/flash/w', 'wb') as f:
    for i in range(40):
        f.write(bytes([i]) * 100)
f = open('/flash/w', 'rb')
b = bytearray(4)
probe.read_at(f, 1298, b)
print(list(b))
try:
    probe.read_at(f, 3998, b)
except OSError as e:
    print(e)
"""
    assert run(probe.parent, script).splitlines() == ["[12, 12, 13, 13]", "[Errno 5] EIO"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("probe.fail()", "MemoryError('no room for a test',)"),
        ("probe.shift(bytearray(4), 3)", "ValueError('the shift exceeds half of the buffer: give"),
        ("probe.shift(b'1234', 1)", "TypeError("),
        ("probe.first_byte(3)", "TypeError("),
        ("probe.numbers('1', 2)", "TypeError("),
        ("probe.many(1, 2, 3)", "TypeError("),
        ("probe.many(*range(11))", "TypeError("),
        ("probe.numbers(1, b=2)", "TypeError("),
        ("probe.read_at(3, 0, bytearray(1))", "OSError("),
    ],
)
def test_raises(probe: Path, call: str, error: str) -> None:
    assert raised(probe.parent, call).startswith(error)


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (1, 5, "incompatible .mpy file"),
        (2, mpy.ARCHES["x64"] << 2 | 2, "incompatible .mpy file"),
        (2, mpy.ARCHES["armv6m"] << 2 | 3, "incompatible .mpy arch"),
    ],
)
def test_micropython_refuses_another_abi(
    probe: Path, tmp_path: Path, at: int, value: int, error: str
) -> None:
    data = bytearray(probe.read_bytes())
    data[at] = value
    (tmp_path / "probe.mpy").write_bytes(data)
    assert error in raised(tmp_path, "probe.ABI")


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_refuses_relocations(tmp_path: Path, arch: str) -> None:
    table = "static const void *const table[2] = { &table, table + 1 };\n"
    with pytest.raises(mpy.MpyError, match="needs a relocation: table holds an absolute address"):
        build_c(tmp_path, table + ENTRY % "(uintptr_t)table[n_args]", arch)


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_builds_the_probe_for_every_architecture(tmp_path: Path, arch: str) -> None:
    module = build.build_module([PROBE], arch, tmp_path / "probe.mpy")
    info = mpy.read_mpy(module.read_bytes())
    assert (info.version, info.sub_version, info.arch) == (6, 3, arch)
    assert {"append", "numbers", "ValueError", "_code"} <= set(info.names)
    assert mpy.code_bytes(module) == info.code_bytes < 4096


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("unsigned counter;" + ENTRY % "counter++", r"zeroed variables \(counter\)"),
        ("unsigned counter = 3;" + ENTRY % "counter++", r"\.data variables \(counter\)"),
        ("unsigned away(void);" + ENTRY % "away()", "uses away, which no C file"),
        ("int nothing;", "mpy_entry|empty"),
        ("int typo = ;", "case.c:1"),
    ],
)
def test_refuses_what_a_module_cannot_hold(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises((mpy.MpyError, build.BuildError), match=error):
        build_c(tmp_path, text)


def test_names_missing_compiler_helpers(tmp_path: Path) -> None:
    divide = ENTRY % "(uintptr_t)self / n_args"
    with pytest.raises(build.BuildError, match="uses __aeabi_uidiv, which no C file"):
        build_c(tmp_path, divide, "armv6m")


@pytest.mark.parametrize("arch", build.TOOLCHAINS)
def test_lean_files_are_those_of_the_module(arch: str) -> None:
    files = {str(path.relative_to(build.HERE)) for path in build.module_sources(arch)}
    assert set(build.TOOLCHAINS[arch].lean) <= files


def test_an_unchanged_module_is_not_built_again(probe: Path) -> None:
    before = probe.stat().st_mtime_ns
    assert build.build_module([PROBE], "x64", probe) == probe
    assert probe.stat().st_mtime_ns == before


def test_the_host_library_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triple.c").write_text("int triple(int x);\nint triple(int x) { return 3 * x; }\n")
    monkeypatch.setattr(build, "CORE", tmp_path)
    library = ctypes.CDLL(str(build.build_host(tmp_path / "libtest.so")))
    assert library.triple(-5) == -15


def test_the_real_module_builds_and_imports(tmp_path: Path) -> None:
    module = build.build_natmod("x64")
    shutil.copy(module, tmp_path / "sprout_core.mpy")
    assert run(tmp_path, "import sprout_core\nprint(isinstance(sprout_core.ABI, int))") == "True"
    assert build.manifest(module)["abi"] == "6.3"
