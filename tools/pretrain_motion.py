"""Train the small network of the gesture example and write it as models/motion.tflite.

    .venv-torch/bin/python tools/pretrain_motion.py

Half a minute on one core.  A picture is 64 readings of an accelerometer at 25 Hz with its three
axes as red, green and blue, uint8 [64, 1, 3], as sources.windows() makes it.  The network learns
squats, lunges and what is no exercise; jumping jacks it never meets: the example teaches them.
"""

import argparse
import copy
import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from pretrain_person import (
    Student,
    activation_scales,
    calibrate,
    litert_logits,
    to_real,
    trace,
    write_tflite,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples")]

from prepare import GESTURES, MOTION, recordings, windows  # noqa: E402

CLASSES = GESTURES[:3]
STEPS, BATCH, RATE = 1500, 64, 3e-3
SPEC = (
    ("conv", 16, 0, 2),
    ("separable", 24, 0, 2),
    ("inverted", 40, 72, 2),
    ("inverted", 40, 72, 1),
    ("pointwise", 64, 0, 1),
)


def pictures(parts, hop):
    """Windows of the recordings that the network may know, and their classes."""
    known = [(windows(xyz, hop=hop), label) for xyz, label in parts if label < len(CLASSES)]
    x = np.concatenate([w for w, _ in known])
    y = np.concatenate([np.full(len(w), label) for w, label in known])
    return torch.from_numpy(x), torch.from_numpy(y)


def augment(x):
    """Stronger and weaker movements, a sensor that sits a little differently, noise."""
    n = len(x)
    turn = torch.eye(3) + 0.15 * torch.randn(n, 3, 3)
    x = torch.einsum("nij,njhw->nihw", turn, to_real(x))
    gain = torch.exp(0.15 * torch.randn(n, 1, 1, 1))
    return (x * gain + 0.02 * torch.randn_like(x)).clamp(-1, 1)


def train(net, x, y):
    """Train with classes of equal weight; return the network with averaged weights."""
    weights = 1 / torch.bincount(y).float()[y]
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    average = copy.deepcopy(net)
    for _ in range(STEPS):
        batch = torch.multinomial(weights, BATCH)
        logits, _ = net.train()(augment(x[batch]))
        loss = F.cross_entropy(logits, y[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                a.lerp_(b, 0.01) if a.is_floating_point() else a.copy_(b)
    return average.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=MOTION)
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    learn, test = recordings()
    x, y = pictures(learn, 4)
    net = train(Student(SPEC, len(CLASSES)), x, y)
    steps = trace(net)
    scales = activation_scales(steps, calibrate(steps, x[::20], 1e-4))
    what = "Sprout gestures: int8 (reading / 256) -> logits " + ", ".join(CLASSES)
    report = write_tflite(steps, scales, (64, 1), options.out, what)
    x, y = pictures(test, 32)
    with torch.no_grad():
        report["float_test"] = float((net(to_real(x))[0].argmax(1) == y).float().mean())
    right = litert_logits(options.out, x.numpy()).argmax(1) == y.numpy()
    report |= {"int8_test_litert": float(right.mean()), "windows": [len(y), y.bincount().tolist()]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
