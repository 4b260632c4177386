"""Checkpoints: what a net has learned, in a file of its own.

    0   4s   SPCK
    4   u16  version, 1
    6   u16  length of the JSON text
    8   u32  step
    12  u32  seed
    16  u32  length of the trained parameters
    20  32s  SHA-256 in the header of the blob they belong to
    52       JSON text {"name", "classes"}, trained parameters, SHA-256 of all before
"""

import hashlib
import json
import os
import struct

from micropython import const

from .blobfile import digest_of, read_at, trouble

_HEAD = const("<4sHHIII32s")
_HEAD_LEN = const(52)
_VERSION = const(1)


def write(path, blob, name, classes, step, seed, trained):
    """Write a temporary file and put it in the place of the old one in one step."""
    text = json.dumps({"name": name, "classes": classes}).encode()
    head = struct.pack(_HEAD, b"SPCK", _VERSION, len(text), step, seed, len(trained), blob)
    sha = hashlib.sha256()
    temporary = path + ".tmp"
    try:
        with open(temporary, "wb") as file:
            for part in (head, text, trained):
                sha.update(part)
                file.write(part)
            file.write(sha.digest())
        os.rename(temporary, path)
    except OSError as e:
        try:
            os.remove(temporary)
        except OSError:
            pass
        size = len(head) + len(text) + len(trained) + 32
        trouble().not_written(path, e, size)


def read(path, blob, name, trained):
    """The parameters into trained; returns (classes, step, seed). An error changes nothing."""
    try:
        file = open(path, "rb")
    except OSError as e:
        raise OSError("%s cannot be opened (%s): net.save() writes it" % (path, e)) from None
    with file:
        head = bytearray(_HEAD_LEN)
        if not read_at(file, 0, head) or head[:4] != b"SPCK":
            trouble().not_a_checkpoint(path)
        _, version, text_len, step, seed, length, of = struct.unpack(_HEAD, head)
        if version != _VERSION:
            trouble().other_version(path, version, _VERSION)
        end = _HEAD_LEN + text_len + length
        sha = bytearray(32)
        whole = file.seek(0, 2) == end + 32 and read_at(file, end, sha)
        if not whole or digest_of(file, 0, end) != sha:
            trouble().damaged_checkpoint(path)
        text = bytearray(text_len)
        read_at(file, _HEAD_LEN, text)
        text = json.loads(text)
        if of != blob or length != len(trained):
            trouble().other_blob(path, text["name"], name)
        read_at(file, _HEAD_LEN + text_len, trained)
    return text["classes"], step, seed
