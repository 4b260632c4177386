"""Native modules on emulated processors: the machine code of a ``.mpy``, run and counted.

``emulate`` gives one of ``CPUS`` with a module imported, a ``machine.Machine``.  ``Net`` is a
network on it, with the methods of ``sprout.engine.Engine`` that tests and benches use.

``Processor`` is unicorn's Cortex-M or RISC-V (``qemu.py`` has Xtensa).  It does with a module what
MicroPython's loader does, with a function table whose entries end in Python and objects that are
Python's.  Instructions are counted where the emulator enters a basic block (``emulator.c``), so
counts are exact and cheap.  Cycles follow a model of the Cortex-M0+ with a one-cycle multiplier:
loads and stores 2, of several registers 1 and 1 for each, taken branches 2, everything else 1;
flash that stalls is not in it.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import capstone  # type: ignore[import-untyped]
import numpy as np
import unicorn
from machine import (
    PAGE,
    PATTERN,
    TABLE_ENTRIES,
    Buffer,
    Count,
    Fault,
    File,
    Machine,
    Raised,
    whole_pages,
)
from qemu import Xtensa
from unicorn import arm_const as arm
from unicorn import riscv_const as riscv

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from sprout import blob as blobs  # noqa: E402
from sprout.engine import LEARN, PREDICT, Run  # noqa: E402

from native_modules import build, mpy  # noqa: E402

CODE, SRAM, FLASH, TRAPS = 0x20001230, 0x20100000, 0x10000000, 0x30000000
CODE_ROOM = 1 << 17
STACK_ROOM = 16384
OBJECTS = 0x70000001  # never mapped; handles count up in fours and are no small ints
STREAM_READ, STREAM_IOCTL, STOP = TABLE_ENTRIES, TABLE_ENTRIES + 1, TABLE_ENTRIES + 2
NATIVE_INT = 2
MP_WRITE, MP_RAISE = 2, 4
VIPER = 4
# share_t of layer.h: its bytes, and where the words are that the first core writes.
SHARE, POSTED, SEEN = 384, 12, 24


@dataclass(frozen=True)
class Cpu:
    """A processor: MicroPython's architecture for it, and the emulator's numbers."""

    arch: str
    model: int | None
    family: str = "arm"


CPUS = {
    "cortex-m0": Cpu("armv6m", arm.UC_CPU_ARM_CORTEX_M0),
    "cortex-m3": Cpu("armv7m", arm.UC_CPU_ARM_CORTEX_M3),
    "cortex-m4": Cpu("armv7emsp", arm.UC_CPU_ARM_CORTEX_M4),
    "cortex-m7": Cpu("armv7emdp", arm.UC_CPU_ARM_CORTEX_M7),
    "cortex-m33": Cpu("armv7emsp", arm.UC_CPU_ARM_CORTEX_M33),
    "rv32": Cpu("rv32imc", None, "riscv"),
    "xtensa": Cpu("xtensawin", None, "xtensa"),
}


@dataclass(frozen=True)
class Registers:
    """The emulator's numbers for the registers of the calling convention."""

    args: tuple[int, ...]
    link: int
    stack: int
    pc: int


REGISTERS = {
    "arm": Registers(
        (arm.UC_ARM_REG_R0, arm.UC_ARM_REG_R1, arm.UC_ARM_REG_R2, arm.UC_ARM_REG_R3),
        arm.UC_ARM_REG_LR,
        arm.UC_ARM_REG_SP,
        arm.UC_ARM_REG_PC,
    ),
    "riscv": Registers(
        (
            riscv.UC_RISCV_REG_A0,
            riscv.UC_RISCV_REG_A1,
            riscv.UC_RISCV_REG_A2,
            riscv.UC_RISCV_REG_A3,
            riscv.UC_RISCV_REG_A4,
        ),
        riscv.UC_RISCV_REG_RA,
        riscv.UC_RISCV_REG_SP,
        riscv.UC_RISCV_REG_PC,
    ),
}
RETURN = {"arm": b"\x70\x47", "riscv": b"\x82\x80"}  # bx lr; ret
LOADS = {
    "arm": ("ldr", "str", "vldr", "vstr"),
    "riscv": ("lb", "lh", "lw", "sb", "sh", "sw", "c.lw", "c.sw"),
}
MULTIPLE = ("ldm", "stm", "push", "pop", "vpush", "vpop", "vldm", "vstm", "ldrd", "strd")


