"""The plan of a move: what refuses it, and what it has to adapt. Pure: everything that was asked comes in as a value.

    verdict = judge(facts)      # verdict.refusals empty: it may begin

Each refusal names the way out. Whatever an option allows is a refusal without it and a warning with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from metadata_service.models import MirrorRecord, StubRecord, TopicRecord, is_internal
from metadata_service.operations.kinds import Allowed, Kind, allows
from metadata_service.operations.records import BEFORE_SWITCH, ENDED, MigrationRecord, Moving, Options
from metadata_service.operations.switching import MAX_CHANGES, changes, ships_of
from offset_sync.timeline import MAX_PLACEMENT_EPOCH

FOREVER = (1 << 63) - 1
DAY_MS = 86_400_000
DEFAULT_MAX_MESSAGE = 1_048_588
DEFAULT_RETENTION_MS = 7 * DAY_MS
HEADROOM = 1.2  # of the copy's size, on the target's disks


@dataclass(frozen=True, slots=True)
class Standing:
    """A topic of this name that is on the target already. `clean_end`: its end is where it was closed; `log_start` is
    logical, by its table; None: not known. `left`: a mirror of this very topic has put everything into it that it
    holds, and has stopped, as a move that was given up leaves it: a mirror goes on there by itself."""

    topic_id: str
    emptied: bool = False
    clean_end: bool = False
    left: bool = False
    log_start: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """One topic to be moved. `source_config` is in force there, `wanted_config` what the target would give it. Sizes
    are bytes. `bypassing` are producers whose ids no proxy gave out, `named` says which. `ids` are the transactional
    ids that write it, with all topics each of them writes."""

    record: TopicRecord
    kinds: frozenset[Kind] = frozenset()
    size: int = 0
    replicas: int = 1
    source_config: Mapping[str, str | None] = field(default_factory=dict)
    wanted_config: Mapping[str, str | None] = field(default_factory=dict)
    log_start: Mapping[int, int] = field(default_factory=dict)  # logical
    bypassing: int = 0
    named: str = ""
    ids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    mirrors: tuple[MirrorRecord, ...] = ()
    stub: StubRecord | None = None  # on the target
    standing: Standing | None = None  # on the target
    waits_for: int = 0  # the revision by which the target ceased to serve it


@dataclass(frozen=True, slots=True)
class Allowances:
    """What the operator accepts."""

    bypassing: bool = False
    less_retention: bool = False
    fewer_replicas: bool = False
    smaller_messages: bool = False
    abort_transactions: bool = False
    leave_ids: bool = False  # transactional ids that also write topics which stay


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """`room` is the target's free disk in bytes, over all brokers, -1 where it does not tell."""

    subjects: tuple[Subject, ...]
    target: str
    target_known: bool = True
    target_reachable: bool = True
    target_brokers: int = 1
    room: int = -1
    running: tuple[MigrationRecord, ...] = ()
    allow: Allowances = Allowances()


