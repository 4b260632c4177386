# ruff: noqa: SIM115
# mypy: ignore-errors
#
# Learns from frames in files and tests what was learned: settings from learn.json, results as
# lines of JSON.
#
#   train.bin, test.bin        frames, raw, one after the other
#   train.labels, test.labels  class numbers, u16
#   order.bin                  indices of the training frames, u32, one step each

import gc
import json
import time

import sprout

with open("learn.json") as f:
    config = json.load(f)
net = sprout.load(config["blob"], batch=config["batch"], residual=config["residual"])
net.seed = config["seed"]
net.rate = config["rate"]


def live():
    """Bytes in use; what is garbage by now does not count."""
    gc.collect()
    return gc.mem_alloc()


class Samples:
    """Frames of a file, read straight into the net's input, and their labels."""

    def __init__(self, name):
        self.frames = open(name + ".bin", "rb")
        self.labels = open(name + ".labels", "rb")
        self.two = bytearray(2)

    def read(self, i):
        """Fill the input with frame i; returns its label."""
        self.frames.seek(i * len(net.input))
        self.frames.readinto(net.input)
        self.labels.seek(2 * i)
        self.labels.readinto(self.two)
        return self.two[0] | self.two[1] << 8


def test():
    hits = 0
    for i in range(config["tests"]):
        label = tests.read(i)
        hits += net.classify(net.input) == label
    return hits / config["tests"] if config["tests"] else None


train, tests = Samples("train"), Samples("test")
result = {"kind": "result", "samples": config["samples"], "accuracy_before": None}
print(json.dumps({"kind": "start", "heap": live()}))
if config["test_before"]:
    result["accuracy_before"] = test()
    print(json.dumps({"kind": "before", "accuracy": result["accuracy_before"]}))

n, every, test_every = config["samples"], config["every"], config["test_every"]
order, four = open("order.bin", "rb"), bytearray(4)
loss = hits = since = us = 0
for t in range(n):
    order.readinto(four)
    label = train.read(four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24)
    if config["decay"]:
        net.decay(t, n)
    began = time.ticks_us()
    loss += net.learn(net.input, label)
    us += time.ticks_diff(time.ticks_us(), began)
    hits += net.hit
    since += 1
    tested = test_every and (t + 1) % test_every == 0
    if tested or since == every or t + 1 == n:
        line = {"kind": "progress", "step": t + 1, "loss": loss / since, "accuracy": hits / since}
        if tested and t + 1 < n:
            line["test_accuracy"] = test()
        line["heap"] = live()
        print(json.dumps(line))
        loss = hits = since = 0
net.apply()
result["accuracy_after"] = test()
net.save("net.ckpt")
result["digest"] = net.digest()
result["seconds"] = us / 1000000
result["memory"] = net.memory()
result["heap"] = live()
print(json.dumps(result))
