"""What tools build with Debian 12: its packages, and sources of it and of later releases."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCES = (
    "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    "http://deb.debian.org/debian {} main\n"
)


PATIENCE = ("-o", "DPkg::Lock::Timeout=300")  # seconds, while another apt is at work


class ToolError(Exception):
    """A step failed; the message says which and what to do."""


class Workshop:
    """A folder in which something is built; what the commands print goes into its file `log`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "log"

    def run(self, *command: str | Path, cwd: Path | None = None) -> None:
        """Runs a command; raises ToolError with the end of the log if it fails."""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            log.flush()
            result = subprocess.run(
                command, cwd=cwd, env=environment, stdout=log, stderr=log, check=False
            )
        if result.returncode:
            tail = self.log.read_text(errors="replace").splitlines()[-8:]
            raise ToolError(
                f"`{' '.join(map(str, command))}` failed; the end of {self.log}:\n"
                + "\n".join(tail)
            )

    def install(self, needed: Iterable[str | Path], packages: Iterable[str]) -> None:
        """Installs packages unless all `needed`, names of programs or files, are there.

        Raises ToolError where that takes another user or system.
        """
        if all(shutil.which(one) or Path(one).is_absolute() and Path(one).exists()
               for one in needed):  # fmt: skip
            return
        install = f"apt-get install --no-install-recommends {' '.join(packages)}"
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise ToolError(f"Debian 12 packages are missing: run `{install}` as root")
        self.run("apt-get", "update", *PATIENCE)
        self.run(*install.split(), "--yes", *PATIENCE)

    def fetch_source(self, package: str, release: str) -> Path:
        """Fetches the upstream tar of a source package of a Debian release; returns its path.

        It lies in the folder `apt`, as do package lists of its own: the system's stay as they are.
        """
        apt = self.folder / "apt"
        (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "sources.list").write_text(SOURCES.format(release))
        options = [
            *("-o", f"Dir::Etc::SourceList={apt / 'sources.list'}"),
            *("-o", "Dir::Etc::SourceParts=-"),
            *("-o", f"Dir::State::Lists={apt / 'lists'}"),
            *("-o", f"Dir::Cache={apt}"),
            *("-o", f"APT::Sandbox::User={os.environ.get('USER', 'root')}"),
        ]
        self.run("apt-get", "update", *options)
        self.run("apt-get", "source", "--download-only", "--tar-only", *options, package, cwd=apt)
        return next(apt.glob(f"{package}_*.orig.tar.xz"))
