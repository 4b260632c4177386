"""The command line is a contract: its words, its JSON keys, its errors of one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import complaint, sprout
from sprout import blob as blobs
from sprout import checkpoint, data, inspect
from sprout.board import sim
from sprout.compile import compile_model

LEARN_KEYS = {
    "accuracy_before",
    "accuracy_after",
    "curve",
    "samples",
    "seconds",
    "heap_limit",
    "heap_peak",
    "arena_bytes",
    "trained_bytes",
    "scratch_bytes",
    "native_bytes",
    "saved_activation_bytes",
    "macs_forward",
    "macs_backward",
    "digest",
}
PLAN = "b3,6:1/4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def blob(folder: Path, person_model: Path) -> Path:
    """The person network with a fresh head of two classes and room for a third."""
    path = folder / "person.sprout"
    status = sprout(
        *("compile", person_model, "-o", path, "--plan", PLAN),
        *("--classes", "person,no_person", "--max-classes", 3),
    )
    assert status == 0
    return path


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Path:
    """Twelve grey pictures that are easy to tell apart: bright above or bright below."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (12, 25, 25, 1), np.uint8)
    y = np.arange(12) % 2
    x[y == 0, :12] += 150
    x[y == 1, 13:] += 150
    path = folder / "pictures.npz"
    np.savez(path, x=x, y=np.array(["person", "no_person"])[y])
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# --- compile and inspect ------------------------------------------------------------------------


def test_compile_says_what_learns_and_what_it_takes(blob, person_model, capsys):
    out = blob.with_name("last.sprout")
    assert sprout("compile", person_model, "-o", out, "--plan", "last") == 0
    out = capsys.readouterr().out
    assert "learns last" in out
    assert "RAM" in out
    assert "Flash" in out


def test_sprouts_own_model_has_a_name(blob, folder):
    again = folder / "named.sprout"
    options = ("--plan", PLAN, "--classes", "person,no_person", "--max-classes", 3)
    assert sprout("compile", "person", "-o", again, *options) == 0
    assert again.read_bytes() == blob.read_bytes()


def test_the_simulated_board_runs_a_program(blob, folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    script = folder / "main.py"
    script.write_text("import sprout\nprint(sprout.load('person.sprout').classes)\n")
    assert sprout("sim", blob, script) == 0
    assert capfd.readouterr().out == "['person', 'no_person']\n"
    assert (folder / "build" / "sim-pico" / "main.py").exists()
    script.write_text("raise SystemExit(3)")
    assert sprout("sim", blob, script) == 3
    wrong = complaint(capfd, "sim", blob, folder / "nothere.py")
    assert "nothere.py does not exist: give the name of a MicroPython program." in wrong


def test_compile_gives_the_same_bytes_twice(blob, person_model, folder):
    again = folder / "again.sprout"
    options = ("--plan", PLAN, "--classes", "person,no_person", "--max-classes", 3)
    assert sprout("compile", person_model, "-o", again, *options) == 0
    assert again.read_bytes() == blob.read_bytes()


def test_compile_takes_a_plan_from_json(blob, person_model, folder):
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"biases": 3, "weights": {"6": "1/4"}}))
    again = folder / "json.sprout"
    options = ("--plan", plan, "--classes", "person,no_person", "--max-classes", 3)
    assert sprout("compile", person_model, "-o", again, *options) == 0
    assert again.read_bytes() == blob.read_bytes()


def test_fractions_are_an_option(blob, person_model, folder, capsys):
    out = folder / "whole.sprout"
    assert sprout("compile", person_model, "-o", out, "--plan", "last") == 0
    assert "bits below the weights' LSB" in capsys.readouterr().out
    with_fractions = out.stat().st_size
    assert sprout("compile", person_model, "-o", out, "--plan", "last", "--fractions", "none") == 0
    assert "LSB" not in capsys.readouterr().out
    assert out.stat().st_size < with_fractions


