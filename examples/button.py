"""A new object, taught with a button: the board knows cars and horses, and is shown frogs.

make example-button
"""

import sprout
from sprout import sources

net = sprout.load("net.sprout")
net.restore("net.ckpt")  # cars and horses
net.add_class("frog")
net.rate = 0.01
frame = sprout.Frame(32, 32, "rgb888", net)

# On a board with a camera, whoever holds something up holds the button with its name, too:
#   take = sources.camera(Camera(frame_size=FrameSize.QQVGA), net)
#   pins = {"automobile": Pin(13), "horse": Pin(14), "frog": Pin(15)}
#   train = sources.Labelled(take, sources.buttons(pins), 180)
train = sources.Packed("train", net, frame, net.classes)
test = sources.Packed("test", net, frame, net.classes)


def accuracy(name=None):
    right = n = 0
    for x, label in test:
        if name in (None, label):
            n += 1
            right += net.predict(x)[0] == label
    return 100 * right / n


before, frogs = accuracy(), accuracy("frog")
for x, label in train:
    net.learn(x, label)
net.save()
print("objects: %.1f %% before, %.1f %% after %d pictures; frogs: %.1f %%, %.1f %%"
      % (before, accuracy(), len(train), frogs, accuracy("frog")))  # fmt: skip
