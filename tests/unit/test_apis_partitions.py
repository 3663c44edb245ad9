"""CreatePartitions where groups read the topic on another cluster: stubs first."""

from __future__ import annotations

import pytest

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.failures import StubRefused, Undecided
from tests.fixtures.calls import FakeCall, handle, stub, two_clusters


def by_name(results: list[Message]) -> dict[str, int]:
    return {one["name"]: one["error_code"] for one in results}


async def test_stubs_are_expanded_before_their_topic_and_only_where_it_will_be() -> None:
    call = FakeCall(two_clusters(stubs=stub("bills", "east", 55) | stub("orders", "west", 56)))
    steps: list[object] = call.federation.told  # type: ignore[assignment]

    def expand(request: Message) -> Message:
        steps.append(("asked", [one["name"] for one in request["topics"]], request["validate_only"]))
        return {"results": [{"name": one["name"], "error_code": 0} for one in request["topics"]]}

    call.script("west", 37, expand)
    call.script("east", 37, {"results": [{"name": "orders", "error_code": ERROR.TOPIC_AUTHORIZATION_FAILED}]})
    topics = [{"name": name, "count": 6, "assignments": None} for name in ("orders", "bills")]
    response = await handle(call, 37, 3, {"topics": topics, "timeout_ms": 1000})
    assert by_name(response["results"]) == {"orders": ERROR.TOPIC_AUTHORIZATION_FAILED, "bills": 0}
    assert steps == [
        ("asked", ["bills"], True),
        ("stubs expanded", {"bills": 6}),
        ("asked", ["bills"], False),
        ("partitions", ["bills"]),
    ]
    # Only asked whether it could be: nothing changes anywhere.
    steps.clear()
    await handle(call, 37, 3, {"topics": topics[1:], "timeout_ms": 1000, "validate_only": True})
    assert steps == [("asked", ["bills"], True)]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StubRefused("east", "bills", "another topic of that name is used"), ERROR.INVALID_REQUEST),
        (Undecided("east", "away"), ERROR.REQUEST_TIMED_OUT),
    ],
)
async def test_a_topic_whose_stub_cannot_be_expanded_is_left_as_it_is(failure: Exception, code: int) -> None:
    call = FakeCall(two_clusters(stubs=stub("bills", "east", 55)))
    call.federation.stub_failure = failure
    call.script("west", 37, {"results": [{"name": "bills", "error_code": 0}]})
    topics = [{"name": "bills", "count": 6, "assignments": None}]
    response = await handle(call, 37, 3, {"topics": topics, "timeout_ms": 1000})
    assert by_name(response["results"]) == {"bills": code}
    assert [request["validate_only"] for _, _, request in call.asked] == [True]
