"""What a mirror writes down on its target: intents, tables, guards, and the registry of its producer ids.

All of it are records of one compacted topic. A stream is one partition of one mirror; its records lie in one partition
of the topic, those of a unit (partitions that share a producer identity) together. The registry has partition 0 to
itself. A checkpoint is one atomic batch: changed chunks of runs, changed producers, and the state, which says from
which intent on the others count. Intents take SLOTS keys in turn, so that compaction leaves few of them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from offset_sync.guard import Entry, Guard, Noted
from offset_sync.table import Table
from offset_sync.varints import Damaged

TOPIC = "__kfed_mirror"
PARTITIONS = 17
REGISTRY = 0
SLOTS = 256
UNIT_SIZE = 32  # partitions of a topic that share an identity; it decides where their journal is, so it cannot change
VERSION = 1
CONFIGS = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.bytes": str(32 << 20),
    "max.message.bytes": str(8 << 20),
    "compression.type": "producer",
    "message.timestamp.type": "CreateTime",
}

STATE, TABLE, CHUNK, GUARD, INTENT, LOST, PRODUCER = b"S", b"T", b"C", b"G", b"I", b"L", b"P"

_STREAM = struct.Struct(">c16siB")
_NUMBER = struct.Struct(">q")
_STATE = struct.Struct(">Bqqqi16sqhq")
_INTENT = struct.Struct(">Bqqhqii")
_STRETCH = struct.Struct(">iiqqiq")
_NOTED = struct.Struct(">qhiiq")

Pair = tuple[bytes, bytes | None]


class Stream(NamedTuple):
    """One partition of one mirror. `topic_id` is the target's own, so a topic created anew begins anew.

    `scope` is empty for a ship, whose table is in logical offsets; in exchange it is the source's name.
    """

    topic_id: bytes
    partition: int
    scope: str = ""

    def key(self, kind: bytes, number: int = 0) -> bytes:
        name = self.scope.encode()
        return _STREAM.pack(kind, self.topic_id, self.partition, len(name)) + name + _NUMBER.pack(number)


class Stretch(NamedTuple):
    """Records that advance together on all sides: `sequence`, `source` (physical) and `logical` with each record.

    `next` is the source offset behind the last, which may leave out what is not copied.
    """

    sequence: int
    records: int
    source: int
    next: int
    leader_epoch: int
    logical: int


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be written, by whom. `number` counts intents of the stream."""

    number: int
    producer_id: int
    producer_epoch: int
    at: int  # Unix ms
    stretches: tuple[Stretch, ...]
    guards: tuple[Noted, ...]

    def encode(self) -> bytes:
        parts = [
            _INTENT.pack(
                VERSION,
                self.number,
                self.producer_id,
                self.producer_epoch,
                self.at,
                len(self.stretches),
                len(self.guards),
            )
        ]
        parts += [_STRETCH.pack(*one) for one in self.stretches]
        parts += [_NOTED.pack(one.producer_id, *one.entry) for one in self.guards]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Intent:
        """Raises Damaged."""
        try:
            version, number, producer_id, epoch, at, stretches, guards = _INTENT.unpack_from(data)
            if version != VERSION:
                raise Damaged(f"an intent of version {version}")
            pos = _INTENT.size
            found = []
            for _ in range(stretches):
                found.append(Stretch(*_STRETCH.unpack_from(data, pos)))
                pos += _STRETCH.size
            noted = []
            for _ in range(guards):
                producer, *entry = _NOTED.unpack_from(data, pos)
                noted.append(Noted(producer, at, Entry(*entry)))
                pos += _NOTED.size
        except struct.error as error:
            raise Damaged(f"an intent: {error}") from None
        return cls(number, producer_id, epoch, at, tuple(found), tuple(noted))


