"""The JSON documents that tell an operator how things are. Pure, from facts; `read_facts` gathers them.

Times are Unix seconds, ages seconds, lags offsets. A field nobody knows yet is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from metadata_service.addresses import broker_name, without_port
from metadata_service.models import (
    ASSIGNMENTS,
    AUDITS,
    CONTROLLER,
    HEALTH,
    INVENTORY,
    LEASES,
    REPORTS,
    WAITS,
    WORKERS,
    AssignmentRecord,
    AuditRecord,
    ControllerRecord,
    HealthRecord,
    InventoryRecord,
    LeaseRecord,
    OperationRecord,
    ReportRecord,
    TopicRecord,
    WaitsRecord,
    WorkerRecord,
    is_internal,
)
from metadata_service.records import read, read_all
from metadata_service.seeding import Difference
from metadata_service.store.contract import Store
from metadata_service.view import ClusterView, View

Document = dict[str, object]


@dataclass(frozen=True)
class Facts:
    """What the documents are made of: a view and what lies outside it. `age` is the view's, None: never loaded."""

    view: View
    age: float | None = None
    store: str = ""
    health: Mapping[str, HealthRecord] = field(default_factory=dict)
    audits: Mapping[str, AuditRecord] = field(default_factory=dict)
    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    leases: Mapping[str, LeaseRecord] = field(default_factory=dict)
    inventory: Mapping[str, InventoryRecord] = field(default_factory=dict)
    controller: ControllerRecord | None = None
    assignments: Mapping[str, AssignmentRecord] = field(default_factory=dict)  # by the rest of their keys
    reports: Mapping[str, ReportRecord] = field(default_factory=dict)  # likewise
    waits: Mapping[str, WaitsRecord] = field(default_factory=dict)  # by operation


async def read_facts(store: Store, view: View, age: float | None = None) -> Facts:
    """Gathers what lies outside the view. Raises StoreError."""
    return Facts(
        view=view,
        age=age,
        store=store.description,
        health=await read_all(store, HEALTH, HealthRecord),
        audits=await read_all(store, AUDITS, AuditRecord),
        workers=await read_all(store, WORKERS, WorkerRecord),
        leases=await read_all(store, LEASES, LeaseRecord),
        inventory=await read_all(store, INVENTORY, InventoryRecord),
        controller=await read(store, CONTROLLER, ControllerRecord),
        assignments=await read_all(store, ASSIGNMENTS, AssignmentRecord) if view.mirrors else {},
        reports=await read_all(store, REPORTS, ReportRecord) if view.mirrors else {},
        waits=await read_all(store, WAITS, WaitsRecord) if view.migrations else {},
    )


def status(facts: Facts, findings: Iterable[Mapping[str, object]] = ()) -> Document:
    """The federation at a glance; `findings` are the doctor's."""
    view = facts.view
    severities = [one["severity"] for one in findings]
    live = [key for key in facts.workers if key in facts.leases and facts.workers[key].role == "proxy"]
    return {
        "federation": view.federation.name if view.federation else None,
        "cluster_id": view.federation.cluster_id if view.federation else None,
        "revision": view.revision,
        "store": {"where": facts.store, "view_age": facts.age},
        "controller": _plain(facts.controller) if facts.controller else None,
        "clusters": [_cluster_line(facts, one) for one in _in_order(view)],
        "topics": sum(1 for name in view.topics if not is_internal(name)),
        "conflicts": sum(1 for one in view.topics.values() if one.record.conflict),
        "groups": len(view.groups),
        "transactional_ids": len(view.transactions),
        "mirrors": _mirrors(facts),
        "proxies": len(live),
        "connections": sum(facts.leases[key].connections for key in live),
        "operations": [_operation_line(one) for one in view.operations.values() if one.state in ("running", "paused")],
        "findings": {level: severities.count(level) for level in ("error", "warning", "note")},
    }


def clusters(facts: Facts) -> Document:
    """Every cluster the federation knows, by its index."""
    return {"clusters": [cluster_document(facts, one) for one in _in_order(facts.view)]}


