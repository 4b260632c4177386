"""Spoken digits of a new speaker: the board knows the voices of three others.

make example-digits
"""

from array import array

import sprout
from sprout import sources

net = sprout.load("net.sprout")
net.restore("net.ckpt")  # three speakers
net.rate = 0.01


def samples(name):
    """Seconds of sound with the digits that were said. With a microphone and buttons it is
    take = sources.sounds(I2S(0, sck=Pin(16), ws=Pin(17), sd=Pin(18), mode=I2S.RX, bits=16,
                              format=I2S.MONO, rate=8000, ibuf=20000), net)
    return sources.Labelled(take, sources.buttons({"0": Pin(0), "1": Pin(1), ...}), 300)
    """
    take = sources.sounds(open(name + ".bin", "rb"), net)
    with open(name + ".labels", "rb") as file:
        said = iter(array("H", file.read()))
    return sources.Labelled(take, lambda: str(next(said, 0)))


before = net.evaluate(samples("test"))
known = net.step
for x, label in samples("train"):
    net.learn(x, label)
net.save()
after = net.evaluate(samples("test"))
print("digits of a new speaker: %.1f %% before, %.1f %% after %d"
      % (before.accuracy * 100, after.accuracy * 100, net.step - known))  # fmt: skip
