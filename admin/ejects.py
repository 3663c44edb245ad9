"""`kfed eject`: what it means that a topic leaves the federation, its beginning, and the way back."""

from __future__ import annotations

import secrets
import shlex
import time
from dataclasses import dataclass, field

import trio

from admin.contract import Conflict, Document, NotFound, Unavailable, Wrong
from metadata_service.asking import FoundGroup, list_groups, topics_by_name
from metadata_service.ejecting import Reader, moved, readers
from metadata_service.failures import DecisionFailed, Undecided
from metadata_service.group_members import describe_group
from metadata_service.member import Member
from metadata_service.models import (
    OPERATIONS,
    EjectedRecord,
    OperationRecord,
    TopicRecord,
    ejected_key,
    is_internal,
    topic_key,
)
from metadata_service.operations.ejecting import KIND
from metadata_service.operations.records import ENDED
from metadata_service.records import decode, encode, settle
from metadata_service.status import Facts
from metadata_service.store.contract import Put, Unchanged

SECONDS = 60.0  # for a whole plan
DESCRIBED = 500  # live groups that are asked what they read


@dataclass
class Plan:
    """What it means. `problems`: with any, nothing is done."""

    record: TopicRecord
    readers: list[Reader] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def document(self, operation: str | None = None) -> Document:
        return {
            "topic": self.record.name,
            "cluster": self.record.cluster,
            "partitions": self.record.partitions,
            "moved": moved(self.record),
            "groups": [
                {
                    "group": one.group,
                    "home": one.home,
                    "positions": len(one.positions),
                    "written": len(one.writes),
                    "below_log_start": list(one.below),
                }
                for one in self.readers
            ],
            "notes": self.notes,
            "problems": self.problems,
            "applied": operation is not None,
            "operation": operation,
        }


async def plan_eject(member: Member, facts: Facts, name: str) -> Plan:
    """Raises NotFound, Wrong; Unavailable: a cluster that must be asked does not answer."""
    served = member.view.topics.get(name)
    if served is None:
        raise NotFound(f"no topic {name!r}")
    if is_internal(name):
        raise Wrong(f"{name} is internal: it cannot leave")
    plan = Plan(served.record)
    _bound(member, plan)
    if plan.problems:
        return plan
    with trio.move_on_after(SECONDS) as scope:
        try:
            await _ask(member, plan)
        except Undecided as error:
            raise Unavailable(str(error)) from None
    if scope.cancelled_caught:
        raise Unavailable(f"no answer from the clusters within {SECONDS:g} s")
    _note(facts, plan)
    return plan


async def begin_eject(member: Member, facts: Facts, name: str, by: str) -> tuple[Plan, str | None]:
    """The plan, and the operation's id where nothing speaks against it.

    Raises as `plan_eject`; Conflict, StoreError.
    """
    plan = await plan_eject(member, facts, name)
    if plan.problems:
        return plan, None
    stored = await member.store.get(topic_key(name))
    if stored is None or decode(TopicRecord, stored.value) != plan.record:
        raise Conflict("the topic has changed since: look at the plan again")
    identifier = f"e-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    short = {"topic": name, "cluster": plan.record.cluster, "id": plan.record.id, "groups": len(plan.readers)}
    operation = OperationRecord(
        id=identifier, kind=KIND, state="running", step="leave", started=time.time(), by=by, plan=short
    )
    done = await member.store.commit(
        (Unchanged(topic_key(name), stored.mod_revision), Unchanged(OPERATIONS + identifier, 0)),
        (Put(OPERATIONS + identifier, encode(operation)),),
    )
    if not done.succeeded:
        raise Conflict("the topic has changed since: look at the plan again")
    try:
        await member.following.reached(done.revision)
    except DecisionFailed as error:
        raise Unavailable(str(error)) from None
    return plan, identifier


