"""CreateTopics 19 (2-7), DeleteTopics 20 (1-6), CreatePartitions 37 (0-3).

A new topic goes where the placement puts it; a name any cluster serves is taken (36). Replica assignments name
virtual brokers, all of the topic's cluster. The federation records what was done before the client is told, so that
the next Metadata shows it. A topic's stubs are expanded before the topic itself. One that is being moved is expanded
where it is, and its copy follows; while it is just being switched, the request waits, and goes to where it then is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from metadata_service.failures import StubRefused, Undecided
from metadata_service.models import KAFKA_INTERNAL, is_internal
from metadata_service.view import View
from proxy.apis import relocating
from proxy.apis.contract import Call, Handler, Refused
from proxy.apis.mapping import ask_clusters, failure, timeout_of
from proxy.apis.metadata import find

CREATE, DELETE, PARTITIONS = 19, 20, 37
MOVES = 3  # times a request to expand topics follows them to another cluster
_ZERO_ID = bytes(16)


def _result(name: str | None, code: int, text: str | None = None, topic_id: bytes = _ZERO_ID) -> Message:
    return {"name": name, "topic_id": topic_id, "error_code": code, "error_message": text or error_text(code)}


def physical_ids(view: View, cluster: str, nodes: Iterable[int]) -> list[int]:
    """Physical ids of virtual node ids that must all be of `cluster`.

    Raises:
        Refused: INVALID_REPLICA_ASSIGNMENT, naming the node and the brokers that may be used.
    """
    out = []
    for node in nodes:
        found = view.cluster_of_node(node)
        if found is None or found[0].name != cluster or found[1] not in found[0].snapshot.brokers:
            known = view.clusters.get(cluster)
            usable = sorted(known.node(one) for one in known.snapshot.brokers) if known else []
            text = f"broker {node} is not of the cluster where this topic lives; its brokers are {usable}"
            raise Refused(ERROR.INVALID_REPLICA_ASSIGNMENT, text)
        out.append(found[1])
    return out


def _creatable(call: Call, view: View, topic: Message) -> tuple[str, Message]:
    """(cluster, the topic as that cluster is asked for it). Raises Refused."""
    name = topic["name"]
    if name in view.topics:
        raise Refused(ERROR.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
    if is_internal(name) and name not in KAFKA_INTERNAL:
        raise Refused(ERROR.INVALID_TOPIC_EXCEPTION, f"names like {name!r} are kept for the federation; choose another")
    cluster = call.federation.place_topic(name)
    stub = view.stubs.get((cluster, name))
    if stub is not None and not stub.borrowed:
        raise Refused(
            ERROR.TOPIC_ALREADY_EXISTS,
            f"{name!r} still stands in for a deleted topic on its cluster, because groups there have commits for it; "
            f"delete these commits, or choose another name",
        )
    assignments = [
        {**one, "broker_ids": physical_ids(view, cluster, one["broker_ids"])} for one in topic["assignments"]
    ]
    return cluster, {**topic, "assignments": assignments}


def _by_name(results: Iterable[Message]) -> dict[str, Message]:
    return {one["name"]: one for one in results}


async def _split(
    call: Call,
    view: View,
    key: int,
    request: Message,
    results: str,
    place: Callable[[Message], tuple[str, Message]],
) -> tuple[list[Message], dict[str, list[str]]]:
    """(a result for each topic of the request, in order; the names that succeeded, by cluster).

    `place` gives a topic's cluster and what to ask it, or raises Refused: that topic's result.
    """
    asked: dict[str, list[Message]] = {}
    out: dict[str, Message] = {}
    for topic in request["topics"]:
        try:
            cluster, mine = place(topic)
        except Refused as error:
            out[topic["name"]] = _result(topic["name"], error.code, error.text)
        else:
            asked.setdefault(cluster, []).append(mine)
    requests = {cluster: {**request, "topics": topics} for cluster, topics in asked.items()}
    done: dict[str, list[str]] = {}
    answers = await ask_clusters(call, view, key, requests, timeout=timeout_of(request)) if requests else {}
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            code, text = failure(answer)
            out.update((topic["name"], _result(topic["name"], code, text)) for topic in asked[cluster])
            continue
        out.update(_by_name(answer[results]))
        done[cluster] = [one["name"] for one in answer[results] if one["error_code"] == ERROR.NONE]
    return [out[name] for name in dict.fromkeys(one["name"] for one in request["topics"]) if name in out], done


async def create_topics(call: Call, version: int, request: Message) -> Message:
    view = await find(call, [one["name"] for one in request["topics"]])
    results, done = await _split(call, view, CREATE, request, "topics", lambda topic: _creatable(call, view, topic))
    if not request.get("validate_only"):
        for cluster, names in done.items():
            if names:
                await call.federation.topics_created(cluster, names)
        topics = call.latest().topics
        for one in results:
            if one["error_code"] == ERROR.NONE and one["name"] in topics:
                one["topic_id"] = topics[one["name"]].id
    return {"topics": results}


async def create_partitions(call: Call, version: int, request: Message) -> Message:
    names = [one["name"] for one in request["topics"]]
    await find(call, names)
    found: dict[str, Message] = {}
    left = request["topics"]
    for _ in range(MOVES):
        refused = await _settled(call, [one["name"] for one in left])
        found |= refused
        view = call.latest()
        asked = {**request, "topics": [one for one in left if one["name"] not in refused]}
        found |= await _create_partitions(call, view, asked)
        # A switch may have been recorded before the new count was: then only the copy that was left has it.
        now = call.latest()
        left = [
            one
            for one in asked["topics"]
            if not request["validate_only"]
            and one["name"] in found
            and not found[one["name"]]["error_code"]
            and one["name"] in now.topics
            and now.topics[one["name"]].cluster != view.topics[one["name"]].cluster
            and now.topics[one["name"]].record.partitions < one["count"]
        ]
        if not left:
            break
    return {"results": [found[name] for name in dict.fromkeys(names) if name in found]}


async def _settled(call: Call, names: Iterable[str]) -> dict[str, Message]:
    """Wait until none of the topics is just being switched; results for those that still are."""
    wanted = dict.fromkeys(names)
    with trio.move_on_after(relocating.WAIT):
        while any(relocating.held(call.latest(), name) for name in wanted):
            call.unbind()  # the switch waits for whoever is judged by an older view
            await call.federation.view_changed(call.latest(), relocating.WAIT)
    view = call.latest()
    text = "it is being switched to another cluster; nothing was changed, try again"
    return {name: _result(name, ERROR.REQUEST_TIMED_OUT, text) for name in wanted if relocating.held(view, name)}


async def _create_partitions(call: Call, view: View, request: Message) -> dict[str, Message]:
    """Results by name, of topics that are not just being switched."""

    def place(topic: Message) -> tuple[str, Message]:
        served = view.topics.get(topic["name"])
        if served is None:
            raise Refused(ERROR.UNKNOWN_TOPIC_OR_PARTITION)
        if topic["assignments"] is None:
            return served.cluster, topic
        assignments = [
            {**one, "broker_ids": physical_ids(view, served.cluster, one["broker_ids"])} for one in topic["assignments"]
        ]
        return served.cluster, {**topic, "assignments": assignments}

    refused: dict[str, Message] = {}
    if not request["validate_only"]:
        refused = await _expand_stubs(call, view, request, place)
    asked = {**request, "topics": [one for one in request["topics"] if one["name"] not in refused]}
    results, done = await _split(call, view, PARTITIONS, asked, "results", place)
    names = [name for mine in done.values() for name in mine]
    if names and not request["validate_only"]:
        await call.federation.partitions_created(names)
    return _by_name([*results, *refused.values()])


async def _expand_stubs(
    call: Call, view: View, request: Message, place: Callable[[Message], tuple[str, Message]]
) -> dict[str, Message]:
    """Expand the stubs of topics that are about to be expanded: a group's coordinator must know a partition before
    anybody writes to it. Only where the topic's cluster would do it for this client; a stub cannot be made smaller
    again. Returns results for topics that are not to be expanded, since their stubs were not.
    """
    stubs = {topic for _, topic in view.stubs}
    wanted = {one["name"]: one for one in request["topics"] if one["name"] in stubs}
    if not wanted:
        return {}
    trial = {**request, "topics": list(wanted.values()), "validate_only": True}
    results, _ = await _split(call, view, PARTITIONS, trial, "results", place)
    refused = {one["name"]: one for one in results if one["error_code"]}
    for name in wanted.keys() - refused.keys():
        try:
            await call.federation.expand_stubs({name: wanted[name]["count"]})
        except StubRefused as error:
            refused[name] = _result(name, error.code or ERROR.INVALID_REQUEST, str(error))
        except Undecided as error:
            text = f"the stand-in on {error.cluster} could not be expanded first; nothing was changed, try again"
            refused[name] = _result(name, ERROR.REQUEST_TIMED_OUT, text)
    return refused


async def delete_topics(call: Call, version: int, request: Message) -> Message:
    # Version 6 has `topics`, by name or by id; those before have names only.
    wanted = request["topics"] if version >= 6 else [{"name": name} for name in request["topic_names"]]
    names = [one["name"] for one in wanted if one["name"] is not None]
    ids = [one["topic_id"] for one in wanted if one["name"] is None]
    view = await find(call, names, ids)
    out: list[Message | None] = []
    asked: dict[str, dict[str, bool]] = {}  # cluster -> name -> whether it was named by id
    placed: list[tuple[int, str, str, bytes]] = []
    for one in wanted:
        by_id = one["name"] is None
        topic = view.topics_by_id.get(one["topic_id"]) if by_id else view.topics.get(one["name"])
        if not by_id and one.get("topic_id", _ZERO_ID) != _ZERO_ID:
            out.append(_result(one["name"], ERROR.INVALID_REQUEST, "name a topic or give its id, not both"))
        elif topic is None:
            code: int = ERROR.UNKNOWN_TOPIC_ID if by_id else ERROR.UNKNOWN_TOPIC_OR_PARTITION
            out.append(_result(one["name"], code, None, one.get("topic_id", _ZERO_ID)))
        else:
            placed.append((len(out), topic.cluster, topic.name, topic.id))
            asked.setdefault(topic.cluster, {})[topic.name] = by_id
            out.append(None)
    requests: dict[str, Message] = {}
    for cluster, mine in asked.items():
        # By id where the client did so: the authorizer then hides names. Both shapes, whatever the broker speaks.
        topics = [
            {"name": None, "topic_id": view.topics[name].physical_id} if by_id else {"name": name, "topic_id": _ZERO_ID}
            for name, by_id in mine.items()
        ]
        requests[cluster] = {"topics": topics, "topic_names": list(mine), "timeout_ms": request["timeout_ms"]}
    answers = await ask_clusters(call, view, DELETE, requests, timeout=timeout_of(request)) if requests else {}
    deleted = []
    for position, cluster, name, topic_id in placed:
        by_id = asked[cluster][name]
        answer = answers[cluster]
        if isinstance(answer, Exception):
            code, text = failure(answer)
            found = _result(None if by_id else name, code, text, topic_id)
        else:
            found = next(
                (one for one in answer["responses"] if one["name"] == name or one.get("topic_id") == topic_id),
                _result(None if by_id else name, ERROR.UNKNOWN_SERVER_ERROR, None, topic_id),
            )
            if found["error_code"] == ERROR.NONE:
                deleted.append(name)
                found["topic_id"] = topic_id
        out[position] = found
    if deleted:
        await call.federation.topics_deleted(dict.fromkeys(deleted))
    return {"responses": out}


HANDLERS: dict[int, Handler] = {CREATE: create_topics, DELETE: delete_topics, PARTITIONS: create_partitions}
