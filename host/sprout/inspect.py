"""What a blob holds: layers, what learns, RAM and flash by part, a picture of the arena."""

from __future__ import annotations

import hashlib
import io
import math
import os
from typing import Any

from rich.console import Console
from rich.table import Table

from . import blob as blobs
from . import latent
from .graph import SproutError

RAM_PARTS = {
    "arena": "activations, gradients and masks",
    "trained": "the parameters that learn",
    "scratch": "streamed weights, sums of one operator",
    "program": "header, tensors and index lists",
}
FLASH_PARTS = {
    "constants": "frozen weights and per-channel tables",
    "operators": "what is done, in order",
    "initial": "the parameters that learn, as they start",
    "program": "header, tensors and index lists",
    "meta": "names and descriptions",
}


def describe(blob: blobs.Blob, data: bytes) -> dict[str, Any]:
    """Return everything that ``sprout inspect --json`` prints; sizes in bytes.

    Keys: ``name``, ``classes``, ``max_classes``, ``input``, ``output``, ``logits``, ``latent``,
    ``plan``, ``layers``, ``trained``, ``macs``, ``memory``, ``flash``, ``tensors``, ``steps``
    (length of the schedule), ``forward_steps`` and ``sha256`` of the file.
    """
    info = _info(blob)
    return {
        **blob.meta,
        "max_classes": blob.max_classes,
        "plan": info["plan"],
        "layers": layers(blob),
        "trained": info["trained"],
        "macs": info["macs"],
        "memory": info["memory"],
        "flash": flash(blob, len(data)),
        "tensors": info["tensors"],
        "steps": len(blob.ops),
        "forward_steps": blob.n_forward,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def layers(blob: blobs.Blob) -> list[dict[str, Any]]:
    """Return the forward operators in order, gathers for training left out.

    Keys: ``kind``, ``name``, ``conv`` (its number in the plan, None for others), ``input`` and
    ``output`` (shapes [h, w, c]), ``macs``, ``rows`` (how many it computes at a time, None for
    all), ``learns`` (rows of ``info["trained"]``).
    """
    info = _info(blob)
    result = []
    conv = 0
    for op, about in zip(blob.ops[: blob.n_forward], info["ops"], strict=False):
        if op.kind in ("gather", "stream"):
            continue
        number = None
        if op.kind in ("conv", "depthwise"):
            number = conv
            conv += 1
        result.append(
            {
                "kind": op.kind,
                "name": about["name"],
                "conv": number,
                "input": list(blob.tensors[op.t[0]].shape),
                "output": list(blob.tensors[op.t[2 if op.kind == "add" else 1]].shape),
                "macs": about["macs"],
                "rows": op.p[11] if op.flags & blobs.MEMBER else None,
                "learns": [
                    t for t in info["trained"] if number is not None and t["conv"] == number
                ],
            }
        )
    return result


def show(blob: blobs.Blob, file_len: int, console: Console) -> None:
    """Print the tables of ``sprout inspect``."""
    about = f"{blob.meta.get('name', 'model')}: {classes_text(blob)}"
    for line in filter(None, (about, learns_text(blob), rehearses_text(blob))):
        console.print(line, markup=False, soft_wrap=True)
    table = Table("#", "layer", "in", "out", "MACs", "rows", "learns", box=None, pad_edge=False)
    for column in table.columns[2:6]:
        column.justify = "right"
    for layer in layers(blob):
        table.add_row(
            "" if layer["conv"] is None else str(layer["conv"]),
            layer["kind"],
            shape_text(layer["input"]),
            shape_text(layer["output"]),
            f"{layer['macs']:,}" if layer["macs"] else "",
            str(layer["rows"] or ""),
            ", ".join(_learns_text(t, layer) for t in layer["learns"]),
        )
    console.print(table)
    console.print(sizes(blob, file_len))


def learns_text(blob: blobs.Blob) -> str:
    """What learns and what a step costs, in a line."""
    info = _info(blob)
    forward, backward = info["macs"]["forward"], info["macs"]["backward"]
    if info["plan"] == "none":
        return f"learns nothing, it only predicts: {forward:,} MACs"
    kinds = [t["kind"] for t in info["trained"]]
    weights, biases = _count(kinds.count("weight"), "layer"), kinds.count("bias")
    rate = f" at rate {blob.meta['rate']:g}" if "rate" in blob.meta else ""
    return (
        f"learns {info['plan']}{rate}: weights of {weights} and biases of {biases}; "
        f"{forward:,} MACs forward, {backward:,} backward"
    )


def rehearses_text(blob: blobs.Blob) -> str:
    """What a kept sample takes and what a step from it costs, in a line; empty if none learns."""
    points = latent.points(blob)
    if not points:
        return ""
    whole = sum(_info(blob)["macs"].values())
    texts = []
    for cut, spans in points[:1] + points[1:][-1:]:
        macs = latent.macs(blob, cut)
        texts.append(f"{latent.size(spans):,} bytes, {macs:,} MACs ({macs / whole:.0%} of a step)")
    return f"a sample kept for replay: {', or '.join(texts)}"


def flash(blob: blobs.Blob, file_len: int) -> dict[str, int]:
    """Flash in bytes by part; their sum, ``total``, is the file."""
    parts = {part: int(size) for part, size in _info(blob)["flash"].items()}
    return {**parts, "meta": file_len - sum(parts.values()), "total": file_len}


def fractions(blob: blobs.Blob) -> int:
    """Bytes of the trained region that hold fractions of weights."""
    padded = (
        (math.prod(t["shape"]) * (4 if t["kind"] == "bias" else 1) + 3) // 4 * 4
        for t in _info(blob)["trained"]
    )
    return blob.trained_len - sum(padded)


def sizes(blob: blobs.Blob, file_len: int) -> Table:
    """RAM and flash by part, as a table."""
    memory, parts = _info(blob)["memory"], flash(blob, file_len)
    table = Table("", "bytes", "what", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    ram = {part: int(memory[part]) for part in RAM_PARTS}
    table.add_row(
        "[bold]RAM[/]", f"[bold]{sum(ram.values()):,}[/]", "code and Python objects come on top"
    )
    halves = fractions(blob)
    for part, what in RAM_PARTS.items():
        if part == "arena" and memory["lower_bound"]:
            what += f" (largest live set: {memory['lower_bound']:,})"
        if part == "trained" and halves:
            what += f" ({halves:,} of them bits below the weights' LSB)"
        table.add_row(f"  {part}", f"{ram[part]:,}", what)
    if blob.accum_len:
        table.add_row(
            "  batches", f"{blob.accum_len:,}", "sums, only with --batch above 1; not in the total"
        )
    table.add_row("[bold]Flash[/]", f"[bold]{file_len:,}[/]", "the blob")
    for part, what in FLASH_PARTS.items():
        table.add_row(f"  {part}", f"{parts[part]:,}", what)
    return table


def classes_text(blob: blobs.Blob) -> str:
    """The classes in a line: the first few by name, and how many more fit."""
    names = [str(name) for name in blob.meta.get("classes", [])]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    room = blob.max_classes - len(names)
    text = f"{_count(len(names), 'class', 'classes')} ({shown})"
    return text + (f", room for {room} more" if room > 0 else "")


def shape_text(shape: list[int]) -> str:
    """[h, w, c] as people write it; a vector as its length."""
    return str(shape[2]) if shape[:2] == [1, 1] else "x".join(map(str, shape))


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _learns_text(trained: dict[str, Any], layer: dict[str, Any]) -> str:
    channels = trained.get("channels")
    if channels is None or trained["kind"] == "bias":
        return str(trained["kind"])
    count = channels if isinstance(channels, int) else len(channels)
    of = layer["input"][2]
    return "weight" if count in (0, of) else f"weight ({count} of {of} channels)"


def _info(blob: blobs.Blob) -> dict[str, Any]:
    missing = {"tensors", "ops", "trained", "memory", "flash", "macs", "plan"} - set(blob.info)
    if missing:
        raise SproutError(
            f"{blob.meta.get('name', 'the blob')} says nothing of its {sorted(missing)[0]}: "
            "compile the model again."
        )
    return blob.info


# --- the picture --------------------------------------------------------------------------------

COLOURS = {"activation": "#5b8fd6", "saved": "#2f4b8f", "mask": "#8a6fc0", "gradient": "#e08a3c"}


def kind_of(tensor: dict[str, Any], n_forward: int) -> str:
    """Activation, saved (an activation that lives into the backward pass), mask or gradient."""
    if tensor["dtype"] == "bits":
        return "mask"
    if tensor["dtype"] in ("int16", "int32"):
        return "gradient"
    return "saved" if tensor["last"] >= n_forward else "activation"


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib Figure of a size in inches."""
    # In the home directory it would leave its caches; pyplot would look for a window system.
    from native_modules import build

    os.environ.setdefault("MPLCONFIGDIR", str(build.BUILD / "matplotlib"))
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_arena(blob: blobs.Blob, axes: Any, title: str) -> None:
    """Draw the arena on matplotlib ``axes``: x is the schedule's step, y the address in KB."""
    from matplotlib.patches import Patch, Rectangle

    info = _info(blob)
    memory = info["memory"]
    seen = set()
    for tensor in info["tensors"]:
        if tensor.get("alias"):
            continue
        kind = kind_of(tensor, blob.n_forward)
        seen.add(kind)
        axes.add_patch(
            Rectangle(
                (tensor["first"], tensor["offset"] / 1024),
                tensor["last"] - tensor["first"] + 1,
                tensor["nbytes"] / 1024,
                facecolor=COLOURS[kind],
                edgecolor="white",
                linewidth=0.3,
            )
        )
    steps = len(blob.ops)
    bound = memory["lower_bound"] / 1024
    axes.set_xlim(0, steps)
    axes.set_ylim(0, memory["arena"] / 1024 * 1.1)
    axes.axhline(bound, color="black", linestyle="--", linewidth=0.8)
    axes.annotate(
        f"arena {memory['arena']:,} bytes, largest live set (dashed) {memory['lower_bound']:,}",
        (steps, memory["arena"] / 1024),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7,
    )
    if blob.n_forward < steps:
        axes.axvline(blob.n_forward, color="black", linewidth=0.8)
        for x, ha, text in ((-4, "right", "\N{LEFTWARDS ARROW} forward"),
                            (4, "left", "backward \N{RIGHTWARDS ARROW}")):  # fmt: skip
            axes.annotate(
                text,
                (blob.n_forward, 1),
                xycoords=("data", "axes fraction"),
                xytext=(x, 3),
                textcoords="offset points",
                ha=ha,
                fontsize=8,
            )
    axes.set_title(title, fontsize=10, pad=18)  # above the two labels
    axes.set_xlabel("step of the schedule")
    axes.set_ylabel("address in the arena (KB)")
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in seen]
    axes.legend(
        handles=handles,
        fontsize=7,
        ncols=len(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        frameon=False,
    )


def picture(blob: blobs.Blob) -> bytes:
    """Return the picture of ``sprout inspect --png``."""
    figure = new_figure(10, 5.5)
    axes = figure.add_subplot()
    over = "one training step" if blob.flags & blobs.FLAG_LEARNS else "one prediction"
    draw_arena(blob, axes, f"{blob.meta.get('name', 'model')}: the arena over {over}")
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png")
    return png.getvalue()
