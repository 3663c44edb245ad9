"""Mirrors created and removed: plans judged by the clusters themselves, and carried out.

A plan changes nothing. Where anything speaks against one of its mirrors nothing is done at all. What is done is a
commit of records; replicator workers and the controller bring the rest about, and the callers here wait for it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec
import trio

from admin.contract import Conflict, Document, Wrong
from admin.mirror_plan import (
    Edge,
    Wish,
    candidates,
    choose,
    existing,
    refusals,
    removal_refusals,
    setting_command,
    topic_command,
)
from admin.mirror_plan import Wrong as WrongWish
from admin.mirrored import seen, waiting
from kafka_client import ClientError, ClusterClient
from kafka_client.topics import EARLIEST, LATEST, offsets
from metadata_service.member import Member
from metadata_service.mirrorkeeping import put_mirrors
from metadata_service.models import (
    ASSIGNMENTS,
    MIRRORS_CHANGED,
    REPORTS,
    AssignmentRecord,
    MirrorRecord,
    ReportRecord,
    mirror_key,
)
from metadata_service.records import read_all, settle
from metadata_service.status import Facts
from metadata_service.view import View
from offset_sync.tables import SHIP, Following
from offset_sync.varints import Damaged
from replicator.following import Followed
from replicator.following import Following as Rules
from replicator.preflight import Problem
from replicator.prepare import Judged, NoSource, judge
from replicator.states import Condition

JUDGED_AT_ONCE = 8
JUDGE_SECONDS = 12.0  # for one mirror
# A request has to be answered in time: who wants to wait longer looks at the mirrors again and again.
BEGIN_SECONDS = 8.0
REMOVE_SECONDS = 8.0
POLL = 0.25
TRIES = 5
HISTORY_MIRRORS = 100
ACLS_SHOWN = 5


@dataclass(slots=True)
class Planned:
    """One mirror of a plan."""

    edge: Edge
    mode: str
    exists: bool = False  # as a mirror, already
    judged: Judged | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def document(self) -> Document:
        judged = self.judged
        what: str | None
        if self.exists:
            what = "exists"
        elif judged is None:
            what = "create" if self.notes else None  # of this plan, or never judged
        elif judged.create is not None:
            what = "create"
        else:
            what = "reopen" if judged.reopen else "use"
        return {
            "topic": self.edge.topic,
            "source": self.edge.source,
            "target": self.edge.target,
            "mode": self.mode,
            "partitions": judged.partitions if judged is not None else None,
            "target_topic": what,
            "expand_to": judged.expand if judged is not None else None,
            "configuration": dict(judged.create or judged.alter) if judged is not None else {},
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


@dataclass(slots=True)
class CreatePlan:
    """What `mirror create` would do, and what speaks against it."""

    wish: Wish
    mirrors: list[Planned]
    problems: list[str]
    view: View
    revision: int  # the revision of MIRRORS_CHANGED it was judged at
    rules: Rules | None = None  # None: ACLs are not followed

    def all_problems(self) -> list[str]:
        return [*self.problems, *(text for one in self.mirrors for text in one.problems)]

    def new(self) -> list[Planned]:
        return [one for one in self.mirrors if not one.exists]

    def document(self) -> Document:
        links: list[Document] = []
        for source, target in self.wish.pairs():
            known = self.view.links.get((source, target))
            before = known.rate if known is not None else 0.0
            after = before if self.wish.rate is None else self.wish.rate
            links.append({"source": source, "target": target, "rate": {"from": before, "to": after}})
        return {
            "mirrors": [one.document() for one in self.mirrors],
            "links": links,
            "problems": self.all_problems(),
            "applied": False,
        }


async def plan_create(member: Member, wish: Wish, follow_acls: bool = True) -> CreatePlan:
    """Judge everything; nothing is changed. `follow_acls`: whether replicators create the source's ACLs on targets.

    Raises:
        WrongWish: the command cannot be meant. StoreError.
    """
    found = await member.store.get(MIRRORS_CHANGED)
    view = member.view
    wish.check(view)
    choice = choose(wish.topics, candidates(view, wish))
    where = " or ".join((wish.source, *wish.targets)) if wish.both_ways else wish.source
    problems = [f"{text}: no topic of this name on {where}; see kfed topics" for text in choice.nothing]
    mirrors: list[Planned] = []
    for topic in choice.names:
        edges = [Edge(topic, source, target) for source, target in wish.pairs()]
        problems += refusals(view, topic, edges, wish.mode)
        mirrors += [Planned(edge, wish.mode, exists=existing(view, edge) is not None) for edge in edges]
    rules = Rules() if follow_acls else None
    plan = CreatePlan(wish, mirrors, problems, view, found.mod_revision if found is not None else 0, rules)
    if not problems:
        room = trio.CapacityLimiter(JUDGED_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for one in plan.new():
                nursery.start_soon(_judge, member, plan, one, room)
    return plan


async def _judge(member: Member, plan: CreatePlan, one: Planned, room: trio.CapacityLimiter) -> None:
    edge = one.edge
    source, target = member.clients.get(edge.source), member.clients.get(edge.target)
    if source is None or target is None:
        one.problems.append(f"{edge}: one of the clusters is not reached yet; see kfed clusters")
        return
    async with room:
        with trio.move_on_after(JUDGE_SECONDS):
            try:
                one.judged = await judge(source, target, edge.topic, ship=one.mode == "ship", trial=True)
                one.problems += [_mend(plan.view, edge, problem) for problem in one.judged.problems]
                if one.mode == "ship":
                    await _occupied(plan.view, one, source, target)
                    if plan.rules is not None:
                        one.notes += _acls(edge, await plan.rules.follow(source, target, edge.topic, dry=True))
            except NoSource:
                if any(other.edge.target == edge.source for other in plan.mirrors if other.edge.topic == edge.topic):
                    one.notes.append(f"{edge.source} gets the topic by the others of this plan")
                else:
                    one.problems.append(f"{edge}: {edge.source} has no such topic")
            except (ClientError, Damaged) as error:
                one.problems.append(f"{edge}: {error}")
            return
    one.problems.append(f"{edge}: the clusters did not answer within {JUDGE_SECONDS:.0f} s; see kfed clusters")


def _acls(edge: Edge, found: Followed) -> list[str]:
    """What becomes of the target's ACLs. `kfed mirrors` shows what else differs, once it copies."""
    if found.error:
        return [f"ACLs are not followed: {found.error}"]
    if not found.created:
        return []
    more = f" and {len(found.created) - ACLS_SHOWN} more" if len(found.created) > ACLS_SHOWN else ""
    return [f"ACLs are created on {edge.target}: {'; '.join(found.created[:ACLS_SHOWN])}{more}"]


