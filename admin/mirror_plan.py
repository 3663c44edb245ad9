"""What mirrors a command asks for, and what speaks against them by what the federation knows. Pure.

What only the clusters themselves can tell (configurations, records in a target) is judged in `mirrors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from metadata_service.mirroring import Cyclic, check_ships
from metadata_service.models import MirrorRecord, is_internal
from metadata_service.operations.records import BEFORE_SWITCH
from metadata_service.view import View

NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")

Mode = Literal["ship", "exchange"]


class Wrong(ValueError):
    """The command cannot be meant; the message says what to write instead."""


class Edge(NamedTuple):
    """One mirror: a topic from a cluster to another."""

    topic: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.topic} {self.source} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a command asks for. `rate` in bytes a second, 0 for no limit; None leaves the links' rates as they are."""

    topics: tuple[str, ...]
    source: str
    targets: tuple[str, ...]
    both_ways: bool = False
    rate: float | None = None

    @property
    def mode(self) -> Mode:
        return "exchange" if self.both_ways else "ship"

    def pairs(self) -> list[tuple[str, str]]:
        """(source, target): from one to each, or among all of them."""
        if not self.both_ways:
            return [(self.source, target) for target in self.targets]
        members = (self.source, *self.targets)
        return [(one, other) for one in members for other in members if one != other]

    def check(self, view: View) -> None:
        """Raises Wrong."""
        if not self.topics or not self.targets:
            raise Wrong("name at least one topic, and --to CLUSTER")
        if len(set(self.targets)) < len(self.targets):
            raise Wrong("--to: each cluster once")
        if self.source in self.targets:
            raise Wrong(f"--to {self.source}: that is where it comes from; name another cluster")
        for cluster in (self.source, *self.targets):
            known = view.clusters.get(cluster)
            if known is None or known.record.state != "active":
                names = ", ".join(sorted(name for name, one in view.clusters.items() if one.record.state == "active"))
                raise Wrong(f"there is no cluster {cluster!r} (there are: {names})")
        if self.rate is not None and self.rate < 0:
            raise Wrong("--rate: bytes a second, 0 for no limit")


@dataclass(slots=True)
class Choice:
    """Which topics are meant: names, and those patterns and names that mean nothing."""

    names: list[str] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)


def choose(patterns: Iterable[str], known: Collection[str]) -> Choice:
    """A plain name means itself; anything else is a regular expression for whole names. Internal topics are never
    meant by a pattern.

    Raises:
        Wrong: no regular expression.
    """
    found: dict[str, None] = {}
    nothing: list[str] = []
    for text in patterns:
        if text in known:
            found[text] = None
            continue
        if NAME.fullmatch(text):
            # `orders.v1` is a name, also where there is none; `orders.*` never is one.
            nothing.append(text)
            continue
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise Wrong(f"{text!r} is no regular expression: {error}") from None
        some = [name for name in sorted(known) if pattern.fullmatch(name) and not is_internal(name)]
        found.update(dict.fromkeys(some))
        if not some:
            nothing.append(text)
    return Choice(list(found), nothing)


def topics_on(view: View, cluster: str) -> set[str]:
    """What the cluster has under names that the federation knows: served there, or a mirror's copy."""
    served = {name for name, one in view.topics.items() if one.cluster == cluster}
    return served | {one.topic for one in view.mirrors.values() if cluster in (one.target, one.source)}


def candidates(view: View, wish: Wish) -> set[str]:
    """Topics that a pattern may mean: for an exchange those of any member, else those of the source."""
    members = (wish.source, *wish.targets) if wish.both_ways else (wish.source,)
    return {name for one in members for name in topics_on(view, one)}


def existing(view: View, edge: Edge) -> MirrorRecord | None:
    return view.mirrors.get((edge.target, edge.topic, edge.source))


