"""Gestures: the board knows squats and lunges, and is taught jumping jacks.

make example-gestures
"""

import struct

import sprout
from sprout import sources

net = sprout.load("net.sprout")
net.restore("net.ckpt")  # squats, lunges and other movements
net.add_class("jumpingjack")
net.rate = 0.01


class Recorded:
    """Readings in a file, in the place of a sensor and of the buttons beside it."""

    def __init__(self, name):
        self.file = open(name, "rb")
        self.row = self.file.read(7)

    def read(self):
        row, self.row = self.row, self.file.read(7)
        return struct.unpack("<hhh", row[:6]) if row else None

    def label(self):
        return net.classes[self.row[6]] if self.row else "end"


def samples(name):
    """Windows of 64 readings, with their gestures. With a sensor, at 25 readings a second, it is
    take = sources.windows(imu.read, -32768, 32767, 64, rate=25)
    return sources.Labelled(take, sources.buttons({"squat": Pin(14), "lunge": Pin(15), ...}), 500)
    """
    recorded = Recorded(name)
    take = sources.windows(recorded.read, -32768, 32767, 64)
    return sources.Labelled(take, recorded.label)


before = net.evaluate(samples("test.bin"))
known = net.step
for x, label in samples("train.bin"):
    net.learn(x, label)
net.save()
after = net.evaluate(samples("test.bin"))
print("gestures: %.1f %% before, %.1f %% after %d windows"
      % (before.accuracy * 100, after.accuracy * 100, net.step - known))  # fmt: skip
print(after)
