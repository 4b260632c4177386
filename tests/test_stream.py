"""Groups that work row by row: the same bytes, the lowest peak, rows that come one by one."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from emulator import Net, emulate
from nets import Maker, picture, residual_net
from sprout import autodiff, memory, overwrite, passes, stream
from sprout import compile as compiler
from sprout import plan as plans
from sprout.board import sim
from sprout.compile import _Lowering
from sprout.engine import LEARN, Engine, Run
from sprout.graph import SproutError, mean_multiplier
from sprout.reference import Machine
from sprout.schedule import rate_at, rate_parts
from test_emulated import ALL

PAPER = "b20,24:1/4,27:1/2,30:1/2"
PROXYLESS = "b34,27:1/2,30:1/2,33:1/4,36:1/4,39:1/2,42:1/2,45:1/8,51:1/8,54:1/8"
"""Of ``sprout compile proxyless-w0.3.pkl --plan auto --ram 90000 --rows``."""
RATE = rate_parts(0.01)


def random_net(seed, layers=7):
    """A chain of every operator that can be a member, with sums over parts of it."""
    rng = random.Random(seed)
    m = Maker(seed)
    x = picture(rng.randint(9, 20), rng.randint(5, 12), rng.choice((1, 3)))
    y = m.conv(x, rng.randint(2, 6), rng.choice((3, 5)), rng.choice((1, 2)), relu=False)
    for _ in range(rng.randint(min(3, layers), layers)):
        start, kind = y, rng.randrange(5)
        channels = y.shape[2]
        if kind == 0:
            y = m.conv(y, rng.randint(2, 9))
            y = m.conv(y, y.shape[2], rng.choice((3, 5, 7)), depthwise=True)
            y = m.conv(y, channels, relu=False)
            y = m.op("add", [start, y], start.shape, 0.06, -1)
        elif kind == 1:
            y = m.conv(y, channels * rng.choice((1, 2)), 3, rng.choice((1, 2)), depthwise=True)
        elif kind == 2:
            y = m.conv(y, rng.randint(2, 9), 3, relu=rng.random() < 0.5)
        elif kind == 3 and min(y.shape[:2]) > 3:
            name = rng.choice(("max_pool", "average_pool"))
            h, w = (n // 2 for n in y.shape[:2])
            window = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}
            y = m.op(name, [y], (h, w, channels), y.scale, y.zero_point, **window)
        else:
            y = m.op("requantize", [y], y.shape, 0.04, -7)
    mult = m.op("requantize", [y], y.shape, 0.05, 0)
    h, w, c = mult.shape
    flat = m.op("reshape", [mult], (1, 1, h * w * c), mult.scale, mult.zero_point)
    return m.graph(x, m.conv(flat, 4, relu=False))


def schedule_of(graph, plan="none"):
    graph = passes.run(graph)
    plans.apply(plans.parse(plan, len(graph.convs)), graph)
    return autodiff.differentiate(graph)


def random_cut(schedule, rng, feed):
    """The schedule cut into groups at random; with ``feed`` the first begins with the input."""
    costs = stream._Costs(schedule, feed)
    able = [stream.can_stream(op) for op in costs.ops[: costs.n_forward]]
    groups, step = [], 0
    while step < costs.n_forward:
        last = step
        while last + 1 < costs.n_forward and able[last + 1] and rng.random() < 0.8:
            last += 1
        if able[step] and (last > step or (feed and step == 0)):
            groups.append(costs.group(step, last))
        step = last + 1 if able[step] else step + 1
    return stream._apply(schedule, costs, groups), groups


def outputs(net, x):
    net.set_input(x)
    return np.array(net.forward()).ravel()


@pytest.mark.parametrize("feed", [False, True])
@pytest.mark.parametrize("seed", range(24))
def test_groups_give_the_bytes_of_single_operators(seed, feed):
    rng = random.Random(seed)
    expected = Machine(compiler.compile_graph(random_net(seed), "last", save=False))
    schedule, groups = random_cut(schedule_of(random_net(seed), "last"), rng, feed)
    assert groups or not feed
    blob = _Lowering(schedule, 14, "all").assemble(None)
    blob.lut_offset = 0  # pixels are values: every one occurs
    data = blob.to_bytes()
    engines = [Engine(data), Engine(data, in_place=False, scratch=blob.scratch_len)]
    pixels = np.random.default_rng(seed)
    for t in range(3):
        x = pixels.integers(-128, 128, blob.tensors[blob.input].shape).astype(np.int8)
        expected.step(x, t % 4, RATE, 1, t, 4)
        for engine in engines:
            engine.arena[:] = 0xA5  # what lies there before does not matter
            engine.step(x, t % 4, RATE, 1, t)
            assert engine.digest() == expected.digest()
            assert (outputs(engine, x) == outputs(expected, x)).all()


@pytest.mark.parametrize("feed", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_cut_is_the_best_of_all(seed, feed):
    """Against every cut of the forward pass there is."""
    schedule = schedule_of(random_net(seed, 2), "last")
    costs = stream._Costs(schedule, feed)
    n = costs.n_forward
    able = [stream.can_stream(op) for op in costs.ops[:n]]
    best = None
    for cuts in itertools.product((False, True), repeat=n - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        runs = [(a, b - 1) for a, b in itertools.pairwise(bounds)]
        if not all(a == b or all(able[a : b + 1]) for a, b in runs):
            continue
        if feed and not (able[0] and costs.may_feed(runs[0][1])):
            continue
        groups = [costs.group(a, b) for a, b in runs if b > a or (feed and a == 0)]
        whole = stream._apply(schedule, costs, groups)
        steps = len(whole.ops)
        peak = max(memory.live(memory.lifetimes(whole).values(), steps))
        best = peak if best is None else min(best, peak)
    if best is None:
        with pytest.raises(SproutError, match="without --rows"):
            stream.group(schedule, feed)
        return
    found = stream.group(schedule, feed)
    alive = memory.live(memory.lifetimes(found).values(), len(found.ops))
    assert max(alive) == best


def test_a_peak_on_its_way_back_is_halved():
    """A depthwise gradient takes the place of what it is computed from, with the same result."""
    m = Maker(1)
    x = picture(6, 6, 3)
    y = m.conv(x, 4, 3, 2, relu=False)
    for channels in (40, 24):
        y = m.conv(m.conv(m.conv(y, channels), channels, 3, depthwise=True), 4, relu=False)
    flat = m.op("reshape", [y], (1, 1, 36), y.scale, y.zero_point)
    graph = m.graph(x, m.conv(flat, 4, relu=False))
    plan = "b7,1:1,4:1"
    blob, plain = (compiler.compile_graph(graph, plan, save=save) for save in (True, False))
    over = [op for op in blob.ops if op.kind == "depthwise_input_grad"]
    place = [[blob.tensors[t].offset for t in op.t[:2]] for op in over]
    assert any(a == b for a, b in place)
    assert blob.arena_len < plain.arena_len
    expected = Machine(plain)
    least = 336  # what a weight's update takes
    scratches = (blob.scratch_len + 1, least, None)
    blob.scratch_len = least
    data = blob.to_bytes()
    engines = [Engine(data, in_place=s is None, scratch=s) for s in scratches]
    rng = np.random.default_rng(3)
    for t in range(12):
        x = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        for engine in engines:
            engine.step(x, t % 4, RATE, 1, t)
        expected.step(x, t % 4, RATE, 1, t, 4)
        assert {engine.digest() for engine in engines} == {expected.digest()}


def test_only_peaks_are_overwritten():
    schedule = schedule_of(residual_net(), "full")
    before = len(schedule.gradients)
    overwrite.depthwise_gradients(schedule)
    assert len(schedule.gradients) == before, "the peak of this net is elsewhere"


# -------------------------------------------------------------------------------------------------
# Rows


def rows_blob(make=residual_net, plan="last"):
    return compiler.compile_graph(make(), plan, rows=True)


def feed(engine, pixels, row):
    return engine._library.sprout_input(engine._memory, pixels.ctypes.data, pixels.size, row)


@pytest.mark.parametrize("make", [residual_net, lambda: random_net(3)])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_may_come_in_any_number(make, in_place):
    blob = rows_blob(make)
    assert blob.takes_rows
    engine, whole = Engine(blob.to_bytes(), in_place=in_place), Engine(blob.to_bytes())
    h, w, c = blob.tensors[blob.input].shape
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = rng.integers(0, 256, (h, w, c)).astype(np.uint8)
        row = 0
        while row < h:
            n = int(rng.integers(1, h - row + 1))
            assert feed(engine, np.ascontiguousarray(x[row : row + n]), row) == 0
            row += n
        assert (engine.forward() == outputs(whole, x).reshape(1, 1, -1)).all()


def test_rows_must_be_the_next_ones():
    blob = rows_blob()
    engine = Engine(blob.to_bytes())
    x = np.zeros((8, 8, 3), np.uint8)
    assert feed(engine, x[:3], 0) == 0
    assert feed(engine, x[:1], 4) == -16  # not the next one
    assert feed(engine, x[:1], 2) == -16  # again
    assert feed(engine, x[:6], 3) == -16  # more than there are
    assert feed(engine, x[0, :7], 3) == -16  # no whole row
    assert feed(engine, x[:3], -1) == -16  # no whole frame
    with pytest.raises(SproutError, match="the pixels are not the rows that come next"):
        engine.forward()
    assert feed(engine, x[3:], 3) == 0
    engine.forward()


def test_a_whole_input_takes_rows_too():
    blob = compiler.compile_graph(residual_net(), "last")
    assert not blob.takes_rows
    engine, whole = Engine(blob.to_bytes()), Engine(blob.to_bytes())
    x = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    for row in reversed(range(8)):
        assert feed(engine, x[row], row) == 0
    assert (engine.forward().ravel() == outputs(whole, x)).all()


def test_a_net_that_needs_the_whole_frame_says_so():
    with pytest.raises(SproutError, match="takes whole frames: compile it without --rows"):
        m, x = Maker(), picture()
        mult, shift = mean_multiplier(x.scale, x.scale, 64)
        y = m.op("mean", [x], (1, 1, 3), x.scale, 0, mult=mult, shift=shift)
        compiler.compile_graph(m.graph(x, m.conv(y, 4, relu=False)), "last", rows=True)


def test_values_that_no_pixel_has_are_refused():
    blob = rows_blob()
    with pytest.raises(SproutError, match="stands for no pixel"):
        blob.tail = bytes(len(blob.tail))
        blob.pixels(np.array([3], np.int8))


SESSION = """
import sprout
net = sprout.load("net.sprout")
print(net.input is None, net.shape)
frame = bytes(i * 7 % 256 for i in range(192))
one = net.predict(frame)
print([net.feed(frame[i : i + 48]) for i in range(0, 192, 48)], net.predict() == one)
for call in (
    "net.predict()", "net.feed(frame[:50])", "net.feed(bytes(216))", "net.feed(3)",
    "net.feed(frame[:24]); net.learn(label=1)", "net.predict(frame[:24])",
):
    try:
        exec(call)
        print("nothing raised")
    except ValueError as e:
        print(e)
