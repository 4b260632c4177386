"""A new object, taught with a button: the board knows cars and horses, and is shown frogs.

make example-button
"""

import sprout
from sprout import sources

net = sprout.load("net.sprout")
net.restore("net.ckpt")  # cars and horses
net.add_class("frog")
net.rate = 0.02
frame = sprout.Frame(32, 32, "rgb888", net)

# On a board with a camera, whoever holds something up holds the button with its name, too:
#   take = sources.camera(Camera(frame_size=FrameSize.QQVGA), net)
#   pins = {"automobile": Pin(13), "horse": Pin(14), "frog": Pin(15)}
#   train = sources.Labelled(take, sources.buttons(pins), 180)
train = sources.Packed("train", net, frame, net.classes)
test = sources.Packed("test", net, frame, net.classes)


before = net.evaluate(test)
for x, label in train:
    net.learn(x, label)
net.save()
after = net.evaluate(test)
print("objects: %.1f %% before, %.1f %% after %d pictures"
      % (before.accuracy * 100, after.accuracy * 100, len(train)))  # fmt: skip
print(after)
