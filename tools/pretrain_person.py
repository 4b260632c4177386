"""Train the person-detection backbone of the demo from scratch and write it as an int8 .tflite.

Every stage is a sub-command that reads and writes checkpoints in ``--work``; models/README.md has
the commands behind models/person.tflite. In short:

    pretrain_person.py train --net teacher --minutes 20 --cifar 3 --rate 2e-3
    pretrain_person.py train --net middle --name student --teacher teacher.pt --minutes 45
    pretrain_person.py export --net middle --checkpoint student.pt

The learning-rate and resolution schedules run on wall-clock time rather than on epochs, so that a
stage ends when it was told to on a machine whose speed is not known beforehand.

Images are [N, H, W, 3] uint8; networks see (pixel - 128) / 128, so that the int8 input of the
exported network is pixel - 128 with scale 1/128 and zero point 0.
"""

import argparse
import copy
import io
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
CLASSES = ("no_person", "person")
VALIDATION = 1000  # images of person_train kept out of training

# About 10 M MACs each. Four minutes of training gave them 87.2, 87.5 and 86.3 % of the validation
# images; "middle" also has the smallest activations and was kept.
# (kind, out channels, expanded channels, stride). "conv" is a dense 3x3, "separable" a depthwise
# 3x3 and a linear 1x1, "inverted" an inverted residual (MobileNetV2; the sum is taken where shapes
# allow it), "pointwise" a 1x1 with ReLU6.
STUDENTS = {
    "stride16": (
        ("conv", 16, 0, 2),
        ("separable", 24, 0, 2),
        ("inverted", 24, 48, 1),
        ("inverted", 40, 72, 2),
        ("inverted", 40, 120, 1),
        ("inverted", 72, 144, 2),
        ("inverted", 72, 216, 1),
        ("inverted", 72, 216, 1),
        ("pointwise", 160, 0, 1),
    ),
    "middle": (
        ("conv", 16, 0, 2),
        ("separable", 24, 0, 2),
        ("inverted", 40, 72, 2),
        ("inverted", 40, 120, 1),
        ("inverted", 40, 120, 1),
        ("inverted", 72, 144, 2),
        ("inverted", 72, 216, 1),
        ("inverted", 72, 216, 1),
        ("pointwise", 160, 0, 1),
    ),
    "stride32": (
        ("conv", 16, 0, 2),
        ("separable", 24, 0, 2),
        ("inverted", 24, 48, 1),
        ("inverted", 40, 72, 2),
        ("inverted", 40, 112, 1),
        ("inverted", 72, 144, 2),
        ("inverted", 72, 208, 1),
        ("inverted", 128, 216, 2),
        ("inverted", 128, 384, 1),
    ),
}


