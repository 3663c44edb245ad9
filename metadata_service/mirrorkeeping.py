"""The controller's duties about mirrors: standbys as the rules say, removals brought to their end, stand-ins that are
targets. Each may be done at any time, any number of times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec

from kafka_client import ClientError, ClusterClient
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_name
from metadata_service.asking import topics_by_name
from metadata_service.failures import Undecided
from metadata_service.member import Member
from metadata_service.mirroring import Cyclic, check_ships
from metadata_service.models import (
    ASSIGNMENTS,
    MIRRORS_CHANGED,
    LinkRecord,
    MirrorRecord,
    StubRecord,
    TopicRecord,
    is_internal,
    link_key,
    mirror_key,
    stub_key,
    topic_key,
)
from metadata_service.placement import standbys_at
from metadata_service.records import encode, settle
from metadata_service.store.contract import Condition, Operation, Put, Store, Unchanged
from metadata_service.view import View
from runtime import logging

log = logging.get(__name__)

DELETE_TOPICS = 20
TIMEOUT = 10.0
AT_ONCE = 200  # topics whose standbys are brought in line in one round


async def put_mirrors(
    store: Store,
    view: View,
    records: Iterable[MirrorRecord],
    rates: Mapping[tuple[str, str], float | None],
    seen: int,
) -> bool:
    """Create mirrors of one topic, and their links, unless any mirror was created since revision `seen` of
    MIRRORS_CHANGED: what may be depends on the others.

    `rates` of links in bytes a second; None leaves a link as it is. Raises StoreError.
    """
    conditions: list[Condition] = [Unchanged(MIRRORS_CHANGED, seen)]
    steps: list[Operation] = [Put(MIRRORS_CHANGED, b"{}")]
    links = {link for link, rate in rates.items() if rate is not None}
    for one in records:
        key = mirror_key(one.target, one.topic, one.source)
        conditions.append(Unchanged(key, 0))
        steps.append(Put(key, encode(one)))
        links.add((one.source, one.target))
    for source, target in sorted(links):
        known = view.links.get((source, target))
        rate = rates.get((source, target))
        if known is None or (rate is not None and rate != known.rate):
            base = known or LinkRecord(source=source, target=target)
            wanted = base if rate is None else msgspec.structs.replace(base, rate=rate)
            steps.append(Put(link_key(source, target), encode(wanted)))
    return (await store.commit(conditions, steps)).succeeded


async def delete_topic(client: ClusterClient, topic: str, identifier: str) -> None:
    """Delete the topic if it still has this id; nothing happens otherwise. Raises Undecided."""
    present = (await topics_by_name(client, [topic])).get(topic)
    if present is None or present.id.hex() != identifier:
        return
    target: Message = {"topics": [{"name": None, "topic_id": present.id}], "topic_names": []}
    if present.id == bytes(16):  # before Kafka 2.8
        target = {"topics": [{"name": topic}], "topic_names": [topic]}
    try:
        answer = await client.call(
            DELETE_TOPICS, {**target, "timeout_ms": int(TIMEOUT * 1000)}, timeout=TIMEOUT, retry=True
        )
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    code = answer["responses"][0]["error_code"]
    if code not in (0, ERROR.UNKNOWN_TOPIC_OR_PARTITION, ERROR.UNKNOWN_TOPIC_ID):
        raise Undecided(client.name, f"the copy of {topic!r} could not be deleted: {error_name(code)}")


class Mirrorkeeping:
    """`guard` holds as long as this process is the active controller."""

    def __init__(self, member: Member, guard: Unchanged) -> None:
        self._member = member
        self._guard = guard
        self._followed: tuple[object, object] = (None, None)  # the rules and topics that agree

    async def round(self) -> None:
        """Everything once. Raises DecisionFailed, StoreError."""
        view = self._member.view
        await self._follow_rules(view)
        await self._standbys(view)
        await self._stand_ins(view)
        failed: Undecided | None = None
        for mirror in view.mirrors.values():
            if mirror.state == "removing":
                try:
                    await self._remove(view, mirror)
                except Undecided as error:
                    failed = error
        if failed is not None:
            raise failed

    # -- standbys -------------------------------------------------------------------------------------------------

    async def _follow_rules(self, view: View) -> None:
        """Topics' standbys as the rules now say."""
        placement = view.placement
        if placement is None or (self._followed[0] is placement and self._followed[1] is view.topics):
            return
        if not placement.standbys and not any(rule.standbys for rule in placement.rules):
            changed = [one.record for one in view.topics.values() if one.record.standbys]
        else:
            changed = [
                one.record
                for one in view.topics.values()
                if standbys_at(placement, one.name, one.cluster) != one.record.standbys
            ]
        for record in changed[:AT_ONCE]:
            wanted = standbys_at(placement, record.name, record.cluster)

            def follow(
                now: TopicRecord | None, known: TopicRecord = record, wanted: tuple[str, ...] = wanted
            ) -> TopicRecord | None:
                if now is None or (now.id, now.cluster) != (known.id, known.cluster):
                    return now
                return msgspec.structs.replace(now, standbys=wanted)

            await settle(self._member.store, topic_key(record.name), TopicRecord, follow, conditions=(self._guard,))
            log.info("a topic's standbys follow the rules", topic=record.name, standbys=wanted)
        if not changed:
            self._followed = placement, view.topics

    async def _standbys(self, view: View) -> None:
        """A ship to every standby, and none that the rule does not want any longer."""
        made: list[str] = []
        unwanted: list[str] = []
        for name, served in view.topics.items():
            record = served.record
            if not record.standbys or is_internal(name):
                continue
            for missing in missing_standbys(view, record):
                if len(made) < AT_ONCE and await self._make(view, record, missing):
                    made.append(f"{name} {record.cluster} -> {missing}")
        for mirror in view.mirrors.values():
            if mirror.rule and mirror.state != "removing" and _unwanted(view, mirror):
                log.info("a standby is not wanted any longer", topic=mirror.topic, target=mirror.target)
                await self._settle(mirror, msgspec.structs.replace(mirror, state="removing"))
                unwanted.append(f"{mirror.topic} {mirror.source} -> {mirror.target}")
        record_change = self._member.federation.record_change
        for what, some in (("standbys begun", made), ("standbys ended", unwanted)):
            if some:
                await record_change("placement rules", what, {"mirrors": some}, {"mirrors": len(some)})

    async def _make(self, view: View, record: TopicRecord, target: str) -> bool:
        mirror = MirrorRecord(
            topic=record.name, source=record.cluster, target=target, mode="ship", created=time.time(), rule=True
        )
        found = await self._member.store.get(MIRRORS_CHANGED)
        seen = found.mod_revision if found is not None else 0
        if not (await self._member.store.commit((self._guard,), ())).succeeded:
            return False
        done = await put_mirrors(self._member.store, view, [mirror], {}, seen)
        if done:
            log.info("a standby is begun", topic=record.name, source=record.cluster, target=target)
        return done

    # -- stand-ins ------------------------------------------------------------------------------------------------

    async def _stand_ins(self, view: View) -> None:
        """Groups' stand-ins that are a ship's target are kept by the mirror, and by nobody afterwards."""
        for (cluster, name), stub in view.stubs.items():
            target = any(
                one.target == cluster and one.mode == "ship" and one.state != "removing"
                for one in view.mirrors_of(name)
            )
            if stub.mirrored == target:
                continue

            def lend(now: StubRecord | None, target: bool = target) -> StubRecord | None:
                return now and msgspec.structs.replace(now, mirrored=target, borrowed=now.borrowed or target)

            await settle(self._member.store, stub_key(cluster, name), StubRecord, lend, conditions=(self._guard,))

    # -- removals -------------------------------------------------------------------------------------------------

    async def _remove(self, view: View, mirror: MirrorRecord) -> None:
        """Drop the record once nobody copies, and with `delete_copy` the target's topic is gone."""
        store = self._member.store
        prefix = f"{ASSIGNMENTS}{mirror.target}/{mirror.topic}/{mirror.source}/"
        if (await store.range(prefix)).items:
            return
        cluster = view.clusters.get(mirror.target)
        client = self._member.clients.get(mirror.target)
        if mirror.delete_copy and mirror.target_id and cluster is not None and cluster.record.state == "active":
            if client is None or not cluster.snapshot.reachable:
                raise Undecided(mirror.target, f"the copy of {mirror.topic!r} is deleted when it is back")
            await delete_topic(client, mirror.topic, mirror.target_id)
            shown = cluster.snapshot.topics.get(mirror.topic)
            if shown is not None and shown.id.hex() == mirror.target_id:
                # Until the view sees it gone it is our copy; without the record it would be taken for somebody's topic.
                self._member.discovery.refresh(mirror.target)
                return
        await self._settle(mirror, None)
        others = [
            one
            for one in view.mirrors.values()
            if (one.source, one.target) == (mirror.source, mirror.target) and one.topic != mirror.topic
        ]
        if not others:
            key = link_key(mirror.source, mirror.target)
            await settle(store, key, LinkRecord, lambda _: None, conditions=(self._guard,))
        log.info("a mirror is gone", topic=mirror.topic, source=mirror.source, target=mirror.target)

    async def _settle(self, known: MirrorRecord, wanted: MirrorRecord | None) -> None:
        """Nothing happens where the record is another one by now."""
        key = mirror_key(known.target, known.topic, known.source)
        await settle(
            self._member.store,
            key,
            MirrorRecord,
            lambda now: wanted if now == known else now,
            conditions=(self._guard,),
        )


