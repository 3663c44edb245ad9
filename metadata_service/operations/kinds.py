"""What each kind of topic allows. A table; the plan, the commands and the documents say what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

What = Literal["move", "failover", "exchange"]


class Kind(StrEnum):
    """A topic is of every kind that fits; `plain` where no other does."""

    PLAIN = "plain"
    COMPACTED = "compacted"
    TRANSACTIONAL = "transactional"
    SHARE = "share"
    STREAMS = "streams"
    TIERED = "tiered"


class Allowed(StrEnum):
    WORKS = "works"
    LIMITED = "works with a limit"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Entry:
    """`limit` says what is different, or why it is refused; empty where it just works."""

    allowed: Allowed
    limit: str = ""


_YES = Entry(Allowed.WORKS)


def _but(limit: str) -> Entry:
    return Entry(Allowed.LIMITED, limit)


def _no(why: str) -> Entry:
    return Entry(Allowed.REFUSED, why)


ALLOWED: dict[Kind, dict[What, Entry]] = {
    Kind.PLAIN: {
        "move": _YES,
        "failover": _but("what was acknowledged and not mirrored is reported, and merged late"),
        "exchange": _but("each cluster has an order of its own"),
    },
    Kind.COMPACTED: {
        "move": _but("batches with holes are written anew for clients: the one place where reading encodes"),
        "failover": _but("what was not mirrored goes to a side topic: late, an old value would win"),
        "exchange": _but("which of two values written at the same time stays depends on the cluster"),
    },
    Kind.TRANSACTIONAL: {
        "move": _but("open transactions end first; the transactional ids that write it move along"),
        "failover": _but("transactions that were open are aborted; what they wrote is not served"),
        "exchange": _no("a transaction's records would not become visible together on the other side"),
    },
    Kind.SHARE: {
        "move": _no("a share group's acquired records are kept by its coordinator by physical offset"),
        "failover": _no("a share group's position is lost with its cluster"),
        "exchange": _no("every member cluster would hand out every record"),
    },
    Kind.STREAMS: {
        "move": _but("its internal topics and its transactional ids move together with it"),
        "failover": _but("its changelogs and its input may be cut at different points: state is rebuilt"),
        "exchange": _no("an application's state would differ from cluster to cluster"),
    },
    Kind.TIERED: {
        "move": _but("everything is fetched from the remote tier once, and the target keeps it locally at first"),
        "failover": _but("what the standby keeps; the remote tier of the lost cluster is not read"),
        "exchange": _but("what was tiered before the exchange began is copied through the brokers"),
    },
}


def allows(kinds: frozenset[Kind], what: What) -> list[tuple[Kind, Entry]]:
    """What is to be said of a topic, the worst first; empty where it just works."""
    order = [Allowed.REFUSED, Allowed.LIMITED]
    found = [(kind, ALLOWED[kind][what]) for kind in kinds or frozenset({Kind.PLAIN})]
    told = [one for one in found if one[1].allowed is not Allowed.WORKS]
    return sorted(told, key=lambda one: (order.index(one[1].allowed), one[0]))
