"""Where new topics, groups and transactional ids go, by the rules. Pure.

Rules match whole names; the first rule with a pattern for that kind of name that matches decides; else the default.
Rules never move what exists: `drift` lists where they now say otherwise than the records do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from metadata_service.models import HomeRecord, TopicRecord, is_internal
from runtime.settings import Placement, Rule

Kind = Literal["topics", "groups", "transactional_ids"]


@dataclass(frozen=True, slots=True)
class TopicPlace:
    """Where a topic goes. `explicit`: a rule named it, it did not fall to the default."""

    cluster: str
    standbys: tuple[str, ...]
    writes: Literal["available", "leased"]
    explicit: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """A record the rules would now place elsewhere. `what` is where it is, `wanted` where they say."""

    kind: Literal["topic", "standbys", "group", "transactional id"]
    name: str
    what: str
    wanted: str


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def matching_rule(placement: Placement, kind: Kind, name: str) -> Rule | None:
    """The first rule whose pattern for this kind matches the whole name; never one for an internal topic."""
    if kind == "topics" and is_internal(name):
        return None
    for rule in placement.rules:
        text: str | None = getattr(rule, kind)
        if text is not None and _pattern(text).fullmatch(name):
            return rule
    return None


def place_topic(placement: Placement, name: str) -> TopicPlace:
    """Where a new topic of this name goes, and its standbys (never its own cluster)."""
    rule = matching_rule(placement, "topics", name)
    if rule is not None:
        others = tuple(one for one in rule.standbys if one != rule.cluster)
        return TopicPlace(rule.cluster, others, rule.writes, True)
    if is_internal(name):
        return TopicPlace(placement.default, (), "available", False)
    others = tuple(one for one in placement.standbys if one != placement.default)
    return TopicPlace(placement.default, others, "available", False)


def standbys_at(placement: Placement, name: str, cluster: str) -> tuple[str, ...]:
    """The standbys of a topic that lives on `cluster`, which need not be where the rules would put it."""
    if is_internal(name):
        return ()
    rule = matching_rule(placement, "topics", name)
    if rule is None and cluster != placement.default:
        return ()  # `standbys` at the top are for topics of the default cluster
    return tuple(one for one in (rule or placement).standbys if one != cluster)


def place_home(placement: Placement, kind: Literal["groups", "transactional_ids"], name: str) -> tuple[str, bool]:
    """(cluster, whether a rule named it) of a new group or transactional id."""
    rule = matching_rule(placement, kind, name)
    return (rule.cluster, True) if rule is not None else (placement.default, False)


def drift(
    placement: Placement,
    topics: Iterable[TopicRecord],
    groups: Iterable[HomeRecord],
    transactions: Iterable[HomeRecord],
) -> list[Drift]:
    """Records that the rules would place elsewhere. The default drifts nothing: only explicit rules do."""
    found: list[Drift] = []
    for topic in topics:
        if is_internal(topic.name):
            continue
        place = place_topic(placement, topic.name)
        if place.explicit and place.cluster != topic.cluster:
            found.append(Drift("topic", topic.name, topic.cluster, place.cluster))
        wanted = standbys_at(placement, topic.name, topic.cluster)
        if set(wanted) != set(topic.standbys):
            found.append(Drift("standbys", topic.name, ",".join(topic.standbys) or "-", ",".join(wanted) or "-"))
    for kind, label, records in (("groups", "group", groups), ("transactional_ids", "transactional id", transactions)):
        for home in records:
            cluster, explicit = place_home(placement, kind, home.name)  # type: ignore[arg-type]
            if explicit and home.written and cluster != home.cluster:
                found.append(Drift(label, home.name, home.cluster, cluster))  # type: ignore[arg-type]
    return found
