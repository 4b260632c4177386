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


def live():
    """Bytes in use; what is garbage by now does not count."""
    gc.collect()
    return gc.mem_alloc()


def read(files, i, net):
    """Read frame i straight into the net's input, or feed its rows; returns its label."""
    frames, labels, two, size, row = files
    frames.seek(i * size)
    if net.input:
        frames.readinto(net.input)
    else:
        while frames.readinto(row) and not net.feed(row):
            pass
    labels.seek(2 * i)
    labels.readinto(two)
    return two[0] | two[1] << 8


def test(net, files, n):
    hits = 0
    for i in range(n):
        label = read(files, i, net)
        hits += net.classify(net.input) == label
    return hits / n if n else None


def main():
    with open("learn.json") as f:
        config = json.load(f)
    net = sprout.load(config["blob"], batch=config["batch"])
    net.seed, net.rate = config["seed"], config["rate"]
    n, every, test_every = config["samples"], config["every"], config["test_every"]
    decay, tests, first = config["decay"], config["tests"], config["test_before"]
    config = None

    height, width, channels = net.shape
    size = height * width * channels
    two, four, row = bytearray(2), bytearray(4), bytearray(width * channels)
    train_files = open("train.bin", "rb"), open("train.labels", "rb"), two, size, row
    test_files = open("test.bin", "rb"), open("test.labels", "rb"), two, size, row
    order = open("order.bin", "rb")
    print(json.dumps({"kind": "start", "heap": live()}))
    before = None
    if first:
        before = test(net, test_files, tests)
        print(json.dumps({"kind": "before", "accuracy": before}))

    loss = hits = since = us = 0
    for t in range(n):
        order.readinto(four)
        label = read(train_files, four[0] | four[1] << 8 | four[2] << 16 | four[3] << 24, net)
        if decay:
            net.decay(t, n)
        began = time.ticks_us()
        loss += net.learn(net.input, label)
        us += time.ticks_diff(time.ticks_us(), began)
        hits += net.hit
        since += 1
        tested = test_every and (t + 1) % test_every == 0
        if tested or since == every or t + 1 == n:
            line = {"kind": "progress", "step": t + 1}
            line["loss"], line["accuracy"] = loss / since, hits / since
            if tested and t + 1 < n:
                line["test_accuracy"] = test(net, test_files, tests)
            line["heap"] = live()
            print(json.dumps(line))
            loss = hits = since = 0
    net.apply()
    after = test(net, test_files, tests)
    net.save("net.ckpt")
    print(
        json.dumps(
            {
                "kind": "result",
                "samples": n,
                "accuracy_before": before,
                "accuracy_after": after,
                "seconds": us / 1000000,
                "digest": net.digest(),
                "memory": net.memory(),
                "heap": live(),
            }
        )
    )


main()
