"""Where a step can be taken up again: what the frozen part of a network leaves in the arena.

The operators before the first trained one give the same bytes for a sample every time, so a sample
that is to be rehearsed need not run through them again.
"""

from __future__ import annotations

from .blob import FLAG_LEARNS, MEMBER, Blob

Span = tuple[str, int, int]
"""A tensor in the arena: name, offset, bytes."""


def boundary(blob: Blob) -> tuple[int, list[Span]]:
    """Return the first operator that needs a trained parameter, and what is alive in the arena
    there, by name.

    Saved channels are gathered right before the convolution that reads them, so a gather marks the
    boundary too.
    """
    cut = blob.n_forward
    for i, op in enumerate(blob.ops[: blob.n_forward]):
        trained = op.kind in ("conv", "depthwise") and max(op.p[5], op.p[6]) >= 0
        if trained or op.kind == "gather":
            cut = i
            break
    return cut, alive(blob, cut)


def alive(blob: Blob, cut: int) -> list[Span]:
    """Return what operators from ``cut`` on read of what those before it wrote, by name."""
    tensors = blob.info["tensors"]
    if not cut:
        x = tensors[blob.input]
        return [(x["name"], x["offset"], x["nbytes"])]
    spans = {
        (t["offset"], t["nbytes"]): t["name"]
        for t in reversed(tensors)
        if t["dtype"] == "int8" and t["first"] < cut and t["last"] >= cut
    }
    return sorted((name, offset, length) for (offset, length), name in spans.items())


def points(blob: Blob) -> list[tuple[int, list[Span]]]:
    """Return where samples can be taken up again, as ``boundary`` does: there first, then earlier
    in the network wherever fewer bytes are alive, the fewest last.

    None in a blob that cannot learn.
    """
    if not blob.flags & FLAG_LEARNS:
        return []
    cut, spans = boundary(blob)
    found = [(cut, spans)]
    for earlier in range(cut - 1, 0, -1):
        if blob.ops[earlier].flags & MEMBER:
            continue  # it runs within its stream only
        spans = alive(blob, earlier)
        if size(spans) < size(found[-1][1]):
            found.append((earlier, spans))
    return found


def size(spans: list[Span]) -> int:
    """Bytes of one sample."""
    return sum(length for _, _, length in spans)


def macs(blob: Blob, cut: int) -> int:
    """Multiply-accumulates of a step that begins at ``cut``."""
    total = sum(int(n) for n in blob.info["macs"].values())
    return total - sum(int(op["macs"]) for op in blob.info["ops"][:cut])
