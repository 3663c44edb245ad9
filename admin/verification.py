"""What both sides of mirrors hold, compared; answered piece by piece.

One request works for a few seconds and answers with what it has compared and a cursor, which the caller sends back.
So an audit of days needs no request that lasts for days, nothing goes on where nobody asks any more, and another
process may answer the next request: the cursor says everything. What was found out at the beginning (the journal, the
ends of the logs) is kept for a minute, only so that it need not be read again for every piece.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from admin.contract import Document, NotFound, Unavailable, Wrong
from kafka_client import ClientError, ClusterClient
from replicator.audit import Reach
from replicator.auditor import Auditor, Problem, Step
from replicator.findings import OTHER, Report

if TYPE_CHECKING:
    from metadata_service.member import Member
    from metadata_service.models import MirrorRecord

BUDGET = 5.0  # seconds of work for one answer
WAIT = 20.0  # ... and until it must be there: below what a request may take
KEPT_SECONDS = 60.0
KEPT = 16  # prepared audits
MAX_FINDINGS = 1000  # in one answer, for one partition
MAX_TOPICS = 1000
HOUR = 3600

Key = tuple[str, str, str]  # of a mirror: target, topic, source


class _Request(msgspec.Struct, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    """The body. `bucket` in seconds, `rate` in bytes a second, `since` in Unix ms."""

    topics: list[str]
    source: str | None = None
    target: str | None = None
    bucket: int = HOUR
    rate: int | None = None
    since: int | None = None
    cursor: str | None = None


class _Cursor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The mirror and partition to go on with; `reach` is what is left of it, None: it has not begun."""

    mirror: Key
    partition: int
    reach: Reach | None


@dataclass(slots=True)
class _Prepared:
    auditor: Auditor
    clients: tuple[ClusterClient, ClusterClient]
    until: float


class Verification:
    """Answers `verify`; what it keeps is bounded, and can be lost at any time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], _Prepared] = OrderedDict()

    async def verify(self, member: Member, body: Mapping[str, object]) -> Document:
        """The next piece of an audit.

        Raises:
            Wrong: the body cannot be meant. NotFound: a topic has no such mirror.
            Unavailable: a cluster does not answer; the same request may be sent again.
        """
        asked, cursor = _parsed(body)
        mirrors = _chosen(member.view.mirrors, asked)
        pieces: list[Document] = []
        size = 0
        deadline = trio.current_time() + BUDGET
        with trio.move_on_after(WAIT) as waited:
            while not pieces or trio.current_time() < deadline:
                key = next((one for one in sorted(mirrors) if cursor is None or one >= cursor.mirror), None)
                if key is None:
                    return _answer(pieces, size, None)
                if cursor is None or cursor.mirror != key:
                    cursor = _Cursor(key, 0, None)
                try:
                    piece, count, following = await self._piece(member, mirrors[key], asked, cursor, deadline)
                except Unavailable:
                    if not pieces:
                        raise
                    break  # the next request will say so, if it is still so
                size += count
                cursor = following
                if piece is not None:
                    pieces.append(piece)
                if cursor is None:
                    after = next((one for one in sorted(mirrors) if one > key), None)
                    if after is None:
                        return _answer(pieces, size, None)
                    cursor = _Cursor(after, 0, None)
        if waited.cancelled_caught and not pieces:
            raise Unavailable(f"the clusters gave nothing to compare within {WAIT:.0f} s")
        return _answer(pieces, size, cursor)

    async def _piece(
        self, member: Member, mirror: MirrorRecord, asked: _Request, cursor: _Cursor, deadline: float
    ) -> tuple[Document | None, int, _Cursor | None]:
        """(what was compared, bytes, where to go on in this mirror: None where it is done)."""
        number, reach = cursor.partition, cursor.reach
        head: Document = {
            "topic": mirror.topic,
            "source": mirror.source,
            "target": mirror.target,
            "mode": mirror.mode,
            "partition": number,
        }
        try:
            auditor = await self._auditor(member, mirror, asked, anew=not number and reach is None)
        except Problem as problem:
            return {**head, "partition": None, "done": True, "problem": str(problem)}, 0, None
        if number >= auditor.partitions:
            return None, 0, None
        following = _Cursor(cursor.mirror, number + 1, None) if number + 1 < auditor.partitions else None
        report = Report(asked.bucket * 1000, MAX_FINDINGS)
        try:
            seconds = max(deadline - trio.current_time(), 0.0)
            step = await auditor.step(number, reach, report, seconds=seconds)
        except Problem as problem:
            return {**head, "done": True, "problem": str(problem)}, 0, following
        except ClientError as error:
            raise Unavailable(str(error)) from None
        if step.left is not None:
            following = _Cursor(cursor.mirror, number, step.left)
        return {**head, **_document(step)}, step.bytes, following

    async def _auditor(self, member: Member, mirror: MirrorRecord, asked: _Request, *, anew: bool) -> Auditor:
        clients = _client(member, mirror.source), _client(member, mirror.target)
        key = (mirror.target, mirror.topic, mirror.source, asked.since, asked.rate)
        now = trio.current_time()
        found = self._kept.get(key)
        if not anew and found is not None and found.until > now and found.clients == clients:
            return found.auditor
        opened = _opened(member, mirror)
        auditor = Auditor(*clients, mirror.topic, mirror.mode, since=asked.since, rate=asked.rate, opened=opened)
        try:
            await auditor.prepare()
        except ClientError as error:
            raise Unavailable(str(error)) from None
        self._kept[key] = _Prepared(auditor, clients, trio.current_time() + KEPT_SECONDS)
        self._kept.move_to_end(key)
        for old in [one for one, each in self._kept.items() if each.until <= now]:
            del self._kept[old]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return auditor


def _opened(member: Member, mirror: MirrorRecord) -> Callable[[int], tuple[int, int]] | None:
    """Where the mirror's source serves a topic from that has moved there."""
    served = member.view.topics.get(mirror.topic)
    if mirror.mode != "ship" or served is None or served.cluster != mirror.source or not served.record.epoch:
        return None
    placement = served.record.timeline[-1]
    return lambda number: (placement.first.get(number, 0), placement.first_physical.get(number, 0))


