"""Mirrors that rest, go on, or are begun anew; and links as a whole, which rest and go on.

Each is one change of a record; replicator workers follow it. A rebuild raises the copy's generation: its workers empty
the target, once, and copy everything that the source has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import trio

from admin.contract import Document, Wrong
from admin.mirror_plan import Edge, Wish, choose
from admin.mirror_plan import Wrong as WrongWish
from admin.mirrors import HISTORY_MIRRORS, JUDGE_SECONDS, JUDGED_AT_ONCE, Record, described, wish_of
from kafka_client import ClientError
from kafka_client.topics import EARLIEST, LATEST, describe, offsets
from metadata_service.member import Member
from metadata_service.models import MIRRORS, LinkRecord, MirrorRecord, link_key, mirror_key
from metadata_service.records import settle
from metadata_service.view import View

Action = Literal["pause", "resume", "rebuild"]
ACTIONS: tuple[Action, ...] = ("pause", "resume", "rebuild")
BECOMES = {"pause": "paused", "resume": "running", "rebuild": "begun anew"}


@dataclass(slots=True)
class StatePlan:
    """What a command would change. `whole`: links, not single mirrors. `again`: offsets of the source that a rebuild
    copies again, by mirror."""

    action: Action
    mirrors: list[MirrorRecord]
    links: list[LinkRecord]
    whole: bool
    problems: list[str]
    again: dict[Edge, int]

    def document(self) -> Document:
        become = BECOMES[self.action]
        return {
            "mirrors": [
                {
                    "topic": one.topic,
                    "source": one.source,
                    "target": one.target,
                    "mode": one.mode,
                    "state": {"from": one.state, "to": become},
                    "again": self.again.get(_edge(one)),
                }
                for one in self.mirrors
            ],
            "links": [
                {"source": one.source, "target": one.target, "state": {"from": one.state, "to": become}}
                for one in self.links
            ],
            "problems": list(self.problems),
            "applied": False,
        }


def _edge(one: MirrorRecord) -> Edge:
    return Edge(one.topic, one.source, one.target)


def plan(view: View, wish: Wish, action: Action) -> StatePlan:
    """By what the federation knows. Without topics: the links themselves. Raises WrongWish."""
    if not wish.targets:
        raise WrongWish("name --to CLUSTER")
    pairs = set(wish.pairs())
    if not wish.topics:
        if action == "rebuild":
            raise WrongWish("name at least one topic")
        links = [one for key, one in sorted(view.links.items()) if key in pairs]
        gone = sorted(pairs - {(one.source, one.target) for one in links})
        problems = [f"there is no link {source} -> {target}; see kfed mirrors" for source, target in gone]
        state = "paused" if action == "pause" else "running"
        return StatePlan(action, [], [one for one in links if one.state != state], True, problems, {})
    mine = [one for one in view.mirrors.values() if (one.source, one.target) in pairs]
    choice = choose(wish.topics, {one.topic for one in mine})
    where = ", ".join(f"{source} -> {target}" for source, target in sorted(pairs))
    problems = [f"{text}: no mirror of it {where}; see kfed mirrors" for text in choice.nothing]
    records = [one for name in choice.names for one in view.mirrors_of(name) if one in mine]
    for one in records:
        problems += refusals(view, one, action)
    wanted = {"pause": "running", "resume": "paused"}.get(action)
    changed = [one for one in records if wanted is None or one.state == wanted]
    return StatePlan(action, changed, [], False, problems, {})


def refusals(view: View, one: MirrorRecord, action: Action) -> Iterable[str]:
    """Why this may not be done to a mirror, as sentences that name the way out."""
    edge = _edge(one)
    if one.operation is not None:
        yield f"{edge}: it belongs to operation {one.operation}; see kfed operations {one.operation}"
    if one.state == "removing":
        yield f"{edge}: it is just being removed"
    if action != "rebuild":
        return
    if one.mode != "ship":
        yield f"{edge}: an exchange has records of its own on {one.target}: they would be lost"
    served = view.topics.get(one.topic)
    if served is not None and served.cluster == one.target:
        yield f"{edge}: {one.target} serves the topic, so it is no copy"
    for below in view.mirrors_of(one.topic):
        if below.mode == "ship" and below.source == one.target and below.state != "removing":
            yield (
                f"{edge}: {_edge(below)} copies from it, and would be emptied with it; remove that first: "
                f"kfed mirror remove {below.topic} --from {below.source} --to {below.target} --apply"
            )


async def judge(member: Member, made: StatePlan) -> None:
    """What a rebuild copies again: asked of the sources."""
    room = trio.CapacityLimiter(JUDGED_AT_ONCE)

    async def ask(one: MirrorRecord) -> None:
        client = member.clients.get(one.source)
        if client is None:
            made.problems.append(f"{_edge(one)}: {one.source} is not reached yet; see kfed clusters")
            return
        async with room:
            with trio.move_on_after(JUDGE_SECONDS):
                try:
                    info = (await describe(client, [one.topic])).get(one.topic)
                    if info is None:
                        made.problems.append(f"{_edge(one)}: {one.source} has no such topic: nothing could be copied")
                        return
                    starts = await offsets(client, one.topic, info.partitions, EARLIEST)
                    ends = await offsets(client, one.topic, info.partitions, LATEST)
                    made.again[_edge(one)] = sum(ends.values()) - sum(starts.values())
                except ClientError as error:
                    made.problems.append(f"{_edge(one)}: {error}")
                return
        made.problems.append(f"{_edge(one)}: {one.source} did not answer in time; see kfed clusters")

    async with trio.open_nursery() as nursery:
        for one in made.mirrors:
            nursery.start_soon(ask, one)


async def apply(member: Member, made: StatePlan) -> None:
    """Raises StoreError, DecisionFailed."""
    revision = (await member.store.range(MIRRORS)).revision  # a generation that was never used
    for one in made.mirrors:

        def changed(now: MirrorRecord | None, known: MirrorRecord = one) -> MirrorRecord | None:
            if now is None or (now.created, now.operation, now.state) != (known.created, None, known.state):
                return now
            if made.action == "rebuild":
                return msgspec.structs.replace(now, generation=max(revision, now.generation + 1))
            return msgspec.structs.replace(now, state="paused" if made.action == "pause" else "running")

        await settle(member.store, mirror_key(one.target, one.topic, one.source), MirrorRecord, changed)
    for link in made.links:

        def turned(now: LinkRecord | None) -> LinkRecord | None:
            state: Literal["running", "paused"] = "paused" if made.action == "pause" else "running"
            return now and msgspec.structs.replace(now, state=state)

        await settle(member.store, link_key(link.source, link.target), LinkRecord, turned)


async def asked(member: Member, action: Action, body: Mapping[str, object], apply_it: bool, record: Record) -> Document:
    """A plan, or with `apply_it` and without problems, what was done. Raises as `apply`, and the API's Wrong."""
    try:
        wish = wish_of(body)
        made = plan(member.view, wish, action)
    except WrongWish as error:
        raise Wrong(str(error)) from None
    if action == "rebuild":
        await judge(member, made)
    document = made.document()
    if not apply_it or made.problems:
        return document
    await apply(member, made)
    shown = {"mirrors": [str(_edge(one)) for one in made.mirrors[:HISTORY_MIRRORS]]}
    await record(f"mirror {action} {described(wish)}", shown, {"changed": len(made.mirrors) + len(made.links)})
    return {**document, "applied": True, "waiting": {}}
