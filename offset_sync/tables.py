"""Offset tables read from a cluster's journal, by whoever needs them: other mirrors, commands, proxies.

`Following` keeps the tables of the partitions it was asked for and nothing else, and brings them up to date by tailing
the journal. A partition without a stored state was never a mirror's target: its table is the plain one. What is
complete when is said in `offset_sync.kept`; `held` is a complete answer for one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from kafka_client import BrokerUnavailable, ClientError, ClusterClient, Refused
from kafka_client.cluster import backoff
from kafka_client.topics import (
    EARLIEST,
    FETCH,
    LATEST,
    READ_BYTES,
    RETRIABLE,
    LogReader,
    TopicInfo,
    describe,
    fetched,
    offsets,
)
from kafka_wire.batches import walk, whole
from kafka_wire.codec import DecodeError, Message
from kafka_wire.errors import ERROR
from kafka_wire.records import decode_records, fields_of
from offset_sync import journal
from offset_sync.journal import Stream
from offset_sync.kept import SHIP, Held, Keeper, Kept
from offset_sync.recovered import Found, Inconsistent, Recovered
from offset_sync.varints import Damaged
from runtime import logging

log = logging.get(__name__)

READ_SECONDS = 60.0  # for one partition of the journal, or one scan
POLL_SECONDS = 0.5
TAIL_MS = 500  # how long a waiting Fetch waits at a broker


@dataclass(slots=True)
class _Part:
    """One partition of the journal. `position` is the next offset to read, -1 before the first read."""

    number: int
    keeper: Keeper = field(default_factory=Keeper)
    position: int = -1


class Following:
    """The tables of one cluster, for partitions that were asked for. `run` it to have them kept up to date."""

    def __init__(self, client: ClusterClient, *, guards: bool = False, seconds: float = READ_SECONDS) -> None:
        """`guards`: keep the producers' entries too; `seconds` bounds each first reading."""
        self._client = client
        self._guards = guards
        self._seconds = seconds
        self._parts: dict[int, _Part] = {}
        self._reading = trio.Lock()
        self._info: TopicInfo | None = None  # the journal's, until something fails
        self._hurried = False
        self._regroup = trio.Event()  # what is tailed is no longer what should be
        self._news = trio.Event()

    async def follow(
        self, topic: str, partitions: Iterable[int], scopes: Sequence[str] = (SHIP,)
    ) -> dict[tuple[int, str], Kept]:
        """Begin to keep these tables, by (partition, scope); all of them are as the journal has them now.

        Raises:
            Refused: no such topic (3), or the cluster does not answer in time; and as `ClusterClient.call`.
            Damaged: the journal holds what is no table.
        """
        found = await self.follow_all({topic: partitions}, scopes)
        if topic not in found:
            raise Refused(f"{self._client.name}: topic {topic!r}", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
        return found[topic]

    async def follow_all(
        self, topics: Mapping[str, Iterable[int]], scopes: Sequence[str] = (SHIP,)
    ) -> dict[str, dict[tuple[int, str], Kept]]:
        """The same for several topics, which takes one reading; those that do not exist are left out."""
        infos = await describe(self._client, list(topics))
        out: dict[str, dict[tuple[int, str], Kept]] = {name: {} for name in infos}
        new: dict[int, tuple[_Part, list[Kept]]] = {}
        async with self._reading:
            for topic, info in infos.items():
                for number in topics[topic]:
                    for scope in scopes:
                        unit = journal.unit_name(scope, topic, number // journal.UNIT_SIZE)
                        part = self._parts.setdefault(journal.partition_of(unit), _Part(journal.partition_of(unit)))
                        stream = Stream(info.topic.id, number, scope)
                        kept = part.keeper.streams.get(stream)
                        if kept is None:
                            kept = Kept(stream, guards=self._guards)
                            new.setdefault(part.number, (part, []))[1].append(kept)
                        out[topic][number, scope] = kept
            if new:
                exists = journal.TOPIC in await describe(self._client, [journal.TOPIC])
                for number, (part, some) in new.items():
                    await self._join(part, some, exists)
                    self._parts[number] = part  # `forget` may have found nothing in it yet
                self._regroup.set()
            await self._poll()
        return out

    def forget(self, streams: Iterable[Stream]) -> None:
        """Keep these no longer; a part of the journal that nobody needs is read no longer."""
        gone = set(streams)
        for number, part in list(self._parts.items()):
            for stream in gone & part.keeper.streams.keys():
                part.keeper.remove(stream)
            if not part.keeper.streams:
                del self._parts[number]
                self._regroup.set()

    def hurry(self, on: bool) -> None:
        """Whether `run` is to know at once what is added, by waiting at the brokers, instead of asking now and then."""
        if on != self._hurried:
            self._hurried = on
            self._regroup.set()

    async def changed(self) -> None:
        """Until something was read."""
        await self._news.wait()

    async def refresh(self) -> None:
        """Read what was added up to now. Raises as `follow`."""
        async with self._reading:
            await self._poll()

    async def run(self, poll: float = POLL_SECONDS) -> None:
        """Until cancelled: while brokers answer, tables are at most about `poll` seconds behind the journal."""
        failures = 0
        while True:
            if not self._hurried:
                with trio.move_on_after(poll):
                    await self._regroup.wait()
            self._regroup = trio.Event()
            try:
                await self.refresh()
                if self._hurried:
                    await self._tail()
                failures = 0
            except (ClientError, Damaged, DecodeError) as error:
                failures += 1
                log.debug("a journal cannot be read", cluster=self._client.name, error=str(error))
                await trio.sleep(backoff(failures))

    async def _tail(self) -> None:
        """Wait at the leaders for what is added, until the parts or their leaders are others. Raises as `follow`."""
        info = self._info
        by_leader: dict[int, list[_Part]] = {}
        for one in self._parts.values():
            if info is not None and one.keeper.streams and one.position >= 0:
                by_leader.setdefault(info.partitions[one.number].leader, []).append(one)
        if info is None or not by_leader:  # no mirror has ever written to this cluster
            with trio.move_on_after(TAIL_MS / 10_000):
                await self._regroup.wait()
            return
        failed: list[Exception] = []

        async def one_leader(leader: int, parts: list[_Part]) -> None:
            try:
                await self._tail_leader(info, leader, parts)
            except (ClientError, Damaged, DecodeError) as error:
                failed.append(error)
            self._regroup.set()

        async with trio.open_nursery() as nursery:
            for leader, parts in by_leader.items():
                nursery.start_soon(one_leader, leader, parts)
            await self._regroup.wait()
            nursery.cancel_scope.cancel()
        if failed:
            self._info = None
            raise failed[0]

    async def _tail_leader(self, info: TopicInfo, leader: int, parts: list[_Part]) -> None:
        """Returns where somebody else leads by now."""
        async with self._client.dedicated(leader) as connection:
            good = True
            while good:
                asked = {one.number: one.position for one in parts}
                answer = await connection.call(FETCH, _asking(info, parts, TAIL_MS), None, TAIL_MS / 1000 + 10)
                async with self._reading:
                    good = self._answered(answer, {one.number: one for one in parts}, asked, {})[0]
                if any(one.position < 0 for one in parts):
                    return  # to be read from the beginning
        self._info = None

    # -- reading --------------------------------------------------------------------------------------------------

    async def _join(self, part: _Part, some: list[Kept], exists: bool) -> None:
        """Read the part for new streams: up to where it was read for the others."""
        keeper = Keeper()
        for kept in some:
            keeper.add(kept)
        if exists:
            place = [part.number]
            start = (await offsets(self._client, journal.TOPIC, place, EARLIEST))[part.number]
            end = part.position
            if end < 0:
                end = (await offsets(self._client, journal.TOPIC, place, LATEST))[part.number]
            await self._bulk(keeper, part.number, start, end)
            part.position = end
        for kept in some:
            kept.settle()
            part.keeper.add(kept)

    async def _bulk(self, keeper: Keeper, number: int, start: int, end: int) -> None:
        reader = LogReader(self._client, journal.TOPIC, number, start, seconds=self._seconds)
        while reader.offset < end:
            part = await reader.next(wait_ms=0)
            if not len(part):
                return  # compaction left nothing up to there
            _feed(keeper, part, end)

    async def _poll(self) -> None:
        """Read all parts up to their ends, those of one leader with one request at a time."""
        parts = [one for one in self._parts.values() if one.keeper.streams]
        deadline = trio.current_time() + self._seconds
        failures = 0
        ends: dict[int, int] = {}
        while parts:
            if self._info is None:
                self._info = (await describe(self._client, [journal.TOPIC])).get(journal.TOPIC)
            info = self._info
            if info is None:
                return  # no mirror has ever written to this cluster
            unread = [one for one in parts if one.position < 0]
            if unread:
                starts = await offsets(self._client, journal.TOPIC, [one.number for one in unread], EARLIEST)
                for one in unread:
                    one.position = starts[one.number]
            by_leader: dict[int, list[_Part]] = {}
            for one in parts:
                if ends.get(one.number, one.position + 1) > one.position:
                    by_leader.setdefault(info.partitions[one.number].leader, []).append(one)
            if not by_leader:
                for one in parts:
                    _settle(one)
                return
            failed = False
            for leader, some in by_leader.items():
                failed = leader < 0 or not await self._poll_leader(info, leader, some, ends) or failed
            if failed:
                failures += 1
                self._info = None
                if trio.current_time() > deadline:
                    raise Refused(f"{self._client.name}: reading {journal.TOPIC}", ERROR.REQUEST_TIMED_OUT)
                await trio.sleep(backoff(failures))

    async def _poll_leader(self, info: TopicInfo, leader: int, parts: list[_Part], ends: dict[int, int]) -> bool:
        """One request; False where it has to be asked again, perhaps elsewhere."""
        asked = {one.number: one.position for one in parts}
        try:
            answer = await self._client.call(FETCH, _asking(info, parts, 0), broker=leader)
        except BrokerUnavailable:
            return False
        good, silent = self._answered(answer, {one.number: one for one in parts}, asked, ends)
        if good and silent:  # compaction left nothing up to the ends
            for part in parts:
                part.position = max(part.position, ends.get(part.number, part.position))
        return good

    def _answered(
        self, answer: Message, by_number: Mapping[int, _Part], asked: Mapping[int, int], ends: dict[int, int]
    ) -> tuple[bool, bool]:
        """(whether all of it could be read, whether it was nothing). Refused: a leader refuses for good."""
        if answer.get("error_code"):
            raise Refused(f"{self._client.name}: Fetch", answer["error_code"])
        good, silent = True, True
        for topic in answer["responses"]:
            for each in topic["partitions"]:
                got = fetched(journal.TOPIC, each)
                part = by_number[got.partition]
                if part.position != asked[got.partition]:
                    continue  # it was read otherwise while this answer was on its way
                if got.error == ERROR.OFFSET_OUT_OF_RANGE:
                    self._again(part)
                elif got.error in RETRIABLE:
                    good = False
                elif got.error:
                    raise Refused(f"{self._client.name}: reading {journal.TOPIC}-{got.partition}", got.error)
                else:
                    ends.setdefault(got.partition, got.high_watermark)
                    silent = not self._take(part, whole(got.records)) and silent
        return good, silent

    def _take(self, part: _Part, records: memoryview) -> bool:
        try:
            part.position = max(part.position, _feed(part.keeper, records))
        except Damaged:
            log.info("records of a journal were missed; reading it anew", cluster=self._client.name, part=part.number)
            self._again(part)
        if len(records):
            self._news.set()
            self._news = trio.Event()
        return len(records) > 0

    @staticmethod
    def _again(part: _Part) -> None:
        """From the beginning, as the tables need what was missed."""
        part.position = -1
        for kept in part.keeper.streams.values():
            kept.restart()


def _asking(info: TopicInfo, parts: Iterable[_Part], wait_ms: int) -> Message:
    asked = [
        {"partition": one.number, "fetch_offset": one.position, "partition_max_bytes": READ_BYTES} for one in parts
    ]
    return {
        "max_wait_ms": wait_ms,
        "min_bytes": 1 if wait_ms else 0,
        "max_bytes": READ_BYTES,
        "session_epoch": -1,
        "topics": [{"topic": journal.TOPIC, "topic_id": info.topic.id, "partitions": asked}],
    }


def _settle(part: _Part) -> None:
    for kept in part.keeper.streams.values():
        kept.settle()


def _feed(keeper: Keeper, records: memoryview, end: int = -1) -> int:
    """Feed what lies below `end` (-1: everything); returns the offset behind it, -1 for nothing."""
    position = -1
    for one in walk(records):
        if 0 <= end <= one.base_offset:
            break
        position = one.next_offset
        if one.records and not one.control:
            keeper.feed(fields_of(record.body)[:2] for record in decode_records(records, one))
    return position


# -- for one moment ----------------------------------------------------------------------------------------------------


async def held(following: Following, client: ClusterClient, topic: str, partition: int, scopes: Sequence[str]) -> Held:
    """The present state of a partition: table, positions and log, with open intents judged by the log.

    Raises:
        Refused: no such topic or partition (3), or no answer in time; and as `ClusterClient.call`.
        Damaged, Inconsistent: the journal contradicts the log, or cannot be read.
    """
    start = (await offsets(client, topic, [partition], EARLIEST))[partition]
    end = (await offsets(client, topic, [partition], LATEST))[partition]  # before the journal: see Kept.judged
    found = await following.follow(topic, [partition], scopes)
    written: dict[str, Recovered] = {}
    for (_, scope), kept in found.items():
        if kept.lost:
            raise Inconsistent(f"{client.name} has lost records of {topic}-{partition}: {kept.lost}")
        if kept.state is not None:
            tail = []
            if kept.intents and kept.covered < end:
                tail = await _tail(client, topic, partition, kept, max(kept.covered, start), end)
            written[scope] = kept.judged(tail, end, start)
    return Held(start, end, written)


async def _tail(
    client: ClusterClient, topic: str, partition: int, kept: Kept, start: int, end: int, seconds: float = READ_SECONDS
) -> list[Found]:
    """The mirror's batches from `start` to `end`; never more than its open intents announce."""
    ours = {(one.producer_id, one.producer_epoch) for one in kept.open_intents()}
    out: list[Found] = []
    reader = LogReader(client, topic, partition, start, seconds=seconds)
    while reader.offset < end:
        part = await reader.next(wait_ms=0)
        if not len(part):
            break
        for one in walk(part):
            if one.next_offset > start and one.base_offset < end and one.records and not one.control:
                found = Found(one.base_offset, one.producer_id, one.producer_epoch, one.base_sequence, one.records)
                if (found.producer_id, found.epoch) in ours:
                    out.append(found)
    return out


__all__ = ["SHIP", "Following", "Held", "held"]
