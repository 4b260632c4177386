"""Where samples come from: files on the board, cameras, sensors.

A source of labelled samples is anything that gives pairs (x, label) to a `for`, to net.evaluate()
and net.learn_all(): a list of them, Packed, Folder or Labelled. What takes samples one by one is a
function: camera(), sensor(), windows() and sounds() return one. x is good until the next sample;
it may be net.input itself, or None for a net that takes rows, which has got them then.

    from sprout import sources
    take = sources.camera(Camera(frame_size=FrameSize.QVGA), net)  # take() is a sample
    net.predict(take())
    button = sources.buttons({"cat": Pin(14, Pin.IN, Pin.PULL_UP)})
    for x, label in sources.Labelled(take, button):
        net.learn(x, label)
"""

import os
import time
from array import array

from micropython import const

_IDLE = const(10)  # ms between two looks at a button


class Labelled:
    """Pairs of take() and label(), as long as there are any, or n of them.

    label: a function, or one label for all. Where it returns None nothing is taken, and it is
    asked again a little later. take: a function; that there is no more it says by EOFError.
    """

    def __init__(self, take, label, n=None):
        self._take, self._label, self._n = take, label, n

    def __iter__(self):
        take, label, left = self._take, self._label, self._n
        while left is None or left > 0:
            name = label() if callable(label) else label
            if name is None:
                time.sleep_ms(_IDLE)
                continue
            try:
                x = take()
            except EOFError:
                return
            if left is not None:
                left -= 1
            yield x, name


def buttons(pins, pressed=0):
    """A function that says which button is held: its name, None without one.

    pins: {name: pin}, of machine.Pin. pressed: what a pin reads then; 0 with a pull-up.
    """

    def label():
        for name, pin in pins.items():
            if pin.value() == pressed:
                return name

    return label


class Packed:
    """Pairs from two files: NAME.bin, sample after sample, and NAME.labels.

    Labels are numbers of classes, 16 bits each, low byte first; `classes` gives names to them.
    frame: a sprout.Frame, where samples are frames of a camera and not of the net's input size.
    """

    def __init__(self, name, net, frame=None, classes=None):
        self._name, self._net, self._frame, self._classes = name, net, frame, classes
        self._n = _file_size(name + ".labels") // 2
        size = _size(net, frame)
        found = _file_size(name + ".bin")
        if found != self._n * size:
            text = "%s.bin has %d bytes and must have %d, %d for each of the %d labels"
            raise ValueError(text % (name, found, self._n * size, size, self._n))

    def __len__(self):
        return self._n

    def __iter__(self):
        number = bytearray(2)
        read = _reader(self._net, self._frame)
        with open(self._name + ".bin", "rb") as file, open(self._name + ".labels", "rb") as labels:
            while labels.readinto(number) == 2:
                label = number[0] | number[1] << 8
                yield read(file, self._name), self._classes[label] if self._classes else label


class Folder:
    """Pairs from files PATH/CLASS/*.bin, one sample each, from each class in turn: learned class
    after class, the first would be forgotten. frame: as of Packed.
    """

    def __init__(self, path, net, frame=None):
        self._path, self._net, self._frame = path, net, frame

    def _classes(self):
        """(name, iterator of files) for each class."""
        _file_size(self._path)
        names = [row[0] for row in os.ilistdir(self._path) if row[1] & 0x4000]
        return [(name, os.ilistdir(self._path + "/" + name)) for name in sorted(names)]

    def __len__(self):
        rows = [row for _, files in self._classes() for row in files]
        return sum(row[0].endswith(".bin") for row in rows)

    def __iter__(self):
        read = _reader(self._net, self._frame)
        classes = self._classes()
        while classes:
            for one in list(classes):
                name, files = one
                for row in files:
                    if row[0].endswith(".bin"):
                        path = "%s/%s/%s" % (self._path, name, row[0])
                        with open(path, "rb") as file:
                            yield read(file, path), name
                        break
                else:
                    classes.remove(one)