async def take_back(member: Member, name: str, apply: bool) -> Document:
    """The mark goes, and the topic is found like any that the federation does not know. Raises NotFound, Conflict."""
    marks = [one for (_, topic), one in sorted(member.view.ejected.items()) if topic == name]
    if not marks:
        raise NotFound(f"no topic {name!r} has been ejected")
    if any(one.record is not None for one in marks):
        raise Conflict(f"{name} is just leaving: kfed operations {marks[0].operation}")
    if name in member.view.topics:
        raise Conflict(f"there is another topic {name!r} on {member.view.topics[name].cluster} now; delete it first")
    if apply:
        for one in marks:
            key = ejected_key(one.cluster, name)
            done = await settle(member.store, key, EjectedRecord, lambda now: None)
            await member.following.reached(done.revision)
        await member.federation.find_topics([name])
    return {"topic": name, "clusters": [one.cluster for one in marks], "applied": apply}


def _bound(member: Member, plan: Plan) -> None:
    """What the federation itself still does with it."""
    view, record, name = member.view, plan.record, plan.record.name
    for identifier, migration in sorted(view.migrations.items()):
        if migration.step not in ENDED and name in migration.topics:
            plan.problems.append(f"it is being moved: kfed operations {identifier}, until it is done")
    if record.hold is not None and not plan.problems:
        plan.problems.append(f"its writes are held by operation {record.hold}: kfed operations {record.hold}")
    for one in view.mirrors_of(name):
        words = ["kfed", "mirror", "remove", name, "--from", one.source, "--to", one.target, "--apply"]
        if one.rule:
            plan.problems.append(
                f"the rules keep a copy on {one.target}: take {one.target} out of the standbys of placement.rules"
            )
        else:
            plan.problems.append(f"it is mirrored from {one.source} to {one.target}: {shlex.join(words)}")
    if record.conflict:
        others = ", ".join(record.conflict)
        plan.problems.append(
            f"another topic of that name on {others} would take its place for clients: delete or rename it there"
        )


async def _ask(member: Member, plan: Plan) -> None:
    view, record, name = member.view, plan.record, plan.record.name
    active = [one for one, known in view.clusters.items() if known.record.state == "active"]
    groups: dict[str, dict[str, FoundGroup]] = {}
    for cluster in sorted(active):
        client = member.clients.active(cluster)
        groups[cluster] = await list_groups(client)
        stub = view.stubs.get((cluster, name))
        if cluster == record.cluster or (stub is not None and not stub.borrowed):
            continue
        if name in await topics_by_name(client, [name]):
            plan.problems.append(
                f"{cluster} has a topic of that name too, which would take its place for clients: delete it there"
            )
    plan.readers = await readers(member, record, list(view.groups.values()))
    live = {one.group for one in plan.readers if _live(groups, one.group)}
    live |= await _subscribed(member, groups, name, live)
    for group in sorted(live):
        plan.problems.append(f"group {group!r} is at work on it: stop its members first")


def _live(groups: dict[str, dict[str, FoundGroup]], group: str) -> bool:
    return any(group in found and found[group].live for found in groups.values())


async def _subscribed(
    member: Member, groups: dict[str, dict[str, FoundGroup]], topic: str, known: set[str]
) -> set[str]:
    """Live groups whose members name the topic, without those that are known."""
    live = [
        (cluster, name)
        for cluster, found in groups.items()
        for name, one in sorted(found.items())
        if one.live and one.kind in ("classic", "consumer", "") and name not in known
    ]
    out: set[str] = set()
    for cluster, name in live[:DESCRIBED]:
        state = await describe_group(member.clients.active(cluster), name)
        if any(topic in one.topics for one in state.members):
            out.add(name)
    return out


def _note(facts: Facts, plan: Plan) -> None:
    record = plan.record
    use = facts.inventory.get(record.name)
    if use is not None and use.producers:
        plan.notes.append(
            f"{use.producers} producers have written to it: clients of the endpoint hear that there is no such topic; "
            f"point them at {record.cluster}"
        )
    if moved(record):
        plan.notes.append(
            f"it has moved, so its offsets on {record.cluster} are others: positions that are stored outside of Kafka "
            f"(checkpoints, databases) will not hold; commit them through the endpoint first"
        )
    else:
        plan.notes.append(f"offsets on {record.cluster} are the same: positions stored elsewhere hold")
    if below := [one.group for one in plan.readers if one.below]:
        plan.notes.append(f"positions in front of the log's beginning become its beginning: {', '.join(below[:5])}")
    if record.partitions and not plan.readers:
        plan.notes.append("no group has committed positions in it")
