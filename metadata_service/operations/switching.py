"""The switch: one commit after which another cluster serves the topics. And what it makes of timelines, mirrors, stubs.

What workers need to serve from then on stands in the timeline alone: a placement epoch's `first` and `first_physical`
are where the own part of its cluster's table begins, and the next epoch's `first` is where it ends.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from metadata_service.models import (
    HomeRecord,
    MirrorRecord,
    PlacementEpoch,
    StubRecord,
    TopicRecord,
    mirror_key,
    stub_key,
    topic_key,
)
from metadata_service.operations.commands import Change, Commit
from metadata_service.operations.facts import Facts
from metadata_service.operations.records import MigrationRecord, Offsets
from offset_sync.table import Table
from offset_sync.timeline import MAX_PLACEMENT_EPOCH, Exhausted

MAX_CHANGES = 96  # the store's limit for one commit
FIXED = 3  # the migration's own record, its operation's, and the condition that this is the controller


class Impossible(Exception):
    """The records are not what the migration began with."""


def switch(record: MigrationRecord, facts: Facts, opened: Offsets) -> Commit:
    """The commit that ends the hold by switching. `opened`: where the new epochs begin on the target, physical.

    Raises:
        Impossible: a topic is not what it was. Exhausted: it has moved too often.
    """
    also: list[Change] = []
    for name, one in sorted(record.topics.items()):
        known = facts.topics.get(name)
        if known is None or known.value.cluster != record.source or known.value.hold != record.id:
            raise Impossible(f"{name!r} is not held by this migration on {record.source} any longer")
        leaders = {
            index: facts.ends[(name, index)].leaders for index in range(one.partitions) if (name, index) in facts.ends
        }
        moved = timeline(known.value, record.target, one.target_id, record.cut[name], opened[name], leaders)
        also.append(Change(topic_key(name), moved, known.revision))
        also += mirrors(record, facts, name)
        also += stubs(record, facts, known.value)
    also += homes(record, facts)
    if len(also) + FIXED > MAX_CHANGES:
        raise Impossible(f"{len(also)} records are too many for one commit")
    mine = () if facts.pending else (facts.me,)
    switched = msgspec.structs.replace(
        record,
        step="switch",
        hold="switched",
        opened=opened,
        closing=False,
        reopeners=tuple(each for each in record.reopeners if each not in mine),
        reason="",
    )
    return Commit("switch", switched, tuple(also))


def timeline(
    topic: TopicRecord,
    target: str,
    target_id: str,
    first: dict[int, int],
    first_physical: dict[int, int],
    leaders: dict[int, tuple[tuple[int, int], ...]],
) -> TopicRecord:
    """The topic once `target` serves it from the logical offsets `first` on.

    `leaders` are the closing placement's leader epochs, (physical epoch, first logical offset), per partition.
    Producers' ids are told apart where the target has served the topic before: its log still has their sequences.

    Raises:
        Exhausted: no further placement epoch can be expressed.
    """
    if topic.epoch >= MAX_PLACEMENT_EPOCH:
        raise Exhausted(f"{topic.name!r} has moved {topic.epoch} times: no further move can be expressed")
    closed = msgspec.structs.replace(
        topic.timeline[-1], physical_epochs={**topic.timeline[-1].physical_epochs, **leaders}
    )
    opened = PlacementEpoch(
        cluster=target,
        topic_id=target_id,
        first=first,
        first_physical=first_physical,
        tag_producers=any(one.cluster == target for one in topic.timeline),
    )
    return msgspec.structs.replace(
        topic,
        timeline=(*topic.timeline[:-1], closed, opened),
        standbys=tuple(one for one in topic.standbys if one != target),
    )


def mirrors(record: MigrationRecord, facts: Facts, topic: str) -> list[Change]:
    """The mirror that has finished goes. Every other ship out of the source comes out of the target from now on: it
    goes on by logical position, with the copy and the generation it has."""
    out = []
    for key, known in sorted(facts.mirrors.items()):
        one = known.value
        if one.topic != topic or one.mode != "ship" or one.source != record.source:
            continue
        out.append(Change(key, None, known.revision))
        if one.target != record.target:
            rooted = msgspec.structs.replace(one, source=record.target)
            out.append(Change(mirror_key(one.target, topic, record.target), rooted, 0))
    return out


def stubs(record: MigrationRecord, facts: Facts, topic: TopicRecord) -> list[Change]:
    """The target's stub is the topic now. The source's copy becomes a stub in place, in the same commit, so that groups
    at home there commit without a gap; it keeps its records (`borrowed`) until it is retired."""
    there, here = stub_key(record.target, topic.name), stub_key(record.source, topic.name)
    out = [Change(there, None, facts.stubs[there].revision)] if there in facts.stubs else []
    stub = StubRecord(
        topic=topic.name,
        cluster=record.source,
        topic_id=topic.timeline[-1].topic_id,
        partitions=topic.partitions,
        borrowed=True,
        stands_for=topic.id,
    )
    out.append(Change(here, stub, facts.stubs[here].revision if here in facts.stubs else 0))
    return out


def homes(record: MigrationRecord, facts: Facts) -> list[Change]:
    """Transactional ids that move with the topics. Impossible: one is not at home on the source any longer."""
    out = []
    for key, known in sorted(facts.homes.items()):
        if known.value.name not in record.options.transactional_ids:
            continue
        if known.value.cluster != record.source:
            raise Impossible(f"the transactional id {known.value.name!r} has moved")
        left = tuple(sorted({*known.value.left, record.source} - {record.target}))
        moved: HomeRecord = msgspec.structs.replace(known.value, cluster=record.target, left=left)
        out.append(Change(key, moved, known.revision))
    return out


def changes(topics: int, ships: int, transactional_ids: int) -> int:
    """An upper bound of what a switch writes: for the plan. `ships`: of all these topics, out of the source."""
    return FIXED + 3 * topics + 2 * ships + transactional_ids


def ships_of(mirrored: Iterable[MirrorRecord], topic: str, source: str) -> int:
    return sum(1 for one in mirrored if (one.topic, one.mode, one.source) == (topic, "ship", source))


def serving_table(copy: Table, placement: PlacementEpoch, partition: int) -> Table:
    """A copy's table, opened where the placement begins: what a worker serves by. `copy` is changed, and returned."""
    if copy.own is None:
        copy.open(placement.first.get(partition, 0), placement.first_physical.get(partition, 0))
    return copy


def former_table(table: Table, following: PlacementEpoch, partition: int) -> Table:
    """A closed placement's table: what lies behind the end of its epoch is nobody's. Changed, and returned."""
    if table.own is not None:
        table.close(following.first.get(partition, 0))
    return table
