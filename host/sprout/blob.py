"""The flash blob (``NAME.sprout``): format, reader and writer.

Everything a board needs to predict and to learn stands in one file; its specification is this
text.  All numbers are little-endian, all sections start at multiples of 8, and every position in
the file is an offset, so that the file can be used where it lies.

Header (128 bytes)
==================

======  =======  ================================================================================
offset  type     meaning
======  =======  ================================================================================
0       4 bytes  ``SPRT``
4       u16      format version, 2
6       u16      header length, 128
8       u32      file length
12      u32      flags: bit 0 the model file takes float32, bit 1 it gives float32, bit 2 it can
                 learn
16      32 byte  SHA-256 of the file from byte 48 to its end
48      u32 x 2  program section: offset (128), length.  Resident: header and program are read as
                 one piece
56      u32 x 2  constants section: operators, frozen weights, per-channel tables.  Used in
                 place or streamed
64      u32 x 2  initial section: the first bytes of the trained parameters, as they lie in RAM
72      u32 x 2  meta section: JSON for the board (``name``, ``classes``, ``input``, ``output``,
                 ``logits``, ``latent``: see below; perhaps ``rate``: the learning rate, a number,
                 that suits the user's samples)
80      u32 x 2  info section: JSON for the host (layer names, the plan, memory by part)
88      u32      arena length in bytes
92      u32      trained length in bytes
96      u32      accumulator length in bytes (batch accumulation only)
100     u32      scratch length in bytes, the least that every operator works with
104     u16      number of tensors
106     u16      number of operators
108     u16      number of forward operators; they come first, the backward ones follow
110     u16      input tensor
112     u16      output tensor
114     u16      logits tensor
116     u16      exponents tensor (int32, one per gradient tensor), 65535 when the blob cannot
                 learn
118     u16      outputs of the logits tensor, the most classes the net can have
120     u16      number of classes in use at first
122     u16      reserved, 0
124     u32      offset, from the start of the program section, of 256 int8: input value by
                 pixel; 0: none
======  =======  ================================================================================

``latent`` says where a step can be taken up again: a list of [operator, [[offset, bytes], ...]],
with what of the arena the operators from there on read.  First the last operator before which
nothing is trained, then earlier ones before which fewer bytes are needed.

Program section
===============

The tensor table, then index lists (u16) and the input table.

A tensor (16 bytes): u32 arena offset; u16 h, w, c; u8 dtype (0 int8, 1 int16, 2 int32, 3 bits); i8
zero point; u16 exponent slot (65535: none); u16 rows that the arena has room for (0: all h; see
STREAM).  Elements lie in the order h, w, c.  A ``bits`` tensor keeps element e in bit ``e & 7`` of
byte ``e >> 3``.

Constants section
=================

The operator table, which is read one operator at a time like everything in this section, then the
constants.  All offsets of constants are relative to the end of the operator table; ``-1`` says
that there is none.  Offsets into the trained region are relative to its start, index lists
relative to the program section.

An operator (64 bytes): u16 opcode; u16 flags; six u16 tensor numbers (65535: none); twelve i32
parameters p0 to p11.  Flag 1 (``TRAIN``): skipped when only predicting.  Flag 2 (``INFER``):
skipped when learning.  Flag 4 (``MEMBER``): it belongs to the STREAM before it, which runs it.

Geometry is packed: ``p0 = kh | kw << 8 | stride_h << 16 | stride_w << 24`` and ``p1 =
pad_top | pad_left << 8``; taps outside the input read the zero point, that is: contribute nothing.

Records.  A *forward record* of an output channel: i32 bias, i32 multiplier, i32 shift, i32 sum of
the weights, then int8 weights, padded with zeros to a multiple of 4; the weights of a convolution
in the order kh, kw, input channel, of a depthwise one kh, kw.  A *transposed record* of an input
channel: int8 weights in the order kh, kw, output channel, padded to a multiple of 4.  A *scale
table*: i32 per channel, Q30.  An *update table*: i32 Q30 mantissa in [2**29, 2**30) or 0 for a
frozen channel, i32 exponent, per output channel.

Trained parameters.  A bias is int32 [O], a convolution's weight int8 [O, kh, kw, n] with n the
number of its trained input channels, a depthwise weight int8 [n, kh, kw].  The fractions of a
weight are signed 4-bit numbers, element e in the low (e even) or high (e odd) half of byte e >> 1.
Each of these starts at a multiple of 4.  The index list says which channels (ascending), p = -1
all.  Frozen records hold the initial values of trained channels too.

Arithmetic
==========

int32 sums wrap; products of two int32 are taken in 64 bits.  ``x >> n`` is arithmetic.

* ``rshift(x, n)`` = (x + (1 << (n-1))) >> n for n > 0, x for n = 0, 0 for n > 62.
* ``bitlen(x)``: position of the highest set bit of x >= 0 plus 1; bitlen(0) = 0.
* ``mbqm(x, m, s)``, gemmlowp: y = x * 2**max(s, 0) (int32); ab = y * m; y = (ab + nudge) / 2**31
  truncated to zero with nudge = 2**30 if ab >= 0 else 1 - 2**30; then e = max(-s, 0): y = (y >> e)
  + ((y & (2**e - 1)) > ((2**e - 1) >> 1) + (y < 0)).  Shifts are brought into [-31, 30] first.
* ``once(x, m, s)``, rounded a single time: v = x * m (64 bits); y = (|v| + (1 << (30 - s))) >> (31
  - s) with the sign of v, in 64 bits until the clamp.  Shifts are brought into [-31, 30] first.
* ``div_away(a, n)`` = (a + n/2) / n for a > 0 else (a - n/2) / n, with n/2 rounded down and the
  quotient truncated.

``clamp(v, mask)``: y = v limited to [act_min, act_max]; when learning, the mask bit is v's being
inside, both ends included.

Forward operators
-----------------

1 CONV (x, y, mask)
    p0 p1 geometry, p2 act_min, p3 act_max, p4 forward records, p5 trained weight, p6 trained bias,
    p7 index list, p8 its length. y = clamp(zy + mbqm(bias + sum (x - zx) * w, multiplier, shift)).
    p9 = 1 (a TFLite FULLY_CONNECTED): once(...) in the place of mbqm(...)
2 DEPTHWISE (x, y, mask)
    the same; output channel c reads input channel c // (y.c / x.c), p7 lists output channels
3 ADD (a, b, y, mask)
    p0 p1 multiplier and shift of a, p2 p3 of b, p4 p5 of the sum, p6 act_min, p7 act_max. y =
    clamp(zy + mbqm( mbqm((a - za) << 20, p0, p1) + mbqm((b - zb) << 20, p2, p3), p4, p5))
4 AVERAGE_POOL (x, y, mask)
    p0 p1 geometry, p2 p3 act. Over the taps inside the input: y = clamp(div_away(sum x, count))
5 MAX_POOL (x, y, arg)
    the same with the maximum; arg (int8, read as u8) keeps the window position ky * kw + kx of the
    first maximum
6 MEAN (x, y, mask)
    p0 multiplier, p1 shift (1 / count is in them), p2 act_min, p3 act_max. y = clamp(zy + mbqm(sum
    of (x - zx), p0, p1)); the sum goes over h and w, or over w alone where y is (x.h, 1, c)
7 PAD (x, y)
    p0 top, p1 left, p2 value: y is x with borders of value
8 SOFTMAX (x, y)
    p0 multiplier, p1 left shift, p2 diff_min; gemmlowp's fixed point (5 integer bits in, 12 in the
    sum), over c
9 GATHER (x, y)
    p0 index list, p1 its length: y = x[..., list]
10 REQUANTIZE (x, y, mask)
    p0 multiplier, p1 shift, p2 p3 act. y = clamp(zy + mbqm(x - zx, p0, p1))

11 STREAM (buffer)
    the members, operators p0 to p0 + p1 - 1, run row by row; p2 = 1: on rows of the input as they
    arrive. p3, p4: offset and length of the constants that they use; see below

A STREAM computes what its members (1 to 5, 10; without masks and trained parameters) would compute
one after the other, so what follows says only where things lie.  p10 of a member says where its
first input (the low half, an i16) and its second (the high half) come from: the member of that
number (from 0), the input of the net for p1, -1 a tensor that is there as a whole; p11 is how many
rows it gives at a time, fewer only at the end.  A tensor with a number of rows holds at any time a
run of rows, the lowest at its start.  Of the members that can, the one that comes last gives its
next rows: it can if all rows that they are made from are held and there is room for them; where
there is none, rows that no member is going to read make some, and those after them move to the
start.  The buffer (int32)
holds p1 operators (64 bytes each), then for each member, and for the input, two i16: the first row
held and the one after the last; then 28 bytes for the executor; then, where memory does not hold
the file, those constants.  With p2 = 1 it is operator 0; it runs while rows of the input are
written, and in its turn only has to be finished.

Gradients
---------

A gradient tensor G is int16 q and one exponent E (slot in the exponents tensor): the derivative of
the loss by the *integer* value it belongs to is q * 2**E, |q| <= 2**14.  E = -30000 (``EXP_ZERO``)
says that all q are 0. ``normalize(v, bits)`` over a whole tensor of integers v: s = max(0,
bitlen(max |v|) - bits); q = rshift(v, s); the caller's exponent grows by s; if all v are 0, E =
EXP_ZERO.

32 CROSS_ENTROPY (logits, g)
    p0 = round(scale * log2(e) * 2**16), p1 = scale's mantissa in [2**14, 2**15), p2 = its exponent
    (scale = p1 * 2**p2); see below
33 SCALE_GRAD (g, mask, out)
    p0 scale table (-1: the one multiplier p3), p1 its exponent, p2 bits, p3 multiplier Q30. v = g
    * table[c] where the mask bit is set, else 0; out = normalize(v, p2), E + p1 + s. out may be g
34 CONV_INPUT_GRAD (g, dx)
    p0 p1 geometry, p2 transposed records (-1: all weights are trained), p3 trained weight, p4
    index list, p5 its length, p6 shift. v = sum g * w over taps and output channels; s = max(p6,
    bitlen(max |v|) - 14); dx = rshift(v, s), E + s, or EXP_ZERO if all v are 0
35 DEPTHWISE_INPUT_GRAD (g, dx)
    the same from forward records (p2); dx may be g where both have one shape
36 BIAS_UPDATE (g)
    p0 trained bias, p1 update table, p2 accumulator, p3 key: v[c] = sum over h, w of g;
    update(bias, v)
37 CONV_WEIGHT_UPDATE (g, x)
    p0 p1 geometry, p2 trained weight, p3 update table, p4 accumulator, p5 key, p8 fractions (in
    the trained region, -1: none). x holds the trained channels only; v = sum over pixels of g * (x
    - zx); update(weight, v)
38 DEPTHWISE_WEIGHT_UPDATE (g, x)
    the same; p6 index list of channels, p7 its length (x then holds just those; with -1, x is the
    layer's whole input); the update table has all the layer's channels in either case
39 ADD_GRADS (a, b, out)
    E = max(Ea, Eb); t = rshift(a, E - Ea) + rshift(b, E - Eb); out = (t + ((t >> 1) & 1)) >> 1,
    half of it with ties to even (rounded up, they would add up over the network), exponent E + 1;
    an all-zero side counts as 0; out may be a or b
40 AVERAGE_POOL_GRAD (g, mask, dx)
    p0 p1 geometry. v = sum over windows of g * div_away(2**15, count), masked; dx = normalize(v,
    14), E - 15 + s
41 MAX_POOL_GRAD (g, arg, dx)
    p0 p1 geometry. v = sum of g whose maximum it was; dx = normalize(v, 14), E + s
42 MEAN_GRAD (g, mask, dx)
    p0 exponent, p1 multiplier Q30. v = g * p1 masked; q = normalize(v, 14) over g's elements,
    spread over h and w (or w), E + p0 + s
43 PAD_GRAD (g, dx)
    p0 top, p1 left: the inside of g, E

A gradient operator whose input gradients are all EXP_ZERO writes zeros and EXP_ZERO; an update
with E = EXP_ZERO does nothing.  A mask of 65535 lets everything pass.  In the depthwise gradients
the input channel is c // (g.c / x.c).

CROSS_ENTROPY, over the first n classes (n is a run-time argument).  d = max(logits) - logit; t = d
* p0; k = t >> 16; f = t & 65535.  r = POLY[5]; for i = 4 .. 0: r = POLY[i] + ((r * f) >> 16); e =
(r >> 10) >> min(k, 31), so 2**-t in Q20.  S = sum e.  G = e - (S if this is the label else 0); a =
max(0, bitlen(max |G|) - 14); Gn = rshift(G, a).  x = bitlen(S) - 16; Sm = S >> x; r = 2**31 // Sm;
m = (r * p1) >> 15; v = Gn * m; q = normalize(v, 14) with E = a - 16 - x + p2 + s.  Classes past n
get 0.  The loss in nats, Q16: log2 by 16 squarings: M = S << (31 - bitlen(S)), L = (bitlen(S) - 1)
<< 16, then for b = 15 .. 0: M = (M * M) >> 30; if M >= 2**31: M >>= 1, L += 1 << b; loss = ((L -
20 * 65536 + t[label]) * 45426) >> 16. ``probabilities``: p = ((e >> 5) * r) >> (11 + x), Q15.

Updates
-------

Run-time arguments: rate = rm * 2**re with 1 <= rm < 4096; u32 seed; u32 step; whether an
accumulator is given. Update table entry (mant, exp): the parameter's own step in LSB is rate * v *
2**E * mant * 2**exp (quantisation-aware scaling: mant * 2**exp = 1 / weight_scale**2 for weights,
1 / (x_scale * weight_scale)**2 for biases).

c = (mant >> 14) * rm; prod = v * c; t = prod * 2**(exp + 14 + E + re + F) with F = 22 for weights,
8 for biases: sh = -(exp + 14 + E + re + F); for sh >= 0: prod >> min(sh, 63); for sh < 0: prod <<
-sh, or the limit with prod's sign where bitlen(|prod|) - sh > 31; then t is limited to [-2**30,
2**30].

Draws: mix(x): x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16, all u32.
k = mix(mix(seed + 0x9e3779b9 * (step + 1)) ^ (key * 0x85ebca6b + 1)); draw(e) = mix(k + e *
0x9e3779b9) for element e of the trained tensor, so the order in which a kernel visits the elements
does not matter.

* Without accumulator: d = (t + (draw(e) >> (32 - F))) >> F; a weight becomes limit(w - d, -127,
  127), a bias limit(b - d, -2**30, 2**30).
* With fractions (4 bits per weight, unit 2**-4 LSB, 0 at first) and no accumulator: a = fraction +
  ((t + (draw(e) >> 14)) >> 18); n = (a + 8) >> 4; the weight becomes limit(w - n, -127, 127), its
  fraction a - (n << 4).  Small steps then add up with a sixteenth of the noise of rounding.
* With accumulator (int16 per weight, int32 per bias, unit 2**-8 LSB; p_acc is the offset): weights
  a += (t + (draw(e) >> 18)) >> 14 limited to int16, biases a += t limited to [-2**30, 2**30].
  ``apply`` then, per element: n = (a + 128) >> 8; parameter -= n, limited as above; a -= n << 8.
  The remainder stays.

A frozen channel (mant = 0) is left alone in all cases.

Meta section
============

``name``, ``classes`` (names of those in use at first), ``input``, ``output`` and ``logits``:
shape, scale and zero point, and of the logits ``p0``.  ``rate``, where it is there: the learning
rate to begin with.  ``head``, where classes can change places, because their rows of the last
layer differ in nothing but what is trained: lists of (0 the trained region or 1 the accumulators,
offset there, bits of a row), row after row from that offset on.  A row of zeros has learned
nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .graph import SproutError

MAGIC = b"SPRT"
VERSION = 2
HEADER = 128
NONE = 0xFFFF
EXP_ZERO = -30000
TRAIN, INFER, MEMBER = 1, 2, 4
FLAG_INPUT_FLOAT, FLAG_OUTPUT_FLOAT, FLAG_LEARNS = 1, 2, 4

OPCODES = {
    "conv": 1,
    "depthwise": 2,
    "add": 3,
    "average_pool": 4,
    "max_pool": 5,
    "mean": 6,
    "pad": 7,
    "softmax": 8,
    "gather": 9,
    "requantize": 10,
    "stream": 11,
    "cross_entropy": 32,
    "scale_grad": 33,
    "conv_input_grad": 34,
    "depthwise_input_grad": 35,
    "bias_update": 36,
    "conv_weight_update": 37,
    "depthwise_weight_update": 38,
    "add_grads": 39,
    "average_pool_grad": 40,
    "max_pool_grad": 41,
    "mean_grad": 42,
    "pad_grad": 43,
}
OP_NAMES = {code: name for name, code in OPCODES.items()}
DTYPES = ("int8", "int16", "int32", "bits")

EXP2_POLY = (1073741824, -744256846, 257890763, -59377501, 9890102, -1017428)
"""2**-x on [0, 1), Q30, degree 5, worst error 1.1e-7 (least squares at Chebyshev nodes)."""

_HEAD = struct.Struct("<4sHHII32s10I4I10HI")
_TENSOR = struct.Struct("<IHHHBbHH")
_OP = struct.Struct("<HH6H12i")
TENSOR_SIZE, OP_SIZE = _TENSOR.size, _OP.size


@dataclass
class BlobTensor:
    """A row of the tensor table; ``rows`` of its h rows are in the arena at a time, 0: all."""

    offset: int
    h: int
    w: int
    c: int
    dtype: str
    zero_point: int
    slot: int
    rows: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.h, self.w, self.c

    @property
    def nbytes(self) -> int:
        """Bytes in the arena."""
        n = (self.rows or self.h) * self.w * self.c
        return (
            (n + 7) // 8
            if self.dtype == "bits"
            else n * {"int8": 1, "int16": 2, "int32": 4}[self.dtype]
        )


@dataclass
class BlobOp:
    """A row of the operator table: ``t`` are six tensor numbers, ``p`` twelve parameters."""

    kind: str
    flags: int
    t: list[int]
    p: list[int]


@dataclass
class Blob:
    """A blob, taken apart.  ``constants``, ``initial`` and ``program`` are the raw sections."""

    flags: int
    arena_len: int
    trained_len: int
    accum_len: int
    scratch_len: int
    n_forward: int
    input: int
    output: int
    logits: int
    exponents: int
    max_classes: int
    n_classes: int
    tensors: list[BlobTensor]
    ops: list[BlobOp]
    tail: bytes  # index lists and the input table: the program section after the tensors
    lut_offset: int
    constants: bytes  # the constants section after the operator table
    initial: bytes
    meta: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors_len(self) -> int:
        """Bytes of the tensor table: where ``tail`` starts in the program section."""
        return len(self.tensors) * TENSOR_SIZE

    @property
    def program_len(self) -> int:
        """Bytes of header and program section: what a board keeps in RAM."""
        return HEADER + self.tensors_len + len(self.tail)

    def indices(self, offset: int, count: int) -> np.ndarray:
        """Return the index list (int64 [count]) at ``offset`` of the program section."""
        start = offset - self.tensors_len
        return np.frombuffer(self.tail, "<u2", count, start).astype(np.int64)

    @property
    def lut(self) -> np.ndarray | None:
        """Input value (int8 [256]) by pixel, or None."""
        if not self.lut_offset:
            return None
        return np.frombuffer(self.tail, np.int8, 256, self.lut_offset - self.tensors_len)

    @property
    def takes_rows(self) -> bool:
        """Whether frames arrive row by row and are nowhere whole."""
        return bool(self.tensors[self.input].rows)

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """Return the pixels (uint8) that the input table turns into ``x`` (int8).

        Raises SproutError if there are none for some value.
        """
        if self.lut is None:
            return x.view(np.uint8)
        known, pixel = np.unique(self.lut, return_index=True)
        at = np.searchsorted(known, x).clip(max=len(known) - 1)
        wrong = known[at] != x
        if wrong.any():
            raise SproutError(
                f"The input value {x[wrong].flat[0]} stands for no pixel, and this blob takes "
                "rows of pixels: give uint8 pixels, or compile it without --rows."
            )
        return pixel[at].astype(np.uint8)

    def to_bytes(self) -> bytes:
        """Return the file."""
        tensors = b"".join(
            _TENSOR.pack(
                t.offset,
                t.h,
                t.w,
                t.c,
                DTYPES.index(t.dtype),
                t.zero_point,
                t.slot,
                t.rows,
            )
            for t in self.tensors
        )
        ops = b"".join(_OP.pack(OPCODES[op.kind], op.flags, *op.t, *op.p) for op in self.ops)
        sections = [
            tensors + self.tail,
            ops + self.constants,
            self.initial,
            json.dumps(self.meta, separators=(",", ":")).encode(),
            json.dumps(self.info, separators=(",", ":")).encode(),
        ]
        body, spans = b"", []
        for section in sections:
            spans += [HEADER + len(body), len(section)]
            body += section + bytes(-len(section) % 8)
        head = _HEAD.pack(
            MAGIC, VERSION, HEADER, HEADER + len(body), self.flags, bytes(32), *spans,
            self.arena_len, self.trained_len, self.accum_len, self.scratch_len,
            len(self.tensors), len(self.ops), self.n_forward, self.input, self.output, self.logits,
            self.exponents, self.max_classes, self.n_classes, 0, self.lut_offset,
        )  # fmt: skip
        data = bytearray(head + body)
        data[16:48] = hashlib.sha256(data[48:]).digest()
        return bytes(data)


def read(data: bytes, name: str = "blob") -> Blob:
    """Take a blob file apart.

    Raises SproutError, in one sentence that starts with ``name``, if it is not a whole blob of
    this version.
    """
    if len(data) < HEADER or data[:4] != MAGIC:
        raise SproutError(
            f"{name} is not a Sprout blob: it does not start with SPRT; "
            "make one with 'sprout compile'."
        )
    head = _HEAD.unpack_from(data)
    _, version, header_len, length, flags, digest = head[:6]
    if version != VERSION or header_len != HEADER:
        raise SproutError(
            f"{name} is a blob of format {version} and this is a reader of format {VERSION}: "
            "compile the model again with this version of sprout."
        )
    if length != len(data):
        raise SproutError(
            f"{name} has {len(data)} bytes and says it has {length}: "
            "copy it again, it was cut short."
        )
    if hashlib.sha256(data[48:]).digest() != digest:
        raise SproutError(
            f"{name} is damaged, its SHA-256 does not match: copy or compile it again."
        )
    spans = head[6:16]
    arena, trained, accum, scratch = head[16:20]
    n_tensors, n_ops, n_forward, x, y, logits, exponents, max_classes, n_classes, _, lut = head[
        20:31
    ]
    sections = []
    for offset, count in zip(spans[::2], spans[1::2], strict=True):
        if offset < HEADER or offset + count > length:
            raise SproutError(
                f"{name} is damaged, a section lies outside the file: compile it again."
            )
        sections.append(data[offset : offset + count])
    program, constants = sections[:2]
    tensors_len, ops_len = n_tensors * TENSOR_SIZE, n_ops * OP_SIZE
    if tensors_len > len(program) or ops_len > len(constants):
        raise SproutError(
            f"{name} is damaged, its tables are longer than their section: compile it again."
        )
    tensors = []
    for i in range(n_tensors):
        offset, h, w, c, dtype, zero, slot, rows = _TENSOR.unpack_from(program, i * TENSOR_SIZE)
        if dtype >= len(DTYPES):
            raise SproutError(
                f"{name} is damaged, tensor {i} has the unknown type {dtype}: compile it again."
            )
        tensors.append(BlobTensor(offset, h, w, c, DTYPES[dtype], zero, slot, rows))
    ops = []
    for i in range(n_ops):
        code, flag, *rest = _OP.unpack_from(constants, i * OP_SIZE)
        if code not in OP_NAMES:
            raise SproutError(
                f"{name} is damaged, operator {i} has the unknown code {code}: compile it again."
            )
        ops.append(BlobOp(OP_NAMES[code], flag, list(rest[:6]), list(rest[6:])))
    if lut and not tensors_len <= lut <= len(program) - 256:
        raise SproutError(f"{name} is damaged, its input table is not there: compile it again.")
    result = Blob(
        flags, arena, trained, accum, scratch, n_forward, x, y, logits, exponents, max_classes,
        n_classes, tensors, ops, program[tensors_len:], lut, constants[ops_len:], sections[2],
        _json(sections[3], f"{name} is damaged, its meta section"),
        _json(sections[4], f"{name} is damaged, its info section"),
    )  # fmt: skip
    wrong = _contradiction(result)
    if wrong:
        raise SproutError(f"{name} is damaged, {wrong}: compile it again.")
    return result


def _contradiction(b: Blob) -> str:
    """What the parts of a blob say that cannot be true together, or nothing.

    The core checks operators when they run; this is what is used from outside them.
    """
    if b.n_forward > len(b.ops):
        return f"{b.n_forward} of its {len(b.ops)} operators are forward ones"
    if len(b.initial) > b.trained_len:
        return "its initial parameters are longer than the trained ones"
    ends = [("input", b.input), ("output", b.output), ("logits", b.logits)]
    for what, number in ends + [("exponents", b.exponents)] * (b.exponents != NONE):
        dtype = "int32" if what == "exponents" else "int8"
        t = b.tensors[number] if number < len(b.tensors) else None
        if t is None or t.dtype != dtype or t.offset + t.nbytes > b.arena_len:
            return f"tensor {number} (the {what}) is missing, of a wrong type or outside the arena"
    if not 0 < b.n_classes <= b.max_classes <= b.tensors[b.logits].nbytes:
        return f"{b.n_classes} classes of {b.max_classes} do not fit its logits"
    classes = b.meta.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "its names of classes are none"
    rate = b.meta.get("rate", 1.0)
    if type(rate) not in (int, float) or not 1e-9 <= rate <= 1e9:
        return "its learning rate is none"
    return ""


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SproutError(f"{what} is no JSON object: compile it again.")
    return value


def forward_record_size(taps: int) -> int:
    """Bytes of a forward record with ``taps`` weights."""
    return 16 + (taps + 3) // 4 * 4


def transposed_record_size(taps: int) -> int:
    """Bytes of a transposed record with ``taps`` weights."""
    return (taps + 3) // 4 * 4