@dataclass(frozen=True, slots=True)
class State:
    """Where a stream stands. Intents below `number` are contained; target offsets below `scanned` are accounted for."""

    number: int = 0
    position: int = -1  # the next source offset to copy; -1: from the source's log start on
    scanned: int = 0
    leader_epoch: int = -1  # the source's, of the last batch in front of `position`
    source_id: bytes = bytes(16)  # the source's topic id
    producer_id: int = -1
    producer_epoch: int = -1
    records: int = 0  # copied in all
    source: str = ""  # the cluster `position` counts on

    def encode(self) -> bytes:
        return (
            _STATE.pack(
                VERSION,
                self.number,
                self.position,
                self.scanned,
                self.leader_epoch,
                self.source_id,
                self.producer_id,
                self.producer_epoch,
                self.records,
            )
            + self.source.encode()
        )

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Raises Damaged."""
        try:
            version, *rest = _STATE.unpack_from(data)
            source = data[_STATE.size :].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise Damaged(f"a state: {error}") from None
        if version != VERSION:
            raise Damaged(f"a state of version {version}")
        return replace(cls(*rest), source=source)


@dataclass(slots=True)
class Stored:
    """A stream as the topic has it."""

    state: State | None = None
    table: bytes | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)
    guards: dict[int, bytes] = field(default_factory=dict)
    intents: dict[int, bytes] = field(default_factory=dict)  # by slot
    lost: str = ""  # how the target was found to have lost data: fences that follow would hide it

    def open_intents(self) -> list[Intent]:
        """Those the state does not contain, in order. Damaged: one is missing."""
        first = self.state.number if self.state is not None else 0
        found = [Intent.decode(one) for one in self.intents.values()]
        found = sorted((one for one in found if one.number >= first), key=lambda one: one.number)
        if [one.number for one in found] != list(range(first, first + len(found))):
            raise Damaged(f"intents {[one.number for one in found]} where {first} is next")
        return found

    def load_table(self) -> Table:
        return Table.load(self.table, self.chunks.items())

    def load_guard(self) -> Guard:
        guard = Guard()
        for producer_id, data in self.guards.items():
            guard.load(producer_id, data)
        guard.settle()
        return guard


@dataclass(slots=True)
class Contents:
    """The newest value of every key read so far; feed records in the order of the log."""

    streams: dict[Stream, Stored] = field(default_factory=dict)
    producers: dict[int, bytes] = field(default_factory=dict)

    def feed(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        for key, value in records:
            if key is None:
                continue
            kind = key[:1]
            if kind == PRODUCER and len(key) == 9:
                producer_id = _NUMBER.unpack_from(key, 1)[0]
                if value is not None:
                    self.producers[producer_id] = value
                continue
            try:
                _, topic_id, partition, size = _STREAM.unpack_from(key)
                name = key[_STREAM.size : _STREAM.size + size].decode()
                number = _NUMBER.unpack_from(key, _STREAM.size + size)[0]
            except (struct.error, UnicodeDecodeError):
                continue  # of a later version
            self._keep(self.streams.setdefault(Stream(topic_id, partition, name), Stored()), kind, number, value)

    @staticmethod
    def _keep(stored: Stored, kind: bytes, number: int, value: bytes | None) -> None:
        if kind == STATE:
            stored.state = None if value is None else State.decode(value)
        elif kind == TABLE:
            stored.table = value
        elif kind == LOST:
            stored.lost = "" if value is None else value.decode(errors="replace")
        else:
            kept = {CHUNK: stored.chunks, GUARD: stored.guards, INTENT: stored.intents}.get(kind)
            if kept is None:
                return
            if value is None:
                kept.pop(number, None)
            else:
                kept[number] = value


def producer_pair(producer_id: int, owner: str) -> Pair:
    """The registry's record of an id, written before its first use."""
    return PRODUCER + _NUMBER.pack(producer_id), owner.encode()


def intent_pair(stream: Stream, intent: Intent) -> Pair:
    return stream.key(INTENT, intent.number % SLOTS), intent.encode()


def checkpoint_pairs(stream: Stream, state: State, table: Table, guard: Guard) -> list[Pair]:
    """The records of a checkpoint, the state last; table and guard then count from here."""
    out: list[Pair] = []
    for number, data in table.checkpoint().items():
        out.append((stream.key(TABLE), data) if number < 0 else (stream.key(CHUNK, number), data))
    out += [(stream.key(GUARD, producer_id), one) for producer_id, one in guard.checkpoint().items()]
    out.append((stream.key(STATE), state.encode()))
    return out


def lost_pair(stream: Stream, detail: str) -> Pair:
    """That the target lost what it had acknowledged; until somebody rebuilds it."""
    return stream.key(LOST), detail.encode()


def tombstones(stream: Stream, stored: Stored) -> list[Pair]:
    """What deletes everything a stream has, the state first: without it the rest means nothing."""
    out: list[Pair] = [(stream.key(STATE), None), (stream.key(TABLE), None), (stream.key(LOST), None)]
    for kind, kept in ((CHUNK, stored.chunks), (GUARD, stored.guards), (INTENT, stored.intents)):
        out += [(stream.key(kind, number), None) for number in kept]
    return out


def unit_name(scope: str, topic: str, number: int) -> str:
    """A unit's transactional id. Of a ship it does not depend on the source: whoever ships next fences the last."""
    return f"kfed-mirror.{f'exchange.{scope}' if scope else 'ship'}.{topic}.{number}"


def partition_of(unit: str) -> int:
    """The topic's partition that holds a unit's streams."""
    return 1 + zlib.crc32(unit.encode()) % (PARTITIONS - 1)
