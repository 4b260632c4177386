"""MCUNet .pkl files ("On-Device Training Under 256KB Memory", mit-han-lab/tiny-training) -> Graph.

The file is what ``torch.save`` makes of a dict of numpy arrays: a zip archive whose ``data.pkl``
is a pickle.  A pickle is a program, and running a stranger's program is no way to read a model, so
``_unpickle`` is an interpreter of the few instructions that build containers and arrays.  It has
nothing to call: every name but those of numpy's own array format is refused.

The dict: ``first_conv``, ``blocks`` (each ``pointwise1``, ``depthwise``, ``pointwise2``,
``residual``, ``se``, any of which may be None), ``feature_mix`` or None, ``classifier``.  A
convolution has int8 OIHW weights, int32 biases and the scales and zero points of its input and
output.  Its activation function is the range of its output: a ReLU6 is y_scale 6/255 with y_zero
-128.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Graph, Op, SproutError, Tensor, mean_multiplier

MAX_BYTES = 1 << 28
"""No model for a microcontroller is larger; a zip archive may claim any size."""

INT8_RANGE = {"act_min": -128, "act_max": 127}


def recognises(data: bytes) -> bool:
    """Whether ``data`` is a zip archive or a pickle of protocol 2 or later."""
    return data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5")


def read(data: bytes, name: str) -> Graph:
    """Return the Graph of an MCUNet file; ``name`` is what error messages call it.

    Raises SproutError if the file is damaged, holds anything but arrays and plain values, or is no
    MCUNet.
    """
    if data[:2] == b"PK":
        data = _member(data, name)
    model = _unpickle(data, name)
    return _Importer(model, name).graph()


def _member(data: bytes, name: str) -> bytes:
    """Return the pickle inside a torch-saved archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = [i for i in archive.infolist() if i.filename.split("/")[-1] == "data.pkl"]
            if len(found) != 1 or found[0].file_size > MAX_BYTES:
                raise SproutError(
                    f"{name} is a zip archive without a model in it (no data.pkl): give the .pkl "
                    "that torch.save wrote."
                )
            return archive.read(found[0])
    except SproutError:
        raise
    except Exception as error:  # zipfile raises eight kinds
        raise SproutError(f"{name} is a damaged zip archive: copy the model again.") from error


# The pickle interpreter


@dataclass(eq=False)
class _Name:
    """A global that the pickle mentions; nothing is ever imported for it."""

    path: str


@dataclass(eq=False)
class _Pending:
    """An array or a dtype; ``value`` is None until a BUILD instruction completes it."""

    kind: str
    spec: Any = None
    value: Any = None


_MARK = object()
_MODULES = {
    "numpy.core.multiarray": "multiarray",
    "numpy._core.multiarray": "multiarray",
    "numpy.core.numeric": "numeric",
    "numpy._core.numeric": "numeric",
}
_KNOWN = {
    "multiarray._reconstruct",
    "multiarray.scalar",
    "numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    "collections.OrderedDict",
}
_PUSH = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickle(data: bytes, name: str) -> Any:
    """Return the containers, scalars and numeric arrays of a pickle.

    Raises SproutError for every other thing in it, before anything could happen because of it.
    """
    try:
        value = _Machine(name).run(data)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise SproutError(f"{name} holds a damaged pickle: copy the model again.") from error
    return value


