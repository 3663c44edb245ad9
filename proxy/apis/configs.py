"""DescribeConfigs 32 (1-4), AlterConfigs 33 (0-2), IncrementalAlterConfigs 44 (0-1), ListConfigResources 74 (0-1).

Topics: their cluster. Brokers and broker loggers: the broker of that virtual node id. Groups: their home. What is
cluster-wide (the broker default "", client metrics) is described by the default cluster and altered on all.
A broker's description never shows where it listens: addresses are replaced by the virtual broker's, and what names
controllers is withheld as a sensitive value is. What a move sets on a source topic for its duration is not shown, and
cannot be changed meanwhile; any other setting goes to the topic and into the move's record, to stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from copy import deepcopy

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from metadata_service.models import STRIDE
from metadata_service.view import ClusterView, View
from proxy.apis import relocating
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.homes import group_home
from proxy.apis.mapping import active_clusters, ask, ask_clusters, clean_text, default_cluster, failure
from proxy.apis.metadata import find, valid_name
from proxy.apis.permissions import ALTER_CONFIGS

DESCRIBE, ALTER, INCREMENTAL, LIST = 32, 33, 44, 74
TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP = 2, 4, 8, 16, 32
SET = 0  # an operation of IncrementalAlterConfigs
OF_THE_TOPIC, OF_NOBODY = 1, 5  # ConfigSource: set on the topic itself; Kafka's own default
_LISTENERS = frozenset({"listeners", "advertised.listeners"})
_IDS = frozenset({"broker.id", "node.id"})
_WITHHELD = re.compile(
    r"controller\.quorum\.(voters|bootstrap)|zookeeper\.connect|host\.name|metric\.reporters?\..*host", re.IGNORECASE
)
_REPLICA = re.compile(r"(\d+:)(\d+)")
_ADDRESS = re.compile(r"[\w.-]*:\d{2,5}\b")

Where = tuple[str, int | None, str]  # cluster, physical broker id to ask (None: any), the resource's name there


def _broker(view: View, text: str) -> tuple[ClusterView, int]:
    found = view.cluster_of_node(int(text)) if text.isdecimal() and len(text) < 10 else None
    if found is None or found[1] not in found[0].snapshot.brokers:
        raise Refused(ERROR.INVALID_REQUEST, f"no broker has the id {text!r}; DescribeCluster lists those there are")
    return found


async def _where(call: Call, view: View, resource: Message, *, altering: bool) -> list[Where]:
    """Whom to ask about one resource. Raises Refused."""
    kind, name = resource["resource_type"], resource["resource_name"]
    if kind == TOPIC:
        topic = view.topics.get(name)
        if topic is None:
            raise Refused(ERROR.UNKNOWN_TOPIC_OR_PARTITION if valid_name(name) else ERROR.INVALID_TOPIC_EXCEPTION)
        return [(topic.cluster, None, name)]
    if kind in (BROKER, BROKER_LOGGER) and name:
        cluster, broker = _broker(view, name)
        return [(cluster.name, broker, str(broker))]
    if kind == GROUP:
        return [(await group_home(call, name, ALTER_CONFIGS if altering else None), None, name)]
    if kind in (BROKER, CLIENT_METRICS):
        return [(one, None, name) for one in (active_clusters(view) if altering else [default_cluster(view)])]
    raise Refused(ERROR.INVALID_REQUEST, f"resources of type {kind} are not known here")


def _failed(resource: Message, code: int, text: str | None) -> Message:
    return {
        "error_code": code,
        "error_message": text or error_text(code),
        "resource_type": resource["resource_type"],
        "resource_name": resource["resource_name"],
        "configs": [],
    }


def _shown_value(call: Call, view: View, cluster: ClusterView, broker: int, name: str, value: str) -> str | None:
    """A broker setting as clients may see it; None withholds it."""
    plain = name.lower()
    if _WITHHELD.search(plain):
        return None
    if plain in _IDS and value.lstrip("-").isdecimal():
        return str(cluster.node(int(value)))
    if plain in _LISTENERS:
        address = call.address(cluster.name, broker)
        return None if address is None else f"{call.listener.upper()}://{address[0]}:{address[1]}"
    if _ADDRESS.search(value) or clean_text(view, cluster.name, value) != value:
        return None
    return value


def _virtual_broker(call: Call, view: View, cluster: ClusterView, broker: int, result: Message) -> None:
    """What a physical broker says of its settings, as the virtual broker's, in place."""
    for config in result["configs"]:
        for entry in (config, *(config.get("synonyms") or ())):
            value = entry.get("value")
            if not value:
                continue
            entry["value"] = _shown_value(call, view, cluster, broker, entry["name"], value)
            if entry["value"] is None and entry is config:
                config["is_sensitive"] = True


