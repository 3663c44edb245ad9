"""Error answers: the right shape at every version, the error in every place a client looks.

What a request names (topics, partitions, groups, users, resources) is echoed, because clients look their own items
up in the answer and some fail on what they do not find.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from kafka_wire.schema import Field, by_key

# response list -> (request list, {response field: request field; "." is the item itself}, nested)
Echo = dict[str, tuple[str, dict[str, str], "Echo"]]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_INDEXED: dict[str, str] = {"partition_index": "."}
_CONFIG_RESOURCES = _same("resource_type", "resource_name")
_TXN_TOPICS: Echo = {
    "results_by_partition": ("partitions", {"partition_index": "."}, {}),
}

_ECHO: dict[int, Echo] = {
    0: {
        "responses": (
            "topic_data",
            _same("name", "topic_id"),
            {"partition_responses": ("partition_data", _same("index"), {})},
        )
    },
    1: {
        "responses": (
            "topics",
            _same("topic", "topic_id"),
            {"partitions": ("partitions", {"partition_index": "partition"}, {})},
        )
    },
    2: {"topics": ("topics", _same("name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    3: {"topics": ("topics", _same("name", "topic_id"), {})},
    8: {"topics": ("topics", _same("name", "topic_id"), {"partitions": ("partitions", _same("partition_index"), {})})},
    9: {
        "topics": ("topics", _same("name"), {"partitions": ("partition_indexes", _INDEXED, {})}),
        "groups": (
            "groups",
            _same("group_id"),
            {"topics": ("topics", _same("name", "topic_id"), {"partitions": ("partition_indexes", _INDEXED, {})})},
        ),
    },
    10: {"coordinators": ("coordinator_keys", {"key": "."}, {})},
    13: {"members": ("members", _same("member_id", "group_instance_id"), {})},
    15: {"groups": ("groups", {"group_id": "."}, {})},
    19: {"topics": ("topics", _same("name"), {})},
    21: {"topics": ("topics", _same("name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    23: {"topics": ("topics", _same("topic"), {"partitions": ("partitions", _same("partition"), {})})},
    24: {
        "results_by_transaction": (
            "transactions",
            _same("transactional_id"),
            {"topic_results": ("topics", _same("name"), _TXN_TOPICS)},
        ),
        "results_by_topic_v3_and_below": ("v3_and_below_topics", _same("name"), _TXN_TOPICS),
    },
    27: {
        "markers": (
            "markers",
            _same("producer_id"),
            {"topics": ("topics", _same("name"), {"partitions": ("partition_indexes", _INDEXED, {})})},
        )
    },
    28: {"topics": ("topics", _same("name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    30: {"results": ("creations", {}, {})},
    31: {"filter_results": ("filters", {}, {})},
    32: {"results": ("resources", _CONFIG_RESOURCES, {})},
    33: {"responses": ("resources", _CONFIG_RESOURCES, {})},
    37: {"results": ("topics", _same("name"), {})},
    42: {"results": ("groups_names", {"group_id": "."}, {})},
    43: {
        "replica_election_results": (
            "topic_partitions",
            _same("topic"),
            {"partition_result": ("partitions", {"partition_id": "."}, {})},
        )
    },
    44: {"responses": ("resources", _CONFIG_RESOURCES, {})},
    45: {"responses": ("topics", _same("name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    47: {"topics": ("topics", _same("name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    49: {"entries": ("entries", _same("entity"), {})},
    50: {"results": ("users", {"user": "name"}, {})},
    55: {"topics": ("topics", _same("topic_name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    57: {"results": ("feature_updates", _same("feature"), {})},
    61: {"topics": ("topics", _same("name"), {"partitions": ("partition_indexes", _INDEXED, {})})},
    65: {"transaction_states": ("transactional_ids", {"transactional_id": "."}, {})},
    69: {"groups": ("group_ids", {"group_id": "."}, {})},
    75: {"topics": ("topics", _same("name"), {})},
    77: {"groups": ("group_ids", {"group_id": "."}, {})},
    78: {"responses": ("topics", _same("topic_id"), {"partitions": ("partitions", _same("partition_index"), {})})},
    79: {"responses": ("topics", _same("topic_id"), {"partitions": ("partitions", _same("partition_index"), {})})},
    89: {"groups": ("group_ids", {"group_id": "."}, {})},
    90: {
        "groups": (
            "groups",
            _same("group_id"),
            {"topics": ("topics", _same("topic_name"), {"partitions": ("partitions", _INDEXED, {})})},
        )
    },
    91: {"responses": ("topics", _same("topic_name"), {"partitions": ("partitions", _same("partition_index"), {})})},
    92: {"responses": ("topics", _same("topic_name"), {})},
}
for _key in (83, 84, 85, 86, 87):
    _ECHO[_key] = {"results": ("topics", _same("topic_id"), {"partitions": ("partitions", _same("partition"), {})})}

_CODES = frozenset({"error_code", "partition_error_code", "acknowledge_error_code", "topic_config_error_code"})
_TEXTS = frozenset({"error_message", "acknowledge_error_message"})
# Not the protocol's defaults, but what brokers put into an answer that carries an error.
_NOTHING = {
    "base_offset": -1,
    "committed_offset": -1,
    "high_watermark": -1,
    "last_stable_offset": -1,
    "log_start_offset": -1,
    "low_watermark": -1,
    "offset": -1,
    "timestamp": -1,
    "node_id": -1,
    "port": -1,
    "leader_id": -1,
    "metadata": "",
    "records": b"",
    "producer_id": -1,
    "producer_epoch": -1,
    "start_offset": -1,
}


@cache
def _layout(key: int) -> dict[tuple[str, ...], tuple[Field, ...]]:
    """The fields of each struct of a response, by the path of names that leads to it."""
    out: dict[tuple[str, ...], tuple[Field, ...]] = {}

    def down(fields: tuple[Field, ...], path: tuple[str, ...]) -> None:
        out[path] = fields
        for one in fields:
            if one.fields:
                down(one.fields, (*path, one.name))

    down(by_key("response")[key].fields, ())
    return out


def _fill(key: int, path: tuple[str, ...], version: int, echo: Echo, item: Any, code: int, text: str | None) -> Message:
    out: Message = {}
    for one in _layout(key)[path]:
        if version not in one.versions and version not in one.tagged:
            continue
        if one.name in _CODES:
            out[one.name] = code
        elif one.name in _TEXTS:
            out[one.name] = text
        elif one.name in _NOTHING and not one.fields:
            out[one.name] = _NOTHING[one.name]
        if one.name in echo:
            source, copies, nested = echo[one.name]
            # A request may say null where its answer cannot (Metadata 10 and 11, by topic id): the default stands then.
            never_null = {f.name for f in _layout(key)[*path, one.name] if version not in f.nullable}
            out[one.name] = [
                {
                    **_fill(key, (*path, one.name), version, nested, inner, code, text),
                    **{
                        to: value
                        for to, frm in copies.items()
                        if (value := inner if frm == "." else inner.get(frm)) is not None or to not in never_null
                    },
                }
                for inner in item.get(source) or ()
            ]
    return out


def refusal(key: int, version: int, request: Message, code: int, text: str | None = None) -> Message:
    """The answer to a request that is refused as a whole, with `code` in every place a client looks.

    `text` (default: Kafka's sentence for the code) goes wherever the version has an error message.
    """
    text = error_text(code) if text is None else text
    out = _fill(key, (), version, _ECHO.get(key, {}), request, code, text)
    special = _SPECIAL.get(key)
    if special is not None:
        special(request, out, code, text)
    return out


def _delete_topics(request: Message, out: Message, code: int, text: str | None) -> None:
    named = [{"name": name} for name in request.get("topic_names") or ()]
    for one in request.get("topics") or ():
        named.append({"name": one.get("name"), "topic_id": one.get("topic_id", bytes(16))})
    out["responses"] = [{**one, "error_code": code, "error_message": text} for one in named]


def _log_dirs(request: Message, out: Message, code: int, text: str | None) -> None:
    topics: dict[str, list[int]] = {}
    for directory in request.get("dirs") or ():
        for topic in directory["topics"]:
            topics.setdefault(topic["name"], []).extend(topic["partitions"])
    out["results"] = [
        {"topic_name": name, "partitions": [{"partition_index": index, "error_code": code} for index in indexes]}
        for name, indexes in topics.items()
    ]


def _scram(request: Message, out: Message, code: int, text: str | None) -> None:
    users = [one["name"] for kind in ("deletions", "upsertions") for one in request.get(kind) or ()]
    out["results"] = [{"user": user, "error_code": code, "error_message": text} for user in dict.fromkeys(users)]


def _quotas(request: Message, out: Message, code: int, text: str | None) -> None:
    out["entries"] = None


def _join(request: Message, out: Message, code: int, text: str | None) -> None:
    out.update(generation_id=-1, protocol_name="", leader="", member_id=request.get("member_id") or "", members=[])


_SPECIAL = {11: _join, 20: _delete_topics, 34: _log_dirs, 48: _quotas, 51: _scram}

# What a whole request is answered where a cluster, or the store, does not answer: something clients retry.
_COORDINATED = (
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    22,
    24,
    25,
    26,
    28,
    42,
    47,
    65,
    66,
    68,
    69,
    76,
    77,
    88,
    89,
    90,
    91,
    92,
)
_LED = (2, 21, 23, 61, 78, 79)


def away_code(key: int) -> int:
    """The retriable error of an API for "nobody answers at the moment"."""
    if key in _COORDINATED:
        return ERROR.COORDINATOR_NOT_AVAILABLE
    return ERROR.NOT_LEADER_OR_FOLLOWER if key in _LED else ERROR.REQUEST_TIMED_OUT
