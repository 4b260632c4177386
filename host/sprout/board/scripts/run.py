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
with open("x.bin", "rb") as x, open("y.bin", "wb") as y:
    for i in range(config["samples"]):
        x.readinto(net.input)
        y.write(net.forward(net.input if config["pixels"] else None))
        if i % 16 == 15:
            print(json.dumps({"kind": "progress", "samples": i + 1}))
