"""The command line, ``sprout``.

A mistake of the user's gives one sentence on stderr and exit status 1, a command line that cannot
be read gives a usage line and 2; nobody but us should meet a traceback.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from . import data as npz
from . import learned
from .arguments import OutFile, exists, make_console, read_blob, write
from .board import commands, flash, package, romfs
from .board import table as boards
from .graph import SproutError
from .places import own_model
from .progress import Reporter

PLAN_HELP = """\b
What learns:
  none        nothing, the model only predicts (the default)
  last        the last layer
  full        everything
  b20,24:1/4  the last 20 biases and the most important quarter of the
              input channels of layer 24 (any number of LAYER:FRACTION;
              'sprout inspect' shows the numbers), and the last layer
  FILE.json   the same as {"biases": 20, "weights": {"24": "1/4"}}
  auto        the best that fits --ram, see docs/plans.md"""


class ModelFile(click.Path):
    """A model file, or the name of a model that came with Sprout."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        return own_model(Path(value))


def parse_board(context: click.Context, option: click.Parameter, name: str) -> str:
    """The name of a board we know."""
    return boards.find(name).name


SEED = click.IntRange(0, 2**32 - 1)
IN_FILE = click.Path(path_type=Path)
on = click.option(
    "--on",
    type=click.Choice(["host", "micropython"]),
    default="host",
    show_default=True,
    help="Where it runs; the results are the same to the bit.",
)
board = click.option(
    "--board",
    metavar="NAME",
    default="pico",
    show_default=True,
    callback=parse_board,
    help=f"Whose heap MicroPython gets: {', '.join(boards.BOARDS)}.",
)
heap = click.option(
    "--heap",
    metavar="BYTES",
    type=click.IntRange(1),
    help="A heap of so many bytes in place of the board's, native code included.",
)


def parse_range(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[float, float] | None:
    """LOW,HIGH as two numbers."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise click.BadParameter(f"'{text}' is not LOW,HIGH such as -1,1.")
    return low, high


def parse_classes(
    context: click.Context, option: click.Parameter, text: str | None
) -> list[str] | None:
    """A,B,... as names."""
    return None if text is None else [name.strip() for name in text.split(",")]


class Size(click.ParamType):
    """Bytes: 163840, 160K or 0.5M."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        try:
            size = int(float(text.rstrip("KM")) * unit)
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            self.fail(f"'{value}' is not a number of bytes such as 163840 or 160K.", param, ctx)
        return size


class Sizes(Size):
    """Several of them, with commas between."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(super(Sizes, self).convert(part, param, ctx) for part in value.split(","))


ANALYSIS = (
    click.option(
        "--samples",
        metavar="N",
        type=click.IntRange(6),
        default=480,
        show_default=True,
        help="Use at most this many, drawn at random.",
    ),
    click.option(
        "--seeds",
        metavar="N",
        type=click.IntRange(1, 20),
        default=3,
        show_default=True,
        help="Learn so many times, each time testing on other samples.",
    ),
    click.option(
        "--epochs",
        metavar="N",
        type=click.IntRange(1),
        default=2,
        show_default=True,
        help="How often each sample is learned from.",
    ),
    click.option(
        "--rate",
        metavar="R",
        type=float,
        default=0.004,
        show_default=True,
        help="Learning rate at the start; falls to zero.",
    ),
    click.option(
        "--cache",
        metavar="FOLDER",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("build/analysis"),
        show_default=True,
        help="Where results are kept, so that nothing is measured twice.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Run on the Dask cluster of this scheduler, such as tcp://192.168.0.7:8786.",
    ),
)
classes_option = click.option(
    "--classes",
    metavar="A,B,...",
    callback=parse_classes,
    help="Give the model a fresh head for these classes.",
)
max_classes_option = click.option(
    "--max-classes",
    metavar="N",
    type=click.IntRange(1),
    help="Room in the fresh head, for classes added on the board; three more if not given.",
)
input_range_option = click.option(
    "--input-range",
    metavar="LOW,HIGH",
    callback=parse_range,
    help="Real values of pixel 0 and pixel 255, where the model's own scale does not tell.",
)
fractions_option = click.option(
    "--fractions",
    type=click.Choice(["none", "head", "all"]),
    default="all",
    show_default=True,
    help="Which trained weights keep 4 bits below their LSB, half a byte each.",
)
rows_option = click.option(
    "--rows", is_flag=True, help="Frames arrive row by row, net.feed(rows): no room for a whole."
)


def analysis_options(command: Any) -> Any:
    """The options of everything that measures plans on the user's samples."""
    for option in reversed(ANALYSIS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99})
