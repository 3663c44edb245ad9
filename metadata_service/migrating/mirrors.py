"""A migration's mirrors: begun, told where to end, given up; and how far they are, from what replicators report.

Everything is a compare-and-swap of the mirror's record, on the condition that this process is the controller.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from metadata_service.mirroring import back, check_ships, finishing, has_finished, shipping
from metadata_service.mirrorkeeping import put_mirrors
from metadata_service.models import (
    MIRRORS_CHANGED,
    FinishedRecord,
    MirrorRecord,
    PartitionReport,
    ReportRecord,
    StubRecord,
    TopicRecord,
    mirror_key,
    stub_key,
)
from metadata_service.operations.commands import CreateMirror, FinishMirror, RemoveMirror
from metadata_service.operations.facts import Copy
from metadata_service.records import decode, encode
from metadata_service.store.contract import Condition, Operation, Put, Store, Unchanged
from metadata_service.view import View
from runtime import logging

log = logging.get(__name__)

COPYING = frozenset({"copying", "caught_up"})
STOPPED = frozenset(
    {"truncated", "recreated", "missing", "occupied", "incomplete", "target_lost", "corrupt", "refused"}
)
"""Conditions in which a partition stays until somebody decides (`replicator.states`)."""
DENIED = "denied"  # ... and in which it waits for a right


def copy_of(
    mirror: MirrorRecord | None,
    reports: Iterable[ReportRecord],
    finished: Iterable[FinishedRecord],
    operation: str,
    partitions: int,
) -> Copy:
    """A topic's mirror as a migration sees it."""
    if mirror is None or mirror.mode != "ship":
        return Copy()
    mine = mirror.operation == operation
    newest: dict[int, tuple[float, PartitionReport]] = {}
    problems: list[str] = []
    for report in reports:
        if (report.operation, report.generation) != (mirror.operation, mirror.generation):
            continue  # of an earlier mirror
        problems += report.problems
        for index, one in report.partitions.items():
            if index not in newest or newest[index][0] < report.at:
                newest[index] = report.at, one
    parts = {index: one for index, (_, one) in newest.items() if index < partitions}
    stopped = [
        f"partition {n}: {one.condition} {one.detail}".rstrip() for n, one in parts.items() if one.condition in STOPPED
    ]
    denied = sorted({one.detail for one in parts.values() if one.condition == DENIED})
    told = list(finished)
    ended = mine and has_finished(mirror, told)
    whole = len(parts) == partitions and all(one.condition in COPYING for one in parts.values())
    known = whole and all(one.end >= 0 and one.position >= 0 for one in parts.values())
    return Copy(
        exists=mine,
        # A standby that copies is not ours before it is lent to the operation: nobody could tell it where to end.
        ready=mine and mirror.state == "running" and whole,
        lag=sum(max(one.end - one.position, 0) for one in parts.values()) if known else -1,
        positions=mirror.ends if ended else {index: one.position for index, one in parts.items()},
        finished=ended,
        denied=denied[0] if denied else "",
        stopped="; ".join(sorted(set(stopped or problems))[:3]) if mirror.state != "removing" else "",
    )


async def create(store: Store, guard: Unchanged, view: View, command: CreateMirror) -> None:
    """See that the ship is there and running. Raises Cyclic, StoreError."""
    key = mirror_key(command.target, command.topic, command.source)
    found = await store.get(key)
    known = None if found is None else decode(MirrorRecord, found.value)
    seen = await store.get(MIRRORS_CHANGED)
    led = await store.get(guard.key)
    if led is None or led.mod_revision != guard.mod_revision:
        return
    wanted = shipping(
        known,
        command.topic,
        command.source,
        command.target,
        command.operation,
        rebuild=command.rebuild,
        revision=(await store.range(key)).revision,
        created=time.time(),
    )
    if wanted is None or wanted == known:
        return
    if found is not None:
        await store.commit((guard, Unchanged(key, found.mod_revision)), (Put(key, encode(wanted)),))
        return
    ships = {(one.source, one.target) for one in view.mirrors_of(command.topic) if one.mode == "ship"}
    check_ships(command.source, ships | {(command.source, command.target)})
    if await put_mirrors(store, view, [wanted], {}, seen.mod_revision if seen is not None else 0):
        log.info("a move's mirror is begun", topic=command.topic, source=command.source, target=command.target)


async def finish(store: Store, guard: Unchanged, command: FinishMirror) -> None:
    """Tell it where to end. Raises StoreError."""
    key = mirror_key(command.target, command.topic, command.source)
    found = await store.get(key)
    if found is None:
        return
    known = decode(MirrorRecord, found.value)
    wanted = finishing(known, command.operation, command.ends)
    if wanted is not None and wanted != known:
        await store.commit((guard, Unchanged(key, found.mod_revision)), (Put(key, encode(wanted)),))


async def remove(store: Store, guard: Unchanged, command: RemoveMirror, topic: TopicRecord | None) -> bool:
    """End this operation's ship; one that was lent goes on. The copy is recorded as a stand-in: a later move goes on
    with it, or fills it anew, and nobody takes it for a topic of its own. Whether the copy is left now: nothing writes
    there any longer. Raises StoreError."""
    key = mirror_key(command.target, command.topic, command.source)
    found = await store.get(key)
    known = None if found is None else decode(MirrorRecord, found.value)
    if found is None or known is None or known.operation != command.operation:
        return known is None
    conditions: list[Condition] = [guard, Unchanged(key, found.mod_revision)]
    if (kept := back(known, command.operation)) is not None:
        await store.commit(conditions, (Put(key, encode(kept)),))
        return False
    if known.state == "removing":
        return False
    steps: list[Operation] = [Put(key, encode(msgspec.structs.replace(known, state="removing")))]
    if known.target_id and topic is not None:
        place = stub_key(command.target, command.topic)
        had = await store.get(place)
        before = None if had is None else decode(StubRecord, had.value)
        if before is None or before.topic_id == known.target_id:
            stub = StubRecord(
                topic=command.topic,
                cluster=command.target,
                topic_id=known.target_id,
                partitions=topic.partitions if before is None else max(before.partitions, topic.partitions),
                stands_for=topic.id,
            )
            conditions.append(Unchanged(place, had.mod_revision if had is not None else 0))
            steps.append(Put(place, encode(stub)))
    await store.commit(conditions, steps)
    return False
