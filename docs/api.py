"""Two directives for Sphinx: `boards`, the table of boards, and `api`, what a Python file offers.

That is read from its docstrings, without importing it: the device package is MicroPython's, and
host and device have modules of the same names.

    .. api:: device/sprout/net.py
       :module: sprout
       :only: load, Net

`module` is how one calls it.  `only` names what is shown, in this order; without it that is the
file's own docstring, and all that is public and has one.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

ROOT = Path(__file__).resolve().parent.parent
Definition = ast.FunctionDef | ast.ClassDef


class Api(SphinxDirective):
    """The directive."""

    required_arguments = 1  # the file, from the repository's root
    option_spec = {"module": directives.unchanged_required, "only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Parse the file and describe it."""
        path = ROOT / self.arguments[0]
        self.env.note_dependency(str(path))
        tree = ast.parse(path.read_text())
        text = f".. py:currentmodule:: {self.options['module']}\n\n"
        if "only" not in self.options:
            text += docstring(tree)
        text += "".join(describe(definition) for definition in self._wanted(tree))
        box = nodes.section()
        box.document = self.state.document
        nested_parse_with_titles(self.state, StringList(text.splitlines(), str(path)), box)
        return box.children

    def _wanted(self, tree: ast.Module) -> list[Definition]:
        found = {item.name: item for item in public(tree)}
        if "only" not in self.options:
            return list(found.values())
        names = [name.strip() for name in self.options["only"].split(",") if name.strip()]
        missing = [name for name in names if name not in found]
        if missing:
            raise self.error(f"{self.arguments[0]} has no {missing[0]} with a docstring")
        return [found[name] for name in names]


class Boards(SphinxDirective):
    """The directive `boards`: the table of boards."""

    def run(self) -> list[nodes.Node]:
        """A row for each board that can be flashed."""
        from sprout.board import table

        rows = [
            ("``--board``", "what it is", "modules for", "heap, KB", "files, KB", "flashed by")
        ]
        for board in table.BOARDS.values():
            if board.way:
                way = "UF2 drive" if isinstance(board.way, table.Uf2) else "esptool"
                sizes = [f"{size >> 10:,}" for size in (board.heap, board.filesystem)]
                rows.append((f"``{board.name}``", board.title, board.arch, *sizes, way))
        text = ".. list-table::\n   :header-rows: 1\n\n"
        for row in rows:
            text += "".join(f"   {'  -' if i else '* -'} {cell}\n" for i, cell in enumerate(row))
        box = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), "boards"), 0, box)
        return box.children


def public(tree: ast.Module | ast.ClassDef) -> list[Definition]:
    """Functions and classes that have a docstring and no leading underscore."""
    return [
        item
        for item in tree.body
        if isinstance(item, Definition)
        and not item.name.startswith("_")
        and ast.get_docstring(item)
    ]


def docstring(item: ast.Module | Definition) -> str:
    """The docstring; bars and stars in it are those of formulas, what is indented is a program."""
    text = ast.get_docstring(item) or ""
    text = re.sub(r"(?<!::)\n\n(?=    \S)", "\n\n::\n\n", text)
    parts = re.split(r"(`+[^`]+`+|(?<=::)\n\n(?:    .*\n?|\n)+)", text)
    parts[::2] = [re.sub(r"(?<!^)[|*]", r"\\\g<0>", part, flags=re.M) for part in parts[::2]]
    return "".join(parts) + "\n\n"


def describe(item: Definition, method: bool = False) -> str:
    """The directive of Sphinx's Python domain for a function or a class."""
    kind = "class" if isinstance(item, ast.ClassDef) else "method" if method else "function"
    name = item.name
    if isinstance(item, ast.FunctionDef):
        marks = {ast.unparse(mark) for mark in item.decorator_list}
        if any(mark.endswith(".setter") for mark in marks):
            return ""
        if marks & {"property", "functools.cached_property"}:
            kind = "property"
        else:
            name += signature(item.args, method and "staticmethod" not in marks)
            if item.returns is not None:
                name += f" -> {ast.unparse(item.returns)}"
    body = docstring(item)
    if isinstance(item, ast.ClassDef):
        body += "".join(describe(member, method=True) for member in public(item))
    head = f".. py:{kind}:: {name}\n   :no-index:\n\n"
    return head + textwrap.indent(body, "   ") + "\n"


def signature(arguments: ast.arguments, method: bool) -> str:
    """Parameters as they are written, without `self`."""
    if method:
        first = arguments.posonlyargs or arguments.args
        del first[:1]
    return f"({ast.unparse(arguments)})"


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("api", Api)
    app.add_directive("boards", Boards)
    return {"parallel_read_safe": True}
