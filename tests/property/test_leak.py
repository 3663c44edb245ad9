"""No client learns of a physical broker (I7): every response type, every version, every path.

Brokers answer with messages in which every field that could name a broker does so: node ids, hosts and ports that
exist nowhere else, also within error messages. Nothing of it may be left in what a client gets. The clusters have the
indexes 3 and 4, so that a virtual node id is never the physical one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_wire.api_table import Way, table
from kafka_wire.codec import Message, decode, encode
from kafka_wire.roles import HARMLESS, Role, is_suspicious, roles, unclassified
from kafka_wire.schema import Definition, Direction, Field, Versions, by_key
from proxy.apis.contract import Call
from proxy.apis.mapping import mapped
from proxy.apis.registry import HANDLERS
from tests.fixtures.calls import FakeCall, served, uuid, view_of

NODES = (70001, 70002)  # physical broker ids, unlike anything else
PORTS = {19000 + one for one in NODES}
FIRST_INDEX = 3
RELAYED = {key for key, one in table().items() if one.way is Way.RELAYED}
ANSWERED = sorted(key for key in by_key("response") if key not in RELAYED)
PASSED_AS_BYTES = {0, 1}
Draw = Callable[[st.SearchStrategy[Any]], Any]
SECRET = re.compile(r"-host-|\.internal|1?9?7000[12]|1?8900[12]")
TEXT = (
    "broker 70001 (east-host-70001.internal:89001) is not alive; replica list: [70001, 70002], leader is 70002; "
    "ask west-host-70002.internal or 10.3.3.3:89002"
)


def view() -> Any:
    return view_of(
        [served("orders", "east", 101, 11), served("bills", "west", 102, 12)],
        brokers={"east": NODES, "west": NODES},
        first_index=FIRST_INDEX,
    )


def leaks(value: Any, path: str = "") -> Iterator[str]:
    """Paths at which a physical node id, host or port is left."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaks(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from leaks(item, path)
    elif isinstance(value, str):
        if SECRET.search(value.replace("370001", "").replace("370002", "").replace("470001", "").replace("470002", "")):
            yield f"{path}: {value}"
    elif isinstance(value, int) and not isinstance(value, bool) and value in {*NODES, *PORTS, 89001, 89002}:
        yield f"{path}: {value}"


class Broker:
    """Fills a definition with values; what the roles say nothing of, but looks like a broker's, is filled as well."""

    def __init__(self, direction: Direction, key: int, draw: Draw | None, *, error: int = 0) -> None:
        self.key = key
        self.error = error
        self.draw = draw
        self.roles = {one.path: one.role for one in roles(direction, key)}

    def pick(self, *values: Any) -> Any:
        return values[0] if self.draw is None else self.draw(st.sampled_from(values))

    def leaf(self, field: Field, path: str, inside: str) -> Any:
        role = self.roles.get(path)
        name = field.name
        if role is Role.NODE_ID or (inside == Role.ENDPOINT and field.entity == "brokerId"):
            return self.pick(*NODES)
        if name == "host" and inside != "harmless":
            return self.pick("east-host-70001.internal", "west-host-70002.internal")
        if name == "port" and inside != "harmless":
            return 55555 if field.type == "uint16" else 89001
        if role is Role.ERROR_MESSAGE:
            return TEXT
        if name in ("error_code", "partition_error_code"):
            return self.error
        if role is Role.TOPIC_NAME:
            return self.pick("orders", "bills")
        if role is Role.TOPIC_ID:
            return self.pick(uuid(11), uuid(12))
        if role in (Role.GROUP_ID, Role.TRANSACTIONAL_ID):
            return "g"
        if role is Role.RESOURCE_NAME:
            return "orders"
        if name == "resource_type":
            return 2
        if field.type == "int32" and is_suspicious(field) and (self.key, name) not in HARMLESS:
            # Not known to be a broker's, and not known to be harmless: as if it were one.
            return 3 if role is not None or (None, name) in HARMLESS else NODES[0]
        return {"bool": False, "string": "x", "bytes": b"", "records": b"", "uuid": bytes(16), "float64": 0.0}.get(
            field.type, 1
        )

    def struct(self, fields: tuple[Field, ...], prefix: str, inside: str) -> Message:
        out: Message = {}
        for one in fields:
            path = prefix + one.name
            if one.fields:
                within = self.roles.get(path, inside)
                value: Any = self.struct(one.fields, path + ".", within)
            else:
                harmless = (self.key, one.name) in HARMLESS
                value = self.leaf(one, path, "harmless" if harmless else inside)
            out[one.name] = [value] if one.array else value
        return out

    def message(self, definition: Definition) -> Message:
        return self.struct(definition.fields, "", self.roles.get("", ""))


def versions_of(key: int, direction: Direction = "response") -> range:
    known: Versions = by_key(direction)[key].versions
    return range(known.low, known.high + 1)


# Everything is classified


@pytest.mark.parametrize("direction", ["request", "response"])
def test_every_suspicious_field_is_classified_on_purpose(direction: Direction) -> None:
    found = {key: paths for key in by_key(direction) if (paths := unclassified(direction, key))}
    assert found == {}, "give these a role, or a reason in kafka_wire.roles.HARMLESS"


def test_no_reason_is_left_over() -> None:
    used = set()
    directions: tuple[Direction, ...] = ("request", "response")
    for direction in directions:
        for key, definition in by_key(direction).items():
            for _, one in definition.walk():
                if not one.fields:
                    used |= {(key, one.name), (None, one.name)}
    assert set(HARMLESS) - used == set()


