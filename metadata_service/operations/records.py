"""What the store keeps of a migration: one record a migration, beside its OperationRecord.

Everything that must be judged together stands in one key, `view/migrations/<id>`, below `view/`, since workers act by
it. So holding, lifting and switching are compare-and-swaps against one revision, and two of them can never both win.
The OperationRecord keeps what people read (`face`), and is written in the same commit by whoever records a step; a
worker that lifts writes this record only. No clock is recorded: boottime clocks of two machines tell each other
nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MIGRATIONS = "view/migrations/"  # <operation id>
HOLD_REPORTS = "workers/holds/"  # <instance>/<role>-<worker>/<operation id>, bound to the worker's lease

Step = Literal[
    "plan",
    "ship",
    "caught_up",
    "drain",
    "hold",
    "close",
    "settle",
    "finish",
    "switch",
    "release",
    "announce",
    "redirect",
    "retire",
    "lift",
    "done",
    "aborted",
    "failed",
]
"""What is being worked on: all before it has been established. After `announce`, clients are served by the target."""

Hold = Literal["open", "draining", "held", "lifted", "switched", "released", "announced", "over"]
"""What workers do with the topics' writes. `lifted`: the switch can not come any more, the source is being reopened."""

ENDED: frozenset[Step] = frozenset({"done", "aborted", "failed"})
BEFORE_SWITCH: frozenset[Step] = frozenset(
    {"plan", "ship", "caught_up", "drain", "hold", "close", "settle", "finish", "lift"}
)
LIFTABLE: frozenset[Hold] = frozenset({"draining", "held"})
SWITCHED: frozenset[Hold] = frozenset({"switched", "released", "announced", "over"})

Offsets = dict[str, dict[int, int]]
"""By topic and partition."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unknown keys are ignored on reading, so that a record of the next version is still understood."""


class Options(_Record, frozen=True):
    """What the plan fixed. Times are seconds, by the clock of whoever waits."""

    budget: float = 3.0  # how long writes may be held before anybody lifts the hold
    drain_wait: float = 60.0  # how long open transactions may take to end
    abort_transactions: bool = False  # after that: end them (error 120 for their producers) instead of giving up
    settled: float = 1.0  # how long copies have caught up before a hold: those just begun are busy with themselves
    max_lag: int = 1000  # a hold starts once each topic is that close, in records
    attempts: int = 5  # holds before the migration fails
    retry_pause: float = 5.0  # before the second hold; doubles with each
    in_flight: float = 0.25  # how long writes on their way are waited for before the source is closed
    announce_after: float = 2.0  # after release, whoever has not reported
    redirect: float = 600.0  # how long producers may take to follow by themselves
    leave_acls: bool = False  # whether clients keep their rights on the target is the operator's concern
    transactional_ids: tuple[str, ...] = ()  # whose home moves with the topics


class Moving(_Record, frozen=True):
    """One topic of the group. `reuse`: the target holds a former copy that is fit to be continued."""

    source_id: str  # physical topic ids, 32 hex digits
    target_id: str = ""
    partitions: int = 1
    reuse: bool = False
    rebuild: bool = False  # the target holds a copy or stub that is emptied first
    waits_for: int = 0  # the store revision by which the target ceased to serve it: see `ship`
    final: dict[str, str] = {}  # the target's configuration once the mirror has finished


class MigrationRecord(_Record, frozen=True):
    """`attempt` counts holds; what a worker or a broker said of an earlier attempt means nothing any longer.

    `saved` are the source's own settings, per topic, recorded before it is closed and kept from then on: a closed
    topic's settings are never read as its own. `closing`: a Close may be on its way, or done. `reopeners` may have
    something on its way that opens (or closes) a topic, here or on the target, `retirers` a deletion of the old copy:
    names of processes, taken out by themselves once all of it is answered, or by their registration's removal. `ends`
    are the settled physical ends of the source, `cut` the same as logical offsets: the first ones of the new placement
    epoch. `opened` is where they lie on the target.
    """

    id: str
    topics: dict[str, Moving]
    source: str
    target: str
    options: Options = Options()
    step: Step = "plan"
    hold: Hold = "open"
    attempt: int = 0
    wanted: Literal["run", "pause", "abort"] = "run"
    reason: str = ""  # why it was lifted last, or what it ended with
    ending: Literal["", "aborted", "failed"] = ""  # decided: once it is lifted and tidied up, it ends so
    closing: bool = False
    saved: dict[str, dict[str, str | None]] = {}
    reopeners: tuple[str, ...] = ()
    retirers: tuple[str, ...] = ()
    ends: Offsets = {}
    cut: Offsets = {}
    opened: Offsets = {}
    switched_at: int = 0  # a store revision at which the switch was known
    emptied: bool = False  # the old copies hold nothing any longer
    forced: tuple[str, ...] = ()  # workers the operator states to be dead
    taken_over: str = ""  # the later migration that has taken over what was left to do


class HoldReport(_Record, frozen=True):
    """What a worker says about one migration. `revision` is that of the migration's record by which it acts; nothing
    it does is judged by an older one any longer. `drained`: none of its writes is on its way to the source. `passed`:
    none of those that were on their way when it began to hold, or to drain, is.

    `ready`: it has the target's tables and producer guard, up to the settled end. `unanswered`: held writes, and
    forwarded ones, whose clients have no answer yet.
    """

    attempt: int
    revision: int
    drained: bool = False
    passed: bool = True
    ready: bool = False
    unanswered: int = 0
    forwarded: int = 0  # writes forwarded since the report before


def migration_key(identifier: str) -> str:
    return MIGRATIONS + identifier


def face(record: MigrationRecord) -> tuple[Literal["running", "paused", "done", "failed", "aborted"], str]:
    """(state, step) for the OperationRecord."""
    if record.step in ENDED:
        return record.step, record.step  # type: ignore[return-value]
    resting = record.step in ("plan", "ship", "caught_up") and record.hold == "open"
    return ("paused" if record.wanted == "pause" and resting else "running"), record.step


def parts(record: MigrationRecord) -> list[tuple[str, int]]:
    """Every (topic, partition) of the group."""
    return [(name, index) for name, one in sorted(record.topics.items()) for index in range(one.partitions)]
