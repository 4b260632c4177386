"""Frames of a camera, cropped and scaled to a net's input: loaded when sprout.Frame is used."""

from array import array

from micropython import const

from .blobfile import trouble

try:
    import sprout_frame as _native

    _wrong = None if _native.ABI == 1 else "of another release than this package"
except ImportError:
    _native, _wrong = None, "missing"
except ValueError:  # MicroPython's "incompatible .mpy file", "incompatible .mpy arch" and others
    _native, _wrong = None, "not for this board"

_FORMATS = ("grey", "rgb888", "rgb565", "rgb565be")  # numbered as in frame.h
_BYTES = (1, 3, 2, 2)  # a pixel
_MOST = const(65535)  # bytes of a line and pixels of a column
_HEAD = const(6)  # words of a plan
_SHIFT = const(80)  # bits below the point of what stands for Pillow's floats
_ONE = 1 << 80


class Frame:
    """Fills a net's input from frames of another size: frame(buffer), see sprout.Frame().

    crop: (left, top, width, height) of the part of a frame that is used, in pixels. size: bytes of
    a frame.
    """

    def __init__(self, width, height, format, net, mirror=False, flip=False):
        if _wrong:
            trouble().wrong_core(_wrong, _native, "sprout_frame")
        if format not in _FORMATS:
            raise ValueError("%r is no format: give one of %s" % (format, ", ".join(_FORMATS)))
        kind = _FORMATS.index(format)
        stride = width * _BYTES[kind]
        if not (0 < width and 0 < height <= _MOST and stride <= _MOST):
            text = "a frame of %s x %s pixels is none, or its lines are longer than %d bytes"
            raise ValueError(text % (width, height, _MOST))
        h, w, c = net.shape
        if c not in (1, 3):
            raise ValueError("%s takes %d channels and no pictures" % (net.name, c))
        # The largest part from the middle with the shape of the input.
        crop_w, crop_h = width, height
        if width * h > height * w:
            crop_w = max(1, (2 * height * w + h) // (2 * h))
        else:
            crop_h = max(1, (2 * width * h + w) // (2 * w))
        left, top = (width - crop_w) // 2, (height - crop_h) // 2
        self.crop = left, top, crop_w, crop_h
        self._net = net
        self.size = stride * height
        self._frame = width, height, format, self.size
        self._plan = array("I", bytes(4 * (_HEAD + 2 * (w + h) + w * c)))
        for i, value in enumerate((width, height, kind, w, h, c)):
            self._plan[i] = value
        self._spans(_HEAD, crop_w, w, left, mirror)
        self._spans(_HEAD + 2 * w, crop_h, h, top, flip)
        self._row = None if net.input else bytearray(w * c)

    def __call__(self, buffer):
        """Fill the net's input from a frame, row by row where the net takes rows.

        Returns what net.predict() and net.learn() take: net.input, or None where rows were fed.
        """
        net, row = self._net, self._row
        if row is None:
            self._fill(buffer, net.input, 0)
            return net.input
        net._next_row = 0  # of a frame that was never finished, the rest is not to come
        for i in range(net.shape[0]):
            self._fill(buffer, row, i)
            net.feed(row)

    def _fill(self, buffer, out, row):
        try:
            code = _native.fill(self._plan, buffer, out, row)
        except TypeError:
            code = -1
        if code:
            trouble("misuse").wrong_frame(buffer, *self._frame)

    def _spans(self, at, n, out, first, reverse):
        """Write which of n pixels, the `first` of a line on, each of `out` is the mean of."""
        plan = self._plan
        for i in range(out):
            start, end = _span(n, out, i)
            k = at + 2 * (out - 1 - i if reverse else i)
            n_pixels = end - start
            plan[k] = first + start | first + end << 16
            plan[k + 1] = ((1 << 23) + n_pixels) // (2 * n_pixels)


def _span(n, out, i):
    """Pixels [start, end) of n whose middles lie in box i of `out`, as Pillow has them.

    Box i goes from i to i + 1, times n / out; where that is less than a pixel, it is widened to
    one. A middle on the edge of two boxes belongs where Pillow's floats fall.
    """
    if n >= out:
        start, tied = divmod(2 * i * n + out, 2 * out)
        end, also = divmod(2 * (i + 1) * n + out, 2 * out)
    else:
        start, tied = divmod((2 * i + 1) * n, 2 * out)
        end, also = start + 1, 1
    return (start, end) if tied and also else _tied_span(n, out, i)


def _tied_span(n, out, i):
    """The same with the floats of Pillow's precompute_coeffs (libImaging/Resample.c), as integers.

    All boards get the same, those with 32-bit floats too.
    """
    scale = _quotient(n, out)
    box = max(scale, _ONE)
    inverse = _quotient(_ONE, box)
    half = _ONE >> 1
    center = _float((2 * i + 1) * scale >> 1)
    start = max(0, _float(_float(center - (box >> 1)) + half) >> _SHIFT)
    end = min(n, _float(_float(center + (box >> 1)) + half) >> _SHIFT)

    def distance(x):  # from the middle of the box, in boxes
        return _float(_float(_float((x << _SHIFT) - center) + half) * inverse >> _SHIFT)

    while distance(start) <= -half:
        start += 1
    while distance(end - 1) > half:
        end -= 1
    return start, end


def _quotient(a, b):
    """a / b as a float; a remainder is kept as the lowest bit, far below a float's."""
    q, rest = divmod(a << _SHIFT, b)
    return _float(q | (rest != 0))


def _float(x):
    """The 64-bit float next to x / 2**80, times 2**80; ties go to the even one."""
    if x < 0:
        return -_float(-x)
    drop = 0
    while x >> drop >= 1 << 53:
        drop += 1
    if not drop:
        return x
    low, half = x & ((1 << drop) - 1), 1 << (drop - 1)
    x >>= drop
    return (x + (low > half or (low == half and x & 1))) << drop
