"""Checkpoints and rings of samples: format, reader and writer.

All numbers are little-endian, and what learns lies in a checkpoint as in every board's RAM, by the
blob's offsets (``blob.py``): a checkpoint of one processor is good on any other.

A checkpoint
============

======  =======  ================================================================================
offset  type     meaning
======  =======  ================================================================================
0       4 bytes  ``SPCK``
4       u16      version, 2
6       u16      length of the JSON text
8       32 byte  SHA-256 of everything from byte 40 to the end of the trained parameters
40      32 byte  SHA-256 in the header of the blob they belong to
72      u32      number: of two checkpoints the one with the higher is newer
76      u32      training steps so far
80      u32      seed of the random rounding
84      u32      length of the trained parameters
88      JSON     {"name": of the blob, "classes": [names]}
        bytes    the trained parameters; what follows in the file has no meaning
======  =======  ================================================================================

A board saves in turn to two slots, files PATH and PATH.1, with the highest number there plus 1.
It writes the one that is not the newest whole one, so that the newest stays whatever happens.

* littlefs replaces a file when it is closed, as a whole.  That is not relied upon.
* On FAT the slots are PATH.0/slot and PATH.1/slot, made at the first save.  From then on they are
  written over in place, so that the table of FAT and the folder they lie in are never written:
  nothing but the slot's own sectors and the sector of its own folder, where closing a file notes
  the time.  PATH is no slot there but is read like one.

What is written here has the seconds since 1970 as its number: newer than what a board counted from
0, or from an earlier such number as long as it saves less than once a second.

A ring
======

Samples in a folder, for rehearsal.  ``head``: 4 bytes ``SPRR``, u16 version (1), u16 records n in
a file, u32 bytes of a sample, 32 bytes that say whose samples these are, u32 CRC-32 of these 44
bytes.  File ``N`` holds the records N * n to N * n + n - 1: u32 CRC-32, u16 label, u16 0, then the
sample.  The CRC starts from that of the head (as zlib's second argument) and goes over label, 0
and sample: what was written for another net is no record.  Eight zeros: there is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import blob as blobs
from .graph import SproutError

VERSION = 2
_HEAD = struct.Struct("<4sHH32s32sIIII")
_HASHED_FROM = 40
_RING = struct.Struct("<4sHHI32s")
_RECORD = struct.Struct("<IHH")


@dataclass
class Checkpoint:
    """What a net has learned.

    name, classes: of the net.  step: training steps so far.  seed: of the random rounding.
    trained: the trained parameters.  blob: SHA-256 of the blob they belong to, 32 bytes.  number:
    which of two is newer; None: give it one when it is written.
    """

    name: str
    classes: list[str]
    step: int
    seed: int
    trained: bytes = field(repr=False)
    blob: bytes = field(repr=False)
    number: int | None = None

    def to_bytes(self) -> bytes:
        """Return the file."""
        text = json.dumps({"name": self.name, "classes": self.classes}).encode()
        number = int(time.time()) if self.number is None else self.number
        head = _HEAD.pack(
            b"SPCK", VERSION, len(text), bytes(32), self.blob, number, self.step, self.seed,
            len(self.trained),
        )  # fmt: skip
        data = bytearray(head + text + self.trained)
        data[8:_HASHED_FROM] = hashlib.sha256(data[_HASHED_FROM:]).digest()
        return bytes(data)


def of(blob: bytes, trained: bytes, step: int, seed: int) -> Checkpoint:
    """Return the checkpoint of a net with the classes of its blob."""
    b = blobs.read(blob)
    classes = b.meta.get("classes") or [str(i) for i in range(b.n_classes)]
    return Checkpoint(b.meta["name"], classes, step, seed, trained, blob[16:48])


def from_bytes(data: bytes, name: str = "checkpoint") -> Checkpoint:
    """Take a checkpoint apart.

    Raises SproutError, in one sentence that starts with ``name``, if it is no whole checkpoint of
    this version.
    """
    if len(data) < 8 or data[:4] != b"SPCK":
        raise SproutError(f"{name} is not a checkpoint: give a file that net.save() wrote.")
    version = struct.unpack_from("<H", data, 4)[0]
    if version != VERSION:
        raise SproutError(
            f"{name} is of checkpoint version {version} and this reads {VERSION}: "
            "use the release that wrote it."
        )
    if len(data) >= _HEAD.size:
        _, _, text_len, digest, blob, number, step, seed, length = _HEAD.unpack_from(data)
        start = _HEAD.size + text_len
        body = data[_HASHED_FROM : start + length]
        if len(data) >= start + length and hashlib.sha256(body).digest() == digest:
            text = json.loads(data[_HEAD.size : start])
            trained = data[start : start + length]
            return Checkpoint(text["name"], text["classes"], step, seed, trained, blob, number)
    raise SproutError(f"{name} is damaged or cut short: copy it again, or give another one.")


def slots(path: Path) -> list[Path]:
    """Return the files that may hold a checkpoint saved as ``path``, on any file system."""
    slot = [path.with_name(f"{path.name}.{i}") for i in (0, 1)]
    return [path, slot[1], slot[0] / "slot", slot[1] / "slot"]


def read(path: Path) -> Checkpoint:
    """Return the newest whole checkpoint that was saved as ``path``.

    The slots lie beside it if a whole folder of a board was copied.  Raises SproutError if there
    is none.
    """
    found, errors = [], []
    for slot in slots(path):
        if not slot.is_file():
            continue
        data = slot.read_bytes()
        try:
            if any(data[: _HEAD.size]):  # a slot that was made ahead is empty
                found.append(from_bytes(data, str(slot)))
        except SproutError as error:
            errors.append(error)
    if found:
        return max(found, key=lambda one: one.number or 0)
    none = SproutError(f"{path} holds no checkpoint: net.save() writes one.")
    raise errors[0] if errors else none


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the one file ``path``, newer than any slot beside it.

    With ``read`` this turns the slots of a board into one file, which every board can restore.
    """
    number = int(time.time())
    with contextlib.suppress(SproutError):
        number = max(number, (read(path).number or 0) + 1)
    new = path.with_name(path.name + ".new")
    new.write_bytes(dataclasses.replace(checkpoint, number=number).to_bytes())
    os.replace(new, path)


