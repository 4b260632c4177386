"""Reads npz files: inputs for ``sprout run``, labelled pictures for ``sprout learn``.

Every fault of a file is a SproutError of one sentence that names the file.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import blob as blobs
from .graph import SproutError

Array = np.ndarray


@dataclass
class Samples:
    """Labelled pictures.

    ``x`` is uint8 [N, H, W, C] as in the file, ``y`` int64 [N], ``shape`` the model's (h, w, c).
    """

    x: Array
    y: Array
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.y)

    def frame(self, i: int) -> Array:
        """Picture ``i``, uint8, scaled to ``shape``."""
        return fit(self.x[i], self.shape)

    def frames(self) -> Iterator[Array]:
        """All pictures, uint8, scaled."""
        return (self.frame(i) for i in range(len(self)))

    def __iter__(self) -> Iterator[tuple[Array, int]]:
        for i in range(len(self)):
            yield self.frame(i), int(self.y[i])

    def take(self, order: Array) -> Samples:
        """The samples of these numbers, in this order."""
        return Samples(self.x[order], self.y[order], self.shape)


def load_samples(
    path: Path, blob: blobs.Blob, say: Callable[[str], object] = lambda text: None
) -> Samples:
    """Read ``x`` uint8 [N, H, W, C] or [N, H, W] and ``y`` [N], numbers or names of classes.

    ``say`` is told in a sentence when the pictures have to be scaled.  Raises SproutError.
    """
    arrays = read_npz(path, ("x", "y"))
    x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8:
        raise SproutError(f"{path}: 'x' is {x.dtype} and must be uint8, pixels from 0 to 255.")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise SproutError(
            f"{path}: 'x' has the shape {list(x.shape)} and must be [N, H, W, C] with C 1 or 3."
        )
    if y.shape != x.shape[:1]:
        raise SproutError(
            f"{path}: 'y' has the shape {list(y.shape)} and must be [{len(x)}], one per picture."
        )
    tensor = blob.tensors[blob.input]
    if blob.lut is None:
        raise SproutError(
            f"{path} holds pictures and the model's input of {list(tensor.shape)} is none: "
            "it can be run ('sprout run') but not taught with pictures."
        )
    labels = _labels(path, y, arrays.get("classes"), [str(name) for name in blob.meta["classes"]])
    if x.shape[1:] != tensor.shape:
        say(f"{path}: scaling {_size(x.shape[1:])} to the model's {_size(tensor.shape)}")
    return Samples(x, labels, tensor.shape)


def load_inputs(path: Path, blob: blobs.Blob) -> Array:
    """Read ``x`` [N, ...] in the model's own form and return int8 [N, h, w, c].

    A model that takes float32 has its QUANTIZE done here: x / scale rounded half away from zero,
    plus the zero point.  Raises SproutError.
    """
    x = read_npz(path, ("x",))["x"]
    shape = blob.tensors[blob.input].shape
    if (
        x.ndim == 0
        or x[:1].size != np.prod(shape)
        or _squeezed(x.shape[1:]) not in (_squeezed(shape), [np.prod(shape)])
    ):
        raise SproutError(
            f"{path}: 'x' has the shape {list(x.shape)} and must be [N, {str(list(shape))[1:]}."
        )
    x = x.reshape(-1, *shape)
    if not blob.flags & blobs.FLAG_INPUT_FLOAT:
        if x.dtype != np.int8:
            raise SproutError(f"{path}: 'x' is {x.dtype} and this model takes int8.")
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise SproutError(f"{path}: 'x' is {x.dtype} and this model takes float32.")
    if not np.isfinite(x).all():
        raise SproutError(f"{path}: 'x' holds values that are not finite numbers.")
    about = blob.meta["input"]
    with np.errstate(over="ignore"):  # what is out of range is clipped below
        real = (x.astype(np.float32) / np.float32(about["scale"])).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(real) + 0.5), real)
    return np.clip(rounded + about["zero_point"], -128, 127).astype(np.int8)


def to_outputs(q: Array, blob: blobs.Blob) -> Array:
    """Return int8 outputs [N, h, w, c] in the model's own form: vectors [N, c], maybe float32."""
    shape = q.shape[1:]
    if shape[:2] == (1, 1):
        q = q.reshape(len(q), -1)
    if not blob.flags & blobs.FLAG_OUTPUT_FLOAT:
        return q
    about = blob.meta["output"]
    scale = float(np.float32(about["scale"]))
    return (scale * (q.astype(np.int32) - about["zero_point"])).astype(np.float32)


def read_npz(path: Path, wanted: tuple[str, ...]) -> dict[str, Array]:
    """Return all arrays of an npz file; SproutError if one of ``wanted`` is missing."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise SproutError(
                f"{path} holds a single array and must be an npz with {' and '.join(wanted)}."
            )
        with file:
            members = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise SproutError(f"{path} does not exist: give the name of an npz file.") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise SproutError(
            f"{path} is not a readable npz file of plain arrays ({first_line(error)})."
        ) from None
    arrays = {name: value for name, value in members.items() if isinstance(value, np.ndarray)}
    for name in wanted:  # a member that is no array comes as bytes
        if name not in arrays:
            raise SproutError(f"{path} has no '{name}'; it holds {', '.join(arrays) or 'none'}.")
    return arrays


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def fit(picture: Array, shape: tuple[int, int, int]) -> Array:
    """Return a picture, uint8 [H, W, C], scaled bilinearly to (h, w, c), grey made RGB or back."""
    if picture.shape == shape:
        return picture
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image = image.convert("L" if shape[2] == 1 else "RGB")
    if (image.height, image.width) != shape[:2]:
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def _labels(path: Path, y: Array, names: Array | None, classes: list[str]) -> Array:
    """Labels as numbers of the blob's classes.

    Numbers into the file's own ``classes`` go by name where the blob knows all of those.
    """
    known = (
        f"the blob's classes are {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}"
    )
    own = [] if names is None else _texts(path, "classes", names)
    if y.dtype.kind in "iub":
        if own and set(own) <= set(classes) and y.min() >= 0 and y.max() < len(own):
            y = np.array(own)[y.astype(np.int64)]
        else:
            wrong = np.flatnonzero((y < 0) | (y >= len(classes)))
            if wrong.size:
                i, last = wrong[0], len(classes) - 1
                raise SproutError(
                    f"{path}: label {y[i]} at sample {i} is not in 0 .. {last}; {known}."
                )
            return y.astype(np.int64)
    y = np.array(_texts(path, "y", y, "whole numbers or "))
    number = {name: i for i, name in enumerate(classes)}
    wrong = np.flatnonzero(~np.isin(y, classes))
    if wrong.size:
        raise SproutError(
            f"{path}: label '{y[wrong[0]]}' at sample {wrong[0]} is not known; {known}."
        )
    return np.array([number[name] for name in y], np.int64)


def _texts(path: Path, key: str, names: Array, else_: str = "") -> list[str]:
    """Names of classes in an npz file, which may be text or bytes in UTF-8."""
    if names.dtype.kind not in "US" or names.ndim != 1:
        what = f"has the shape {list(names.shape)}" if names.ndim != 1 else f"is {names.dtype}"
        raise SproutError(f"{path}: '{key}' {what} and must hold {else_}names of classes.")
    if names.dtype.kind == "U":
        return [str(name) for name in names]
    return [bytes(name).decode("utf-8", "backslashreplace") for name in names]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {'grey' if shape[2] == 1 else 'RGB'}"


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [n for n in shape if n != 1]
