"""What net.remove_class() does."""

import struct

from micropython import const

from .blobfile import read_json, trouble

_META = const(72)  # where the header says where the meta section is


def remove(net, label):
    """Take a class out: the rows of the last layer after its own move up, a fresh one follows."""
    number = net._number(label)
    n = len(net.classes)
    if n == 1:
        trouble("misuse").last_class(net.name)
    rest = net.classes[:number] + net.classes[number + 1 :]
    moves = []
    for which, at, bits in _parts(net):
        buffer = net._memory[5 if which else 3]
        if not buffer:
            continue  # no batches
        if at + (bits * net.max_classes + 7) // 8 > len(buffer):
            trouble().damaged(net._name, "the rows of its last layer are outside")
        if bits & 7:
            moves.append(_nibbles(memoryview(buffer)[at:], bits // 4, number, n))
        else:
            size = bits // 8
            rows = memoryview(buffer)[at + size * number : at + size * n]
            moves.append((rows[:-size], rows[size:]))
            moves.append((rows[-size:], bytes(size)))
    if net._keeper:
        net._keeper.forget(number)
    # All or nothing: MicroPython looks for Ctrl-C at jumps, and here is none.
    list(map(_move, moves))
    net.classes = rest


def _move(move):
    to, source = move
    to[:] = source


def _parts(net):
    """`head` of the meta section, which host/sprout/blob.py specifies."""
    net._begin()
    source, program = net._memory[:2]
    meta = read_json(net._name, source, *struct.unpack_from("<II", program, _META))
    net._broken = False
    parts = meta.get("head")
    if not parts:
        trouble("misuse").fixed_classes(net._name)
    return parts


def _nibbles(data, row, number, n):
    """The move for rows of an odd number of 4-bit elements, the even ones in the low halves."""
    first, end = row * number, row * n
    to = data[first >> 1 : (end + 1) >> 1]
    new = bytearray(to)
    for e in range(first, end):
        value = 0
        if e + row < end:
            value = data[(e + row) >> 1] >> (((e + row) & 1) * 4) & 15
        i, shift = (e >> 1) - (first >> 1), (e & 1) * 4
        new[i] = new[i] & (240 >> shift) | value << shift
    return to, new
