"""The admin API's table of paths: the application, the OpenAPI document and the reference are all made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from admin.contract import Document, Office, Wrong

PREFIX = "/api/v1"


@dataclass(frozen=True)
class Asked:
    """One request: what stood in the path and in the query, the body, and who sent it (for the history)."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, object]
    by: str

    def object(self, key: str) -> Mapping[str, object]:
        """A JSON object out of the body, or Wrong."""
        value = self.body.get(key)
        if not isinstance(value, dict):
            raise Wrong(f"{key}: a JSON object is needed")
        return value

    def flag(self, key: str) -> bool:
        value = self.body.get(key, False)
        if not isinstance(value, bool):
            raise Wrong(f"{key}: true or false")
        return value

    def number(self, key: str) -> int | None:
        value = self.body.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise Wrong(f"{key}: a whole number")
        return value

    def limit(self, default: int = 100, most: int = 10_000) -> int:
        text = self.query.get("limit", str(default))
        if not text.isdigit() or not 0 < int(text) <= most:
            raise Wrong(f"limit: a number from 1 to {most}")
        return int(text)


Answer = Callable[[Office, Asked], Awaitable[Document]]


@dataclass(frozen=True)
class Route:
    """One method on one path. `changes`: refused by processes that are read-only."""

    method: Literal["GET", "POST"]
    path: str
    summary: str
    answer: Answer
    gives: Mapping[str, str] = field(default_factory=dict)  # the document's keys, and what they hold
    takes: Mapping[str, str] = field(default_factory=dict)  # the body's keys
    query: Mapping[str, str] = field(default_factory=dict)
    changes: bool = False


async def _config_apply(office: Office, asked: Asked) -> Document:
    wanted = asked.object("configuration")
    if not asked.flag("apply"):
        return await office.config_diff(wanted)
    return await office.config_apply(wanted, asked.number("revision"), asked.by)


async def _config_diff(office: Office, asked: Asked) -> Document:
    return await office.config_diff(asked.object("configuration"))


async def _group_home(office: Office, asked: Asked) -> Document:
    cluster = asked.body.get("cluster")
    if not isinstance(cluster, str):
        raise Wrong("cluster: the name of a cluster is needed")
    if not asked.flag("apply"):
        return await office.group_home_plan(asked.path["name"], cluster)
    return await office.group_home(asked.path["name"], cluster, asked.by)


async def _operation_change(office: Office, asked: Asked) -> Document:
    action = asked.body.get("action")
    if not isinstance(action, str):
        raise Wrong("action: pause, resume or abort")
    return await office.operation_change(asked.path["id"], action, asked.by)


async def _group_move(office: Office, asked: Asked) -> Document:
    cluster = asked.body.get("cluster")
    if not isinstance(cluster, str):
        raise Wrong("cluster: the name of a cluster is needed")
    return await office.group_move(asked.path["name"], cluster, asked.flag("apply"), asked.by)


async def _offset(office: Office, asked: Asked) -> Document:
    numbers = []
    for key in ("partition", "offset"):
        if not asked.path[key].isdecimal() or len(asked.path[key]) > 18:
            raise Wrong(f"{key}: a whole number, not below 0")
        numbers.append(int(asked.path[key]))
    clusters = []
    for key in ("from", "to"):
        if not asked.query.get(key):
            raise Wrong(f"{key}: the name of a cluster is needed")
        clusters.append(asked.query[key])
    return await office.offset(asked.path["topic"], numbers[0], numbers[1], clusters[0], clusters[1])


async def _import(office: Office, asked: Asked) -> Document:
    exported = asked.object("export")
    if not asked.flag("apply"):
        return await office.store_import_plan(exported)
    return await office.store_import(exported, asked.by)


def _mirror_state(action: str) -> Answer:
    return lambda office, asked: office.mirror_state(action, asked.body, asked.flag("apply"), asked.by)


_MIRRORS = {
    "topics": "names, or regular expressions for whole names",
    "from": "the cluster they come from",
    "to": "list of clusters",
    "both_ways": "true: an exchange among all that are named",
    "apply": "true: do it",
}
_MIRROR_PLAN = {
    "problems": "sentences that name the way out; with any, nothing is done",
    "applied": "whether it was done",
    "waiting": "mirror -> what it still waits for, after a few seconds; `GET /mirrors` says more",
}

