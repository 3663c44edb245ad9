"""Facts for the machine: what the ledger holds, and what brokers said of the present record."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata_service.migrating.ledger import Ledger
from metadata_service.migrating.mirrors import copy_of
from metadata_service.models import TRANSACTION_HOMES, mirror_key, stub_key
from metadata_service.operations.facts import Copy, Ends, Facts, Known, Part, Probe
from metadata_service.operations.records import ENDED, HOLD_REPORTS, HoldReport, MigrationRecord
from metadata_service.records import decode
from metadata_service.view import View


@dataclass
class Seen:
    """What brokers said, asked after the record of `revision` was read; dropped when the record changes."""

    revision: int
    settings: dict[str, dict[str, str | None]] = field(default_factory=dict)
    probes: dict[Part, Probe] = field(default_factory=dict)
    ends: dict[Part, Ends] = field(default_factory=dict)
    target_ends: dict[Part, int] = field(default_factory=dict)
    target_ids: dict[str, str] = field(default_factory=dict)
    final_set: set[str] = field(default_factory=set)
    transactions: frozenset[str] | None = None
    written: set[str] = field(default_factory=set)
    emptied: set[str] = field(default_factory=set)
    closed_copies: set[str] = field(default_factory=set)


class Times:
    """When this process first saw each step and hold of a migration; boottime seconds."""

    def __init__(self) -> None:
        self.entered = 0.0
        self.held_since = 0.0
        self.quiet = 0.0
        self._step: tuple[str, int] = ("", -1)
        self._hold: tuple[str, int] = ("", -1)

    @property
    def step(self) -> str:
        """The newest one that was seen."""
        return self._step[0]

    def saw(self, record: MigrationRecord, now: float) -> None:
        if (step := (record.step, record.attempt)) != self._step:
            self._step, self.entered = step, now
        if (hold := (record.hold, record.attempt)) != self._hold:
            self._hold, self.held_since = hold, now

    def reported(self, ledger: Ledger, identifier: str, keys: list[str], now: float) -> None:
        """Of keys that have just changed: whether a worker has reported forwarded writes."""
        for key in keys:
            if key.startswith(HOLD_REPORTS) and key.endswith("/" + identifier):
                found = ledger.processes.items.get(key)
                if found is not None and decode(HoldReport, found.value).forwarded:
                    self.quiet = now

    def deadlines(self, record: MigrationRecord) -> list[float]:
        """When the machine may have to decide anew although nothing happens."""
        options = record.options
        pause = options.retry_pause * 2 ** (record.attempt - 1) if record.attempt else 0.0
        waits = (
            options.in_flight,
            options.drain_wait,
            2 * options.drain_wait,
            options.announce_after,
            1.0,
            pause,
            options.settled,
        )
        return [
            self.held_since + options.budget,
            *(self.entered + one for one in (*waits, options.redirect)),
            max(self.quiet, self.entered) + 30.0,
        ]


def gather(
    ledger: Ledger, view: View, me: str, known: Known[MigrationRecord], seen: Seen, times: Times, pending: bool
) -> Facts:
    """Everything for one decision."""
    record = known.value
    names = sorted(record.topics)
    topics = {name: found for name in names if (found := ledger.topic(name)) is not None}
    mirrors = {key: one for name in names for key, one in ledger.mirrors(name).items()}
    stubs = {key: one for name in names for key, one in ledger.stubs(name).items()}
    homes = {
        TRANSACTION_HOMES + name: home
        for name in record.options.transactional_ids
        if (home := ledger.home(TRANSACTION_HOMES, name)) is not None
    }
    copies = {}
    for name in names:
        mirror = mirrors.get(mirror_key(record.target, name, record.source))
        partitions = topics[name].value.partitions if name in topics else record.topics[name].partitions
        if mirror is not None:
            one = mirror.value
            copies[name] = copy_of(one, ledger.reports(one), ledger.finished(one), record.id, partitions)
            continue
        stub = stubs.get(stub_key(record.target, name))
        # The mirror is gone; what it has left is recorded as a stand-in, and is to be closed once.
        left = record.step == "lift" and stub is not None and not stub.value.borrowed and name not in seen.closed_copies
        copies[name] = Copy(exists=left)
    others = [one for one in view.migrations.values() if one.id != record.id and set(one.topics) & set(names)]
    return Facts(
        me=me,
        revision=known.revision,
        entered=times.entered,
        held_since=times.held_since,
        quiet=times.quiet,
        workers=ledger.workers(record.id),
        registered=ledger.registered(),
        topics=topics,
        mirrors=mirrors,
        stubs=stubs,
        homes=homes,
        copies=copies,
        settings=seen.settings,
        probes=seen.probes,
        ends=seen.ends,
        target_ends=seen.target_ends,
        final_set=frozenset(seen.final_set),
        transactions=seen.transactions,
        switch_written=frozenset(seen.written),
        emptied=frozenset(seen.emptied),
        others=frozenset(name for one in others for name in (*one.reopeners, *one.retirers)),
        earlier=tuple(one.id for one in others if one.step not in ENDED),
        pending=pending,
    )