class _Machine:
    """The stack machine of a pickle, reduced to what builds containers and arrays."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, arg, _ in pickletools.genops(data):
            word = opcode.name
            if word in _PUSH:
                self.stack.append(arg)
            elif word in _CONSTANTS:
                self.stack.append(_CONSTANTS[word])
            elif word in _TUPLES:
                n = _TUPLES[word]
                items = [self.pop() for _ in range(n)]
                self.stack.append(tuple(reversed(items)))
            elif word == "STOP":
                return _finished(self.pop())
            else:
                step = getattr(self, f"op_{word.lower()}", None)
                if step is None:
                    raise self.refuse(f"the pickle instruction {word}")
                step(arg)
        raise ValueError("no STOP")

    def refuse(self, what: str) -> SproutError:
        return SproutError(
            f"{self.name} holds {what}, and Sprout reads only numbers, containers and numeric "
            "numpy arrays from a pickle: take the model from a source you trust."
        )

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[Any]:
        at = max(i for i, v in enumerate(self.stack) if v is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
        return value

    def op_proto(self, arg: Any) -> None:
        """Nothing depends on the protocol's number."""

    op_frame = op_proto

    def op_mark(self, arg: Any) -> None:
        self.stack.append(_MARK)

    def op_pop(self, arg: Any) -> None:
        self.stack.pop()

    def op_empty_dict(self, arg: Any) -> None:
        self.stack.append({})

    def op_empty_list(self, arg: Any) -> None:
        self.stack.append([])

    def op_tuple(self, arg: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def op_list(self, arg: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def op_dict(self, arg: Any) -> None:
        items = self.pop_to_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def op_append(self, arg: Any) -> None:
        value = self.pop()
        self.top(list).append(value)

    def op_appends(self, arg: Any) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def op_setitem(self, arg: Any) -> None:
        value, key = self.pop(), self.pop()
        self.top(dict)[key] = value

    def op_setitems(self, arg: Any) -> None:
        items = self.pop_to_mark()
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def op_put(self, arg: Any) -> None:
        self.memo[int(arg)] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, arg: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, arg: Any) -> None:
        self.stack.append(self.memo[int(arg)])

    op_binget = op_long_binget = op_get

    def op_global(self, arg: Any) -> None:
        module, _, word = str(arg).partition(" ")
        self.push_name(module, word)

    def op_stack_global(self, arg: Any) -> None:
        word, module = self.pop(), self.pop()
        self.push_name(str(module), str(word))

    def push_name(self, module: str, word: str) -> None:
        path = f"{_MODULES.get(module, module)}.{word}"
        if path not in _KNOWN:
            raise self.refuse(f"a reference to {module}.{word}")
        self.stack.append(_Name(path))

    def op_reduce(self, arg: Any) -> None:
        args, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(args, tuple):
            raise TypeError("REDUCE without a name and a tuple")
        if name.path == "_codecs.encode":  # bytes, as protocol 2 writes them
            text, codec = args
            if codec not in ("latin1", "latin-1"):
                raise ValueError(f"codec {codec}")
            self.stack.append(text.encode("latin-1"))
        elif name.path == "multiarray._reconstruct":
            self.stack.append(_Pending("array"))
        elif name.path == "numpy.dtype":
            self.stack.append(_Pending("dtype", self.dtype(args[0])))
        elif name.path == "multiarray.scalar":
            self.stack.append(self.array((), self.finished_dtype(args[0]), False, args[1])[()])
        elif name.path == "numeric._frombuffer":  # protocol 5
            raw, dtype, shape, order = args
            self.stack.append(self.array(shape, self.finished_dtype(dtype), order == "F", raw))
        elif name.path == "collections.OrderedDict" and not args:
            self.stack.append({})
        else:
            raise self.refuse(f"a call of {name.path}")

    def op_build(self, arg: Any) -> None:
        state, pending = self.pop(), self.top(_Pending)
        if pending.value is not None or not isinstance(state, tuple):
            raise ValueError("BUILD of something finished")
        if pending.kind == "dtype":  # (3, byte order, subdtype, names, fields, size, align, flags)
            if any(part is not None for part in state[2:5]):
                raise self.refuse("arrays of records")
            pending.value = pending.spec.newbyteorder(state[1] if state[1] in "<>" else "=")
        else:  # (1, shape, dtype, Fortran order, bytes)
            _, shape, dtype, fortran, raw = state
            pending.value = self.array(shape, self.finished_dtype(dtype), fortran, raw)

    def dtype(self, spec: Any) -> np.dtype[Any]:
        """Return a numeric dtype from its short name (i1, f4); objects and others are refused."""
        text = str(spec)
        if text[:1] not in ("b", "i", "u", "f") or not text[1:].isdigit():
            raise self.refuse(f"an array of type {text}")
        return np.dtype(text)

    def finished_dtype(self, dtype: Any) -> np.dtype[Any]:
        if not isinstance(dtype, _Pending) or dtype.kind != "dtype":
            raise TypeError("an array without a dtype")
        return dtype.spec if dtype.value is None else dtype.value

    def array(self, shape: Any, dtype: np.dtype[Any], fortran: Any, raw: Any) -> np.ndarray:
        if isinstance(raw, str):  # Python 2's bytes
            raw = raw.encode("latin-1")
        if not isinstance(raw, (bytes, bytearray)):
            raise self.refuse(f"an array of type {type(raw).__name__}")
        sizes = [int(d) for d in shape]
        flat = np.frombuffer(bytes(raw), dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(sizes[::-1]).T if fortran else flat.reshape(sizes)


def _finished(root: Any) -> Any:
    """Return ``root`` with the arrays put where they were pending.

    A container that holds itself is a ValueError; depth is that of the containers in a model.
    """
    done: dict[int, Any] = {}
    busy: set[int] = set()

    def finish(value: Any) -> Any:
        if isinstance(value, _Pending):
            if value.kind != "array" or value.value is None:
                raise ValueError("an unfinished array")
            return value.value
        if isinstance(value, _Name):
            raise ValueError("a name where a value belongs")
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in done:
            return done[id(value)]
        if id(value) in busy or len(busy) > 50:
            raise ValueError("containers inside each other without end")
        busy.add(id(value))
        out: Any
        if isinstance(value, dict):
            out = {finish(k): finish(v) for k, v in value.items()}
        else:
            out = type(value)(finish(v) for v in value)
        busy.discard(id(value))
        done[id(value)] = out
        return out

    return finish(root)


# The model


class _Importer:
    """Turns the dict of an MCUNet file into a Graph."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name
        self.ops: list[Op] = []
        self.convs = 0

    def graph(self) -> Graph:
        first = self.part(self.model, "first_conv", "the file")
        blocks = self.part(self.model, "blocks", "the file")
        classifier = self.part(self.model, "classifier", "the file")
        if not isinstance(blocks, (list, tuple)):
            raise self.refuse("blocks", "is no list")
        size = self.pair(self.part(first, "in_shape", "first_conv"), "first_conv: in_shape")
        channels = self.whole(self.part(first, "in_channel", "first_conv"), "first_conv: channels")
        if min(*size, channels) < 1 or max(*size, channels) > 0xFFFF:
            raise self.refuse("first_conv", f"takes the shape {[*size, channels]}")
        scale, zero_point = self.quantization(first, "x", "first_conv")
        entrance = Tensor("input", (*size, channels), scale=scale, zero_point=zero_point)
        x = self.conv(entrance, first, "first_conv")
        for i, block in enumerate(blocks):
            x = self.block(x, block, f"block{i}")
        mix = self.model.get("feature_mix")
        if mix is not None:
            x = self.conv(x, mix, "feature_mix")
        logits = self.conv(self.pool(x, classifier), classifier, "classifier")
        if logits.shape[:2] != (1, 1):
            raise self.refuse("classifier", "is no 1x1 convolution")
        return Graph(
            name=self.name,
            ops=self.ops,
            input=entrance,
            output=logits,
            logits=logits,
            input_shape=entrance.shape,
            output_shape=logits.shape[2:],
        )

    def block(self, x: Tensor, block: Any, where: str) -> Tensor:
        """An inverted residual: expand, filter each channel, project, add the input back."""
        entry = x
        if not isinstance(block, dict):
            raise self.refuse(where, "is no block")
        if block.get("se") is not None:
            raise SproutError(
                f"{self.name}: {where} has a squeeze-and-excite part (se), which Sprout does not "
                "do; take a model without it."
            )
        for part in ("pointwise1", "depthwise", "pointwise2"):
            if block.get(part) is not None:
                x = self.conv(x, block[part], f"{where}.{part}")
        residual = block.get("residual")
        if residual is None:
            return x
        where = f"{where}.residual"
        if isinstance(residual, dict) and "kernel_size" in residual:  # with its own convolution
            entry = self.conv(entry, residual, where)
            scale, zero_point = self.quantization(residual, "out", where)
        else:
            entry = self.requantize(entry, *self.quantization(residual, "x", where), where)
            scale, zero_point = self.quantization(residual, "y", where)
        if entry.shape != x.shape:
            raise self.refuse(where, f"adds {list(entry.shape)} to {list(x.shape)}")
        y = Tensor(f"{where}.add", x.shape, scale=scale, zero_point=zero_point)
        return self.emit("add", [entry, x], y, **INT8_RANGE)

    def pool(self, x: Tensor, classifier: Any) -> Tensor:
        """Global average, whose result has the classifier's input scale."""
        x = self.requantize(x, *self.quantization(classifier, "x", "classifier"), "classifier")
        y = Tensor("pool", (1, 1, x.shape[2]), scale=x.scale, zero_point=x.zero_point)
        mult, shift = mean_multiplier(x.scale, y.scale, x.shape[0] * x.shape[1])
        return self.emit("mean", [x], y, mult=mult, shift=shift, **INT8_RANGE)

    def conv(self, x: Tensor, cfg: Any, where: str) -> Tensor:
        params = self.part(cfg, "params", where)
        weight = self.array(params, "weight", np.dtype(np.int8), where)
        bias = self.array(params, "bias", np.dtype(np.int32), where).reshape(-1)
        scales = self.array(params, "w_scales", np.dtype(np.float64), where).reshape(-1)
        if weight.ndim != 4 or 0 in weight.shape:
            raise self.refuse(where, f"has weights of shape {list(weight.shape)}")
        o, i, kh, kw = weight.shape
        if bias.shape != (o,) or scales.shape != (o,):
            raise self.refuse(
                where, f"has {bias.size} biases and {scales.size} scales for {o} filters"
            )
        if not np.all(np.isfinite(scales) & (scales >= 0)):
            raise self.refuse(where, "has weight scales that are no numbers")
        groups = self.whole(cfg.get("groups", 1), f"{where}: groups")
        stride = self.pair(cfg.get("stride", 1), f"{where}: stride")
        if kh % 2 == 0 or kw % 2 == 0 or max(kh, kw, *stride) > 255 or min(stride) < 1:
            raise self.refuse(
                where, f"has a kernel of {kh}x{kw} and stride {stride[0]}x{stride[1]}"
            )
        x = self.requantize(x, *self.quantization(cfg, "x", where), where)
        if groups == 1 and i == x.shape[2]:
            kind, weight = "conv", weight.transpose(0, 2, 3, 1)
        elif groups == o == x.shape[2] and i == 1:
            kind, weight = "depthwise", weight[:, 0]
        else:
            raise self.refuse(
                where, f"has {groups} groups, {i} of {x.shape[2]} channels and {o} filters"
            )
        # torch pads with the same amount on every side, unlike TFLite's SAME at stride 2.
        pad = (kh // 2, kw // 2)
        h, w = ((n - 1) // s + 1 for n, s in zip(x.shape[:2], stride, strict=True))
        scale, zero_point = self.quantization(cfg, "y", where)
        y = Tensor(where, (h, w, o), scale=scale, zero_point=zero_point)
        op = Op(kind, [x], [y], name=where)
        op.attrs = {
            "stride": stride,
            "padding": (*pad, *pad),
            **INT8_RANGE,
            "conv_index": self.convs,
            "layer": where,
        }
        op.params = {
            "weight": np.ascontiguousarray(weight),
            "bias": _limit_bias(bias, weight),
            "weight_scales": scales,
        }
        self.convs += 1
        self.ops.append(op)
        return y

    def requantize(self, x: Tensor, scale: float, zero_point: int, where: str) -> Tensor:
        """Return ``x`` in the scale its consumer expects: itself in all published models."""
        if x.zero_point == zero_point and abs(x.scale - scale) <= 1e-6 * scale:
            return x
        y = Tensor(f"{where}.in", x.shape, scale=scale, zero_point=zero_point)
        return self.emit("requantize", [x], y, **INT8_RANGE)

    def emit(self, kind: str, inputs: list[Tensor], y: Tensor, **attrs: Any) -> Tensor:
        self.ops.append(Op(kind, inputs, [y], attrs, name=y.name))
        return y

    # parts of the dict

    def refuse(self, where: str, fault: str) -> SproutError:
        return SproutError(
            f"{self.name}: {where} {fault}; give an int8 MCUNet as tiny-training saves it."
        )

    def part(self, holder: Any, key: str, where: str) -> Any:
        if not isinstance(holder, dict) or holder.get(key) is None:
            raise self.refuse(where, f"has no {key}")
        return holder[key]

    def whole(self, value: Any, where: str) -> int:
        if not isinstance(value, (int, float, np.number)) or value != int(value):
            raise self.refuse(where, "is no whole number")
        return int(value)

    def pair(self, value: Any, where: str) -> tuple[int, int]:
        """Return (h, w) of a value given once or twice."""
        both = value if isinstance(value, (list, tuple)) else (value, value)
        if len(both) != 2:
            raise self.refuse(where, "is neither one number nor two")
        return self.whole(both[0], where), self.whole(both[1], where)

    def array(self, params: Any, key: str, dtype: np.dtype[Any], where: str) -> np.ndarray:
        """Return an array after making sure that ``dtype`` holds all of its values."""
        value = np.asarray(self.part(params, key, where))
        if value.dtype.kind not in "iuf":
            raise self.refuse(where, f"has a {key} of type {value.dtype}")
        out = value.astype(dtype)
        if dtype.kind == "i" and not np.array_equal(out, value):
            raise self.refuse(where, f"has a {key} that is not {dtype}")
        return out

    def quantization(self, cfg: Any, letter: str, where: str) -> tuple[float, int]:
        """Return scale and zero point of a convolution's input (x) or output (y)."""
        params = self.part(cfg, "params", where)
        scale = np.asarray(self.part(params, f"{letter}_scale", where))
        zero = np.asarray(self.part(params, f"{letter}_zero", where))
        if scale.size != 1 or zero.size != 1 or scale.dtype.kind not in "iuf":
            raise self.refuse(where, f"has no single {letter}_scale and {letter}_zero")
        real, zero_point = float(scale.reshape(())), self.whole(zero.reshape(()).item(), where)
        if not (np.isfinite(real) and real > 0 and -128 <= zero_point <= 127):
            raise self.refuse(where, f"has {letter}_scale {real:g} and {letter}_zero {zero_point}")
        return real, zero_point


def _limit_bias(bias: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the biases (int32 [O]), limited so that no input makes the int32 sum wrap.

    A dead channel has a weight scale near 4e-9, so its bias, in units of x_scale * w_scale, lies
    at an end of int32, and one more product would bring the sum out at the other end.  What the
    limit takes off is at most sum |w| * 255: below 0.02 LSB of the output in the published models.
    """
    reach = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1) * 255
    room = np.maximum((1 << 31) - 1 - reach, 0)
    return np.clip(bias.astype(np.int64), -room, room).astype(np.int32)
