"""The message definitions of the protocol, parsed from messages.json (KIP-482 format, made by tools/schema)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

Direction = Literal["request", "response"]


@dataclass(frozen=True, slots=True)
class Versions:
    """An inclusive range of versions; empty where `low > high`."""

    low: int
    high: int

    def __contains__(self, version: int) -> bool:
        return self.low <= version <= self.high

    @classmethod
    def parse(cls, text: str) -> Versions:
        """`"3+"`, `"0-4"`, `"7"` or `"none"`."""
        if text == "none":
            return cls(0, -1)
        if text.endswith("+"):
            return cls(int(text[:-1]), 32767)
        low, _, high = text.partition("-")
        return cls(int(low), int(high or low))


NEVER = Versions(0, -1)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. `type` is the element type where `array` is set; structs have `fields`."""

    name: str
    type: str
    array: bool
    versions: Versions
    nullable: Versions
    flexible: Versions | None
    tagged: Versions
    tag: int | None
    default: Any
    entity: str | None
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """One message: a request, a response, a header, or data stored in records."""

    name: str
    type: str
    key: int | None
    versions: Versions
    flexible: Versions
    unstable: bool
    fields: tuple[Field, ...] = field(default=())

    def walk(self) -> Iterator[tuple[str, Field]]:
        """Every field with its dotted path, parents before children."""

        def down(fields: tuple[Field, ...], prefix: str) -> Iterator[tuple[str, Field]]:
            for one in fields:
                yield prefix + one.name, one
                yield from down(one.fields, f"{prefix}{one.name}.")

        yield from down(self.fields, "")


INTEGERS = {"int8": "b", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q"}
ZERO_UUID = bytes(16)


def _default(raw: dict[str, Any], kind: str, array: bool, nested: tuple[Field, ...]) -> Any:
    given = raw.get("default")
    if given == "null":
        return None
    if array:
        return []
    if kind in INTEGERS:
        return int(str(given), 0) if given not in (None, "") else 0
    if kind == "bool":
        return str(given).lower() == "true"
    if kind == "float64":
        return float(given or 0)
    if kind == "string":
        return given or ""
    if kind in ("bytes", "records"):
        return b""
    if kind == "uuid":
        return ZERO_UUID
    return {one.name: one.default for one in nested}


def _field(raw: dict[str, Any]) -> Field:
    kind = raw["type"]
    array = kind.startswith("[]")
    kind = kind.removeprefix("[]")
    nested = tuple(_field(f) for f in raw.get("fields", ()))
    return Field(
        name=raw["name"],
        type=kind,
        array=array,
        versions=Versions.parse(raw["versions"]),
        nullable=Versions.parse(raw["nullableVersions"]) if "nullableVersions" in raw else NEVER,
        flexible=Versions.parse(raw["flexibleVersions"]) if "flexibleVersions" in raw else None,
        tagged=Versions.parse(raw["taggedVersions"]) if "taggedVersions" in raw else NEVER,
        tag=raw.get("tag"),
        default=_default(raw, kind, array, nested),
        entity=raw.get("entityType"),
        fields=nested,
    )


@cache
def document() -> dict[str, Any]:
    """The raw document: `kafka` (the release it was made from), `internal` (key -> name), `messages`."""
    parsed: dict[str, Any] = json.loads(resources.files("kafka_wire").joinpath("messages.json").read_bytes())
    return parsed


@cache
def definitions() -> dict[str, Definition]:
    """Every definition by its name (`"FetchRequest"`)."""
    out = {}
    for raw in document()["messages"]:
        out[raw["name"]] = Definition(
            name=raw["name"],
            type=raw["type"],
            key=raw.get("apiKey"),
            versions=Versions.parse(raw["validVersions"]),
            flexible=Versions.parse(raw["flexibleVersions"]),
            unstable=raw["unstable"],
            fields=tuple(_field(f) for f in raw["fields"]),
        )
    return out


@cache
def by_key(direction: Direction) -> dict[int, Definition]:
    """Requests, or responses, by API key."""
    return {d.key: d for d in definitions().values() if d.type == direction and d.key is not None}
