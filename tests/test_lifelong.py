"""Lifelong learning: measures against matrices worked out by hand, the host against the board."""

from __future__ import annotations

import numpy as np
import pytest
from nets import residual_net
from sprout import latent, lifelong
from sprout.compile import compile_graph
from sprout.engine import Engine
from sprout.frontends.head import replace_head
from sprout.lifelong import Method, Stream
from sprout.replay import Replay
from sprout.schedule import rate_parts

CLASSES = 6
SEED = 3


def test_measures_of_a_class_incremental_matrix():
    matrix = [[90.0], [70.0, 80.0], [40.0, 50.0, 96.0]]
    assert lifelong.average_accuracy(matrix) == pytest.approx(62.0)
    assert lifelong.backward_transfer(matrix) == pytest.approx((-50 - 30) / 2)
    assert lifelong.forgetting(matrix) == pytest.approx((50 + 30) / 2)


def test_measures_of_a_domain_incremental_matrix():
    """Task 0 is best after task 1, task 1 gains from task 2: one is forgotten, one was helped."""
    matrix = [[80.0, 60.0, 50.0], [84.0, 70.0, 52.0], [78.0, 76.0, 90.0]]
    assert lifelong.average_accuracy(matrix) == pytest.approx(244 / 3)
    assert lifelong.backward_transfer(matrix) == pytest.approx((-2 + 6) / 2)
    assert lifelong.forgetting(matrix) == pytest.approx((6 - 6) / 2)


def test_measures_of_a_single_task():
    assert lifelong.average_accuracy([[75.0, 25.0]]) == 50.0
    assert lifelong.backward_transfer([[75.0]]) == lifelong.forgetting([[75.0]]) == 0.0


def blob(plan="b3"):
    """Two classes in use, room for all."""
    return compile_graph(replace_head(residual_net(), ["a", "b"], CLASSES), plan)


def made(n=20, seed=0):
    """A stream of three tasks of two classes, ``n`` samples each and as many tests, and its
    pictures: noise on two brightnesses that a class has left and right."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(n) % 2 + 2 * t) for t in (0, 1, 2) * 2])
    x = rng.integers(0, 30, (len(labels), 8, 8, 3))
    x[:, :, :4] += (labels % 3 * 100)[:, None, None, None]
    x[:, :, 4:] += (labels // 3 * 150)[:, None, None, None]
    parts = np.arange(6 * n).reshape(6, n)
    stream = Stream(list(parts[:3]), list(parts[3:]), labels, [2, 4, CLASSES])
    return stream, x.astype(np.uint8)


def test_without_replay_a_stream_is_plain_steps():
    (stream, x), net = made(), blob()
    result = lifelong.learn(net, Replay.of(net, x), stream, Method(0.01), SEED)
    engine, step = Engine(net.to_bytes()), 0
    for t, numbers in enumerate(stream.tasks):
        for i in numbers:
            engine.step(x[i], int(stream.labels[i]), rate_parts(0.01), SEED, step, 2 * t + 2)
            step += 1
    assert result["digest"] == engine.digest() and result["steps"] == step == len(stream)
    assert [len(row) for row in result["matrix"]] == [1, 2, 3]
    right = []
    for i in stream.tests[0]:
        engine.set_input(x[i])
        right.append(engine.forward().ravel().argmax() == stream.labels[i])
    assert result["matrix"][-1][0] == pytest.approx(100 * np.mean(right))


def test_replay_remembers_and_joint_learning_knows_all():
    """The order that the bench's tables rest on, where chance has no say: old classes are lost
    without replay, and kept with it."""
    (stream, x), net = made(40), blob()
    inputs = Replay.of(net, x)
    naive, replay = (
        lifelong.learn(net, inputs, stream, method, SEED)
        for method in (Method(0.01), Method(0.01, 2, 30))
    )
    steps = 3 * len(stream)
    together = lifelong.joint(net, inputs, stream, 0.01, steps, SEED)
    assert replay["steps"] == together["steps"] == steps and replay["kept"] == [5] * CLASSES
    average = [lifelong.average_accuracy(r["matrix"]) for r in (naive, replay, together)]
    assert average[0] < 45 and average[1] > average[0] + 30 and average[2] > average[0] + 30
    assert lifelong.forgetting(naive["matrix"]) > 50 > lifelong.forgetting(replay["matrix"])
    assert lifelong.backward_transfer(naive["matrix"]) < -50


@pytest.mark.parametrize(("form", "rehearse"), [("latent", 2), ("raw", 1), ("compact", 3)])
def test_the_board_learns_the_same_bytes(tmp_path, form, rehearse):
    (stream, x), net = made(), blob()
    points = {"raw": (0, latent.alive(net, 0)), "latent": latent.points(net)[0]}
    points["compact"] = latent.points(net)[-1]
    record = latent.size(points[form][1])
    size = 11 * (record + lifelong.BESIDE) + 5
    path = tmp_path / "net.sprout"
    path.write_bytes(net.to_bytes())
    method = Method(0.01, rehearse, lifelong.slots(size, record), new=0.3)
    found = lifelong.learn_on_board(
        path, x[np.concatenate(stream.tasks)], stream, method, SEED,
        size=size, form=form,
    )  # fmt: skip
    expected = lifelong.learn(net, Replay.of(net, x), stream, method, SEED, test=False)
    assert found.pop("slots") == method.slots == 11
    assert expected.pop("matrix") == []
    assert found == expected
    assert found["steps"] == len(stream) * (1 + rehearse)