def same_padding(shape, kernel, stride):
    """F.pad widths for an [N, C, H, W] input by TFLite's SAME rule: the odd pixel goes last."""
    pads = []
    for size in (shape[3], shape[2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


class ConvNorm(nn.Module):
    """Convolution with TFLite's SAME padding, batch norm and optionally ReLU6."""

    def __init__(self, cin, cout, kernel=3, stride=1, groups=1, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(
            cin, cout, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(cout)
        self.relu = relu

    def forward(self, x):
        conv = self.conv
        if conv.stride[0] > 1:
            x = F.pad(x, same_padding(x.shape, conv.kernel_size[0], conv.stride[0]))
        x = self.norm(conv(x))
        return F.relu6(x) if self.relu else x


class InvertedResidual(nn.Module):
    """MobileNetV2 block (Sandler et al. 2018, figure 4d); its second half if ``expanded`` is 0."""

    def __init__(self, cin, cout, expanded, stride):
        super().__init__()
        self.residual = stride == 1 and cin == cout
        wide = expanded or cin
        self.layers = nn.ModuleList([ConvNorm(cin, wide, 1)] if expanded else [])
        self.layers.append(ConvNorm(wide, wide, 3, stride, wide))
        self.layers.append(ConvNorm(wide, cout, 1, relu=False))

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y if self.residual else y


class Student(nn.Module):
    """The network of the board: [N, 3, H, W] -> (logits [N, classes], features [N, C])."""

    def __init__(self, spec, classes=2):
        super().__init__()
        blocks, cin = [], 3
        for kind, cout, expanded, stride in spec:
            if kind == "conv":
                blocks.append(ConvNorm(cin, cout, 3, stride))
            elif kind == "pointwise":
                blocks.append(ConvNorm(cin, cout, 1))
            else:
                blocks.append(InvertedResidual(cin, cout, expanded, stride))
            cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.width = cin
        self.head = nn.Linear(cin, classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        features = x.mean((2, 3))
        return self.head(F.dropout(features, 0.1, self.training)), features


class Residual(nn.Module):
    """Basic residual block with two dense 3x3 convolutions (He et al. 2016)."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.a = ConvNorm(cin, cout, 3, stride)
        self.b = ConvNorm(cout, cout, 3, relu=False)
        self.short = None
        if stride != 1 or cin != cout:
            self.short = ConvNorm(cin, cout, 1, relu=False)
        self.stride = stride

    def forward(self, x):
        y = self.b(self.a(x))
        if self.short is not None:
            x = self.short(F.avg_pool2d(x, self.stride, ceil_mode=True))
        return F.relu6(x + y)


class Teacher(nn.Module):
    """A dense residual network: more MACs than a board has, but quick on a CPU with AVX-512."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            ConvNorm(3, 24, 3, 2),
            ConvNorm(24, 48, 3, 2),
            Residual(48, 48, 1),
            Residual(48, 96, 2),
            Residual(96, 96, 1),
            Residual(96, 192, 2),
            Residual(192, 192, 1),
            Residual(192, 320, 2),
        )
        self.width = 320
        self.head = nn.Linear(self.width, len(CLASSES))

    def forward(self, x):
        features = self.blocks(x).float().mean((2, 3))
        return self.head(F.dropout(features, 0.2, self.training)), features


def build(name):
    net = Teacher() if name == "teacher" else Student(STUDENTS[name])
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, (InvertedResidual, Residual)) and getattr(module, "residual", 1):
            # Residual branches start at zero: the network begins shallow and trains sooner.
            last = module.b if isinstance(module, Residual) else module.layers[-1]
            nn.init.zeros_(last.norm.weight)
    return net.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------- data


def load_images(name):
    """Return (x uint8 [N, H, W, 3], y int64 [N]) of ``name`` in the shared data folder."""
    from PIL import Image

    d = np.load(DATA / f"{name}.npz")
    stream, offsets = d["jpeg"], d["offsets"]
    frames = []
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        image = Image.open(io.BytesIO(stream[start:stop].tobytes()))
        frames.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(d["y"].astype(np.int64))


def split(x, y):
    """Return ((train x, y), (validation x, y)); the same split for every stage."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(7))
    held, rest = order[:VALIDATION], order[VALIDATION:]
    return (x[rest], y[rest]), (x[held], y[held])


def to_real(x):
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1), channels last in memory."""
    return x.permute(0, 3, 1, 2).to(torch.float32).sub_(128).mul_(1 / 128)


def uniform(n, low, high):
    return torch.empty(n).uniform_(low, high)


def augment(x, size):
    """Random geometry, colour, blur, erasing: uint8 [N, H, W, 3] -> float32 [N, 3, size, size]."""
    n = len(x)
    zoom = uniform(n, 0.62, 1.12)
    aspect = torch.exp(uniform(n, -0.2, 0.2))
    sx, sy = zoom * aspect, zoom / aspect
    angle = uniform(n, -0.2, 0.2)
    # Some photographs of the set lie on their side; quarter turns keep the label.
    angle += (torch.rand(n) < 0.1) * torch.randint(1, 4, (n,)) * (math.pi / 2)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    shift_x = uniform(n, -1, 1) * (1 - sx).abs().clamp_min(0.08)
    shift_y = uniform(n, -1, 1) * (1 - sy).abs().clamp_min(0.08)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * sx * flip, -sin * sy, shift_x], 1),
            torch.stack([sin * sx * flip, cos * sy, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, (n, 3, size, size), align_corners=False)
    x = F.grid_sample(to_real(x), grid, "bilinear", "reflection", align_corners=False)

    # Faces and distant people reach the board a few dozen pixels wide, often grey.
    blurred = torch.nonzero(torch.rand(n) < 0.12).flatten()
    if len(blurred):
        small = int(torch.randint(18, 49, ()))
        low = F.interpolate(x[blurred], (small, small), mode="area")
        x[blurred] = F.interpolate(low, (size, size), mode="bilinear", align_corners=False)

    def per_image(v):
        return v.view(n, 1, 1, 1)

    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (x * luma).sum(1, keepdim=True)
    saturation = uniform(n, 0.5, 1.5)
    drop = torch.rand(n) < 0.12
    drop[blurred] |= torch.rand(len(blurred)) < 0.5
    saturation[drop] = 0
    x = grey + per_image(saturation) * (x - grey)
    tint = torch.exp(0.08 * torch.randn(n, 3, 1, 1) * (saturation > 0).view(n, 1, 1, 1))
    centre = x.mean((1, 2, 3), keepdim=True)
    contrast = per_image(torch.exp(uniform(n, -0.4, 0.4)))
    x = ((x - centre) * contrast + centre + per_image(uniform(n, -0.2, 0.2))) * tint
    x = x.clamp_(-1, 1)

    erased = torch.nonzero(torch.rand(n) < 0.2).flatten()
    for i in erased.tolist():
        h, w = (int(v * size) for v in uniform(2, 0.15, 0.45))
        top = int(torch.randint(0, size - h, ()))
        left = int(torch.randint(0, size - w, ()))
        x[i, :, top : top + h, left : left + w] = uniform(3, -1, 1).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def mix(x, target, share=0.4, alpha=0.4):
    """Mixup (Zhang et al. 2018) of a share of the batch; ``target`` is [N, classes]."""
    n = len(x)
    weight = torch.distributions.Beta(alpha, alpha).sample((n,))
    weight = torch.where(torch.rand(n) < share, torch.maximum(weight, 1 - weight), 1.0)
    other = torch.randperm(n)
    w = weight.view(n, 1, 1, 1)
    mixed = (x * w + x[other] * (1 - w)).contiguous(memory_format=torch.channels_last)
    return mixed, target * weight[:, None] + target[other] * (1 - weight[:, None])


# ------------------------------------------------------------------------------------ training


@torch.no_grad()
def evaluate(net, x, y, batch=250):
    """Share of right answers on whole images."""
    net.eval()
    right = 0
    for i in range(0, len(y), batch):
        logits, _ = net(to_real(x[i : i + batch]))
        right += int((logits.argmax(1) == y[i : i + batch]).sum())
    return right / len(y)


def size_at(progress, sizes):
    """Image side for a share of the time spent: ``sizes`` is ((until, side), ...)."""
    return next(side for until, side in sizes if progress <= until)


def train(net, data, held, options, teacher=None, log=print):
    """Train in place for ``options.minutes``; return the moving average of the weights.

    Loss: cross-entropy with smoothed labels; with a teacher also its soft labels (Hinton et al.
    2015, temperature 2) and the direction of its pooled features through a learned projection,
    because two classes alone carry little of what the teacher knows.
    """
    x, y = data
    average = copy.deepcopy(net)
    for p in average.parameters():
        p.requires_grad_(False)
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    project = None
    if teacher is not None:
        teacher.eval()
        project = nn.Linear(net.width, teacher.width)
        groups.append({"params": list(project.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.99))
    half = options.net == "teacher"
    classes = net.head.out_features
    targets = F.one_hot(y, classes).float() * (1 - options.smooth) + options.smooth / classes
    start, epoch, step, best = time.time(), 0, 0, 0.0
    budget = options.minutes * 60
    while time.time() - start < budget:
        order = torch.randperm(len(y))
        net.train()
        total = torch.zeros(3)
        count = 0
        for i in range(0, len(y) - options.batch + 1, options.batch):
            progress = min((time.time() - start) / budget, 1)
            size = size_at(progress, options.sizes)
            warm = min(1, (step + 1) / 300)
            rate = options.rate * warm * max(0.5 + 0.5 * math.cos(math.pi * progress), 0.003)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pick = order[i : i + options.batch]
            # Strong mixing is taken away at the end, so that the last steps see real images.
            share = 0.4 if progress < 0.9 else 0.0
            batch, target = mix(augment(x[pick], size), targets[pick], share)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits, features = net(batch)
            logits = logits.float()
            loss = hard = F.cross_entropy(logits, target)
            if teacher is not None:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    wanted, wanted_features = teacher(batch)
                soft = (
                    F.kl_div(
                        F.log_softmax(logits / 2, 1),
                        F.softmax(wanted.float() / 2, 1),
                        reduction="batchmean",
                    )
                    * 4
                )
                wanted_features = wanted_features.float()
                wanted_features -= wanted_features.mean(0)
                near = F.cosine_similarity(project(features), wanted_features).mean()
                loss = 0.4 * hard + 0.6 * soft + options.feature * (1 - near)
                total += torch.tensor([hard.item(), soft.item(), near.item()])
            else:
                total += torch.tensor([hard.item(), 0, 0])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimizer.step()
            keep = min(options.average, (step + 1) / (step + 10))
            with torch.no_grad():
                for old, new in zip(
                    average.state_dict().values(), net.state_dict().values(), strict=True
                ):
                    if old.dtype.is_floating_point:
                        old.lerp_(new, 1 - keep)
            step += 1
            count += 1
            if time.time() - start >= budget:
                break
        epoch += 1
        if epoch % options.every == 0 or time.time() - start >= budget:
            accuracy = evaluate(average, *held)
            best = max(best, accuracy)
            torch.save(average.state_dict(), options.save)
            log(
                f"epoch {epoch} {time.time() - start:.0f} s side {size} rate {rate:.5f} "
                f"loss {[round(v, 4) for v in (total / count).tolist()]} "
                f"validation {100 * accuracy:.2f} (best {100 * best:.2f})"
            )
    return average


def parse_sizes(text):
    """'0.5:64,1:96' -> ((0.5, 64), (1.0, 96))"""
    return tuple((float(a), int(b)) for a, b in (part.split(":") for part in text.split(",")))


def cifar(net, options):
    """Train ``net`` on CIFAR-10 at 48x48 for ``options.cifar`` minutes, without its head."""
    x, y = load_images("cifar10_train")
    head = net.head
    net.head = nn.Linear(net.width, 10)
    small = copy.copy(options)
    small.minutes, small.sizes, small.every = options.cifar, ((1.0, 48),), 4
    small.save = options.save.with_suffix(".cifar.pt")
    average = train(net, (x[1000:], y[1000:]), (x[:1000], y[:1000]), small)
    average.head = head
    for p in average.parameters():
        p.requires_grad_(True)
    return average


# ------------------------------------------------------------------------------ int8 and .tflite


def trace(net):
    """Fold batch norms; return the network as a list of steps in execution order.

    A step is a dict: ``op`` (conv2d, depthwise_conv2d, add, mean or fully_connected), ``inputs``
    and ``output`` (tensor names), and for those with weights ``weight`` (OIHW or [out, in]),
    ``bias``, ``stride`` and ``relu6``.
    """
    steps = []

    def conv(layer, x, name):
        norm, weight = layer.norm, layer.conv.weight.detach()
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        steps.append(
            {
                "op": "depthwise_conv2d" if layer.conv.groups > 1 else "conv2d",
                "inputs": [x],
                "output": name,
                "weight": weight * gain.view(-1, 1, 1, 1),
                "bias": norm.bias.detach() - norm.running_mean * gain,
                "stride": layer.conv.stride[0],
                "relu6": layer.relu,
            }
        )
        return name

    x = "input"
    for i, block in enumerate(net.blocks):
        if isinstance(block, ConvNorm):
            x = conv(block, x, f"block{i}")
            continue
        y = x
        names = ("expand", "depthwise", "project")[-len(block.layers) :]
        for name, layer in zip(names, block.layers, strict=True):
            y = conv(layer, y, f"block{i}/{name}")
        if block.residual:
            steps.append({"op": "add", "inputs": [x, y], "output": f"block{i}"})
            y = f"block{i}"
        x = y
    steps.append({"op": "mean", "inputs": [x], "output": "features"})
    steps.append(
        {
            "op": "fully_connected",
            "inputs": ["features"],
            "output": "logits",
            "weight": net.head.weight.detach(),
            "bias": net.head.bias.detach(),
        }
    )
    return steps


def execute(steps, x, weights=lambda step: step["weight"], visit=lambda name, value: value):
    """Run traced ``steps`` on ``x`` [N, 3, H, W]; return the logits.

    ``weights`` gives the weights to use for a step, ``visit`` sees every tensor and returns what
    goes on in its place: calibration and simulated quantisation are made of these two.
    """
    values = {"input": visit("input", x)}
    for step in steps:
        args = [values[name] for name in step["inputs"]]
        if step["op"] == "add":
            y = args[0] + args[1]
        elif step["op"] == "mean":
            y = args[0].mean((2, 3))
        elif step["op"] == "fully_connected":
            y = F.linear(args[0], weights(step), step["bias"])
        else:
            weight, stride = weights(step), step["stride"]
            groups = len(weight) if step["op"] == "depthwise_conv2d" else 1
            y = F.pad(args[0], same_padding(args[0].shape, weight.shape[2], stride))
            y = F.conv2d(y, weight, step["bias"], stride, groups=groups)
            y = F.relu6(y) if step["relu6"] else y
        values[step["output"]] = visit(step["output"], y)
    return values["logits"]


def calibrate(steps, x, share):
    """Return {tensor: (low, high)} in real units, with ``share`` of the values beyond each end.

    ``x`` uint8 [N, H, W, 3]. The input keeps its given range.
    """
    lows, highs, last = {}, {}, steps[-1]["output"]

    def visit(name, value):
        flat = value.flatten()
        cut = 0 if name == last else int(share * len(flat))
        lows.setdefault(name, []).append(flat.kthvalue(cut + 1).values.item())
        highs.setdefault(name, []).append(flat.kthvalue(len(flat) - cut).values.item())
        return value

    with torch.no_grad():
        for part in to_real(x).split(50):
            execute(steps, part, visit=visit)
    # Without a share the range covers every value seen; with one, batches are averaged.
    low, high = (min, max) if share == 0 else (np.mean, np.mean)
    return {name: (float(low(lows[name])), float(high(highs[name]))) for name in lows}


def activation_scales(steps, ranges):
    """Return {tensor: (scale, zero point)}; pooling passes on the scale of its input."""
    scales = {"input": (1 / 128, 0)}
    for step in steps:
        name = step["output"]
        if step["op"] == "mean":
            scales[name] = scales[step["inputs"][0]]
            continue
        low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 1e-3)
        if step.get("relu6"):
            low, high = 0.0, min(high, 6.0)
        scale = float(np.float32((high - low) / 255))
        scales[name] = (scale, int(np.clip(round(-128 - low / scale), -128, 127)))
    return scales


def quantise_weight(weight):
    """Return (integers in [-127, 127] as float, their scale), one scale per output channel.

    A fully connected weight [out, in] gets a single scale: TFLite Micro knows no other there.
    """
    size = weight.detach().abs()
    size = size.amax() if weight.ndim == 2 else size.amax((1, 2, 3), keepdim=True)
    # The floor keeps dead channels from asking for enormous biases.
    scale = size.clamp_min(127e-5) / 127
    return torch.clamp(torch.round(weight / scale), -127, 127), scale


def simulate(steps, scales, x):
    """Logits of the quantised network, its integers imitated in float arithmetic."""

    def weights(step):
        integers, scale = quantise_weight(step["weight"])
        return integers * scale

    def visit(name, value):
        scale, zero = scales[name]
        return torch.round(value / scale).clamp_(-128 - zero, 127 - zero) * scale

    return execute(steps, x, weights, visit)


def simulated_accuracy(steps, scales, x, y):
    with torch.no_grad():
        logits = torch.cat([simulate(steps, scales, to_real(part)) for part in x.split(250)])
    return float((logits.argmax(1) == y).float().mean())


def write_tflite(steps, scales, size, path, description):
    """Quantise ``steps`` for pictures of a (height, width) and write them to ``path``.

    Returns {"macs", "peak", "bytes"}; ``peak`` is the most bytes of int8 activations alive during
    one operator.
    """
    from tflite_writer import TfliteWriter

    writer = TfliteWriter(description)
    shapes = {"input": (1, *size, 3)}
    index = {"input": writer.activation("input", shapes["input"], *scales["input"])}
    macs = 0
    for step in steps:
        x, y = step["inputs"][0], step["output"]
        n, height, width, channels = shapes[x] if len(shapes[x]) == 4 else (1, 1, 1, shapes[x][1])
        if step["op"] == "add":
            shapes[y] = shapes[x]
        elif step["op"] == "mean":
            shapes[y] = (1, channels)
            index["pooled"] = writer.activation("pooled", (1, 1, 1, channels), *scales[y])
            writer.average_pool2d(index[x], index["pooled"])
        elif step["op"] == "fully_connected":
            shapes[y] = (1, len(step["weight"]))
        else:
            stride = step["stride"]
            shapes[y] = (1, -(-height // stride), -(-width // stride), len(step["weight"]))
        index[y] = writer.activation(y, shapes[y], *scales[y])
        if step["op"] == "add":
            writer.add(index[x], index[step["inputs"][1]], index[y])
        if step["op"] == "mean":
            writer.reshape(index["pooled"], index[y])
        if "weight" not in step:
            continue
        weight, scale = quantise_weight(step["weight"])
        weight, scale = weight.numpy().astype(np.int8), scale.flatten().numpy()
        # The bias is added to products of the rounded float32 scales the file holds.
        bias = step["bias"].numpy() / (np.float32(scales[x][0]) * scale).astype(np.float64)
        bias = np.clip(np.round(bias), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        macs += weight[0].size * math.prod(shapes[y])
        if step["op"] == "fully_connected":
            writer.fully_connected(index[x], index[y], weight, scale, bias)
        elif step["op"] == "conv2d":
            weight = weight.transpose(0, 2, 3, 1)
            writer.conv2d(index[x], index[y], weight, scale, bias, stride, step["relu6"])
        else:
            weight = weight.transpose(1, 2, 3, 0)
            writer.depthwise_conv2d(index[x], index[y], weight, scale, bias, stride, step["relu6"])
    data = writer.finish([index["input"]], [index["logits"]])
    path.write_bytes(data)
    peak = 0
    for i, step in enumerate(steps):
        alive = {*step["inputs"], step["output"]}
        made = {"input", *(s["output"] for s in steps[:i])}
        alive |= {name for later in steps[i + 1 :] for name in later["inputs"] if name in made}
        peak = max(peak, sum(math.prod(shapes[name]) for name in alive))
    return {"macs": macs, "peak": peak, "bytes": len(data)}


def litert_logits(path, x):
    """Logits of the file in real units [N, 2] for uint8 images, by LiteRT's reference kernels."""
    from ai_edge_litert import interpreter as litert

    resolver = litert.OpResolverType.BUILTIN_REF
    net = litert.Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
    net.allocate_tensors()
    source, sink = net.get_input_details()[0], net.get_output_details()[0]
    scale, zero = sink["quantization"]
    logits = []
    for image in x:
        net.set_tensor(source["index"], (image.astype(np.int16) - 128).astype(np.int8)[None])
        net.invoke()
        logits.append((net.get_tensor(sink["index"])[0].astype(np.float32) - zero) * scale)
    return np.stack(logits)


def command_export(options):
    """Quantise a checkpoint, choosing the calibration on the validation images; test the file."""
    torch.manual_seed(0)
    net = build(options.net)
    net.load_state_dict(torch.load(options.work / options.checkpoint))
    net.eval()
    data, held = split(*load_images("person_train"))
    test = load_images("person_test")
    report = {
        "float_validation": evaluate(net, *held),
        "float_test": evaluate(net, *test),
    }
    steps = trace(net)
    choices = []
    for share in (0.0, 1e-5, 1e-4, 1e-3):
        scales = activation_scales(steps, calibrate(steps, data[0][: options.images], share))
        accuracy = simulated_accuracy(steps, scales, *held)
        print(f"calibration share {share}: validation {100 * accuracy:.2f}", flush=True)
        choices.append((accuracy, share, scales))
    accuracy, share, scales = max(choices, key=lambda c: c[:2])
    what = "Sprout person detector: int8 pixel - 128 -> logits no_person, person"
    report |= {"calibration_share": share}
    report |= write_tflite(steps, scales, (96, 96), options.out, what)
    report["int8_validation_simulated"] = simulated_accuracy(steps, scales, *held)
    logits = litert_logits(options.out, test[0].numpy())
    report["int8_test_litert"] = float((logits.argmax(1) == test[1].numpy()).mean())
    print(json.dumps(report, indent=1), flush=True)


def command_train(options):
    torch.manual_seed(options.seed)
    options.save = options.work / f"{options.name or options.net}.pt"
    net = build(options.net)
    x, y = load_images("person_train")
    data, held = split(x, y)
    parameters = sum(p.numel() for p in net.parameters())
    print(json.dumps({k: str(v) for k, v in vars(options).items()}), parameters, flush=True)
    teacher = None
    if options.teacher:
        teacher = build("teacher")
        teacher.load_state_dict(torch.load(options.work / options.teacher))
        print("teacher validation", evaluate(teacher.eval(), *held), flush=True)

    def log(line):
        print(line, flush=True)

    if options.start:
        net.load_state_dict(torch.load(options.work / options.start))
    if options.cifar:
        net = cifar(net, options)
    train(net, data, held, options, teacher, log)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/work/pretrain"))
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("train")
    p.set_defaults(run=command_train)
    p.add_argument("--net", default="middle", choices=["teacher", *STUDENTS])
    p.add_argument("--name", help="file name of the checkpoint, without .pt")
    p.add_argument("--teacher", help="checkpoint of a teacher")
    p.add_argument("--start", help="checkpoint to start from")
    p.add_argument("--minutes", type=float, default=45)
    p.add_argument("--cifar", type=float, default=0, help="minutes of CIFAR-10 beforehand")
    p.add_argument("--sizes", type=parse_sizes, default="0.5:64,0.8:80,1:96")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--rate", type=float, default=3e-3)
    p.add_argument("--decay", type=float, default=0.05)
    p.add_argument("--smooth", type=float, default=0.05)
    p.add_argument("--feature", type=float, default=1.0, help="weight of the feature loss")
    p.add_argument("--average", type=float, default=0.998)
    p.add_argument("--every", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    p = commands.add_parser("export")
    p.set_defaults(run=command_export)
    p.add_argument("--net", default="middle", choices=[*STUDENTS])
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--out", type=pathlib.Path, default=HERE.parent / "models" / "person.tflite")
    p.add_argument("--images", type=int, default=1000, help="training images to calibrate on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    options.run(options)


if __name__ == "__main__":
    main()
