"""Who copies what: which units a worker claims, and which it gives back. Pure, and the same for all who decide.

A unit belongs to whoever wrote its key into the store, until that key is gone. Every worker computes the same wanted
spread out of what it sees, and does its own part of it: it claims free units that are meant for it, and gives back
what is meant for others. Where two see different things for a moment, the store lets one of them have a unit.

The spread is even within one unit. A worker keeps what it has, except for what it has too much of: so a worker that
joins takes its share from the fullest, and one that dies leaves its own to all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class UnitKey(NamedTuple):
    """A unit of a mirror, as it is claimed."""

    target: str
    topic: str
    source: str
    number: int


class Copier(NamedTuple):
    """A replicator worker."""

    instance: str
    worker: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What one worker is to do now."""

    claim: tuple[UnitKey, ...] = ()
    give_back: tuple[UnitKey, ...] = ()


def spread(
    units: Collection[UnitKey], held: Mapping[UnitKey, Copier], workers: Collection[Copier]
) -> dict[UnitKey, Copier]:
    """Who is to have each unit; empty where there is no worker. `held`: what the store says now."""
    if not workers:
        return {}
    wanted = set(units)
    has: dict[Copier, list[UnitKey]] = {worker: [] for worker in sorted(workers)}
    for unit in sorted(wanted & held.keys()):
        if held[unit] in has:
            has[held[unit]].append(unit)
    low, extra = divmod(len(wanted), len(has))
    # Who has most may have one more than the others: then it need not be moved.
    fullest = sorted(has, key=lambda worker: (-len(has[worker]), worker))
    quota = {worker: low + (rank < extra) for rank, worker in enumerate(fullest)}
    out: dict[UnitKey, Copier] = {}
    for worker, some in has.items():
        out.update((unit, worker) for unit in some[: quota[worker]])
    free = iter(sorted(wanted - out.keys()))
    room = {worker: quota[worker] - min(len(some), quota[worker]) for worker, some in has.items()}
    # In turn, so that the units of one large topic come to different workers.
    while any(room.values()):
        for worker, left in room.items():
            if left:
                out[next(free)] = worker
                room[worker] -= 1
    return out


def decide(
    units: Collection[UnitKey], held: Mapping[UnitKey, Copier], workers: Collection[Copier], me: Copier
) -> Decision:
    """What `me` claims and gives back. A unit that somebody else still holds is claimed by nobody."""
    wanted = spread(units, held, workers)
    return Decision(
        tuple(sorted(unit for unit, worker in wanted.items() if worker == me and unit not in held)),
        tuple(sorted(unit for unit, worker in held.items() if worker == me and wanted.get(unit) != me)),
    )
