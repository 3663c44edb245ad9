"""Groups whose home is being moved; metadata_service/operations/home_moving.py says why.

`gathering`: a classic member hears REBALANCE_IN_PROGRESS, commits, and rejoins; a KIP-848 member is given an empty
assignment, commits, gives its partitions up, and says so. Then it is made to leave the old home, and waits here until
the new one is known. What a member commits meanwhile goes to the old home as ever.

`closed`: nothing is passed on. Requests wait a while for the new home, then hear NOT_COORDINATOR, and
FindCoordinator says that there is none at present.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import HomeRecord
from metadata_service.view import View
from proxy.apis.contract import Call, Refused
from proxy.apis.mapping import forward, to_physical_ids

HOLD = 2.0  # seconds a request waits for a home that is being moved
LEAVE, CONSUMER_HEARTBEAT = 13, 68
GONE = -1  # the member epoch of one that leaves
LIMIT = 20_000  # members remembered
NOWHERE = ""  # the home of a group while it has none

_asked: OrderedDict[tuple[str, str, str], None] = OrderedDict()


def _in_state(view: View, group: str, state: str) -> HomeRecord | None:
    record = view.groups.get(group)
    return record if record is not None and record.move is not None and record.move.state == state else None


def gathering(view: View, group: str) -> HomeRecord | None:
    """The group's record while its members are to leave the old home."""
    return _in_state(view, group, "gathering")


async def settled_home(call: Call, record: HomeRecord) -> str:
    """The home of a group, after it has been moved where that is under way; NOWHERE if it takes longer."""
    deadline = trio.current_time() + HOLD
    known: HomeRecord | None = record
    while known is not None and known.move is not None and known.move.state == "closed":
        left = deadline - trio.current_time()
        if left <= 0:
            return NOWHERE
        await call.federation.home_changed(record.name, known, left)
        latest = call.latest().groups.get(record.name)
        if latest == known:
            return NOWHERE
        known = latest
    return NOWHERE if known is None else known.cluster


def must_look_again(call: Call, group: str) -> bool:
    """Whether an answer that took long comes from a home that is one no longer."""
    latest = call.latest()
    record = latest.groups.get(group)
    return _in_state(latest, group, "closed") is not None or (record is not None and record.cluster != call.cluster)


async def join(call: Call, request: Message, record: HomeRecord) -> Message:
    """A member rejoins: it has committed. It leaves the old home, and comes back when there is a new one."""
    if request["member_id"]:
        member = {
            "member_id": request["member_id"],
            "group_instance_id": request.get("group_instance_id"),
            "reason": "the group's home is being moved",
        }
        message = {"group_id": record.name, "member_id": request["member_id"], "members": [member]}
        await call.ask(call.cluster, LEAVE, message)  # an error of it shows in that the group is not empty
    await call.federation.home_changed(record.name, record, HOLD)
    raise Refused(ERROR.NOT_COORDINATOR)


async def consumer_heartbeat(call: Call, version: int, request: Message, record: HomeRecord) -> Message:
    """A KIP-848 member gives everything up, then it leaves the old home."""
    assert record.move is not None
    view = call.latest()
    epoch, owned = request["member_epoch"], request["topic_partitions"]
    if epoch < 0:
        return await forward(call, view, CONSUMER_HEARTBEAT, request)
    if epoch == 0:
        await call.federation.home_changed(record.name, record, HOLD)
        raise Refused(ERROR.COORDINATOR_NOT_AVAILABLE, "the group's home is being moved")
    key = (record.move.operation, record.name, request["member_id"])
    if owned is None and key not in _asked:
        # What a member has it only says when that changes, or to a coordinator that it had to look up.
        _asked[key] = None
        while len(_asked) > LIMIT:
            _asked.popitem(last=False)
        raise Refused(ERROR.COORDINATOR_NOT_AVAILABLE, "say again what you have")
    if owned is not None and not any(one["partitions"] for one in owned):
        _asked.pop(key, None)
        bare = {**request, "member_epoch": GONE, "topic_partitions": None, **_NO_SUBSCRIPTION}
        await forward(call, view, CONSUMER_HEARTBEAT, bare)
        raise Refused(ERROR.UNKNOWN_MEMBER_ID, "the group's home is being moved: join it again")
    asked = to_physical_ids(view, call.cluster, CONSUMER_HEARTBEAT, version, {**request, **_NO_SUBSCRIPTION})
    response = await forward(call, view, CONSUMER_HEARTBEAT, asked)
    if response["error_code"] == ERROR.NONE:
        response["assignment"] = {"topic_partitions": []}
    return response


_NO_SUBSCRIPTION: Message = {"subscribed_topic_names": None, "subscribed_topic_regex": None}
