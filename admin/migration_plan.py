"""What a move of topics asks for, which of them switch together, and the plan as a document. Pure.

What speaks against a move is judged by `metadata_service.operations.judging`; what only the clusters can tell is
gathered by `migrations`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from admin.contract import Document
from admin.mirror_plan import Choice, Wrong, choose
from metadata_service.models import GroupUse, is_internal
from metadata_service.operations.judging import (
    Allowances,
    Finding,
    Judgement,
    PlanFacts,
    Subject,
    judge,
    planned,
)
from metadata_service.operations.kinds import Kind
from metadata_service.operations.records import ENDED, MigrationRecord, Options
from metadata_service.operations.switching import MAX_CHANGES, changes, ships_of
from metadata_service.view import View

TOGETHER_TOPICS = 16  # of one group, where nothing ties more of them together: a switch holds all its topics' writes
TOGETHER_PARTITIONS = 64
ASSUMED_RATE = 50e6  # bytes a second, where neither a limit nor a measurement is known
BUDGET_MOST = 4.5  # seconds; held writes are answered with an error after 5
WAIT_MOST = 86_400.0
RECENT = 900.0  # seconds since a bypassing producer's last write, after which it counts as gone

# Set on the target once the mirror has finished, whatever else has them: a ship's target is widened meanwhile.
WIDENED = (
    "compression.type",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.type",
)
# Of the cluster that sets them, not of the topic: replicas that are throttled, and formats that only one release knows.
_NOT_MOVED = re.compile(r"(leader|follower)\.replication\.throttled\.replicas|message\.format\.version|remote\..*")
_INTERNAL = re.compile(r"(?P<app>.+?)-(?:KSTREAM|KTABLE)-.*-(?:changelog|repartition)")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a command asks for. `target` is empty for a `rollback`: each topic goes back to where it came from."""

    topics: tuple[str, ...]
    target: str = ""
    rollback: bool = False
    options: Options = field(default_factory=Options)
    allow: Allowances = field(default_factory=lambda: Allowances(fewer_replicas=True))

    def check(self, view: View) -> None:
        """Raises Wrong."""
        if not self.topics:
            raise Wrong("name at least one topic")
        if not self.target and not self.rollback:
            raise Wrong("--to CLUSTER is needed (or --rollback, back to where the topics came from)")
        known = view.clusters.get(self.target)
        if self.target and (known is None or known.record.state != "active"):
            names = ", ".join(sorted(name for name, one in view.clusters.items() if one.record.state == "active"))
            raise Wrong(f"there is no cluster {self.target!r} (there are: {names})")

    def described(self) -> str:
        """For the history."""
        where = f"--to {self.target}" if self.target else "--rollback"
        return f"migrate {' '.join(self.topics)} {where}"


def wish_of(body: Mapping[str, object]) -> Wish:
    """Out of a request's body. Raises Wrong."""
    topics, target = body.get("topics"), body.get("to") or ""
    if not isinstance(topics, list) or not all(isinstance(one, str) for one in topics):
        raise Wrong("topics: a list of names is needed")
    if not isinstance(target, str):
        raise Wrong("to: the name of a cluster is needed")
    flags = {}
    for key in ("rollback", "close_out_bypass", "leave_ids", "leave_acls", "abort_transactions"):
        flags[key] = body.get(key, False)
        if not isinstance(flags[key], bool):
            raise Wrong(f"{key}: true or false")
    options = Options(leave_acls=bool(flags["leave_acls"]))
    for key, least, most in (
        ("drain_wait", 0.0, WAIT_MOST),
        ("budget", 0.1, BUDGET_MOST),
        ("redirect", 0.0, WAIT_MOST),
        ("max_lag", 0, 1 << 40),
    ):
        value = body.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Wrong(f"{key}: a number from {least:g} to {most:g}")
        options = msgspec.structs.replace(options, **{key: int(value) if key == "max_lag" else float(value)})
    allow = Allowances(
        bypassing=bool(flags["close_out_bypass"]),
        leave_ids=bool(flags["leave_ids"]),
        abort_transactions=bool(flags["abort_transactions"]),
        fewer_replicas=True,
    )
    return Wish(tuple(topics), target, bool(flags["rollback"]), options, allow)


