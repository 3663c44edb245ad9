"""Positions of a group that lies on several clusters.

A group has one home afterwards, and may have commits elsewhere from before. They go on counting: for a topic that
comes from one of the clusters in the home's `carry`, a partition without a commit at the home is answered with what
that cluster says now (proxy/apis/carried.py). Once committed at the home, the home wins. So a client that switches to
the endpoint goes on where it stood at that moment, whenever that is, and those who still connect directly go on
committing where they always did; a copy made once, at adoption, would be old by then.

What the controller adds is that nothing is lost by time: the group is idle where it came from, and commits of an idle
group expire. As soon as a topic is in use at the home (a partition of it is committed there), the rest of its
positions is copied, with offset, leader epoch and metadata as they are; a live group takes no commits from outside,
so while it is live at home what it may still need is kept alive where it lies.

A cluster counts as long as it knows the group (homes.review). Deleting a group or its positions through the endpoint
deletes them there too, so that nothing is resurrected.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from kafka_client import ClientError, ClusterClient
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_name
from metadata_service.asking import BY_NAME, GROUP, FoundGroup, Position, Positions, Versions, committed, turn
from metadata_service.failures import StubRefused, Undecided
from metadata_service.member import Member
from metadata_service.models import HomeRecord, TopicRecord, is_internal
from metadata_service.view import View
from runtime import logging

log = logging.get(__name__)

OFFSET_COMMIT = 8
TIMEOUT = 10.0
GROUPS_AT_ONCE = 200  # a round
KEEP_ALIVE = 12 * 3600.0  # seconds; brokers keep commits of an idle group for days (offsets.retention.minutes)
PARTITIONS_AT_ONCE = 2_000


def comes_from(topic: TopicRecord, cluster: str) -> bool:
    """Whether positions on `cluster` from before the federation are positions in this topic."""
    return not is_internal(topic.name) and topic.timeline[0].cluster == cluster


def counting(view: View, record: HomeRecord) -> list[str]:
    """The clusters whose commits still count; those removed from the federation do not."""
    return [
        one
        for one in (*record.carry, *record.unasked)
        if one in view.clusters and view.clusters[one].record.state == "active"
    ]


def missing(view: View, cluster: str, here: Positions, there: Positions) -> Positions:
    """What of a group's positions on `cluster` (`there`) counts: it is not committed at the home (`here`)."""
    return {
        key: position
        for key, position in there.items()
        if key not in here and (topic := view.topics.get(key[0])) is not None and comes_from(topic.record, cluster)
    }


class Carrying:
    """The controller's part. It writes to groups only, never to the store."""

    def __init__(self, member: Member, *, keep_alive: float = KEEP_ALIVE) -> None:
        self._member = member
        self._keep_alive = keep_alive
        self._kept: dict[tuple[str, str], float] = {}
        self._next = ""

    async def round(self, listed: Mapping[str, Mapping[str, FoundGroup]]) -> None:
        """Looks at groups that are known to their home and elsewhere. `listed`: cluster -> its groups, as of now."""
        view = self._member.view
        both = [
            name
            for name, record in sorted(view.groups.items())
            if name in listed.get(record.cluster, ())
            and record.move is None
            and any(name in listed.get(one, ()) and not listed[one][name].live for one in counting(view, record))
        ]
        for key in [key for key in self._kept if key[0] not in view.groups]:
            del self._kept[key]
        part = turn(both, self._next, GROUPS_AT_ONCE)
        self._next = part[-1] if part else ""
        for name in part:
            record = view.groups[name]
            for cluster in counting(view, record):
                group = listed.get(cluster, {}).get(name)
                if group is None or group.live:
                    continue  # who is at work there goes on committing
                try:
                    await self._one(view, record, cluster, live=listed[record.cluster][name].live)
                except (Undecided, StubRefused) as error:
                    log.warning("positions could not be copied yet", group=name, source=cluster, error=str(error))

    async def _one(self, view: View, record: HomeRecord, cluster: str, *, live: bool) -> None:
        home, source = self._member.clients.active(record.cluster), self._member.clients.active(cluster)
        key, now = (record.name, cluster), trio.current_time()
        if live and now - self._kept.setdefault(key, now) < self._keep_alive:
            return
        spoken = view.clusters[home.name].snapshot.versions
        here = await committed(home, record.name, spoken, stable=True)
        there = await committed(source, record.name, view.clusters[cluster].snapshot.versions, stable=True)
        left = missing(view, cluster, here, there)
        if live:
            await commit(source, record.name, left, view.clusters[cluster].snapshot.versions)
            self._kept[key] = now
            return
        used = {topic for topic, _ in here}
        left = {(topic, index): position for (topic, index), position in left.items() if topic in used}
        if not left:
            return
        topics = {topic for topic, _ in left}
        await self._member.federation.ensure_stubs(home.name, topics)
        # Read again: making a stub takes its time, and a commit made meanwhile is newer.
        here = await committed(home, record.name, spoken, stable=True)
        left = {key: position for key, position in left.items() if key not in here}
        await commit(home, record.name, left, spoken)
        log.info("positions copied", group=record.name, source=cluster, home=home.name, partitions=len(left))


async def commit(
    client: ClusterClient, group: str, positions: Mapping[tuple[str, int], Position], versions: Versions
) -> None:
    """Commit for a group that has no members, exactly these positions; `versions`: what the cluster speaks.

    Raises:
        Undecided: it has members by now, or the cluster refuses, or does not answer.
    """
    items = sorted(positions.items())
    version = min(versions.get(OFFSET_COMMIT, (0, BY_NAME))[1], BY_NAME)
    for start in range(0, len(items), PARTITIONS_AT_ONCE):
        part: Positions = dict(items[start : start + PARTITIONS_AT_ONCE])
        try:
            answer = await client.call_coordinator(
                GROUP, group, OFFSET_COMMIT, _commit(group, part), version=version, timeout=TIMEOUT
            )
        except ClientError as error:
            raise Undecided(client.name, str(error)) from error
        for topic in answer["topics"]:
            for one in topic["partitions"]:
                if one["error_code"] != ERROR.NONE:
                    why = f"commit of {topic['name']}-{one['partition_index']}: {error_name(one['error_code'])}"
                    raise Undecided(client.name, why)


def _commit(group: str, positions: Positions) -> Message:
    topics: dict[str, list[Message]] = {}
    for (topic, index), position in positions.items():
        topics.setdefault(topic, []).append(
            {
                "partition_index": index,
                "committed_offset": position.offset,
                "committed_leader_epoch": position.epoch,
                "committed_metadata": position.metadata,
            }
        )
    return {
        "group_id": group,
        "generation_id_or_member_epoch": -1,
        "member_id": "",
        "topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()],
    }
