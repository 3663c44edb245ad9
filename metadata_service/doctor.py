"""What is wrong, and what mends it. Pure: facts in, findings out.

A finding is `{"severity", "kind", "subject", "what", "mend"}`: `error` (clients are refused something, or will be),
`warning` (works, but not as it should), `note` (worth knowing). `mend` says what to do: the key to change, or a command
of this release, which stands alone between semicolons.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from metadata_service.adoption import missing, recreated
from metadata_service.models import STRIDE
from metadata_service.placement import drift
from metadata_service.seeding import Difference
from metadata_service.status import Document, Facts, unaddressed
from metadata_service.stubs import serves

Severity = Literal["error", "warning", "note"]
ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "note": 2}
SHOWN = 200  # findings of one kind
OLD_VIEW = 30.0  # seconds
_GONE = "delete it through the endpoint, and create it again"
_POINT = "point these clients' bootstrap.servers at the federation"


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    kind: str
    subject: str
    what: str
    mend: str

    def document(self) -> Document:
        return {
            "severity": self.severity,
            "kind": self.kind,
            "subject": self.subject,
            "what": self.what,
            "mend": self.mend,
        }


def findings(facts: Facts, differences: Iterable[Difference] = (), others: Iterable[Finding] = ()) -> list[Finding]:
    """Everything that is wrong, the worst first. `differences`: between the configuration file and the store; `others`
    were found elsewhere."""
    found: list[Finding] = [*others]
    for look in _LOOKS:
        some = list(look(facts))
        found += some[:SHOWN]
        if len(some) > SHOWN:
            last = some[SHOWN]
            found.append(
                Finding(last.severity, last.kind, "...", f"{len(some) - SHOWN} more of this kind", "mend these first")
            )
    for one in differences:
        text = f"the configuration file and the store differ ({one.change})"
        found.append(Finding("note", "configuration", one.key, text, "kfed config diff; kfed config apply --apply"))
    return sorted(found, key=lambda one: ORDER[one.severity])


def document(found: Iterable[Finding]) -> Document:
    """The admin API's document."""
    return {"findings": [one.document() for one in found]}


def _command(command: str, name: str, options: str = "") -> str:
    """A command about one thing, as it may be pasted into a shell."""
    words = ["kfed", command, shlex.quote(name), options]
    if name.startswith("-"):
        words = ["kfed", command, options, "--", shlex.quote(name)]
    return " ".join(word for word in words if word)


def _store(facts: Facts) -> Iterator[Finding]:
    if facts.age is None or facts.age > OLD_VIEW:
        age = "never read" if facts.age is None else f"{facts.age:.0f} s old"
        yield Finding(
            "error", "store", facts.store, f"the store is away; what is known is {age}", "bring the store back"
        )
    if facts.controller is None:
        yield Finding(
            "error",
            "controller",
            "controller",
            "no controller is active: nothing is adopted, and operations wait",
            "kfed serve controller",
        )


def _clusters(facts: Facts) -> Iterator[Finding]:
    for name, cluster in facts.view.clusters.items():
        health = facts.health.get(name)
        if cluster.record.state == "removed":
            yield from _removed(facts, name)
            continue
        if health is None:
            continue
        if health.state == "away":
            mend = f"start its brokers, or correct clusters.{name}.bootstrap"
            yield Finding("error", "cluster away", name, health.reason, mend)
        elif health.state == "refused":
            mend = f"correct clusters.{name}.bootstrap, or give another cluster another name"
            yield Finding("error", "wrong cluster", name, health.reason, mend)
        for broker, why in health.unreachable.items():
            subject = f"{name}/{broker}"
            yield Finding("warning", "broker away", subject, why, "start the broker, or open the way to it")
        for broker in health.too_large:
            text = f"broker ids of {STRIDE} or more cannot be numbered; its partitions cannot be reached"
            yield Finding("error", "broker id", f"{name}/{broker}", text, "give the broker a smaller id")


def _removed(facts: Facts, name: str) -> Iterator[Finding]:
    view = facts.view
    held = [one.name for one in view.topics.values() if one.cluster == name]
    homes = sum(one.cluster == name for one in (*view.groups.values(), *view.transactions.values()))
    if held or homes:
        text = f"removed, but {len(held)} topics and {homes} groups or transactional ids still live there"
        mend = f"put clusters.{name} back; kfed config apply --apply"
        yield Finding("error", "removed cluster", name, text, mend)


def _addresses(facts: Facts) -> Iterator[Finding]:
    for listener, names in unaddressed(facts).items():
        text = f"no port left for {', '.join(names)}: clients cannot reach them"
        yield Finding("error", "ports exhausted", listener, text, f"widen proxy.listeners.{listener}.broker_ports")


