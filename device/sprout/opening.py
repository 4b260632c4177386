"""Loads a blob into a net: in RAM only while it does."""

import gc
import struct
from array import array

from micropython import const

from .blobfile import digest_of, passing, read_at, read_json, trouble
from .native import core

_HEADER = const(128)
_HASHED_FROM = const(48)
_CAN_LEARN = const(4)  # flag of the blob
_CHECK = const(2)  # mode of core.run
_ROOM = const(1024)  # bytes for objects after the buffers, besides what this module takes


def open_net(net, path, classes, batch, verify, scratch):
    """Net(...): read what the blob says, and give the net its buffers."""
    net._name, source, resident = open_blob(path)
    head = read_header(net._name, source, verify)
    net._can_learn = head[4] & _CAN_LEARN
    n_tensors, net._n_ops, net._n_forward, x, y, logits = head[20:26]
    net.max_classes, n = head[27:29]
    if not isinstance(batch, int) or batch < 1:
        raise ValueError("batch is %r and must be 1 or more" % (batch,))
    net.batch = batch
    net._sizes = (
        head[16],
        head[17],
        max(head[19], scratch or 0),
        head[18] if net._can_learn and batch > 1 else 0,
        0 if resident else _HEADER + head[7],
    )
    # save() writes the names, which are most of the meta section.
    room = max(_ROOM, 1024 + 4 * net.max_classes + 3 * head[13])
    gc.collect()
    try:
        net.name, names, net._p0, rate = read_meta(net._name, source, head)
        net._named = net._checked(list(classes or names or map(str, range(n))))
        net._odds = array("i", bytes(4 * net.max_classes))
    except MemoryError:
        room += 64 * net.max_classes + 2 * head[13]
        passing("short").short(net._name, net._sizes, room)
    # A ROMFS cannot be written: there, and for bytes, the current folder takes checkpoints.
    stem = net.name if resident else path[:-7] if path.endswith(".sprout") else path
    net._checkpoint = stem + ".ckpt"
    net.rate = rate or net.rate
    names = None
    arena, trained, working, accum, program = _allocate(net._name, net._sizes, room)
    if resident:
        program = source[: _HEADER + head[7]]
    else:
        net._read(source, 0, program)
    net._memory = (source, program, arena, trained, working, accum or None)
    code = core.check(net._memory)
    if code:
        net._run(0, net._n_ops, _CHECK)  # says which operator it is
        net._fail(code)
    net.input, net.shape = _tensor(net, x, n_tensors)
    if len(net.input) < net.shape[0] * net.shape[1] * net.shape[2]:
        net.input = None
    net.output, _ = _tensor(net, y, n_tensors)
    net._logits, _ = _tensor(net, logits, n_tensors)
    if net.max_classes > len(net._logits):
        trouble().damaged(net._name, "it has %d outputs" % len(net._logits))


def _buffers(sizes, room):
    """Buffers of these sizes, or None; no trace of them is left on the stack then."""
    buffers = []
    try:
        for size in sizes:
            buffers.append(bytearray(size))
    except MemoryError:
        return None
    return buffers if gc.mem_free() >= room else None


def _allocate(name, sizes, room):
    """Buffers of these sizes, with bytes of room beside them.

    Tries before it counts: the heap of an ESP32 grows on demand.
    """
    gc.collect()
    return _buffers(sizes, room) or passing("short").short(name, sizes, room)


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


def read_header(name, source, verify):
    """The header's fields in the order of the specification; with verify, all can be trusted."""
    raw = bytearray(_HEADER)
    if not read_at(source, 0, raw) or raw[:4] != b"SPRT":
        trouble().not_a_blob(name)
    head = struct.unpack("<4sHHII32s10I4I10HI", raw)
    if head[1] != core.FORMAT or head[2] != _HEADER:
        trouble().wrong_format(name, head[1], core.FORMAT)
    size = len(source) if isinstance(source, memoryview) else source.seek(0, 2)
    if size != head[3]:
        raise ValueError("%s has %d of its %d bytes: copy it again" % (name, size, head[3]))
    if verify and digest_of(source, _HASHED_FROM, size) != head[5]:
        trouble().damaged(name, "its SHA-256 does not match")
    return head


def read_meta(name, source, head):
    """(name, classes, p0 of the probabilities, learning rate or 0) from the meta section."""
    meta = read_json(name, source, head[12], head[13])
    try:
        p0 = meta.get("logits", {}).get("p0", 0)
        names = list(meta.get("classes", ()))
        return str(meta.get("name", "net")), names, int(p0), float(meta.get("rate", 0))
    except (ValueError, TypeError, AttributeError, OverflowError):
        trouble().damaged(name, "its meta section cannot be read")


def _tensor(net, number, n):
    """(view of its bytes, shape) of one of n tensors; their table begins the program."""
    _, program, arena, _, _, _ = net._memory
    if number >= n:
        trouble().damaged(net._name, "tensor %d is missing" % number)
    row = struct.unpack_from("<IHHH4xH", program, _HEADER + 16 * number)
    size = (row[4] or row[1]) * row[2] * row[3]
    view = memoryview(arena)[row[0] : row[0] + size]
    if len(view) != size:
        trouble().damaged(net._name, "tensor %d is outside the arena" % number)
    return view, row[1:4]
