"""Moving a group of topics to another cluster while they are in use: the machine of one migration.

    decision = advance(record, facts, now)

A function from what is recorded and what was seen to one commit, or to commands that bring about what the recorded step
waits for. It remembers nothing, so any process may carry on at any time, and two that believe to be the controller ask
for the same things. What holds, whatever is interrupted, delayed or repeated:

* Only a compare-and-swap of the one record ends a hold: to `switched` or to `lifted`, never both.
* The switch is recorded only after every leader of the source was seen closed and its log settled *after* the close was
  recorded, with no opening of the source possibly under way: whoever may have one, or a late close, is named in
  `reopeners` beforehand, and no hold starts while another is named. So nothing is appended to the source behind the
  recorded ends.
* Before the switch every way out leads through `lift`: the source is opened, then the held writes go there.
* A copy is opened for a mirror again only when every registered worker has acknowledged that it serves no more.

Commands may be lost, repeated, and carried out late; `commands` says what a late one does, for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from metadata_service.models import stub_key, topic_key
from metadata_service.operations import gates
from metadata_service.operations.commands import (
    AskOffsets,
    AskSettings,
    AskTransactions,
    Change,
    Close,
    CloseCopy,
    Command,
    Commit,
    CreateMirror,
    Decision,
    Empty,
    EndTransactions,
    FinishMirror,
    OpenCopy,
    Probe,
    RemoveMirror,
    Reopen,
    SetFinal,
    WriteSwitch,
)
from metadata_service.operations.facts import Facts, Known
from metadata_service.operations.records import (
    BEFORE_SWITCH,
    ENDED,
    LIFTABLE,
    SWITCHED,
    MigrationRecord,
    Offsets,
    Step,
    parts,
)
from metadata_service.operations.switching import Impossible, switch
from offset_sync.timeline import Exhausted

QUIET = 30.0  # seconds without a forwarded write, after which producers count as redirected
PASSED_WITHIN = 5.0  # seconds for writes on their way to be answered, before it is asked for open transactions
SOURCE_TOLD = 1.0  # seconds for the old cluster to take the note of the switch

Ending = Literal["", "aborted", "failed"]
Work = Callable[[MigrationRecord, Facts, float], Decision]


@dataclass(frozen=True, slots=True)
class Row:
    """One step. `true`: what holds while it is recorded. `crash`: what a dead controller means for clients here."""

    work: Work
    true: str
    crash: str


def advance(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    """What to do next. Nothing at all once it has ended."""
    if record.step in ENDED:
        return Decision()
    if record.hold in LIFTABLE:
        reason = _give_up(record, facts, now)
        if reason is not None:
            return lift(record, facts.me, *reason)
    elif record.step == "plan":
        if (ending := _ending(record, facts)) is not None and ending[1] == "failed":
            return _step(record, "failed", reason=ending[0])
    elif record.step in ("ship", "caught_up"):
        if strays := gates.strays(facts.settings, record):
            if any(name not in record.saved for name in strays):
                return _step(record, "lift", reason=f"closed by somebody else: {_names(strays)}", ending="failed")
            lifted = _set(record, step="lift", hold="lifted", closing=True, reopeners=_with(record.reopeners, facts.me))
            return Decision(Commit("lift", lifted))
        if (ending := _ending(record, facts)) is not None:
            return _step(record, "lift", reason=ending[0], ending=ending[1])
    elif record.hold in SWITCHED and _deleted(record, facts) >= set(record.topics):
        return _end(record, facts, "done", reason="deleted since", hold="over")
    return STEPS[record.step].work(record, facts, now)


def lift(record: MigrationRecord, me: str, reason: str, ending: Ending = "") -> Decision:
    """End the hold without a switch; also for a worker whose budget is over. Whoever lifts also reopens, so it is named
    first, where a close may have been sent. Nothing where there is no hold to lift."""
    if record.hold not in LIFTABLE:
        return Decision()
    reopeners = _with(record.reopeners, me) if record.closing else record.reopeners
    lifted = _set(record, step="lift", hold="lifted", reopeners=reopeners, reason=reason, ending=ending)
    return Decision(Commit("lift", lifted))


def reopened(record: MigrationRecord, facts: Facts) -> Decision:
    """Carry the lifting on: for the controller, and for the worker that lifted."""
    if record.hold != "lifted":
        return Decision()
    if not record.closing:
        return Decision(Commit("confirm", _set(record, hold="open")))
    if facts.me not in record.reopeners:  # who is named may be dead; two may reopen
        return Decision(Commit("confirm", _set(record, reopeners=_with(record.reopeners, facts.me))))
    if not gates.unopened(record, facts):
        # A request of which no answer can come any more must not keep writes waiting: the name alone stays.
        left = record.reopeners if facts.pending else _without(record.reopeners, facts.me)
        return Decision(Commit("confirm", _set(record, hold="open", closing=False, reopeners=left)))
    again = [Reopen(name, record.source, record.saved[name]) for name in sorted(record.topics)]
    return Decision(commands=(*again, Probe(record.source, tuple(parts(record)))), waits="the source is being reopened")


def take_over(record: MigrationRecord, by: str) -> Decision:
    """A later migration of its topics takes what is left to do: in the commit that begins that one. Only while clients
    are redirected: before, they are not served by the target for certain, and then the old copy is being emptied."""
    if record.step != "redirect" or record.taken_over:
        return Decision()
    return Decision(Commit("step", _set(record, taken_over=by)))


def target_known(record: MigrationRecord, target_ids: dict[str, str]) -> Decision:
    """The target's topics exist now: their physical ids, which the switch writes into the timelines."""
    topics = {name: _set(one, target_id=target_ids.get(name, one.target_id)) for name, one in record.topics.items()}
    if record.step not in ("ship", "caught_up") or topics == record.topics:
        return Decision()
    return Decision(Commit("step", _set(record, topics=topics)))


