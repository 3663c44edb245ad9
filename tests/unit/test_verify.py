"""`kfed verify` without clusters: the cursor followed, pieces added up, what is printed, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from admin.contract import NotFound, Wrong
from admin.verification import Verification
from cli import verify
from cli.api import ApiError
from cli.main import main
from cli.usage import Usage
from metadata_service.models import MirrorRecord

Document = dict[str, Any]


def bucket(start: int | None, identical: int, **more: int) -> Document:
    figures = dict.fromkeys(verify.FIGURES, 0) | {"identical": identical, **more}
    figures["source"] = identical + figures["missing"] + figures["changed"]
    figures["target"] = identical + figures["extra"] + figures["changed"]
    return {"start": start, **figures, "source_digest": "ffffffffffffffff", "target_digest": "0000000000000001"}


def piece(partition: int | None = 0, **more: Any) -> Document:
    return {
        "topic": "orders",
        "source": "east",
        "target": "west",
        "mode": "ship",
        "partition": partition,
        "done": True,
        "problem": None,
        "from": {"source": 0, "target": 0},
        "to": {"source": 9, "target": 9},
        "buckets": [],
        "findings": [],
        "left_out": 0,
        "not_compared": [],
        **more,
    }


def finding(kind: str, source: tuple[int, int] | None, target: tuple[int, int] | None, **more: Any) -> Document:
    span = source or target
    assert span is not None
    return {
        "kind": kind,
        "records": span[1] - span[0] + 1,
        "source": source and list(source),
        "target": target and list(target),
        "time": 5,
        "what": [],
        **more,
    }


def told(*answers: Document | ApiError) -> tuple[Callable[[str | None], Document], list[str | None]]:
    asked: list[str | None] = []
    left = list(answers)

    def ask(cursor: str | None) -> Document:
        asked.append(cursor)
        one = left.pop(0)
        if isinstance(one, ApiError):
            raise one
        return one

    return ask, asked


def test_pieces_are_added_up_and_the_cursor_is_followed() -> None:
    missing = finding("missing", (3, 5), None)
    ask, asked = told(
        {"pieces": [piece(buckets=[bucket(0, 4)], findings=[missing], done=False)], "bytes": 5, "cursor": "a"},
        ApiError("away", 503),
        ApiError("nobody", 0),
        {
            "pieces": [
                piece(
                    buckets=[bucket(0, 2), bucket(None, 1)],
                    findings=[finding("missing", (6, 7), None), finding("extra", None, (9, 9))],
                    left_out=2,
                    to={"source": 20, "target": 20},
                ),
                piece(1),
            ],
            "bytes": 6,
            "cursor": None,
        },
    )
    pauses: list[float] = []
    found = verify.gathered(ask, pause=pauses.append)
    assert asked == [None, "a", "a", "a"] and pauses == [1.0, 2.0]
    first, second = found["partitions"]
    assert found["bytes"] == 11 and not found["identical"]
    assert [(one["start"], one["identical"]) for one in first["buckets"]] == [(None, 1), (0, 6)]
    assert first["buckets"][1]["source_digest"] == "fffffffffffffffe"  # sums, which wrap around
    assert first["records"]["identical"] == 7 and first["from"]["source"] == 0 and first["to"]["source"] == 20
    assert [(one["kind"], one["records"], one["source"]) for one in first["findings"]] == [
        ("missing", 5, [3, 7]),
        ("extra", 1, None),
    ]
    assert (first["left_out"], second["partition"], second["findings"]) == (2, 1, [])


def test_what_is_asked_first_is_not_repeated() -> None:
    ask, asked = told(ApiError("no admin API", 0))
    with pytest.raises(ApiError):
        verify.gathered(ask)
    assert asked == [None]


def test_a_cluster_that_stays_away_ends_it() -> None:
    first = {"pieces": [], "bytes": 0, "cursor": "a"}
    ask, asked = told(first, *(ApiError("away", 503) for _ in range(20)))
    with pytest.raises(ApiError, match="away"):
        verify.gathered(ask, pause=lambda _: None)
    assert len(asked) == 2 + verify.RETRIES


def test_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    many = [finding("extra", None, (n * 2, n * 2)) for n in range(30)]
    answer = {
        "pieces": [
            piece(
                buckets=[bucket(3_600_000, 10, missing=3, extra=30, changed=1)],
                findings=[finding("changed", (7, 7), (8, 8), what=["value"]), finding("missing", (3, 5), None), *many],
                not_compared=[{"side": "source", "from": 0, "to": 3, "why": "the target's log begins behind them"}],
            ),
            piece(None, problem="west has no topic 'orders'"),
        ],
        "bytes": 1,
        "cursor": None,
    }
    found = verify.gathered(told(answer)[0])
    verify.show(found, 3600)
    text = capsys.readouterr().out
    for line in (
        "orders-0 east -> west: changed (value): 1 record: east 7, west 8",
        "orders-0 east -> west: missing: 3 records: east 3-5, never arrived on west",
        "orders-0 east -> west: extra: 1 record: of no mirror, west 0",
        "orders-0 east -> west: 12 more (--json shows up to 1000)",
        "orders-0 east -> west: not compared: east 0-2: the target's log begins behind them",
        "orders east -> west: west has no topic 'orders'",
        "Not identical.",
    ):
        assert line in text.splitlines()
    heading, row = text.splitlines()[:2]
    columns = "TOPIC FROM TO PARTITION RECORDS OF RECORDS IDENTICAL MISSING EXTRA CHANGED COMPACTED"
    assert heading.split() == columns.split()
    assert row.split()[-6:] == ["14", "10", "3", "30", "1", "0"]


def test_what_was_not_compared_is_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    gap = {"side": "source", "from": 0, "to": 9, "why": "not mirrored yet when this began"}
    for one, last in (
        (piece(), "Identical."),  # an empty topic
        (piece(not_compared=[gap]), "Not known yet: nothing was compared; ask again."),
        (piece(not_compared=[gap], buckets=[bucket(0, 5)]), "Identical."),
    ):
        verify.show(verify.gathered(told({"pieces": [one], "bytes": 1, "cursor": None})[0]), 3600)
        assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800)])
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert verify.seconds_of(text) == seconds
    assert verify.since_of(text, 200_000.0) == (200_000 - seconds) * 1000
    assert verify.since_of("1970-01-02T00:00+00:00", 0.0) == 86_400_000


@pytest.mark.parametrize("line", ["--bucket 0h", "--bucket 1", "--rate 0", "--rate 5x", "--since yesterday"])
def test_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "orders", *line.split(), "--admin", "http://127.0.0.1:1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(Usage):
        verify.size_of("-1")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"topics": []}, Wrong),
        ({"topics": ["orders"], "bucket": 0}, Wrong),
        ({"topics": ["orders"], "rate": 0}, Wrong),
        ({"topics": ["orders"], "cursor": "AAAA"}, Wrong),
        ({"topics": ["orders"], "cursor": "W1sid2VzdCIsIm9yZGVycyIsImVhc3QiXSwtMSxudWxsXQ=="}, Wrong),  # partition -1
        ({"topics": ["orders"], "other": 1}, Wrong),
        ({"topics": ["orders", "bills"]}, NotFound),
        ({"topics": ["orders"], "from": "west"}, NotFound),
    ],
)
async def test_requests_that_cannot_be_meant(body: Document, error: type[Exception]) -> None:
    mirror = MirrorRecord(topic="orders", source="east", target="west", mode="ship", created=0)
    view = SimpleNamespace(mirrors={("west", "orders", "east"): mirror})
    with pytest.raises(error):
        await Verification().verify(SimpleNamespace(view=view), body)  # type: ignore[arg-type]
