"""What mirrors may be, which topics are theirs, and what a move makes of their records. Pure.

The records of a move's mirror are made here only, by whoever carries a migration's commands out; replicator workers
read them, and answer with FinishedRecords. `generation` says which copy is meant: a worker whose journal knows a lower
one empties the target and begins anew, once. So a rebuild takes a generation that was never used, the store's revision,
since the record of an earlier mirror, and with it its generation, may be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from metadata_service.models import FinishedRecord, MirrorRecord


class Cyclic(ValueError):
    """These ships cannot be: they would form a cycle, join in one target, or lead into the serving cluster."""


def check_ships(serving: str, ships: set[tuple[str, str]]) -> None:
    """Whether (source, target) ships of one topic form a tree rooted at its serving cluster.

    Raises:
        Cyclic: they do not, and why.
    """
    parents: dict[str, str] = {}
    for source, target in sorted(ships):
        if target == serving:
            raise Cyclic(f"{target} serves the topic; nothing is shipped into it")
        if target in parents:
            raise Cyclic(f"{target} is shipped to from {parents[target]} already")
        parents[target] = source
    for target in parents:
        seen = [target]
        while seen[-1] != serving:
            above = parents.get(seen[-1])
            if above is None:
                raise Cyclic(f"{seen[-1]} neither serves the topic nor is shipped to")
            if above in seen:
                raise Cyclic(f"a cycle: {' <- '.join([*seen, above])}")
            seen.append(above)


def copies(mirrors: Iterable[MirrorRecord], serving: str | None) -> set[str]:
    """Clusters whose topic of this name is a mirror's copy, and nobody else's topic.

    `mirrors`: all of one name; `serving`: the cluster that serves the topic, None where the federation does not know
    it. The members of an exchange are equals: one of them may then become the topic.
    """
    return {
        one.target
        for one in mirrors
        if one.target != serving
        and (one.mode == "ship" or serving is not None)
        and (one.state != "removing" or one.delete_copy)
    }


def shipping(
    known: MirrorRecord | None,
    topic: str,
    source: str,
    target: str,
    operation: str,
    *,
    rebuild: bool,
    revision: int,
    created: float,
) -> MirrorRecord | None:
    """The ship of a move, to be begun or to go on; None: what is there is another operation's, or being removed.

    `rebuild`: the target is emptied first, once for each operation. `revision`: a present one of the store; `created`:
    Unix seconds. A mirror that is there already is lent to the operation, and goes on when that is given up (`back`).
    """
    if known is None:
        return MirrorRecord(
            topic=topic,
            source=source,
            target=target,
            mode="ship",
            created=created,
            operation=operation,
            generation=revision if rebuild else 0,
        )
    if known.mode != "ship" or known.state == "removing" or known.operation not in (None, operation):
        return None
    new = known.operation is None
    return msgspec.structs.replace(
        known,
        state="running",
        ends={},
        operation=operation,
        lent=known.lent or new,
        generation=max(revision, known.generation + 1) if rebuild and new else known.generation,
    )


def finishing(known: MirrorRecord, operation: str, ends: Mapping[int, int]) -> MirrorRecord | None:
    """A move's ship that is to end where the source ends; None: it is another operation's, or not running."""
    if known.operation != operation or known.state not in ("running", "finishing"):
        return None
    return msgspec.structs.replace(known, state="finishing", ends=dict(ends))


def back(known: MirrorRecord, operation: str) -> MirrorRecord | None:
    """What becomes of a move's ship when that is given up: a lent one goes on, others go (None)."""
    if known.operation != operation:
        return known
    return msgspec.structs.replace(known, state="running", ends={}, operation=None, lent=False) if known.lent else None


def has_finished(record: MirrorRecord, found: Iterable[FinishedRecord]) -> bool:
    """Whether all of its units say so, `found` being what is under its keys: of this operation, generation and ends."""
    if record.state != "finishing":
        return False
    ends: dict[int, int] = {}
    for one in found:
        if (one.operation, one.generation) == (record.operation, record.generation):
            ends.update(one.ends)
    return ends == record.ends