def stray(record: MigrationRecord, facts: Facts) -> Decision:
    """For the controller's housekeeping: of the newest migration of a topic, which has ended. A close of it that came
    late is undone, by a recorded reopener as always; the topic's record is written besides, so that a hold that begins
    at this moment is refused and looks again.

    `facts.settings` and `facts.probes` are of `record.source`, and only of topics that it serves.
    """
    if record.step not in ENDED or facts.earlier or facts.others:
        return Decision()
    closed = [name for name in gates.strays(facts.settings, record) if name in record.saved]
    serving = sorted(name for name in facts.topics if facts.topics[name].value.cluster == record.source)
    if not closed or serving != sorted(record.topics):
        ask: tuple[Command, ...] = (AskSettings(record.source, tuple(serving)),)
        return Decision(commands=ask if serving and not facts.settings else ())
    if facts.me not in record.reopeners:
        touched = tuple(Change(topic_key(one), facts.topics[one].value, facts.topics[one].revision) for one in serving)
        return Decision(Commit("confirm", _set(record, reopeners=_with(record.reopeners, facts.me)), touched))
    return Decision(commands=tuple(Reopen(name, record.source, record.saved[name]) for name in closed))


def confirmed(record: MigrationRecord, me: str) -> Decision:
    """For a process with nothing on its way any longer, also long after the migration has ended."""
    if me not in record.reopeners and me not in record.retirers:
        return Decision()
    left = _set(record, reopeners=_without(record.reopeners, me), retirers=_without(record.retirers, me))
    return Decision(Commit("confirm", left))


# -- before the hold --------------------------------------------------------------------------------------------------