class _Counter(ctypes.Structure):
    """``counter_t`` of emulator.c."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("previous", ctypes.c_uint64),
        ("entered", ctypes.c_void_p),
        ("jumped", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("sp", ctypes.c_int32),
        ("lowest", ctypes.c_uint32),
    ]


def _machine(cpu: Cpu) -> tuple[unicorn.Uc, capstone.Cs]:
    if cpu.family == "riscv":
        uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
        mode = capstone.CS_MODE_RISCV32 | capstone.CS_MODE_RISCVC
        return uc, capstone.Cs(capstone.CS_ARCH_RISCV, mode)
    uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    uc.ctl_set_cpu_model(cpu.model)
    mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS
    return uc, capstone.Cs(capstone.CS_ARCH_ARM, mode)


def missing(name: str) -> str:
    """Say in one sentence what a processor cannot be emulated without here; "" if nothing is."""
    return Xtensa.missing() if CPUS[name].family == "xtensa" else ""


def emulate(
    name: str, module: Path | None = None, edge: str = "end", halves: bool = False
) -> Machine:
    """Import a native module, by default the one built from the sources, on a processor.

    Where a program with symbols lies beside it (``.elf``), profiles go by function.  With
    ``halves`` nets believe in a second core, which never does anything: the one there is does both
    halves of a layer, one after the other.
    """
    module = module or build.build_natmod(CPUS[name].arch)
    kind = Xtensa if CPUS[name].family == "xtensa" else Processor
    machine = kind(name, module, edge)
    machine.halves = halves
    return machine


class Processor(Machine):
    """A processor of unicorn's."""

    def __init__(self, name: str, module: Path, edge: str = "end") -> None:
        super().__init__(name, edge)
        self._next = {True: SRAM, False: FLASH}
        self.cpu = CPUS[name]
        self.registers = REGISTERS[self.cpu.family]
        self.thumb = int(self.cpu.family == "arm")
        self.module = module
        data = module.read_bytes()
        info = mpy.read_mpy(data)
        assert info.arch == self.cpu.arch, f"{module} is for {info.arch}"
        image = info.code
        self.uc, self.disassembler = _machine(self.cpu)
        self.names = info.names
        self.globals: dict[str, Any] = {"OSError": OSError}
        self._objects: list[Any] = [None, False, True]
        self._failure: Exception | None = None
        self.stack_used = 0
        self._load(image)
        self._count_from(len(image))
        self._steps: dict[int, tuple[int, int, bool]] = {}
        self._call(CODE, self._context_function(CODE), [])

    # Loading

    def _load(self, image: bytes) -> None:
        self.code, self.code_address = image, CODE
        self.uc.mem_map(CODE & -PAGE, CODE_ROOM, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        self.uc.mem_write(CODE, image)
        self.uc.mem_map(TRAPS, PAGE, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        self.uc.mem_write(TRAPS, RETURN[self.cpu.family] * (PAGE // 2))
        self.uc.hook_add(unicorn.UC_HOOK_CODE, self._on_trap, begin=TRAPS, end=TRAPS + PAGE - 1)
        self.uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_fault)
        # What MicroPython keeps on its own side, which the module only reads.
        table = [self._handle(value) for value in (None, False, True)]
        table += [self._trap(i) for i in range(3, TABLE_ENTRIES)]
        self.table = self._fixed("function table", struct.pack(f"<{TABLE_ENTRIES}I", *table))
        names = struct.pack(f"<{len(self.names)}H", *range(100, 100 + len(self.names)))
        qstrs = self._fixed("names", names)
        objects = self._fixed("objects", struct.pack("<I", self.table))
        stream = [self._trap(STREAM_READ), 0, self._trap(STREAM_IOCTL)]
        self.stream = self._fixed("stream", struct.pack("<3I", *stream))
        self.context = self._fixed("module", struct.pack("<4I", 0, 0, qstrs, objects))
        self.stack = self.place("stack", STACK_ROOM)
        self.frame = self.place("arguments", 64)
        self._wipe_stack()

    def _trap(self, index: int) -> int:
        return TRAPS + 8 * index + self.thumb

    def _fixed(self, name: str, data: bytes) -> int:
        return self.place(name, data, writable=False).address

    def _context_function(self, code: int) -> int:
        """A function object of native code; returns its address."""
        return self._fixed("function", struct.pack("<4I", 0, self.context, 0, code))

    def _map(self, name: str, size: int, writable: bool) -> tuple[int, int]:
        start, room = self._next[writable] + PAGE, whole_pages(size)
        self._next[writable] = start + room
        rights = unicorn.UC_PROT_READ | (unicorn.UC_PROT_WRITE if writable else 0)
        self.uc.mem_map(start, room, rights)
        return start, room

    def peek(self, address: int, size: int) -> bytes:
        return bytes(self.uc.mem_read(address, size))

    def poke(self, address: int, data: bytes) -> None:
        self.uc.mem_write(address, data)

    # Calls

    def call(self, name: str, *args: Any) -> Any:
        return self._call(self._entry[name], self._functions[name], args)

    def _call(self, code: int, function: int, args: Sequence[Any]) -> Any:
        handles = [self._handle(value) for value in args]
        self.uc.mem_write(self.frame.address, struct.pack(f"<{len(handles)}I", *handles))
        values = (function, len(handles), 0, self.frame.address)
        return self._value(self._run(code, values))

    def call_c(self, symbol: str, *words: int) -> int:
        """Call a C function of the module by its name with 32-bit words; return its result."""
        starts = {name: start for name, start, _ in self.symbols}
        return self._run(CODE + starts[symbol], words)

    def _run(self, code: int, words: Sequence[int]) -> int:
        top = self.stack.address + self.stack.size
        for register, value in zip(self.registers.args, words, strict=False):
            self.uc.reg_write(register, value)
        more = words[len(self.registers.args) :]
        top -= len(more) * 4 + 7 & -8
        self.uc.mem_write(top, struct.pack(f"<{len(more)}I", *more))
        self.uc.reg_write(self.registers.stack, top)
        self.uc.reg_write(self.registers.link, self._trap(STOP))
        self._counter.previous = 0
        self._failure = None
        try:
            self.uc.emu_start(code | self.thumb, self._trap(STOP) & ~1)
        except unicorn.UcError as error:
            raise self._failure or Fault(f"{self.name}: {error} at {self._where()}") from None
        if self._failure:
            raise self._failure
        self.stack_used = max(self.stack_used, self._stack_depth())
        return self.uc.reg_read(self.registers.args[0])

    def _where(self) -> str:
        at = self.uc.reg_read(self.registers.pc) - CODE
        link = self.uc.reg_read(self.registers.link) - CODE
        return f"{at:#x} ({self.function_at(at)}), called from {self.function_at(link)}"

    def _wipe_stack(self) -> None:
        self.stack_used = 0
        self.uc.mem_write(self.stack.address, bytes([PATTERN]) * self.stack.size)

    def _stack_depth(self) -> int:
        """Bytes below the caller's stack pointer that were written or set aside."""
        top = self.stack.address + self.stack.size
        written = len(self.read(self.stack).lstrip(bytes([PATTERN])))
        return max(written, top - self._counter.lowest)

    # Objects

    def _handle(self, value: Any) -> int:
        if type(value) is int:
            return (value << 1 | 1) & 0xFFFFFFFF
        for i, known in enumerate(self._objects):
            if known is value:
                return OBJECTS + 4 * i + 1
        self._objects.append(value)
        return OBJECTS + 4 * (len(self._objects) - 1) + 1

    def _value(self, handle: int) -> Any:
        if handle & 1:
            return (handle if handle < 1 << 31 else handle - (1 << 32)) >> 1
        return self._objects[(handle - OBJECTS - 1) // 4]

    # What the module calls

    def _on_fault(self, uc: Any, access: int, address: int, size: int, *_: Any) -> bool:
        kinds = {
            unicorn.UC_MEM_READ_UNMAPPED: "reads",
            unicorn.UC_MEM_WRITE_UNMAPPED: "writes",
            unicorn.UC_MEM_WRITE_PROT: "writes the read-only",
        }
        self._failure = Fault(
            f"{self.name} {kinds.get(access, 'executes')} {size} bytes at {address:#x}, "
            f"{self.near(address)}, in {self._where()}"
        )
        return False

    def _on_trap(self, uc: Any, address: int, size: int, _: Any) -> None:
        index = (address - TRAPS) // 8
        if index == STOP:
            return
        args = [self.uc.reg_read(register) for register in self.registers.args]
        try:
            handler = self._handlers().get(index)
            if handler is None:
                raise Fault(f"{self.name}: the module calls entry {index} of the function table")
            result = handler(*args)
        except Exception as error:  # nothing passes through the emulator
            self._failure = error
            self.uc.emu_stop()
            return
        self.uc.reg_write(self.registers.args[0], result or 0)

    def _handlers(self) -> dict[int, Callable[..., int | None]]:
        return {
            3: self._to_native,
            4: self._from_native,
            7: self._load_global,
            13: self._store_global,
            19: self._new_tuple,
            26: self._new_function,
            27: self._call_object,
            34: self._raise,
            39: self._unpack,
            44: self._check_args,
            55: self._raise_message,
            65: self._get_buffer,
            66: self._get_stream,
            STREAM_READ: self._stream_read,
            STREAM_IOCTL: self._stream_ioctl,
        }

    def _name(self, qstr: int) -> str:
        return self.names[qstr - 100]

    def _words(self, address: int, n: int) -> tuple[int, ...]:
        return struct.unpack(f"<{n}I", self.uc.mem_read(address, 4 * n))

    def _to_native(self, handle: int, kind: int, *_: int) -> int:
        return int(self._value(handle)) & 0xFFFFFFFF

    def _from_native(self, value: int, kind: int, *_: int) -> int:
        signed = value if kind != NATIVE_INT or value < 1 << 31 else value - (1 << 32)
        return self._handle(signed)

    def _load_global(self, qstr: int, *_: int) -> int:
        return self._handle(self.globals.setdefault(self._name(qstr), self._name(qstr)))

    def _store_global(self, qstr: int, handle: int, *_: int) -> None:
        name = self._name(qstr)
        self.globals[name] = None if name == "_code" else self._value(handle)

    def _new_tuple(self, n: int, items: int, *_: int) -> int:
        return self._handle(tuple(self._value(word) for word in self._words(items, n)))

    def _new_function(self, code: int, context: int, defaults: int, *_: int) -> int:
        head, function, _children = self._words(code, 3)
        assert head >> 16 & 0xFF == VIPER and context == self.context and not defaults
        start = function & ~1
        return self._handle((start, self._context_function(start)))

    def _call_object(self, function: int, n: int, args: int, *_: int) -> int:
        made = self._value(function)(*(self._value(word) for word in self._words(args, n)))
        return self._handle(made)

    def _raise(self, exception: int, *_: int) -> None:
        raise Raised(repr(self._value(exception)))

    def _unpack(self, sequence: int, n: int, items: int, *_: int) -> None:
        values = self._value(sequence)
        if not isinstance(values, tuple) or len(values) != n:
            raise Raised(f"ValueError: {n} items expected")
        handles = [self._handle(value) for value in reversed(values)]
        self.uc.mem_write(items, struct.pack(f"<{n}I", *handles))

    def _check_args(self, n_args: int, n_kw: int, signature: int, *_: int) -> None:
        if not signature >> 17 <= n_args <= (signature >> 1 & 0xFFFF) or n_kw:
            raise Raised("TypeError: wrong number of arguments")

    def _raise_message(self, kind: int, message: int, *_: int) -> None:
        text = bytes(self.uc.mem_read(message, 200)).split(b"\0")[0].decode()
        raise Raised(f"{self._value(kind)}: {text}")

    def _get_buffer(self, handle: int, buffer: int, flags: int, *_: int) -> int:
        value = self._value(handle)
        if not isinstance(value, Buffer) or (flags & MP_WRITE and not value.writable):
            if flags & MP_RAISE:
                raise Raised(f"TypeError: {value!r} has no such buffer")
            return 0
        self.uc.mem_write(buffer, struct.pack("<3I", value.address, value.size, ord("B")))
        return 1

    def _get_stream(self, handle: int, *_: int) -> int:
        if not isinstance(self._value(handle), File):
            raise Raised("OSError: no stream")
        return self.stream

    def _stream_read(self, handle: int, data: int, size: int, *_: int) -> int:
        file = self._value(handle)
        part = file.data[file.position : file.position + size]
        file.position += len(part)
        self.uc.mem_write(data, part)
        return len(part)

    def _stream_ioctl(self, handle: int, request: int, argument: int, *_: int) -> int:
        file = self._value(handle)
        position, whence = self._words(argument, 2)
        assert request == 2 and whence & 0xFF == 0
        file.position = position
        return 0

    @property
    def _entry(self) -> dict[str, int]:
        return {k: v[0] for k, v in self.globals.items() if isinstance(v, tuple)}

    @property
    def _functions(self) -> dict[str, int]:
        return {k: v[1] for k, v in self.globals.items() if isinstance(v, tuple)}

    # Counting

    def _count_from(self, size: int) -> None:
        self._entered = np.zeros(size // 2 + 2, np.int64)
        self._jumped = np.zeros(size // 2 + 2, np.int64)
        library = unicorn.unicorn_py3.unicorn.uclib
        read = ctypes.cast(library.uc_reg_read, ctypes.c_void_p).value
        self._counter = _Counter(
            CODE, size, 0, self._entered.ctypes.data, self._jumped.ctypes.data, read,
            self.registers.stack, 0xFFFFFFFF,
        )  # fmt: skip
        self._hook = ctypes.c_size_t()
        callback = ctypes.cast(_counting().count_block, ctypes.c_void_p)
        status = library.uc_hook_add(
            self.uc._uch,
            ctypes.byref(self._hook),
            ctypes.c_int(unicorn.UC_HOOK_BLOCK),
            callback,
            ctypes.c_void_p(ctypes.addressof(self._counter)),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        )
        assert status == 0

    def reset_count(self) -> None:
        self._entered[:] = 0
        self._jumped[:] = 0
        self._counter.lowest = 0xFFFFFFFF
        self._wipe_stack()

    def _decode(self, times: np.ndarray) -> None:
        """Disassemble what was executed: code from every block's start on."""
        for start in np.flatnonzero(self._entered > 0):
            at = int(start) * 2
            while at < len(self.code) and times[at // 2] and at not in self._steps:
                code = self.code[at : at + 4]
                step = next(self.disassembler.disasm(code, CODE + at, 1), None)
                if step is None:
                    raise Fault(f"{self.name}: no instruction at {at:#x}: {code.hex()}")
                text = step.mnemonic
                registers = step.op_str.count(",") + 1
                if text.startswith(MULTIPLE):
                    cost, memory = 1 + registers - int(text.startswith(("ldm", "stm"))), True
                else:
                    memory = text.startswith(LOADS[self.cpu.family])
                    cost = 2 if memory else 1
                self._steps[at] = (step.size, cost, memory)
                at += step.size

    def times(self) -> dict[int, int]:
        """How often each instruction was executed, by its offset in the code."""
        times = np.cumsum(self._entered)
        self._decode(times)
        return {at: int(times[at // 2]) for at in self._steps if times[at // 2]}

    def count(self) -> Count:
        return self._sum(self.times())

    def _sum(self, times: dict[int, int]) -> Count:
        total = Count()
        for at, n in times.items():
            size, cost, memory = self._steps[at]
            taken = int(self._jumped[(at + size) // 2])
            total += Count(n, n * memory, taken, n * cost + taken)
        return total

    def profile(self) -> dict[str, Count]:
        parts: dict[str, dict[int, int]] = {}
        for at, n in self.times().items():
            parts.setdefault(self.function_at(at), {})[at] = n
        sums = {name: self._sum(times) for name, times in parts.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1].cycles))


def _counting() -> ctypes.CDLL:
    source, out = Path(__file__).with_suffix(".c"), build.BUILD / "libcount.so"
    return ctypes.CDLL(str(build.build_shared([source], out)))


class Net:
    """A network on an emulated processor; the methods are those of ``sprout.engine.Engine``.

    ``in_place``: the blob lies in flash that the processor can address, else it is an open file.
    """

    def __init__(
        self,
        blob: bytes,
        processor: Machine | str,
        *,
        in_place: bool = True,
        scratch: int | None = None,
        accumulate: bool = False,
    ) -> None:
        self.cpu = emulate(processor) if isinstance(processor, str) else processor
        self.blob = b = blobs.read(blob, "blob")
        place = self.cpu.place
        program = blob[: b.program_len]
        self.source = place("blob", blob, writable=False) if in_place else File(blob)
        self.program = place("program", program, writable=False)
        self.arena = place("arena", b.arena_len)
        self.trained = place("trained", b.initial.ljust(b.trained_len, b"\0"))
        self.scratch = place("scratch", b.scratch_len if scratch is None else scratch)
        self.accum = place("accumulators", b.accum_len) if accumulate else None
        self.args = place("arguments of run", ctypes.sizeof(Run))
        present = struct.pack("<I", 1).ljust(SHARE, b"\0")
        self.share = place("share", present) if self.cpu.halves else None
        self.pixels = place("pixels", int(np.prod(b.tensors[b.input].shape)))
        self.run = Run()
        self._ask(self.cpu.call("check", self.memory))

    @property
    def memory(self) -> tuple[Any, ...]:
        """The tuple that the module's functions take."""
        return (
            self.source, self.program, self.arena, self.trained, self.scratch, self.accum,
        )  # fmt: skip

    def _ask(self, status: int) -> None:
        if status:
            raise Fault(
                f"{self.cpu.name}: the core returns {status}, operator {self.run.error_op}, "
                f"detail {self.run.detail}"
            )

    @property
    def halved(self) -> int:
        """How many blocks of channels were done in two halves."""
        assert self.share
        return int(struct.unpack_from("<I", self.cpu.read(self.share), POSTED)[0]) // 2

    @contextmanager
    def saved(self) -> Iterator[list[int]]:
        """Collect the cycles that a second core would save by doing its halves meanwhile.

        That is the cheaper half of each block of channels; what the cores cost one another on
        the bus is not in it.
        """
        assert self.share
        at, marks, result = self.share.address, [0], []

        def on_write(uc: Any, access: int, address: int, size: int, value: int, _: Any) -> None:
            if address - at not in (POSTED, SEEN):
                return
            now = self.cpu.count().cycles
            if address - at == SEEN:
                result.append(min(marks[1] - marks[0], now - marks[1]))
            elif value % 2:
                marks[0] = now
            else:
                marks[1:] = [now]

        hook = self.cpu.uc.hook_add(
            unicorn.UC_HOOK_MEM_WRITE, on_write, begin=at, end=at + SHARE - 1
        )
        yield result
        self.cpu.uc.hook_del(hook)

    def set_input(self, x: np.ndarray) -> None:
        """Set the input: int8 values of its shape, or uint8 pixels for the blob's input table."""
        if x.dtype == np.uint8:
            self.cpu.write(self.pixels, np.ascontiguousarray(x).tobytes())
            self._ask(self.cpu.call("set_input", self.memory, self.pixels))
        else:
            data = np.ascontiguousarray(x, np.int8).tobytes()
            self.cpu.write(self.arena, data, self.blob.tensors[self.blob.input].offset)

    def run_ops(
        self,
        first: int,
        last: int,
        mode: int = PREDICT,
        *,
        label: int = 0,
        rate: tuple[int, int] = (1, 0),
        seed: int = 0,
        step: int = 0,
        n_classes: int | None = None,
    ) -> Run:
        """Run operators [first, last); return the call's arguments and results."""
        classes = self.blob.n_classes if n_classes is None else n_classes
        run = Run(first, last, mode, label, classes, *rate, seed, step)
        self.cpu.write(self.args, bytes(run))
        share = [self.share] if self.share else []
        status = self.cpu.call("run", self.memory, self.args, *share)
        self.run = Run.from_buffer_copy(self.cpu.read(self.args))
        self._ask(status)
        return self.run

    def forward(self, learn: bool = False) -> np.ndarray:
        """Run the forward operators; return the output, int8 (h, w, c)."""
        self.run_ops(0, self.blob.n_forward, LEARN if learn else PREDICT)
        return self.tensor(self.blob.logits if learn else self.blob.output)

    def step(
        self,
        x: np.ndarray,
        label: int,
        rate: tuple[int, int],
        seed: int,
        step: int,
        n_classes: int | None = None,
    ) -> float:
        """Learn from one sample; return the loss before the step, in nats."""
        self.set_input(x)
        arguments: dict[str, Any] = {"label": label, "rate": rate, "seed": seed, "step": step}
        run = self.run_ops(0, len(self.blob.ops), LEARN, n_classes=n_classes, **arguments)
        return run.loss_q16 / 65536

    def apply(self) -> None:
        """Move the whole LSBs that the accumulators hold into the parameters."""
        self._ask(self.cpu.call("apply", self.memory))

    def tensor(self, number: int) -> np.ndarray:
        """Return a copy of the int8 tensor ``number`` (h, w, c)."""
        row = self.blob.tensors[number]
        raw = self.cpu.read(self.arena)[row.offset : row.offset + row.nbytes]
        return np.frombuffer(raw, np.int8).reshape(row.shape)

    def digest(self) -> str:
        """Return the SHA-256 of the trained parameters, in hex."""
        return hashlib.sha256(self.cpu.read(self.trained)).hexdigest()