_CONFIGURATION = "a configuration file as JSON; only `clusters` and `placement` are looked at"
_PLAN = {
    "changes": "list of `{key, action, from, to}`; passwords are shown as `***`",
    "applied": "whether the store was changed",
    "revision": "the revision of the store that was compared with",
}

ROUTES = (
    Route("GET", "/status", "The federation at a glance", lambda office, _: office.status()),
    Route("GET", "/clusters", "The physical clusters", lambda office, _: office.clusters()),
    Route("GET", "/topics", "The logical topics", lambda office, _: office.topics()),
    Route("GET", "/topics/{name}", "One topic", lambda office, asked: office.topic(asked.path["name"])),
    Route("GET", "/groups", "The groups and their homes", lambda office, _: office.groups()),
    Route("GET", "/groups/{name}", "One group", lambda office, asked: office.group(asked.path["name"])),
    Route(
        "POST",
        "/groups/{name}/home",
        "Decide where a group that is known to several clusters is at home; a plan unless `apply`",
        _group_home,
        gives={
            "group": "its name",
            "home": "`{from, to}`: a cluster",
            "conflict": "`{from, to}`: clusters whose commits do not count, and wait for a decision",
            "carry": "`{from, to}`: clusters whose commits count for topics that come from there",
            "applied": "whether the group's record was changed",
        },
        takes={"cluster": "its home; it must have members nowhere else", "apply": "true: do it"},
        changes=True,
    ),
    Route(
        "POST",
        "/groups/{name}/move",
        "Move a group's home to another cluster, with its commits and while it is in use, without waiting for it: "
        "`GET /operations/{id}` says how far it is; a plan unless `apply`",
        _group_move,
        gives={
            "group": "its name",
            "home": "`{from, to}`: a cluster",
            "kind": "`consumer` or `classic`, null: nobody knows it",
            "state": "as its coordinator says",
            "protocol": "of a classic group its protocol's type, else the assignor",
            "members": "list of `{member, instance, client, host, protocol}`",
            "positions": "how many partitions it has committed",
            "lag": "over all its topics",
            "topics": "list of `{topic, cluster, partitions, positions, stand_in}`; `stand_in`: on the new home, "
            "`its own`, `exists`, `create`, or `borrow` (another topic of that name is used)",
            "notes": "sentences",
            "problems": "sentences that name the way out; with any, nothing is done",
            "applied": "whether it was begun",
            "operation": "its id, once it is begun; its steps: prepare, gather, close, copy, clean (served by the new "
            "home), done; or undo, failed, with a `reason` in its `result`",
        },
        takes={"cluster": "its new home", "apply": "true: do it"},
        changes=True,
    ),
    Route(
        "POST",
        "/topics/{name}/eject",
        "Let a topic leave the federation, without waiting for it: its groups' positions are written, as its cluster "
        "counts them, where it is; a plan unless `apply`",
        lambda office, asked: office.eject(asked.path["name"], asked.flag("undo"), asked.flag("apply"), asked.by),
        gives={
            "topic": "its name",
            "cluster": "where it is and stays",
            "partitions": "how many",
            "moved": "whether its offsets there are others than those that clients know",
            "groups": "list of `{group, home, positions, written, below_log_start}`; `written`: how many positions its "
            "cluster lacks and gets",
            "notes": "sentences",
            "problems": "sentences that name the way out; with any, nothing is done",
            "applied": "whether it was begun",
            "operation": "its id, once it is begun; its steps: leave, wait, commits, done or failed",
        },
        takes={
            "undo": "true: take an ejected topic back, as one that the federation does not know",
            "apply": "true: do it",
        },
        changes=True,
    ),
    Route("GET", "/proxies", "The proxy workers", lambda office, _: office.proxies()),
    Route("GET", "/mirrors", "The mirrors, with their partitions", lambda office, _: office.mirrors()),
    Route("GET", "/mirrors/{name}", "The mirrors of a topic", lambda office, asked: office.mirrors(asked.path["name"])),
    Route(
        "POST",
        "/mirror/create",
        "Create mirrors, and return when they copy, or after a few seconds; a plan unless `apply`",
        lambda office, asked: office.mirror_create(asked.body, asked.flag("apply"), asked.by),
        gives={
            "mirrors": "list of `{topic, source, target, mode, partitions, target_topic, expand_to, configuration, "
            "notes, problems}`; `target_topic`: `create`, `use`, `reopen` (a closed stand-in) or `exists` (the mirror "
            "does)",
            "links": "list of `{source, target, rate: {from, to}}`",
            **_MIRROR_PLAN,
        },
        takes={**_MIRRORS, "rate": "bytes a second for everything on each of the links, 0 for no limit"},
        changes=True,
    ),
    Route(
        "POST",
        "/mirror/remove",
        "Remove mirrors, and return when they are gone, or after a few seconds; a plan unless `apply`",
        lambda office, asked: office.mirror_remove(asked.body, asked.flag("apply"), asked.by),
        gives={
            "mirrors": "list of `{topic, source, target, mode, copy}`; `copy`: what becomes of the target's topic",
            **_MIRROR_PLAN,
        },
        takes={**_MIRRORS, "delete_copy": "true: delete the targets' topics as well"},
        changes=True,
    ),
    *(
        Route(
            "POST",
            f"/mirror/{action}",
            what,
            _mirror_state(action),
            gives={
                "mirrors": "list of `{topic, source, target, mode, state: {from, to}, again}`; `again`: offsets of the "
                "source that a rebuild copies once more",
                "links": "list of `{source, target, state: {from, to}}`, where no topics were named",
                **_MIRROR_PLAN,
            },
            takes=_MIRRORS,
            changes=True,
        )
        for action, what in (
            ("pause", "Let mirrors rest, or without topics whole links; a plan unless `apply`"),
            ("resume", "Let mirrors go on, or without topics whole links; a plan unless `apply`"),
            ("rebuild", "Have copies emptied and filled anew; a plan unless `apply`"),
        )
    ),
    Route(
        "GET",
        "/offsets/{topic}/{partition}/{offset}",
        "The offset on one cluster of the record at an offset on another, both physical",
        _offset,
        gives={
            "offset": "where the record lies on `to`; at a position without a record: where the next one does",
            "exact": "whether a record lies at the offset that was asked, and this is where that one is",
            "end": "true: there is no record there or behind it yet; the next one will lie at `offset` or behind it",
            "topic": "as asked",
            "partition": "as asked",
            "from": "`{cluster, offset}`",
            "to": "`{cluster, offset}`",
            "via": "clusters on the way, where no mirror joins the two",
        },
        query={"from": "the cluster whose offset is asked", "to": "the cluster whose offset is wanted"},
    ),
    Route("GET", "/operations", "Operations, running and past", lambda office, _: office.operations()),
    Route(
        "GET",
        "/operations/{id}",
        "One operation",
        lambda office, asked: office.operation(asked.path["id"]),
        gives={
            "migration": "of a move of topics, how far it is: `{source, target, step, means, hold, wanted, attempt, "
            "reason, waits, served, abortable, serving, lag, lag_bytes, rate, seconds_left, held_ms, reopeners, "
            "retirers, emptied, taken_over, transactional_ids, topics}`; `served`: clients are served by the target"
        },
    ),
    Route(
        "POST",
        "/operations/{id}",
        "Pause, resume or abort a move of topics; 409 with the way out where its step does not allow it",
        _operation_change,
        gives={"id": "the operation", "wanted": "`run`, `pause` or `abort`", "state": "its state", "step": "its step"},
        takes={"action": "`pause`, `resume` or `abort`"},
        changes=True,
    ),
    Route(
        "POST",
        "/migrate",
        "Move topics to another cluster, without waiting for it: `GET /operations/{id}` says how far it is; a plan "
        "unless `apply`",
        lambda office, asked: office.migrate(asked.body, asked.flag("apply"), asked.by),
        gives={
            "migrations": "list of `{id, source, target, partitions, bytes, to_copy, disk, rate, seconds, "
            "transactional_ids, takes_over, topics, refusals, warnings, notes}`: topics that switch together; `id`: of "
            "the operation, once it is begun. Of each of its `topics`: `{topic, source, target, partitions, epoch, "
            "bytes, to_copy, kinds, target_topic, replicas, configuration, settings, groups, producers, last_write, "
            "bypassing, transactional_ids, notes}`; `target_topic`: `create`, `standby`, `reuse` or `rebuild`",
            "left_out": "sentences: topics that a pattern found, and that are not moved",
            "problems": "sentences that name the way out; with any, nothing is done",
            "applied": "whether it was begun",
        },
        takes={
            "topics": "names, or regular expressions for whole names",
            "to": "the cluster to move them to",
            "rollback": "true: back to where each came from; `to` may be left out",
            "close_out_bypass": "true: also where producers write past the endpoint, which are refused then",
            "leave_ids": "true: also where a transactional id that writes them writes topics that stay",
            "leave_acls": "true: also where clients have rights on them that they do not have on the target",
            "abort_transactions": "true: those that do not end within `drain_wait` are aborted (error 120)",
            "drain_wait": "seconds that open transactions have to end (60)",
            "max_lag": "records that each topic may lack when writes are held (1000)",
            "budget": "seconds that writes may be held before the hold is lifted (3)",
            "redirect": "seconds that producers have to follow by themselves (600)",
            "apply": "true: do it",
        },
        changes=True,
    ),
    Route(
        "POST",
        "/processes/{name}/dead",
        "State that a registered process is dead, so that nothing waits for it; a plan unless `apply`",
        lambda office, asked: office.process_dead(asked.path["name"], asked.flag("apply"), asked.by),
        gives={
            "process": "its name: `INSTANCE/ROLE-WORKER`",
            "pid": "as it was registered",
            "host": "likewise",
            "started": "likewise, Unix seconds",
            "waiting": "the operations that wait for it",
            "applied": "whether its registration was taken out",
        },
        takes={"apply": "true: do it"},
        changes=True,
    ),
    Route("GET", "/config", "The configuration that is in force, without passwords", lambda office, _: office.config()),
    Route("GET", "/doctor", "What is wrong, and the command that mends it", lambda office, _: office.doctor()),
    Route(
        "GET",
        "/history",
        "Who changed what, when, and what came of it; newest first",
        lambda office, asked: office.history(asked.limit()),
        query={"limit": "how many, 1 to 10000 (100)"},
    ),
    Route(
        "POST",
        "/verify",
        "Compare what both sides of mirrors hold: the next few seconds' piece, and a cursor to go on with",
        lambda office, asked: office.verify(asked.body),
        gives={
            "pieces": "list of `{topic, source, target, mode, partition, done, problem, from, to, buckets, findings, "
            "left_out, not_compared}`: what was compared of a partition; to be added to its earlier pieces",
            "bytes": "how much was read, on both sides together",
            "cursor": "what to send back for the next piece; null: that was the last one",
        },
        takes={
            "topics": "their names",
            "from": "only mirrors from this cluster",
            "to": "only mirrors to this cluster",
            "bucket": "seconds that records are counted together for (3600)",
            "rate": "bytes a second to read at most, on both sides together",
            "since": "Unix ms: begin with the first record of that time or later",
            "cursor": "of the answer before; everything else must be the same",
        },
    ),
    Route(
        "POST",
        "/config/diff",
        "What a configuration file says differently from the store",
        _config_diff,
        gives=_PLAN,
        takes={"configuration": _CONFIGURATION},
    ),
    Route(
        "POST",
        "/config/apply",
        "Bring the store to what a configuration file says; a plan unless `apply`",
        _config_apply,
        gives=_PLAN,
        takes={
            "configuration": _CONFIGURATION,
            "apply": "true: do it",
            "revision": "do it only if the configuration has not changed since this revision of a plan",
        },
        changes=True,
    ),
    Route(
        "POST",
        "/store/export",
        "Everything the store holds, passwords included",
        lambda office, asked: office.store_export(asked.by),
        changes=True,
    ),
    Route(
        "POST",
        "/store/import",
        "Replace what the store holds; a plan unless `apply`",
        _import,
        takes={"export": "what /store/export gave", "apply": "true: do it"},
        changes=True,
    ),
)


def body_of(data: bytes) -> Mapping[str, object]:
    """The JSON object of a request's body; empty for no body. Raises Wrong."""
    if not data:
        return {}
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Wrong("the body must be a JSON object")
    return value
