"""Moves of a group's home to another cluster: the plan, judged by the clusters themselves, and its beginning.

A plan changes nothing. The operation that `--apply` begins is carried out by the controller (home_runner.py).
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from admin.contract import Conflict, Document, NotFound, Unavailable, Wrong
from kafka_client import ClientError, ClusterClient
from metadata_service import home_rights
from metadata_service.asking import FoundGroup, list_groups, topics_by_name
from metadata_service.failures import DecisionFailed, Undecided
from metadata_service.group_members import GroupState, describe_group
from metadata_service.group_transactions import open_transactions
from metadata_service.home_runner import Contents, contents, refusal_of, stale_refusal, without_stub
from metadata_service.member import Member
from metadata_service.models import GROUP_HOMES, OPERATIONS, HomeRecord, OperationRecord
from metadata_service.operations.home_moving import KIND
from metadata_service.records import decode, encode
from metadata_service.status import Facts
from metadata_service.store.contract import Put, Unchanged
from metadata_service.view import View

SECONDS = 30.0  # for a whole plan


@dataclass
class Plan:
    """What moving a home means. `problems`: with any, nothing is done."""

    record: HomeRecord
    target: str
    state: GroupState = field(default_factory=GroupState)
    found: Contents = field(default_factory=lambda: Contents({}, (), ()))
    topics: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    known_there: bool = False
    lag: object = None

    def document(self, operation: str | None = None) -> Document:
        return {
            "group": self.record.name,
            "home": {"from": self.record.cluster, "to": self.target},
            "kind": self.state.kind or None,
            "state": self.state.state,
            "protocol": self.state.protocol or None,
            "members": [
                {
                    "member": one.id,
                    "instance": one.instance,
                    "client": one.client_id,
                    "host": one.host.lstrip("/"),
                    "protocol": "classic" if one.classic else "consumer",
                }
                for one in self.state.members
            ],
            "positions": len(self.found.source),
            "lag": self.lag,
            "topics": self.topics,
            "notes": self.notes,
            "problems": self.problems,
            "applied": operation is not None,
            "operation": operation,
        }


async def plan_move(member: Member, facts: Facts, name: str, target: str) -> Plan:
    """Raises NotFound, Wrong; Unavailable: a cluster that must be asked does not answer."""
    view = member.view
    record = view.groups.get(name)
    if record is None:
        raise NotFound(f"no group {name!r}")
    active = sorted(one for one, known in view.clusters.items() if known.record.state == "active")
    if target not in active:
        raise Wrong(f"there is no cluster {target!r} (there are: {', '.join(active)})")
    plan = Plan(record, target)
    if record.cluster == target:
        plan.problems.append(f"it is at home on {target} already")
        return plan
    if record.move is not None:
        plan.problems.append(f"its home is being moved to {record.move.to}: kfed operations {record.move.operation}")
        return plan
    with trio.move_on_after(SECONDS) as scope:
        try:
            await _ask(member, plan)
        except (Undecided, ClientError) as error:
            raise Unavailable(str(error)) from None
    if scope.cancelled_caught:
        raise Unavailable(f"no answer from the clusters within {SECONDS:g} s")
    _judge(facts, plan)
    return plan


async def begin_move(member: Member, facts: Facts, name: str, target: str, by: str) -> tuple[Plan, str | None]:
    """The plan, and the operation's id where nothing speaks against it. Raises as `plan_move`; Conflict, StoreError."""
    plan = await plan_move(member, facts, name, target)
    if plan.problems:
        return plan, None
    stored = await member.store.get(GROUP_HOMES + name)
    if stored is None or decode(HomeRecord, stored.value) != plan.record:
        raise Conflict("its home has changed since: look at the plan again")
    identifier = f"h-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    short = {
        "group": name,
        "from": plan.record.cluster,
        "to": target,
        "known_there": plan.known_there,
        "positions": len(plan.found.source),
        "members": len(plan.state.members),
    }
    operation = OperationRecord(
        id=identifier, kind=KIND, state="running", step="prepare", started=time.time(), by=by, plan=short
    )
    done = await member.store.commit(
        (Unchanged(GROUP_HOMES + name, stored.mod_revision), Unchanged(OPERATIONS + identifier, 0)),
        (Put(OPERATIONS + identifier, encode(operation)),),
    )
    if not done.succeeded:
        raise Conflict("its home has changed since: look at the plan again")
    try:
        await member.following.reached(done.revision)
    except DecisionFailed as error:
        raise Unavailable(str(error)) from None
    return plan, identifier


# -- asking -----------------------------------------------------------------------------------------------------------