def _topics(facts: Facts) -> Iterator[Finding]:
    view = facts.view
    for name, served in sorted(view.topics.items()):
        record = served.record
        if record.conflict:
            others = ", ".join(record.conflict)
            text = f"other topics of this name on {others} are hidden; {record.cluster}'s is served"
            mend = f"a rule under placement.rules names the one to serve, or delete the one on {others}"
            yield Finding("warning", "topic conflict", name, text, mend)
        cluster = view.clusters.get(record.cluster)
        topic = cluster.snapshot.topics.get(name) if cluster is not None else None
        if record.epoch and topic is not None and recreated(record, topic):
            text = f"was re-created on {record.cluster}: it is not the topic that was moved there"
            yield Finding("error", "topic replaced", name, text, _GONE)
    for record in missing(view):
        text = f"{record.cluster} does not have it (any longer)"
        if record.epoch:
            yield Finding("error", "topic missing", record.name, text, _GONE)
        else:
            yield Finding("note", "topic missing", record.name, text, "forgotten once all its brokers confirm it")


def _stubs(facts: Facts) -> Iterator[Finding]:
    for (cluster, name), stub in sorted(facts.view.stubs.items()):
        topic = facts.view.topics.get(name)
        served = topic is not None and any(one.cluster == cluster for one in topic.record.timeline)
        if stub.borrowed and not stub.mirrored and topic is not None and not served:
            text = f"groups at home on {cluster} store positions on an unrelated topic of that name"
            mend = f"delete {name} on {cluster}, or read it with a group that is at home elsewhere"
            yield Finding("note", "borrowed stand-in", name, text, mend)
        if topic is not None and topic.cluster != cluster and not serves(stub, topic.record):
            text = f"its stand-in on {cluster} has {stub.partitions} partitions instead of {topic.record.partitions}"
            yield Finding("error", "stand-in", name, text, "see the controller's log; it tries again")


def _ejected(facts: Facts) -> Iterator[Finding]:
    for (cluster, name), mark in sorted(facts.view.ejected.items()):
        if mark.record is None:
            text = f"{cluster} has it, and it has left the federation: clients of the endpoint do not see it"
            yield Finding("note", "ejected", name, text, _command("eject", name, "--undo --apply"))


def _groups(facts: Facts) -> Iterator[Finding]:
    for kind, homes in (("group", facts.view.groups), ("transactional id", facts.view.transactions)):
        for name, home in sorted(homes.items()):
            if home.conflict:
                others = ", ".join(home.conflict)
                text = f"at home on {home.cluster}, and on {others} too; what it has there waits for a decision"
                mend = _command("groups", name, f"--home {home.cluster} --apply")
                if kind != "group":
                    text = f"at home on {home.cluster}, and known to {others} too"
                    mend = f"stop who uses it on {others}"
                yield Finding("warning", f"{kind} conflict", name, text, mend)
            if home.cluster not in facts.view.clusters:
                text = f"its home {home.cluster} is not known"
                yield Finding("error", f"{kind} lost", name, text, f"put clusters.{home.cluster} back")


def _drift(facts: Facts) -> Iterator[Finding]:
    view = facts.view
    if view.placement is None:
        return
    records = [one.record for one in view.topics.values()]
    for one in drift(view.placement, records, view.groups.values(), view.transactions.values()):
        mend = "it stays where it is; make the rule say so"
        text = f"{one.kind}: the rules say {one.wanted}, it is {one.what}; rules never move what exists"
        yield Finding("note", "placement drift", one.name, text, mend)


def _bypassing(facts: Facts) -> Iterator[Finding]:
    for cluster, audit in sorted(facts.audits.items()):
        for group, hosts in sorted(audit.direct_groups.items()):
            text = f"has members on {cluster} that do not come through a proxy, from {', '.join(hosts)}"
            yield Finding("warning", "bypassing", group, text, _POINT)
        for acl in audit.host_acls:
            text = f"an ACL of {cluster} names a host, but brokers see the proxies' addresses: {acl}"
            yield Finding("warning", "acl host", cluster, text, "make it host *, or name the proxies")
    for name, use in sorted(facts.inventory.items()):
        if use.direct and name in facts.view.topics:
            text = f"{use.direct} producers write to it without going through a proxy"
            yield Finding("warning", "bypassing", name, text, _POINT)


def _workers(facts: Facts) -> Iterator[Finding]:
    for key, worker in sorted(facts.workers.items()):
        if key not in facts.leases:
            where = f"pid {worker.pid} on {worker.host}"
            text = f"{worker.role} {worker.worker} of {worker.instance} ({where}) is not heard from"
            yield Finding("warning", "process", key, text, "start it again")


def _operations(facts: Facts) -> Iterator[Finding]:
    for identifier, one in sorted(facts.view.operations.items()):
        if one.state in ("paused", "failed") and identifier not in facts.view.migrations:  # those say more themselves
            mend = _command("operations", identifier)
            yield Finding("warning", "operation", identifier, f"{one.kind} is {one.state} at {one.step}", mend)


_LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _store,
    _clusters,
    _addresses,
    _topics,
    _stubs,
    _groups,
    _ejected,
    _drift,
    _bypassing,
    _workers,
    _operations,
)