@dataclass(slots=True)
class Chosen:
    """The topics that are meant, by name: where each is to go. `problems` are sentences, `left_out` are notes."""

    targets: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def chosen(view: View, wish: Wish) -> Chosen:
    """Which topics, and where to. Those that a pattern finds and that are there already are left out; one that is named
    is refused.

    Raises:
        Wrong: no regular expression.
    """
    out = Chosen()
    choice: Choice = choose(wish.topics, set(view.topics))
    out.problems += [f"{text}: the federation serves no topic of this name; see kfed topics" for text in choice.nothing]
    for name in choice.names:
        record = view.topics[name].record
        target = wish.target
        if wish.rollback:
            if record.epoch == 0:
                if name in wish.topics:
                    out.problems.append(f"{name}: it has never moved, so there is nothing to go back to; use --to")
                else:
                    out.left_out.append(f"{name}: it has never moved")
                continue
            before = record.timeline[-2].cluster
            if target and target != before:
                out.problems.append(f"{name}: it came from {before}, not {target}; leave --rollback out")
                continue
            target = before
        if record.cluster == target and name not in wish.topics:
            out.left_out.append(f"{name}: it is on {target} already")
            continue
        out.targets[name] = target
    return out


# -- what is known of a topic -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bypass:
    """A producer that writes past the endpoint, as the leaders know it. Unix seconds."""

    producer_id: int
    last_write: float


@dataclass(frozen=True, slots=True)
class Found:
    """One topic as the clusters tell. Sizes in bytes, of one replica: `size` at the source, and the subject's is what
    has to be copied. `application`: the Streams application whose internal topic it is. `replicas`: how many it will
    have on the target."""

    subject: Subject
    target: str
    size: int = 0
    replicas: int = 1
    final: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, GroupUse] = field(default_factory=dict)
    producers: int = 0
    last_write: float = 0.0
    bypassing: tuple[Bypass, ...] = ()
    application: str = ""
    settings: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)  # (the target's default, set to)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.subject.record.name

    @property
    def source(self) -> str:
        return self.subject.record.cluster


def final(
    source: Mapping[str, str | None], changed: Collection[str], there: Mapping[str, str | None]
) -> dict[str, str]:
    """The topic's configuration on the target, so that what is in force at the source is in force there.

    `source`: what is in force, `changed` what of it was set on the topic; `there`: what is in force on the target
    otherwise, and what it knows at all.
    """
    return {
        name: value
        for name, value in sorted(source.items())
        if value is not None
        and name in there
        and not _NOT_MOVED.fullmatch(name)
        and (name in WIDENED or name in changed or there[name] != value)
    }


def kinds(config: Mapping[str, str | None], *, transactional: bool, share: bool, streams: bool) -> frozenset[Kind]:
    """Every kind that fits."""
    found = {
        Kind.COMPACTED: "compact" in (config.get("cleanup.policy") or ""),
        Kind.TRANSACTIONAL: transactional,
        Kind.SHARE: share,
        Kind.STREAMS: streams,
        Kind.TIERED: config.get("remote.storage.enable") == "true",
    }
    return frozenset(kind for kind, fits in found.items() if fits) or frozenset({Kind.PLAIN})


def applications(topics: Iterable[str], groups: Collection[str]) -> dict[str, str]:
    """Internal topic of a Streams application -> the application: its group, or what its name says."""
    out: dict[str, str] = {}
    for topic in topics:
        if not topic.endswith(("-changelog", "-repartition")) or is_internal(topic):
            continue
        owners = [topic[:at] for at, one in enumerate(topic) if one == "-" and topic[:at] in groups]
        named = _INTERNAL.fullmatch(topic)
        if owners:
            out[topic] = owners[-1]
        elif named is not None:
            out[topic] = named["app"]
    return out


def bypassing(found: Iterable[Bypass], adopted: float, now: float) -> tuple[list[Bypass], list[Bypass]]:
    """(those that write still, those that did). `adopted`: when the federation took the topic over as it was; who wrote
    before that only may have come through the endpoint since."""
    writing: list[Bypass] = []
    gone: list[Bypass] = []
    for one in sorted(found, key=lambda each: -each.last_write):
        (writing if one.last_write > max(adopted, now - RECENT) else gone).append(one)
    return writing, gone


def told(some: Sequence[Bypass], shown: int = 5) -> str:
    """Their ids, as a sentence has them."""
    ids = ", ".join(str(one.producer_id) for one in some[:shown])
    more = f" and {len(some) - shown} more" if len(some) > shown else ""
    return f"producer id{'s' if len(some) > 1 else ''} {ids}{more}"


# -- which switch together --------------------------------------------------------------------------------------------


