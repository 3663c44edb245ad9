"""Which physical topics are logical topics. Pure decisions; federation.py and controller.py carry them out.

A topic the store does not know becomes a logical topic whose logical id is its physical one. A name on several
clusters is a conflict, unless the store knows them as copies (stubs, entries of the timeline): a rule that names one
of them decides which is served, else the lowest cluster index; the others are hidden and listed in `conflict`. The
default placement decides nothing here, as it names nobody. A conflict is decided once. It is decided again only
where the operator changed the rules since, a rule now names one of the hidden ones, and the topic was adopted and
never moved: then the other topic takes its place, under its own id.

A topic that another one has replaced under its name (its topic id differs) is a new topic. A topic that is gone is
forgotten, once every broker of its cluster says so.

Internal topics are no one's: of Kafka's, the default cluster's are shown, as clients expect to see each once; they
cannot be moved, and reading them shows that one cluster only. The others', and ours (`__kfed_*`), are never shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from metadata_service import mirroring
from metadata_service.models import KAFKA_INTERNAL, PlacementEpoch, TopicRecord, is_internal
from metadata_service.placement import place_topic, standbys_at
from metadata_service.view import PhysicalTopic, View
from runtime.settings import Placement

_NO_ID = bytes(16)


def new_record(
    placement: Placement, cluster: str, topic: PhysicalTopic, *, adopted: bool, now: float, judged: int
) -> TopicRecord:
    """A topic that lives on `cluster` and has never moved. `now`: Unix seconds."""
    topic_id = topic.id.hex()
    return TopicRecord(
        name=topic.name,
        id=topic_id,
        timeline=(PlacementEpoch(cluster=cluster, topic_id=topic_id),),
        partitions=len(topic.partitions),
        standbys=standbys_at(placement, topic.name, cluster),
        writes=place_topic(placement, topic.name).writes,
        created=now,
        adopted=adopted,
        judged=judged,
    )


def choose(placement: Placement, name: str, clusters: Collection[str], indexes: Mapping[str, int]) -> str | None:
    """Which of `clusters`, all of which have an unrelated topic `name`, serves it; None: nobody."""
    if is_internal(name):
        shown = name in KAFKA_INTERNAL and placement.default in clusters
        return placement.default if shown else None
    place = place_topic(placement, name)
    if place.explicit and place.cluster in clusters:
        return place.cluster
    return min(clusters, key=lambda one: (indexes.get(one, 1 << 30), one), default=None)


def decide(
    current: TopicRecord | None,
    found: Mapping[str, PhysicalTopic],
    copies: Collection[str],
    placement: Placement,
    version: int,
    indexes: Mapping[str, int],
    *,
    now: float,
    adopted: bool = True,
) -> TopicRecord | None:
    """The record a topic shall have.

    `found`: the clusters that have a topic of this name now; a cluster that is away is not among them, and its part
    of a conflict is kept by the caller. `copies`: clusters whose topic of this name is a stub or otherwise ours.
    `version` is that of `placement`. None: there is nothing to serve.
    """
    if current is None:
        strangers = {cluster: topic for cluster, topic in found.items() if cluster not in copies}
        cluster = choose(placement, next(iter(strangers.values())).name, strangers, indexes) if strangers else None
        if cluster is None:
            return None
        record = new_record(placement, cluster, strangers[cluster], adopted=adopted, now=now, judged=version)
        return msgspec.structs.replace(record, conflict=_others(record, strangers, copies))
    here = found.get(current.cluster)
    if is_internal(current.name) and choose(placement, current.name, found, indexes) != current.cluster:
        return decide(None, found, copies, placement, version, indexes, now=now, adopted=adopted)
    if here is not None and recreated(current, here) and current.epoch == 0:
        record = new_record(placement, current.cluster, here, adopted=adopted, now=now, judged=current.judged)
        current = msgspec.structs.replace(record, conflict=current.conflict)
    conflict = _others(current, found, copies)
    if conflict and _reconsider(current, conflict, placement, version):
        return decide(None, found, copies, placement, version, indexes, now=now, adopted=True)
    judged = version if conflict else current.judged
    return msgspec.structs.replace(current, conflict=conflict, judged=judged)


def recreated(record: TopicRecord, topic: PhysicalTopic) -> bool:
    """Whether `topic`, found on the record's serving cluster, is another topic than the one recorded."""
    return topic.id != _NO_ID and topic.id.hex() != record.timeline[-1].topic_id


