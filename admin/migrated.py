"""What is seen of migrations: how far one is, what the doctor finds, and the metrics. Pure, from facts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from admin.contract import Document
from admin.mirrored import Seen, condition, seen
from metadata_service.doctor import SHOWN, Finding
from metadata_service.models import WorkerRecord, process_name
from metadata_service.operations.migration import STEPS, abortable
from metadata_service.operations.records import BEFORE_SWITCH, ENDED, Hold, MigrationRecord
from metadata_service.status import Facts
from metadata_service.view import View
from runtime.metrics import Sample

SERVED: frozenset[Hold] = frozenset({"announced", "over"})  # clients are served by the target
METRICS_ENDED = 20  # migrations that have ended and are still in the metrics, the newest
COPYING = ("plan", "ship", "caught_up")


def served(record: MigrationRecord) -> bool:
    """Whether clients are served by the new cluster, and know it."""
    return record.hold in SERVED and record.step not in ("aborted", "failed")


def progress(facts: Facts, identifier: str) -> Document | None:
    """How far a migration is; None for an operation that is none."""
    record = facts.view.migrations.get(identifier)
    if record is None:
        return None
    operation = facts.view.operations.get(identifier)
    known = seen(facts)
    topics = [_topic(facts, known, record, name) for name in sorted(record.topics)]
    sizes = [one["lag_bytes"] for one in topics if isinstance(one["lag_bytes"], int)]
    lags = [one["lag"] for one in topics if isinstance(one["lag"], int)]
    rate = sum(one["rate"] for one in topics if isinstance(one["rate"], float))
    copying = record.step in COPYING and len(lags) == len(topics)
    result = operation.result if operation is not None else {}
    row = STEPS.get(record.step)
    return {
        "source": record.source,
        "target": record.target,
        "step": record.step,
        "means": row.true if row is not None else None,
        "hold": record.hold,
        "wanted": record.wanted,
        "attempt": record.attempt,
        "reason": record.reason or None,
        "waits": _waits(facts, record) or None,
        "served": served(record),
        "abortable": record.step not in ENDED and abortable(record),
        "serving": record.source
        if record.step in BEFORE_SWITCH or record.step in ("aborted", "failed")
        else record.target,
        "lag": sum(lags) if copying else None,
        "lag_bytes": sum(sizes) if copying and len(sizes) == len(topics) else None,
        "rate": rate or None,
        "seconds_left": sum(sizes) / rate if copying and rate and len(sizes) == len(topics) else None,
        "held_ms": result.get("pause_ms"),
        "steps_ms": result.get("steps_ms"),
        "reopeners": list(record.reopeners),
        "retirers": list(record.retirers),
        "emptied": record.emptied,
        "taken_over": record.taken_over or None,
        "transactional_ids": list(record.options.transactional_ids),
        "topics": topics,
    }


def _topic(facts: Facts, known: dict[tuple[str, str, str], Seen], record: MigrationRecord, name: str) -> Document:
    key = (record.target, name, record.source)
    mirror, one = facts.view.mirrors.get(key), known.get(key)
    lag: int | None = None
    size: int | None = None
    if mirror is not None and one is not None and one.partitions:
        parts = one.partitions.values()
        if len(one.partitions) >= record.topics[name].partitions and all(part.position >= 0 for part in parts):
            lag = sum(max(part.end - part.position, 0) for part in parts)
            size = sum(max(part.lag_bytes, 0) for part in parts)
    return {
        "topic": name,
        "partitions": record.topics[name].partitions,
        "condition": condition(mirror, one, False) if mirror is not None and one is not None else None,
        "lag": lag,
        "lag_bytes": size,
        "rate": one.rate if mirror is not None and one is not None else None,
    }


def line(view: View, identifier: str) -> Document:
    """What the list of operations says besides of a migration; empty for others."""
    record = view.migrations.get(identifier)
    if record is None:
        return {}
    return {"source": record.source, "target": record.target, "topics": sorted(record.topics)}


# -- the doctor -------------------------------------------------------------------------------------------------------


def findings(facts: Facts) -> list[Finding]:
    """What is wrong with migrations."""
    found = [*_states(facts), *_processes(facts)]
    return found[: 2 * SHOWN]


def _states(facts: Facts) -> Iterator[Finding]:
    started = {name: one.started for name, one in facts.view.operations.items()}
    newest: dict[str, str] = {}
    for identifier, record in sorted(facts.view.migrations.items(), key=lambda one: started.get(one[0], 0.0)):
        newest.update(dict.fromkeys(record.topics, identifier))
    for identifier, record in sorted(facts.view.migrations.items()):
        names = _names(record.topics)
        look = f"kfed operations {identifier}"
        if record.step in ("failed", "aborted"):
            still = [name for name in record.topics if newest[name] == identifier and _there(facts, record, name)]
            if record.step == "failed" and still:
                again = f"kfed migrate {_arguments(record)} --to {record.target}"
                text = f"moving {names} to {record.target} has failed, {record.source} serves: {record.reason}"
                yield Finding("warning", "migration", identifier, text, f"{look}; {again}")
            continue
        if record.step in ENDED:
            continue
        waits = f" ({text})" if (text := _waits(facts, record)) else ""
        if record.wanted == "pause":
            text = f"moving {names} to {record.target} is paused at {record.step}"
            yield Finding("note", "migration", identifier, text, f"kfed operations {identifier} --resume")
        elif record.attempt and record.step in ("caught_up", "lift"):
            text = f"hold {record.attempt} of {names} was lifted: {record.reason}{waits}; it tries again by itself"
            yield Finding("warning", "migration", identifier, text, f"{look}; kfed operations {identifier} --abort")
        known = seen(facts)
        for name in record.topics:
            one = known.get((record.target, name, record.source))
            if record.step in COPYING and one is not None and one.problems:
                text = f"{name} cannot be copied to {record.target}: {one.problems[0]}"
                yield Finding("error", "migration", identifier, text, f"kfed mirrors {shlex.quote(name)}")


def _there(facts: Facts, record: MigrationRecord, name: str) -> bool:
    """Whether it is the topic that was to be moved: not where that was deleted."""
    served = facts.view.topics.get(name)
    ids = {one.topic_id for one in served.record.timeline} if served is not None else set()
    return record.topics[name].source_id in ids


def _processes(facts: Facts) -> Iterator[Finding]:
    """Dead ones that migrations wait for: only an operator knows that they are dead."""
    silent = {process_name(one): (key, one) for key, one in facts.workers.items() if key not in facts.leases}
    named: dict[str, set[str]] = {}
    for record in facts.view.migrations.values():
        for name in {*record.reopeners, *record.retirers} - set(record.forced):
            if name in silent:
                named.setdefault(name, set()).update(record.topics)
    waiting = [one for one in facts.view.migrations.values() if one.step not in ENDED and not one.taken_over]
    for name, (key, worker) in sorted(silent.items()):
        if name in named:
            text = (
                f"{_described(worker)} was not heard to have nothing on its way that opens or closes "
                f"{_names(named[name])}: no move of them goes on"
            )
            yield Finding("error", "migration waits", key, text, _dead(key))
        elif worker.role == "proxy" and waiting:
            ids = ", ".join(sorted(one.id for one in waiting))
            text = f"{_described(worker)} is not heard from, and may know nothing of what has moved; {ids} waits for it"
            yield Finding("error", "migration waits", key, text, _dead(key))


def _described(worker: WorkerRecord) -> str:
    return f"{worker.role} {worker.worker} of {worker.instance} (pid {worker.pid} on {worker.host})"


def _dead(key: str) -> str:
    return f"start it again, or if it is certainly dead; kfed proxies --dead {shlex.quote(key)} --apply"


def _waits(facts: Facts, record: MigrationRecord) -> str:
    """What it waits for at this very step."""
    told = facts.waits.get(record.id)
    return told.text if told is not None and told.step == record.step else ""


def _names(topics: Iterable[str]) -> str:
    names = sorted(topics)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _arguments(record: MigrationRecord) -> str:
    return " ".join(shlex.quote(one) for one in sorted(record.topics))


# -- metrics ----------------------------------------------------------------------------------------------------------


def samples(facts: Facts) -> Iterator[Sample]:
    """Of all migrations that have not ended, and of the newest that have."""
    counts: dict[str, int] = dict.fromkeys(("running", "paused", "done", "failed", "aborted"), 0)
    ended: list[tuple[float, str]] = []
    for identifier, record in facts.view.migrations.items():
        operation = facts.view.operations.get(identifier)
        if operation is not None:
            counts[operation.state] = counts.get(operation.state, 0) + 1
        if record.step in ENDED:
            ended.append((operation.started if operation is not None else 0.0, identifier))
    for state, count in counts.items():
        yield "kfed_migrations", (state,), float(count)
    shown = {identifier for _, identifier in sorted(ended)[-METRICS_ENDED:]}
    for identifier, record in sorted(facts.view.migrations.items()):
        if record.step in ENDED and identifier not in shown:
            continue
        labels = (identifier, record.source, record.target)
        yield "kfed_migration_step", (*labels, record.step), 1.0
        yield "kfed_migration_attempts", labels, float(record.attempt)
        now = progress(facts, identifier) or {}
        if isinstance(lag := now.get("lag"), int):
            yield "kfed_migration_lag_records", labels, float(lag)
        if isinstance(held := now.get("held_ms"), int | float):
            yield "kfed_migration_held_seconds", labels, held / 1000
