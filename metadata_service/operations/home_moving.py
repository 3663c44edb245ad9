"""Moving a group's home to another cluster: one step at a time, any controller may carry on. Pure.

What holds: *an acknowledged commit of a client that comes through the federation is at the new home when that begins to
answer, and nothing older ever overwrites a newer one there.*

- The home's record says `gathering`: workers ask members to commit and rejoin, and make those that do leave the old
  home. A worker that does not know yet does what it always did; then the group is not empty.
- It is empty, and the record says `closed`. A worker that knows passes nothing of the group on, however long it is
  cut off afterwards. So once every *registered* proxy has acknowledged this revision, and the group is still empty, no
  request can reach the old home any more whose answer reaches a client.
- Now the positions are read, and written to the new home in one transaction. A controller that carries on takes the
  transaction's id over first, so nothing of its predecessor can come true later.
- The home flips by compare-and-swap. Workers that have not seen it are still `closed`.

Every wait has a bound; after it, everything is as it was, and the operation has failed with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from metadata_service.models import HomeMove, HomeRecord

KIND = "home"  # of its OperationRecord

Step = Literal["prepare", "gather", "close", "copy", "undo", "clean", "done", "failed"]
"""What is being worked on. After `copy`, clients are served by the new home."""

Command = Literal["stubs", "evict", "copy", "undo", "clean"]
"""`stubs`: make what the new home lacks. `evict`: make members leave that have joined a moment ago. `undo`: nothing of
a copy may come true any more, and what there is of it goes. `clean`: delete the group at the old home."""

SERVED: frozenset[str] = frozenset({"clean", "done"})
ENDED: frozenset[str] = frozenset({"done", "failed"})
BUDGETS: dict[str, float] = {"prepare": 30.0, "gather": 60.0, "close": 15.0, "copy": 20.0, "undo": 15.0, "clean": 60.0}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out after the record was read. `members` of the old home, None where it does not say.

    `refusal`: why the group cannot be moved as it is. `silent`: registered proxies without a lease; `behind`: those
    that have not acknowledged the record as it was read. `copied`, `undone`, `cleaned`: by this process, in this step.
    `trouble`: what the last command failed with.
    """

    record: HomeRecord | None
    members: tuple[str, ...] | None = ()
    refusal: str = ""
    stubs: bool = True
    silent: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    copied: bool = False
    undone: bool = False
    cleaned: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    """What is to be done: `commands`, or the commit of `step` with `record` (as it is to be; `reason`: of a failure).
    Neither: wait."""

    commands: tuple[Command, ...] = ()
    step: Step | None = None
    record: HomeRecord | None = None
    reason: str = ""


def moving(record: HomeRecord | None, operation: str) -> HomeMove | None:
    """The move, where it is this operation's."""
    return (
        record.move if record is not None and record.move is not None and record.move.operation == operation else None
    )


def advance(operation: str, source: str, to: str, step: str, facts: Facts, waited: float) -> Advance:
    """The next thing to do at `step`; `waited`: seconds since the caller first saw the step."""
    record, move = facts.record, moving(facts.record, operation)
    late = waited > BUDGETS.get(step, 0.0)
    if record is None:
        return _over("failed", None, "the group was deleted meanwhile")
    if step == "prepare":
        return _prepare(operation, source, to, record, facts, late)
    if move is None:
        return _over("failed", record, "its home was changed by somebody else")
    if step == "gather":
        return _gather(record, move, facts, late)
    if step == "close":
        return _close(record, move, facts, late)
    if step == "copy":
        if facts.copied:
            return Advance(step="clean", record=_moved(record, move))
        if facts.refusal or late:
            return Advance(step="undo", record=record, reason=facts.refusal or _why("it was not copied in time", facts))
        return Advance(commands=("copy",))
    if step == "undo":
        if facts.undone or late:
            return _over("failed", _as_before(record), "")
        return Advance(commands=("undo",))
    if step == "clean":
        if facts.cleaned or late:
            left = "" if facts.cleaned else _why(f"what {move.source} had of it could not be deleted", facts)
            return _over("done", _as_before(record), left)
        return Advance(commands=("clean",))
    return Advance()


def _prepare(operation: str, source: str, to: str, record: HomeRecord, facts: Facts, late: bool) -> Advance:
    if record.cluster != source or (record.move is not None and record.move.operation != operation):
        return _over("failed", record, "its home has changed since the plan was made")
    if facts.refusal:
        return _over("failed", record, facts.refusal)
    ready = facts.stubs and not facts.silent and facts.members is not None
    if ready:
        move = HomeMove(operation=operation, source=source, to=to)
        return Advance(step="gather", record=msgspec.structs.replace(record, move=move))
    if late:
        if facts.silent:
            return _over("failed", record, f"not heard from: {', '.join(facts.silent)}; see kfed doctor")
        return _over("failed", record, _why("it could not be prepared in time", facts))
    return Advance(commands=() if facts.stubs else ("stubs",))


def _gather(record: HomeRecord, move: HomeMove, facts: Facts, late: bool) -> Advance:
    if facts.refusal:
        return _over("failed", _as_before(record), facts.refusal)
    if facts.members == ():
        closed = msgspec.structs.replace(move, state="closed")
        return Advance(step="close", record=msgspec.structs.replace(record, move=closed))
    if late:
        who = ", ".join((facts.members or ())[:5]) or "nobody knows who"
        return _over("failed", _as_before(record), _why(f"members did not rejoin in time: {who}", facts))
    return Advance()


def _close(record: HomeRecord, move: HomeMove, facts: Facts, late: bool) -> Advance:
    if facts.refusal:
        return _over("failed", _as_before(record), facts.refusal)
    if not facts.behind and facts.members == ():
        return Advance(step="copy", record=record)
    if late:
        who = ", ".join(facts.behind)
        why = f"not heard from: {who}; see kfed doctor" if who else "its members would not leave"
        return _over("failed", _as_before(record), _why(why, facts))
    return Advance(commands=("evict",) if facts.members else ())


def _moved(record: HomeRecord, move: HomeMove) -> HomeRecord:
    return msgspec.structs.replace(
        record,
        cluster=move.to,
        carry=tuple(one for one in record.carry if one != move.to),
        unasked=tuple(one for one in record.unasked if one != move.to),
        conflict=tuple(one for one in record.conflict if one not in (move.to, move.source)),
        move=msgspec.structs.replace(move, state="moved"),
    )


def _as_before(record: HomeRecord) -> HomeRecord:
    return msgspec.structs.replace(record, move=None)


def _over(step: Step, record: HomeRecord | None, reason: str) -> Advance:
    return Advance(step=step, record=record, reason=reason)


def _why(what: str, facts: Facts) -> str:
    return f"{what} ({facts.trouble})" if facts.trouble else what
