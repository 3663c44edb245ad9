"""What is seen of mirrors: their document, and what the doctor finds. Pure, from facts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from admin.contract import Document
from metadata_service.doctor import SHOWN, Finding
from metadata_service.mirrorkeeping import missing_standbys
from metadata_service.models import MirrorRecord, PartitionReport, ReportRecord, is_internal
from metadata_service.status import Facts
from replicator.reporting import REPORTED
from replicator.states import STOPPED, WAY_OUT, Condition

NOBODY_AFTER = 20.0  # seconds a new mirror may be without a worker
COPYING = frozenset({"running", "finishing"})
# The condition of a mirror is that of its partitions which comes first here, after those that stop.
_ORDER = (Condition.STARTING, Condition.COPYING, Condition.CAUGHT_UP)
_BEGUN = frozenset({Condition.COPYING.value, Condition.CAUGHT_UP.value})
_ANEW = frozenset(
    {Condition.TRUNCATED, Condition.RECREATED, Condition.TARGET_LOST, Condition.OCCUPIED, Condition.INCOMPLETE}
)


@dataclass(slots=True)
class Seen:
    """A mirror as its workers say."""

    partitions: dict[int, PartitionReport] = field(default_factory=dict)
    units: dict[int, str] = field(default_factory=dict)  # the worker, by unit
    rate: float = 0.0
    problems: list[str] = field(default_factory=list)
    error: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def workers(self) -> list[str]:
        return sorted(set(self.units.values()))

    def add(self, one: ReportRecord) -> None:
        self.partitions.update(one.partitions)
        self.rate += one.rate
        self.problems += [text for text in one.problems if text not in self.problems]
        self.remarks += [text for text in one.remarks if text not in self.remarks]
        self.error = self.error or one.error


def seen(facts: Facts) -> dict[tuple[str, str, str], Seen]:
    """By (target, topic, source)."""
    out: dict[tuple[str, str, str], Seen] = {key: Seen() for key in facts.view.mirrors}
    for key, report in sorted(facts.reports.items()):
        target, topic, source = key.split("/")[-3:]
        if (one := out.get((target, topic, source))) is not None:
            one.add(report)
    for key, assignment in sorted(facts.assignments.items()):
        target, topic, source, number = key.split("/")
        if (one := out.get((target, topic, source))) is not None:
            one.units[int(number)] = f"{assignment.instance}/{assignment.worker}"
    return out


def condition(record: MirrorRecord, one: Seen, paused: bool) -> str:
    """One word for a whole mirror."""
    if record.state not in COPYING:
        return record.state
    if paused:
        return "paused"
    found = {part.condition for part in one.partitions.values()}
    ordered = {word.value for word in _ORDER}
    if stops := sorted(found - ordered):
        return stops[0]
    if not one.workers:
        return "unassigned"
    if one.problems and not found:
        return Condition.UNFIT.value
    return next((word.value for word in _ORDER if word.value in found), Condition.STARTING.value)


def waiting(facts: Facts, record: MirrorRecord, one: Seen) -> str | None:
    """Why a mirror does not copy as a whole; None: it does. What waits for somebody begins with `stopped`."""
    for number, part in sorted(one.partitions.items()):
        if part.condition in STOPPED:
            return (
                f"stopped: partition {number} is {part.condition} ({part.detail}); {WAY_OUT[Condition(part.condition)]}"
            )
    if one.problems:
        return f"stopped: {'; '.join(one.problems[:3])}"
    if one.error:
        return one.error
    if not one.workers:
        return "no replicator worker has taken it yet (kfed serve replicator, or replicator.workers)"
    cluster = facts.view.clusters.get(record.source)
    topic = cluster.snapshot.topics.get(record.topic) if cluster is not None else None
    begun = [part for part in one.partitions.values() if part.condition in _BEGUN]
    expected = min(len(topic.partitions) if topic is not None else 1, REPORTED)
    if len(begun) < max(expected, len(one.partitions)):
        return "it is starting"
    return None if record.target_id else "it is starting"


def _lag(parts: Iterable[PartitionReport]) -> Document:
    parts = list(parts)
    behind = [max(part.end - part.position, 0) for part in parts if part.end >= 0 and part.position >= 0]
    sizes = [part.lag_bytes for part in parts if part.lag_bytes >= 0]
    return {
        "records": sum(behind) if behind else None,
        "bytes": sum(sizes) if sizes else None,
        "seconds": max(part.lag_seconds for part in parts) if parts else None,
    }


def _line(facts: Facts, record: MirrorRecord, one: Seen) -> Document:
    paused = _paused(facts, record)
    made_by = "rule" if record.rule else f"operation {record.operation}" if record.operation else "operator"
    return {
        "topic": record.topic,
        "source": record.source,
        "target": record.target,
        "mode": record.mode,
        "state": record.state,
        "condition": condition(record, one, paused),
        "waiting": waiting(facts, record, one) if record.state in COPYING and not paused else None,
        "lag": _lag(one.partitions.values()),
        "rate": one.rate,
        "workers": one.workers,
        "units": {str(number): worker for number, worker in sorted(one.units.items())},
        "made_by": made_by,
        "created": record.created,
        "target_id": record.target_id or None,
        "problems": [*one.problems, *([one.error] if one.error else [])],
        "remarks": one.remarks,
        "foreign": sum(part.foreign for part in one.partitions.values()),
        "overtaken": sum(part.overtaken for part in one.partitions.values()),
        "partitions": [
            {
                "partition": number,
                "condition": part.condition,
                "detail": part.detail,
                "position": part.position if part.position >= 0 else None,
                "end": part.end if part.end >= 0 else None,
                "lag": _lag([part]),
                "foreign": part.foreign,
                "overtaken": part.overtaken,
            }
            for number, part in sorted(one.partitions.items())
        ],
    }


def document(facts: Facts, topic: str | None = None) -> Document:
    """All mirrors, or those of a topic, by topic."""
    known = seen(facts)
    records = sorted(facts.view.mirrors.values(), key=lambda one: (one.topic, one.source, one.target))
    return {
        "mirrors": [
            _line(facts, one, known[one.target, one.topic, one.source])
            for one in records
            if topic is None or one.topic == topic
        ]
    }


def _paused(facts: Facts, record: MirrorRecord) -> bool:
    link = facts.view.links.get((record.source, record.target))
    return link is not None and link.state == "paused"


# -- the doctor -------------------------------------------------------------------------------------------------------


def findings(facts: Facts, now: float) -> list[Finding]:
    """What is wrong with mirrors. `now`: Unix seconds."""
    known = seen(facts)
    found: list[Finding] = []
    for key, record in sorted(facts.view.mirrors.items()):
        found += _of_mirror(facts, record, known[key], now)
    found += _standbys(facts)
    return found[: 5 * SHOWN]


def _of_mirror(facts: Facts, record: MirrorRecord, one: Seen, now: float) -> Iterator[Finding]:
    subject = f"{record.topic} {record.source} -> {record.target}"
    options = f"--from {record.source} --to {record.target}"
    if record.state == "removing":
        yield Finding("note", "mirror", subject, "it is being removed", "wait; it goes on by itself")
        return
    if record.state not in COPYING or _paused(facts, record):
        return
    if not one.workers and now - record.created > NOBODY_AFTER:
        text = "nobody copies it: no replicator worker holds its units"
        yield Finding("error", "mirror", subject, text, "kfed serve replicator; set replicator.workers above 0")
    by_condition: dict[tuple[str, str], list[int]] = {}
    for number, part in sorted(one.partitions.items()):
        if part.condition in STOPPED or part.condition in _WAITS:
            by_condition.setdefault((part.condition, part.detail), []).append(number)
    for (word, detail), numbers in by_condition.items():
        text = f"{_numbers(numbers)} {word}{f': {detail}' if detail else ''}"
        yield Finding("error", "mirror stopped", subject, text, _way_out(record, Condition(word)))
    for text in one.problems:
        mend = f"give the target's topic back this setting; kfed mirrors {_name(record.topic)}"
        yield Finding("error", "mirror target", subject, f"on {record.target} {text}", mend)
    if one.error:
        yield Finding("warning", "mirror", subject, one.error, f"kfed clusters; kfed mirrors {_name(record.topic)}")
    for text in one.remarks:
        yield Finding("note", "mirror rules", subject, text, f"decide whether {record.target} needs it, there")
    foreign = sum(part.foreign for part in one.partitions.values())
    if foreign:
        text = f"{foreign} records in the copy were written by others; they are never served"
        yield Finding("warning", "foreign writes", subject, text, f"stop who writes to {record.target} directly")
    overtaken = sum(part.overtaken for part in one.partitions.values())
    if overtaken:
        text = f"{overtaken} offsets were removed by retention at {record.source} before they were copied"
        faster = f"kfed mirror create {_name(record.topic)} {options} --rate 0 --apply"
        mend = f"lengthen retention there, or let it copy faster; {faster}"
        yield Finding("warning", "overtaken", subject, text, mend)


_WAITS = frozenset({"denied", "unfit"})


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(str(one) for one in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
    return f"partition {shown} is" if len(numbers) == 1 else f"partitions {shown} are"


def _name(topic: str) -> str:
    """A topic's name as it may be pasted into a shell."""
    return shlex.quote(topic)


