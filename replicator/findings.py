"""What an audit of a mirror found: counts and digests by time, and ranges of offsets that are not what they should be.

Pure. A report is added to while two logs are read, and joined with the report of what was read next; its size is
limited, whatever is found: what does not fit is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MAX_BUCKETS = 4096  # of one report; records of further times are put together under OTHER
OTHER = -1  # the bucket of records without a time, and of those that did not fit
DIGEST = (1 << 64) - 1  # digests are sums that wrap around here

Kind = Literal["missing", "extra", "changed"]
Span = tuple[int, int]
"""The first and the last offset of a range."""


class Finding(NamedTuple):
    """Adjacent records with the same fault. Offsets are physical, each on its own side.

    missing: `source` holds them, the target does not; `target` is where they should lie, None if they never arrived.
    extra: `target` holds them; `source` is where they should lie, None if no mirror wrote them.
    changed: both hold them; `what` names the parts that differ.
    `time` is the newest of their timestamps, Unix ms.
    """

    kind: Kind
    records: int
    source: Span | None
    target: Span | None
    time: int
    what: tuple[str, ...] = ()

    def joined(self, other: Finding) -> Finding | None:
        """Both as one, where `other` goes on exactly behind this one."""
        if (self.kind, self.what) != (other.kind, other.what):
            return None
        if not (_adjacent(self.source, other.source) and _adjacent(self.target, other.target)):
            return None
        source = (self.source[0], other.source[1]) if self.source and other.source else None
        target = (self.target[0], other.target[1]) if self.target and other.target else None
        return Finding(self.kind, self.records + other.records, source, target, max(self.time, other.time), self.what)


def _adjacent(one: Span | None, other: Span | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[1] + 1 == other[0]


@dataclass(slots=True)
class Bucket:
    """Records of one stretch of time. The digests are sums over what each side holds: equal where nothing differs."""

    identical: int = 0
    missing: int = 0
    extra: int = 0
    changed: int = 0
    compacted: int = 0  # held by one side only, where the other side's compaction may have removed them
    source_digest: int = 0
    target_digest: int = 0

    @property
    def source(self) -> int:
        """Records on the source; what compaction took from one side counts for neither."""
        return self.identical + self.missing + self.changed

    @property
    def target(self) -> int:
        return self.identical + self.extra + self.changed


@dataclass(slots=True)
class Report:
    """Buckets by their first ms. At most `limit` findings are kept, `left_out` counts the others."""

    bucket_ms: int
    limit: int = 1000
    buckets: dict[int, Bucket] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0

    def bucket(self, time: int) -> Bucket:
        start = time - time % self.bucket_ms if time >= 0 else OTHER
        found = self.buckets.get(start)
        if found is None:
            if len(self.buckets) >= MAX_BUCKETS:
                start = OTHER
            found = self.buckets.setdefault(start, Bucket())
        return found

    def add(self, one: Finding) -> None:
        """A finding, counted in its bucket by the caller."""
        joined = self.findings[-1].joined(one) if self.findings and not self.left_out else None
        if joined is not None:
            self.findings[-1] = joined
        elif len(self.findings) < self.limit:
            self.findings.append(one)
        else:
            self.left_out += 1

    @property
    def clean(self) -> bool:
        return not self.findings and not self.left_out

    def total(self, name: str) -> int:
        """The sum of one figure over all buckets."""
        return sum(int(getattr(one, name)) for one in self.buckets.values())


def words(findings: Iterable[Finding]) -> list[str]:
    """Findings as lines for people."""
    return [
        " ".join(
            part
            for part in (
                one.kind,
                f"{one.records} {'record' if one.records == 1 else 'records'}",
                f"source {_range(one.source)}" if one.source is not None else "",
                f"target {_range(one.target)}" if one.target is not None else "",
                f"({', '.join(one.what)})" if one.what else "",
            )
            if part
        )
        for one in findings
    ]


def _range(one: Span) -> str:
    return str(one[0]) if one[0] == one[1] else f"{one[0]}-{one[1]}"
