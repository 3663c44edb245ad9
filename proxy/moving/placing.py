"""Where clients are told that a topic is, and where it may be read, while it moves. Pure functions over a view.

After the switch the topic's record names the new cluster; until all held writes are answered clients are told of the
old one, whose virtual brokers forward writes and serve what lies below the cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kafka_wire.codec import Message
from metadata_service.operations.fence import Read, named, read
from metadata_service.operations.records import MigrationRecord
from metadata_service.view import ServedTopic, View
from metadata_service.view_builder import served

SWITCHED = frozenset({"switched", "released", "announced", "over"})


@dataclass(frozen=True, slots=True)
class Place:
    """A topic as a connection's cluster serves reads of it. `move`: each partition is judged by it (`cut_down`)."""

    topic: ServedTopic
    move: MigrationRecord | None = None


def move_of(view: View, topic: ServedTopic) -> MigrationRecord | None:
    """The migration that holds a topic, where it has been switched."""
    if topic.record.hold is None:
        return None
    record = view.migrations.get(topic.record.hold)
    return record if record is not None and record.hold in SWITCHED else None


def former(topic: ServedTopic) -> ServedTopic:
    """The topic as its last placement but one served it."""
    record = topic.record
    return served(msgspec.structs.replace(record, timeline=record.timeline[:-1]))


def told(view: View, topic: ServedTopic) -> ServedTopic:
    """The topic as Metadata tells of it."""
    if topic.record.hold is None:
        return topic
    move = move_of(view, topic)
    if move is None or topic.cluster != move.target or named(move) != move.source or len(topic.record.timeline) < 2:
        return topic
    return former(topic)


def reading(view: View, cluster: str, name: str | bytes) -> Place | None:
    """How `cluster` serves reads of a topic (by name, or by logical id); None: not at all."""
    topic = view.topics.get(name) if isinstance(name, str) else view.topics_by_id.get(name)
    if topic is None:
        return None
    move = move_of(view, topic)
    if move is None or topic.cluster != move.target:
        return Place(topic) if topic.cluster == cluster else None
    if cluster == move.target:
        return Place(topic, move)
    if cluster == move.source and move.hold != "over" and len(topic.record.timeline) > 1:
        return Place(former(topic), move)
    return None


def cut_down(
    move: MigrationRecord, cluster: str, name: str, asked: Message, ready: bool
) -> tuple[Message, list[Message]]:
    """(a Fetch's topic with the partitions that may be read here, those that are answered NOT_LEADER)."""
    here: list[Message] = []
    gone: list[Message] = []
    for one in asked["partitions"]:
        rule = read(move, cluster, name, one["partition"], one["fetch_offset"], ready)
        (gone if rule is Read.MOVED else here).append(one)
    return {**asked, "partitions": here}, gone
