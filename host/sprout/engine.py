"""The C core, called from CPython: the bytes a board computes, at the speed of this machine."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from . import blob as blobs
from .graph import SproutError
from .places import ROOT

PREDICT, LEARN, CHECK = 0, 1, 2
NUMPY_TYPES = {"int8": np.int8, "int16": np.int16, "int32": np.int32, "bits": np.uint8}
MOST_CLASSES = 1024  # of which the core computes probabilities
ROOMY = 1 << 16  # bytes of scratch that let most layers be worked on in one tile

_READ = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32
)


class _Memory(ctypes.Structure):
    """``sprout_memory_t`` of sprout.h."""

    _fields_ = [
        ("blob", ctypes.c_void_p),
        ("blob_len", ctypes.c_uint32),
        ("read", _READ),
        ("read_ctx", ctypes.c_void_p),
        ("program", ctypes.c_void_p),
        ("program_len", ctypes.c_uint32),
        ("arena", ctypes.c_void_p),
        ("arena_len", ctypes.c_uint32),
        ("trained", ctypes.c_void_p),
        ("trained_len", ctypes.c_uint32),
        ("scratch", ctypes.c_void_p),
        ("scratch_len", ctypes.c_uint32),
        ("accum", ctypes.c_void_p),
        ("accum_len", ctypes.c_uint32),
        ("share", ctypes.c_void_p),
    ]

    def put(self, name: str, buffer: np.ndarray) -> None:
        """Point a field and its length at a numpy buffer, which the caller keeps alive."""
        setattr(self, name, buffer.ctypes.data)
        setattr(self, name + "_len", buffer.nbytes)


class Run(ctypes.Structure):
    """``sprout_run_t`` of sprout.h: arguments and results of one call."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "first_op", "last_op", "mode", "label", "n_classes", "rate_mantissa",
            "rate_exponent", "seed", "step", "loss_q16", "reruns", "error_op", "detail",
        )
    ]  # fmt: skip


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """Load the core from ``path``, or build it for this machine where its sources changed.

    Raises SproutError if there are no sources beside this package or they do not compile.
    """
    return _load(str(path or _build()))


@functools.cache
def _build() -> Path:
    if not (ROOT / "native_modules" / "build.py").exists():
        raise SproutError(f"The C core is not in {ROOT / 'native_modules'}: install sprout again.")
    from native_modules import build

    try:
        return build.build_host()
    except build.BuildError as error:
        raise SproutError(f"The C core does not build for this machine: {error}") from None


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    memory, i32 = ctypes.POINTER(_Memory), ctypes.c_int32
    library.sprout_check.argtypes = [memory]
    library.sprout_run.argtypes = [memory, ctypes.POINTER(Run)]
    library.sprout_apply.argtypes = [memory]
    library.sprout_input.argtypes = [memory, ctypes.c_void_p, ctypes.c_uint32, i32]
    library.sprout_probabilities.argtypes = [memory, i32, i32, ctypes.c_void_p]
    return library


