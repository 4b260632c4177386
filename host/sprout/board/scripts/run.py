# mypy: ignore-errors
#
# Predicts: samples from x.bin, outputs (int8) to y.bin; settings in run.json.

import json

import sprout

with open("run.json") as f:
    config = json.load(f)
blob = config["blob"]
if config["in_place"]:
    with open(blob, "rb") as f:
        blob = f.read()
net = sprout.load(blob)
h, w, c = net.shape
frame = net.input or bytearray(h * w * c)
with open("x.bin", "rb") as x, open("y.bin", "wb") as y:
    for i in range(config["samples"]):
        x.readinto(frame)
        y.write(net.forward(frame if config["pixels"] else None))
        if i % 16 == 15:
            print(json.dumps({"kind": "progress", "samples": i + 1}))