def _mend(view: View, edge: Edge, problem: Problem) -> str:
    if problem.setting == "partitions":
        return (
            f"{edge}: {edge.target} has {problem.has} partitions, {edge.source} has {problem.wanted}: {problem.why}; "
            f"delete the target, or expand the source: "
            f"{topic_command(view, edge.source, edge.topic, f'--alter --partitions {problem.has}')}"
        )
    mend = setting_command(view, edge.target, edge.topic, problem.setting, problem.wanted)
    return f"{edge}: on {edge.target} {problem}; set it: {mend}"


async def _occupied(view: View, one: Planned, source: ClusterClient, target: ClusterClient) -> None:
    """Records in a target that no mirror has put there."""
    judged, edge = one.judged, one.edge
    if judged is None or judged.target is None:
        return
    numbers = range(len(judged.target.partitions))
    starts = await offsets(target, edge.topic, numbers, EARLIEST)
    ends = await offsets(target, edge.topic, numbers, LATEST)
    full = [number for number in numbers if ends[number] > starts[number]]
    if not full:
        return
    kept = await Following(target, seconds=JUDGE_SECONDS).follow(edge.topic, full)
    states = {number: kept[number, SHIP].state for number in full}
    unknown = [number for number in full if states[number] is None]
    delete = topic_command(view, edge.target, edge.topic, "--delete")
    if unknown:
        count = sum(ends[number] - starts[number] for number in unknown)
        one.problems.append(
            f"{edge}: {edge.target} has {count} records in this topic that no mirror has put there "
            f"({Condition.OCCUPIED.value}); choose another target, or delete that topic: {delete}"
        )
        return
    former = [
        number
        for number, state in states.items()
        if state is not None and state.source == source.name and state.source_id not in (bytes(16), judged.source_id)
    ]
    if former:
        one.problems.append(
            f"{edge}: {edge.target} holds a copy of another topic of this name, which {edge.source} no longer has; "
            f"delete the copy: {delete}"
        )
    else:
        one.notes.append("goes on where an earlier mirror has stopped")


