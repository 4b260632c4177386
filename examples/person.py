"""Person detection: a network that saw photographs by day learns to see in the dark.

make example-person
"""

import sprout
from sprout import sources

net = sprout.load("net.sprout", classes=("no_person", "person"))
net.rate = 0.005
frame = sprout.Frame(48, 48, "grey", net)

# On a board with a camera, and a button for each class, it is
#   take = sources.camera(Camera(pixel_format=PixelFormat.GRAYSCALE), net)
#   train = sources.Labelled(take, sources.buttons({"person": Pin(14), "no_person": Pin(15)}), 300)
train = sources.Packed("train", net, frame)
test = sources.Packed("test", net, frame)


before = net.evaluate(test)
for x, label in train:
    net.learn(x, label)
net.save()
after = net.evaluate(test)
print("person in the dark: %.1f %% before, %.1f %% after %d pictures"
      % (before.accuracy * 100, after.accuracy * 100, len(train)))  # fmt: skip