def _others(record: TopicRecord, found: Mapping[str, PhysicalTopic], copies: Collection[str]) -> tuple[str, ...]:
    if is_internal(record.name):
        return ()
    ours = {epoch.cluster for epoch in record.timeline} | set(copies)
    return tuple(sorted(cluster for cluster in found if cluster not in ours))


def _reconsider(record: TopicRecord, conflict: tuple[str, ...], placement: Placement, version: int) -> bool:
    place = place_topic(placement, record.name)
    return (
        record.adopted
        and record.epoch == 0
        and record.hold is None
        and record.judged < version
        and place.explicit
        and place.cluster in conflict
        and place.cluster in record.conflict  # it was known when the rules were changed: they were meant for it
    )


def topics_to_consider(view: View) -> set[str]:
    """Names whose record may have to change, by the view alone (cheap: nothing is asked). Unreachable clusters are
    left out: nothing is concluded from their silence."""
    names: set[str] = set()
    reachable = {name: one.snapshot for name, one in view.clusters.items() if one.snapshot.reachable}
    for cluster, snapshot in reachable.items():
        for name, topic in snapshot.topics.items():
            if (cluster, name) in view.stubs or view.is_ejected(cluster, topic):
                continue
            record = view.topics[name].record if name in view.topics else None
            if record is None:
                if choose_possible(view, cluster, name) and cluster not in mirroring.copies(
                    view.mirrors_of(name), None
                ):
                    names.add(name)
            elif record.cluster == cluster:
                if recreated(record, topic):
                    names.add(name)
            elif not is_internal(name) and not _in_timeline(record, cluster):
                mirrored = cluster in mirroring.copies(view.mirrors_of(name), record.cluster)
                if mirrored == (cluster in record.conflict):
                    names.add(name)
    for name, served in view.topics.items():
        record = served.record
        if record.conflict:
            gone = any(one in reachable and name not in reachable[one].topics for one in record.conflict)
            if gone or record.judged < view.placement_version:
                names.add(name)
        if is_internal(name) and view.placement is not None and record.cluster != view.placement.default:
            names.add(name)
    return names


def choose_possible(view: View, cluster: str, name: str) -> bool:
    """Whether an unknown topic of this name on `cluster` could become a logical one at all."""
    if not is_internal(name):
        return True
    return name in KAFKA_INTERNAL and view.placement is not None and cluster == view.placement.default


def _in_timeline(record: TopicRecord, cluster: str) -> bool:
    return any(epoch.cluster == cluster for epoch in record.timeline)


def missing(view: View) -> list[TopicRecord]:
    """Topics whose reachable serving cluster does not name them: to be confirmed with every broker."""
    return [
        served.record
        for name, served in view.topics.items()
        if (cluster := view.clusters.get(served.cluster)) is not None
        and cluster.snapshot.reachable
        and cluster.record.state == "active"
        and name not in cluster.snapshot.topics
    ]


def kept_conflict(record: TopicRecord, decided: TopicRecord, reachable: Collection[str]) -> TopicRecord:
    """`decided` with the part of the conflict that lies on clusters which could not be asked."""
    silent = {one for one in record.conflict if one not in reachable and one != decided.cluster}
    if not silent:
        return decided
    return msgspec.structs.replace(decided, conflict=tuple(sorted({*decided.conflict, *silent})))


def physical_partitions(view: View, record: TopicRecord) -> int:
    """Partitions of the topic as its serving cluster shows them, at least those recorded."""
    cluster = view.clusters.get(record.cluster)
    topic = cluster.snapshot.topics.get(record.name) if cluster is not None else None
    if topic is None or recreated(record, topic):
        return record.partitions
    return max(record.partitions, len(topic.partitions))
