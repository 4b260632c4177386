"""Contribution analysis: replayed steps are whole steps, nothing is measured twice or lost."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import numpy as np
import pytest
from command_line import sprout
from nets import everything_net, residual_net
from sprout import analyze, frontends, frontier, replay
from sprout.analyze import Bench, Settings
from sprout.arguments import read_blob
from sprout.compile import compile_graph
from sprout.data import Samples
from sprout.engine import Engine
from sprout.footprint import Footprint, measured
from sprout.graph import SproutError
from sprout.schedule import rate_at, rate_parts, sample_order

NETS = {residual_net: ["last", "b2", "3:1/2", "b5,1:1/2,2:1", "0:1"],
        everything_net: ["last", "b3", "2:1/2", "b4,1:1"]}  # fmt: skip
PLANS = [(net, plan) for net, some in NETS.items() for plan in some]


def pictures(net, n=24, classes=4):
    """Pictures of one brightness each, which their labels follow."""
    rng = np.random.default_rng(1)
    shape = net().input.shape
    y = np.arange(n) % classes
    x = rng.integers(0, 40, (n, *shape)) + 50 * y[:, None, None, None]
    return Samples(x.astype(np.uint8), y.astype(np.int64), shape)


# --- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "plan"), PLANS)
@pytest.mark.parametrize("batch", [1, 4])
def test_replayed_steps_give_the_bytes_of_whole_steps(net, plan, batch):
    blob, samples = compile_graph(net(), plan), pictures(net)
    frozen = replay.Replay.of(blob, samples.x)
    order = sample_order(len(samples), 1, 5)
    part, whole = (Engine(blob.to_bytes(), accumulate=batch > 1) for _ in range(2))
    losses = replay.learn(part, frozen, samples.y, order, 0.01, 7, batch)
    mantissa, exponent = rate_parts(0.01)
    for t, i in enumerate(order):
        rate = rate_at(mantissa, t, len(order)), exponent
        assert whole.step(samples.x[i], int(samples.y[i]), rate, 7, t) == losses[t]
        if batch > 1 and (t + 1) % batch == 0:
            whole.apply()
    assert part.digest() == whole.digest() != Engine(blob.to_bytes()).digest()
    for i, row in enumerate(replay.logits(part, frozen, range(3))):
        whole.set_input(samples.x[i])
        whole.forward()
        about = blob.meta["logits"]
        expected = whole.tensor(blob.logits).ravel()[: blob.n_classes].astype(float)
        assert (row == (expected - about["zero_point"]) * about["scale"]).all()


def test_plans_with_the_same_frozen_part_share_it():
    samples = pictures(residual_net)
    biases, weights, others = (
        compile_graph(residual_net(), p, save=False) for p in ("b3", "2:1/2", "b2")
    )
    frozen = replay.Replay.of(biases, samples.x)
    shared = frozen.on(weights)
    own = replay.Replay.of(weights, samples.x)
    assert shared.data is frozen.data
    assert shared.cut == own.cut and shared.spans == own.spans
    assert (shared.data == own.data).all()
    assert frozen.on(others) is None


# --- the bench -----------------------------------------------------------------------------------


def make_bench(folder, settings=None, net=residual_net, **options):
    settings = settings or Settings(samples=24, seeds=2, epochs=2, rate=0.02)
    return Bench(net(), b"model", pictures(net), None, settings=settings, folder=folder, **options)


def test_every_sample_is_held_out_once_and_never_learned_then():
    task = make_bench("unused", Settings(samples=24, seeds=3)).task
    splits = [task.split(seed) for seed in range(3)]
    assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(24))
    for learned, held_out in splits:
        assert sorted([*learned, *held_out]) == list(range(24))


def test_gains_are_differences_to_the_head_alone(tmp_path):
    bench = make_bench(tmp_path)
    found = analyze.analyze(bench, 1 << 20)
    assert set(found.biases) == {2, 3, 4, 5}
    assert {i for i, _ in found.weights} == {0, 1, 2, 3}
    results = bench.run(["last", "b3"], "again")
    head, biases = (analyze.accuracies(results[text]) for text in ("last", "b3"))
    assert found.head == head.tolist()
    assert found.biases[3].each == (biases - head).tolist()
    assert found.biases[3].mean == pytest.approx((biases - head).mean())
    path = tmp_path / "found.json"
    path.write_text(found.to_json())
    again = analyze.read(path)
    assert again == found


def test_what_a_run_says_is_what_learning_from_scratch_says(tmp_path):
    """One result by hand, without replay, cache and workers."""
    settings = Settings(samples=24, seeds=1, epochs=2, rate=0.02)
    bench = make_bench(tmp_path, settings)
    (found,) = bench.run(["b3,2:1/2"], "x")["b3,2:1/2"]
    samples = pictures(residual_net).take(sample_order(24, 1, 0))
    engine = Engine(compile_graph(residual_net(), "b3,2:1/2").to_bytes())
    learned = np.arange(8, 24)
    order = learned[sample_order(16, 2, 0)]
    mantissa, exponent = rate_parts(0.02)
    for t, i in enumerate(order):
        rate = rate_at(mantissa, t, len(order)), exponent
        engine.step(samples.x[i], int(samples.y[i]), rate, 0, t)
    right = 0
    for i in range(8):
        engine.set_input(samples.x[i])
        right += int(engine.forward().ravel().argmax()) == samples.y[i]
    assert (found["right"], found["of"]) == (right, 8)


def test_candidates_that_are_too_big_by_themselves_are_left_out():
    network = Footprint(residual_net())
    everything = analyze.candidates(network, 1 << 20)
    ram = network.cost(analyze.plans.parse("b3", 5)).ram
    some = analyze.candidates(network, ram)
    assert "b3" in some and "b1" not in everything
    left_out = set(everything) - set(some)
    assert left_out and all(network.cost(analyze.plans.parse(t, 5)).ram > ram for t in left_out)


def count_work(monkeypatch):
    """Record what is measured; runs in this process."""
    done = []

    def here(work, job, scheduler=None):
        for i, arguments in enumerate(work):
            if job is analyze.measure:
                done.extend((text, arguments[2]) for text in arguments[1])
            yield i, job(*arguments)

    monkeypatch.setattr(analyze, "spread", here)
    return done


def test_an_interrupted_analysis_goes_on_where_it_was(tmp_path, monkeypatch):
    done = count_work(monkeypatch)
    whole = analyze.analyze(make_bench(tmp_path / "whole"), 1 << 20)
    everything = list(done)
    assert len(everything) == len(set(everything)) > 30
    done.clear()
    here = analyze.spread

    def interrupted(work, job, scheduler=None):
        for n, item in enumerate(here(work, job)):
            if n == 3 and job is analyze.measure:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(analyze, "spread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze.analyze(make_bench(tmp_path / "cut"), 1 << 20)
    kept = len(list((tmp_path / "cut").glob("*.json")))
    assert 0 < kept < len(everything)
    done.clear()
    monkeypatch.setattr(analyze, "spread", here)
    again = analyze.analyze(make_bench(tmp_path / "cut"), 1 << 20)
    assert len(done) == len(everything) - kept
    assert again == whole
    done.clear()
    assert analyze.analyze(make_bench(tmp_path / "cut"), 1 << 20) == whole
    assert not done


@pytest.mark.parametrize("change", ["model", "samples", "settings", "damage"])
def test_results_are_kept_by_what_they_depend_on(tmp_path, monkeypatch, change):
    done = count_work(monkeypatch)
    make_bench(tmp_path).run(["b3"], "x")
    assert done == [("b3", 0), ("b3", 1)]
    done.clear()
    if change == "samples":
        brighter = pictures(residual_net)
        brighter.x[0, 0, 0, 0] += 1
        settings = Settings(samples=24, seeds=2, epochs=2, rate=0.02)
        other = Bench(residual_net(), b"model", brighter, None, settings=settings, folder=tmp_path)
    elif change == "settings":
        other = make_bench(tmp_path, Settings(samples=24, seeds=2, epochs=2, rate=0.01))
    elif change == "model":
        other = make_bench(tmp_path, net=lambda: residual_net(seed=3))
    else:
        other = make_bench(tmp_path)
        for path in tmp_path.glob("*.json"):
            path.write_text(path.read_text()[:40])
    other.run(["b3"], "x")
    assert done == [("b3", 0), ("b3", 1)]


def test_a_rate_that_is_none_is_told_before_anything_is_measured():
    with pytest.raises(SproutError, match="The learning rate is -1 and must lie between"):
        make_bench("unused", Settings(samples=24, rate=-1))


def test_candidates_are_sized_again_by_other_code(tmp_path, monkeypatch):
    count_work(monkeypatch)
    real, sized = analyze.candidates, []
    monkeypatch.setattr(analyze, "candidates", lambda *a: sized.append(1) or real(*a))
    ram = Footprint(residual_net()).cost(analyze.plans.parse("b3", 5)).ram
    for code, times in (("old", 1), ("old", 1), ("new", 2)):
        monkeypatch.setattr(analyze, "code_digest", lambda code=code: code)
        analyze.analyze(make_bench(tmp_path), ram)
        assert len(sized) == times


def test_too_few_samples_are_told():
    with pytest.raises(SproutError, match="needs at least 60 samples and there are 24"):
        make_bench("unused", Settings(seeds=30))


# --- many workers --------------------------------------------------------------------------------

TEXTS = ["last", "b2", "b3", "b4", "b5", "0:1", "1:1/2", "2:1/2", "3:1/2"]
SLOW = Settings(samples=24, seeds=3, epochs=150, rate=0.01)


def test_all_cores_give_the_results_of_one(tmp_path, monkeypatch):
    texts = TEXTS[:4]
    spread = make_bench(tmp_path / "spread").run(texts, "x")
    count_work(monkeypatch)
    assert make_bench(tmp_path / "here").run(texts, "x") == spread


def test_a_cluster_loses_nothing_when_a_worker_is_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    real = analyze.spread
    killed = []
    with distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster:

        def killing(work, job, scheduler):
            assert job is analyze.freeze or len(work) > 8
            for n, item in enumerate(real(work, job, scheduler)):
                if n == 1 and job is analyze.measure:
                    victim = next(iter(cluster.workers.values()))
                    killed.append(victim.process.pid)
                    os.kill(victim.process.pid, signal.SIGKILL)
                yield item

        monkeypatch.setattr(analyze, "spread", killing)
        bench = make_bench(tmp_path / "cluster", SLOW, scheduler=cluster.scheduler_address)
        found = bench.run(TEXTS, "x")
        assert killed and killed[0] not in {w.process.pid for w in cluster.workers.values()}
    assert len(list((tmp_path / "cluster").glob("*.json"))) == len(TEXTS) * SLOW.seeds
    count_work(monkeypatch)
    assert make_bench(tmp_path / "here", SLOW).run(TEXTS, "x") == found


def test_a_scheduler_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "WAIT", 1)
    with pytest.raises(SproutError, match="No Dask scheduler answers at tcp://127.0.0.1:9"):
        make_bench(tmp_path, scheduler="tcp://127.0.0.1:9").run(["b2"], "x")


def test_a_scheduler_needs_dask(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SproutError, match="needs Dask: pip install distributed"):
        make_bench(tmp_path, scheduler="tcp://127.0.0.1:9").run(["b2"], "x")


def test_a_scheduler_without_workers_is_told(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(analyze, "WAIT", 1)
    options = {"n_workers": 0, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with (
        distributed.LocalCluster(**options, local_directory=str(tmp_path)) as cluster,
        pytest.raises(SproutError, match="has no workers: start some with 'dask worker tcp://"),
    ):
        make_bench(tmp_path, scheduler=cluster.scheduler_address).run(["b2"], "x")


# --- the commands --------------------------------------------------------------------------------


def own_network(tmp_path, monkeypatch):
    """A network and a file of samples for the command line, which works where they are."""
    samples = pictures(residual_net)
    np.savez(tmp_path / "mine.npz", x=samples.x, y=samples.y)
    (tmp_path / "net.tflite").write_bytes(b"a network of our own")
    monkeypatch.setattr(frontends, "load", lambda path: residual_net())
    monkeypatch.chdir(tmp_path)
    count_work(monkeypatch)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    own_network(tmp_path, monkeypatch)
    return ("net.tflite", "--data", "mine.npz", "--epochs", "3", "--rate", "0.02")


def test_a_plan_that_learns_worse_than_the_head_alone_is_not_taken(
    tiny, tmp_path, monkeypatch, capsys
):
    run = Bench.run

    def flattering(bench, texts, phase):
        found = run(bench, texts, phase)
        return found | {"last": [{**r, "loss": 0.0} for r in found.get("last", [])]}

    monkeypatch.setattr(Bench, "run", flattering)
    assert sprout("compile", *tiny, "--plan", "auto", "--ram", "7K", "-o", "net.sprout") == 0
    said = capsys.readouterr().out
    assert "learns worse than the head alone, which is taken." in said
    assert "predicted gain +0.0 points, true gain +0.0" in said
    assert read_blob(tmp_path / "net.sprout")[1].info["plan"] == "last"


def test_analyze_then_compile(tiny, tmp_path, capsys):
    assert sprout("analyze", *tiny, "-o", "gains.json") == 0
    assert "head alone" in capsys.readouterr().out
    gains = json.loads((tmp_path / "gains.json").read_text())
    assert len(gains["head"]) == 3 and len(gains["gains"]) > 15
    common = ("--plan", "auto", "--ram", "7K", "-o", "net.sprout")
    assert sprout("compile", "net.tflite", "--analysis", "gains.json", *common) == 0
    by_file = capsys.readouterr().out
    assert "of the measured gains" in by_file and "true gain" not in by_file
    assert "leaves out" not in by_file
    assert sprout("compile", *tiny, *common) == 0
    with_data = capsys.readouterr().out
    rows = [line.split() for line in with_data.splitlines()]
    tried = [row for row in rows[1:] if len(row) == 6 and row[0].startswith("b")]
    assert by_file.split(": the optimum")[0] in [row[0] for row in tried]  # and more than that
    assert {float(row[1]) for row in tried} >= {0.02, 0.01}
    losses = [float(row[5]) for row in tried]
    assert losses == sorted(losses)
    said = re.search(r"predicted gain .* true gain (.*) \((.*)\): (.*) -> (.*) %", with_data)
    gain, each, before, after = said.groups()
    assert float(gain) == pytest.approx(float(after) - float(before), abs=0.11)
    assert float(gain) == pytest.approx(np.mean([float(g) for g in each.split(",")]), abs=0.11)
    _, blob = read_blob(tmp_path / "net.sprout")
    assert blob.arena_len + blob.trained_len + blob.scratch_len + blob.program_len <= 7 << 10
    assert sprout("compile", *tiny, *common, "--select", "eliminate", "--within", "50") == 0
    assert "backward elimination leaves" in capsys.readouterr().out
    by_file = ("--analysis", "gains.json", *common)
    assert sprout("analyze", *tiny, "--ram", "6K", "-o", "gains.json") == 0
    assert sprout("compile", "net.tflite", *by_file) == 0
    note = "gains.json leaves out what takes more than 6,144 bytes by itself"
    assert note in capsys.readouterr().out
    assert sprout("compile", "net.tflite", "--classes", "a,b,c,d", *by_file) == 1
    assert "gains.json is of another model or other classes" in capsys.readouterr().err
    (tmp_path / "net.tflite").write_bytes(b"another network")
    assert sprout("compile", "net.tflite", *by_file) == 1
    assert "gains.json is of another model or other classes" in capsys.readouterr().err


def test_frontier_draws_and_writes(tiny, tmp_path, capsys):
    assert (
        sprout("frontier", *tiny, "--budgets", "6K,7K,8K", "--png", "f.png", "--json", "f.json")
        == 0
    )
    points = json.loads((tmp_path / "f.json").read_text())["points"]
    assert {p["family"] for p in points} == set(frontier.FAMILIES)
    for p, ram in zip([p for p in points if p["family"] == "found"], (6, 7, 8), strict=True):
        assert p["ram"] <= ram << 10 and len(p["each"]) == 3
    for p in points:
        cost = measured(compile_graph(residual_net(), p["plan"]))
        assert (p["ram"], p["macs"]) == (cost.ram, cost.macs)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "the plan found for each budget" in output and "Nothing fits" not in output
    assert sprout("analyze", *tiny, "-o", "gains.json") == 0
    again = ("--budgets", "1K,6K,7K,8K", "--analysis", "gains.json", "--json", "g.json")
    assert sprout("frontier", *tiny, *again, "--png", "g.png") == 0
    assert json.loads((tmp_path / "g.json").read_text())["points"] == points
    assert "Nothing fits 1,024 bytes: the least plan here takes" in capsys.readouterr().out
    by_rows = ("--rows", "--budgets", "7K", "--analysis", "gains.json", "--json", "r.json")
    assert sprout("frontier", *tiny, *by_rows, "--png", "r.png") == 0
    points = json.loads((tmp_path / "r.json").read_text())["points"]
    assert {p["family"] for p in points} == set(frontier.FAMILIES)
    last = next(p for p in points if p["family"] == "last")
    assert last["ram"] == measured(compile_graph(residual_net(), "last", rows=True)).ram
    gains = json.loads((tmp_path / "gains.json").read_text())
    gains["about"]["ram"] = 6 << 10
    (tmp_path / "gains.json").write_text(json.dumps(gains))
    assert sprout("frontier", *tiny, *again, "--png", "g.png") == 0
    assert "gains.json leaves out what takes more than 6,144" in capsys.readouterr().out
    gains["about"]["classes"] = ["others"]
    (tmp_path / "gains.json").write_text(json.dumps(gains))
    assert sprout("frontier", *tiny, *again, "--png", "g.png") != 0
    assert "gains.json is of another model or other classes" in capsys.readouterr().err


def test_what_cannot_fit_is_told_before_anything_is_measured(tiny, tmp_path, capsys):
    options = ("--plan", "auto", "--ram", "1M", "--step-mmac", "0.0001", "-o", "net.sprout")
    assert sprout("compile", *tiny, *options) == 1
    assert "No plan fits: the head alone takes" in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def test_classes_without_a_name_are_refused(tiny, capsys):
    assert sprout("analyze", *tiny, "--classes", "") == 1
    assert "has an empty or a repeated name" in capsys.readouterr().err


def test_one_seed_has_no_error(tiny, tmp_path, capsys):
    one = (*tiny, "--seeds", "1")
    assert sprout("analyze", *one, "--ram", "7K", "-o", "gains.json") == 0
    some = ("--budgets", "7K", "--analysis", "gains.json", "--png", "f.png", "--json", "f.json")
    assert sprout("frontier", *one, *some) == 0
    assert "nan" not in capsys.readouterr().out
    for name, key in (("gains.json", "gains"), ("f.json", "points")):
        text = (tmp_path / name).read_text()
        found = json.loads(text, parse_constant=pytest.fail)  # what JSON has not
        assert {row["error"] for row in found[key]} == {None}


@pytest.mark.parametrize(
    "change",
    [
        {"about": {}},
        {"head": []},
        {"head": [None]},
        {"basis": [2]},
        {"gains": [{"plan": "b2", "mean": [], "error": 0, "each": [0], "loss": 0}]},
        {"gains": [{"plan": 2, "mean": 0, "error": 0, "each": [0], "loss": 0}]},
        {"gains": [{"plan": "b2", "mean": 0, "error": 0, "each": [0]}]},
        "{}", "[1]", "no json",
    ],
)  # fmt: skip
def test_a_file_that_is_no_analysis(tmp_path, change):
    path = tmp_path / "gains.json"
    found = analyze.Contributions({"format": analyze.FORMAT}, [50.0], 2, {}, {})
    path.write_text(found.to_json())
    assert analyze.read(path) == found
    whole = json.loads(found.to_json())
    path.write_text(change if isinstance(change, str) else json.dumps(whole | change))
    with pytest.raises(SproutError, match="is not an analysis of this version"):
        analyze.read(path)