async def create(member: Member, wish: Wish, follow_acls: bool = True) -> tuple[CreatePlan, Document]:
    """Judge, write the records, and wait a moment for everything to copy. With problems nothing is done.

    Raises:
        WrongWish, StoreError. Conflict: others create mirrors at the same time, again and again.
    """
    for _ in range(TRIES):
        plan = await plan_create(member, wish, follow_acls)
        if plan.all_problems():
            return plan, plan.document()
        if await _commit(member, plan):
            left = await wait_begun(member, [one.edge for one in plan.mirrors])
            return plan, {**plan.document(), "applied": True, "waiting": left}
    raise Conflict("mirrors are being created by others; look at the plan again")


async def _commit(member: Member, plan: CreatePlan) -> bool:
    """One commit a topic. False: others have created mirrors since the plan; what is left has to be judged again."""
    by_topic: dict[str, list[Planned]] = {}
    for one in plan.mirrors:
        by_topic.setdefault(one.edge.topic, []).append(one)
    rates = dict.fromkeys(plan.wish.pairs(), plan.wish.rate)
    changed = plan.revision
    for topic, some in by_topic.items():
        records = [
            MirrorRecord(
                topic=topic,
                source=one.edge.source,
                target=one.edge.target,
                mode=plan.wish.mode,
                created=time.time(),
            )
            for one in some
            if not one.exists
        ]
        if not records and plan.wish.rate is None:
            continue
        if not await put_mirrors(member.store, member.view, records, rates, changed):
            return False
        found = await member.store.get(MIRRORS_CHANGED)
        changed = found.mod_revision if found is not None else 0
    return True


async def wait_begun(member: Member, edges: list[Edge], seconds: float = BEGIN_SECONDS) -> dict[str, str]:
    """Returns when every partition of these mirrors copies, or `seconds` are over: those that do not, and why.

    Raises StoreError.
    """
    deadline = trio.current_time() + seconds
    while True:
        view, store = member.view, member.store
        facts = Facts(
            view,
            assignments=await read_all(store, ASSIGNMENTS, AssignmentRecord),
            reports=await read_all(store, REPORTS, ReportRecord),
        )
        known = seen(facts)
        left: dict[str, str] = {}
        for edge in edges:
            record = existing(view, edge)
            if record is None:
                left[str(edge)] = "it is not in the view yet"
            elif (why := waiting(facts, record, known[record.target, record.topic, record.source])) is not None:
                left[str(edge)] = why
        if not left or trio.current_time() >= deadline or any(why.startswith("stopped") for why in left.values()):
            return left
        await trio.sleep(POLL)


# -- removing ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RemovePlan:
    """What `mirror remove` would do, and what speaks against it."""

    mirrors: list[MirrorRecord]
    problems: list[str]
    delete_copy: bool
    view: View

    def document(self) -> Document:
        return {
            "mirrors": [
                {
                    "topic": one.topic,
                    "source": one.source,
                    "target": one.target,
                    "mode": one.mode,
                    "copy": self._copy(one),
                }
                for one in self.mirrors
            ],
            "problems": list(self.problems),
            "applied": False,
        }

    def _copy(self, one: MirrorRecord) -> str:
        served = self.view.topics.get(one.topic)
        if served is not None and served.cluster == one.target:
            return f"stays: {one.target} serves the topic"
        if self.delete_copy:
            return f"is deleted on {one.target}, with its records"
        return f"stays on {one.target}, hidden from clients; kfed topics and kfed doctor show it as a conflict"


def plan_remove(view: View, wish: Wish, delete_copy: bool) -> RemovePlan:
    """Raises WrongWish."""
    if not wish.topics or not wish.targets:
        raise WrongWish("name at least one topic, and --to CLUSTER")
    pairs = set(wish.pairs())
    known = {one.topic for one in view.mirrors.values() if (one.source, one.target) in pairs}
    choice = choose(wish.topics, known)
    where = ", ".join(f"{source} -> {target}" for source, target in sorted(pairs))
    problems = [f"{text}: no mirror of it {where}; see kfed mirrors" for text in choice.nothing]
    records = [
        one
        for name in choice.names
        for one in view.mirrors_of(name)
        if (one.source, one.target) in pairs and one.state != "removing"
    ]
    return RemovePlan(records, problems + removal_refusals(view, records, delete_copy), delete_copy, view)