def _map_throttled(configs: Iterable[Message], node: Callable[[int], int]) -> None:
    """The values of `*.replication.throttled.replicas`, `partition:broker,...` or `*`, in place."""
    for one in configs:
        if not one["name"].endswith(".replication.throttled.replicas"):
            continue
        for entry in (one, *(one.get("synonyms") or ())):
            if entry.get("value"):
                entry["value"] = _REPLICA.sub(lambda match: match[1] + str(node(int(match[2]))), entry["value"])


def _without_closing(view: View, name: str, result: Message) -> None:
    """Put the topic's own values in place of what closes it. They were asked for with their synonyms: what is in force
    where the topic has no value of its own."""
    own = relocating.saved(view, name)
    if own is None:
        return
    for one in result["configs"]:  # perhaps one of the two alone
        if one["name"] not in relocating.CLOSED or one.get("value") != relocating.CLOSED[one["name"]]:
            continue
        value, others = own.get(one["name"]), list(one.get("synonyms") or ())[1:]
        if value is not None:
            others.insert(0, {"name": one["name"], "value": value, "source": OF_THE_TOPIC})
        if others:
            one["value"], one["config_source"] = others[0]["value"], others[0]["source"]
        one["synonyms"] = others
        one["is_default"] = one.get("config_source", OF_NOBODY) == OF_NOBODY


def _unalterable(view: View, key: int, resource: Message) -> str | None:
    """Why a topic's settings cannot be altered like that now; None: they can. Raises Refused: not at this moment."""
    name = resource["resource_name"]
    move = relocating.leaving(view, name)
    if resource["resource_type"] != TOPIC:
        return None
    if relocating.held(view, name):
        raise Refused(ERROR.REQUEST_TIMED_OUT, f"{name!r} is being switched to another cluster; try again")
    if move is None:
        return None
    where = f"while operation {move.id} moves {name!r} to {move.target}"
    if key == ALTER:
        return f"settings cannot be replaced as a whole {where}; change single ones"
    mine = sorted({one["name"] for one in resource["configs"]} & set(relocating.CLOSED))
    return f"{' and '.join(mine)} cannot be changed {where}" if mine else None


async def _each(
    call: Call, view: View, key: int, request: Message, results: str
) -> list[tuple[Message, list[Message]]]:
    """(resource, a result from each cluster it concerns), in the request's order; asked per cluster and broker."""
    plan: list[tuple[Message, list[Where] | Refused]] = []
    batches: dict[tuple[str, int | None], list[Message]] = {}
    for resource in request["resources"]:
        try:
            if key != DESCRIBE and (why := _unalterable(view, key, resource)) is not None:
                raise Refused(ERROR.POLICY_VIOLATION, why)
            places = await _where(call, view, resource, altering=key != DESCRIBE)
        except Refused as error:
            plan.append((resource, error))
            continue
        plan.append((resource, places))
        for cluster, broker, name in places:
            mine = {**deepcopy(resource), "resource_name": name}
            if key != DESCRIBE and resource["resource_type"] == TOPIC:
                _map_throttled(mine["configs"], lambda node: node % STRIDE)
            batches.setdefault((cluster, broker), []).append(mine)
    answers: dict[tuple[str, int | None], dict[tuple[int, str], Message] | ClusterAway | Refused] = {}

    async def one(cluster: str, broker: int | None, resources: list[Message]) -> None:
        try:
            answer = await ask(call, view, cluster, key, {**request, "resources": resources}, broker=broker)
        except (ClusterAway, Refused) as error:
            answers[cluster, broker] = error
        else:
            answers[cluster, broker] = {
                (each["resource_type"], each["resource_name"]): each for each in answer[results]
            }

    async with trio.open_nursery() as nursery:
        for (cluster, broker), resources in batches.items():
            nursery.start_soon(one, cluster, broker, resources)
    out = []
    for resource, placed in plan:
        if isinstance(placed, Refused):
            out.append((resource, [_failed(resource, placed.code, placed.text)]))
            continue
        found = []
        for cluster, broker, name in placed:
            given = answers[cluster, broker]
            if isinstance(given, Exception):
                found.append(_failed(resource, *failure(given)))
                continue
            result = given.get((resource["resource_type"], name))
            if result is None:
                result = _failed(resource, ERROR.UNKNOWN_SERVER_ERROR, None)
            found.append({**result, "resource_name": resource["resource_name"]})
        out.append((resource, found))
    return out


