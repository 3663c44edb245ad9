"""Between what a cluster says and what clients may hear: node ids, addresses, topic ids, error texts.

Handlers ask brokers only through `ask`, `ask_clusters` and `forward` here: whatever comes back has been mapped in
every field that has a role (`kafka_wire.roles`), so that nothing physical is left to forget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.roles import Address, Mapper, Role, rewrite
from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Refused

# Numbers that follow these words are physical broker ids: "broker 5", "Replica list: [1, 2]", "node id = 3".
_IDS = re.compile(
    r"\b((?:broker|node|replica|leader|controller|voter)(?:s|\(s\))?"
    r"(?:\s+(?:assignment|ids?|list|set|is|are|with|of|includes))*[\s:=\[({#]*(?:(?:Set|List)\()?)"
    r"(\d+(?:\s*,\s*\d+)*)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9a-f:]+\]):\d{2,5}\b|\b\d{1,3}(?:\.\d{1,3}){3}\b", re.IGNORECASE)
_ZERO_ID = bytes(16)


@lru_cache(maxsize=64)
def _host_pattern(hosts: frozenset[str]) -> re.Pattern[str] | None:
    if not hosts:
        return None
    names = "|".join(re.escape(host) for host in sorted(hosts, key=len, reverse=True))
    return re.compile(rf"(?<![\w.-])(?:{names})(?![\w-])", re.IGNORECASE)


def clean_text(view: View, cluster: str, text: str) -> str:
    """A broker's sentence without addresses, and with virtual node ids."""
    text = _ADDRESS.sub("(a broker)", text)
    hosts = frozenset(
        broker.host for one in view.clusters.values() for broker in one.snapshot.brokers.values() if broker.host
    )
    if (pattern := _host_pattern(hosts)) is not None:
        text = pattern.sub("(a broker)", text)
    known = view.clusters.get(cluster)
    if known is None:
        return text
    node = known.node

    def virtual(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"\d+", lambda number: str(node(int(number[0]))), match[2])

    return _IDS.sub(virtual, text)


def endpoint(call: Call, view: View, cluster: str, broker: int) -> Address | None:
    """(virtual node id, advertised host, port) of a physical broker; None where clients have no way to it."""
    known = view.clusters.get(cluster)
    if known is None or broker < 0:
        return None
    address = call.address(cluster, broker)
    return None if address is None else (known.node(broker), *address)


def mapping(call: Call, view: View, cluster: str) -> dict[Role, Mapper]:
    """How an answer of `cluster` is mapped for this connection."""
    known = view.clusters.get(cluster)
    node: Callable[[int], int] = known.node if known is not None else lambda broker: -1
    federation = view.federation.cluster_id if view.federation else None
    return {
        Role.NODE_ID: node,
        Role.ENDPOINT: lambda broker: endpoint(call, view, cluster, broker),
        Role.TOPIC_ID: lambda topic_id: view.to_logical_id(cluster, topic_id),
        Role.CLUSTER_ID: lambda _: federation,
        Role.ERROR_MESSAGE: lambda text: clean_text(view, cluster, text),
    }


def mapped(call: Call, view: View, cluster: str, key: int, response: Message) -> Message:
    """`response` of `cluster`, mapped in place."""
    return rewrite("response", key, None, response, mapping(call, view, cluster))


def to_physical_ids(view: View, cluster: str, key: int, version: int | None, request: Message) -> Message:
    """A copy of a request with topic ids as `cluster` knows them; the original is what a refusal echoes."""
    ids: dict[Role, Mapper] = {Role.TOPIC_ID: lambda one: view.to_physical_id(cluster, one)}
    return rewrite("request", key, version, deepcopy(request), ids)


async def forward(call: Call, view: View, key: int, request: Message) -> Message:
    """`call.forward`, its answer mapped."""
    return mapped(call, view, call.cluster, key, await call.forward(request))


async def ask(
    call: Call,
    view: View,
    cluster: str,
    key: int,
    request: Message,
    *,
    broker: int | None = None,
    timeout: float = 20.0,
) -> Message:
    """`call.ask`, its answer mapped. Raises ClusterAway, Refused."""
    return mapped(call, view, cluster, key, await call.ask(cluster, key, request, broker=broker, timeout=timeout))


async def ask_clusters(
    call: Call, view: View, key: int, requests: Mapping[str, Message], *, timeout: float = 20.0
) -> dict[str, Message | ClusterAway | Refused]:
    """`call.ask_clusters`, its answers mapped."""
    answers = await call.ask_clusters(key, requests, timeout=timeout)
    for cluster, answer in answers.items():
        if not isinstance(answer, Exception):
            mapped(call, view, cluster, key, answer)
    return answers


def failure(error: ClusterAway | Refused, away: int = ERROR.REQUEST_TIMED_OUT) -> tuple[int, str]:
    """(code, text) with which a cluster that gave no answer appears in a merged one."""
    if isinstance(error, ClusterAway):
        return away, f"cluster {error.cluster} did not answer; try again, or see what it is doing"
    return error.code, error.text or "refused"


def active_clusters(view: View) -> list[str]:
    """The clusters of the federation, by index; those removed left out."""
    active = (one for one in view.clusters.values() if one.record.state == "active")
    return [one.name for one in sorted(active, key=lambda one: one.record.index)]


def default_cluster(view: View) -> str:
    """The cluster that answers what the federation has only one answer for: the placement's default.

    Raises:
        Refused: no cluster is known.
    """
    names = active_clusters(view)
    if not names:
        raise Refused(ERROR.BROKER_NOT_AVAILABLE, "no cluster is known yet")
    chosen = view.placement.default if view.placement else names[0]
    return chosen if chosen in names else names[0]


def timeout_of(request: Message) -> float:
    """Seconds to wait for a cluster: the request's own `timeout_ms` and a little more, within bounds."""
    return min(max(int(request.get("timeout_ms", 30_000)) / 1000, 1.0), 120.0) + 5.0


def by_cluster(view: View, names: Iterable[str]) -> dict[str, list[str]]:
    """Served topic names by the cluster that serves them; names the view does not have are left out."""
    out: dict[str, list[str]] = {}
    for name in names:
        served = view.topics.get(name)
        if served is not None:
            out.setdefault(served.cluster, []).append(name)
    return out


def worst(results: Iterable[tuple[int, Any]]) -> tuple[int, Any]:
    """The first (code, text) that is an error, else (0, None)."""
    return next((one for one in results if one[0]), (0, None))
