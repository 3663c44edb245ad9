"""The source's side of a ship: its table, and where the source is itself a mirror's target, how far that is complete.

In a row of ships (A to B, B to C) the second one writes down logical offsets, which B's table tells. That table grows
while B is written, so it is followed in B's journal, and nothing beyond what it covers is taken. The producer guard
travels the same way: an entry is inherited once its batch has arrived here, never before.

Where the source serves the topic, nothing is mirrored into it: its table is complete as it is, with the part that
clients write. What it was told as a mirror's target, table and guard, is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from kafka_client import ClientError, ClusterClient
from offset_sync.guard import Guard
from offset_sync.kept import Kept
from offset_sync.table import Table
from offset_sync.tables import SHIP, Following
from replicator.core import Partition
from replicator.placed import Timeline, former_parts, former_table, serves, serving_table

DESCRIBE_CONFIGS, BROKER, EXPIRATION = 32, 4, "producer.id.expiration.ms"
SHIPS = b"kfed-mirror.ship."  # in the registry's name of a producer id


def own_table(_: str, __: int) -> Table:
    """The table of a cluster a topic has never left: logical and physical are the same."""
    made = Table()
    made.open(0, 0)
    return made


@dataclass(slots=True)
class Upstream:
    """One source partition. `kept` is None where no mirror writes it, or nobody needs to know. `serves`: its cluster
    serves the topic, so that no mirror can come to write it."""

    table: Table
    kept: Kept | None = None
    serves: bool = False
    asked: set[int] = field(default_factory=set)  # ships' producer ids that were looked into

    @property
    def limit(self) -> int | None:
        """The source offset from which on the table is not complete yet; None: it is, whatever comes."""
        return self.kept.covered if self.kept is not None and self.table.own is None else None

    def inherit(self, partition: Partition) -> None:
        """Take over what is known of producers whose batches have arrived. Raises Damaged."""
        kept = self.kept
        if kept is None or not kept.news:
            return
        end = partition.table.runs.end
        below = max(end.logical if end is not None else 0, partition.table.log_start)  # what is deleted comes no more
        if not below:
            return
        guard = Guard()
        for producer_id in kept.news:
            guard.load(producer_id, kept.producers[producer_id])
        kept.news = partition.guard.adopt(guard, below=below)
        partition.touch()


class Upstreams:
    """The sources of one link's ships. `run` it once something is asked for (`used`)."""

    def __init__(self, source: ClusterClient, given: Callable[[str, int], Table] | None = None) -> None:
        """`given` tells tables from elsewhere; then nothing is asked of the source."""
        self._given = given
        self._cluster = source.name
        self._following = Following(source, guards=True)
        self._used = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        await self._used.wait()
        await self._following.run()

    async def of(
        self, topic: str, partitions: Sequence[int], *, ship: bool, timeline: Timeline = ()
    ) -> dict[int, Upstream]:
        """Raises as `Following.follow`."""
        if self._given is not None:
            return {number: Upstream(self._given(topic, number)) for number in partitions}
        if not ship:  # what is copied was written there, at the offsets it has there
            return {number: Upstream(own_table(topic, number)) for number in partitions}
        if serves(timeline, self._cluster) and len(timeline) == 1:
            return {number: Upstream(own_table(topic, number), serves=True) for number in partitions}
        found = await self._following.follow(topic, partitions)
        plain = [one for one in found.values() if one.state is None]
        self._following.forget(one.stream for one in plain)
        self._used.set()
        return {number: self._upstream(topic, number, kept, timeline) for (number, _), kept in found.items()}

    def _upstream(self, topic: str, number: int, kept: Kept, timeline: Timeline) -> Upstream:
        written = kept.state is not None
        if serves(timeline, self._cluster):
            table = serving_table(_copied(kept.table) if written else None, timeline, number)
            return Upstream(table, kept if written else None, serves=True)
        if written:
            return Upstream(kept.table, kept)
        former = former_parts(timeline, self._cluster, number)
        return Upstream(former_table(former) if former else own_table(topic, number))

    def forget(self, upstreams: Iterable[Upstream]) -> None:
        self._following.forget(one.kept.stream for one in upstreams if one.kept is not None)

    async def changed(self, upstream: Upstream, topic: str, number: int, ships: set[int]) -> bool:
        """Whether a source that was nobody's target has become one: ships' batches were seen there, by these ids.

        A copy that was set free keeps such batches, and is nobody's target any more.
        """
        if upstream.kept is not None or upstream.serves or self._given is not None or ships <= upstream.asked:
            return False
        (kept,) = (await self._following.follow(topic, [number], (SHIP,))).values()
        if kept.state is not None:
            return True
        self._following.forget([kept.stream])
        upstream.asked |= ships
        return False


def _copied(table: Table) -> Table:
    """The same, to be opened: the follower's own goes on as the journal says."""
    made = Table(table.generation)
    made.runs, made.log_start, made.own = table.runs.copy(), table.log_start, table.own
    return made


async def producer_expiration(client: ClusterClient, otherwise: int) -> int:
    """How long the cluster remembers a silent producer, in ms; `otherwise` where it does not say."""
    try:
        brokers = list(client.brokers) or list(await client.refresh())
        asked = {"resource_type": BROKER, "resource_name": str(brokers[0]), "configuration_keys": [EXPIRATION]}
        answer = await client.call(DESCRIBE_CONFIGS, {"resources": [asked]}, broker=brokers[0])
        values = [one["value"] for one in answer["results"][0]["configs"] if one["name"] == EXPIRATION]
        return int(values[0])
    except (ClientError, IndexError, TypeError, ValueError):
        return otherwise


__all__ = ["SHIPS", "Upstream", "Upstreams", "own_table", "producer_expiration"]