def _topics(resources: Iterable[Message]) -> list[str]:
    return [one["resource_name"] for one in resources if one["resource_type"] == TOPIC]


async def describe_configs(call: Call, version: int, request: Message) -> Message:
    view = await find(call, _topics(request["resources"]))
    out = []
    wanted = bool(request.get("include_synonyms"))
    moving = any(relocating.saved(view, name) is not None for name in _topics(request["resources"]))
    asked = {**request, "include_synonyms": wanted or moving}
    for resource, results in await _each(call, view, DESCRIBE, asked, "results"):
        result = results[0]
        kind, name = resource["resource_type"], resource["resource_name"]
        if result["error_code"]:
            result["configs"] = []
        else:
            if kind == TOPIC:
                _without_closing(view, name, result)
                if moving and not wanted:
                    for one in result["configs"]:
                        one["synonyms"] = []
                _map_throttled(result["configs"], view.clusters[view.topics[name].cluster].node)
            elif kind == BROKER and name:
                _virtual_broker(call, view, *_broker(view, name), result)
        out.append(result)
    return {"results": out}


async def _take_along(call: Call, view: View, resource: Message) -> None:
    """What was set on a topic that is being moved is in force on the other cluster, too, once that serves it."""
    name = resource["resource_name"]
    move = relocating.leaving(view, name)
    if move is not None:
        values = {one["name"]: one["value"] if one["config_operation"] == SET else None for one in resource["configs"]}
        await call.federation.settings_changed(move.id, name, values)


def _altering(key: int) -> Handler:
    async def handler(call: Call, version: int, request: Message) -> Message:
        view = await find(call, _topics(request["resources"]))
        out = []
        for resource, results in await _each(call, view, key, request, "responses"):
            # One result a resource: the worst.
            worst = next((one for one in results if one["error_code"]), results[0])
            out.append(worst)
            if resource["resource_type"] == TOPIC and not worst["error_code"] and not request.get("validate_only"):
                await _take_along(call, view, resource)
        return {"responses": out}

    return handler


async def list_config_resources(call: Call, version: int, request: Message) -> Message:
    """Of all clusters: topics where they are served, groups where they are at home, brokers by virtual id."""
    view = call.view
    response: Message = {"config_resources": []}
    found: dict[tuple[int, str], None] = {}
    answers = await ask_clusters(call, view, LIST, {cluster: dict(request) for cluster in active_clusters(view)})
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            response["error_code"] = failure(answer)[0]  # no place for a text; an incomplete list is an error
            continue
        if answer["error_code"]:
            response["error_code"] = answer["error_code"]
        for one in answer["config_resources"]:
            kind, name = one.get("resource_type", CLIENT_METRICS), one["resource_name"]
            if kind == TOPIC:
                topic = view.topics.get(name)
                if topic is None or topic.cluster != cluster:
                    continue
            elif kind in (BROKER, BROKER_LOGGER) and name.isdecimal():
                name = str(view.clusters[cluster].node(int(name)))
            elif kind == GROUP and name in view.groups and view.groups[name].cluster != cluster:
                continue
            found[kind, name] = None
    response["config_resources"] = [{"resource_type": kind, "resource_name": name} for kind, name in found]
    return response


HANDLERS: dict[int, Handler] = {
    DESCRIBE: describe_configs,
    ALTER: _altering(ALTER),
    INCREMENTAL: _altering(INCREMENTAL),
    LIST: list_config_resources,
}
