"""The choice of a plan: the memory model against the compiler, the optimum against all plans."""

from __future__ import annotations

import ctypes
import itertools
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import sprout
from nets import Maker, everything_net, picture, residual_net
from sprout import auto, choose, cli, frontends, frontier
from sprout import plan as plans
from sprout.analyze import Contributions, Gain
from sprout.arguments import read_blob
from sprout.choose import TIE, Gains, best
from sprout.footprint import Footprint, measured
from sprout.graph import SproutError, mean_multiplier
from sprout.plan import UpdatePlan


def branched_net(seed=0):
    """A convolution on each way of a residual block, so that gradients may take either."""
    m = Maker(seed)
    x = picture()
    a = m.conv(x, 8, 3, 2)
    b = m.conv(a, 12, 3, depthwise=False)
    c = m.conv(b, 10, relu=False)
    d = m.conv(a, 10, relu=False)
    e = m.op("add", [c, d], (4, 4, 10), 0.06, -1)
    mult, shift = mean_multiplier(0.06, 0.06, 16)
    f = m.op("mean", [e], (1, 1, 10), 0.06, -1, mult=mult, shift=shift)
    return m.graph(x, m.conv(f, 4, relu=False))


NETS = [residual_net, everything_net, branched_net]


def offered(network: Footprint) -> list[list[Fraction | None]]:
    """For each layer but the head: that nothing of its weight learns, and the largest two of the
    fractions."""
    return [[None, *[w.key[1] for w in some][-2:]] for some in network.weights[:-1]]


def compiled(network: Footprint) -> list[tuple[UpdatePlan, choose.Cost]]:
    """All plans of what is offered, with what they take; those without a gradient left out."""
    n = len(network.convs)
    found = []
    for k, *parts in itertools.product([0, *range(2, n + 1)], *offered(network)):
        plan = UpdatePlan(k, {i: f for i, f in enumerate(parts) if f is not None})
        try:
            found.append((plan, measured(network.build(plan))))
        except SproutError:
            continue
    return found


@pytest.fixture(scope="module", params=NETS)
def everything(request):
    """A network and all its plans."""
    network = Footprint(request.param())
    return network, compiled(network)


def test_the_model_never_says_more_than_the_compiler_and_nearly_always_the_same(everything):
    network, all_plans = everything
    same = 0
    for plan, true in all_plans:
        model = network.cost(plan)
        assert model.ram <= true.ram <= model.ram + 64, plan
        assert model.macs == true.macs, plan
        assert model.trained == true.trained, plan
        same += model == true
    assert same > 0.9 * len(all_plans)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fractions", ["none", "head"])
