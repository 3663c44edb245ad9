"""What the store keeps about mirrors, in the manner of the federation's other records.

`view/links/` and `view/mirrors/` are what workers follow; assignments and reports lie outside the view, since a worker
that writes them must not thereby make a revision to acknowledge. A worker owns a unit while the assignment's record
names it and its lease lives: claimed and given back by compare-and-swap.
"""

from __future__ import annotations

from typing import Literal

import msgspec

LINKS = "view/links/"  # <source>/<target>
MIRRORS = "view/mirrors/"  # <target>/<topic>/<source>
ASSIGNMENTS = "replicator/assignments/"  # <target>/<topic>/<source>/<unit>
REPORTS = "replicator/reports/"  # <instance>/<worker>/<target>/<topic>/<source>


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unknown keys are ignored on reading, so that a record of the next version is still understood."""


class LinkRecord(_Record, frozen=True):
    """Replication from one cluster to another. `rate` is bytes a second for all of its mirrors, 0 for no limit."""

    source: str
    target: str
    rate: float = 0.0
    state: Literal["running", "paused"] = "running"


class MirrorRecord(_Record, frozen=True):
    """One topic on a link.

    `operation` names the move this mirror belongs to; `generation` is the copy's, raised when it is begun anew.
    `final` are the target's configuration values to be set once the mirror has finished; while it ships, the target is
    CreateTime with widened limits.
    """

    topic: str
    source: str
    target: str
    mode: Literal["ship", "exchange"]
    created: float
    target_id: str = ""  # the target topic's id, 32 hex digits, once it exists
    generation: int = 0
    state: Literal["running", "paused", "finishing", "finished", "removing"] = "running"
    operation: str | None = None
    final: dict[str, str] = {}


class AssignmentRecord(_Record, frozen=True):
    """Who copies a unit; bound to the worker's lease, so that it is free again when that ends."""

    instance: str
    worker: int
    partitions: tuple[int, ...]
    since: float


class PartitionReport(_Record, frozen=True):
    """A partition's figures as its worker last wrote them; offsets are the source's."""

    condition: str
    position: int
    end: int
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    detail: str = ""
    foreign: int = 0
    overtaken: int = 0


class ReportRecord(_Record, frozen=True):
    """What one worker says about one mirror (Unix seconds); written every few seconds, bound to its lease."""

    at: float
    partitions: dict[int, PartitionReport] = {}


def link_key(source: str, target: str) -> str:
    return f"{LINKS}{source}/{target}"


def mirror_key(target: str, topic: str, source: str) -> str:
    return f"{MIRRORS}{target}/{topic}/{source}"


def assignment_key(target: str, topic: str, source: str, unit: int) -> str:
    return f"{ASSIGNMENTS}{target}/{topic}/{source}/{unit}"


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
