"""Views from records and snapshots. Pure: (previous view, changed records, snapshots) -> view.

`build` costs what changed plus a copy of the dictionaries that changed (10,000 topics: about a millisecond). Built in
steps or from nothing, the result is the same, but for the counters `generation`, `served_generation`,
`migrations_changed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from typing import Any, TypeVar

import msgspec

from metadata_service import models
from metadata_service.models import (
    AddressBook,
    ClusterRecord,
    EjectedRecord,
    FeaturesRecord,
    FederationRecord,
    HomeRecord,
    LinkRecord,
    MirrorRecord,
    OperationRecord,
    PlacementRecord,
    StubRecord,
    TopicRecord,
)
from metadata_service.operations.records import MIGRATIONS, MigrationRecord
from metadata_service.records import decode
from metadata_service.view import EMPTY, ClusterView, ServedTopic, Snapshot, View
from runtime import logging

log = logging.get(__name__)

T = TypeVar("T", bound=msgspec.Struct)
Changes = Mapping[str, bytes | None]
"""Keys below `view/` with their new value, None where they were deleted."""


def served(record: TopicRecord) -> ServedTopic:
    """A topic's record as the hot path needs it."""
    now = record.timeline[-1]
    special = (
        record.epoch > 0
        or record.hold is not None
        or now.topic_id != record.id
        or now.tag_producers
        or any(now.first.values())
    )
    return ServedTopic(record.name, bytes.fromhex(record.id), now.cluster, bytes.fromhex(now.topic_id), special, record)


@dataclass
class _Draft:
    """The next view's parts; a dictionary of the previous view is copied when it is first changed."""

    before: View
    parts: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[Any, Any]:
        if name not in self.parts:
            self.parts[name] = dict(getattr(self.before, name))
        found: dict[Any, Any] = self.parts[name]
        return found

    def stops(self, cluster: str) -> None:
        """`cluster` serves a topic no longer, or serves another one under its name."""
        counts = self.part("served_generation")
        counts[cluster] = counts.get(cluster, 0) + 1

    def keep(self, name: str, key: Any, value: Any) -> None:
        if value is None:
            self.part(name).pop(key, None)
        else:
            self.part(name)[key] = value


def _decoded(kind: type[T], key: str, value: bytes | None) -> T | None:
    """The record, None where it was deleted. One that cannot be read counts as deleted: it is not guessed (I6)."""
    if value is None:
        return None
    try:
        return decode(kind, value)
    except (msgspec.MsgspecError, ValueError) as error:
        log.error("a record cannot be read and is left out", key=key, error=str(error))
        return None


def _topic(draft: _Draft, name: str, record: TopicRecord | None) -> None:
    new: ServedTopic | None = None
    if record is not None:
        try:
            new = served(record)
        except (ValueError, IndexError) as error:
            log.error("a topic's record makes no sense and is left out", topic=name, error=str(error))
    topics, by_id = draft.part("topics"), draft.part("topics_by_id")
    old: ServedTopic | None = topics.get(name)
    if old is not None:
        by_id.pop(old.id, None)
        if new is None or (new.cluster, new.physical_id) != (old.cluster, old.physical_id):
            draft.stops(old.cluster)
    draft.keep("topics", name, new)
    if new is not None:
        by_id[new.id] = new


def _cluster(draft: _Draft, name: str, record: ClusterRecord | None, snapshots: Mapping[str, Snapshot]) -> None:
    draft.keep("clusters", name, None if record is None else ClusterView(record, snapshots.get(name, EMPTY)))


def _single(draft: _Draft, key: str, value: bytes | None) -> None:
    if key == models.FEDERATION:
        draft.parts["federation"] = _decoded(FederationRecord, key, value)
    elif key == models.PLACEMENT:
        placement = _decoded(PlacementRecord, key, value)
        draft.parts["placement"] = placement and placement.placement
        draft.parts["placement_version"] = placement.version if placement else 0
    elif key == models.FEATURES:
        draft.parts["features"] = _decoded(FeaturesRecord, key, value) or FeaturesRecord()


def _change(draft: _Draft, key: str, value: bytes | None, snapshots: Mapping[str, Snapshot], revision: int) -> None:
    for prefix, part, kind in _BY_NAME:
        if key.startswith(prefix):
            draft.keep(part, key[len(prefix) :], _decoded(kind, key, value))
            return
    if key.startswith(models.TOPICS):
        _topic(draft, key[len(models.TOPICS) :], _decoded(TopicRecord, key, value))
    elif key.startswith(models.STUBS):
        cluster, _, topic = key[len(models.STUBS) :].partition("/")
        draft.keep("stubs", (cluster, topic), _decoded(StubRecord, key, value))
    elif key.startswith(models.EJECTED):
        cluster, _, topic = key[len(models.EJECTED) :].partition("/")
        draft.keep("ejected", (cluster, topic), _decoded(EjectedRecord, key, value))
    elif key.startswith(models.LINKS):
        source, _, target = key[len(models.LINKS) :].partition("/")
        draft.keep("links", (source, target), _decoded(LinkRecord, key, value))
    elif key.startswith(models.MIRRORS):
        # Neither clusters' names nor topics' can hold a slash.
        into, _, rest = key[len(models.MIRRORS) :].partition("/")
        name, _, origin = rest.partition("/")
        draft.keep("mirrors", (into, name, origin), _decoded(MirrorRecord, key, value))
    elif key.startswith(MIGRATIONS):
        identifier, migration = key[len(MIGRATIONS) :], _decoded(MigrationRecord, key, value)
        draft.keep("migrations", identifier, migration)
        draft.keep("migrations_changed", identifier, None if migration is None else revision)
    elif key.startswith(models.CLUSTERS):
        _cluster(draft, key[len(models.CLUSTERS) :], _decoded(ClusterRecord, key, value), snapshots)
    else:
        _single(draft, key, value)  # keys of a later release are none of these, and are left alone


_BY_NAME: tuple[tuple[str, str, type[msgspec.Struct]], ...] = (
    (models.GROUP_HOMES, "groups", HomeRecord),
    (models.TRANSACTION_HOMES, "transactions", HomeRecord),
    (models.ADDRESSES, "addresses", AddressBook),
    (models.OPERATIONS, "operations", OperationRecord),
)


def build(before: View, changes: Changes, snapshots: Mapping[str, Snapshot], revision: int) -> View:
    """The view after `changes` at store revision `revision`, with `snapshots` (all of them, by cluster name)."""
    draft = _Draft(before)
    for key, value in changes.items():
        _change(draft, key, value, snapshots, revision)
    clusters: Mapping[str, ClusterView] = draft.parts.get("clusters", before.clusters)
    for name, cluster in [*clusters.items()]:
        if cluster.snapshot is not snapshots.get(name, EMPTY):
            draft.part("clusters")[name] = ClusterView(cluster.record, snapshots.get(name, EMPTY))
    if not draft.parts and revision == before.revision:
        return before
    return with_fields(before, revision=revision, generation=before.generation + 1, **draft.parts)