def cluster_document(facts: Facts, cluster: ClusterView) -> Document:
    """One cluster: its state, brokers with their virtual node ids and ports, and what it holds."""
    view, name = facts.view, cluster.name
    health = facts.health.get(name)
    snapshot = cluster.snapshot
    brokers: list[Document] = []
    for number in sorted(snapshot.brokers or (health.brokers if health else ())):
        broker = snapshot.brokers.get(number)
        brokers.append(
            {
                "id": number,
                "node": cluster.node(number),
                "address": f"{broker.host}:{broker.port}" if broker else None,
                "rack": broker.rack if broker else None,
                "ports": {
                    listener: book.ports.get(broker_name(name, number)) for listener, book in view.addresses.items()
                },
                "error": health.unreachable.get(number) if health else None,
            }
        )
    return {
        **_cluster_line(facts, cluster),
        "kafka_id": cluster.record.kafka_id,
        "bootstrap": list(cluster.record.settings.bootstrap),
        "brokers": brokers,
        "topics": sum(1 for one in view.topics.values() if one.cluster == name and not is_internal(one.name)),
        "groups": sum(1 for one in view.groups.values() if one.cluster == name),
        "transactional_ids": sum(1 for one in view.transactions.values() if one.cluster == name),
        "stubs": sum(1 for cluster_name, _ in view.stubs if cluster_name == name),
        "left_out_brokers": list(health.too_large) if health else [],
    }


def topics(facts: Facts) -> Document:
    """The logical topics, without internal ones."""
    return {
        "topics": [
            _topic_line(facts, one.record) for name, one in sorted(facts.view.topics.items()) if not is_internal(name)
        ]
    }


def topic(facts: Facts, name: str) -> Document | None:
    """One topic with its timeline, partitions, stubs, readers and writers; None where there is none."""
    served = facts.view.topics.get(name)
    if served is None:
        return None
    physical = facts.view.physical(served)
    use = facts.inventory.get(name)
    return {
        **_topic_line(facts, served.record),
        "id": served.record.id,
        "created": served.record.created or None,
        "adopted": served.record.adopted,
        "writes": served.record.writes,
        "timeline": [
            {"epoch": n, "cluster": one.cluster, "topic_id": one.topic_id, "first_offsets": _keys(one.first)}
            for n, one in enumerate(served.record.timeline)
        ],
        "stubs": sorted(cluster for cluster, topic_name in facts.view.stubs if topic_name == name),
        "partition_details": [
            {"partition": p.index, "leader": p.leader, "replicas": list(p.replicas), "isr": list(p.isr)}
            for p in physical.partitions
        ]
        if physical
        else None,
        "groups_lag": {group: _plain(one) for group, one in use.groups.items()} if use else {},
        "last_write": use.last_write or None if use else None,
        "direct_producers": use.direct if use else 0,
        "seen": use.at if use else None,
    }


def groups(facts: Facts) -> Document:
    """The groups with their homes and their lag over all topics."""
    reads = _reads(facts)
    return {"groups": [_group_line(facts, name, reads) for name in sorted(facts.view.groups)]}


def group(facts: Facts, name: str) -> Document | None:
    """One group with its lag by topic; None where there is none."""
    if name not in facts.view.groups:
        return None
    reads = _reads(facts)
    return {
        **_group_line(facts, name, reads),
        "topic_lags": {topic: _plain(one.groups[name]) for topic, one in reads.get(name, {}).items()},
    }


def proxies(facts: Facts) -> Document:
    """The registered proxy workers; `alive`: the store holds its lease."""
    return {
        "proxies": [
            {
                "instance": one.instance,
                "worker": one.worker,
                "pid": one.pid,
                "host": one.host,
                "version": one.version,
                "started": one.started,
                "alive": key in facts.leases,
                "acknowledged": facts.leases[key].acknowledged if key in facts.leases else None,
                "behind": _behind(facts, key),
                "connections": facts.leases[key].connections if key in facts.leases else None,
            }
            for key, one in sorted(facts.workers.items())
            if one.role == "proxy"
        ]
    }


def operations(facts: Facts) -> Document:
    """Operations, the newest first."""
    newest = sorted(facts.view.operations.values(), key=lambda one: one.started, reverse=True)
    return {"operations": [_operation_line(one) for one in newest]}


def operation(facts: Facts, identifier: str) -> Document | None:
    one = facts.view.operations.get(identifier)
    return None if one is None else {**_operation_line(one), "plan": one.plan, "result": one.result}


