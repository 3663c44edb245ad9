"""What was seen of the world, as values. Nothing here is recorded, nothing outlives the recorded state it belongs to.

Who gathers them keeps three rules. What brokers said (settings, probes, ends, transactions) was asked *after* the
present record was read, and is thrown away when the record changes. `workers` and all records were read from the store
itself, not from a view that may lag. A worker whose lease's key is gone from the store counts as not fresh: its own
count ended no later, since it began before the renewal was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import msgspec

from metadata_service.models import HomeRecord, MirrorRecord, StubRecord, TopicRecord
from metadata_service.operations.records import HoldReport

Record = TypeVar("Record", bound=msgspec.Struct)
Part = tuple[str, int]
Probe = Literal["open", "closed", "unknown"]


@dataclass(frozen=True, slots=True)
class Known(Generic[Record]):
    """A record and the store revision at which it was last written."""

    value: Record
    revision: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered proxy worker. `fresh`: its lease is in the store. `acknowledged` is a store revision."""

    name: str
    fresh: bool
    acknowledged: int = 0
    report: HoldReport | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """How far a topic's mirror into the target is. `positions` are physical offsets of the source, by partition.

    `finished`: it has written its last control record and does not write any more. `stopped`: why it never will go on.
    `denied`: the right that it waits for.
    """

    exists: bool = False
    ready: bool = False  # the target's topic is there and every partition is being copied
    lag: int = -1  # records, over all partitions; -1: not known
    positions: Mapping[int, int] = field(default_factory=dict)
    finished: bool = False
    stopped: str = ""
    denied: str = ""


@dataclass(frozen=True, slots=True)
class Ends:
    """A source partition's ends, physical. `log_end` is OffsetForLeaderEpoch's of the current epoch, `logical` the same
    as clients see it, `leaders` the leader epochs of this placement with their first logical offsets. `looks`: how
    often in a row exactly this was seen."""

    log_end: int
    high_watermark: int
    last_stable: int
    logical: int
    looks: int = 1
    leaders: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """`me` is this process's name, as in `registered`: it stands for one process, not for the next one under the same
    key (instance, role, number and when it started). `revision` is that of the migration's record.

    `entered`, `held_since`: when this process first saw the recorded step, and the present attempt's hold; `quiet`:
    since when no worker has reported a forwarded write. Seconds on CLOCK_BOOTTIME, as `now` is.
    """

    me: str
    revision: int
    entered: float
    held_since: float
    quiet: float = 0.0
    workers: tuple[Worker, ...] = ()
    registered: frozenset[str] = frozenset()  # every registered process, of any role
    topics: Mapping[str, Known[TopicRecord]] = field(default_factory=dict)
    mirrors: Mapping[str, Known[MirrorRecord]] = field(default_factory=dict)  # by key, all of these topics
    stubs: Mapping[str, Known[StubRecord]] = field(default_factory=dict)  # by key, all of these topics
    homes: Mapping[str, Known[HomeRecord]] = field(default_factory=dict)  # by key, of the ids that move
    copies: Mapping[str, Copy] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)  # the source's, by topic
    probes: Mapping[Part, Probe] = field(default_factory=dict)  # the source's
    ends: Mapping[Part, Ends] = field(default_factory=dict)
    target_ends: Mapping[Part, int] = field(default_factory=dict)  # physical log ends
    final_set: frozenset[str] = frozenset()  # topics whose target has its final configuration
    transactions: frozenset[str] | None = None  # ids whose transactions name one of the topics; None: not known
    switch_written: frozenset[str] = frozenset()  # clusters whose internal topic has the switch
    emptied: frozenset[str] = frozenset()  # topics whose old copy holds nothing any longer
    others: frozenset[str] = frozenset()  # reopeners and retirers that other migrations of these topics still name
    earlier: tuple[str, ...] = ()  # other migrations of these topics that have not ended
    pending: bool = False  # something of this process that changes or empties one of these topics has no answer yet