def camera(cam, net, mirror=False, flip=False):
    """A function that takes a picture: of a Camera of github.com/cnadler86/micropython-camera-API.

    cam: camera.Camera(frame_size=..., pixel_format=PixelFormat.RGB565 or GRAYSCALE).
    """
    from camera import PixelFormat

    from . import Frame

    formats = {PixelFormat.RGB565: "rgb565be", PixelFormat.GRAYSCALE: "grey"}
    format = formats.get(cam.get_pixel_format())
    if not format:
        raise ValueError("the camera must have pixel_format=PixelFormat.RGB565 or GRAYSCALE")
    size = cam.get_pixel_width(), cam.get_pixel_height()
    frame = Frame(*size, format, net, mirror, flip)

    def take():
        buffer = cam.capture()
        if buffer is None:
            raise OSError("the camera gave no frame: try again, or cam.init() it anew")
        return frame(buffer)

    return take


def sensor(cam, net, mirror=False, flip=False):
    """A function that takes a picture: of OpenMV's `sensor` module, or anything with snapshot().

    Set it up before: sensor.reset(), set_pixformat(RGB565 or GRAYSCALE), set_framesize().
    """
    from . import Frame

    frame = key = None

    def take():
        nonlocal frame, key
        image = cam.snapshot()
        now = image.width(), image.height(), image.size()
        if key != now:
            width, height, size = key = now
            formats = {width * height: "grey", width * height * 2: "rgb565"}
            if size not in formats:
                raise ValueError("the sensor must have set_pixformat(RGB565 or GRAYSCALE)")
            frame = Frame(width, height, formats[size], net, mirror, flip)
        return frame(image.bytearray())

    return take


def windows(read, low, high, n, hop=None, rate=None):
    """A function that gives the last n readings of a sensor, `hop` of them new (None: all).

    read: returns the numbers of a reading, one of each axis, or None: no more. They become pixels,
    low 0 and high 255: a row for each reading, a column for each axis. rate: readings a second;
    None: as they come.
    """
    period = 1000000 // rate if rate else 0
    span = high - low
    window = due = None

    def take():
        nonlocal window, due
        for _ in range(n if window is None else hop or n):
            if period:
                due = _wait(due, period)
            values = read()
            if values is None:
                raise EOFError
            axes = len(values)
            if window is None:
                window = bytearray(n * axes)
            window[:-axes] = memoryview(window)[axes:]
            for i, value in enumerate(values):
                window[i - axes] = max(0, min(255, int((value - low) * 255 // span)))
        return window

    return take


def _wait(due, period):
    """Until it is due; returns when the next one is, in us. Who is late need not hurry after."""
    now = time.ticks_us()
    if due is None or time.ticks_diff(now, due) > period:
        due = now
    while time.ticks_diff(due, time.ticks_us()) > 0:
        pass
    return time.ticks_add(due, period)


def sounds(mic, net):
    """A function that records a second of sound and gives it as a picture, see logmel.py.

    mic: machine.I2S(..., mode=I2S.RX, bits=16, format=I2S.MONO, rate=8000), or an open file of
    such samples.
    """
    from . import Frame, logmel

    pcm = array("h", bytes(2 * logmel.RATE))
    frame = Frame(logmel.SIZE, logmel.SIZE, "grey", net)

    def take():
        if mic.readinto(pcm) != 2 * len(pcm):
            raise EOFError
        return frame(logmel.picture(pcm))

    return take


def _size(net, frame):
    """Bytes of a sample."""
    if frame:
        return frame.size
    h, w, c = net.shape
    return h * w * c


def _reader(net, frame):
    """A function that reads one sample from an open file."""
    size = _size(net, frame)
    buffer = bytearray(size) if frame or not net.input else net.input

    def read(file, name):
        if file.readinto(buffer) != size:
            text = "%s ends before a whole sample of %d bytes: copy it again"
            raise ValueError(text % (name, size))
        return frame(buffer) if frame else buffer

    return read


def _file_size(path):
    try:
        return os.stat(path)[6]
    except OSError as error:
        raise OSError("%s cannot be read (%s): copy it to the board" % (path, error)) from None