async def _ask(member: Member, plan: Plan) -> None:
    view, name = member.view, plan.record.name
    source, target = member.clients.active(plan.record.cluster), member.clients.active(plan.target)
    listed = {one.name: (await list_groups(one)).get(name) for one in (source, target)}
    odd = sorted({one.kind for one in listed.values() if one is not None and one.kind in ("share", "streams")})
    plan.known_there = listed[target.name] is not None
    if odd:
        plan.problems.append(_ODD[odd[0]])
        plan.state = GroupState(odd[0], _state_of(listed))
        return
    plan.state = await describe_group(source, name)
    there = await describe_group(target, name)
    plan.found = await contents(view, name, source, target)
    for refusal in (
        refusal_of(plan.state, there, source.name, target.name),
        stale_refusal(plan.found, name, target.name),
    ):
        if refusal:
            plan.problems.append(refusal)
    named = {topic for topic, _ in plan.found.source} | {one for each in plan.state.members for one in each.topics}
    for lacks in (
        await home_rights.own(source, name),
        await home_rights.own(target, name),
        await home_rights.of_members(source, target, name, named),
    ):
        if lacks:
            plan.problems.append(lacks)
    await _topics(view, target, plan)
    if writing := sorted(await open_transactions(source, name)):
        plan.problems.append(
            f"transactions of {', '.join(writing[:3])} commit positions, in this group or in one beside it, on "
            f"{source.name}, where what they write lives too; stop these producers first, or move their topics instead"
        )


_ODD = {
    "share": "it is a share group: what its members have acquired is kept by the leaders of its topics, where they "
    "are; end it, and begin another one on the new cluster (its positions: kafka-share-groups --reset-offsets)",
    "streams": "it is a streams group: its coordinator keeps internal topics on its cluster; move the topics of the "
    "application with kfed migrate, or end it and begin it anew with the classic protocol",
}


def _state_of(listed: Mapping[str, FoundGroup | None]) -> str:
    return next((one.state for one in listed.values() if one is not None), "Dead")


async def _topics(view: View, target: ClusterClient, plan: Plan) -> None:
    """The topics that it has positions in or reads, and what becomes of them on the new home."""
    counts: dict[str, int] = {}
    for topic, _ in plan.found.source:
        counts[topic] = counts.get(topic, 0) + 1
    for member in plan.state.members:
        for topic in member.topics:
            if topic in view.topics:
                counts.setdefault(topic, 0)
    lacking = set(without_stub(view, target.name, list(counts)))
    present = await topics_by_name(target, lacking) if lacking else {}
    for name in sorted(counts):
        served = view.topics[name]
        stub = "its own" if served.cluster == target.name else "create" if name in lacking else "exists"
        known = present.get(name)
        if known is not None and (target.name, name) not in view.stubs:
            stub = "borrow"
            if len(known.partitions) != served.record.partitions:
                plan.problems.append(
                    f"{target.name} has another topic named {name!r}, with {len(known.partitions)} partitions instead "
                    f"of {served.record.partitions}: delete or rename it there"
                )
        plan.topics.append(
            {
                "topic": name,
                "cluster": served.cluster,
                "partitions": served.record.partitions,
                "positions": counts[name],
                "stand_in": stub,
            }
        )


# -- judging ----------------------------------------------------------------------------------------------------------


def _judge(facts: Facts, plan: Plan) -> None:
    record, name = plan.record, plan.record.name
    if record.conflict:
        others = ", ".join(record.conflict)
        command = shlex.join(["kfed", "groups", name, "--home", record.cluster, "--apply"])
        plan.problems.append(f"it is on {others} too, which waits for a decision: {command}")
    silent = sorted(key for key, one in facts.workers.items() if one.role == "proxy" and key not in facts.leases)
    if silent:
        plan.problems.append(
            f"not heard from: {', '.join(silent)}; start it again, or if it is certainly dead: kfed proxies --dead "
            f"{shlex.quote(silent[0])} --apply"
        )
    if plan.state.members:
        what = "are asked to commit and to rejoin" if plan.state.kind == "classic" else "give their partitions up"
        plan.notes.append(f"its {len(plan.state.members)} members {what}, once; for them it is a rebalance")
    elif not plan.problems:
        plan.notes.append("it has no members; commits from outside wait for a moment")
    if plan.found.gone:
        plan.notes.append(f"positions in topics that are gone stay behind: {', '.join(plan.found.gone[:5])}")
    if record.carry:
        left = ", ".join(one for one in record.carry if one != plan.target)
        if left:
            plan.notes.append(f"positions that lie on {left} go on counting")


def short(document: Document) -> Mapping[str, object]:
    """For the history."""
    return {key: document[key] for key in ("group", "home", "kind", "state", "positions")}
