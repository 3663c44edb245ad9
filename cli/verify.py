"""`kfed verify`: asks for an audit piece by piece, adds the pieces up, and prints what differs."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from cli import api, output
from cli.output import Column
from cli.usage import DONE, FAILED, Usage, settings_of

SHOWN = 20  # findings of a partition that people are shown
KEPT = 1000  # ... and programs
RETRIES = 6  # of one request, with pauses that grow; an answer that is late or a cluster that is away may come back
AGAIN = frozenset({0, 502, 503, 504})
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}
FIGURES = ("source", "target", "identical", "missing", "extra", "changed", "compacted")

Document = dict[str, Any]

BUCKETS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("from", "source"),
    ("to", "target"),
    ("partition", "partition"),
    ("records of", "when"),
    ("records", "records"),
    ("identical", "identical"),
    ("missing", "missing"),
    ("extra", "extra"),
    ("changed", "changed"),
    ("compacted", "compacted"),
)


def run(options: argparse.Namespace) -> int:
    """DONE where both sides hold the same, FAILED where anything differs or nothing could be compared."""
    asked: Document = {
        "topics": options.topics,
        "from": options.source,
        "to": options.target,
        "bucket": seconds_of(options.bucket),
        "rate": size_of(options.rate) if options.rate is not None else None,
        "since": since_of(options.since, time.time()) if options.since is not None else None,
    }
    settings = settings_of(options, needed=False)
    where = api.address(settings, options.admin, options.token_file)
    found = gathered(lambda cursor: api.request(where, "POST", "verify", {**asked, "cursor": cursor}), _progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if options.json:
        output.document(found)
    else:
        show(found, asked["bucket"])
    return DONE if found["identical"] and compared(found) else FAILED


def gathered(
    ask: Callable[[str | None], Document],
    progress: Callable[[Document], None] = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> Document:
    """Follow the cursor to its end. Raises ApiError; the first request is not repeated."""
    partitions: dict[tuple[object, ...], Document] = {}
    size = 0
    cursor: str | None = None
    failures = 0
    while True:
        try:
            answer = ask(cursor)
        except api.ApiError as error:
            failures += 1
            if cursor is None or error.status not in AGAIN or failures > RETRIES:
                raise
            pause(min(0.5 * 2**failures, 10.0))
            continue
        failures = 0
        size += answer["bytes"]
        for piece in answer["pieces"]:
            key = tuple(piece[name] for name in ("topic", "source", "target", "partition"))
            _add(partitions.setdefault(key, {name: piece[name] for name in ("mode",)}), piece)
        progress({"bytes": size, "pieces": answer["pieces"]})
        cursor = answer["cursor"]
        if cursor is None:
            break
    rows = [
        {**dict(zip(("topic", "source", "target", "partition"), key, strict=True)), **one}
        for key, one in partitions.items()
    ]
    return {"identical": all(_identical(one) for one in rows), "bytes": size, "partitions": rows}


def _add(into: Document, piece: Document) -> None:
    """One more piece of a partition."""
    into["problem"] = into.get("problem") or piece["problem"]
    total = into.setdefault("records", dict.fromkeys(FIGURES, 0))
    buckets: list[Document] = into.setdefault("buckets", [])
    findings: list[Document] = into.setdefault("findings", [])
    into.setdefault("left_out", 0)
    into.setdefault("not_compared", [])
    if piece["problem"]:
        return
    into.setdefault("from", piece["from"])
    into["to"] = piece["to"]
    into["not_compared"] += piece["not_compared"]
    known = {one["start"]: one for one in buckets}
    for one in piece["buckets"]:
        for name in FIGURES:
            total[name] += one[name]
        mine = known.get(one["start"])
        if mine is None:
            buckets.append(dict(one))
            continue
        for name in FIGURES:
            mine[name] += one[name]
        for name in ("source_digest", "target_digest"):
            mine[name] = f"{(int(mine[name], 16) + int(one[name], 16)) & (1 << 64) - 1:016x}"
    buckets.sort(key=lambda one: -1 if one["start"] is None else one["start"])
    for one in piece["findings"]:
        if not (findings and not into["left_out"] and _joined(findings[-1], one)):
            if len(findings) < KEPT:
                findings.append(one)
            else:
                into["left_out"] += 1
    into["left_out"] += piece["left_out"]


def _joined(last: Document, one: Document) -> bool:
    """Whether a finding goes on where the last one of the piece before ended; it is then part of that."""
    if (last["kind"], last["what"]) != (one["kind"], one["what"]):
        return False
    for side in ("source", "target"):
        if (last[side] is None) != (one[side] is None) or (last[side] and last[side][1] + 1 != one[side][0]):
            return False
    for side in ("source", "target"):
        if last[side]:
            last[side] = [last[side][0], one[side][1]]
    last["records"] += one["records"]
    last["time"] = max(last["time"], one["time"])
    return True


def _identical(one: Document) -> bool:
    return not one["problem"] and not one["findings"] and not one["left_out"]


# -- for people ---------------------------------------------------------------------------------------------------


def show(found: Document, bucket: int) -> None:
    """The document as tables: counts by partition and time, then findings, then what was not compared."""
    rows = [
        {
            **{name: one[name] for name in ("topic", "partition")},
            **{name: each[name] for name in FIGURES},
            "records": each["source"],
            **{name: one[name] for name in ("source", "target")},
            "when": _when(each["start"], bucket),
        }
        for one in found["partitions"]
        for each in one.get("buckets", ())
    ]
    output.table(BUCKETS, rows, empty="Nothing was compared.")
    lines = [line for one in found["partitions"] for line in _lines(one)]
    if lines:
        print()
    for line in lines:
        print(line)
    print()
    if not found["identical"]:
        print("Not identical.")
    else:
        print("Identical." if compared(found) else "Not known yet: nothing was compared; ask again.")


def compared(found: Document) -> bool:
    """Whether anything was compared, or there was nothing to compare: a mirror that has just begun is no proof."""
    parts = found["partitions"]
    return any(one.get("buckets") for one in parts) or not any(one["not_compared"] for one in parts)


def _lines(one: Mapping[str, Any]) -> Iterable[str]:
    place = f"{one['topic']}{'' if one['partition'] is None else '-' + str(one['partition'])}"
    where = output.text(f"{place} {one['source']} -> {one['target']}")
    if one["problem"]:
        yield f"{where}: {output.text(one['problem'])}"
    for each in one["findings"][:SHOWN]:
        many = f"{each['records']} record{'' if each['records'] == 1 else 's'}"
        sides = [
            f"{one[side]} {_span(each[side])}" if each[side] else f"in no run on {one[side]}"
            for side in ("source", "target")
        ]
        if each["kind"] == "missing" and not each["target"]:
            sides[1] = f"never arrived on {one['target']}"
        elif each["kind"] == "extra" and not each["source"]:
            sides[0] = "of no mirror"
        what = f" ({', '.join(each['what'])})" if each["what"] else ""
        yield f"{where}: {each['kind']}{what}: {many}: {', '.join(sides)}"
    left = one["left_out"] + max(len(one["findings"]) - SHOWN, 0)
    if left:
        yield f"{where}: {left} more{' (--json shows up to 1000)' if not one['left_out'] else ''}"
    for gap in one["not_compared"]:
        cluster = one[gap["side"]]
        yield f"{where}: not compared: {cluster} {_span((gap['from'], gap['to'] - 1))}: {gap['why']}"


def _span(one: Any) -> str:
    return str(one[0]) if one[0] == one[1] else f"{one[0]}-{one[1]}"


def _when(start: int | None, bucket: int) -> str:
    if start is None:
        return "other times"
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start / 1000))
    return text.removesuffix(":00") if bucket % 60 == 0 else text


def _progress(answer: Document) -> None:
    if answer["pieces"] and sys.stderr.isatty():
        last = answer["pieces"][-1]
        line = f"{last['topic']}-{last['partition']}: {answer['bytes'] / 1e6:.0f} MB read"
        print(f"\r\033[K{output.text(line)}", end="", file=sys.stderr, flush=True)


# -- what is typed ------------------------------------------------------------------------------------------------


def seconds_of(text: str) -> int:
    """`90s`, `15m`, `1h` or `2d`. Raises Usage."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None or not int(found[1]):
        raise Usage(f"{text!r} is no length of time; write it like 15m, 1h or 2d")
    return int(found[1]) * _UNITS[found[2]]


def size_of(text: str) -> int:
    """Bytes: `500000`, `500k`, `20M` or `1G`. Raises Usage."""
    found = re.fullmatch(r"(\d{1,12})([kMG]?)", text)
    if found is None or not int(found[1]):
        raise Usage(f"{text!r} is no number of bytes; write it like 500000, 500k or 20M")
    return int(found[1]) * _SIZES[found[2]]


def since_of(text: str, now: float) -> int:
    """Unix ms of a length of time before `now` (`2d`), or of a date and time (`2026-11-20T14:00`). Raises Usage."""
    if re.fullmatch(r"\d+[smhd]", text):
        return max(int((now - seconds_of(text)) * 1000), 0)
    try:
        made = datetime.fromisoformat(text)
    except ValueError:
        raise Usage(f"{text!r} is no time; write it like 2h, 2026-11-20 or 2026-11-20T14:00") from None
    return max(int(made.timestamp() * 1000), 0)


__all__ = ["gathered", "run", "show"]