@click.version_option(package_name="sprout", prog_name="sprout")
def cli() -> None:
    """Neural networks that go on learning on microcontrollers under MicroPython."""


@cli.command("compile", short_help="Make a blob for the board from a model and a plan.")
@click.argument("model", type=ModelFile())
@click.option("-o", "--output", type=OutFile(), help="The blob; MODEL.sprout here if not given.")
@click.option("--plan", default="none", help=PLAN_HELP)
@classes_option
@max_classes_option
@fractions_option
@click.option(
    "--seed",
    metavar="N",
    type=SEED,
    default=0,
    show_default=True,
    help="Of the fresh head's weights.",
)
@input_range_option
@rows_option
@click.option(
    "--whole-layers", is_flag=True, help="Run layer by layer: up to 8 % faster, with more RAM."
)
@click.option("--ram", metavar="BYTES", type=Size(), help="--plan auto: as much as it may take.")
@click.option(
    "--step-mmac",
    metavar="M",
    type=click.FloatRange(0, min_open=True),
    help="--plan auto: millions of multiplications that a training step may take.",
)
@click.option(
    "--data",
    type=IN_FILE,
    help="Samples to find the board's learning rate on; --plan auto: also to measure gains on.",
)
@click.option("--analysis", type=IN_FILE, help="--plan auto: gains that 'sprout analyze' wrote.")
@click.option(
    "--select",
    type=click.Choice(["exact", "eliminate"]),
    default="exact",
    show_default=True,
    help="--plan auto: the optimum of added gains, or backward elimination (needs --data).",
)
@click.option(
    "--within",
    metavar="POINTS",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="--select eliminate: how far accuracy may fall below that of everything together.",
)
@analysis_options
def compile_command(
    model: Path,
    output: Path | None,
    plan: str,
    classes: list[str] | None,
    max_classes: int | None,
    fractions: str,
    seed: int,
    input_range: tuple[float, float] | None,
    rows: bool,
    whole_layers: bool,
    **auto: Any,
) -> None:
    """Make a blob for the board from MODEL, a .tflite or an MCUNet .pkl, and a plan.

    'person' is the network that comes with Sprout: people or no people in 96x96 pictures.
    """
    from . import auto as autos
    from . import inspect
    from .compile import compile_model

    exists(model, "give the name of a .tflite or an MCUNet .pkl file")
    if rows and whole_layers:
        raise SproutError("--rows and --whole-layers contradict each other: give one of them.")
    if plan == "auto" and whole_layers:
        raise SproutError("--plan auto counts on layers by rows: leave out --whole-layers.")
    make = functools.partial(
        compile_model,
        model,
        classes=classes,
        max_classes=max_classes,
        seed=seed,
        input_range=input_range,
        fractions=fractions,
        rows=rows,
        save=not whole_layers,
    )
    refuse_idle(
        ("--plan auto", plan == "auto", ("ram", "step_mmac", "analysis", "select")),
        ("--data", auto["data"] is not None, ("samples", "seeds", "epochs", "rate", "scheduler")),
        ("--select eliminate", auto["select"] == "eliminate", ("within",)),
    )
    console = make_console()
    want = autos.Wanted(classes, max_classes, seed, fractions, rows, input_range, **auto)
    if plan == "auto":
        blob = autos.choose_plan(model, lambda found: make(plan=str(found)), want, console)
    else:
        blob = make(plan=plan)
        if auto["data"] is not None:
            autos.set_rate(model, blob, want, console)
    raw = blob.to_bytes()
    output = output or Path(model.stem + ".sprout")
    write(output, raw)
    console.print(f"{output}: {inspect.classes_text(blob)}", markup=False, soft_wrap=True)
    console.print(inspect.learns_text(blob), markup=False, soft_wrap=True)
    console.print(inspect.sizes(blob, len(raw)))


