"""Moves of topics as people read them: the plan, one move in detail, one line of how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cli.output import Column, Row, fields, table, text, when
from cli.tables import Document, size, speed

TARGETS: Mapping[str, str] = {
    "create": "is created",
    "standby": "the standby becomes it",
    "reuse": "its copy is gone on with",
    "rebuild": "is emptied and filled anew",
}
TOPICS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("partitions", "partitions"),
    ("size", lambda row: size(row["bytes"])),
    ("to copy", lambda row: size(row["to_copy"])),
    ("kind", "kinds"),
    ("on the target", lambda row: TARGETS.get(row["target_topic"], row["target_topic"])),
    ("replicas", lambda row: _change(row["replicas"])),
    ("producers", "producers"),
    ("last write", lambda row: when(row["last_write"])),
    ("groups", lambda row: _groups(row["groups"])),
)
SETTINGS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("setting", "setting"),
    ("default there", "default"),
    ("is set to", "becomes"),
)
PARTS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("partitions", "partitions"),
    ("mirror", "condition"),
    ("lag", "lag"),
    ("lag bytes", lambda row: size(row["lag_bytes"])),
    ("rate", lambda row: speed(row["rate"])),
)


def plan(document: Document) -> None:
    """What `migrate` would do, or has begun."""
    for move in document["migrations"]:
        _move(move)
    for one in document["left_out"]:
        print(f"left out: {text(one)}")
    if document["problems"]:
        print("Nothing more is done, because of this:" if document["applied"] else "Nothing is done, because of this:")
        for one in document["problems"]:
            print(f"- {text(one)}")
    elif not document["migrations"]:
        print("There is nothing to move.")
    elif not document["applied"]:
        print("Nothing was changed; do it with --apply.")


def _move(move: Document) -> None:
    print(f"{move['source']} -> {move['target']}" + (f", operation {move['id']}" if move["id"] else ""))
    table(TOPICS, move["topics"], fold=True)
    disk, rate = move["disk"], move["rate"]
    about = duration(move["seconds"])
    fields(
        [
            (
                "to copy",
                f"{size(move['to_copy'])}, about {about} at {speed(rate['bytes_per_second'])} ({rate['because']})",
            ),
            (
                "disk",
                f"needs {size(disk['needed'])}, {move['target']} has {size(disk['free']) or 'an unknown amount'} free",
            ),
            *([("move along", move["transactional_ids"])] if move["transactional_ids"] else []),
            *([("takes over", move["takes_over"])] if move["takes_over"] else []),
        ]
    )
    rows = [
        {"topic": one["topic"], "setting": name, **values}
        for one in move["topics"]
        for name, values in one["settings"].items()
    ]
    if rows:
        print()
        table(SETTINGS, rows, fold=True)
    for one in _sentences(move):
        print(f"- {one}")
    print()


def _sentences(move: Document) -> Iterator[str]:
    for one in move["warnings"]:
        yield f"careful: {text(one)}"
    for one in move["notes"]:
        yield text(one)
    for topic in move["topics"]:
        for one in topic["notes"]:
            yield f"{text(topic['topic'])}: {text(one)}"


def operation(document: Document) -> None:
    """One move in detail."""
    now = document["migration"]
    fields(
        [
            ("operation", document["id"]),
            ("move", f"{now['source']} -> {now['target']}"),
            ("state", document["state"]),
            ("step", f"{now['step']}: {now['means']}" if now["means"] else now["step"]),
            ("waits for", now["waits"]),
            ("served by", now["serving"]),
            ("reason", now["reason"]),
            ("wanted", now["wanted"] if now["wanted"] != "run" else None),
            ("holds so far", now["attempt"] or None),
            ("writes were held", held(now)),
            ("behind", behind(now)),
            ("may have requests on their way", now["reopeners"] + now["retirers"] or None),
            ("taken over by", now["taken_over"]),
            ("transactional ids", now["transactional_ids"] or None),
            ("started", when(document["started"])),
            ("by", document["by"]),
        ]
    )
    print()
    table(PARTS, now["topics"])


def told(document: Document) -> str:
    """How far it is, in a line."""
    now = document["migration"]
    words = [f"{now['step']}"]
    if now["wanted"] != "run":
        words.append(f"({now['wanted']} wanted)")
    if (text_ := behind(now)) is not None:
        words.append(text_)
    if now["waits"] and now["step"] not in ("ship",):
        words.append(f"waits: {text(now['waits'])}")
    if now["reason"]:
        words.append(f"[{text(now['reason'])}]")
    return " ".join(words)


def behind(now: Document) -> str | None:
    if now["lag"] is None:
        return None
    parts = [f"{now['lag']} records behind"]
    if now["lag_bytes"]:
        parts[0] += f" ({size(now['lag_bytes'])})"
    if now["rate"]:
        parts.append(f"{speed(now['rate'])}")
    if now["seconds_left"] and now["seconds_left"] >= 1:
        parts.append(f"about {duration(now['seconds_left'])} left")
    return ", ".join(parts)


def held(now: Document) -> str | None:
    return f"{now['held_ms']:.0f} ms" if isinstance(now["held_ms"], int | float) else None


def duration(seconds: float) -> str:
    """As people say it."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"


def _change(values: Mapping[str, int]) -> Any:
    return values["from"] if values["from"] == values["to"] else f"{values['from']} becomes {values['to']}"


def _groups(groups: Mapping[str, Row]) -> str | None:
    shown = [f"{name} (lag {one['lag']})" if one["lag"] >= 0 else name for name, one in sorted(groups.items())]
    return text(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "") if shown else None
