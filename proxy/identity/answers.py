"""What of an answer given to the service a client may see: the brokers' own filters, applied again. Pure.

A broker filters lists by the principal it talks to. Where the service asks in a client's stead, the answer is cut down
here as KafkaApis of 4.3 would have: what may not be described is missing from lists, and authorized-operations bit
fields (KIP-430) are the client's, not the service's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka_wire.errors import ERROR
from proxy.identity.acl import CLUSTER_NAME, AclSet, Operation, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kafka_wire.codec import Message
    from proxy.identity.principal import Principal

NOT_ASKED = -(1 << 31)  # the bit fields' value where the request did not ask for them


class View:
    """One principal's eyes on one cluster."""

    def __init__(self, acls: AclSet, principal: Principal, host: str | None) -> None:
        self._acls = acls
        self._principal = principal
        self._host = host

    def may_describe(self, resource: Resource, name: str | None) -> bool:
        return bool(name) and self._acls.allows(self._principal, self._host, Operation.DESCRIBE, resource, name or "")

    def own_operations(self, holder: Message, field: str, resource: Resource, name: str | None) -> None:
        if holder.get(field, NOT_ASKED) != NOT_ASKED:
            holder[field] = self._acls.operations(self._principal, self._host, resource, name or "")


def _topics(view: View, request: Message, answer: Message) -> None:
    answer["topics"] = [one for one in answer["topics"] if view.may_describe(Resource.TOPIC, one["name"])]
    for one in answer["topics"]:
        view.own_operations(one, "topic_authorized_operations", Resource.TOPIC, one["name"])
    _cluster(view, request, answer)


def _cluster(view: View, request: Message, answer: Message) -> None:
    view.own_operations(answer, "cluster_authorized_operations", Resource.CLUSTER, CLUSTER_NAME)


def _offset_fetch(view: View, request: Message, answer: Message) -> None:
    for group in answer.get("groups") or [answer]:
        group["topics"] = [
            one for one in group.get("topics") or () if view.may_describe(Resource.TOPIC, one.get("name"))
        ]


def _list_groups(view: View, request: Message, answer: Message) -> None:
    if not view.may_describe(Resource.CLUSTER, CLUSTER_NAME):
        answer["groups"] = [one for one in answer["groups"] if view.may_describe(Resource.GROUP, one["group_id"])]


def _list_transactions(view: View, request: Message, answer: Message) -> None:
    answer["transaction_states"] = [
        one
        for one in answer["transaction_states"]
        if view.may_describe(Resource.TRANSACTIONAL_ID, one["transactional_id"])
    ]


def _describe_transactions(view: View, request: Message, answer: Message) -> None:
    for one in answer["transaction_states"]:
        one["topics"] = [topic for topic in one["topics"] if view.may_describe(Resource.TOPIC, topic["topic"])]


def _share_offsets(view: View, request: Message, answer: Message) -> None:
    for group in answer["groups"]:
        group["topics"] = [one for one in group["topics"] if view.may_describe(Resource.TOPIC, one["topic_name"])]


_NAME_LISTS = ("source_topics", "repartition_sink_topics")
_INFO_LISTS = ("state_changelog_topics", "repartition_source_topics")


def topic_names(value: Any) -> Iterator[str]:
    """Every topic a described group names: in assignments, and in a streams topology."""
    if isinstance(value, list):
        for one in value:
            yield from topic_names(one)
    elif isinstance(value, dict):
        for field, inner in value.items():
            if field == "topic_name":
                yield inner
            elif field in _NAME_LISTS:
                yield from inner
            elif field in _INFO_LISTS:
                yield from (one["name"] for one in inner)
            elif isinstance(inner, (dict, list)):
                yield from topic_names(inner)


def _described_groups(view: View, request: Message, answer: Message) -> None:
    for one in answer["groups"]:
        if all(view.may_describe(Resource.TOPIC, name) for name in topic_names(one)):
            view.own_operations(one, "authorized_operations", Resource.GROUP, one["group_id"])
            continue
        one |= {
            "error_code": int(ERROR.TOPIC_AUTHORIZATION_FAILED),
            "error_message": "The group has described topic(s) that the client is not authorized to describe.",
            "members": [],
            "authorized_operations": NOT_ASKED,
        }
        if "topology" in one:
            one["topology"] = None


_FILTERS: dict[int, Callable[[View, Message, Message], None]] = {
    3: _topics,
    9: _offset_fetch,
    15: _described_groups,
    16: _list_groups,
    60: _cluster,
    65: _describe_transactions,
    66: _list_transactions,
    69: _described_groups,
    77: _described_groups,
    89: _described_groups,
    90: _share_offsets,
}


def shown(acls: AclSet, principal: Principal, host: str | None, key: int, request: Message, answer: Message) -> Message:
    """`answer` with everything the principal may not see taken out; changed in place and returned."""
    cut = _FILTERS.get(key)
    if cut is not None:
        cut(View(acls, principal, host), request, answer)
    return answer