def _plan(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if record.wanted == "abort":
        return _step(record, "aborted", reason="aborted before it began")
    return _waiting("paused") if record.wanted == "pause" else _step(record, "ship")


def _ship(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    reused = {name: one for name, one in record.topics.items() if one.reuse or one.rebuild}
    if reused and not all(_copying(record, facts, name) for name in reused):
        # The target has served these: nothing may be written there by old knowledge once it is open.
        revision = max(one.waits_for for one in reused.values())
        if missing := gates.unacknowledged(record, facts, revision):
            return _waiting(f"not known to have left {record.target}: {_names(missing)}")
        if missing := gates.hands(record, facts):
            return _waiting(f"not confirmed to have nothing on its way: {_names(missing)}")
        if facts.me not in record.reopeners:
            return _step(record, "ship", reopeners=_with(record.reopeners, facts.me))
    if all(_copying(record, facts, name) for name in record.topics):
        if facts.me in record.reopeners and not facts.pending:
            return _step(record, "ship", reopeners=_without(record.reopeners, facts.me))
        if not _lagging(record, facts):
            return _step(record, "caught_up")
    made: list[Command] = []
    for name, one in sorted(record.topics.items()):
        if facts.me in record.reopeners and name in reused:
            made.append(OpenCopy(name, record.target))
        made.append(CreateMirror(name, record.source, record.target, record.id, one.rebuild))
    made.append(AskSettings(record.source, tuple(sorted(record.topics))))
    return Decision(commands=tuple(made), waits=f"copying{_denied(record, facts)}")


def _caught_up(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if facts.me in record.reopeners and not facts.pending:
        return _step(record, "caught_up", reopeners=_without(record.reopeners, facts.me))
    if record.wanted == "pause":
        return _waiting("paused")
    if any((one.reuse or one.rebuild) and not _copying(record, facts, name) for name, one in record.topics.items()):
        return _step(record, "ship")  # a former copy is opened there, and nowhere else
    if record.attempt >= record.options.attempts:
        return _step(record, "lift", reason=f"{record.attempt} holds without success: {record.reason}", ending="failed")
    commands: tuple[Command, ...] = (
        *(
            CreateMirror(name, record.source, record.target, record.id, False)
            for name in sorted(record.topics)
            if not _copying(record, facts, name)
        ),
        AskSettings(record.source, tuple(sorted(record.topics))),
    )
    pause = record.options.retry_pause * 2 ** (record.attempt - 1) if record.attempt else 0.0
    if now - facts.entered < pause:
        return Decision(commands=commands, waits=f"another attempt in {pause - (now - facts.entered):.0f} s")
    if _lagging(record, facts):
        return Decision(commands=commands, waits=f"the mirror is behind{_denied(record, facts)}")
    if now - facts.entered < record.options.settled:
        return Decision(commands=commands, waits="the copies settle")
    if missing := gates.unfresh(record, facts):
        return Decision(commands=commands, waits=f"without a lease: {_names(missing)}")
    if missing := gates.hands(record, facts):
        return Decision(commands=commands, waits=f"not confirmed to have nothing on its way: {_names(missing)}")
    if unknown := [name for name, one in sorted(record.topics.items()) if not one.target_id]:
        return Decision(commands=commands, waits=f"the target's topics: {_names(unknown)}")
    if facts.earlier:
        return Decision(commands=commands, waits=f"still to end: {_names(list(facts.earlier))}")
    if facts.me in facts.others:
        return Decision(commands=commands, waits="this process has something on its way for an earlier move")
    if facts.pending:  # on another connection it might overtake what is sent during the hold
        return Decision(commands=commands, waits="this process has something on its way")
    if set(facts.settings) < set(record.topics):
        return Decision(commands=commands, waits="the source's settings")
    topics = {name: _set(one, partitions=facts.topics[name].value.partitions) for name, one in record.topics.items()}
    held = _set(record, step="drain", hold="draining", attempt=record.attempt + 1, topics=topics, ends={}, cut={})
    return Decision(Commit("hold", held, _hold_topics(record, facts, record.id)))


# -- holding ----------------------------------------------------------------------------------------------------------


def _drain(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if missing := gates.unheld(record, facts):
        return _waiting(f"not holding yet: {_names(missing)}")
    if now - facts.entered < PASSED_WITHIN and (missing := gates.unpassed(record, facts)):
        return _waiting(f"writes that may begin transactions are on their way: {_names(missing)}")
    ask = AskTransactions(record.source, tuple(sorted(record.topics)))
    if facts.transactions is None:
        return Decision(commands=(ask,), waits="which transactions are open")
    if facts.transactions:
        waits = f"open transactions: {_names(sorted(facts.transactions))}"
        if record.options.abort_transactions and now - facts.entered > record.options.drain_wait:
            return Decision(
                commands=(EndTransactions(record.source, tuple(sorted(facts.transactions))), ask), waits=waits
            )
        return Decision(commands=(ask,), waits=waits)
    return _step(record, "hold", hold="held")


def _hold(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if missing := gates.unheld(record, facts):
        return _waiting(f"not holding yet: {_names(missing)}")
    if now - facts.entered < record.options.in_flight and (missing := gates.undrained(record, facts)):
        return _waiting(f"writes on their way: {_names(missing)}")
    if set(facts.settings) < set(record.topics):
        return Decision(commands=(AskSettings(record.source, tuple(sorted(record.topics))),), waits="the settings")
    saved = dict(record.saved)
    for name in record.topics:
        if gates.looks_closed(facts.settings[name]):
            if name not in saved:
                return lift(record, facts.me, f"{name!r} was closed by somebody else", "failed")
        else:
            saved[name] = {key: facts.settings[name].get(key) for key in gates.CLOSED}
    # Named from the start: lifting, and the target's final settings, need it; so the hold has one commit less.
    return _step(record, "close", closing=True, saved=saved, reopeners=_with(record.reopeners, facts.me))


def _close(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if not (missing := gates.unclosed(record, facts)):
        return _step(record, "settle")
    if facts.me not in record.reopeners:
        return _step(record, "close", reopeners=_with(record.reopeners, facts.me))
    closes = [Close(name, record.source, record.saved[name]) for name in sorted({name for name, _ in missing})]
    return Decision(commands=(*closes, Probe(record.source, tuple(missing))), waits="the source is being closed")


def _settle(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if not gates.unsettled(record, facts) and facts.transactions is not None and not facts.transactions:
        ends: Offsets = {name: {} for name in record.topics}
        cut: Offsets = {name: {} for name in record.topics}
        for name, index in parts(record):
            ends[name][index] = facts.ends[(name, index)].log_end
            cut[name][index] = facts.ends[(name, index)].logical
        return _step(record, "finish", ends=ends, cut=cut)
    ask = AskTransactions(record.source, tuple(sorted(record.topics)))
    return Decision(commands=(AskOffsets(record.source, tuple(parts(record))), ask), waits="the source's log settles")


def _finish(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if facts.me not in record.reopeners:
        return _step(record, "finish", reopeners=_with(record.reopeners, facts.me))
    commands: list[Command] = []
    for name in sorted(record.topics):
        copy = facts.copies.get(name)
        if copy is None or not copy.finished or dict(copy.positions) != record.ends[name]:
            commands.append(FinishMirror(name, record.source, record.target, record.id, record.ends[name]))
        elif name not in facts.final_set:
            commands.append(SetFinal(name, record.target, gates.before_release(record.topics[name].final)))
    everything = tuple(parts(record))
    if not commands and all(one in facts.target_ends and one in facts.ends for one in everything):
        for name, index in everything:
            if facts.ends[(name, index)].log_end != record.ends[name][index]:
                return lift(record, facts.me, f"something was appended to {name}-{index} after it had settled")
        opened: Offsets = {name: {} for name in record.topics}
        for name, index in everything:
            opened[name][index] = facts.target_ends[(name, index)]
        try:
            return Decision(switch(record, facts, opened))
        except (Impossible, Exhausted) as error:
            return lift(record, facts.me, str(error), "failed")
    finished = not any(isinstance(one, FinishMirror) for one in commands)
    commands.append(AskOffsets(record.source, everything))
    if finished:
        commands.append(AskOffsets(record.target, everything))
    return Decision(commands=tuple(commands), waits="the mirror finishes")


def _give_up(record: MigrationRecord, facts: Facts, now: float) -> tuple[str, Ending] | None:
    """Why a hold must be lifted, and how the migration then ends (empty: it tries again); None: it goes on."""
    if (ending := _ending(record, facts)) is not None:
        return ending
    if record.wanted == "pause":
        return "paused", ""
    if record.hold == "held" and now - facts.held_since >= record.options.budget:
        return f"writes were held for {record.options.budget:g} s", ""
    grace = 2 if record.options.abort_transactions else 1
    if record.hold == "draining" and now - facts.entered >= record.options.drain_wait * grace:
        return "transactions did not end in time", ""
    for name, one in record.topics.items():
        known = facts.topics.get(name)
        if known is not None and known.value.partitions != one.partitions:
            return f"{name!r} is being expanded", ""
    if record.step in ("drain", "hold") and gates.unfresh(record, facts):
        return f"without a lease: {_names(gates.unfresh(record, facts))}", ""
    return None


def _ending(record: MigrationRecord, facts: Facts) -> tuple[str, Ending] | None:
    """Why the migration must end before the switch, and how."""
    if record.wanted == "abort":
        return "aborted", "aborted"
    for name, one in record.topics.items():
        known = facts.topics.get(name)
        if known is None or known.value.cluster != record.source or known.value.timeline[-1].topic_id != one.source_id:
            return f"{name!r} is not on {record.source} any longer", "failed"
        copy = facts.copies.get(name)
        if copy is not None and copy.stopped:
            return f"the mirror of {name!r} has stopped: {copy.stopped}", "failed"
    return None


# -- after the switch -------------------------------------------------------------------------------------------------


def _switch(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    both = (record.target, record.source)
    missing = gates.unready(record, facts)
    told = record.target in facts.switch_written and (
        record.source in facts.switch_written or now - facts.entered >= SOURCE_TOLD
    )
    if not missing and told:
        return Decision(Commit("release", _set(record, step="release", hold="released", switched_at=facts.revision)))
    left = tuple(one for one in both if one not in facts.switch_written)
    waits = f"not ready to serve from {record.target}: {_names(missing)}" if missing else "the switch is written down"
    return Decision(commands=(WriteSwitch(left),) if left else (), waits=waits)


def _release(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    missing = gates.unanswered(record, facts)
    if not missing or now - facts.entered >= record.options.announce_after:
        return Decision(Commit("announce", _set(record, step="announce", hold="announced")))
    return _waiting(f"held writes are being answered: {_names(missing)}")


def _announce(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if missing := gates.unheld(record, facts):
        return _waiting(f"not announcing yet: {_names(missing)}")
    return _step(record, "redirect")


def _redirect(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if record.taken_over:
        return _end(record, facts, "done", reason=f"the old copy is used by {record.taken_over}", hold="over")
    there = {name: one for name, one in sorted(record.topics.items()) if name not in _deleted(record, facts)}
    left = {name: gates.after_release(one.final) for name, one in there.items()}
    if unset := [name for name, settings in left.items() if settings and name not in facts.final_set]:
        settings = tuple(SetFinal(name, record.target, left[name]) for name in unset)
        return Decision(commands=settings, waits="the target's last settings")
    if record.wanted == "pause":
        return _waiting("paused")
    if missing := gates.unacknowledged(record, facts, record.switched_at):
        return _waiting(f"not known to have left {record.source}: {_names(missing)}")
    if now - facts.entered < record.options.redirect and now - max(facts.quiet, facts.entered) < QUIET:
        return _waiting("producers are still following")
    return _step(record, "retire", hold="over", retirers=_with(record.retirers, facts.me))


def _retire(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if facts.me not in record.retirers:
        return _step(record, "retire", retirers=_with(record.retirers, facts.me))
    if missing := gates.unacknowledged(record, facts, facts.revision):
        return _waiting(f"may still read from {record.source}: {_names(missing)}")
    left = sorted(set(record.topics) - facts.emptied - _deleted(record, facts))
    if not left and not facts.pending:
        return _end(record, facts, "done", emptied=True, retirers=_without(record.retirers, facts.me))
    return Decision(
        commands=tuple(Empty(name, record.source, record.ends[name]) for name in left), waits="the old copy is emptied"
    )


def _deleted(record: MigrationRecord, facts: Facts) -> set[str]:
    """Topics that are gone since the switch, also where there is a new one of the name: that is not to be touched."""
    out = set()
    for name, one in record.topics.items():
        known = facts.topics.get(name)
        if known is None or one.source_id not in {each.topic_id for each in known.value.timeline}:
            out.add(name)
    return out


# -- giving up --------------------------------------------------------------------------------------------------------


def _lift(record: MigrationRecord, facts: Facts, now: float) -> Decision:
    if record.hold == "lifted":
        return reopened(record, facts)
    if not record.ending:
        held = _hold_topics(record, facts, None)
        return Decision(Commit("step", _set(record, step="caught_up"), held))
    undo: list[Command] = []
    for name in sorted(record.topics):
        if (copy := facts.copies.get(name)) is None or copy.exists:
            undo += [
                RemoveMirror(name, record.source, record.target, record.id),
                CloseCopy(name, record.target),
            ]
    if undo and facts.me not in record.reopeners:
        return _step(record, "lift", reopeners=_with(record.reopeners, facts.me))
    if undo:
        return Decision(commands=tuple(undo), waits="the copy is left")
    if facts.me in record.reopeners and not facts.pending:
        return Decision(Commit("confirm", _set(record, reopeners=_without(record.reopeners, facts.me))))
    return _end(record, facts, record.ending)


STEPS: dict[Step, Row] = {
    "plan": Row(_plan, "nothing has been changed", "nothing"),
    "ship": Row(_ship, "the target is being filled", "nothing"),
    "caught_up": Row(_caught_up, "the target lacks little; nobody holds", "nothing"),
    "drain": Row(_drain, "workers hold what would begin a transaction on the topics", "transactions wait, then lifted"),
    "hold": Row(_hold, "no transaction is open; workers hold writes", "held writes wait, at most the budget"),
    "close": Row(_close, "all fresh workers hold; the saved settings are recorded", "the same; who lifts reopens"),
    "settle": Row(_settle, "every leader was seen closed", "the same"),
    "finish": Row(_finish, "nothing is appended to the source any more; its ends are recorded", "the same"),
    "switch": Row(_switch, "the target serves; writes are still held", "held writes wait, at most the queue's limit"),
    "release": Row(_release, "all workers know; held writes go to the target", "nothing"),
    "announce": Row(_announce, "clients are told the new place", "nothing"),
    "redirect": Row(_redirect, "clients move by themselves; the rest is forwarded", "nothing"),
    "retire": Row(_retire, "the old place is refused; its copy is emptied", "nothing"),
    "lift": Row(_lift, "no switch can come from this hold", "held writes wait for the source, or are refused"),
}
"""Every step that is not an end, in order."""


def abortable(record: MigrationRecord) -> bool:
    """Whether it can still be undone. Afterwards the way back is a move back."""
    return record.step in BEFORE_SWITCH


# -- small things -----------------------------------------------------------------------------------------------------


def _set(record: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(record, **changes)


def _step(record: MigrationRecord, step: Step, **changes: Any) -> Decision:
    return Decision(Commit("step", _set(record, step=step, **changes)))


def _end(record: MigrationRecord, facts: Facts, step: Step, **changes: Any) -> Decision:
    """The last commit: nothing refers to the migration any longer, and a retired copy is a stub like others."""
    also = list(_hold_topics(record, facts, None))
    if changes.get("emptied"):
        for name in sorted(record.topics):
            known = facts.stubs.get(stub_key(record.source, name))
            if known is not None and known.value.borrowed:
                also.append(Change(stub_key(record.source, name), _set(known.value, borrowed=False), known.revision))
    return Decision(Commit("end", _set(record, step=step, **changes), tuple(also)))


def _hold_topics(record: MigrationRecord, facts: Facts, hold: str | None) -> tuple[Change, ...]:
    out = []
    for name in sorted(record.topics):
        known: Known[Any] | None = facts.topics.get(name)
        if known is not None and known.value.hold != hold and (hold is not None or known.value.hold == record.id):
            out.append(Change(topic_key(name), _set(known.value, hold=hold), known.revision))
    return tuple(out)


def _copying(record: MigrationRecord, facts: Facts, name: str) -> bool:
    copy = facts.copies.get(name)
    return copy is not None and copy.ready and not copy.finished


def _lagging(record: MigrationRecord, facts: Facts) -> bool:
    lags = [facts.copies[name].lag if _copying(record, facts, name) else -1 for name in record.topics]
    return any(not 0 <= one <= record.options.max_lag for one in lags)


def _denied(record: MigrationRecord, facts: Facts) -> str:
    """The right that a mirror waits for, if any."""
    found = sorted({one.denied for name, one in facts.copies.items() if name in record.topics and one.denied})
    return f"; {found[0]}" if found else ""


def _waiting(what: str) -> Decision:
    return Decision(waits=what)


def _names(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _with(names: tuple[str, ...], me: str) -> tuple[str, ...]:
    return names if me in names else (*names, me)


def _without(names: tuple[str, ...], me: str) -> tuple[str, ...]:
    return tuple(one for one in names if one != me)
