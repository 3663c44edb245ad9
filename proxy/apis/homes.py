"""Homes and stubs, as the coordinator APIs need them.

A group or transactional id is coordinated by one cluster, its home. On a connection to another cluster the answer is
NOT_COORDINATOR: clients then ask FindCoordinator again and come to the right broker. On the home, topics that live
elsewhere need a stub, so that the coordinator can check, assign and store positions for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.failures import StubRefused
from metadata_service.models import OWN_TRANSACTIONS, is_internal
from metadata_service.view import View
from proxy.apis.contract import Call, Handler, Refused
from proxy.apis.gathering import settled_home
from proxy.apis.mapping import clean_text, forward
from proxy.apis.metadata import find, valid_name
from proxy.apis.permissions import (
    DESCRIBE,
    GROUP,
    TRANSACTIONAL_ID,
    WRITE,
    may_be_somewhere,
    permitted,
    permitted_topics,
)
from proxy.apis.refusals import refusal


def _first_use(call: Call, resource: int, name: str, operation: int | None) -> Callable[[str], Awaitable[bool]]:
    """Whether a home is recorded: somebody does something with the name (`operation`) that its home would allow. Who
    only asks leaves no trace, as on a broker."""

    async def recorded(home: str) -> bool:
        return operation is not None and bool(await permitted(call, home, operation, resource, [name]))

    return recorded


async def group_home(call: Call, group: str, uses: int | None = None) -> str:
    """The home of a group: from the view, else decided now, and recorded where the group is used (`uses`: the
    operation, READ for a member). While it is moved it is waited for, and NOWHERE for a while. Raises DecisionFailed,
    StoreError.

    For whom no cluster would describe it nothing is decided: the broker that was asked refuses.
    """
    known = call.view.groups.get(group)
    if known is not None:
        return known.cluster if known.move is None else await settled_home(call, known)
    if not await may_be_somewhere(call, GROUP, group):
        return call.cluster
    return await call.federation.group_home(group, _first_use(call, GROUP, group, uses))


async def transaction_home(call: Call, transactional_id: str, uses: int | None = None) -> str:
    """The same for a transactional id. Raises Refused for one of ours: whoever used it would stop a mirror."""
    if transactional_id.startswith(OWN_TRANSACTIONS):
        raise Refused(ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    known = call.view.transactions.get(transactional_id)
    if known is not None:
        return known.cluster
    if not await may_be_somewhere(call, TRANSACTIONAL_ID, transactional_id):
        return call.cluster
    recorded = _first_use(call, TRANSACTIONAL_ID, transactional_id, uses)
    return await call.federation.transaction_home(transactional_id, recorded)


async def require_group(call: Call, group: str, uses: int | None = None) -> None:
    """Raises Refused with NOT_COORDINATOR where the group is at home on another cluster."""
    if await group_home(call, group, uses) != call.cluster:
        raise Refused(ERROR.NOT_COORDINATOR, f"group {group!r} is at home on another broker; look its coordinator up")


async def require_transaction(call: Call, transactional_id: str) -> None:
    """Raises Refused with NOT_COORDINATOR where the id is at home on another cluster."""
    if await transaction_home(call, transactional_id, WRITE) != call.cluster:
        text = f"transactional id {transactional_id!r} is at home on another broker; look its coordinator up"
        raise Refused(ERROR.NOT_COORDINATOR, text)


def split_by_home(
    key: int,
    names: str,
    results: str,
    name: str,
    home: Callable[[Call, str], Awaitable[str]] = group_home,
) -> Handler:
    """A handler for a list of groups or ids: those at home here are passed on, the others answered NOT_COORDINATOR.

    `names` is the request's list (of names, or of structs with the field `name`), `results` the response's, `name`
    the field of a result that says which one it is. Results come in the order of the request.
    """

    def named(item: Any) -> str:
        return str(item[name]) if isinstance(item, dict) else str(item)

    async def handler(call: Call, version: int, request: Message) -> Message:
        items = request[names]
        here = [item for item in items if await home(call, named(item)) == call.cluster]
        if len(here) == len(items):
            return await forward(call, call.view, key, request)
        away = [item for item in items if item not in here]
        refused = refusal(key, version, {**request, names: away}, ERROR.NOT_COORDINATOR)
        response = await forward(call, call.view, key, {**request, names: here}) if here else {**refused, results: []}
        found = {one[name]: one for one in (*refused[results], *response[results])}
        response[results] = [found[named(item)] for item in items if named(item) in found]
        return response

    return handler


def without_stub(view: View, cluster: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that live elsewhere and have no stub with all their partitions on `cluster` yet."""
    out = []
    for name in dict.fromkeys(names):
        topic = view.topics.get(name)
        if topic is None or topic.cluster == cluster or is_internal(name):
            continue
        stub = view.stubs.get((cluster, name))
        if stub is None or not stub.topic_id or stub.partitions < topic.record.partitions:
            out.append(name)
    return out


async def stubs(call: Call, names: Iterable[str]) -> View:
    """The newest view, after every topic of `names` that lives elsewhere has its stub on this connection's cluster.

    Names nobody knows are looked up first and are no error here: the coordinator judges them.

    Raises:
        Refused: a stub cannot be had; the text says what is in the way.
    """
    wanted = list(dict.fromkeys(names))
    view = await find(call, [name for name in wanted if valid_name(name)])
    missing = without_stub(view, call.cluster, wanted)
    if missing:
        # A stub is made with the service's rights: for nobody who may not know of the topic.
        allowed = await permitted_topics(call, view, DESCRIBE, missing)
        missing = [name for name in missing if name in allowed]
    if not missing:
        return view
    try:
        await call.federation.ensure_stubs(call.cluster, missing)
    except StubRefused as error:
        reason = clean_text(view, call.cluster, str(error))
        raise Refused(
            ERROR.INVALID_REQUEST if error.code == 0 else error.code,
            f"{reason}; topic {error.topic!r} and the group have to live on one cluster until that is out of the way",
        ) from None
    return call.latest()
