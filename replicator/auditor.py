"""Audits one mirror: reads both logs in large pieces while traffic flows, and has them compared.

What is compared is what the mirror's newest checkpoint contains when an audit begins: so lag is no finding. Behind it,
a ship's target is still searched for batches that no mirror wrote. The journal is only read; nothing is fenced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import trio

from kafka_client import ClusterClient, Refused
from kafka_client.topics import EARLIEST, LATEST, LogReader, TopicInfo, describe, offsets
from kafka_wire.batches import Batch, walk
from kafka_wire.codec import DecodeError
from kafka_wire.errors import ERROR
from kafka_wire.records import decode_records, fields_of
from offset_sync import journal
from offset_sync.journal import Contents, Stored, Stream
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.audit import Comparison, Reach, Rules, Side
from replicator.claim import read_registry
from replicator.feeder import Limit
from replicator.findings import Report
from replicator.link import UNIT_SIZE, Mode, own_table
from replicator.prepare import configs

JOURNAL_SECONDS = 60.0
READ_SECONDS = 10.0  # beyond a step's own time, until a log that gives nothing fails the step
READ_BYTES = 2 << 20  # of one fetch: larger ones cost more, since every one's memory is then new to the process
LEAST_READ = 64 << 10
PAUSE_SECONDS = 2.0  # that a rate may prolong a step


class Problem(Exception):
    """This cannot be audited, and trying again does not help."""


class Gap(NamedTuple):
    """Offsets `first` to `end` (exclusive) of a side that were not compared, and why."""

    side: str
    first: int
    end: int
    why: str


@dataclass(slots=True)
class Step:
    """What came of some seconds' work on one partition. `left`: what is still to be compared, None for nothing."""

    report: Report
    reach: Reach  # as it began
    left: Reach | None
    gaps: list[Gap]
    bytes: int = 0  # read, of both sides


@dataclass(frozen=True, slots=True)
class Logs:
    """Where the logs of both sides begin and end, by partition."""

    source_start: Mapping[int, int]
    source_end: Mapping[int, int]  # the last stable offset
    target_start: Mapping[int, int]
    target_end: Mapping[int, int]
    target_stable: Mapping[int, int]
    since: Mapping[int, int]  # the source's first offset of the time asked for; -1: none


@dataclass(frozen=True, slots=True)
class _Known:
    """What is found out once for a mirror."""

    source: TopicInfo
    target: TopicInfo
    logs: Logs
    source_ids: Mapping[int, bytes]  # that mirrors use
    target_ids: Mapping[int, bytes]
    compacts: tuple[bool, bool]
    streams: Mapping[int, Mapping[Stream, Stored]]  # by partition of the journal
    upstream: Mapping[Stream, Stored]  # of the source, where it is a ship's target itself


