"""Offsets translated between clusters: what the clusters' own logs and journals say at this moment.

The process that answers needs nothing but clients of the clusters; no replicator is asked, and none need run. What a
mirror has copied but not yet written down is judged by the log. An answer that a running mirror would soon be able to
give is waited for, for `WAIT` seconds.
"""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import trio

from admin.contract import Document, NotFound, Unavailable, Wrong
from kafka_client import ClientError, ClusterClient
from kafka_client.topics import describe
from metadata_service.member import Member
from metadata_service.models import PlacementEpoch
from metadata_service.operations.switching import serving_table
from offset_sync.kept import SHIP, Held
from offset_sync.recovered import Inconsistent
from offset_sync.tables import Following, held
from offset_sync.varints import Damaged
from replicator.translation import Flow, Hop, NotYet, NoWay, Translated, Translator, Unmappable, way

WAIT = 3.0
AGAIN = 0.2
LIMIT = 60.0  # seconds for a whole answer
REMEMBERED = 64  # partitions on one cluster whose tables are kept between two questions

Clients = Callable[[str], ClusterClient | None]


class Offsets:
    """Answers questions; keeps the tables that were asked for last, so that the next question reads little."""

    def __init__(self) -> None:
        self._following: dict[str, tuple[ClusterClient, Following]] = {}
        self._recent: OrderedDict[tuple[str, str, int], None] = OrderedDict()

    async def answer(
        self, member: Member, topic: str, partition: int, offset: int, source: str, target: str
    ) -> Document:
        """The document of `GET /offsets/...`.

        Raises:
            NotFound: no such cluster, topic, partition or way; or the record is not there (any more).
            Wrong: the offset is outside the log.
            Unavailable: a cluster does not answer, the record was not mirrored yet, or a table cannot be read.
        """
        view = member.view
        names = sorted(name for name, one in view.clusters.items() if one.record.state == "active")
        for name in (source, target):
            if name not in names:
                raise NotFound(f"no cluster {name!r}; there are: {', '.join(names)}")
        mirrors = view.mirrors_of(topic)
        if topic not in view.topics and not mirrors:
            raise NotFound(f"no topic {topic!r}")
        flows = [Flow(one.source, one.target, one.mode) for one in mirrors]
        served = view.topics.get(topic)
        placement = served.record.timeline[-1] if served is not None and served.record.epoch else None
        with trio.move_on_after(LIMIT):
            try:
                return await self.translated(
                    member.clients.get, names, flows, topic, partition, offset, source, target, placement
                )
            except ClientError as error:
                raise Unavailable(str(error)) from None
            except (Damaged, Inconsistent) as error:
                raise Unavailable(f"the tables cannot be used: {error}") from None
        raise Unavailable(f"no answer from the clusters within {LIMIT:g} s")

    async def translated(
        self,
        clients: Clients,
        names: Sequence[str],
        flows: Sequence[Flow],
        topic: str,
        partition: int,
        offset: int,
        source: str,
        target: str,
        placement: PlacementEpoch | None = None,
    ) -> Document:
        """The same for given mirrors (`flows`), and where the topic has moved to. Raises also ClientError, Damaged,
        Inconsistent."""
        try:
            hops = way(flows, source, target)
        except NoWay:
            here, there = (source, target) if placement is None or placement.cluster != target else (target, source)
            command = shlex.join(["kfed", "mirror", "create", topic, "--from", here, "--to", there])
            raise NotFound(f"no mirror of {topic!r} leads from {source} to {target}: {command}") from None
        deadline = trio.current_time() + WAIT
        while True:
            logs = await self.logs(clients, names, flows, hops, topic, partition, source)
            if placement is not None and placement.cluster in logs:
                serving = logs[placement.cluster].written.get(SHIP)
                if serving is not None:  # behind what a mirror wrote lies what clients wrote there
                    serving_table(serving.table, placement, partition)
            _inside(logs[source], topic, partition, offset, source)
            try:
                found = Translator(logs, tuple(flows)).translate(hops, offset)
            except NotYet as error:
                if trio.current_time() > deadline:
                    raise Unavailable(f"{topic}-{partition}: {error}") from None
            except Unmappable as error:
                raise NotFound(f"{topic}-{partition}: {error}") from None
            else:
                return _document(topic, partition, offset, source, target, hops, found)
            await trio.sleep(AGAIN)

    async def logs(
        self,
        clients: Clients,
        names: Sequence[str],
        flows: Sequence[Flow],
        hops: Sequence[Hop],
        topic: str,
        partition: int,
        source: str,
    ) -> Mapping[str, Held]:
        """What the clusters on the way hold, and where they answer, those in front of them in rows of ships.

        Raises: as `translated`.
        """
        needed = {source, *(hop.target for hop in hops)}
        above = _above(flows, needed) - needed
        out: dict[str, Held] = {}

        async def ask(name: str, must: bool) -> None:
            try:
                out[name] = await self._ask(clients, names, topic, partition, name)
            except (ClientError, NotFound, Damaged, Inconsistent):
                if must:
                    raise

        for name in sorted(needed):  # a failure is to be one error, not a group of them
            await ask(name, True)
        for name in sorted(above):
            await ask(name, False)
        return out

    async def _ask(self, clients: Clients, names: Sequence[str], topic: str, partition: int, cluster: str) -> Held:
        client = clients(cluster)
        if client is None:
            raise NotFound(f"no cluster {cluster!r}")
        info = (await describe(client, [topic])).get(topic)
        if info is None:
            raise NotFound(f"{cluster} has no topic {topic!r}")
        if partition not in info.partitions:
            last = len(info.partitions) - 1
            raise NotFound(f"topic {topic!r} on {cluster} has no partition {partition}, only 0 to {last}")
        known = self._following.get(cluster)
        if known is None or known[0] is not client:
            known = self._following[cluster] = client, Following(client)
        scopes = [SHIP, *(name for name in names if name != cluster)]
        found = await held(known[1], client, topic, partition, scopes)
        self._remember(cluster, topic, partition)
        return found

    def _remember(self, cluster: str, topic: str, partition: int) -> None:
        self._recent[cluster, topic, partition] = None
        self._recent.move_to_end((cluster, topic, partition))
        if len(self._recent) > REMEMBERED:
            # Whose tables these are is not known here; all of that cluster's are read anew when asked for.
            cluster = self._recent.popitem(last=False)[0][0]
            self._following.pop(cluster, None)
            for key in [one for one in self._recent if one[0] == cluster]:
                del self._recent[key]


def _above(flows: Collection[Flow], clusters: Collection[str]) -> set[str]:
    """All clusters that ships into these come from, directly or not."""
    out: set[str] = set()
    left = list(clusters)
    while left:
        at = left.pop()
        for one in flows:
            if one.mode == "ship" and one.target == at and one.source not in out:
                out.add(one.source)
                left.append(one.source)
    return out


def _inside(log: Held, topic: str, partition: int, offset: int, cluster: str) -> None:
    where = f"offset {offset} of {topic}-{partition} on {cluster}"
    if offset < log.start:
        raise Wrong(f"{where} was deleted: the log begins at {log.start}")
    if offset > log.end:
        raise Wrong(f"{where} does not exist: the log ends at {log.end}")


def _document(
    topic: str, partition: int, offset: int, source: str, target: str, hops: Sequence[Hop], found: Translated
) -> Document:
    return {
        "topic": topic,
        "partition": partition,
        "from": {"cluster": source, "offset": offset},
        "to": {"cluster": target, "offset": found.offset},
        "offset": found.offset,
        "exact": found.exact,
        "end": found.end,
        "via": [hop.target for hop in hops[:-1]],
    }
