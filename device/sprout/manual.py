"""Shows help.txt line by line, so that it costs no RAM; host/sprout/board/manual.py makes it."""

import sys

from .blobfile import trouble


def show(name=None):
    """Print the first lines of all entries, or all of those with this name."""
    name = getattr(name, "__name__", name)
    found = here = False
    with _open() as file:
        for line in file:
            if line[0] != " ":
                here = name in (None, line.split("(")[0].rstrip().split(".")[-1])
                found = found or here
            if here and (name or line[0] != " "):
                print(line, end="")
    if not found:
        trouble("misuse").no_help(name)
    if name is None:
        print("sprout.help('learn') says more of net.learn, and so on.")


def _open():
    for folder in sys.path:
        try:
            return open((folder + "/" if folder else "") + "sprout/help.txt")
        except OSError:
            pass
    trouble("misuse").no_manual()
