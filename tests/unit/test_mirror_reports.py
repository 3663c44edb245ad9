"""What a worker writes of its mirrors: small enough for the store, and the worst first."""

from __future__ import annotations

from metadata_service.models import ReportRecord
from metadata_service.records import decode, encode
from metadata_service.store.contract import MAX_COMMIT_BYTES
from replicator.reporting import REPORTED, report
from replicator.states import Condition, Status
from replicator.worker import Mirror, Progress

PROGRESS = Progress(Mirror("t", "east", "west"), lambda _: True)


def test_a_report_says_what_a_partition_is_in() -> None:
    status = Status(Condition.CORRUPT, "at 7", position=7, end=9, foreign=1, overtaken=2, behind_since=100.0)
    made = report(PROGRESS, {4: status}, 12.34, 110.0)
    assert decode(ReportRecord, encode(made)) == made
    part = made.partitions[4]
    assert (part.condition, part.detail, part.position, part.end, part.lag_seconds) == ("corrupt", "at 7", 7, 9, 10.0)
    assert (part.foreign, part.overtaken, made.rate) == (1, 2, 12.3)


def test_a_source_without_the_topic_is_missing_after_a_while() -> None:
    assert report(PROGRESS, {}, 0.0, 1.0).partitions == {}
    assert report(PROGRESS, {}, 0.0, 1.0, missing=True).partitions[0].condition == "missing"
    assert report(PROGRESS, {3: Status()}, 0.0, 1.0, missing=True).partitions.keys() == {3}


def test_a_report_fits_into_a_commit() -> None:
    statuses = {n: Status(Condition.COPYING, "x" * 5000, position=1 << 60, end=(1 << 60) + n) for n in range(9000)}
    statuses[5] = Status(Condition.CORRUPT, "it")
    made = report(PROGRESS, statuses, 0.0, 1.0)
    assert len(made.partitions) == REPORTED and 5 in made.partitions and 8999 in made.partitions
    assert len(encode(made)) < MAX_COMMIT_BYTES
