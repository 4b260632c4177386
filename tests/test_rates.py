"""The learning rate in a blob: its choice, the protocol against plain steps, the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nets import residual_net
from sprout import blob as blobs
from sprout import cli, rates
from sprout.arguments import read_blob
from sprout.compile import compile_graph
from sprout.engine import Engine
from sprout.graph import SproutError
from sprout.learning import DEFAULT_RATE
from sprout.schedule import rate_parts, sample_order
from test_analyze import make_bench, own_network


def count_rates(monkeypatch):
    """Record for which plans and seeds rates are measured; runs in this process."""
    done = []

    def here(work, job, scheduler=None):
        for i, (task, plan, seed) in enumerate(work):
            done.append((plan, seed))
            yield i, job(task, plan, seed)

    monkeypatch.setattr(rates, "spread", here)
    return done


def test_the_smallest_rate_within_the_error_of_the_best_wins():
    scores = np.full((len(rates.GRID), 2), 90.0)
    scores[4] = 10, 14  # the best
    scores[3] = 12, 16  # 2 apart each time
    scores[2] = 10, 18  # 2 apart, give or take 2
    assert rates.choose(scores).rate == rates.GRID[2]
    scores[2] = 12, 17
    assert rates.choose(scores).rate == rates.GRID[4]
    scores[3] = 10.9, 14.9  # which a few hundred answers do not resolve
    assert rates.choose(scores).rate == rates.choose(scores[:, :1]).rate == rates.GRID[3]


def test_bursts_are_of_one_class_each_and_lose_nothing():
    labels = np.array([0, 1, 2] * 11)
    order = np.random.default_rng(0).permutation(33)[:30]
    found = rates.bursts(labels, order, 1)
    assert sorted(found) == sorted(order)
    changes = int((np.diff(labels[found]) != 0).sum())
    assert changes < sum(-(-n // rates.BURST) for n in np.bincount(labels[order]))
    assert (found == rates.bursts(labels, order, 1)).all()
    assert (found != rates.bursts(labels, order, 2)).any()
    assert (found != rates.bursts(labels, order, 1, 1)).any()


def test_a_score_is_that_of_plain_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "GRID", (0.02,))
    monkeypatch.setattr(rates, "STEPS", 40)  # which take three passes
    task = make_bench(tmp_path).task
    learned, held_out = task.split(1)
    engine = Engine(compile_graph(residual_net(), "b3").to_bytes())
    order = learned[sample_order(len(learned), 1, 1)]
    assert len(order) == 16
    others = np.concatenate([rates.bursts(task.labels, order, 1, turn) for turn in (0, 1)])
    seen = []
    for part in (order, *np.array_split(others, rates.LOOKS)):
        for i in part:
            engine.step(task.frames[i], int(task.labels[i]), rate_parts(0.02), 1, engine.run.step)
            engine.run.step += 1
        step, found = engine.run.step, []
        for i in held_out:
            engine.set_input(task.frames[i])
            found.append(engine.forward().ravel().argmax())
        seen.append(100 * np.mean(np.array(found) != task.labels[held_out]))
        engine.run.step = step
    assert rates.measure(task, "b3", 1) == [pytest.approx(np.mean(seen), abs=1e-12)]


def test_rates_are_measured_once(tmp_path, monkeypatch):
    work = count_rates(monkeypatch)
    bench = make_bench(tmp_path)
    first = rates.find(bench, "b2")
    assert work == [("b2", 0), ("b2", 1)]
    assert str(rates.find(bench, "b2")) == str(first) and len(work) == 2
    assert first.rate in rates.GRID and first.scores.shape == (len(rates.GRID), 2)
    rates.find(bench, "b3")
    assert work[2:] == [("b3", 0), ("b3", 1)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    own_network(tmp_path, monkeypatch)
    monkeypatch.setattr(rates, "GRID", (0.001, 0.004))
    count_rates(monkeypatch)
    return tmp_path


@pytest.mark.parametrize("plan", [("b3",), ("auto", "--ram", "7K")])
def test_compile_writes_the_rate_that_learn_takes(tiny, capsys, plan):
    common = ("compile", "net.tflite", "--plan", *plan, "-o", "net.sprout")
    assert cli.main([*common, "--data", "mine.npz"]) == 0
    said = capsys.readouterr().out
    _, with_rate = read_blob(tiny / "net.sprout")
    rate = with_rate.meta["rate"]
    assert rate in rates.GRID
    assert f"learning rate {rate:g}" in said and f" at rate {rate:g}:" in said
    learn = ["learn", "net.sprout", "--train", "mine.npz", "--test", "mine.npz", "--json", "r"]
    assert cli.main([*learn]) == 0
    assert json.loads((tiny / "r").read_text())["rate"] == rate
    if len(plan) == 1:
        assert cli.main([*common]) == 0
        _, without = read_blob(tiny / "net.sprout")
        assert without.constants == with_rate.constants and "rate" not in without.meta
        assert cli.main([*learn]) == 0
        assert json.loads((tiny / "r").read_text())["rate"] == DEFAULT_RATE


def test_what_cannot_learn_has_no_rate(tiny, capsys):
    args = ["compile", "net.tflite", "--data", "mine.npz", "-o", "net.sprout"]
    assert cli.main(args) == 1
    assert "with --plan none nothing learns" in capsys.readouterr().err
    assert not (tiny / "net.sprout").exists()


@pytest.mark.parametrize("rate", ["0.002", None, 0, -1.0, 1e10, float("nan"), True])
def test_a_rate_that_is_none_is_damage(rate):
    blob = compile_graph(residual_net(), "last")
    blob.meta["rate"] = rate
    with pytest.raises(SproutError, match="net is damaged, its learning rate is none"):
        blobs.read(blob.to_bytes(), "net")


def test_climbs_to_the_power_with_the_greatest_score():
    def climbed(best, powers=(-1, 0, 1)):
        asked: list[int] = []

        def score(some):
            asked.extend(some)
            return [-abs(power - best) for power in some]

        return rates.climb(score, powers), asked

    assert climbed(0) == ((0, 0), [-1, 0, 1])
    assert climbed(3) == ((3, 0), [-1, 0, 1, 2, 3, 4])
    assert climbed(-2.5) == ((-3, -0.5), [-1, 0, 1, -2, -3, -4])  # the smaller one of two
    assert climbed(99, rates.POWERS) == ((rates.MOST_POWER, -95), [-2, -1, 0, 1, 2, 3, 4])
    assert climbed(-99)[0][0] == rates.LEAST_POWER