def grouped(found: Sequence[Found], earlier: Iterable[MigrationRecord] = ()) -> list[list[Found]]:
    """The migrations they make. Together are those that one transactional id writes, that belong to one Streams
    application, or that another migration has left together; the others in groups of bounded size. Never together are
    those that come from, or go to, different clusters."""
    out: list[list[Found]] = []
    routes: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        routes.setdefault((one.source, one.target), []).append(one)
    for _, some in sorted(routes.items()):
        ties: dict[str, list[Found]] = {}
        for one in some:
            for identifier in one.subject.ids:
                ties.setdefault(f"id {identifier}", []).append(one)
            if one.application:
                ties.setdefault(f"application {one.application}", []).append(one)
            for migration in earlier:
                if one.name in migration.topics and migration.step not in ENDED:
                    ties.setdefault(f"migration {migration.id}", []).append(one)
        clusters = _joined(some, list(ties.values()))
        out += [one for one in clusters if len(one) > 1]
        out += _packed([one[0] for one in clusters if len(one) == 1])
    return out


def _joined(found: Sequence[Found], ties: Sequence[Sequence[Found]]) -> list[list[Found]]:
    """The connected parts, in the order of their first topics."""
    part = {one.name: one.name for one in found}

    def root(name: str) -> str:
        while part[name] != name:
            name = part[name]
        return name

    for tie in ties:
        for one in tie[1:]:
            part[root(one.name)] = root(tie[0].name)
    out: dict[str, list[Found]] = {}
    for one in found:
        out.setdefault(root(one.name), []).append(one)
    return list(out.values())


def _packed(found: Sequence[Found]) -> list[list[Found]]:
    out: list[list[Found]] = []
    for one in found:
        last = out[-1] if out else []
        partitions = sum(each.subject.record.partitions for each in (*last, one))
        fits = (
            len(last) < TOGETHER_TOPICS and partitions <= TOGETHER_PARTITIONS and _writes([*last, one]) <= MAX_CHANGES
        )
        if last and fits:
            last.append(one)
        else:
            out.append([one])
    return out


def _writes(found: Sequence[Found]) -> int:
    ships = sum(ships_of(one.subject.mirrors, one.name, one.source) for one in found)
    return changes(len(found), ships, len({name for one in found for name in one.subject.ids}))


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the link copies, in bytes a second, and how that is known."""

    rate: float
    because: str


def speed(limit: float, measured: float) -> Speed:
    """`limit` of the link, 0 for none; `measured`: what its mirrors copy at this moment."""
    if limit:
        return Speed(limit, "the link's rate")
    if measured > ASSUMED_RATE / 10:
        return Speed(measured, "what the link's mirrors copy at this moment")
    return Speed(ASSUMED_RATE, "an assumption: nothing was measured on this link")


@dataclass(slots=True)
class Move:
    """One migration of a plan."""

    found: list[Found]
    facts: PlanFacts
    judgement: Judgement
    speed: Speed
    more: list[Finding] = field(default_factory=list)  # refusals that judge does not know
    id: str = ""

    @property
    def source(self) -> str:
        return self.found[0].source

    @property
    def target(self) -> str:
        return self.facts.target

    def refusals(self) -> list[str]:
        problems = [text for one in self.found for text in one.problems]
        return [*map(str, self.judgement.refusals), *map(str, self.more), *problems]

    def takes_over(self) -> set[str]:
        """Earlier migrations whose rest becomes this one's."""
        return {one.value for one in self.judgement.adaptations if one.code == "takes over"}

    def record(self, identifier: str, options: Options) -> MigrationRecord:
        """What it begins with. Raises ValueError: it is refused."""
        finals = {one.name: dict(one.final) for one in self.found}
        return planned(identifier, self.facts, self.judgement, options, finals)

    def document(self) -> Document:
        size = sum(one.size for one in self.found)
        to_copy = sum(one.subject.size for one in self.found)
        needed = sum(one.subject.size * one.replicas for one in self.found)
        adaptations = [each for each in self.judgement.adaptations if not each.topic]
        return {
            "id": self.id or None,
            "source": self.source,
            "target": self.target,
            "partitions": sum(one.subject.record.partitions for one in self.found),
            "bytes": size,
            "to_copy": to_copy,
            "disk": {"needed": needed, "free": self.facts.room if self.facts.room >= 0 else None},
            "rate": {"bytes_per_second": self.speed.rate, "because": self.speed.because},
            "seconds": to_copy / self.speed.rate,
            "transactional_ids": sorted({name for one in self.found for name in one.subject.ids}),
            "takes_over": sorted(self.takes_over()),
            "topics": [self._topic(one) for one in self.found],
            "refusals": self.refusals(),
            "warnings": [str(one) for one in self.judgement.warnings],
            "notes": [one.text for one in adaptations],
        }

    def _topic(self, one: Found) -> Document:
        subject = one.subject
        mine = [each for each in self.judgement.adaptations if each.topic == one.name]
        codes = {each.code for each in mine}
        there = next((word for word in ("standby", "reuse", "rebuild") if word in codes), "create")
        return {
            "topic": one.name,
            "source": one.source,
            "target": one.target,
            "partitions": subject.record.partitions,
            "epoch": subject.record.epoch + 1,
            "bytes": one.size,
            "to_copy": one.subject.size,
            "kinds": sorted(subject.kinds),
            "target_topic": there,
            "replicas": {"from": subject.replicas, "to": one.replicas},
            "configuration": dict(one.final),
            "settings": {
                name: {"default": default, "becomes": value} for name, (default, value) in sorted(one.settings.items())
            },
            "groups": {name: msgspec.to_builtins(use) for name, use in sorted(one.groups.items())},
            "producers": one.producers,
            "last_write": one.last_write or None,
            "bypassing": [
                {"producer_id": each.producer_id, "last_write": each.last_write or None} for each in one.bypassing
            ],
            "transactional_ids": {name: sorted(topics) for name, topics in sorted(subject.ids.items())},
            "notes": [*(each.text for each in mine), *one.notes],
        }


