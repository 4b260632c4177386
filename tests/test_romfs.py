"""ROMFS images in real MicroPython: found, aligned, learned from in place, with less heap."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import micropython
from nets import residual_net
from sprout import blob as blobs
from sprout import cli
from sprout.board import install, romfs, sim
from sprout.board.serialsim import SerialBoard
from sprout.compile import compile_graph, compile_model

HEAP = 4 << 20  # the image itself lies in it, for want of a mapped flash
MOUNT = "import gc, json, sys, vfs; gc.collect(); "
MOUNT += "vfs.mount(vfs.VfsRom(memoryview(open('image.romfs', 'rb').read())), '/rom'); "
LEARN = """
before = gc.mem_alloc()
import sprout
net = sprout.load("net.sprout")
gc.collect()
heap = gc.mem_alloc() - before
for i in range(3):
    net.learn(bytes(96 * 96 * 3), i % 2)
net.save()
about = {"heap": heap, "digest": net.digest(), "memory": net.memory()}
about["from"] = sprout.__path__ if hasattr(sprout, "__path__") else sprout.__file__
print(json.dumps(about))
"""


def mounted(code: str, folder: Path, path: str) -> str:
    """Run code in MicroPython with an image mounted as /rom; returns what it prints."""
    return micropython(MOUNT + code.strip(), folder, path, "-X", f"heapsize={HEAP}")


@pytest.fixture(scope="module")
def blob(person_model: Path) -> bytes:
    return compile_model(person_model, plan="b6,20").to_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, blob: bytes) -> Path:
    """A flash whose ROMFS holds all that a board of this machine's kind needs."""
    folder = tmp_path_factory.mktemp("romfs")
    (folder / "net.sprout").write_bytes(blob)
    words = ["romfs", folder / "net.sprout", "--board", "unix", "-o", folder / "image.romfs"]
    assert cli.main([str(word) for word in words]) == 0
    return folder


def test_a_net_learns_in_place_with_less_heap(folder, tmp_path, blob):
    """The same steps from files and from the ROMFS: what load() finds where nothing else is."""
    found = {}
    (tmp_path / "image.romfs").write_bytes((folder / "image.romfs").read_bytes())
    for name, path in (("rom", "/rom/lib:.frozen"), ("files", "lib:.frozen")):
        if name == "files":
            sim.put(tmp_path, {"net.sprout": blob})
        found[name] = json.loads(mounted(LEARN, tmp_path, path))
        assert (tmp_path / "person.ckpt" if name == "rom" else tmp_path / "net.ckpt").exists()
    rom, files = found["rom"], found["files"]
    assert rom["from"].startswith("/rom/lib")
    assert not files["from"].startswith("/rom")
    assert rom["digest"] == files["digest"]
    saved = romfs.saved_bytes(blobs.read(blob, "net"))
    assert files["memory"]["program"] - rom["memory"]["program"] == saved > 1000
    # And bytecode that is run where it lies.
    assert files["heap"] - rom["heap"] > saved + 4000


def test_every_file_is_there_and_blobs_are_aligned(tmp_path):
    """Whatever the length of a name or of what stands before: padded for each of 16 remainders."""
    aligned = {"x" * n + ".sprout": bytes([n]) * (37 * n) for n in range(1, 18)}
    library = {"sprout/a.mpy": b"abc", "sprout/b.mpy": b"", "sprout_core.mpy": b"d" * 5000}
    (tmp_path / "image.romfs").write_bytes(romfs.image(aligned, library))
    code = "import os, hashlib, uctypes\n"
    code += "base = open('/rom/x.sprout', 'rb'); found = {}\n"
    code += "for top in ('', 'lib/', 'lib/sprout/'):\n"
    code += "  for name in os.listdir('/rom/' + top):\n"
    code += "    if '.' in name:\n"
    code += "      part = memoryview(open('/rom/' + top + name, 'rb'))\n"
    code += "      found[top + name] = (uctypes.addressof(part) % 16, bytes(part).hex())\n"
    code += "print(json.dumps(found))"
    found = json.loads(mounted(code, tmp_path, "lib:.frozen"))
    wanted = aligned | {f"lib/{name}": content for name, content in library.items()}
    assert {name: bytes.fromhex(text) for name, (_, text) in found.items()} == wanted
    assert {found[name][0] for name in aligned} == {0}


@pytest.mark.parametrize("size", [100, 127 * 128, 300_000])
def test_the_header_counts_right(size):
    """Of images whose length takes one, two or three bytes to say."""
    for more in range(4):
        out = romfs.image({"a.sprout": b"\xaa" * (size + more)}, {"b.mpy": b"b"})
        assert out[:3] == b"\xd2\xcd1"
        assert len(out) % 2 == 0
        assert out.index(b"\xaa" * 100) % romfs.ALIGNMENT == 0


def test_the_file_in_the_current_folder_comes_first(folder):
    code = "import sprout; net = sprout.load('net.sprout'); print(net.memory()['program'] > 0)"
    assert mounted(code, folder, "/rom/lib:.frozen") == "True\n"


def test_what_is_nowhere_is_said_to_be(folder):
    code = "import sprout\ntry:\n  sprout.load('other.sprout')\nexcept OSError as e:\n  print(e)"
    out = mounted(code, folder, "/rom/lib:.frozen")
    assert out.startswith("other.sprout cannot be opened")


def test_two_blobs_of_one_name_are_refused(folder, tmp_path, capsys):
    (tmp_path / "net.sprout").write_bytes((folder / "net.sprout").read_bytes())
    words = ["romfs", str(folder / "net.sprout"), str(tmp_path / "net.sprout")]
    assert cli.main([*words, "-o", str(tmp_path / "x.romfs")]) == 1
    assert "Two blobs are called net.sprout: rename one." in capsys.readouterr().err
    assert not (tmp_path / "x.romfs").exists()


def test_the_image_is_the_boards(folder, tmp_path):
    out = tmp_path / "pico.romfs"
    words = ["romfs", str(folder / "net.sprout"), "--board", "pico", "-o", str(out)]
    assert cli.main(words) == 0
    assert install.library("armv6m")["sprout_core.mpy"] in out.read_bytes()


def test_doctor_measures_what_a_romfs_saves(tmp_path, capsys):
    """On a board that mounts one, with the blob there alone and in a file too."""
    blob = tmp_path / "net.sprout"
    blob.write_bytes(compile_graph(residual_net(), "full").to_bytes())
    image = tmp_path / "image.romfs"
    (tmp_path / "boot.py").write_text(MOUNT.replace("gc, json, sys, ", "gc, "))
    saved = romfs.saved_bytes(blobs.read(blob.read_bytes(), "net"))
    assert cli.main(["romfs", str(blob), "--board", "unix", "-o", str(image)]) == 0
    with SerialBoard(tmp_path / "flash") as board:
        port = ["--port", board.port]
        assert cli.main(["install", *port]) == 0
        assert cli.main(["put", *port, str(image), str(tmp_path / "boot.py")]) == 0
        for where in ("/rom/net.sprout", "/net.sprout"):
            capsys.readouterr()
            assert cli.main(["doctor", *port, str(blob)]) == 0
            lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
            assert f"{where} loads" in lines["blob"]
            said = lines["in"].replace(",", "")
            less = int(
                re.search(r"/rom/net.sprout needs (-?\d+) bytes of heap less than", said)[1]
            )
            assert saved <= less < saved + 4096  # measured, an open file has a buffer
            assert "same bytes as on this computer" in lines["training"]
            assert cli.main(["put", *port, str(blob)]) == 0
