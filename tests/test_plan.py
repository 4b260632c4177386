"""The update plan: its short form, its JSON form, and what it marks."""

import json
from fractions import Fraction

import numpy as np
import pytest
from nets import Maker, picture, residual_net
from sprout import plan as plans
from sprout.graph import SproutError


def test_short_form_is_read_as_design_writes_it():
    plan = plans.parse("b20,24:1/4,27:1/2 30:1/2", 43)
    assert plan.biases == 20
    assert plan.weights == {24: Fraction(1, 4), 27: Fraction(1, 2), 30: Fraction(1, 2)}
    assert str(plan) == "b20,24:1/4,27:1/2,30:1/2"
    assert plans.parse(str(plan), 43) == plan


def test_words():
    assert not plans.parse("none", 5).head
    assert plans.parse("last", 5) == plans.UpdatePlan()
    full = plans.parse("full", 3)
    assert full.biases == 3 and full.weights == {0: 1, 1: 1, 2: 1}


def test_json_form(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"biases": 3, "weights": {"1": 0.25, "2": "1/2", "3": 1}}))
    assert str(plans.parse(str(file), 5)) == "b3,1:1/4,2:1/2,3:1"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("b9", "b9"),
        ("7:1/2", "layer 7"),
        ("2:0", "2:0"),
        ("2:3/2", "2:3/2"),
        ("2:x", "2:x"),
        ("2:1/0", "2:1/0"),
        ("bottom", "bottom"),
        ("", "empty"),
        ("nowhere.json", "nowhere.json"),
        ("b²", "b²"),
        ("²:1/2", "²:1/2"),
        ("2:1/4,2:1/2", "layer 2 is there twice"),
        ("b2,b3", "number of biases is there twice"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(text, names):
    with pytest.raises(SproutError, match=names):
        plans.parse(text, 5)


@pytest.mark.parametrize(
    "body",
    [
        "[",
        "[]",
        "[" * 100_000,
        '{"bias": 1}',
        '{"biases": -1}',
        '{"biases": true}',
        '{"weights": {"a": 1}}',
        '{"weights": {"²": 1}}',
    ],
)
def test_a_wrong_json_plan_is_refused(tmp_path, body):
    file = tmp_path / "plan.json"
    file.write_text(body)
    with pytest.raises(SproutError, match="plan.json") as e:
        plans.parse(str(file), 5)
    assert "\n" not in str(e.value)


def test_everything_is_called_full():
    assert str(plans.parse("full", 42)) == "full"
    assert str(plans.parse("b3,0:1,1", 3)) == "full"
    assert str(plans.parse("b2,0,1", 3)) == "b2,0:1,1:1"
    assert str(plans.parse("b3,0:1/2,1", 3)) == "b3,0:1/2,1:1"


@pytest.mark.parametrize("plan", ["last", "full", "none"])
def test_a_network_without_a_layer_that_can_learn(plan):
    m = Maker()
    x = picture(1, 1, 4)
    graph = m.graph(x, m.op("requantize", [x], (1, 1, 4), 0.05, 0))
    if plan == "none":
        plans.apply(plans.parse(plan, 0), graph)
        return
    with pytest.raises(SproutError, match="nothing in it can learn; compile it with --plan none"):
        plans.apply(plans.parse(plan, 0), graph)


def test_a_fraction_selects_the_channels_with_the_largest_norm():
    graph = residual_net()
    conv = graph.convs[1]
    conv.params["weight"][:] = 1
    conv.params["weight"][..., [2, 5]] = 100
    assert plans.important_channels(conv, Fraction(1, 4)).tolist() == [2, 5]
    assert plans.important_channels(conv, Fraction(1)) is None


def test_norms_are_those_of_real_weights():
    graph = residual_net()
    conv = graph.convs[1]
    conv.params["weight"][:] = 1
    conv.params["weight"][0, :, :, 3] = 50
    conv.params["weight"][1, :, :, 6] = 60
    conv.params["weight_scales"][:] = 0.01
    conv.params["weight_scales"][0] = 0.1  # the smaller integer is the larger weight
    assert plans.important_channels(conv, Fraction(1, 8)).tolist() == [3]


def test_channels_that_never_move_are_chosen_last():
    """A channel behind dead weights may have the largest norm of all, and would learn nothing."""
    graph = residual_net()
    expand, depthwise, project = graph.convs[1:4]
    dead = [0, 7, 9]
    expand.params["weight"][dead] = 0
    expand.params["bias"][dead] = -5000
    depthwise.params["weight"][dead] = 127
    project.params["weight"][..., dead] = 127
    plans.apply(plans.parse("2:3/4,3:3/4", 5), graph)
    assert not set(dead) & set(depthwise.attrs["train_channels"].tolist())
    # a dead input leaves the depthwise output at its bias: not at zero, so the next layer learns
    assert len(project.attrs["train_channels"]) == 12
    depthwise.params["bias"][dead] = -5000
    plans.apply(plans.parse("2:3/4,3:3/4", 5), graph)
    assert not set(dead) & set(project.attrs["train_channels"].tolist())


def test_apply_marks_the_head_and_what_the_plan_names():
    graph = residual_net()
    plans.apply(plans.parse("b2,1:1/2", 5), graph)
    assert [op.attrs["train_bias"] for op in graph.convs] == [False, False, False, True, True]
    assert [op.attrs["train_weight"] for op in graph.convs] == [False, True, False, False, True]
    assert len(graph.convs[1].attrs["train_channels"]) == 4
    assert graph.convs[4].attrs["train_channels"] is None
    plans.apply(plans.parse("none", 5), graph)
    assert not any(op.attrs["train_bias"] or op.attrs["train_weight"] for op in graph.convs)
    assert np.all([op.attrs["conv_index"] == i for i, op in enumerate(graph.convs)])
