"""An operator's decision where a group is at home, while nobody has to be moved: it is live on no other cluster.

From then on the commits of the others count as those of any group that was found idle there (see carrying.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from kafka_client import ClusterClient
from metadata_service.asking import FoundGroup, committed, list_groups
from metadata_service.carrying import comes_from
from metadata_service.failures import Undecided
from metadata_service.homes import with_home
from metadata_service.member import Member
from metadata_service.models import GROUP_HOMES, HomeRecord
from metadata_service.records import settle


class CannotDecide(Exception):
    """The decision cannot be carried out; the message says what is in the way. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a decision changes: the group's record `before` (as it was judged) and `after`."""

    before: HomeRecord
    after: HomeRecord

    def document(self) -> dict[str, object]:
        return {
            "group": self.before.name,
            "home": {"from": self.before.cluster, "to": self.after.cluster},
            "conflict": {"from": list(self.before.conflict), "to": list(self.after.conflict)},
            "carry": {"from": list(self.before.carry), "to": list(self.after.carry)},
        }


async def plan_home(member: Member, name: str, cluster: str) -> Plan:
    """What it means that group `name` is at home on `cluster`; the clusters are asked.

    Raises:
        CannotDecide: it is not possible, or not without moving members or commits.
        Undecided: a cluster does not answer.
        KeyError: no such group.
    """
    view = member.view
    record = view.groups[name]
    if record.move is not None:
        raise CannotDecide(f"its home is being moved to {record.move.to}: kfed operations {record.move.operation}")
    active = [one for one, known in view.clusters.items() if known.record.state == "active"]
    if cluster not in active:
        raise CannotDecide(f"there is no cluster {cluster!r}")
    found: dict[str, FoundGroup] = {}

    silent: list[str] = []

    async def ask(client: ClusterClient) -> None:
        try:
            groups = await list_groups(client)
        except Undecided:
            silent.append(client.name)
        else:
            if name in groups:
                found[client.name] = groups[name]

    async with trio.open_nursery() as nursery:
        for one in active:
            client = member.clients.get(one)
            if client is not None and view.clusters[one].snapshot.reachable:
                nursery.start_soon(ask, client)
            else:
                silent.append(one)
    if silent:
        raise Undecided(min(silent), "does not say whether the group is live there")
    shared = sorted(one for one, group in found.items() if group.kind == "share")
    if shared and len(found) > 1:
        raise CannotDecide(f"it is a share group on {', '.join(shared)}: delete it where it is not wanted")
    if live := sorted(one for one, group in found.items() if group.live and one != cluster):
        raise CannotDecide(f"it has members on {', '.join(live)}: stop them, or let them switch to the endpoint, first")
    if cluster != record.cluster:
        if cluster not in found:
            raise CannotDecide(f"{cluster} does not know it")
        await _must_not_leave_commits(member, record)
    return Plan(record, with_home(HomeRecord(name=name, cluster=cluster), found, ()))


async def _must_not_leave_commits(member: Member, record: HomeRecord) -> None:
    """Commits of topics that do not come from the old home would count no longer."""
    view = member.view
    client = member.clients.active(record.cluster)
    here = await committed(client, record.name, view.clusters[client.name].snapshot.versions, stable=True)
    left = sorted(
        {name for name, _ in here if name in view.topics and not comes_from(view.topics[name].record, client.name)}
    )
    if left:
        raise CannotDecide(
            f"it has committed topics of other clusters on {client.name} ({', '.join(left[:3])}), "
            f"which would have to be moved; delete these commits first if they are not needed"
        )


async def decide_home(member: Member, plan: Plan) -> None:
    """Carry a plan out; returns when this process's view shows it.

    Raises:
        CannotDecide: the group's record has changed since the plan was made. StoreError, DecisionFailed.
    """
    done = await settle(
        member.store,
        GROUP_HOMES + plan.before.name,
        HomeRecord,
        lambda now: plan.after if now == plan.before else now,
    )
    if done.value != plan.after:
        raise CannotDecide("its home has changed since: look at the plan again")
    await member.following.reached(done.revision)