class Auditor:
    """`prepare`, then `step` through each of `partitions`. The clients stay the caller's."""

    def __init__(
        self,
        source: ClusterClient,
        target: ClusterClient,
        topic: str,
        mode: Mode,
        *,
        since: int | None = None,
        rate: float | None = None,
        read_bytes: int = READ_BYTES,
        source_table: Callable[[str, int], Table] | None = None,
        opened: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        """`since` (Unix ms): nothing in front of the first record of that time or later is compared.

        `rate`: bytes a second, of both sides together, None for no limit; `read_bytes`: of one fetch, about.
        `source_table` gives the table of a source partition; without, the source's own journal tells. `opened`: where
        a source that the topic has moved to serves it from, by partition: (logical, physical) offset.
        """
        self.topic = topic
        self.partitions = 0
        self._source = source
        self._target = target
        self._mode = mode
        self._since = since
        self._source_table = source_table
        self._opened = opened
        self._limit = Limit(rate)
        self._read_bytes = read_bytes if rate is None else min(read_bytes, max(int(rate / 2), LEAST_READ))
        self._known: _Known | None = None

    async def prepare(self) -> None:
        """Find out where both logs begin and end, what mirrors wrote, and the journal.

        Raises:
            Problem: one side has no such topic.
            ClientError: a cluster does not answer.
        """
        source = (await describe(self._source, [self.topic])).get(self.topic)
        target = (await describe(self._target, [self.topic])).get(self.topic)
        for client, info in ((self._source, source), (self._target, target)):
            if info is None:
                raise Problem(f"{client.name} has no topic {self.topic!r}")
        assert source is not None and target is not None
        journal_info = (await describe(self._target, [journal.TOPIC])).get(journal.TOPIC)
        if journal_info is None:
            raise Problem(f"{self._target.name}: no mirror has begun")
        self.partitions = len(source.partitions)
        both = sorted(source.partitions.keys() & target.partitions.keys())
        # The journal first: what it contains is in both logs. The registries last: every id of what is in front of the
        # logs' ends is in them.
        streams: dict[int, dict[Stream, Stored]] = {}
        for number in sorted({self._journal(one) for one in both}):
            streams[number] = await self._streams(self._target, number, target.topic.id)
        upstream: dict[Stream, Stored] = {}
        asks = self._mode == "ship" and self._source_table is None
        if asks and journal.TOPIC in await describe(self._source, [journal.TOPIC]):
            for number in sorted(streams):  # a ship's part of the journal is the same on every cluster
                upstream |= await self._streams(self._source, number, source.topic.id)
        logs = Logs(
            await offsets(self._source, self.topic, both, EARLIEST),
            await offsets(self._source, self.topic, both, LATEST, committed=True),
            await offsets(self._target, self.topic, both, EARLIEST),
            await offsets(self._target, self.topic, both, LATEST),
            await offsets(self._target, self.topic, both, LATEST, committed=True),
            await offsets(self._source, self.topic, both, self._since) if self._since is not None else {},
        )
        policies = [(await configs(one, self.topic)).values.get("cleanup.policy") for one in self._clients]
        self._known = _Known(
            source,
            target,
            logs,
            await read_registry(self._source, expected=False),
            await read_registry(self._target, expected=False),
            ("compact" in (policies[0] or ""), "compact" in (policies[1] or "")),
            streams,
            upstream,
        )

    @property
    def _clients(self) -> tuple[ClusterClient, ClusterClient]:
        return self._source, self._target

    @property
    def _scope(self) -> str:
        return "" if self._mode == "ship" else self._source.name

    def _unit(self, partition: int) -> str:
        return journal.unit_name(self._scope, self.topic, partition // UNIT_SIZE)

    def _journal(self, partition: int) -> int:
        return journal.partition_of(self._unit(partition))

    async def _streams(self, client: ClusterClient, number: int, topic_id: bytes) -> dict[Stream, Stored]:
        """This topic's streams out of one partition of the journal, up to its present end."""
        end = (await offsets(client, journal.TOPIC, [number], LATEST))[number]
        start = (await offsets(client, journal.TOPIC, [number], EARLIEST))[number]
        contents = Contents()
        reader = LogReader(client, journal.TOPIC, number, start, seconds=JOURNAL_SECONDS)
        while reader.offset < end:
            part = await reader.next()
            await trio.to_thread.run_sync(_feed, contents, part)
        return {stream: one for stream, one in contents.streams.items() if stream.topic_id == topic_id}

    # -- one partition --------------------------------------------------------------------------------------------

    async def step(self, number: int, left: Reach | None, report: Report, *, seconds: float) -> Step:
        """Compare for about so long: from the beginning, or what an earlier step has left. Always gets ahead.

        Raises:
            Problem: there is nothing to compare with.
            ClientError: a cluster does not answer; the same step may be tried again.
        """
        assert self._known is not None
        known = self._known
        if number not in known.logs.target_start:
            raise Problem(f"{self._target.name} has no partition {number}")
        stored = known.streams[self._journal(number)].get(Stream(known.target.topic.id, number, self._scope))
        if stored is None or stored.state is None:
            raise Problem("no mirror has copied anything of it yet")
        tables = self._table_of_source(number), _table(stored)
        gaps: list[Gap] = []
        if left is None:
            reach, gaps = self._begin(number, stored, tables)
        else:
            starts = known.logs.source_start[number], known.logs.target_start[number]
            reach = _clipped(left, starts, tables)
        made = Step(report, reach, reach, gaps)
        comparison = Comparison(reach, *tables, self._rules(number, reach.scanned), report)
        readers = [
            LogReader(
                client,
                self.topic,
                number,
                comparison.position(side),
                seconds=seconds + READ_SECONDS,
                committed=True,
                read_bytes=self._read_bytes,
            )
            for side, client in zip(Side, self._clients, strict=True)
        ]
        deadline = trio.current_time() + seconds
        while (side := comparison.wants) is not None:
            if trio.current_time() > deadline and comparison.reach != reach:
                break
            reader = readers[side]
            reader.offset = comparison.position(side)
            # Behind an open transaction on the target, which is not the mirror's, its batches are read all the same.
            reader.committed = side is Side.SOURCE or reader.offset < known.logs.target_stable[number]
            try:
                data = await reader.next()
                if not len(data):
                    continue
                comparison.feed(side, data, reader.aborted)
                if comparison.unsettled:  # records are looked at, which may take long
                    await trio.to_thread.run_sync(comparison.settle)
            except DecodeError as error:
                raise Problem(f"{self._clients[side].name} at offset {reader.offset}: {error}") from None
            except Refused as error:
                if error.code != ERROR.OFFSET_OUT_OF_RANGE:
                    raise
                reach, more = await self._cut(number, side, comparison.reach, tables)
                gaps += more
                comparison = Comparison(reach, *tables, self._rules(number, reach.scanned), report)
                continue
            made.bytes += len(data)
            with trio.move_on_after(max(deadline - trio.current_time(), 0.0) + PAUSE_SECONDS):
                await self._limit.spend(len(data))  # what is not waited for here, the next step waits for
        made.left = comparison.reach if comparison.wants is not None else None
        return made

    def _table_of_source(self, number: int) -> Table:
        assert self._known is not None
        if self._source_table is not None:
            return self._source_table(self.topic, number)
        stored = self._known.upstream.get(Stream(self._known.source.topic.id, number))
        if self._opened is None:
            return own_table(self.topic, number) if stored is None or stored.state is None else _table(stored)
        table = Table() if stored is None or stored.state is None else _table(stored)
        if table.own is None:
            table.open(*self._opened(number))
        return table

    def _begin(self, number: int, stored: Stored, tables: tuple[Table, Table]) -> tuple[Reach, list[Gap]]:
        assert self._known is not None and stored.state is not None
        logs, state = self._known.logs, stored.state
        source, target = tables
        position = state.position
        if state.source not in ("", self._source.name):  # its offsets are another cluster's: this one has not begun
            end = target.runs.end
            position = -1 if end is None else source.physical(end.logical) or 0
        if position < 0:
            raise Problem("no mirror has copied anything of it yet")
        starts = logs.source_start[number], logs.target_start[number]
        ends = logs.source_end[number], logs.target_end[number]
        whole = _clipped(Reach(0, min(position, ends[0]), 0, ends[1], state.scanned, 0), starts, tables)
        since = logs.since.get(number, 0)
        reach = whole
        if self._since is not None:
            first = min(since if since >= 0 else ends[0], whole.source_end)
            reach = _clipped(whole._replace(floor=max(whole.floor, source.logical(first) or 0)), starts, tables)
        gaps: list[Gap] = []
        earlier = "older than the time asked for"
        behind = "the {} log begins behind them"
        for side, begins, other, all_of_it, part in (
            ("source", starts[0], "target's", whole.source, reach.source),
            ("target", starts[1], "source's", whole.target, reach.target),
        ):
            gaps += [Gap(side, begins, all_of_it, behind.format(other))] if begins < all_of_it else []
            gaps += [Gap(side, all_of_it, part, earlier)] if all_of_it < part else []
        if position < ends[0]:
            gaps.append(Gap("source", position, ends[0], "not mirrored yet when this began"))
        return reach, gaps

    async def _cut(self, number: int, side: Side, reach: Reach, tables: tuple[Table, Table]) -> tuple[Reach, list[Gap]]:
        """Retention was faster than we: go on where both logs begin now."""
        now = (await offsets(self._clients[side], self.topic, [number], EARLIEST))[number]
        position = reach.source if side is Side.SOURCE else reach.target
        if now <= position:
            client = self._clients[side]
            raise Refused(f"{client.name}: reading {self.topic}-{number} at {position}", ERROR.OFFSET_OUT_OF_RANGE)
        made = _clipped(reach, (now, 0) if side is Side.SOURCE else (0, now), tables)
        why = "deleted while this ran"
        gaps = [Gap("source", reach.source, made.source, why)] if made.source > reach.source else []
        return made, [*gaps, Gap("target", reach.target, made.target, why)] if made.target > reach.target else gaps

    def _rules(self, number: int, scanned: int) -> Rules:
        assert self._known is not None
        known = self._known
        stable = known.logs.target_stable[number]
        registered = known.target_ids
        ours = {one for one, owner in registered.items() if owner.endswith(b" " + self._unit(number).encode())}

        def shipped(batch: Batch) -> bool:
            if batch.transactional and batch.base_offset >= stable:
                return False  # not decided yet
            # Behind the checkpoint may lie what the mirror has written since, or what it has not accounted for.
            return batch.base_offset < scanned or batch.producer_id not in registered

        def exchanged(batch: Batch) -> bool:
            return batch.base_offset < scanned and batch.producer_id in ours

        if self._mode == "ship":
            return Rules(frozenset(), shipped, *known.compacts)
        return Rules(frozenset(known.source_ids), exchanged, *known.compacts)


def _clipped(reach: Reach, starts: tuple[int, int], tables: tuple[Table, Table]) -> Reach:
    """What both logs still hold, where they begin at `starts`: from the later of the two on."""
    source, target = tables
    floor = max(reach.floor, target.log_start, _floor(source, starts[0]), _floor(target, starts[1]))
    at = [max(reach.source, starts[0]), max(reach.target, starts[1])]
    if floor > 0:
        at[0] = max(at[0], source.physical(floor) or 0)
        at[1] = max(at[1], target.physical(floor) or 0)
    return reach._replace(
        source=min(at[0], max(reach.source_end, reach.source)),
        target=min(at[1], max(reach.target_end, reach.target)),
        floor=floor,
    )


def _floor(table: Table, start: int) -> int:
    """The logical offset below which a log that begins at `start` can hold nothing."""
    if not start:
        return 0
    if table.linear(start, 1) is not None:
        return table.logical(start) or 0
    below = deque(table.between(0, start - 1), maxlen=1)  # the last run in front of it
    return below[0].logical + below[0].length if below else 0


def _table(stored: Stored) -> Table:
    """Complete up to what its state has scanned. Raises Problem."""
    assert stored.state is not None
    try:
        table = stored.load_table()
    except Damaged as error:
        raise Problem(f"its journal cannot be read: {error}") from None
    table.cut_from(stored.state.scanned)
    return table


def _feed(contents: Contents, part: memoryview) -> None:
    for one in walk(part):
        if not one.control and one.records:
            contents.feed(fields_of(record.body)[:2] for record in decode_records(part, one))
