"""Compiles the Java side into the cache, once for each state of its sources and of Kafka's jars."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

from tools.kafka import get, jvm

SOURCES = Path(__file__).with_name("src")
MAIN = "testclient.Main"


def _compile(sources: list[Path], directory: Path) -> None:
    get.require("java", "javac")
    done = subprocess.run(
        [
            "javac",
            "-Xlint:all,-classfile,-processing,-serial",
            "-Werror",
            "-d",
            str(directory),
            "-cp",
            jvm.classpath(),
            *map(str, sources),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the Java test client does not compile:\n{done.stdout}")


def classes() -> Path:
    """The directory with the compiled classes."""
    sources = sorted(SOURCES.rglob("*.java"))
    digest = hashlib.sha256(get.libs().name.encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    target = get.cache() / f"java-client-{digest.hexdigest()[:12]}"
    return get.build_once(target, functools.partial(_compile, sources))