def missing_standbys(view: View, record: TopicRecord) -> list[str]:
    """Standbys of a topic that have no mirror and could have one. A cluster with an unrelated topic of that name is
    left alone."""
    mirrors = view.mirrors_of(record.name)
    taken = {one.target for one in mirrors}
    ships = {(one.source, one.target) for one in mirrors if one.mode == "ship"}
    out = []
    for target in record.standbys:
        cluster = view.clusters.get(target)
        if target in taken or target in record.conflict or target == record.cluster:
            continue
        if cluster is None or cluster.record.state != "active" or not cluster.snapshot.reachable:
            continue
        stranger = (
            target not in {epoch.cluster for epoch in record.timeline} and (target, record.name) not in view.stubs
        )
        if stranger and record.name in cluster.snapshot.topics:
            continue  # adoption will list it as a conflict
        try:
            check_ships(record.cluster, ships | {(record.cluster, target)})
        except Cyclic:
            continue
        out.append(target)
    return out


def _unwanted(view: View, mirror: MirrorRecord) -> bool:
    """A rule-made mirror whose topic is known and served elsewhere, or has another standby now."""
    served = view.topics.get(mirror.topic)
    if served is None:
        return False  # deleted behind our back: the copy is all there is, and its mirror says so
    return mirror.target not in served.record.standbys or mirror.source != served.cluster