def bake(blob: bytes, checkpoint: Checkpoint) -> bytes:
    """Return the blob that starts with what a checkpoint learned: parameters and classes.

    Only the initial section and the meta section change; frozen records keep what was compiled,
    which nothing reads where a parameter learns.  It counts steps from 0 and has a digest of its
    own, so checkpoints of ``blob`` are none of it.
    Raises SproutError if the checkpoint belongs to another blob.
    """
    b = blobs.read(blob)
    if checkpoint.blob != blob[16:48] or len(checkpoint.trained) != b.trained_len:
        raise SproutError(
            f"The checkpoint belongs to another blob ({checkpoint.name}), not to this "
            f"{b.meta.get('name', 'net')}: give the blob that it was saved with."
        )
    n = len(checkpoint.classes)
    if not 0 < n <= b.max_classes:
        raise SproutError(f"The checkpoint has {n} classes and the blob room for {b.max_classes}.")
    b.initial, b.n_classes = checkpoint.trained, n
    b.meta["classes"] = list(checkpoint.classes)
    return b.to_bytes()


@dataclass
class Ring:
    """What a ring holds: ``labels`` [N] and ``samples``, uint8 [N, bytes], by rising slot.

    ``slots`` [N] are their numbers, ``tag`` says whose they are; ``dropped`` were damaged.
    """

    tag: bytes
    slots: np.ndarray
    labels: np.ndarray
    samples: np.ndarray
    dropped: int


def read_ring(folder: Path) -> Ring:
    """Read the samples of a ring.  Raises SproutError if the folder holds none."""
    head = folder / "head"
    data = head.read_bytes() if head.is_file() else b""
    size = _RING.size
    if len(data) < size + 4 or zlib.crc32(data[:size]).to_bytes(4, "little") != data[size:]:
        raise SproutError(f"{folder} holds no samples that a board kept: copy the folder again.")
    magic, version, n, length, tag = _RING.unpack_from(data)
    if magic != b"SPRR" or version != 1 or not n:
        raise SproutError(f"{folder} is of another release: use the one that wrote it.")
    salt, record = zlib.crc32(data[:size]), _RECORD.size + length
    found: list[tuple[int, int, bytes]] = []
    dropped = 0
    for k in sorted(int(file.name) for file in folder.iterdir() if file.name.isdigit()):
        content = (folder / str(k)).read_bytes()
        for i in range(min(n, -(-len(content) // record))):
            part = content[i * record : (i + 1) * record].ljust(_RECORD.size, b"\0")
            crc, label, _ = _RECORD.unpack_from(part)
            if not crc and not label:
                continue
            if len(part) == record and zlib.crc32(part[4:], salt) == crc:
                found.append((k * n + i, label, part[_RECORD.size :]))
            else:
                dropped += 1
    samples = np.frombuffer(b"".join(part for _, _, part in found), np.uint8)
    return Ring(
        tag,
        np.array([slot for slot, _, _ in found], np.int64),
        np.array([label for _, label, _ in found], np.int64),
        samples.reshape(len(found), length),
        dropped,
    )
