"""What the members of KIP-848 groups subscribe to, where several clusters are behind one endpoint.

A heartbeat names its subscription only when it changes. Two things must be followed between: a regular expression,
which is resolved here (RE2 semantics, whole names, what the client may describe), and named topics that come into
being later on another cluster than the home and then need a stub. So each worker remembers what its members said.
A member it does not know (it came from another worker) is answered once with COORDINATOR_NOT_AVAILABLE: clients
then look the coordinator up and repeat their whole subscription.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import re2  # type: ignore[import-untyped]

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import is_internal
from proxy.apis.contract import Call, Refused
from proxy.apis.mapping import active_clusters
from proxy.apis.metadata import visible_topics

REGEX_FROM = 1  # version of ConsumerGroupHeartbeat; member ids are the client's own from here on
LIMIT = 20_000  # members remembered; beyond it the ones silent for longest repeat themselves
MAX_PATTERN = 2_000  # characters
MAX_MEMORY = 8 * 1024 * 1024  # bytes RE2 may use for one expression


@dataclass(slots=True)
class Member:
    """What a member said last, and what its coordinator was told."""

    names: list[str] | None = None
    pattern: str = ""
    told: list[str] | None = None
    generation: int = -1  # of the view by which `told` was made


@dataclass(slots=True)
class Subscription:
    """A heartbeat as the home gets it. `names` are topics that need stubs if they live elsewhere."""

    request: Message
    names: list[str] = field(default_factory=list)
    member: Member | None = None
    key: tuple[str, str] = ("", "")
    told: list[str] | None = None
    generation: int = -1


_members: OrderedDict[tuple[str, str], Member | None] = OrderedDict()


def compiled(pattern: str) -> Any:
    """The expression, or Refused with INVALID_REGULAR_EXPRESSION."""
    if len(pattern) > MAX_PATTERN:
        raise Refused(ERROR.INVALID_REGULAR_EXPRESSION, f"longer than {MAX_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        text = f"SubscribedTopicRegex `{pattern}` is not a valid regular expression: {error}"
        raise Refused(ERROR.INVALID_REGULAR_EXPRESSION, text) from None


async def matching(call: Call, pattern: str) -> list[str]:
    """The logical topics whose whole name matches and that this principal may describe; never internal ones."""
    expression = compiled(pattern)
    names = [name for name in call.view.topics if not is_internal(name) and expression.fullmatch(name)]
    return sorted(await visible_topics(call, call.view, names))


def _remember(key: tuple[str, str], member: Member | None) -> None:
    _members[key] = member
    _members.move_to_end(key)
    while len(_members) > LIMIT:
        _members.popitem(last=False)


async def follow(call: Call, version: int, request: Message) -> Subscription:
    """The heartbeat to send to the home instead of this one.

    Raises:
        Refused: an invalid expression; or a member this worker does not know, once.
    """
    names, pattern = request.get("subscribed_topic_names"), request.get("subscribed_topic_regex")
    if version < REGEX_FROM or len(active_clusters(call.view)) < 2:
        return Subscription(request, list(names or ()))
    key = (request["group_id"], request["member_id"])
    epoch = request["member_epoch"]
    if epoch < 0:
        _members.pop(key, None)  # it leaves (-1), or steps aside as a static member (-2)
        return Subscription(request)
    member = _members.get(key)
    whole = names is not None or pattern is not None
    if member is None:
        if epoch > 0 and not whole and key not in _members:
            _remember(key, None)
            raise Refused(ERROR.COORDINATOR_NOT_AVAILABLE, "say the whole subscription again")
        member = Member()
    if whole or member.told is None or member.generation != call.view.generation:
        next_names = member.names if names is None else names
        next_pattern = member.pattern if pattern is None else pattern
        matched = await matching(call, next_pattern) if next_pattern else []
        wanted = sorted({*(next_names or ()), *matched})
        member = Member(next_names, next_pattern, member.told, member.generation)
        _remember(key, member)
        if next_names is None and not next_pattern and not whole:
            return Subscription(request, [], None)
        out = dict(request)
        out["subscribed_topic_regex"] = "" if pattern is not None else None
        out["subscribed_topic_names"] = wanted if whole or epoch == 0 or wanted != member.told else None
        return Subscription(out, wanted, member, key, wanted, call.view.generation)
    _members.move_to_end(key)
    return Subscription(request)


def answered(subscription: Subscription, response: Message) -> None:
    """Keep what the coordinator was told once it has accepted it; after an error it is told again."""
    member = subscription.member
    if member is not None:
        accepted = response["error_code"] == ERROR.NONE
        member.told = subscription.told if accepted else None
        member.generation = subscription.generation if accepted else -1
