"""The command line, ``sprout``.

A mistake of the user's gives one sentence on stderr and exit status 1, a command line that cannot
be read gives a usage line and 2; nobody but us should meet a traceback.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from . import blob as blobs
from . import data
from .graph import SproutError
from .progress import Reporter

PLAN_HELP = """\b
What learns:
  none        nothing, the model only predicts (the default)
  last        the last layer
  full        everything
  b20,24:1/4  the last 20 biases and the most important quarter of the
              input channels of layer 24 (any number of LAYER:FRACTION;
              'sprout inspect' shows the numbers), and the last layer
  FILE.json   the same as {"biases": 20, "weights": {"24": "1/4"}}"""

SEED = click.IntRange(0, 2**32 - 1)
ON = click.Choice(["host", "micropython"])


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 99})
@click.version_option(package_name="sprout", prog_name="sprout")
def cli() -> None:
    """Neural networks that go on learning on microcontrollers under MicroPython."""


@cli.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The blob; MODEL.sprout if not given."
)
@click.option("--plan", default="none", help=PLAN_HELP)
@click.option(
    "--classes", metavar="A,B,...", help="Give the model a fresh head for these classes."
)
@click.option(
    "--max-classes",
    type=click.IntRange(1),
    help="Room in the fresh head, for classes added on the board.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the fresh head.")
@click.option(
    "--input-range",
    metavar="LOW,HIGH",
    callback=parse_range,
    help="Real values of pixel 0 and pixel 255, where the model's own scale does not tell.",
)
def compile_command(
    model: Path,
    output: Path | None,
    plan: str,
    classes: str | None,
    max_classes: int | None,
    seed: int,
    input_range: tuple[float, float] | None,
) -> None:
    """Make a blob for the board from MODEL, a .tflite or an MCUNet .pkl, and a plan."""
    from . import inspect
    from .compile import compile_model

    if not model.is_file():
        raise SproutError(
            f"{model} does not exist: give the name of a .tflite or an MCUNet .pkl file."
        )
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    blob = compile_model(
        model,
        plan=plan,
        classes=names,
        max_classes=max_classes,
        seed=seed,
        input_range=input_range,
    )
    raw = blob.to_bytes()
    output = output or Path(model.stem + ".sprout")
    output.write_bytes(raw)
    console = _console()
    console.print(f"{output}: {inspect.classes_text(blob)}", markup=False)
    console.print(inspect.learns_text(blob), markup=False)
    console.print(inspect.sizes(blob, len(raw)))


@cli.command("inspect")
@click.argument("blob", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--png", type=click.Path(path_type=Path), help="Draw the arena over time into this file."
)
def inspect_command(blob: Path, as_json: bool, png: Path | None) -> None:
    """Show what BLOB holds: layers, what learns, RAM and flash by part."""
    from . import inspect

    raw, parsed = read_blob(blob)
    if as_json:
        click.echo(json.dumps(inspect.describe(parsed, raw), indent=2))
    else:
        inspect.show(parsed, len(raw), _console())
    if png:
        inspect.write_png(parsed, png)


@cli.command("run")
@click.argument("blob", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "input_",
    required=True,
    type=click.Path(path_type=Path),
    help="npz with 'x' [N, ...].",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="npz to write, with 'y' [N, ...].",
)
@click.option("--on", type=ON, default="host", show_default=True, help="Where it runs.")
@click.option("--board", default="pico", show_default=True, help="Whose heap, on micropython.")
@click.option("--heap", type=int, help="Heap in bytes instead, on micropython.")
def run_command(
    blob: Path, input_: Path, output: Path, on: str, board: str, heap: int | None
) -> None:
    """Predict: 'x' to 'y', both in the model's own form (int8 or float32)."""
    from . import inference

    _, parsed = read_blob(blob)
    x = data.load_inputs(input_, parsed)
    with Reporter(_console()) as report:
        y = inference.run(blob, x, on=on, board=board, heap=heap, report=report)
    np.savez_compressed(output, y=data.to_outputs(y, parsed))


@cli.command("learn")
@click.argument("blob", type=click.Path(path_type=Path))
@click.option(
    "--train",
    required=True,
    type=click.Path(path_type=Path),
    help="npz with 'x' uint8 [N, H, W, C] and 'y'.",
)
@click.option(
    "--test", required=True, type=click.Path(path_type=Path), help="npz, the same, to measure on."
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Learn from this many, drawn at random; all if not given.",
)
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Times over.")
@click.option(
    "--rate", type=float, help="Learning rate at the start; falls to zero.  [default: 0.002]"
)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Samples per update."
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Order and rounding.",
)
@click.option("--on", type=ON, default="host", show_default=True, help="Where it learns.")
@click.option("--board", default="pico", show_default=True, help="Whose heap, on micropython.")
@click.option("--heap", type=int, help="Heap in bytes instead, on micropython.")
@click.option(
    "--json", "json_out", type=click.Path(path_type=Path), help="Write the results here."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write what was learned here, for net.restore().",
)
def learn_command(
    blob: Path, train: Path, test: Path, json_out: Path | None, **options: Any
) -> None:
    """Learn from labelled pictures with exactly the arithmetic of the board."""
    from . import learning

    _, parsed = read_blob(blob)
    console = _console()
    say = functools.partial(console.print, markup=False)
    samples = [data.load_samples(path, parsed, say) for path in (train, test)]
    result = learning.learn(blob, *samples, report=Reporter(console), **options)
    console.print(learning.summary(result))
    if json_out:
        json_out.write_text(json.dumps(result, indent=2) + "\n")


@cli.command("sim")
@click.argument("blob", type=click.Path(path_type=Path))
@click.option("--board", default="pico", show_default=True, help="Whose heap.")
def sim_command(blob: Path, board: str) -> int:
    """Open MicroPython's REPL as a board would show it, with BLOB loaded as 'net'."""
    from .board import sim

    read_blob(blob)
    return sim.repl(blob, board)


def read_blob(path: Path) -> tuple[bytes, blobs.Blob]:
    """Return a blob file, raw and taken apart."""
    if not path.is_file():
        raise SproutError(
            f"{path} does not exist: make a blob with 'sprout compile MODEL -o {path}'."
        )
    raw = path.read_bytes()
    return raw, blobs.read(raw, str(path))


def _console() -> Console:
    """A console that is as wide in a pipe as our lines are."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 110)


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
        print(f"sprout: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