@dataclass(slots=True)
class Plan:
    """What `migrate` would do, and what speaks against it."""

    moves: list[Move]
    problems: list[str]
    left_out: list[str]
    applied: bool = False

    def all_problems(self) -> list[str]:
        return list(dict.fromkeys([*self.problems, *(text for one in self.moves for text in one.refusals())]))

    def document(self) -> Document:
        return {
            "migrations": [one.document() for one in self.moves],
            "left_out": list(self.left_out),
            "problems": self.all_problems(),
            "applied": self.applied,
        }


def made(
    found: Sequence[Found],
    running: Sequence[MigrationRecord],
    facts_of: Mapping[str, PlanFacts],
    speeds: Mapping[tuple[str, str], Speed],
    allow: Allowances,
    served: Mapping[str, str],
) -> list[Move]:
    """The judged migrations. `facts_of`: by target, without subjects. `served`: internal topic of a Streams application
    on any cluster -> the application."""
    out: list[Move] = []
    all_moving = {one.name for one in found}
    rooms = {name: one.room for name, one in facts_of.items()}
    for some in grouped(found, running):
        target = some[0].target
        base = facts_of[target]
        facts = PlanFacts(
            subjects=tuple(one.subject for one in some),
            target=target,
            target_known=base.target_known,
            target_reachable=base.target_reachable,
            target_brokers=base.target_brokers,
            room=rooms[target],
            running=tuple(running),
            allow=allow,
        )
        move = Move(some, facts, judge(facts), speeds[some[0].source, target])
        move.more += _apart(some, all_moving, running, served)
        if rooms[target] >= 0:  # the next of them has what this one leaves
            rooms[target] = max(0, rooms[target] - sum(one.subject.size * one.replicas for one in some))
        out.append(move)
    return out


def _apart(
    some: Sequence[Found], moving: Collection[str], running: Sequence[MigrationRecord], served: Mapping[str, str]
) -> list[Finding]:
    """What belongs together, and is not all named."""
    out: list[Finding] = []
    seen: set[str] = set()
    for one in some:
        if one.application and one.application not in seen:
            seen.add(one.application)
            others = sorted(name for name, app in served.items() if app == one.application and name not in moving)
            if others:
                text = (
                    f"it is an internal topic of the Streams application {one.application!r}, which moves with all of "
                    f"them: name {', '.join(others)} too"
                )
                out.append(Finding(one.name, "streams", text))
        for each in running:
            if one.name in each.topics and each.step == "redirect" and each.id not in seen:
                seen.add(each.id)
                if others := sorted(set(each.topics) - set(moving)):
                    text = (
                        f"operation {each.id} has moved it together with {', '.join(others)} and has not emptied the "
                        f"old copies yet: name them too, or wait until it is done (kfed operations {each.id})"
                    )
                    out.append(Finding(one.name, "together", text))
    return out