class Engine:
    """A net in memory: predicts and learns.

    ``blob`` is the bytes of a blob or its path.  With ``in_place`` the weights are used where the
    blob lies, else they pass through the scratch as on a board that reads them from a file.
    ``scratch`` is the scratch's length in bytes: None for a generous one, results do not depend on
    it.  With ``accumulate`` steps gather until ``apply``.

    ``arena``, ``trained``, ``scratch`` and ``accum`` (or None) are the buffers, uint8; ``run``
    holds the arguments and results of the last call.  Raises SproutError for a blob that is
    damaged and MemoryError for a scratch that is too small.
    """

    def __init__(
        self,
        blob: bytes | bytearray | memoryview | Path | str,
        *,
        in_place: bool = True,
        scratch: int | None = None,
        accumulate: bool = False,
        library: Path | None = None,
    ) -> None:
        self.name = str(blob) if isinstance(blob, Path | str) else "blob"
        data = Path(blob).read_bytes() if isinstance(blob, Path | str) else bytes(blob)
        self.blob = blobs.read(data, self.name)
        if accumulate and not self.blob.accum_len:
            raise SproutError(
                f"{self.name} has no place for accumulators: compile it with a plan that trains."
            )
        if scratch is None:
            scratch = max(self.blob.scratch_len, ROOMY)
        self._library = load_library(library)
        self._file = np.frombuffer(data, np.uint8).copy()
        self.arena = np.zeros(self.blob.arena_len, np.uint8)
        self.trained = np.zeros(self.blob.trained_len, np.uint8)
        self.scratch = np.zeros(scratch, np.uint8)
        self.accum = np.zeros(self.blob.accum_len, np.uint8) if accumulate else None
        self.run = Run()
        self._memory = _Memory()
        self._read = _READ(self._fetch)
        self._memory.read = self._read
        self._memory.put("program", self._file[: self.blob.program_len])
        for name in ("arena", "trained", "scratch"):
            self._memory.put(name, getattr(self, name))
        if in_place:
            self._memory.put("blob", self._file)
        if self.accum is not None:
            self._memory.put("accum", self.accum)
        lut = None if self.blob.takes_rows else self.blob.lut
        # Most tables do, and numpy does it ten times as fast as the core looks pixels up.
        self._subtracts_128 = lut is not None and np.array_equal(lut, np.arange(-128, 128))
        self.reset()
        self._check()

    def reset(self) -> None:
        """Forget everything learned: parameters as compiled, arena and accumulators zero."""
        self.arena[:] = 0
        self.trained[:] = 0
        self.trained[: len(self.blob.initial)] = np.frombuffer(self.blob.initial, np.uint8)
        if self.accum is not None:
            self.accum[:] = 0

    def set_input(self, x: np.ndarray) -> None:
        """Set the input: int8 values of its shape, or uint8 pixels for the blob's input table.

        A forward pass reuses the input's memory, so each pass needs its input set anew.
        Raises SproutError for another type or number of elements.
        """
        x = np.ascontiguousarray(x)
        shape = self.blob.tensors[self.blob.input].shape
        if x.size != math.prod(shape):
            raise SproutError(
                f"The input has shape {x.shape}: {self.name} takes {shape}, resize it first."
            )
        if x.dtype == np.int8 and self.blob.takes_rows:
            x = np.ascontiguousarray(self.blob.pixels(x))
            self._ask(self._library.sprout_input(self._memory, x.ctypes.data, x.size, -1))
        elif x.dtype == np.uint8 and self._subtracts_128:
            self.tensor(self.blob.input)[:] = (x ^ 128).view(np.int8).reshape(shape)
        elif x.dtype == np.uint8:
            if not self.blob.lut_offset:
                raise SproutError(f"{self.name} has no table for uint8 pixels: give int8 values.")
            self._ask(self._library.sprout_input(self._memory, x.ctypes.data, x.size, -1))
        elif x.dtype == np.int8:
            self.tensor(self.blob.input)[:] = x.reshape(shape)
        else:
            raise SproutError(
                f"The input is {x.dtype}: give int8 values, or uint8 pixels for the input table."
            )

    def forward(self, learn: bool = False) -> np.ndarray:
        """Run the forward operators; return the output, int8 (h, w, c).

        With ``learn`` keep what gradients need and return the logits.
        """
        self.run_ops(0, self.blob.n_forward, LEARN if learn else PREDICT)
        return self.tensor(self.blob.logits if learn else self.blob.output).copy()

    def step(
        self,
        x: np.ndarray,
        label: int,
        rate: tuple[int, int],
        seed: int,
        step: int,
        n_classes: int | None = None,
    ) -> float:
        """Learn from one sample; return the loss before the step, in nats.

        ``rate`` is (m, e) for a learning rate of m * 2**e with 1 <= m < 4096; ``seed`` and
        ``step`` select the random draws; ``n_classes`` is the number of classes in use, None for
        the blob's.  Raises SproutError for arguments out of range.
        """
        self.set_input(x)
        self.run_ops(
            0,
            len(self.blob.ops),
            LEARN,
            label=label,
            rate=rate,
            seed=seed,
            step=step,
            n_classes=n_classes,
        )
        return self.run.loss_q16 / 65536

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
        self.run = Run(first, last, mode, label, classes, *rate, seed, step)
        self._ask(self._library.sprout_run(self._memory, self.run), self.run)
        return self.run

    def apply(self) -> None:
        """Move the whole LSBs that the accumulators hold into the parameters."""
        self._ask(self._library.sprout_apply(self._memory))

    def probabilities(self, n_classes: int | None = None) -> np.ndarray:
        """Return the last pass's probabilities of the classes in use, float64 [n_classes]."""
        n = self.blob.n_classes if n_classes is None else n_classes
        most = min(self.blob.tensors[self.blob.logits].c, MOST_CLASSES)
        if not 1 <= n <= most:
            raise SproutError(f"{self.name} has 1 to {most} classes: {n} is out of range.")
        q15 = np.zeros(n, np.int32)
        p0 = next((op.p[0] for op in self.blob.ops if op.kind == "cross_entropy"), None)
        if p0 is None:
            p0 = self.blob.meta.get("logits", {}).get("p0", 0)
        self._ask(self._library.sprout_probabilities(self._memory, n, p0, q15.ctypes.data))
        return q15 / 32768

    def tensor(self, number: int) -> np.ndarray:
        """Return tensor ``number`` (h, w, c): a view of the arena, or bool copies of a mask.

        Of a tensor that passes through, the rows that the arena has room for.
        """
        row = self.blob.tensors[number]
        raw = self.arena[row.offset : row.offset + row.nbytes].view(NUMPY_TYPES[row.dtype])
        if row.dtype == "bits":
            n = row.h * row.w * row.c
            raw = np.unpackbits(raw, bitorder="little")[:n].astype(bool)
        return raw.reshape(row.rows or row.h, row.w, row.c)

    def exponent(self, number: int) -> int:
        """Return the exponent of gradient tensor ``number``."""
        table = self.tensor(self.blob.exponents).ravel()
        return int(table[self.blob.tensors[number].slot])

    def digest(self) -> str:
        """Return the SHA-256 of the trained parameters, in hex."""
        return hashlib.sha256(self.trained.tobytes()).hexdigest()

    def _fetch(self, _: Any, offset: int, to: int, length: int) -> int:
        """Read from the file, for the core."""
        if offset + length > len(self._file):
            return -1
        ctypes.memmove(to, self._file.ctypes.data + offset, length)
        return 0

    def _check(self) -> None:
        status = self._library.sprout_check(self._memory)
        if status:  # once more, to hear which operator and why
            self.run_ops(0, len(self.blob.ops), CHECK)

    def _ask(self, status: int, run: Run | None = None) -> None:
        """Raise the error that a function of the core returned, which ``run`` may say more of."""
        if status == 0:
            return
        run = run or Run(error_op=-1)
        where, detail = self.name, run.detail
        if run.error_op >= 0:
            where += f", operator {run.error_op} ({self.blob.ops[run.error_op].kind})"
        if status == -5:
            needed = max(detail, self.blob.scratch_len)
            raise MemoryError(
                f"{where}: the scratch has {self.scratch.size} bytes, {needed} are needed; "
                f"give {needed - self.scratch.size} more."
            )
        raise SproutError(f"{where}: {_ERRORS[status].format(detail=detail, run=run)}")