def test_the_full_plan_keeps_its_word(person_model, folder, capsys):
    assert sprout("compile", person_model, "-o", folder / "full.sprout", "--plan", "full") == 0
    assert "learns full: weights of" in capsys.readouterr().out


def test_rows_take_less_memory_than_layers(person_model, folder, capsys):
    arena = []
    for options in (["--rows"], [], ["--whole-layers"]):
        out = folder / "rows.sprout"
        assert sprout("compile", person_model, "-o", out, "--plan", "last", *options) == 0
        capsys.readouterr()
        assert sprout("inspect", out, "--json") == 0
        about = json.loads(capsys.readouterr().out)
        arena.append(about["memory"]["arena"])
        assert any(layer["rows"] for layer in about["layers"]) == ("--whole-layers" not in options)
    assert arena == sorted(set(arena))


def test_inspect_json_adds_up(blob, capsys):
    capsys.readouterr()
    assert sprout("inspect", blob, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["classes"] == ["person", "no_person"]
    assert about["max_classes"] == 3
    parts = dict(about["flash"])
    assert parts.pop("total") == sum(parts.values()) == blob.stat().st_size
    assert about["macs"]["forward"] == sum(layer["macs"] for layer in about["layers"])
    assert about["memory"]["arena"] >= about["memory"]["lower_bound"] > 0
    convs = [layer for layer in about["layers"] if layer["conv"] is not None]
    assert [layer["conv"] for layer in convs] == list(range(len(convs)))
    learns = {layer["conv"]: {t["kind"] for t in layer["learns"]} for layer in convs}
    head = len(convs) - 1
    assert learns[6] == {"weight"}
    assert learns[head] == {"weight", "bias"}
    assert learns[head - 2] == {"bias"}
    assert learns[head - 3] == set()


def test_inspect_shows_layers_and_draws_the_arena(blob, folder, capsys):
    capsys.readouterr()
    picture = folder / "arena.png"
    assert sprout("inspect", blob, "--png", picture) == 0
    out = capsys.readouterr().out
    assert "depthwise" in out
    assert "96x96x3" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_pictures_title_stands_clear_of_its_labels(blob):
    figure = inspect.new_figure(10, 5.5)
    axes = figure.add_subplot()
    inspect.draw_arena(blobs.read(blob.read_bytes()), axes, "a title")
    figure.draw_without_rendering()
    title = axes.title.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(title.overlaps(box) for box in boxes)


def test_matplotlib_leaves_nothing_at_home(blob, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    subprocess.run(
        [sys.executable, "-m", "sprout.cli", "inspect", blob, "--png", tmp_path / "arena.png"],
        env=environment,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "arena.png").exists()
    assert list(home.iterdir()) == []


# --- run ----------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["emlearn_mnist_cnn_int8", "mcunet_vww_int8"])
def test_run_gives_the_reference_outputs_in_the_models_own_form(shared, folder, name):
    reference = shared / "models" / f"{name}.ref.npz"
    out = folder / "y.npz"
    assert sprout("compile", shared / "models" / f"{name}.tflite", "-o", folder / "m.sprout") == 0
    assert sprout("run", folder / "m.sprout", "--input", reference, "--output", out) == 0
    wanted = np.load(reference)["y0_ref"]
    y = np.load(out)["y"]
    assert y.dtype == wanted.dtype
    assert np.array_equal(y, wanted)


def test_run_is_the_same_in_micropython(blob, folder):
    x = np.random.default_rng(1).integers(-128, 128, (2, 96, 96, 3), np.int8)
    inputs = write_npz(folder / "x.npz", x=x)
    ys = []
    for on in ("host", "micropython"):
        out = folder / f"{on}.npz"
        assert sprout("run", blob, "--input", inputs, "--output", out, "--on", on) == 0
        ys.append(np.load(out)["y"])
    assert ys[0].shape == (2, 3)
    assert np.array_equal(*ys)


def test_run_writes_the_name_it_is_given(blob, folder):
    inputs = write_npz(folder / "x.npz", x=np.zeros((1, 96, 96, 3), np.int8))
    assert sprout("run", blob, "--input", inputs, "--output", folder / "plain") == 0
    assert np.load(folder / "plain")["y"].shape == (1, 3)
    assert not (folder / "plain.npz").exists()


def test_huge_floats_are_clipped_without_a_warning(shared, folder, recwarn):
    model = shared / "models" / "tflm_hello_world_int8.tflite"
    blob = compile_model(model)
    blob.flags |= blobs.FLAG_INPUT_FLOAT
    file = write_npz(folder / "huge.npz", x=np.array([[1e38], [-1e38]], np.float32))
    assert data.load_inputs(file, blob).ravel().tolist() == [127, -128]
    assert not recwarn.list


# --- learn --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(blob, pictures, folder) -> dict[str, dict]:
    """The same run on the host and in MicroPython."""
    found = {}
    for on in ("host", "micropython"):
        out = folder / f"{on}.json"
        status = sprout(
            *("learn", blob, "--train", pictures, "--test", pictures, "--samples", 10),
            *("--epochs", 2, "--rate", 0.01, "--seed", 5, "--on", on, "--json", out),
            *("--save", folder / f"{on}.spck"),
        )
        assert status == 0
        found[on] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("on", ["host", "micropython"])
def test_learn_writes_every_key(results, on):
    result = results[on]
    assert set(result) >= LEARN_KEYS
    assert result["samples"] == 10
    assert 0 <= result["accuracy_before"] <= 1
    assert 0 <= result["accuracy_after"] <= 1
    assert [point[0] for point in result["curve"]] == list(range(1, 21))
    assert all(loss >= 0 and 0 <= right <= 1 for _, loss, right in result["curve"])
    assert len(result["digest"]) == 64
    assert result["native_bytes"] == sim.native_bytes("pico")
    if on == "host":
        assert result["heap_limit"] is None
        assert result["heap_peak"] is None
    else:
        assert 0 < result["heap_peak"] <= result["heap_limit"]


def test_learning_is_the_same_to_the_bit_in_micropython(results, folder):
    host, board = results["host"], results["micropython"]
    for key in ("digest", "curve", "accuracy_before", "accuracy_after", "macs_backward"):
        assert host[key] == board[key], key
    saved = [checkpoint.read(folder / f"{on}.spck") for on in ("host", "micropython")]
    for one in saved:
        one.number = None  # the time
    assert saved[0] == saved[1]


def test_the_seed_and_the_batch_change_the_result(blob, pictures, folder, results):
    out = folder / "other.json"
    files = ("--train", pictures, "--test", pictures, "--json", out)
    digests = [results["host"]["digest"]]
    # 20 samples do not divide by 8: the last batch is a short one.
    for more in (("--seed", 6), ("--batch", 8), ("--batch", 8, "--on", "micropython")):
        options = ("--samples", 10, "--epochs", 2, "--rate", 0.01, "--seed", 5, *more)
        assert sprout("learn", blob, *files, *options) == 0
        digests.append(json.loads(out.read_text())["digest"])
    assert len(set(digests)) == 3
    assert digests[2] == digests[3]


def test_labels_as_numbers_are_the_blobs_classes(blob, pictures, folder, results):
    arrays = np.load(pictures)
    number = (arrays["y"] == "no_person").astype(np.uint8)
    # With the names beside them the numbers are those of the file, in whatever order it has them.
    other = {"y": 1 - number, "classes": np.array(["no_person", "person"])}
    for name, more in (("plain", {"y": number}), ("named", other)):
        file = write_npz(folder / f"{name}.npz", x=arrays["x"], **more)
        out = folder / f"{name}.json"
        options = ("--samples", 10, "--epochs", 2, "--rate", 0.01, "--seed", 5, "--json", out)
        assert sprout("learn", blob, "--train", file, "--test", file, *options) == 0
        assert json.loads(out.read_text())["digest"] == results["host"]["digest"]


# --- mistakes -----------------------------------------------------------------------------------


def test_compile_refuses(person_model, folder, capsys):
    out = ("-o", folder / "never.sprout")
    assert "nothere.tflite does not exist" in complaint(capsys, "compile", "nothere.tflite", *out)
    broken = folder / "broken.tflite"
    broken.write_bytes(person_model.read_bytes()[:1000])
    assert "broken.tflite" in complaint(capsys, "compile", broken, *out)
    for plan in ("nonsense", "b999", "99:1", "3:7", "nothere.json"):
        assert "plan" in complaint(capsys, "compile", person_model, *out, "--plan", plan)
    assert "class" in complaint(capsys, "compile", person_model, *out, "--classes", "a,a")
    assert "nobody does not exist" in complaint(capsys, "compile", "nobody", *out)
    both = complaint(capsys, "compile", person_model, *out, "--rows", "--whole-layers")
    assert "contradict" in both
    assert not (folder / "never.sprout").exists()


def test_a_damaged_blob_is_refused(blob, folder, capsys):
    data = blob.read_bytes()
    bad = folder / "bad.sprout"
    cases = {
        "not a Sprout blob": b"hello" + data[5:],
        "format": data[:4] + b"\x09" + data[5:],
        "cut short": data[:-8],
        "damaged": data[:500] + bytes([data[500] ^ 1]) + data[501:],
    }
    for said, content in cases.items():
        bad.write_bytes(content)
        assert said in complaint(capsys, "inspect", bad)
    assert "does not exist" in complaint(capsys, "inspect", folder / "nothere.sprout")


def test_learn_refuses(blob, pictures, person_model, folder, capsys):
    good = np.load(pictures)
    x, y = good["x"], good["y"]
    cases = {
        "no 'y'": {"x": x},
        "must be uint8": {"x": x.astype(np.float32), "y": y},
        "must be [N, H, W, C]": {"x": x[0, 0], "y": y},
        "one per picture": {"x": x, "y": y[:3]},
        "label 7 at sample 0": {"x": x, "y": np.full(12, 7)},
        "label 'cat' at sample 0": {"x": x, "y": np.full(12, "cat")},
        "must hold whole numbers": {"x": x, "y": np.full(12, 0.5)},
    }
    for said, arrays in cases.items():
        file = write_npz(folder / "wrong.npz", **arrays)
        assert said in complaint(capsys, "learn", blob, "--train", file, "--test", pictures)
    files = ("--train", pictures, "--test", pictures)
    assert "ask for fewer" in complaint(capsys, "learn", blob, *files, "--samples", 99)
    assert "rate" in complaint(capsys, "learn", blob, *files, "--rate", -1)
    refused = ("learn", blob, *files)
    assert "no board 'nope'" in complaint(capsys, *refused, "--board", "nope")
    torn = folder / "torn.npz"
    torn.write_bytes(pictures.read_bytes()[:500])
    assert "torn.npz" in complaint(capsys, "learn", blob, "--train", torn, "--test", pictures)
    assert "does not exist" in complaint(
        capsys, "learn", blob, "--train", "nothere.npz", "--test", pictures
    )
    fixed = folder / "fixed.sprout"
    assert sprout("compile", person_model, "-o", fixed) == 0
    numbers = write_npz(folder / "numbers.npz", x=x, y=np.arange(12) % 2)
    files = ("--train", numbers, "--test", numbers)
    assert "learns nothing" in complaint(capsys, "learn", fixed, *files)


def test_odd_npz_files_are_refused(blob, pictures, folder, capsys):
    good = np.load(pictures)
    x, y = good["x"], good["y"]
    odd = folder / "odd.npz"

    def said() -> str:
        return complaint(capsys, "learn", blob, "--train", odd, "--test", pictures)

    with odd.open("wb") as file:
        np.save(file, x)
    assert "odd.npz holds a single array and must be an npz with x and y" in said()
    write_npz(odd, y=y)
    with zipfile.ZipFile(odd, "a") as archive:
        archive.writestr("x", b"no array")
    assert "odd.npz has no 'x'; it holds y" in said()
    cases = {
        r"label 'caf\xe9' at sample 0": {"y": np.full(12, b"caf\xe9")},
        "label 18446744073709551615 at sample 0": {"y": np.full(12, 2**64 - 1, np.uint64)},
        "'classes' has the shape []": {"y": np.arange(12) % 2, "classes": np.array("person")},
        "'classes' is int64": {"y": np.arange(12) % 2, "classes": np.array([0, 1])},
    }
    for sentence, arrays in cases.items():
        write_npz(odd, x=x, **arrays)
        assert sentence in said()


def test_names_may_be_bytes(blob, pictures):
    good = np.load(pictures)
    file = write_npz(pictures.with_name("bytes.npz"), x=good["x"], y=good["y"].astype("S"))
    parsed = blobs.read(blob.read_bytes())
    assert (data.load_samples(file, parsed).y == data.load_samples(pictures, parsed).y).all()


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    blob, pictures, person_model, folder, capsys, monkeypatch
):
    monkeypatch.setattr("sprout.learning.learn", None)
    monkeypatch.setattr("sprout.inference.run", None)
    learn = ("learn", blob, "--train", pictures, "--test", pictures)
    nowhere = folder / "no" / "where"
    for command in (
        (*learn, "--json"),
        (*learn, "--save"),
        ("run", blob, "--input", pictures, "--output"),
        ("inspect", blob, "--png"),
        ("compile", person_model, "-o"),
    ):
        assert f"no folder {nowhere.parent}" in complaint(capsys, *command, nowhere)
        assert f"{folder} is a folder" in complaint(capsys, *command, folder)
    full = complaint(capsys, "compile", person_model, "-o", "/dev/full")
    assert full.startswith("/dev/full cannot be written (No space left on device): make ")
    assert "is a folder" in complaint(capsys, "compile", folder)
    assert "is a folder" in complaint(capsys, "inspect", folder)


def test_errors_of_the_board_name_the_users_file(blob, pictures, folder, capsys):
    options = ("--train", pictures, "--test", pictures, "--on", "micropython", "--heap", 130_000)
    said = complaint(capsys, "learn", blob, *options)
    assert said.startswith("person.sprout needs ")
    assert "give it a larger --heap, or compile it with a smaller plan" in said
    plain = folder / "train.bin"
    plain.write_bytes(blob.read_bytes())
    assert "train.bin.sprout needs" in complaint(capsys, "learn", plain, *options)


def test_a_heap_too_small_says_how_many_bytes_are_missing(blob, pictures, capsys):
    options = ("--train", pictures, "--test", pictures, "--on", "micropython", "--heap")
    said = complaint(capsys, "learn", blob, *options, 130_000)
    assert re.search(r"needs \d+ bytes of RAM and \d+ are missing", said)
    assert "too small" in complaint(capsys, "learn", blob, *options, 50_000)


def test_run_refuses(blob, folder, capsys):
    out = ("--output", folder / "never.npz")
    cases = {
        "takes int8": np.zeros((1, 96, 96, 3), np.float32),
        "must be [N, 96, 96, 3]": np.zeros((1, 96, 96), np.int8),
    }
    for said, x in cases.items():
        file = write_npz(folder / "wrong.npz", x=x)
        assert said in complaint(capsys, "run", blob, "--input", file, *out)


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("compile",),
        ("learn", "x.sprout"),
        ("compile", "x.tflite", "--input-range", "3"),
        ("run", "x.sprout", "--input", "a", "--output", "b", "--on", "moon"),
        ("run", "x.sprout", "--input", "a", "--output", "b", "--heap", "0"),
    ],
)
def test_a_command_line_that_cannot_be_read_exits_with_2(args, capsys):
    assert sprout(*args) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_program_itself(blob):
    program = [sys.executable, "-m", "sprout.cli"]
    result = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    for command in ("compile", "inspect", "run", "learn", "sim"):
        assert command in result.stdout
    result = subprocess.run(
        [*program, "inspect", str(blob.with_name("nothere"))], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
