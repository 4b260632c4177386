"""The text of ``sprout.help()`` on the board, from the docstrings: MicroPython drops those."""

from __future__ import annotations

import ast
from pathlib import Path


def text(package: Path) -> str:
    """Return an entry for each public function of a device package and member of its Net.

    A title without indentation, then the docstring, indented by four.  Members without one are in
    the docstring of Net.
    """
    top = ast.parse((package / "__init__.py").read_text()).body
    module = ast.parse((package / "net.py").read_text()).body
    net = next(node for node in module if isinstance(node, ast.ClassDef))
    entries = [*_functions(module, "sprout."), *_functions(top, "sprout."), _entry("net", net)]
    return "".join(entries + _functions(net.body, "net."))


def _functions(nodes: list[ast.stmt], prefix: str) -> list[str]:
    entries = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and ast.get_docstring(node):
            call = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
            title = f"{prefix}{node.name}" + ("" if node.decorator_list else f"({call})")
            entries.append(_entry(title, node))
    return entries


def _entry(title: str, node: ast.ClassDef | ast.FunctionDef) -> str:
    lines = (ast.get_docstring(node) or "").splitlines()
    return "\n".join([title, *(f"    {line}" for line in lines), ""])
