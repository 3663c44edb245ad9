"""The homes of groups and transactional ids. Pure decisions; federation.py asks the clusters and records the result.

A group's home is where it already is: where it has members, else where it has commits. Where that is one cluster,
it decides; where it is several, a live one goes before one with commits only, then an explicit rule, then the lowest
cluster index. What the others hold goes on counting for the topics that come from there (`carry`, see carrying.py);
only where a group is live on several is there nothing to be assumed: that is a conflict, and an operator decides. A
group nobody knows goes where the rules say. All kinds of groups (classic, consumer, share, streams) are one name space,
as on a broker.

A cluster that is away when a group is first used is not waited for, or one lost cluster would keep every new group
from starting: what it holds counts when it is back (its topics are away as long). Only where the cluster that would
become the home is itself away is nothing decided.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from metadata_service.asking import FoundGroup, FoundTransaction
from metadata_service.models import HomeRecord
from metadata_service.placement import place_home
from runtime.settings import Placement

Found = TypeVar("Found")


def _first(
    candidates: Collection[str], live: Collection[str], ruled: str | None, indexes: Mapping[str, int]
) -> str | None:
    best = live or candidates
    if len(best) > 1 and ruled in best:
        return ruled
    return min(best, key=lambda one: (indexes.get(one, 1 << 30), one), default=None)


def decide_group(
    name: str,
    found: Mapping[str, FoundGroup],
    placement: Placement,
    indexes: Mapping[str, int],
    silent: Collection[str] = (),
) -> HomeRecord:
    """The home of a group that has none; `found`: the clusters that know it, `silent`: those that did not answer."""
    ruled, explicit = place_home(placement, "groups", name)
    live = [cluster for cluster, one in found.items() if one.live]
    home = _first(found, live, ruled if explicit else None, indexes) or ruled
    return with_home(HomeRecord(name=name, cluster=home), found, silent)


def with_home(record: HomeRecord, found: Mapping[str, FoundGroup], silent: Collection[str]) -> HomeRecord:
    """The record of a group whose home has just been decided. A share group has positions of another kind, which are
    not carried anywhere."""
    rest = {cluster: one for cluster, one in found.items() if cluster != record.cluster}
    shared = any(one.kind == "share" for one in found.values())
    busy = shared or (record.cluster in found and found[record.cluster].live)
    conflict = tuple(sorted(cluster for cluster, one in rest.items() if busy and (shared or one.live)))
    carry = tuple(sorted({*rest} - {*conflict}))
    unasked = tuple(sorted({*silent} - {record.cluster}))
    return msgspec.structs.replace(record, conflict=conflict, carry=carry, unasked=unasked)


def decide_transaction(
    name: str, found: Mapping[str, FoundTransaction], placement: Placement, indexes: Mapping[str, int]
) -> HomeRecord:
    """The home of a transactional id that has none. One that no cluster knows is not fixed: its first topic decides."""
    ruled, explicit = place_home(placement, "transactional_ids", name)
    live = [cluster for cluster, one in found.items() if one.live]
    home = _first(found, live, ruled if explicit else None, indexes)
    if home is None:
        return HomeRecord(name=name, cluster=ruled, written=False)
    return HomeRecord(name=name, cluster=home, conflict=_rest(found, home))


def elsewhere(record: HomeRecord, home: str) -> HomeRecord:
    """The record of a group that has nothing at its home yet, with another home."""
    carry, unasked = (tuple(one for one in some if one != home) for some in (record.carry, record.unasked))
    return msgspec.structs.replace(record, cluster=home, carry=carry, unasked=unasked)


def review(record: HomeRecord, found: Collection[str], reachable: Collection[str]) -> HomeRecord:
    """The record with its conflict as it is now; `found`: the clusters that list it.

    The home itself never changes here: that is an operation. What was recorded about clusters that could not be
    asked stays. A cluster's commits count until it does not know the group any longer, also when they have been copied:
    somebody who still connects there directly may commit further topics, and come through the endpoint later. A cluster
    that a transactional id has left remembers it for days (`transactional.id.expiration.ms`): that is no conflict,
    until it has forgotten it once.
    """
    left = tuple(one for one in record.left if one not in reachable or one in found)
    carry = {one for one in record.carry if one not in reachable or one in found}
    carry |= {one for one in record.unasked if one in reachable and one in found}
    unasked = tuple(one for one in record.unasked if one not in reachable)
    silent = {one for one in record.conflict if one not in reachable}
    other = {one for one in found if one != record.cluster and one not in carry and one not in left}
    conflict = tuple(sorted(other | (silent - {*left})))
    return msgspec.structs.replace(record, conflict=conflict, carry=tuple(sorted(carry)), unasked=unasked, left=left)


def fix_transaction(current: HomeRecord | None, name: str, cluster: str) -> HomeRecord:
    """The id names a topic of `cluster`: its home is fixed there, unless it was fixed before."""
    if current is not None and current.written:
        return current
    return HomeRecord(name=name, cluster=cluster)


def _rest(found: Mapping[str, object], home: str) -> tuple[str, ...]:
    return tuple(sorted(one for one in found if one != home))


def by_name(clusters: Mapping[str, Mapping[str, Found]], known: Collection[str] = ()) -> dict[str, dict[str, Found]]:
    """Cluster -> what it lists by name, turned into name -> clusters, without names in `known`."""
    turned: dict[str, dict[str, Found]] = {}
    for cluster, groups in clusters.items():
        for name, one in groups.items():
            if name not in known:
                turned.setdefault(name, {})[cluster] = one
    return turned


def gone(homes: Sequence[HomeRecord], listed: Mapping[str, Collection[str]]) -> list[str]:
    """Names whose home, having answered, does not know them (any longer). `listed`: cluster -> names it knows.

    Not those that another cluster remembers from before a move: they would be taken for at home there again.
    """
    return [one.name for one in homes if one.cluster in listed and one.name not in listed[one.cluster] and not one.left]


def forgettable(absent: Mapping[str, float], after: float, early: float, most: int) -> list[str]:
    """Which homes of names their cluster does not know are forgotten, the longest absent first. `absent`: seconds since
    a name was first missed. Above `most` of them, those above it are forgotten `early`."""
    oldest = sorted(absent, key=lambda name: (-absent[name], name))
    return [name for rank, name in enumerate(oldest) if absent[name] >= (early if rank < len(absent) - most else after)]
