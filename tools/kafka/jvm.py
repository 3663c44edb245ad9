"""How a JVM with Kafka's classes is started: one place for heap, JIT, logging and the class data archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.kafka import get

LOG4J = Path(__file__).with_name("log4j2.xml")

# Starting is most of what a test JVM does: the client compiler alone starts twice as quick and is warm at once.
QUICK_START = ("-XX:TieredStopAtLevel=1",)


def classpath(*extra: Path, pom: Path = get.POM) -> str:
    # Kafka's jars come first and in a fixed order: a class data archive only fits the class path it was made with.
    return ":".join(str(path) for path in (*get.jars(pom), *extra))


def command(
    main: str,
    arguments: Sequence[str] = (),
    *,
    heap: str = "256m",
    full_jit: bool = False,
    extra_classpath: Sequence[Path] = (),
    properties: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    pom: Path = get.POM,
) -> list[str]:
    """`pom` names the jars."""
    get.require("java")
    system = {
        "log4j2.configurationFile": str(LOG4J),
        "log4j2.disable.jmx": "true",
        "java.awt.headless": "true",
        **(properties or {}),
    }
    return [
        "java",
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        *(() if full_jit else QUICK_START),
        *options,
        *(f"-D{name}={value}" for name, value in system.items()),
        "-cp",
        classpath(*extra_classpath, pom=pom),
        main,
        *arguments,
    ]
