"""README.md and docs/: their code runs, their links lead somewhere, docs/ builds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import documents
import pytest
from sprout import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIVE = "Five minutes without a board"


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What README's five minutes leave behind, from which the pages of docs/ go on."""
    folder = tmp_path_factory.mktemp("five")
    story = [block for block in documents.blocks(ROOT / "README.md") if block.section == FIVE]
    wanted = [block for block in story if block.language == "python" or "compile" in block.text]
    wanted.append(next(block for block in story if "python pictures.py" in block.text))
    list(documents.run(wanted, folder, Path(sys.executable).parent))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, five, tmp_path):
    for file in five.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    story = documents.blocks(page)
    if page.name == "README.md":  # test_package.py runs these, from the wheel
        story = [block for block in story if block.section != FIVE]
    list(documents.run(story, tmp_path, Path(sys.executable).parent))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_fenced_and_every_link_leads_somewhere(page):
    text = page.read_text()
    assert not re.search(r"^    \$ ", text, re.MULTILINE), "a command that no test would run"
    fences = len(re.findall(r"^```", text, re.MULTILINE))
    directives = len(re.findall(r"^```\{", text, re.MULTILINE))
    assert fences == 2 * (len(documents.blocks(page)) + directives)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        drawn = link.startswith("pictures/")  # when the docs are built
        assert "://" in link or drawn or (page.parent / link).exists(), link


def test_docs_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "docs", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("index", "device", "host", "blob"):
        assert (tmp_path / f"{name}.html").exists()
    assert "The next rows of a frame" in (tmp_path / "device.html").read_text()
    pictures = {file.name for file in (tmp_path / "_images").iterdir()}
    assert pictures >= {"arena.png", "plans.png", "curves.png"}


def test_every_command_and_every_bench_is_in_the_docs():
    commands = (ROOT / "docs" / "commands.md").read_text()
    for name in cli.cli.commands:
        assert f"`sprout {name}" in commands, name
    pages = "".join(page.read_text() for page in PAGES)
    for bench in (ROOT / "tools").glob("bench_*.py"):
        name = bench.stem.removeprefix("bench_")
        assert name == "common" or f"bench-{name}" in pages, name


# --- troubleshooting.md -------------------------------------------------------------------------

HOLE = "…"


def sentences(folder: Path) -> Iterator[str]:
    """What the modules of a folder can say, in order: `…` in place of what is filled in."""
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text())
        nodes = [node for node in ast.walk(tree) if hasattr(node, "lineno")]
        docstrings = {
            node.body[0].value
            for node in [tree, *nodes]
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
            and isinstance(node.body[0], ast.Expr)
        }
        for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE
                         for part in node.values]  # fmt: skip
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield "" if node in docstrings else re.sub(r"%[-.\d]*[sdrfg]", HOLE, node.value)


def fragments(sentence: str) -> list[str]:
    """The words between what is filled in."""
    return [
        part.strip() for part in re.split(f"[{HOLE}{{}}']+", sentence) if len(part.split()) > 1
    ]


MESSAGES = re.findall(r"`([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text())


NO_MESSAGE = re.compile(r"^[<,%]|^- x86|^x64|>$|^epoch|sprout\.help\(")  # reprs, tables


def test_every_message_of_the_board_is_explained():
    explained = "\n".join(MESSAGES)
    said = sentences(ROOT / "device")
    wanted = [text for text in said if text.count(" ") >= 3 and not NO_MESSAGE.search(text)]
    assert len(wanted) > 40
    missing = [text for text in wanted if not all(f in explained for f in fragments(text))]
    assert not missing


def test_every_explained_message_exists():
    known = "".join([*sentences(ROOT / "device"), *sentences(ROOT / "host")])
    known += "no module named 'sprout'"  # says MicroPython
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    bold = re.findall(r"\*\*`([^`]+)`\*\*", text)
    assert len(bold) > 40
    unknown = [message for message in bold if not all(f in known for f in fragments(message))]
    assert not unknown, unknown