def test_every_api_has_a_way_and_a_handler() -> None:
    assert set(by_key("request")) <= set(table())
    missing = set(by_key("request")) - set(HANDLERS) - RELAYED - PASSED_AS_BYTES
    assert missing == set()
    assert set(HANDLERS) <= set(by_key("request"))


# What a cluster says is mapped, whatever it says


@pytest.mark.parametrize("key", ANSWERED)
@pytest.mark.parametrize("error", [0, 3])
def test_a_mapped_answer_names_no_physical_broker(key: int, error: int) -> None:
    for version in versions_of(key):
        raw = Broker("response", key, None, error=error).message(by_key("response")[key])
        answer = decode("response", key, version, encode("response", key, version, raw))
        call = FakeCall(view(), broker=NODES[0])
        out = mapped(cast(Call, call), call.view, "east", key, answer)
        again = decode("response", key, version, encode("response", key, version, out))
        assert list(leaks(again)) == [], f"version {version}"


# What the handlers make of it


def request_for(key: int, version: int, draw: Draw) -> Message:
    """A request that finds its way: existing topics, groups at home here, virtual node ids."""
    here = draw(st.sampled_from(["orders", "bills"]))
    virtual = draw(st.sampled_from([370001, 370002, 470001, 470002]))

    def fill(fields: tuple[Field, ...], struct: str) -> Message:
        out: Message = {}
        for one in fields:
            value: Any
            if one.fields:
                value = fill(one.fields, one.name)
            elif one.name == "replica_id":
                value = -1
            elif one.entity == "brokerId":
                value = virtual
            elif one.entity == "topicName" or one.name == "resource_name":
                value = here
            elif one.name == "topic_id":
                value = uuid(101) if here == "orders" else uuid(102)
            elif one.entity in ("groupId", "transactionalId"):
                value = "g"
            elif one.name in ("resource_type", "resource_type_filter"):
                value = 2
            elif one.name in ("key", "coordinator_keys"):
                value = "g"
            elif one.name == "key_type":
                value = 0
            elif one.type in ("string", "bytes"):
                value = {"string": "x", "bytes": b"\0\1"}[one.type]
            else:
                value = {"bool": False, "uuid": bytes(16), "float64": 0.0, "records": None}.get(one.type, 0)
            out[one.name] = [value] if one.array else value
        if struct == "resources" and draw(st.booleans()):
            out.update(resource_type=4, resource_name=str(virtual))
        return out

    raw = fill(by_key("request")[key].fields, "")
    if key == 20 and version >= 6:
        raw["topics"][0] = {"name": here, "topic_id": bytes(16)}
    if key in (3, 35, 43, 46) and draw(st.booleans()):
        raw.update({name: None for name in ("topics", "topic_partitions") if name in raw})
        if key == 3 and version == 0:
            raw["topics"] = []
    if key == 3 and raw["topics"] and version < 12:
        raw["topics"][0]["topic_id"] = bytes(16)
    return decode("request", key, version, encode("request", key, version, raw))


class Chatty(FakeCall):
    """Brokers that put a physical broker wherever one fits."""

    def __init__(self, draw: Draw, cluster: str, error: int) -> None:
        super().__init__(view(), cluster, NODES[0])
        self.draw = draw
        self.error = error
        self.federation.homes = {"g": cluster}
        self.federation.auto_create_topics = True

    def _answer(self, cluster: str, key: int, version: int, request: Message) -> Message:
        raw = Broker("response", key, self.draw, error=self.error).message(by_key("response")[key])
        if key in (32, 33, 44):
            configs = raw["results" if key == 32 else "responses"]
            for one, asked in zip(configs, request["resources"], strict=False):
                one.update(resource_type=asked["resource_type"], resource_name=asked["resource_name"])
                for config in one.get("configs", ()):
                    name, value = "leader.replication.throttled.replicas", "0:70001"
                    if asked["resource_type"] == 4:
                        name, value = "advertised.listeners", "A://east-host-70001.internal:89001"
                        config["synonyms"] = [{"name": "node.id", "value": "70001", "source": 1}]
                    config.update(name=name, value=value)
        return decode("response", key, version, encode("response", key, version, raw))


HANDLED = sorted(set(HANDLERS) - PASSED_AS_BYTES)


@pytest.mark.parametrize("key", HANDLED)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_no_handlers_answer_names_a_physical_broker(key: int, data: st.DataObject) -> None:
    cluster = data.draw(st.sampled_from(["east", "west"]))
    error = data.draw(st.sampled_from([0, 0, 6, 16, 41]))
    version = data.draw(st.sampled_from(versions_of(key, "request")))
    call = Chatty(data.draw, cluster, error)
    request = request_for(key, version, data.draw)
    call.key, call.version = key, version
    response = trio.run(HANDLERS[key], cast(Call, call), version, request)
    out = decode("response", key, version, encode("response", key, version, response))
    assert list(leaks(out)) == []


def test_the_test_sees_leaks() -> None:
    """A broker list of the view itself, unmapped, is full of them."""
    known = view().clusters["east"].snapshot
    message = {"brokers": [{"node_id": one.id, "host": one.host, "port": one.port} for one in known.brokers.values()]}
    assert len(list(leaks(message))) == 6
    assert list(leaks({"error_message": TEXT}))
    unknown = Field(
        "secret_node", "int32", False, Versions(0, 1), Versions(0, -1), None, Versions(0, -1), None, 0, None, ()
    )
    assert is_suspicious(unknown)
    assert is_suspicious(replace(unknown, name="x", type="uuid"))
