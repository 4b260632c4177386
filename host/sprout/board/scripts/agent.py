# ruff: noqa: SIM105, SIM115, UP031
# mypy: ignore-errors
#
# Answers requests from wire.py, which sends it to the REPL before them.  A request that is asked
# again because its answer was lost is not carried out again.

import binascii
import gc
import hashlib
import json
import os

SUFFIX = ".sprout-new"


class State:
    number = None
    answer = ""
    file = path = None
    at = 0


def check(number, text, data):
    sha = hashlib.sha256(("%d\n%s\n" % (number, text)).encode())
    sha.update(data)
    return binascii.hexlify(sha.digest()[:4]).decode()


def ask(number, code, data, expected):
    if check(number, code, data) != expected:
        print("damaged")
        return
    if number != State.number:
        scope = {"data": binascii.a2b_base64(data), "answer": None}
        scope.update(globals())
        try:
            exec(code, scope)
            answer = {"answer": scope["answer"]}
        except Exception as error:
            number_of = error.args[0] if error.args else 0
            answer = {"error": [type(error).__name__, str(error), number_of]}
        scope = None
        State.answer = json.dumps(answer)
        State.number = number
    print("%d %s %s" % (number, check(number, State.answer, b""), State.answer))


def sha256(path):
    """In hex, or None where there is no such file."""
    try:
        file = open(path, "rb")
    except OSError:
        return None
    sha, chunk = hashlib.sha256(), bytearray(512)
    with file:
        while True:
            n = file.readinto(chunk)
            if not n:
                return binascii.hexlify(sha.digest()).decode()
            sha.update(chunk if n == len(chunk) else memoryview(chunk)[:n])


def is_file(path):
    try:
        return os.stat(path)[0] & 0x8000
    except OSError:
        return False


def files(folder):
    """{folder: [(name, bytes)]} of all files from a folder on, which may be missing."""
    found, inner = [], []
    try:
        for entry in os.ilistdir(folder or "/"):
            path = folder + "/" + entry[0]
            if entry[1] == 0x4000:
                inner.append(path)
            else:
                found.append((entry[0], entry[3] if len(entry) > 3 else os.stat(path)[6]))
    except OSError:
        pass
    all = {folder: found}
    for path in inner:
        all.update(files(path))
    return all


def close():
    if State.file:
        State.file.close()
    State.file = State.path = None


def start(path):
    """Begin a file beside the one it will replace."""
    close()
    folders = path.split("/")[1:-1]
    for i in range(len(folders)):
        try:
            os.mkdir("/" + "/".join(folders[: i + 1]))
        except OSError:  # it is there
            pass
    State.file, State.path, State.at = open(path + SUFFIX, "wb"), path, 0


def write(path, at, data):
    """Add bytes; returns how many there are, -1 where the file has to be begun anew."""
    if State.path != path:
        return -1
    if at == State.at:
        State.file.seek(at)
        State.file.write(data)
        State.at += len(data)
    return State.at


def finish(path):
    """The SHA-256 of what was written."""
    if State.path == path:
        close()
    return sha256(path + SUFFIX)


def swap(paths, stale):
    """Put new files in the place of the old ones, and take away what is of no use any more."""
    close()
    for path in paths:
        if is_file(path + SUFFIX):
            os.rename(path + SUFFIX, path)
    for path in stale:
        if is_file(path):
            os.remove(path)


def clean(root):
    """Remove what a transfer that was cut left behind."""
    close()
    for folder, found in files(root).items():
        for name, _ in found:
            if name.endswith(SUFFIX):
                os.remove(folder + "/" + name)


def read(path, at, size):
    with open(path, "rb") as file:
        file.seek(at)
        return binascii.b2a_base64(file.read(size)).decode().strip()


def P(*args):
    """In place of what collected this file: says again that it is here."""
    print("agent")


gc.collect()