def refuse_idle(*rules: tuple[str, bool, Sequence[str]]) -> None:
    """Refuse options that the user gave and that do nothing here: (what they belong to, whether
    it is given, their names)."""
    given = click.get_current_context().get_parameter_source
    for to, is_there, names in rules:
        for name in names:
            if not is_there and given(name) is ParameterSource.COMMANDLINE:
                option = "--" + name.replace("_", "-")
                raise SproutError(
                    f"{option} does nothing without {to}: leave it out, or give both."
                )


@cli.command("analyze", short_help="Measure what each layer contributes on your samples.")
@click.argument("model", type=ModelFile())
@click.option(
    "--data", required=True, type=IN_FILE, help="npz with 'x' uint8 [N, H, W, C] and 'y'."
)
@click.option("-o", "--output", type=OutFile(), help="Write the gains here, for compile.")
@classes_option
@max_classes_option
@input_range_option
@fractions_option
@rows_option
@click.option(
    "--ram",
    metavar="BYTES",
    type=Size(),
    default="256K",
    show_default=True,
    help="Leave out what takes more than this by itself.",
)
@analysis_options
def analyze_command(
    model: Path, data: Path, output: Path | None, ram: int, **options: Any
) -> None:
    """Measure how much accuracy each bias and each part of a layer of MODEL gains on your samples
    if it learns alone, with the head."""
    from . import analyze
    from . import auto as autos

    exists(model, "give the name of a .tflite or an MCUNet .pkl file")
    console = make_console()
    with Reporter(console) as report:
        want = autos.Wanted(**options)
        bench = autos.make_bench(model, data, want, console, report)
        found = analyze.analyze(bench, ram, want.rows)
    console.print(autos.table(found))
    if output:
        write(output, found.to_json().encode())


@cli.command("frontier", short_help="Draw accuracy against RAM and multiplications.")
@click.argument("model", type=ModelFile())
@click.option(
    "--data", required=True, type=IN_FILE, help="npz with 'x' uint8 [N, H, W, C] and 'y'."
)
@click.option(
    "--budgets",
    metavar="BYTES,...",
    type=Sizes(),
    default="32K,64K,96K,128K,160K,192K,224K,256K",
    show_default=True,
    help="RAM to find a plan for.",
)
@click.option(
    "--analysis", type=IN_FILE, help="Gains that 'sprout analyze' wrote: do not measure them here."
)
@click.option("--png", type=OutFile(), help="The picture; MODEL-frontier.png here if not given.")
@click.option("--json", "json_out", type=OutFile(), help="The numbers; MODEL-frontier.json.")
@classes_option
@max_classes_option
@input_range_option
@fractions_option
@rows_option
@analysis_options
def frontier_command(
    model: Path,
    data: Path,
    budgets: tuple[int, ...],
    analysis: Path | None,
    png: Path | None,
    json_out: Path | None,
    **options: Any,
) -> None:
    """Show what accuracy MODEL reaches on your samples at which RAM and time of a step, with the
    plans that 'sprout compile --plan auto' finds and with simple ones."""
    from . import auto as autos
    from . import frontier

    exists(model, "give the name of a .tflite or an MCUNet .pkl file")
    console = make_console()
    with Reporter(console) as report:
        want = autos.Wanted(**options)
        bench = autos.make_bench(model, data, want, console, report)
        points = autos.frontier_points(bench, budgets, analysis, want.rows, report)
    console.print(autos.frontier_table(points))
    if note := autos.too_little(points, budgets):
        console.print(note, markup=False, soft_wrap=True)
    text = json.dumps(frontier.to_json(points, bench.about), indent=1) + "\n"
    png = png or Path(f"{model.stem}-frontier.png")
    json_out = json_out or Path(f"{model.stem}-frontier.json")
    write(json_out, text.encode())
    seeds = bench.task.settings.seeds
    title = f"{model.stem}, {len(bench.task.labels)} samples"
    if seeds > 1:
        title += f": mean of {seeds} seeds, bars: its standard error"
    write(png, frontier.picture(points, title))
    console.print(f"{png}, {json_out}", markup=False)