def _way_out(record: MirrorRecord, word: Condition) -> str:
    """What to do about it, with the commands."""
    options = f"{_name(record.topic)} --from {record.source} --to {record.target}"
    text = WAY_OUT[word]
    if word in _ANEW:
        commands = f"kfed mirror remove {options} --delete-copy --apply"
        again = "" if record.rule else f"; kfed mirror create {options} --apply"
        return f"{text}; {commands}{again}"
    if word is Condition.MISSING:
        return f"{text}; kfed mirror remove {options} --apply"
    return text


def _standbys(facts: Facts) -> Iterator[Finding]:
    """Standbys that a rule names, and that cannot be made."""
    view = facts.view
    for name, served in sorted(view.topics.items()):
        record = served.record
        if not record.standbys or is_internal(name):
            continue
        have = {one.target for one in view.mirrors_of(name)}
        soon = set(missing_standbys(view, record))
        for target in record.standbys:
            if target in have or target in soon or target == record.cluster:
                continue
            cluster = view.clusters.get(target)
            if cluster is None or not cluster.snapshot.reachable:
                text, mend = f"{target} cannot be reached, so it has no copy", "kfed clusters"
            elif target in record.conflict:
                text = f"{target} has an unrelated topic of this name, so it gets no copy"
                mend = f"delete that topic on {target}, or take {target} out of standbys"
            else:
                text = f"{target} cannot be its standby: other mirrors of the topic are in the way"
                mend = f"kfed mirrors {_name(name)}"
            yield Finding("warning", "standby", name, text, mend)
