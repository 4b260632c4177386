# ruff: noqa: SIM115
# mypy: ignore-errors
#
# Learns the frames of x.bin, labels in y.bin (u16), each once with replay, and adds classes where
# a task has more: settings from lifelong.json, the result as a line of JSON.

import json

import sprout


def main():
    with open("lifelong.json") as f:
        config = json.load(f)
    net = sprout.load(config["blob"])
    net.seed, net.rate = config["seed"], config["rate"]
    buffer = net.replay(config["size"], config["form"], per_sample=0)
    frames, labels, two = open("x.bin", "rb"), open("y.bin", "rb"), bytearray(2)
    for samples, classes in zip(config["tasks"], config["classes"]):  # noqa: B905
        while len(net.classes) < classes:
            net.add_class("class_" + str(len(net.classes)))
        for _ in range(samples):
            frames.readinto(net.input)
            labels.readinto(two)
            net.learn(net.input, two[0] | two[1] << 8, config["new_rate"])
            if config["rehearse"]:
                net.rehearse(config["rehearse"])
    counts = buffer.counts()
    result = {"digest": net.digest(), "steps": net.step, "slots": buffer.capacity}
    result["kept"] = [counts[name] for name in net.classes]
    print(json.dumps(result))


main()
