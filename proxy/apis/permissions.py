"""What a principal may do with topics, groups and ids, where no broker is asked that would say so itself.

A broker judges what is forwarded to it, by the rules of its own cluster. What is decided here (a topic that lives
elsewhere, a name nobody knows, a home that is recorded at first mention) is judged by the rules of the cluster it is
about.
"""

from __future__ import annotations

from collections.abc import Iterable

from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Refused

TOPIC, GROUP, CLUSTER, TRANSACTIONAL_ID = 2, 3, 4, 5  # ResourceType
READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS = 3, 4, 5, 6, 7, 8, 10, 11  # AclOperation
CLUSTER_NAME = "kafka-cluster"


async def permitted(call: Call, cluster: str, operation: int, resource: int, names: Iterable[str]) -> set[str]:
    """Those of `names` that are not known to be refused by `cluster`.

    A custom authorizer's rules are not known: of topics and groups it is asked whether they may be described, the rest
    is left to it when the request itself gets there. So is everything while a cluster's rules cannot be read: nothing
    of it can be reached then.
    """
    wanted = set(names)
    if not wanted:
        return wanted
    try:
        if await call.decidable(cluster):
            return await call.visible(cluster, operation, resource, wanted)
        if resource in (TOPIC, GROUP):
            return await call.visible(cluster, DESCRIBE, resource, wanted)
    except (ClusterAway, Refused):
        pass
    return wanted


async def permitted_topics(call: Call, view: View, operation: int, names: Iterable[str]) -> set[str]:
    """The same for topics, each by the cluster it lives on; a name nobody has, by where it would go."""
    places: dict[str, list[str]] = {}
    for name in names:
        served = view.topics.get(name)
        place = served.cluster if served is not None else call.federation.place_topic(name)
        places.setdefault(place, []).append(name)
    out: set[str] = set()
    for cluster, mine in places.items():
        out |= await permitted(call, cluster, operation, TOPIC, mine)
    return out


async def may_be_somewhere(call: Call, resource: int, name: str) -> bool:
    """Whether any cluster would describe this group or transactional id to the principal: only then it gets a home."""
    for cluster in call.view.clusters.values():
        if cluster.record.state == "active" and await permitted(call, cluster.name, DESCRIBE, resource, [name]):
            return True
    return False
