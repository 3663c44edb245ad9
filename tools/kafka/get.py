"""Gets the Kafka release named in pom.xml, once per machine.

The jars lie outside the work tree, under `${KFED_CACHE:-${XDG_CACHE_HOME:-~/.cache}/kfed}/kafka-<version>/`, in a
directory named after the hash of pom.xml: a changed pom.xml gets a new one, and nobody ever sees one half-filled.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
CONNECT = Path(__file__).with_name("connect.xml")  # MirrorMaker's, and all of POM
PACKAGES = {"java": "openjdk-17-jre-headless", "javac": "openjdk-17-jdk-headless", "mvn": "maven"}


class MissingProgram(RuntimeError):
    """A program is missing and may not be installed from here; the message says what to install."""


def version() -> str:
    found = re.search(r"<kafka\.version>([^<]+)<", POM.read_text())
    if found is None:
        raise ValueError(f"{POM} names no kafka.version")
    return found[1]


def cache() -> Path:
    """The directory of this release: jars, compiled test client, formatted storage."""
    configured = os.environ.get("KFED_CACHE")
    base = (
        Path(configured) if configured else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kfed"
    )
    return base / f"kafka-{version()}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock ends with its holder, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build_into: functools.partial[None]) -> Path:
    """`target`, made by `build_into(directory=...)` if it does not exist yet; it appears whole or not at all."""
    if target.exists():
        return target
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                build_into(directory=scratch)
                scratch.chmod(0o755)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def require(*programs: str) -> None:
    """Installs what is missing where that is possible (root on Debian), otherwise says exactly what to install."""
    packages = [PACKAGES[program] for program in programs if shutil.which(program) is None]
    if not packages:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingProgram(f"missing: {', '.join(packages)} (Debian: sudo {' '.join(command)})")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"installing {', '.join(packages)} ...", file=sys.stderr, flush=True)
    with locked(cache().parent / ".apt.lock"):
        # The package lists of a fresh image may be empty or old: refresh them only when a first try fails.
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            subprocess.run(["apt-get", "update"], env=environment, stdout=subprocess.DEVNULL, check=True)
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def _copy_jars(pom: Path, directory: Path) -> None:
    require("java", "mvn")
    print(f"getting Kafka {version()} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [
            "mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies",
            "-DincludeScope=runtime", f"-DoutputDirectory={directory}",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"maven could not get Kafka {version()}:\n{done.stdout}")


@functools.cache
def libs(pom: Path = POM) -> Path:
    """The directory with the jars that `pom` names; gets them first where they are missing."""
    named = POM.read_bytes() + (pom.read_bytes() if pom != POM else b"")
    digest = hashlib.sha256(named).hexdigest()[:8]
    return build_once(cache() / f"libs-{digest}", functools.partial(_copy_jars, pom))


@functools.cache
def jars(pom: Path = POM) -> tuple[Path, ...]:
    return tuple(sorted(libs(pom).glob("*.jar")))


def main() -> None:
    try:
        require("java", "javac")
        print(libs())
    except MissingProgram as missing:
        sys.exit(str(missing))


if __name__ == "__main__":
    main()