def refusals(view: View, topic: str, wanted: Collection[Edge], mode: Mode) -> list[str]:
    """Why these mirrors of one topic cannot be, as sentences that name the way out; empty where nothing is known
    against them. Mirrors that exist already, in the same mode, are among `wanted`."""
    out: list[str] = []
    if is_internal(topic):
        return [f"{topic}: internal topics are not mirrored"]
    served = view.topics.get(topic)
    mirrors = view.mirrors_of(topic)
    new = [edge for edge in wanted if existing(view, edge) is None]
    for identifier, migration in view.migrations.items():
        if new and topic in migration.topics and migration.step in BEFORE_SWITCH:
            what = f"it is being moved from {migration.source} to {migration.target}"
            out.append(f"{topic}: {what}; try again afterwards, see kfed operations {identifier}")
    for edge in wanted:
        known = existing(view, edge)
        if known is None:
            continue
        if known.state == "removing":
            out.append(f"{edge}: it is just being removed; try again when kfed mirrors does not show it any more")
        elif known.mode != mode:
            out.append(f"{edge}: it exists as {known.mode}; remove it first: {remove_command(edge)}")
    kept = [one for one in mirrors if one.state != "removing"]
    ships = {(one.source, one.target) for one in kept if one.mode == "ship"}
    exchange = {cluster for one in kept if one.mode == "exchange" for cluster in (one.source, one.target)}
    edges = {(edge.source, edge.target) for edge in wanted}
    if mode == "ship":
        ships |= edges
        for source, target in sorted(edges):
            if target in exchange:
                out.append(
                    f"{topic}: {target} exchanges it with others, so it cannot be the target of a ship from {source}; "
                    "choose another target, or remove the exchange first"
                )
    else:
        exchange |= {cluster for pair in edges for cluster in pair}
        for one in sorted(exchange & {target for _, target in ships}):
            edge = Edge(topic, next(source for source, target in ships if target == one), one)
            out.append(f"{topic}: {one} is the target of a ship; remove that first: {remove_command(edge)}")
    if served is None:
        if mode == "ship":
            out.append(f"{topic}: the federation serves no topic of this name; create it first, or see kfed topics")
        return out
    if mode == "ship":
        try:
            check_ships(served.cluster, ships)
        except Cyclic as error:
            out.append(
                f"{topic}: {error}; ship from {served.cluster}, which serves it, or from a cluster that it is "
                "shipped to, to one that has no copy"
            )
    elif served.cluster not in exchange:
        out.append(f"{topic}: {served.cluster} serves it; it has to be one of the members (--from or --to)")
    return out


def removal_refusals(view: View, records: Collection[MirrorRecord], delete_copy: bool) -> list[str]:
    """Why these mirrors cannot be removed (so), as sentences that name the way out."""
    out: list[str] = []
    going = {(one.target, one.topic, one.source) for one in records}
    for one in records:
        edge = Edge(one.topic, one.source, one.target)
        if one.operation is not None:
            out.append(f"{edge}: it belongs to operation {one.operation}; see kfed operations {one.operation}")
        served = view.topics.get(one.topic)
        if one.rule and not delete_copy and served is not None and one.target in served.record.standbys:
            out.append(
                f"{edge}: a placement rule names {one.target} as a standby and would make it again; take it out of "
                "standbys in the configuration file and run kfed config apply --apply (or have the copy made anew, "
                "with --delete-copy)"
            )
        for below in view.mirrors_of(one.topic):
            fed = below.mode == "ship" and one.mode == "ship" and below.source == one.target
            if fed and below.state != "removing" and (below.target, below.topic, below.source) not in going:
                other = Edge(below.topic, below.source, below.target)
                out.append(f"{edge}: {other} copies from it; remove that first: {remove_command(other)}")
        if delete_copy and served is not None and served.cluster == one.target:
            out.append(f"{edge}: {one.target} serves the topic, so it is no copy; leave --delete-copy out")
        if delete_copy and (one.target, one.topic) in view.stubs:
            out.append(
                f"{edge}: groups at home on {one.target} have positions in this topic there, which would be lost with "
                "it; leave --delete-copy out"
            )
    return out


def remove_command(edge: Edge) -> str:
    return f"kfed mirror remove {edge.topic} --from {edge.source} --to {edge.target} --apply"


def topic_command(view: View, cluster: str, topic: str, what: str) -> str:
    """Kafka's own tool against the cluster itself."""
    bootstrap = ",".join(view.clusters[cluster].record.settings.bootstrap)
    return f"kafka-topics --bootstrap-server {bootstrap} --topic {topic} {what}"


def setting_command(view: View, cluster: str, topic: str, setting: str, value: str) -> str:
    """Likewise, to change a topic's setting."""
    bootstrap = ",".join(view.clusters[cluster].record.settings.bootstrap)
    change = f"--add-config {setting}={value}"
    return f"kafka-configs --bootstrap-server {bootstrap} --entity-type topics --entity-name {topic} --alter {change}"
