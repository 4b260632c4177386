"""How long 300 KB take to a board (``make bench-upload``).

``sprout put``, by each of its two libraries, against the libraries' own command lines, one after
the other on the same simulated link (host/sprout/board/serialsim.py): USB as an RP2040 has it, and
115 200 baud through a bridge chip.  Erasing a block of flash takes as long as on a Pico's chip.
What arrived is compared after each.  On a port that is no pseudo-terminal mpremote looks for
answers every 10 ms only, so it is at its best here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "host"), str(ROOT)]

from sprout.board.serialsim import UART, USB, SerialBoard  # noqa: E402
from sprout.compile import compile_model  # noqa: E402

BIN = pathlib.Path(sys.executable).parent
LINKS = {"usb": USB, "uart": UART}
ERASE_MS = 45  # W25Q16JV, typical
BASELINE = "mpremote fs cp"


def ways(file: pathlib.Path, port: str) -> dict[str, list[str]]:
    """The command lines, by what they are called."""
    name = file.name
    return {
        "sprout put": ["sprout", "put", str(file), "--port", port],
        "sprout put --via mpremote": [
            *("sprout", "put", str(file), "--port", port, "--via", "mpremote")
        ],
        BASELINE: ["mpremote", "connect", port, "fs", "cp", str(file), f":{name}"],
        "ampy put": ["ampy", "--port", port, "put", str(file), name],
    }


def seconds(link: str, way: str, file: pathlib.Path, folder: pathlib.Path) -> float:
    """Send ``file`` to an empty board; return how long it took."""
    flash = folder / "flash"
    flash.unlink(missing_ok=True)
    with SerialBoard(flash, link=LINKS[link], erase_ms=ERASE_MS) as board:
        first, *words = ways(file, board.port)[way]
        began = time.perf_counter()
        subprocess.run([BIN / first, *words], check=True, capture_output=True)
        took = time.perf_counter() - began
        found = board.files()[f"/{file.name}"]
    if found != hashlib.sha256(file.read_bytes()).hexdigest():
        raise SystemExit(f"{way} over {link}: what arrived is not what was sent.")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the upload of a blob.")
    parser.add_argument("--kilobytes", type=int, default=300, help="how much is sent")
    parser.add_argument("--links", nargs="+", default=list(LINKS), choices=LINKS)
    args = parser.parse_args()
    size = 1000 * args.kilobytes
    blob = compile_model(ROOT / "models" / "person.tflite", plan="full").to_bytes()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        file = folder / "blob.bin"
        file.write_bytes((blob * (1 + size // len(blob)))[:size])
        for link in args.links:
            print(f"{link}: {size:,} bytes of a blob")
            results[link] = {}
            for way in ways(file, "PORT"):
                took = results[link][way] = seconds(link, way, file, folder)
                print(f"  {way:26} {took:7.1f} s", flush=True)
            ours, theirs = results[link]["sprout put"], results[link][BASELINE]
            print(f"  sprout put takes {ours / theirs:.2f} of the time of {BASELINE}")
    out = ROOT / "build" / "bench-upload.json"
    out.write_text(json.dumps({"bytes": size, "seconds": results}, indent=1) + "\n")
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