_AGAIN = "compile the model again."
_ERRORS = {
    -1: "the header is no Sprout header of this version; " + _AGAIN,
    -2: "a buffer does not start at a multiple of 4; allocate it aligned.",
    -3: "the arena is shorter than the blob asks; allocate arena_len bytes.",
    -4: "the trained parameters do not fit their buffer; allocate trained_len bytes.",
    -6: "there are no accumulators; make the engine with accumulate=True.",
    -7: "the file ends before its constants do; " + _AGAIN,
    -8: "operator code {detail} is unknown; " + _AGAIN,
    -9: "tensor {detail} is missing, of a wrong type or outside the arena; " + _AGAIN,
    -10: "the shape of operand {detail} does not fit the others; " + _AGAIN,
    -11: "parameter {detail} is out of range; " + _AGAIN,
    -12: "reading the file failed with {detail}; check that it is still there.",
    -13: "operators {run.first_op} to {run.last_op} in mode {run.mode} are not in the program; "
    "give a range of its operators.",
    -14: "label {run.label} of {run.n_classes} classes is out of range; the net has {detail} "
    "outputs at most.",
    -15: "the rate's mantissa {detail} is out of range; give 1 to 4095.",
    -16: "the pixels are not the rows that come next; resize the image, or begin again at row 0.",
    -17: "the blob cannot learn; compile it with a plan that trains something.",
}
