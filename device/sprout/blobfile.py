"""Reads a blob from memory or from a file; host/sprout/blob.py specifies the format."""

import hashlib
import json
import sys

from micropython import const

_CHUNK = const(512)


def passing(name):
    """A module of the package that takes RAM only while something of it is used."""
    module = __import__("sprout." + name, None, None, (name,))
    del sys.modules[module.__name__]
    delattr(sys.modules["sprout"], name)
    return module


def trouble(kind="trouble"):
    """The module that raises errors of a kind."""
    return passing(kind)


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