@dataclass(frozen=True, slots=True)
class Finding:
    """`topic` is empty where it is about the whole plan."""

    topic: str
    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}" if self.topic else self.text


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Something the plan does besides. `value` is for the machine: a number, a name."""

    topic: str
    code: str
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class Judgement:
    refusals: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    adaptations: tuple[Adaptation, ...]


def judge(facts: PlanFacts) -> Judgement:
    """What speaks against the move, and what it has to take care of."""
    found: list[tuple[bool, Finding]] = [*_cluster(facts), *_group(facts)]
    adapted: list[Adaptation] = []
    for one in facts.subjects:
        found += [*_placement(facts, one), *_kinds(facts, one), *_fits(facts, one), *_writers(facts, one)]
        found += _others(facts, one)
        adapted += _adapted(facts, one)
    refusals = tuple(finding for fatal, finding in found if fatal)
    return Judgement(refusals, tuple(finding for fatal, finding in found if not fatal), tuple(adapted))


def planned(
    identifier: str, facts: PlanFacts, judgement: Judgement, options: Options, finals: Mapping[str, dict[str, str]]
) -> MigrationRecord:
    """The record a migration begins with. `finals`: each topic's configuration on the target, once it serves.

    Raises:
        ValueError: the plan is refused.
    """
    if judgement.refusals:
        raise ValueError("; ".join(str(one) for one in judgement.refusals))
    done = {(one.topic, one.code): one.value for one in judgement.adaptations}
    topics = {
        one.record.name: Moving(
            source_id=one.record.timeline[-1].topic_id,
            target_id=one.standing.topic_id if one.standing is not None else "",
            partitions=one.record.partitions,
            reuse=(one.record.name, "reuse") in done,
            rebuild=(one.record.name, "rebuild") in done,
            waits_for=one.waits_for,
            final=finals.get(one.record.name, {}),
        )
        for one in facts.subjects
    }
    ids = tuple(sorted({name for one in facts.subjects for name in one.ids}))
    return MigrationRecord(
        id=identifier,
        topics=topics,
        source=facts.subjects[0].record.cluster,
        target=facts.target,
        options=msgspec.structs.replace(
            options, transactional_ids=ids, abort_transactions=facts.allow.abort_transactions
        ),
    )


def _cluster(facts: PlanFacts) -> Iterator[tuple[bool, Finding]]:
    if not facts.target_known:
        yield True, Finding("", "target", f"there is no active cluster {facts.target!r}")
    elif not facts.target_reachable:
        yield True, Finding("", "target", f"{facts.target} cannot be reached")


def _group(facts: PlanFacts) -> Iterator[tuple[bool, Finding]]:
    """What concerns all topics together."""
    sources = sorted({one.record.cluster for one in facts.subjects})
    if len(sources) > 1:
        text = f"topics that switch together must be on one cluster; these are on {', '.join(sources)}"
        yield True, Finding("", "sources", text)
    ships = sum(ships_of(one.mirrors, one.record.name, one.record.cluster) for one in facts.subjects)
    ids = {name for one in facts.subjects for name in one.ids}
    writes = changes(len(facts.subjects), ships, len(ids))
    if writes > MAX_CHANGES:
        text = (
            f"the switch would write {writes} records at once, {MAX_CHANGES} are possible: move fewer topics together"
        )
        yield True, Finding("", "size", text)
    needed = int(sum(one.size * min(one.replicas, facts.target_brokers) for one in facts.subjects) * HEADROOM)
    if 0 <= facts.room < needed:
        yield True, Finding("", "disk", f"{facts.target} has {facts.room} bytes free, the copies need {needed}")
    elif facts.room < 0:
        yield (
            False,
            Finding("", "disk", f"{facts.target} does not tell how much disk is free; the copies need {needed}"),
        )


def _placement(facts: PlanFacts, one: Subject) -> Iterator[tuple[bool, Finding]]:
    record, name = one.record, one.record.name
    if is_internal(name):
        yield True, Finding(name, "internal", "internal topics are never moved")
    if record.cluster == facts.target:
        yield True, Finding(name, "there", f"it is on {facts.target} already")
    if record.epoch >= MAX_PLACEMENT_EPOCH:
        yield True, Finding(name, "epochs", f"it has moved {record.epoch} times: no further move can be expressed")
    if one.standing is not None and one.standing.left:
        pass  # not somebody else's, whatever it was taken for meanwhile
    elif facts.target in record.conflict:
        text = f"{facts.target} has an unrelated topic of this name: rename or delete that one first"
        yield True, Finding(name, "conflict", text)
    elif one.stub is not None and one.stub.borrowed and not one.stub.mirrored and not _served(facts, one):
        text = f"on {facts.target} a topic of somebody else stands in for it: delete or rename that one first"
        yield True, Finding(name, "borrowed", text)
    elif one.standing is not None and one.stub is None and not _served(facts, one) and not _mirrored(facts, one):
        text = f"{facts.target} has a topic of this name that is no copy of it: rename or delete that one first"
        yield True, Finding(name, "conflict", text)


def _kinds(facts: PlanFacts, one: Subject) -> Iterator[tuple[bool, Finding]]:
    for kind, entry in allows(one.kinds, "move"):
        yield entry.allowed is Allowed.REFUSED, Finding(one.record.name, kind.value, entry.limit)


def _fits(facts: PlanFacts, one: Subject) -> Iterator[tuple[bool, Finding]]:
    """What the target would keep, take and promise less."""
    name, here, there = one.record.name, one.source_config, one.wanted_config
    deletes = "delete" in (here.get("cleanup.policy") or "delete")
    for setting, default in (("retention.ms", DEFAULT_RETENTION_MS), ("retention.bytes", -1)):
        theirs, ours = _limit(here, setting, default), _limit(there, setting, default)
        if deletes and ours < theirs:
            text = f"{setting} would be {ours} instead of {_told(theirs)}: records would be deleted earlier"
            yield not facts.allow.less_retention, Finding(name, setting, text)
    theirs, ours = (_number(each, "max.message.bytes", DEFAULT_MAX_MESSAGE) for each in (here, there))
    if ours < theirs:
        text = f"max.message.bytes would be {ours} instead of {theirs}: what producers send today may be refused"
        yield not facts.allow.smaller_messages, Finding(name, "max.message.bytes", text)
    if facts.target_brokers < one.replicas:
        text = f"it has {one.replicas} replicas, and {facts.target} {facts.target_brokers} brokers"
        yield not facts.allow.fewer_replicas, Finding(name, "replicas", text)
    floor = _number(there, "min.insync.replicas", 1)
    if floor > min(one.replicas, facts.target_brokers):
        text = (
            f"min.insync.replicas {floor} cannot be met on {facts.target}: every write with acks=all would fail; lower "
            "it on the topic first"
        )
        yield True, Finding(name, "min.insync.replicas", text)


def _writers(facts: PlanFacts, one: Subject) -> Iterator[tuple[bool, Finding]]:
    name, moving = one.record.name, {each.record.name for each in facts.subjects}
    if one.bypassing:
        text = (
            f"{one.bypassing} producers write past the endpoint{f' ({one.named})' if one.named else ''}: the closed "
            "source refuses them, with acks=0 they lose silently; point them at the endpoint first, or say "
            "--close-out-bypass"
        )
        yield not facts.allow.bypassing, Finding(name, "bypassing", text)
    for identifier, topics in sorted(one.ids.items()):
        if staying := sorted(topics - moving):
            text = (
                f"transactional id {identifier!r} also writes {', '.join(staying)}, which stay: move them together "
                "(with --leave-ids the id moves all the same, and what it writes there is refused)"
            )
            yield not facts.allow.leave_ids, Finding(name, "transactional id", text)
    if one.ids and facts.allow.abort_transactions:
        text = "transactions that do not end in time are aborted: their producers get error 120"
        yield False, Finding(name, "abort", text)


def _others(facts: PlanFacts, one: Subject) -> Iterator[tuple[bool, Finding]]:
    """Other work on the topic."""
    name = one.record.name
    for mirror in one.mirrors:
        if mirror.mode == "exchange" and mirror.state != "removing":
            text = f"it is exchanged between {mirror.source} and {mirror.target}: remove that mirror first"
            yield True, Finding(name, "exchange", text)
        elif mirror.target == facts.target and mirror.source != one.record.cluster:
            text = f"{facts.target} is filled from {mirror.source}, not {one.record.cluster}: remove that mirror first"
            yield True, Finding(name, "mirror", text)
        elif mirror.source == facts.target and mirror.mode == "ship" and _emptied(facts, one):
            text = f"the copy on {facts.target} is emptied, and {mirror.target} is filled from it: remove that first"
            yield True, Finding(name, "mirror", text)
    mine = [each for each in facts.running if name in each.topics]
    for each in mine:
        if each.step in ENDED:
            continue
        if each.step in BEFORE_SWITCH or each.step in ("switch", "release", "announce", "retire"):
            what = "is emptying the old copy; wait for it" if each.step == "retire" else "is moving it"
            text = f"operation {each.id} {what}; see kfed operations {each.id}"
            yield True, Finding(name, "operation", text)
    if one.record.hold is not None and one.record.hold not in {each.id for each in mine}:
        yield True, Finding(name, "operation", f"it is held by operation {one.record.hold}")


def _adapted(facts: PlanFacts, one: Subject) -> Iterator[Adaptation]:
    name, target = one.record.name, facts.target
    for each in facts.running:
        if name in each.topics and each.step == "redirect":
            text = f"takes over from operation {each.id}, whose old copy is not emptied"
            yield Adaptation(name, "takes over", each.id, text)
    if _mirrored(facts, one):
        pass  # whatever it was, it is being filled
    elif one.standing is not None and (one.standing.left or _served(facts, one) or one.stub is not None):
        if one.standing.left:
            text = f"goes on with the copy that a mirror has left on {target}"
            yield Adaptation(name, "reuse", str(one.waits_for), text)
        elif reusable(one):
            yield Adaptation(name, "reuse", str(one.waits_for), f"goes on with the former copy on {target}")
        else:
            text = f"the former copy on {target} is not fit to go on with: it is emptied and filled anew"
            yield Adaptation(name, "rebuild", str(one.waits_for), text)
    if _mirrored(facts, one):
        yield Adaptation(name, "standby", target, f"the standby on {target} becomes the topic")
    if _served(facts, one):
        text = f"producers' ids are told apart, since {target} has their former sequences"
        yield Adaptation(name, "tag producers", str(one.record.epoch + 1), text)
    for mirror in one.mirrors:
        if mirror.mode == "ship" and mirror.source == one.record.cluster and mirror.target != target:
            text = f"the standby on {mirror.target} is filled from {target} afterwards"
            yield Adaptation(name, "re-root", mirror.target, text)
    for identifier in sorted(one.ids):
        yield Adaptation(name, "move id", identifier, f"transactional id {identifier!r} moves to {target}")


def _emptied(facts: PlanFacts, one: Subject) -> bool:
    """Whether what the target has of the topic is not fit to go on with."""
    if one.standing is None or one.standing.left:
        return False
    return (_served(facts, one) or one.stub is not None) and not reusable(one)


def reusable(one: Subject) -> bool:
    """Whether a former copy may be gone on with: never emptied, ends where it was closed, and begins no later than the
    topic does now."""
    standing = one.standing
    if standing is None or standing.emptied or not standing.clean_end:
        return False
    starts = [(standing.log_start.get(index), one.log_start.get(index, 0)) for index in range(one.record.partitions)]
    return all(mine is not None and mine <= theirs for mine, theirs in starts)


def _served(facts: PlanFacts, one: Subject) -> bool:
    return any(epoch.cluster == facts.target for epoch in one.record.timeline)


def _mirrored(facts: PlanFacts, one: Subject) -> bool:
    return any(each.target == facts.target and each.mode == "ship" and each.state != "removing" for each in one.mirrors)


def _number(config: Mapping[str, str | None], name: str, default: int) -> int:
    value = config.get(name)
    return default if value is None else int(value)


def _limit(config: Mapping[str, str | None], name: str, default: int) -> int:
    value = _number(config, name, default)
    return FOREVER if value < 0 else value


def _told(value: int) -> str:
    return "without limit" if value == FOREVER else str(value)
