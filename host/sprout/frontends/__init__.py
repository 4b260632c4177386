"""Model files -> Graph.

A format is one module of this package with two functions: ``recognises(data)`` looks at the
first bytes, ``read(data, name)`` returns the Graph or raises SproutError.  ``FORMATS`` lists the
modules.
"""

from __future__ import annotations

import importlib
import pathlib

from ..graph import Graph, SproutError

FORMATS = ("tflite", "mcunet")


def load(path: str | pathlib.Path) -> Graph:
    """Read a model file, whose format is told by its content.

    Raises SproutError, in one sentence that names the file, if it cannot be used: not there, of no
    known format, damaged, or holding something that Sprout does not do.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SproutError(
            f"{path}: {error.strerror or 'it cannot be read'}; check the path to the model."
        ) from error
    for word in FORMATS:
        reader = importlib.import_module(f"{__name__}.{word}")
        if reader.recognises(data):
            break
    else:
        raise SproutError(
            f"{path.name} is no model that Sprout knows: give a fully-int8 .tflite file or "
            "an MCUNet .pkl file."
        )
    try:
        graph: Graph = reader.read(data, path.name)
    except SproutError:
        raise
    except Exception as error:  # whatever bytes a reader stumbles over, the user gets a sentence
        raise SproutError(
            f"{path.name} is damaged ({type(error).__name__} while reading it): "
            "copy or convert the model again."
        ) from error
    graph.name = path.stem
    graph.source = str(path)
    n = graph.logits.elements
    graph.classes = graph.classes or [f"class_{i}" for i in range(n)]
    graph.max_classes = graph.max_classes or n
    return graph
