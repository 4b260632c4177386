"""Checkpoints: host/sprout/checkpoint.py specifies the format and where the two slots lie."""

import hashlib
import json
import os
import struct

from micropython import const

from .blobfile import digest_of, read_at, trouble

_HEAD = const("<4sHH32s32sIIII")
_HEAD_LEN = const(88)
_HASHED_FROM = const(40)
_VERSION = const(2)
_ENOENT = const(2)
_EEXIST = const(17)
_EINVAL = const(22)
_ENOSPC = const(28)
_SECTOR = const(512)

# What a slot may hold.
_NOTHING = const(0)
_OTHER = const(1)
_OTHER_VERSION = const(2)
_DAMAGED = const(3)
_GOOD = const(4)


def is_fat(path):
    """Whether a path lies on FAT, which takes no star in a name."""
    try:
        os.stat(path + "*")
    except OSError as e:
        return e.errno == _EINVAL
    return False


def write(path, blob, name, classes, step, seed, trained):
    """Write the slot that is not the newest whole one; the newest is untouched all the while.

    All is on flash on return: closing a file writes everything, and the slot is read back.
    """
    text = json.dumps({"name": name, "classes": classes}).encode()
    fat = is_fat(path)
    slots = _slots(path, fat)
    whole = [number if kind == _GOOD else -1 for kind, number, _ in map(_examine, slots)]
    number = max(whole) + 1 & 0xFFFFFFFF
    target = slots[-2] if whole[-2] <= whole[-1] else slots[-1]
    hashed = struct.pack("<32sIIII", blob, number, step, seed, len(trained))
    sha = hashlib.sha256(hashed)
    sha.update(text)
    sha.update(trained)
    head = struct.pack("<4sHH32s", b"SPCK", _VERSION, len(text), sha.digest())
    parts = head, hashed, text, trained
    size = _HEAD_LEN + len(text) + len(trained)
    try:
        if fat:
            for slot in slots[-2:]:
                _make(slot, size, slot == target)
        try:
            _put(target, fat, parts)
        except OSError as e:
            if fat or e.errno != _ENOSPC:
                raise
            _forget(target)  # littlefs keeps old bytes until all the new ones are there
            _put(target, fat, parts)
    except OSError as e:
        if not fat:
            _forget(target)
        trouble("mishap").not_written(path, e, size)
    if _examine(target)[:2] != (_GOOD, number):
        trouble("mishap").not_kept(target)


def read(path, blob, name, trained):
    """Put the newest checkpoint of this blob into trained; returns (classes, step, seed).

    Where a newer one is damaged it says so. An error changes nothing.
    """
    best, worst = (-1, None, None), (-1, _NOTHING, path)
    other = None
    for slot in _slots(path, is_fat(path)):
        kind, number, head = _examine(slot)
        if kind == _GOOD and (head[4] != blob or head[8] != len(trained)):
            other = slot, head
        elif kind == _GOOD:
            best = max(best, (number, slot, head))
        elif kind != _NOTHING:
            worst = max(worst, (number, kind, slot))
    number, slot, head = best
    if not slot:
        if other:
            trouble("mishap").other_blob(path, _text(*other)["name"], name)
        trouble("mishap").no_checkpoint(path, *worst)
    text = _text(slot, head)
    with open(slot, "rb") as file:
        read_at(file, _HEAD_LEN + head[2], trained)
    if worst[0] > number:
        trouble("mishap").fell_back(worst[2], head[6])
    return text["classes"], head[6], head[7]


def _slots(path, fat):
    """Where a checkpoint may lie; the last two are the slots."""
    return (path, path + ".0/slot", path + ".1/slot") if fat else (path, path + ".1")


def _examine(path):
    """(kind, number, fields of the head) of a slot.

    The number is above all others where it cannot be told, and the version of another version.
    """
    most = 1 << 32
    head = bytearray(_HEAD_LEN)
    try:
        with open(path, "rb") as file:
            if not read_at(file, 0, head) or head[:4] != b"SPCK":
                return (_NOTHING if not any(head) else _OTHER), most, None
            head = struct.unpack(_HEAD, head)
            if head[1] != _VERSION:
                return _OTHER_VERSION, head[1], None
            end = _HEAD_LEN + head[2] + head[8]
            if file.seek(0, 2) >= end and digest_of(file, _HASHED_FROM, end) == head[3]:
                return _GOOD, head[5], head
            return _DAMAGED, head[5], None
    except OSError as e:
        return (_NOTHING if e.errno == _ENOENT else _DAMAGED), most, None


def _text(path, head):
    text = bytearray(head[2])
    with open(path, "rb") as file:
        read_at(file, _HEAD_LEN, text)
    return json.loads(text)


def _make(slot, size, grow):
    """Make a slot's folder and file where they are missing, and with grow, long enough."""
    try:
        os.mkdir(slot[: -len("/slot")])
    except OSError as e:
        if e.errno != _EEXIST:
            raise
    with open(slot, "ab") as file:
        there = file.seek(0, 2)
        if not there or grow and there < size:
            zeros = bytes(_SECTOR)
            for _ in range(there, size + _SECTOR, _SECTOR):  # some longer names fit as well
                file.write(zeros)


def _forget(path):
    try:
        os.remove(path)
    except OSError:
        pass  # there was no room to make it


def _put(path, fat, parts):
    """Write a file, on FAT over its old bytes, so that its directory and table stay the same."""
    with open(path, "r+b" if fat else "wb") as file:
        for part in parts:
            file.write(part)
