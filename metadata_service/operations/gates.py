"""What must be true of workers and brokers before a migration goes on. Each returns who or what is still missing.

A worker without a lease is passed over where the closed source, or the worker's own rules (see `fence`), keep it
harmless; where it could do harm, every *registered* worker counts, except those that an operator states to be dead.
"""

from __future__ import annotations

from collections.abc import Mapping

from metadata_service.operations.facts import Facts, Part, Worker
from metadata_service.operations.records import MigrationRecord, parts

# Together they make every leader refuse every data batch, and let transaction markers pass.
CLOSED: Mapping[str, str] = {"max.message.bytes": "78", "compression.type": "gzip"}
SETTLED_LOOKS = 2
# Of a target's final settings those that need not be there before clients write to it: until then it takes records
# that they would refuse, and nothing else is different. Setting them takes longer than most of what clients wait for.
LATER = frozenset({"message.timestamp.before.max.ms", "message.timestamp.after.max.ms"})


def unfresh(record: MigrationRecord, facts: Facts) -> list[str]:
    """Registered workers without a lease: no hold starts, since theirs could not be seen."""
    return [one.name for one in facts.workers if not one.fresh and one.name not in record.forced]


def unheld(record: MigrationRecord, facts: Facts) -> list[str]:
    """Fresh workers that have not acknowledged this attempt's hold."""
    return [one.name for one in facts.workers if one.fresh and not _told(one, record, facts.revision)]


def undrained(record: MigrationRecord, facts: Facts) -> list[str]:
    """Fresh workers with writes on their way to the source."""
    return [
        one.name
        for one in facts.workers
        if one.fresh and not (_told(one, record, facts.revision) and one.report and one.report.drained)
    ]


def unpassed(record: MigrationRecord, facts: Facts) -> list[str]:
    """Fresh workers with writes on their way to the source that they passed on before: they may begin transactions."""
    return [one.name for one in facts.workers if one.fresh and one.report is not None and not one.report.passed]


def unclosed(record: MigrationRecord, facts: Facts) -> list[Part]:
    """Partitions whose leader has not been seen to refuse records."""
    return [one for one in parts(record) if facts.probes.get(one) != "closed"]


def unopened(record: MigrationRecord, facts: Facts) -> list[Part]:
    """Partitions whose leader has not been seen to take records."""
    return [one for one in parts(record) if facts.probes.get(one) != "open"]


def unsettled(record: MigrationRecord, facts: Facts) -> list[Part]:
    """Partitions whose log end, high watermark and last stable offset are not one and the same, seen twice."""
    out = []
    for one in parts(record):
        ends = facts.ends.get(one)
        if ends is None or not ends.log_end == ends.high_watermark == ends.last_stable or ends.looks < SETTLED_LOOKS:
            out.append(one)
    return out


def unready(record: MigrationRecord, facts: Facts) -> list[str]:
    """Fresh workers that have not acknowledged the switch, or lack the target's tables and guard."""
    return [
        one.name
        for one in facts.workers
        if one.fresh and not (_told(one, record, facts.revision) and one.report and one.report.ready)
    ]


def unanswered(record: MigrationRecord, facts: Facts) -> list[str]:
    """Fresh workers that still have held or forwarded writes to answer."""
    return [
        one.name
        for one in facts.workers
        if one.fresh and not (_told(one, record, facts.revision) and one.report and not one.report.unanswered)
    ]


def unacknowledged(record: MigrationRecord, facts: Facts, revision: int) -> list[str]:
    """Registered workers, fresh or not, that may still act by what was true before this revision."""
    return [one.name for one in facts.workers if one.acknowledged < revision and one.name not in record.forced]


def hands(record: MigrationRecord, facts: Facts) -> list[str]:
    """Processes other than this one that may have an opening, or a deletion, of one of these topics on its way."""
    named = {*record.reopeners, *record.retirers, *facts.others}
    return sorted((named & facts.registered) - {facts.me} - set(record.forced))


def before_release(final: Mapping[str, str]) -> dict[str, str]:
    """What of the final settings the target has before it takes clients' records."""
    return {name: value for name, value in final.items() if name not in LATER}


def after_release(final: Mapping[str, str]) -> dict[str, str]:
    """The rest of them."""
    return {name: value for name, value in final.items() if name in LATER}


def looks_closed(settings: Mapping[str, str | None]) -> bool:
    """Whether a topic's settings are those of a closed one."""
    return all(settings.get(name) == value for name, value in CLOSED.items())


def strays(settings: Mapping[str, Mapping[str, str | None]], record: MigrationRecord) -> list[str]:
    """Topics of the source that are closed although no close is under way: a late one has come through."""
    return [name for name, one in sorted(settings.items()) if name in record.topics and looks_closed(one)]


def _told(one: Worker, record: MigrationRecord, revision: int) -> bool:
    """Whether a worker acts by the present record. Its report says so sooner than its lease does."""
    report = one.report
    return report is not None and report.attempt == record.attempt and report.revision >= revision