async def remove(member: Member, wish: Wish, delete_copy: bool) -> Document:
    """Have mirrors removed, and wait a moment for their records to go. With problems nothing is done.

    Raises:
        WrongWish, StoreError.
    """
    plan = plan_remove(member.view, wish, delete_copy)
    if plan.problems:
        return plan.document()
    keys = {}
    for one in plan.mirrors:
        removing = msgspec.structs.replace(one, state="removing", delete_copy=delete_copy)
        await settle(member.store, mirror_key(one.target, one.topic, one.source), MirrorRecord, _replace(removing))
        keys[one.target, one.topic, one.source] = one

    def gone(view: View) -> bool:
        return not any(key in view.mirrors and view.mirrors[key].created == one.created for key, one in keys.items())

    with trio.move_on_after(REMOVE_SECONDS):
        while not gone(member.view):
            await member.following.changed(member.view)
    left = {} if gone(member.view) else {"removal": "it waits for a worker, the controller or a cluster"}
    return {**plan.document(), "applied": True, "waiting": left}


def _replace(by: MirrorRecord) -> Callable[[MirrorRecord | None], MirrorRecord | None]:
    def replaced(now: MirrorRecord | None) -> MirrorRecord | None:
        if now is None or now.created != by.created:
            return now
        return msgspec.structs.replace(now, state=by.state, delete_copy=by.delete_copy)

    return replaced


def wish_of(body: Mapping[str, object]) -> Wish:
    """Out of a request's body. Raises WrongWish."""

    def names(key: str) -> tuple[str, ...]:
        value = body.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise WrongWish(f"{key}: a list of names is needed")
        return tuple(value)

    source, rate, both = body.get("from"), body.get("rate"), body.get("both_ways", False)
    if not isinstance(source, str):
        raise WrongWish("from: the name of a cluster is needed")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise WrongWish("rate: bytes a second")
    if not isinstance(both, bool):
        raise WrongWish("both_ways: true or false")
    return Wish(names("topics"), source, names("to"), both, None if rate is None else float(rate))


def described(wish: Wish) -> str:
    """For the history."""
    arrow = "<->" if wish.both_ways else "->"
    return f"{' '.join(shlex.quote(one) for one in wish.topics)} {wish.source} {arrow} {', '.join(wish.targets)}"


# -- for the office ---------------------------------------------------------------------------------------------------

Record = Callable[[str, Mapping[str, object], Mapping[str, object]], Awaitable[None]]
"""Writes the history: what, the plan, what came of it."""


async def create_asked(
    member: Member, body: Mapping[str, object], apply: bool, record: Record, follow_acls: bool = True
) -> Document:
    """Raises as `create`, with the API's Wrong."""
    try:
        wish = wish_of(body)
        if not apply:
            return (await plan_create(member, wish, follow_acls)).document()
        what = f"mirror create {described(wish)}"
        plan, document = await create(member, wish, follow_acls)
    except WrongWish as error:
        raise Wrong(str(error)) from None
    if document["applied"]:
        await record(what, _short(document), {"created": len(plan.new())})
    return document


async def remove_asked(member: Member, body: Mapping[str, object], apply: bool, record: Record) -> Document:
    """Raises as `remove`, with the API's Wrong."""
    delete_copy = body.get("delete_copy", False)
    if not isinstance(delete_copy, bool):
        raise Wrong("delete_copy: true or false")
    try:
        wish = wish_of(body)
        if not apply:
            return plan_remove(member.view, wish, delete_copy).document()
        what = f"mirror remove {described(wish)}"
        document = await remove(member, wish, delete_copy)
    except WrongWish as error:
        raise Wrong(str(error)) from None
    if document["applied"]:
        await record(what, _short(document), {"removed": len(cast(list[object], document["mirrors"]))})
    return document


def _short(document: Document) -> Document:
    """Of a plan, as much as the history keeps."""
    mirrors = cast(list[Document], document["mirrors"])
    keys = ("topic", "source", "target", "mode", "target_topic", "copy")
    return {"mirrors": [{key: one[key] for key in keys if key in one} for one in mirrors[:HISTORY_MIRRORS]]}
