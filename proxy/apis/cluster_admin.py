"""Running the brokers: log directories, elections, reassignments, features, the quorum, and what is refused.

AlterReplicaLogDirs 34 (1-2), DescribeLogDirs 35 (1-5), ElectLeaders 43 (0-2), AlterPartitionReassignments 45 (0-1),
ListPartitionReassignments 46 (0), DescribeQuorum 55 (0-2), UpdateFeatures 57 (0-2), UnregisterBroker 64 (0);
refused: telemetry 71 and 72, raft voters 80 and 81, share-group state 83 to 87.

Replicas are named by virtual node ids. Features are finalized on all clusters, after all have agreed to it in a
validation. There are as many quorums as clusters: DescribeQuorum tells of the default cluster's, without the
addresses of controllers; voters are changed on the clusters themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.mapping import active_clusters, ask, ask_clusters, by_cluster, default_cluster, failure, timeout_of
from proxy.apis.mapping import forward as forward_mapped
from proxy.apis.metadata import find
from proxy.apis.refusals import refusal
from proxy.apis.topics import physical_ids

ALTER_DIRS, DESCRIBE_DIRS, ELECT, REASSIGN, REASSIGNMENTS = 34, 35, 43, 45, 46
QUORUM, FEATURES, UNREGISTER = 55, 57, 64
FEATURE_VALIDATION_FROM = 1  # version of UpdateFeatures with validate_only

Answers = dict[str, Message | ClusterAway | Refused]


async def describe_log_dirs(call: Call, version: int, request: Message) -> Message:
    """This broker's directories with the topics it serves: stubs and mirrors are not the client's."""
    view = call.view
    response = await forward_mapped(call, view, DESCRIBE_DIRS, request)
    for directory in response["results"]:
        directory["topics"] = [
            topic
            for topic in directory["topics"]
            if (served := view.topics.get(topic["name"])) is not None and served.cluster == call.cluster
        ]
    return response


async def alter_log_dirs(call: Call, version: int, request: Message) -> Message:
    view = await find(call, [topic["name"] for one in request["dirs"] for topic in one["topics"]])

    def here(topic: Message) -> bool:
        served = view.topics.get(topic["name"])
        return served is not None and served.cluster == call.cluster

    asked = [{**one, "topics": [topic for topic in one["topics"] if here(topic)]} for one in request["dirs"]]
    others = [{**one, "topics": [topic for topic in one["topics"] if not here(topic)]} for one in request["dirs"]]
    refused = refusal(ALTER_DIRS, version, {"dirs": others}, ERROR.REPLICA_NOT_AVAILABLE)["results"]
    if refused and not any(one["topics"] for one in asked):
        return {"results": refused}
    response = await forward_mapped(call, view, ALTER_DIRS, {**request, "dirs": asked})
    response["results"] += refused
    return response


def _clusters(view: View, topics: Iterable[Message] | None, field: str) -> dict[str, list[Message] | None]:
    """The topics of a request by cluster; null (all topics) is null on every cluster."""
    if topics is None:
        return dict.fromkeys(active_clusters(view))
    items = list(topics)
    places = by_cluster(view, [one[field] for one in items])
    return {cluster: [one for one in items if one[field] in names] for cluster, names in places.items()}


async def elect_leaders(call: Call, version: int, request: Message) -> Message:
    asked = request["topic_partitions"]
    view = call.view if asked is None else await find(call, [one["topic"] for one in asked])
    unknown = [one for one in asked or () if one["topic"] not in view.topics]
    out = refusal(ELECT, version, {"topic_partitions": unknown}, ERROR.UNKNOWN_TOPIC_OR_PARTITION)
    results: list[Message] = out["replica_election_results"]
    places = _clusters(view, asked, "topic")
    requests = {cluster: {**request, "topic_partitions": mine} for cluster, mine in places.items()}
    answers = await ask_clusters(call, view, ELECT, requests, timeout=timeout_of(request)) if requests else {}
    response: Message = {"error_code": 0, "replica_election_results": results}
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            code, text = failure(answer)
            mine = {"topic_partitions": places[cluster] or []}
            results += refusal(ELECT, version, mine, code, text)["replica_election_results"]
            if places[cluster] is None:
                response["error_code"] = code
            continue
        response["error_code"] = response["error_code"] or answer.get("error_code", 0)
        for one in answer["replica_election_results"]:
            served = view.topics.get(one["topic"])
            if served is not None and served.cluster == cluster:
                results.append(one)
    return response


async def reassign(call: Call, version: int, request: Message) -> Message:
    view = await find(call, [one["name"] for one in request["topics"]])
    asked: dict[str, list[Message]] = {}
    out: dict[str, list[Message]] = {}  # partition results by topic
    for topic in request["topics"]:
        served = view.topics.get(topic["name"])
        mine: list[Message] = []
        refused = out.setdefault(topic["name"], [])
        for one in topic["partitions"]:
            index = one["partition_index"]
            try:
                if served is None:
                    raise Refused(ERROR.UNKNOWN_TOPIC_OR_PARTITION)
                replicas = one["replicas"]
                if replicas is not None:
                    replicas = physical_ids(view, served.cluster, replicas)
                mine.append({**one, "replicas": replicas})
            except Refused as error:
                text = error.text or error_text(error.code)
                refused.append({"partition_index": index, "error_code": error.code, "error_message": text})
        if served is not None and mine:
            asked.setdefault(served.cluster, []).append({**topic, "partitions": mine})
    requests = {cluster: {**request, "topics": topics} for cluster, topics in asked.items()}
    answers = await ask_clusters(call, view, REASSIGN, requests, timeout=timeout_of(request)) if requests else {}
    response: Message = {
        "error_code": 0,
        "error_message": None,
        "allow_replication_factor_change": request.get("allow_replication_factor_change", True),
    }
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            code, text = failure(answer)
            answer = refusal(REASSIGN, version, requests[cluster], code, text)
        elif answer["error_code"]:
            whole = refusal(REASSIGN, version, requests[cluster], answer["error_code"], answer["error_message"])
            answer = {**answer, "responses": whole["responses"]}
        if len(answers) == 1 and not any(out.values()):
            response.update(error_code=answer["error_code"], error_message=answer["error_message"])
        for topic in answer["responses"]:
            if topic["name"] in out:
                out[topic["name"]] += topic["partitions"]
    response["responses"] = [{"name": name, "partitions": partitions} for name, partitions in out.items()]
    return response


async def reassignments(call: Call, version: int, request: Message) -> Message:
    asked = request["topics"]
    view = call.view if asked is None else await find(call, [one["name"] for one in asked])
    places = _clusters(view, asked, "name")
    requests = {cluster: {**request, "topics": mine} for cluster, mine in places.items()}
    answers = await ask_clusters(call, view, REASSIGNMENTS, requests, timeout=timeout_of(request)) if requests else {}
    response: Message = {"error_code": 0, "error_message": None, "topics": []}
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            response["error_code"], response["error_message"] = failure(answer)
            continue
        if answer["error_code"] and not response["error_code"]:
            response.update(error_code=answer["error_code"], error_message=answer["error_message"])
        for one in answer["topics"]:
            served = view.topics.get(one["name"])
            if served is not None and served.cluster == cluster:
                response["topics"].append(one)
    return response


async def describe_quorum(call: Call, version: int, request: Message) -> Message:
    # Controllers have no virtual address; their ids and positions are told.
    return await ask(call, call.view, default_cluster(call.view), QUORUM, request)


async def update_features(call: Call, version: int, request: Message) -> Message:
    view = call.view
    names = active_clusters(view)

    async def everywhere(asked: Message) -> Message | None:
        answers = await ask_clusters(
            call, view, FEATURES, {name: dict(asked) for name in names}, timeout=timeout_of(request)
        )
        for cluster, answer in answers.items():
            if isinstance(answer, Exception):
                code, text = failure(answer)
                return refusal(FEATURES, version, request, code, text)
            failed = [one for one in answer.get("results") or () if one["error_code"]]
            code = answer["error_code"] or (failed[0]["error_code"] if failed else 0)
            if code:
                words = answer["error_message"] or (failed[0]["error_message"] if failed else None) or error_text(code)
                return refusal(FEATURES, version, request, code, f"{cluster}: {words}")
        return None

    validated = {**request, "validate_only": True}
    refused = await everywhere(validated) if version >= FEATURE_VALIDATION_FROM else None
    if refused is not None:
        return refused
    if not request.get("validate_only"):
        refused = await everywhere(request)
        if refused is not None:
            refused["error_message"] = f"{refused['error_message']} (clusters before it have changed; ask again)"
            return refused
    results = [
        {"feature": one["feature"], "error_code": 0, "error_message": None} for one in request["feature_updates"]
    ]
    return {"error_code": 0, "error_message": None, "results": results}


async def unregister_broker(call: Call, version: int, request: Message) -> Message:
    found = call.view.cluster_of_node(request["broker_id"])
    if found is None:
        raise Refused(ERROR.BROKER_ID_NOT_REGISTERED, f"no broker has the id {request['broker_id']}")
    cluster, broker = found
    return await ask(call, call.view, cluster.name, UNREGISTER, {"broker_id": broker})


def _refusing(key: int, code: int, text: str) -> Handler:
    async def handler(call: Call, version: int, request: Message) -> Message:
        return refusal(key, version, request, code, text)

    return handler


_VOTERS = "controllers belong to one physical cluster each: change their voters on that cluster itself"
_BROKERS = "this is spoken between brokers, not with clients"

HANDLERS: dict[int, Handler] = {
    ALTER_DIRS: alter_log_dirs,
    DESCRIBE_DIRS: describe_log_dirs,
    ELECT: elect_leaders,
    REASSIGN: reassign,
    REASSIGNMENTS: reassignments,
    QUORUM: describe_quorum,
    FEATURES: update_features,
    UNREGISTER: unregister_broker,
    **{key: _refusing(key, ERROR.CLUSTER_AUTHORIZATION_FAILED, _BROKERS) for key in (83, 84, 85, 86, 87)},
    **{key: _refusing(key, ERROR.UNSUPPORTED_VERSION, "telemetry is not collected here") for key in (71, 72)},
    **{key: _refusing(key, ERROR.INVALID_REQUEST, _VOTERS) for key in (80, 81)},
}
