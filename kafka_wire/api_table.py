"""THE table of the protocol's APIs: every key of Kafka 4.3, the versions read here, and what is done with each.

ApiVersions, dispatch, the field roles (`kafka_wire.roles`), the leak test, the fuzzers and the documentation derive
from it. A key or version that is not in it is never forwarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from kafka_wire.schema import NEVER, Versions, by_key, document


class Way(StrEnum):
    """How a request is handled."""

    RELAYED = "relayed"  # byte for byte to this connection's broker
    VIEW = "view"  # answered here
    BROKER = "broker"  # to this connection's broker, for topics the view places on its cluster
    HOME = "home"  # to the home of a group or transactional id
    TOPIC_CLUSTERS = "topic clusters"  # split by where topics live, answers joined
    ALL_CLUSTERS = "all clusters"  # to every cluster, answers merged
    REFUSED = "refused"


class Principal(StrEnum):
    """Under whose identity a call goes upstream."""

    CLIENT = "client"
    SERVICE = "service"
    NONE = "none"  # nothing goes upstream


@dataclass(frozen=True, slots=True)
class Api:
    """One API. `versions` is what can be read and written here; `offered` is what ApiVersions may name of it.

    `unstable` marks a newest version that Kafka 4.3 itself does not speak by default: it is used only where a
    broker advertises it. `note` says what the way means for this API.
    """

    key: int
    name: str
    versions: Versions
    way: Way
    principal: Principal
    offered: Versions
    unstable: bool
    note: str


_R, _V, _B, _H = Way.RELAYED, Way.VIEW, Way.BROKER, Way.HOME
_T, _A, _X = Way.TOPIC_CLUSTERS, Way.ALL_CLUSTERS, Way.REFUSED

_BROKER_TO_BROKER = "between brokers"
_CONTROLLER = "between brokers and controllers"

_WAYS: dict[int, tuple[Way, str]] = {
    0: (_B, "bytes; 6 where the topic lives elsewhere; leader hints mapped"),
    1: (_B, "bytes; 6 where the topic lives elsewhere; leader hints mapped"),
    2: (_B, "split by topic: 6 elsewhere, 3 unknown"),
    3: (_V, "from the view, cached as bytes; creates topics only where the placement says"),
    8: (_H, "stubs first; topic ids mapped"),
    9: (_H, "topic ids mapped"),
    10: (_V, "the home's coordinator, as that cluster names it, mapped"),
    11: (_H, "stubs for what it subscribes to"),
    12: (_H, ""),
    13: (_H, ""),
    14: (_H, ""),
    15: (_H, "16 for groups at home elsewhere"),
    16: (_B, "this broker's groups without those at home elsewhere; clients ask every broker"),
    17: (_R, "SASL; the broker authenticates"),
    18: (_V, "the intersection over the clusters"),
    19: (_T, "by placement; 36 where any cluster serves the name"),
    20: (_T, "by name or logical id"),
    21: (_B, "split by topic: 6 elsewhere, 3 unknown"),
    22: (_H, "without a transactional id: this broker, producer id tagged with the cluster"),
    23: (_B, "split by topic: 6 elsewhere, 3 unknown; epochs of earlier placements from the timeline"),
    24: (_H, "120 or 29 for topics elsewhere; the first topic named decides the home"),
    25: (_H, "ties group and id to one home"),
    26: (_H, "an abort of what was refused here succeeds"),
    27: (_B, "an operator ends a hanging transaction; split by topic: 6 elsewhere, 3 unknown"),
    28: (_H, "at the group's home; stubs first"),
    29: (_A, "merged"),
    30: (_A, "the worst result of an entry"),
    31: (_A, "the worst result of an entry"),
    32: (_T, "topics to their cluster, brokers by virtual id, groups to their home, defaults to the default cluster"),
    33: (_T, "as DescribeConfigs; cluster-wide defaults to all clusters"),
    34: (_B, "this broker's directories"),
    35: (_B, "this broker's directories; only topics served there"),
    36: (_R, "SASL; the broker authenticates"),
    37: (_T, "shown to clients once every stub has them"),
    38: (_A, "with one cluster only, else 61: a token is valid on the cluster that made it"),
    39: (_A, "as CreateDelegationToken"),
    40: (_A, "as CreateDelegationToken"),
    41: (_A, "as CreateDelegationToken"),
    42: (_H, "homes of deleted groups are forgotten"),
    43: (_T, "null: all clusters"),
    44: (_T, "as AlterConfigs"),
    45: (_T, "replicas by virtual id, of the topic's cluster only"),
    46: (_T, "null: all clusters"),
    47: (_H, ""),
    48: (_A, "merged"),
    49: (_A, "the worst result of an entry"),
    50: (_A, "merged"),
    51: (_A, "the worst result of a user"),
    55: (_A, "the default cluster's quorum, ids mapped, without addresses of controllers"),
    57: (_A, "validated on all clusters, then changed on all"),
    60: (_V, "from the view"),
    61: (_B, "split by topic; placement tags taken off producer ids"),
    64: (_A, "to the cluster of the virtual id"),
    65: (_H, "16 for ids at home elsewhere"),
    66: (_B, "this broker's transactions without those at home elsewhere; clients ask every broker"),
    68: (_H, "stubs first; regular expressions resolved here; topic ids mapped"),
    69: (_H, "topic ids mapped; 16 for groups at home elsewhere"),
    71: (_X, "telemetry is not collected"),
    72: (_X, "telemetry is not collected"),
    74: (_A, "merged"),
    75: (_V, "from the view, with cursor and limit"),
    76: (_H, "topics of its home only; topic ids mapped"),
    77: (_H, "topic ids mapped"),
    78: (_B, "topic ids mapped: 6 elsewhere, 100 unknown; leader hints mapped"),
    79: (_B, "topic ids mapped: 6 elsewhere, 100 unknown; leader hints mapped"),
    80: (_X, "voters are a matter of each physical cluster"),
    81: (_X, "voters are a matter of each physical cluster"),
    83: (_X, _BROKER_TO_BROKER),
    84: (_X, _BROKER_TO_BROKER),
    85: (_X, _BROKER_TO_BROKER),
    86: (_X, _BROKER_TO_BROKER),
    87: (_X, _BROKER_TO_BROKER),
    88: (_H, "stubs for source topics; internal topics are created on the home"),
    89: (_H, ""),
    90: (_H, "topic ids mapped"),
    91: (_H, "topic ids mapped"),
    92: (_H, "topic ids mapped"),
}

# Refused, but offered: the refusal's own text helps more than "the node does not support it".
_OFFERED_REFUSALS = frozenset({80, 81})

# Later versions of AddPartitionsToTxn are spoken between brokers (KIP-890).
_HIGHEST_OFFERED = {24: 3}

# Of what is answered from the view, these ask a cluster something (a coordinator, a creation, permissions).
_ASK_AS_CLIENT = frozenset({3, 10, 60, 75})


@cache
def table() -> dict[int, Api]:
    """Every API by key; a `KeyError` on building means a key of the schema has no way of handling yet."""
    out: dict[int, Api] = {}
    for key, one in by_key("request").items():
        way, note = _WAYS[key]
        upstream = way not in (Way.VIEW, Way.REFUSED) or key in _ASK_AS_CLIENT
        out[key] = Api(
            key,
            one.name.removesuffix("Request"),
            one.versions,
            way,
            Principal.CLIENT if upstream else Principal.NONE,
            NEVER
            if way is Way.REFUSED and key not in _OFFERED_REFUSALS
            else Versions(one.versions.low, _HIGHEST_OFFERED.get(key, one.versions.high)),
            one.unstable,
            note,
        )
    for text, name in document()["internal"].items():
        out[int(text)] = Api(int(text), name, NEVER, Way.REFUSED, Principal.NONE, NEVER, False, _CONTROLLER)
    return dict(sorted(out.items()))


def api_name(key: int) -> str:
    """`"Fetch"` for 1; `"Api999"` for a key nobody knows."""
    one = table().get(key)
    return one.name if one else f"Api{key}"


def readable(key: int, version: int) -> bool:
    """Whether a request of this key and version can be decoded here and is not refused as a whole."""
    one = table().get(key)
    return one is not None and version in one.versions