print(net.feed(frame), net.learn(label=1) > 0, net.step)
"""


def test_rows_on_the_board(tmp_path):
    from test_device import run

    (tmp_path / "net.sprout").write_bytes(rows_blob().to_bytes())
    start, fed, *words, last = run(tmp_path, SESSION)
    assert start == "True (8, 8, 3)"
    assert fed == "[False, False, False, True] True"
    says = (
        "0 of the 8 rows of a frame are there: feed() the others, or give a whole frame",
        "50 bytes are no whole rows of 24 (8 x 3), or more than the 8 that are left: feed the "
        "frame again from the top",
        "216 bytes are no whole rows",
        "rows are bytes, bytearray, memoryview, array or ndarray, not 3",
        "1 of the 8 rows",
        "a sample has 192 bytes",
    )
    for word, said in zip(words, says, strict=True):
        assert word.startswith(said), word
    assert last == "True True 1"


# -------------------------------------------------------------------------------------------------
# Nothing outside the buffers


def test_no_group_writes_outside_the_buffers():
    """Damaged tables and damaged buffers of groups, between guards of 64 bytes."""
    blob = rows_blob(lambda: random_net(5))
    schedule, _ = random_cut(schedule_of(random_net(5), "last"), random.Random(5), True)
    data = _Lowering(schedule, 14, "all").assemble(None).to_bytes()
    assert blob.takes_rows
    rng = random.Random(2)
    outcomes = set()
    for file in (data, blob.to_bytes()):
        e = Engine(file, in_place=False)
        whole = np.full(e.arena.size + 128, 0xA5, np.uint8)
        e.arena = whole[64 : 64 + e.arena.size]
        e._memory.put("arena", e.arena)
        ops = int(e._file[56:60].view("<u4")[0])
        intact = e._file.copy()
        x = np.frombuffer(rng.randbytes(e.blob.tensors[e.blob.input].nbytes * 8), np.uint8)
        h, w, c = e.blob.tensors[e.blob.input].shape
        for _ in range(1500):
            e._file[:] = intact
            for _ in range(rng.randint(0, 3)):
                low, high = rng.choice(((128, e.blob.program_len), (ops, ops + 64 * 8)))
                at = rng.randrange(low, high, 2)
                e._file[at : at + 2] = np.frombuffer(rng.randbytes(2), np.uint8)
            row = 0
            while row < h:
                n = min(rng.randint(1, 4), h - row)
                outcomes.add(feed(e, x[: n * w * c], row))
                row += n
                for _ in range(rng.randint(0, 3)):  # anything may happen to the arena meanwhile
                    at = rng.randrange(e.arena.size)
                    e.arena[at] = rng.choice((0, 1, 255, 128, rng.randrange(256)))
            run = Run(0, e.blob.n_forward, LEARN, 1, 3, 1000, -20, 1, 1)
            outcomes.add(e._library.sprout_run(e._memory, run))
            assert (whole[:64] == 0xA5).all() and (whole[-64:] == 0xA5).all()
    assert 0 in outcomes and len(outcomes) >= 5


# -------------------------------------------------------------------------------------------------
# Processors of boards, and real networks


@pytest.mark.parametrize("cpu", ALL)
@pytest.mark.parametrize("in_place", [True, False])
def test_groups_on_emulated_processors(cpu, in_place):
    """Between guard pages, with at most 2 KB of stack."""
    for seed in (1, 2, 8):
        blob = rows_blob(lambda seed=seed: random_net(seed), "last")
        data = blob.to_bytes()
        net, engine = Net(data, emulate(cpu), in_place=in_place), Engine(data)
        rng = np.random.default_rng(seed)
        for t in range(2):
            x = rng.integers(0, 256, blob.tensors[blob.input].shape).astype(np.uint8)
            for one in (net, engine):
                one.step(x, t % 4, RATE, 1, t)
            assert net.digest() == engine.digest()
        net.cpu.check_surroundings()
        assert net.cpu.stack_used <= 2048


REAL = {
    "mcunet-5fps.pkl": (PAPER, 98_304, 131_072),
    "proxyless-w0.3.pkl": (PROXYLESS, 98_304, 131_072),
    "mlperf_vww_96_int8.tflite": ("b12,21:1/2,22:1/4,24:1", 98_304, 114_688),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_shrink_and_compute_the_same(name, shared):
    """Everything that training takes, with the frame by rows and with a whole frame."""
    plan, *limits = REAL[name]
    classes = ["a", "b"] if name.endswith(".pkl") else None
    plain = compiler.compile_model(shared / "models" / name, plan, classes, save=False)
    x = np.random.default_rng(0).integers(0, 256, plain.tensors[plain.input].shape, np.uint8)
    engines = [Engine(plain.to_bytes())]
    for rows, limit in zip((True, False), limits, strict=True):
        blob = compiler.compile_model(shared / "models" / name, plan, classes, rows=rows)
        total = blob.arena_len + blob.trained_len + blob.scratch_len + blob.program_len
        assert total <= limit
        assert blob.arena_len == blob.info["memory"]["lower_bound"]
        assert blob.arena_len < 0.81 * plain.arena_len
        assert blob.info["macs"] == plain.info["macs"]
        engines += [Engine(blob.to_bytes(), in_place=p) for p in (True, False)]
    for t in range(4):
        for engine in engines:
            engine.step(x, t % 2, rate_parts(0.002), 1, t)
    assert len({engine.digest() for engine in engines}) == 1
    assert len({outputs(engine, x).tobytes() for engine in engines}) == 1


HEAPS = {  # KiB, by rows and with a whole frame
    "mcunet-5fps.pkl": (152, 185),
    "proxyless-w0.3.pkl": (148, 186),
    "mlperf_vww_96_int8.tflite": (155, 172),
}


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("name", HEAPS)
def test_training_fits_a_heap_with_everything_counted(name, rows, shared, tmp_path):
    """The heap holds native code, package and objects too; the frame is fed from a file."""
    plan, classes = REAL[name][0], ["a", "b"] if name.endswith(".pkl") else None
    blob = compiler.compile_model(shared / "models" / name, plan, classes, rows=rows)
    file = tmp_path / "net.sprout"
    file.write_bytes(blob.to_bytes())
    shape = blob.tensors[blob.input].shape
    x = np.random.default_rng(4).integers(0, 256, (8, *shape)).astype(np.uint8)
    y, order = np.arange(8) % 2, np.arange(8, dtype=np.uint32)
    heap = HEAPS[name][not rows] * 1024
    result = sim.learn_on_board(file, x, y, order, x[:2], y[:2], 0.002, heap=heap)
    assert result["heap_peak"] <= heap
    engine = Engine(file.read_bytes())
    mantissa, exponent = rate_parts(0.002)
    for t in range(8):
        engine.step(x[t], int(y[t]), (rate_at(mantissa, t, 8), exponent), 0, t)
    assert result["digest"] == engine.digest()