def test_the_model_knows_rows_and_fractions(rows, fractions):
    network = Footprint(residual_net(), fractions, rows)
    for text in ("last", "b2", "b3,3:1", "b4,1:1/2,2:1", "b5,0:1", "3:1/8"):
        plan = plans.parse(text, 5)
        try:
            true = measured(network.build(plan))
        except SproutError:
            with pytest.raises(SproutError):
                network.cost(plan)
        else:
            assert network.cost(plan) == true, text


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_is_better_than_the_one_found(everything, seed):
    """Brute force over all plans, with random gains, some of them negative."""
    network, all_plans = everything
    rng = np.random.default_rng(seed)
    n = len(network.convs)
    gains = Gains(
        {k: float(rng.normal(1, 1)) for k in range(2, n + 1)},
        {
            (i, f): float(rng.normal(1, 1))
            for i, some in enumerate(offered(network)) for f in some if f
        },
    )  # fmt: skip
    sizes = sorted(cost.ram for _, cost in all_plans)
    ram = sizes[int(rng.integers(len(sizes) // 8, len(sizes)))]
    macs = int(np.median([cost.macs for _, cost in all_plans])) if seed % 2 else None
    fitting = [
        gains.of(plan) for plan, cost in all_plans
        if cost.ram <= ram and (macs is None or cost.macs <= macs)
    ]  # fmt: skip
    if not fitting:
        with pytest.raises(SproutError, match="No plan fits"):
            best(network, gains, ram, macs)
        return
    found = best(network, gains, ram, macs)
    assert found.short == 0
    assert found.gain >= max(fitting) - TIE
    assert found.gain == pytest.approx(gains.of(found.plan))
    true = measured(network.build(found.plan))
    assert true == found.cost and true.ram <= ram
    assert macs is None or true.macs <= macs


def test_what_the_placement_wastes_is_said_not_hidden(monkeypatch):
    """Where no plan turns out as small as the model says, a smaller one is taken, and ``short``
    bounds what was lost."""
    network = Footprint(residual_net())
    weights = {w.key: float(w.key[1]) ** 0.5 for some in network.weights[:-1] for w in some}
    gains = Gains({k: k - 1.0 for k in range(2, 6)}, weights)
    ram = network.cost(plans.parse("b5,1:1,2:1", 5)).ram
    exact = best(network, gains, ram)

    def wasteful(plan):
        blob = network.build(plan)
        if len(plan.weights) > 1:
            blob.arena_len += 1000
        return blob

    monkeypatch.setattr(choose, "PATIENCE", 2)
    found = best(network, gains, ram, build=wasteful)
    assert len(exact.plan.weights) > 1 >= len(found.plan.weights)
    assert found.cost.ram <= ram
    small = [
        UpdatePlan(k, {i: w.key[1]})
        for k in (0, 2, 3, 4, 5) for i in range(4) for w in network.weights[i]
    ]  # fmt: skip
    optimum = max(gains.of(plan) for plan in small if network.cost(plan).ram <= ram)
    assert 0 <= optimum - found.gain <= found.short + TIE


@pytest.mark.parametrize(
    ("rows", "ram", "macs", "says"),
    [
        (False, 1000, None, "--ram allows 1,000; allow more, or let frames arrive by rows"),
        (True, 1000, None, "--ram allows 1,000; allow more."),
        (False, 1 << 20, 10, "--ram allows 1,048,576, --step-mmac 10 MACs; allow more."),
    ],
)
def test_what_does_not_fit_is_told_what_may_help(rows, ram, macs, says):
    network = Footprint(residual_net(), rows=rows)
    with pytest.raises(SproutError, match=re.escape(says)):
        best(network, choose.rule(network), ram, macs)


def test_rows_need_less_and_plans_that_reach_the_input_cannot_have_them():
    gains = choose.rule(Footprint(residual_net()))
    network = Footprint(residual_net(), rows=True)
    found = best(network, gains, 1 << 20)
    assert 0 not in found.plan.weights and found.plan.biases < 5
    assert found.blob.takes_rows


def test_gains_are_made_to_rise_with_what_learns():
    def gain(mean):
        return Gain(mean, 0.0, [mean], 0.0)

    eighth, half = Fraction(1, 8), Fraction(1, 2)
    found = Contributions(
        {},
        [50.0],
        0,
        {2: gain(1.0), 3: gain(4.0), 4: gain(2.0)},
        {(7, half): gain(1.0), (7, eighth): gain(2.0), (8, half): gain(-1.0)},
    )
    gains = choose.from_analysis(found)
    assert gains.biases == {2: 1.0, 3: 3.0, 4: 3.0}
    assert gains.weights == {(7, eighth): 1.5, (7, half): 1.5, (8, half): -1.0}


def test_gains_follow_the_loss_which_is_less_noisy():
    """Twenty points for a nat over all of them; what accuracy says of one candidate does not
    count for it."""
    half = Fraction(1, 2)
    found = Contributions(
        {},
        [50.0],
        0,
        {2: Gain(3.0, 0.0, [3.0], 0.1), 3: Gain(1.0, 0.0, [1.0], 0.1)},
        {(7, half): Gain(0.0, 0.0, [0.0], 0.0), (8, half): Gain(-1.0, 0.0, [-1.0], 0.0)},
    )
    gains = choose.from_analysis(found)
    assert gains.biases == pytest.approx({2: 2.0, 3: 2.0})
    assert gains.weights == pytest.approx({(7, half): 0.0, (8, half): 0.0})


def test_what_the_solver_prints_is_not_ours(capfd):
    with choose._quiet():
        ctypes.CDLL(None).puts(b"debugging")
    print("ours")
    assert capfd.readouterr().out == "ours\n"


def test_plans_with_many_biases_are_tried_too():
    """A weight that is worth more than biases leaves no room for them; training may disagree."""
    network = Footprint(residual_net())

    def gain(loss):
        return Gain(10 * loss, 0.0, [10 * loss], loss)

    biases = {k: gain(0.01 * k) for k in range(2, 6)}
    found = Contributions({}, [50.0], 5, biases, {(3, Fraction(1)): gain(1.0)})
    ram = max(network.cost(plans.parse(text, 5)).ram for text in ("3:1", "b4"))
    assert network.cost(plans.parse("b4,3:1", 5)).ram > ram
    choices = choose.offers(network, found, ram)
    assert 3 in choices[0].plan.weights
    assert max(choice.plan.biases for choice in choices) >= 3
    assert len({str(choice.plan) for choice in choices}) == len(choices) > 1
    assert all(choice.cost.ram <= ram for choice in choices)
    assert "the optimum of the measured gains (" in auto._proof(choices[0])
    assert {choice.of.split(" among")[0] for choice in choices} >= {choose.MEASURED, choose.RULE}
    for choice in choices[1:]:
        assert f"the optimum {choice.of} (" in auto._proof(choice)
        least = re.search(r"at least (\d+) biases", choice.of)
        assert choice.plan.biases >= int(least[1] if least else 0)


def test_plans_that_teach_expansions_alone_are_tried_too():
    network = Footprint(residual_net())
    assert choose.expansions(network) == {1}
    weights = {(i, Fraction(1)): Gain(1.0, 0.0, [1.0], 0.1) for i in range(4)}
    found = Contributions({}, [50.0], 2, {2: Gain(1.0, 0.0, [1.0], 0.1)}, weights)
    choices = choose.offers(network, found, network.cost(plans.parse("full", 5)).ram)
    narrow = [c for c in choices if "weights of expansions alone" in c.of]
    assert narrow and {i for c in narrow for i in c.plan.weights} == {1}
    assert choose.expansions(Footprint(branched_net())) is None


def test_gains_can_be_offered_in_part():
    gains = choose.Gains({2: 1.0, 3: 2.0}, {(1, Fraction(1)): 5.0, (2, Fraction(1)): -1.0})
    assert gains.among(None, 0) == gains
    assert gains.among({2}, 0) == choose.Gains({2: 1.0, 3: 2.0}, {(2, Fraction(1)): -1.0})
    assert gains.among(None, 3).biases == {3: 7.0}  # more than any weights are worth


class RatedBench:
    """A bench whose plans, b and a number, come to a loss by plan, rate and number of seeds."""

    def __init__(self, loss, rate=0.004, seeds=1):
        self.loss, self.all_samples = loss, 480
        self.asked: list[tuple[str, float, int]] = []
        self.task = SimpleNamespace(settings=SimpleNamespace(rate=rate, seeds=seeds))

    def having(self, rate, seeds=None):
        other = RatedBench(self.loss, rate, seeds or self.task.settings.seeds)
        other.asked = self.asked
        return other

    def run(self, texts, phase):
        now = self.task.settings
        self.asked += [(text, now.rate, now.seeds) for text in texts]
        found = {}
        for text in texts:
            each = np.broadcast_to(self.loss(int(text[1:]), now.rate, now.seeds), now.seeds)
            found[text] = [{"right": 1, "of": 1, "loss": float(loss)} for loss in each]
        return found


def of_biases(*numbers):
    return [SimpleNamespace(plan=UpdatePlan(k)) for k in numbers]


def test_the_better_half_competes_at_half_the_rate_as_long_as_that_helps():
    bench = RatedBench(lambda k, rate, seeds: k + abs(rate - 0.001))
    trials = choose.compete(bench, of_biases(3, 2, 5, 4))
    assert bench.asked == [
        ("b3", 0.004, 1), ("b2", 0.004, 1), ("b5", 0.004, 1), ("b4", 0.004, 1),
        ("b2", 0.002, 1), ("b3", 0.002, 1), ("b2", 0.001, 1), ("b2", 0.0005, 1),
    ]  # fmt: skip
    assert (str(trials[0].choice.plan), trials[0].rate) == ("b2", 0.001)
    assert [t.loss for t in trials] == sorted(t.loss for t in trials)


def test_a_least_rate_is_not_halved():
    bench = RatedBench(lambda k, rate, seeds: rate, rate=1.5e-9)
    assert [t.rate for t in choose.compete(bench, of_biases(2))] == [1.5e-9]


def test_the_plan_with_the_least_loss_wins():
    bench = RatedBench(lambda k, rate, seeds: 1.0 / k, seeds=3)
    assert choose.winner(bench, choose.compete(bench, of_biases(2, 5, 3))).choice.plan.biases == 5


def test_plans_that_are_close_are_tried_again():
    losses = {
        3: {2: (0.10, 0.20, 0.30), 3: (0.12, 0.19, 0.31), 4: (0.2, 0.3, 0.4)},
        6: {2: 0.3, 3: 0.2},
    }
    bench = RatedBench(lambda k, rate, seeds: losses[seeds][k] if rate == 0.004 else 9.0, seeds=3)
    trials = choose.compete(bench, of_biases(2, 3, 4))
    bench.asked.clear()
    assert choose.winner(bench, trials) is trials[1]
    assert bench.asked == [("b2", 0.004, 6), ("b3", 0.004, 6)]
    bench.all_samples = 11  # too few for six seeds
    assert choose.winner(bench, trials) is trials[0]


def test_the_frontier_keeps_the_best_of_the_plans_tried_for_a_budget():
    points = [
        frontier.Point("found", f"b{k}", 1, 1, budget=budget)
        for k, budget in ((4, 10), (2, 10), (3, 10), (4, 20))
    ] + [frontier.Point("biases", "b4", 1, 1), frontier.Point("biases", "b5", 1, 1)]
    bench = RatedBench(lambda k, rate, seeds: float(k))
    kept = [(p.family, p.plan, p.budget) for p in frontier.measure(bench, points)]
    assert kept == [
        ("found", "b2", 10), ("found", "b4", 20), ("biases", "b4", None), ("biases", "b5", None)
    ]  # fmt: skip


def test_each_family_learns_at_the_rate_that_is_best_for_its_largest_plan():
    points = [
        frontier.Point("biases", "b4", 100, 1),
        frontier.Point("biases", "b2", 50, 1),
        frontier.Point("full", "b8", 900, 1),
        frontier.Point("found", "b4", 60, 1, budget=64),
    ]
    bench = RatedBench(lambda k, rate, seeds: abs(rate - 0.004 / k))
    found = {(p.family, p.plan): p.rate for p in frontier.measure(bench, points)}
    assert found == {
        ("biases", "b4"): 0.001, ("biases", "b2"): 0.001,
        ("full", "b8"): 0.0005, ("found", "b4"): 0.001,
    }  # fmt: skip


class FakeBench:
    """A bench whose plans are right as often as a formula says."""

    def __init__(self, right):
        self.right, self.asked, self.told = right, [], []

    def report(self, phase, done, total):
        self.told.append((phase, done, total))

    def run(self, texts, phase):
        self.asked += texts
        return {t: [{"right": self.right(t), "of": 100, "loss": 0.0}] for t in texts}


EVERYTHING_MISSED = FakeBench(lambda text: 10 * (text.count(":") + text.startswith("b5")))


def elimination_case():
    def gain(mean):
        return Gain(mean, 0.0, [mean], 0.0)

    whole = Fraction(1)
    weights = {(i, whole): gain(float(i)) for i in range(4)}
    return Footprint(residual_net()), Contributions(
        {}, [50.0], 0, {3: gain(1.0), 5: gain(2.0)}, weights
    )


def test_elimination_freezes_all_that_is_not_missed():
    network, found = elimination_case()
    bench = FakeBench(lambda text: 80 if "3:1" in text and "b" in text else 70)
    plan = choose.eliminate(bench, network, found, within=2.0)
    assert str(plan) == "b3,3:1"
    assert len(bench.asked) == len(set(bench.asked)) == 7
    rising = FakeBench(lambda text: 40 if "0:1" in text else 80 if "3:1" in text else 70)
    assert str(choose.eliminate(rising, network, found, within=2.0)) == "3:1"
    assert bench.told == [("eliminating", done, 7) for done in range(1, 8)]


def test_elimination_goes_on_until_the_plan_fits():
    network, found = elimination_case()
    some = measured(network.build(plans.parse("b5,3:1", 5)))
    for budget in ({"ram": some.ram}, {"macs": some.macs}):
        plan = choose.eliminate(EVERYTHING_MISSED, network, found, 0.5, **budget)
        cost = measured(network.build(plan))
        assert cost.ram <= some.ram if "ram" in budget else cost.macs <= some.macs
        assert plan.weights


def test_elimination_counts_what_compiling_takes(monkeypatch):
    """Not what the model of memory says, which may be less."""
    network, found = elimination_case()
    real = network.build
    ram = network.cost(plans.parse("b5,3:1", 5)).ram

    def wasteful(plan):
        blob = real(plan)
        blob.arena_len += 40 * len(plan.weights)
        return blob

    monkeypatch.setattr(network, "build", wasteful)
    plan = choose.eliminate(EVERYTHING_MISSED, network, found, 0.5, ram)
    assert str(plan) == "b5" and measured(wasteful(plan)).ram <= ram


@pytest.mark.parametrize("budget", [{"ram": 1000}, {"macs": 10}])
def test_elimination_says_what_does_not_fit_before_it_trains(budget):
    network, found = elimination_case()
    bench = FakeBench(lambda text: 80)
    with pytest.raises(SproutError, match="No plan fits: the head alone takes"):
        choose.eliminate(bench, network, found, 0.5, **budget)
    assert not bench.asked


def test_simple_plans_beside_the_frontier():
    assert str(frontier.last_layers(1, 5)) == "last"
    assert str(frontier.last_layers(3, 5)) == "b3,2:1,3:1"
    network = Footprint(residual_net())
    plan = frontier.largest(network, frontier.last_layers, 7000)
    k = plan.biases
    assert network.cost(plan).ram <= 7000 < network.cost(frontier.last_layers(k + 1, 5)).ram
    assert frontier.largest(network, frontier.last_layers, 100) is None


# --- the command ---------------------------------------------------------------------------------


def test_auto_without_data_fits_the_person_network(person_model: Path, tmp_path: Path, capsys):
    out = tmp_path / "auto.sprout"
    options = ("--plan", "auto", "--ram", "120K", "--step-mmac", 13, "-o", out)
    assert sprout("compile", person_model, "--classes", "desk,plant", *options) == 0
    text = capsys.readouterr().out
    assert "by the rule for unknown data" in text
    _, blob = read_blob(out)
    cost = measured(blob)
    assert 60_000 < cost.ram <= 120 << 10
    assert cost.macs <= 13_000_000
    assert len(blob.info["trained"]) > 2


@pytest.mark.parametrize(
    "model", ["emlearn_mnist_cnn_int8", "mlperf_kws_ref_model_int8", "mlperf_resnet8_cifar10_int8"]
)
def test_auto_fits_networks_that_nothing_was_tuned_for(shared, tmp_path, capsys, model):
    """The larger ones too, which take longer: see ``make bench-choice``."""
    out = tmp_path / "auto.sprout"
    path = shared / "models" / f"{model}.tflite"
    assert sprout("compile", path, "--plan", "auto", "--ram", "120K", "-o", out) == 0
    assert ": the optimum by the rule for unknown data" in capsys.readouterr().out
    _, blob = read_blob(out)
    assert measured(blob).ram <= 120 << 10
    learning = len(blob.info["trained"])
    convs = len(Footprint(frontends.load(path)).convs)
    assert learning > convs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plan", "auto"), "--plan auto needs --ram"),
        (("--plan", "auto", "--ram", "1K"), "No plan fits: the head alone takes"),
        (("--plan", "b3", "--ram", "100K"), "--ram does nothing without --plan auto"),
        (("--plan", "b3", "--select", "eliminate"), "--select does nothing without --plan auto"),
        (
            ("--plan", "auto", "--ram", "100K", "--seeds", "5"),
            "--seeds does nothing without --data",
        ),
        (("--within", "2"), "--within does nothing without --select eliminate"),
        (("--plan", "auto", "--ram", "99K", "--analysis", "no.json"), "no.json does not exist"),
        (("--plan", "auto", "--ram", "99K", "--select", "eliminate"), "needs --data"),
    ],
)
def test_mistakes_are_told_in_a_sentence(person_model, tmp_path, capsys, options, says):
    out = tmp_path / "x.sprout"
    assert sprout("compile", person_model, "--classes", "a,b", "-o", out, *options) == 1
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize("size", ["0", "-5K", "lots", "1e400"])
def test_a_size_that_is_none(person_model, capsys, size):
    assert sprout("compile", person_model, "--plan", "auto", "--ram", size) == 2
    assert "is not a number of bytes" in capsys.readouterr().err


def test_sizes():
    assert cli.Size().convert("160K", None, None) == 160 << 10
    assert cli.Size().convert("0.5MiB", None, None) == 1 << 19
    assert cli.Size().convert("98304", None, None) == 98304
    assert cli.Sizes().convert("32K,64kb", None, None) == (32 << 10, 64 << 10)
