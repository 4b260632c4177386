"""Reads a blob from memory or from a file; host/sprout/blob.py specifies the format."""

import hashlib
import json
import struct
import sys

from micropython import const

from .native import core

HEADER = const(128)
_HASHED_FROM = const(48)
_CHUNK = const(512)


def trouble():
    """The module that raises errors, which takes RAM only until one is dealt with."""
    from . import trouble

    del sys.modules[trouble.__name__], sys.modules["sprout"].trouble
    return trouble


def open_blob(path):
    """(name, source, resident): where memory holds the blob (bytes, a ROMFS), source is a
    memoryview of it, else the open file. What is not in the current folder may be in a ROMFS."""
    if not isinstance(path, str):
        try:
            return "the blob", memoryview(path), True
        except TypeError:
            raise ValueError("load() takes a file name or the bytes of a blob") from None
    try:
        file = open(path, "rb")
    except OSError as e:
        if not path.startswith("/"):
            try:
                return open_blob("/rom/" + path)
            except OSError:
                pass
        raise OSError("%s cannot be opened (%s): copy it to the board" % (path, e)) from None
    try:
        return path, memoryview(file), True
    except TypeError:
        return path, file, False


def read_at(source, offset, buffer):
    """Fill buffer from offset on; False where the source ends too early."""
    if isinstance(source, memoryview):
        part = source[offset : offset + len(buffer)]
        if len(part) == len(buffer):
            buffer[:] = part
        return len(part) == len(buffer)
    source.seek(offset)
    return source.readinto(buffer) == len(buffer)


def digest_of(source, start, end):
    """SHA-256 of the bytes from start to end."""
    sha = hashlib.sha256()
    if isinstance(source, memoryview):
        sha.update(source[start:end])
        return sha.digest()
    chunk = bytearray(_CHUNK)
    source.seek(start)
    for _ in range((end - start) // _CHUNK):
        source.readinto(chunk)
        sha.update(chunk)
    rest = memoryview(chunk)[: (end - start) % _CHUNK]
    source.readinto(rest)
    sha.update(rest)
    return sha.digest()


def read_header(name, source, verify):
    """The header's fields in the order of the specification; with verify, all can be trusted."""
    raw = bytearray(HEADER)
    if not read_at(source, 0, raw) or raw[:4] != b"SPRT":
        trouble().not_a_blob(name)
    head = struct.unpack("<4sHHII32s10I4I10HI", raw)
    if head[1] != core.FORMAT or head[2] != HEADER:
        trouble().wrong_format(name, head[1], core.FORMAT)
    size = len(source) if isinstance(source, memoryview) else source.seek(0, 2)
    if size != head[3]:
        raise ValueError("%s has %d of its %d bytes: copy it again" % (name, size, head[3]))
    if verify and digest_of(source, _HASHED_FROM, size) != head[5]:
        trouble().damaged(name, "its SHA-256 does not match")
    return head


def read_json(name, source, at, length):
    """The meta section, a dict."""
    try:
        raw = bytearray(length)
        read_at(source, at, raw)
        meta = json.loads(raw)
        if isinstance(meta, dict):
            return meta
    except ValueError:
        pass
    trouble().damaged(name, "its meta section cannot be read")


def read_meta(name, source, head):
    """(name, classes, p0 of the probabilities, learning rate or 0) from the meta section."""
    meta = read_json(name, source, head[12], head[13])
    try:
        p0 = meta.get("logits", {}).get("p0", 0)
        names = list(meta.get("classes", ()))
        return str(meta.get("name", "net")), names, int(p0), float(meta.get("rate", 0))
    except (ValueError, TypeError, AttributeError, OverflowError):
        trouble().damaged(name, "its meta section cannot be read")