def _parsed(body: Mapping[str, object]) -> tuple[_Request, _Cursor | None]:
    try:
        asked = msgspec.convert(dict(body), _Request)
    except msgspec.ValidationError as error:
        raise Wrong(str(error)) from None
    if not 0 < len(asked.topics) <= MAX_TOPICS:
        raise Wrong(f"topics: the names of 1 to {MAX_TOPICS} topics")
    if asked.bucket < 1:
        raise Wrong("bucket: a number of seconds, 1 or more")
    if asked.rate is not None and asked.rate < 1:
        raise Wrong("rate: a number of bytes a second, 1 or more")
    if asked.since is not None and asked.since < 0:
        raise Wrong("since: Unix milliseconds")
    if asked.cursor is None:
        return asked, None
    try:
        cursor = msgspec.json.decode(base64.urlsafe_b64decode(asked.cursor), type=_Cursor)
    except (ValueError, msgspec.DecodeError):
        raise Wrong("cursor: none that was given out here") from None
    if cursor.partition < 0 or (cursor.reach is not None and min(cursor.reach) < 0):
        raise Wrong("cursor: none that was given out here")
    return asked, cursor


def _chosen(mirrors: Mapping[Key, MirrorRecord], asked: _Request) -> dict[Key, MirrorRecord]:
    found = {
        key: one
        for key, one in mirrors.items()
        if one.topic in asked.topics
        and asked.source in (None, one.source)
        and asked.target in (None, one.target)
        and one.state != "removing"
    }
    missing = sorted({*asked.topics} - {one.topic for one in found.values()})
    if missing:
        way = "".join(f" {word} {name!r}" for word, name in (("from", asked.source), ("to", asked.target)) if name)
        raise NotFound(f"no mirror{way} of {', '.join(map(repr, missing))}")
    return found


def _client(member: Member, cluster: str) -> ClusterClient:
    client = member.clients.get(cluster)
    if client is None:
        raise Unavailable(f"cluster {cluster!r} is not part of the federation")
    return client


def _answer(pieces: Sequence[Document], size: int, cursor: _Cursor | None) -> Document:
    encoded = base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode() if cursor is not None else None
    return {"pieces": list(pieces), "bytes": size, "cursor": encoded}


def _document(step: Step) -> Document:
    report = step.report
    buckets: list[dict[str, Any]] = [
        {
            "start": start if start != OTHER else None,
            "source": one.source,
            "target": one.target,
            "identical": one.identical,
            "missing": one.missing,
            "extra": one.extra,
            "changed": one.changed,
            "compacted": one.compacted,
            "source_digest": f"{one.source_digest:016x}",
            "target_digest": f"{one.target_digest:016x}",
        }
        for start, one in sorted(report.buckets.items())
    ]
    return {
        "done": step.left is None,
        "problem": None,
        "from": {"source": step.reach.source, "target": step.reach.target},
        "to": {"source": step.reach.source_end, "target": step.reach.target_end},
        "buckets": buckets,
        "findings": [
            {
                "kind": one.kind,
                "records": one.records,
                "source": one.source,
                "target": one.target,
                "time": one.time,
                "what": one.what,
            }
            for one in report.findings
        ],
        "left_out": report.left_out,
        "not_compared": [{"side": one.side, "from": one.first, "to": one.end, "why": one.why} for one in step.gaps],
    }