def config_diff(found: Iterable[Difference], revision: int) -> Document:
    """What the configuration file says differently from the store; `revision`: of the store that was compared."""
    changes = [{"key": one.key, "action": one.change, "from": one.stored, "to": one.configured} for one in found]
    return {"changes": changes, "applied": False, "revision": revision}


def _mirrors(facts: Facts) -> Document:
    """How many there are, and the worst lag of all partitions: offsets, and seconds."""
    parts = [part for one in facts.reports.values() for part in one.partitions.values()]
    behind = [part.end - part.position for part in parts if part.end >= 0 and part.position >= 0]
    return {
        "count": len(facts.view.mirrors),
        "lag": max([0, *behind]) if behind else None,
        "lag_seconds": max(part.lag_seconds for part in parts) if parts else None,
    }


# -- lines ------------------------------------------------------------------------------------------------------------


def _plain(record: msgspec.Struct) -> Document:
    """Every field, defaults included."""
    return {name: msgspec.to_builtins(value) for name, value in msgspec.structs.asdict(record).items()}


def _keys(numbers: Mapping[int, int]) -> dict[str, int]:
    return {str(one): value for one, value in numbers.items()}


def _in_order(view: View) -> list[ClusterView]:
    return sorted(view.clusters.values(), key=lambda one: one.record.index)


def _cluster_line(facts: Facts, cluster: ClusterView) -> Document:
    health = facts.health.get(cluster.name)
    removed = cluster.record.state == "removed"
    return {
        "name": cluster.name,
        "index": cluster.record.index,
        "state": "removed" if removed else health.state if health else "unknown",
        "since": health.since if health and not removed else None,
        "reason": health.reason or None if health and not removed else None,
    }


def _topic_line(facts: Facts, record: TopicRecord) -> Document:
    use = facts.inventory.get(record.name)
    return {
        "name": record.name,
        "cluster": record.cluster,
        "epoch": record.epoch,
        "partitions": record.partitions,
        "standbys": list(record.standbys),
        "conflict": list(record.conflict),
        "hold": record.hold,
        "groups": len(use.groups) if use else None,
        "producers": use.producers if use else None,
    }


def _reads(facts: Facts) -> dict[str, dict[str, InventoryRecord]]:
    """Group -> topic -> what is known of the topic."""
    reads: dict[str, dict[str, InventoryRecord]] = {}
    for name, use in facts.inventory.items():
        for one in use.groups:
            reads.setdefault(one, {})[name] = use
    return reads


def _group_line(facts: Facts, name: str, reads: Mapping[str, Mapping[str, InventoryRecord]]) -> Document:
    home = facts.view.groups[name]
    uses = [one.groups[name] for one in reads.get(name, {}).values()]
    known = [one.lag for one in uses if one.lag >= 0]
    return {
        "name": name,
        "home": home.cluster,
        "moving_to": home.move.to if home.move is not None and home.move.to != home.cluster else None,
        "carry": list(home.carry),
        "unasked": list(home.unasked),
        "conflict": list(home.conflict),
        "state": uses[0].state if uses else None,
        "type": uses[0].kind or None if uses else None,
        "topics": sorted(reads.get(name, {})),
        "lag": sum(known) if known else None,
    }


def _behind(facts: Facts, key: str) -> int | None:
    """Revisions of the view that the worker has not acknowledged."""
    lease = facts.leases.get(key)
    return None if lease is None else max(0, facts.view.revision - lease.acknowledged)


def _operation_line(one: OperationRecord) -> Document:
    return {
        "id": one.id, "kind": one.kind, "state": one.state, "step": one.step, "started": one.started, "by": one.by,
    }  # fmt: skip


def unaddressed(facts: Facts) -> dict[str, list[str]]:
    """Listener -> live virtual brokers without a port on it."""
    live = {
        name: one.snapshot.brokers or (facts.health[name].brokers if name in facts.health else ())
        for name, one in facts.view.clusters.items()
        if one.record.state == "active"
    }
    return {
        listener: missing
        for listener, book in facts.view.addresses.items()
        if (missing := without_port(book, {name: list(brokers) for name, brokers in live.items()}))
    }