@cli.command("inspect")
@click.argument("blob", type=IN_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--png", type=OutFile(), help="Draw the arena over time into this file.")
def inspect_command(blob: Path, as_json: bool, png: Path | None) -> None:
    """Show what BLOB holds: layers, what learns, RAM and flash by part.

    Or what a board's checkpoint holds, or a folder of samples that it kept.
    """
    from . import inspect

    if learned.holds(blob):
        learned.show(blob, as_json, make_console())
        return
    raw, parsed = read_blob(blob)
    if as_json:
        click.echo(json.dumps(inspect.describe(parsed, raw), indent=2))
    else:
        inspect.show(parsed, len(raw), make_console())
    if png:
        write(png, inspect.picture(parsed))


@cli.command("run", short_help="Predict, in the model's own form.")
@click.argument("blob", type=IN_FILE)
@click.option("--input", "input_", required=True, type=IN_FILE, help="npz with 'x' [N, ...].")
@click.option("--output", required=True, type=OutFile(), help="npz to write, with 'y' [N, ...].")
@on
@board
@heap
def run_command(
    blob: Path, input_: Path, output: Path, on: str, board: str, heap: int | None
) -> None:
    """Predict: 'x' to 'y', both in the model's own form (int8 or float32)."""
    from . import inference

    _, parsed = read_blob(blob)
    x = npz.load_inputs(input_, parsed)
    with Reporter(make_console()) as report:
        y = inference.run(blob, x, on=on, board=board, heap=heap, report=report)
    file = io.BytesIO()
    np.savez_compressed(file, y=npz.to_outputs(y, parsed))
    write(output, file.getvalue())


@cli.command("learn", short_help="Learn from labelled pictures, as a board does.")
@click.argument("blob", type=IN_FILE)
@click.option(
    "--train", required=True, type=IN_FILE, help="npz with 'x' uint8 [N, H, W, C] and 'y'."
)
@click.option("--test", required=True, type=IN_FILE, help="npz, the same, to measure on.")
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(1),
    help="Learn from this many, drawn at random; all if not given.",
)
@click.option(
    "--epochs",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How often each sample is learned from.",
)
@click.option(
    "--rate",
    metavar="R",
    type=float,
    help="Learning rate at the start; falls to zero.  [default: the blob's, else 0.002]",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Samples per update.",
)
@click.option(
    "--seed",
    metavar="N",
    type=SEED,
    default=0,
    show_default=True,
    help="Of the order of samples and of the rounding.",
)
@on
@board
@heap
@click.option("--json", "json_out", type=OutFile(), help="Write the results here.")
@click.option("--save", type=OutFile(), help="Write what was learned here, for net.restore().")
def learn_command(
    blob: Path, train: Path, test: Path, json_out: Path | None, **options: Any
) -> None:
    """Learn from labelled pictures with exactly the arithmetic of the board."""
    from . import learning

    _, parsed = read_blob(blob)
    console = make_console()
    say = functools.partial(console.print, markup=False)
    samples = [npz.load_samples(path, parsed, say) for path in (train, test)]
    result = learning.learn(blob, *samples, report=Reporter(console), **options)
    console.print(learning.summary(result))
    if json_out:
        write(json_out, (json.dumps(result, indent=2) + "\n").encode())


@cli.command("sim", short_help="Open a simulated board's REPL, BLOB loaded as 'net'.")
@click.argument("blob", type=IN_FILE)
@click.argument("script", type=IN_FILE, required=False)
@board
def sim_command(blob: Path, script: Path | None, board: str) -> int:
    """Open MicroPython's REPL as a board would show it, with BLOB loaded as 'net', or run SCRIPT.

    The folder build/sim-BOARD is the board's flash, with BLOB in it.
    """
    from .board import sim

    read_blob(blob)
    if script:
        exists(script, "give the name of a MicroPython program")
    return sim.repl(blob, board, script)


# Commands for boards, each with what it does in a file of its own.
OTHERS = (flash.command, package.command, romfs.command, learned.command)
for board_command in (*commands.COMMANDS, *OTHERS):
    cli.add_command(board_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        return cli.main(args=argv, prog_name="sprout", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("sprout: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SproutError, MemoryError) as error:
        print(f"sprout: {error}", file=sys.stderr)
    except OSError as error:
        what = error.filename or "a file"  # a full disk has no name
        print(f"sprout: {what} cannot be used ({error.strerror or error}).", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
