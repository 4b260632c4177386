"""The blob: what is written is read back, and nothing damaged is taken."""

import random
import re

import numpy as np
import pytest
from nets import everything_net, residual_net
from sprout import blob, inspect
from sprout import compile as compiler
from sprout.engine import Engine
from sprout.graph import SproutError


@pytest.mark.parametrize("net", [residual_net, everything_net])
@pytest.mark.parametrize("plan", ["none", "last", "b3,2:1/2", "full"])
def test_read_returns_what_was_written(net, plan):
    made = compiler.compile_graph(net(), plan)
    assert blob.read(made.to_bytes()) == made


def test_sections_are_aligned_and_apart():
    data = compiler.compile_graph(residual_net(), "full").to_bytes()
    spans = np.frombuffer(data, "<u4", 10, 48).reshape(5, 2)
    assert not (spans[:, 0] % 8).any()
    assert spans[0, 0] == blob.HEADER
    assert (spans[:-1].sum(1) <= spans[1:, 0]).all()
    assert spans[-1].sum() <= len(data)


def test_frozen_weights_stand_apart_from_trained_ones():
    made = compiler.compile_graph(residual_net(), "b2,1:1/2")
    kinds = [(t["conv"], t["kind"], t["shape"]) for t in made.info["trained"]]
    assert kinds == [
        (1, "weight", [16, 1, 1, 4]),
        (3, "bias", [8]),
        (4, "bias", [4]),
        (4, "weight", [4, 1, 1, 8]),
    ]
    assert made.trained_len == 64 + 64 // 2 + 32 + 16 + 32 + 32 // 2  # a half for fractions


def test_initial_values_are_the_models_own():
    graph = residual_net()
    made = compiler.compile_graph(graph, "full")
    for t in made.info["trained"]:
        params = graph.convs[t["conv"]].params
        kind = np.int32 if t["kind"] == "bias" else np.int8
        value = np.frombuffer(made.initial, kind, int(np.prod(t["shape"])), t["offset"])
        assert (value.reshape(t["shape"]) == params[t["kind"]]).all()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: b"", "does not start with SPRT"),
        (lambda d: b"ELF" + d, "does not start with SPRT"),
        (lambda d: d[:-8], "cut short"),
        (lambda d: d + b"\0", "cut short"),
        (lambda d: d[:4] + b"\x09" + d[5:], "format 9"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "SHA-256"),
        (lambda d: d[:300] + bytes([d[300] ^ 1]) + d[301:], "SHA-256"),
    ],
)
def test_a_damaged_file_gets_one_sentence(damage, says):
    data = compiler.compile_graph(residual_net(), "last").to_bytes()
    with pytest.raises(SproutError, match=says) as e:
        blob.read(damage(data), "net.sprout")
    assert str(e.value).startswith("net.sprout") and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": 99}, "tensor 99 (the input) is missing"),
        ({"output": blob.NONE}, "(the output) is missing"),
        ({"logits": 999}, "tensor 999 (the logits)"),
        ({"exponents": 0}, "tensor 0 (the exponents)"),
        ({"arena_len": 8}, "outside the arena"),
        ({"trained_len": 4}, "longer than the trained ones"),
        ({"n_forward": 999}, "999 of its"),
        ({"n_classes": 5}, "5 classes of 4"),
        ({"n_classes": 9, "max_classes": 9}, "9 classes of 9"),
        ({"n_classes": 0}, "0 classes"),
        ({"meta": {"classes": 3}}, "names of classes"),
    ],
)
def test_a_forged_file_whose_digest_is_right_is_refused(changes, says):
    made = compiler.compile_graph(residual_net(), "last")
    for name, value in changes.items():
        setattr(made, name, value)
    with pytest.raises(SproutError, match=re.escape(says)):
        blob.read(made.to_bytes())


@pytest.mark.parametrize(
    ("fractions", "halves"), [("none", 0), ("head", 32 // 2), ("all", 64 // 2 + 32 // 2)]
)
def test_fractions_are_kept_where_they_are_asked_for(fractions, halves):
    made = compiler.compile_graph(residual_net(), "b2,1:1/2", fractions=fractions)
    assert made.trained_len == 64 + 32 + 16 + 32 + halves
    assert inspect.fractions(made) == halves


@pytest.mark.parametrize(
    ("scale", "learns"), [(1e-7, False), (1e-4, True), (80, True), (95, False)]
)
def test_probabilities_need_a_scale_only_where_the_net_learns(scale, learns):
    def net():
        graph = residual_net()
        graph.logits.scale = scale
        return graph

    predicts = Engine(compiler.compile_graph(net(), "none").to_bytes())
    predicts.set_input(np.zeros((8, 8, 3), np.uint8))
    predicts.forward()
    assert 0.99 < predicts.probabilities().sum() <= 1.001
    if learns:
        Engine(compiler.compile_graph(net(), "last").to_bytes())
        return
    with pytest.raises(SproutError, match="from which nothing can learn"):
        compiler.compile_graph(net(), "last")


def test_ten_thousand_mutations_never_raise_anything_else():
    """Random bytes of a real blob change; half of the time the digest is made right again."""
    import hashlib

    data = compiler.compile_graph(everything_net(), "full").to_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(10_000):
        bad = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(bad)) if rng.random() < 0.5 else rng.randrange(2600)
            bad[at] = rng.randrange(256)
        if rng.random() < 0.1:
            del bad[rng.randrange(len(bad)) :]
        if rng.random() < 0.5 and len(bad) >= 48:
            bad[16:48] = hashlib.sha256(bad[48:]).digest()
        try:
            blob.read(bytes(bad))
        except SproutError as e:
            assert "\n" not in str(e)
            refused += 1
    assert refused > 5000
