"""FindCoordinator (10): the home's coordinator, as that cluster names it. Versions 0-6, key types 0, 1, 2.

A group's or transactional id's home is decided at first mention. The home cluster is asked as the client, so its
own authorization decides; its answer becomes a virtual broker. Share-group state (key type 2) is asked for by
brokers only and needs CLUSTER_ACTION; it follows the group in its key (`group:topic id:partition`).
"""

from __future__ import annotations

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from metadata_service.failures import DecisionFailed
from metadata_service.store.contract import StoreError
from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.gathering import NOWHERE
from proxy.apis.homes import group_home, transaction_home
from proxy.apis.mapping import clean_text, endpoint

FIND_COORDINATOR = 10
GROUP, TRANSACTION, SHARE = 0, 1, 2
TIMEOUT = 10.0  # seconds for a home


def _failed(key: str, code: int, text: str | None = None) -> Message:
    return {
        "key": key,
        "node_id": -1,
        "host": "",
        "port": -1,
        "error_code": code,
        "error_message": text or error_text(code),
    }


async def _home(call: Call, kind: int, key: str) -> str:
    if kind == TRANSACTION:
        return await transaction_home(call, key)
    return await group_home(call, key.partition(":")[0] if kind == SHARE else key)


def _virtual(call: Call, view: View, home: str, key: str, answer: Message) -> Message:
    """The home's answer (of either shape) for one key, with a virtual broker."""
    found = next((one for one in answer.get("coordinators") or () if one.get("key") == key), answer)
    code = found.get("error_code", 0)
    if code:
        text = found.get("error_message")
        return _failed(key, code, clean_text(view, home, text) if text else None)
    address = endpoint(call, view, home, found.get("node_id", -1))
    if address is None:
        return _failed(key, ERROR.COORDINATOR_NOT_AVAILABLE, f"the coordinator on {home} has no address here yet")
    node, host, port = address
    return {"key": key, "node_id": node, "host": host, "port": port, "error_code": 0, "error_message": None}


async def _find(call: Call, kind: int, keys: list[str]) -> list[Message]:
    """One entry a key, in the keys' order."""
    homes: dict[str, list[str]] = {}
    out: dict[str, Message] = {}
    for key in dict.fromkeys(keys):
        try:
            home = await _home(call, kind, key)
            if home == NOWHERE:
                out[key] = _failed(key, ERROR.COORDINATOR_NOT_AVAILABLE, "its home is being moved")
                continue
            homes.setdefault(home, []).append(key)
        except (DecisionFailed, StoreError) as error:
            reason = clean_text(call.view, "-", str(error))
            out[key] = _failed(key, ERROR.COORDINATOR_NOT_AVAILABLE, f"its home cannot be decided now: {reason}")
    view = call.latest()

    async def ask(home: str, named: list[str]) -> None:
        # Both shapes: which one is sent depends on what the broker speaks.
        try:
            if len(named) == 1 or kind == SHARE:
                answers = {
                    key: await call.ask(
                        home,
                        FIND_COORDINATOR,
                        {"key": key, "key_type": kind, "coordinator_keys": [key]},
                        timeout=TIMEOUT,
                    )
                    for key in named
                }
            else:
                request: Message = {"key_type": kind, "coordinator_keys": named}
                whole = await call.ask(home, FIND_COORDINATOR, request, timeout=TIMEOUT)
                answers = dict.fromkeys(named, whole)
        except ClusterAway as error:
            text = f"cluster {error.cluster}, its home, does not answer"
            out.update((key, _failed(key, ERROR.COORDINATOR_NOT_AVAILABLE, text)) for key in named)
        except Refused as error:
            out.update((key, _failed(key, error.code, error.text)) for key in named)
        else:
            out.update((key, _virtual(call, view, home, key, answer)) for key, answer in answers.items())

    # Together: one home that does not answer keeps nobody waiting for the others longer than for itself.
    async with trio.open_nursery() as nursery:
        for home, named in homes.items():
            nursery.start_soon(ask, home, named)
    return [out[key] for key in keys]


async def find_coordinator(call: Call, version: int, request: Message) -> Message:
    kind = request.get("key_type", GROUP)
    keys = request["coordinator_keys"] if version >= 4 else [request["key"]]
    if kind not in (GROUP, TRANSACTION, SHARE) or (kind == SHARE and version < 6):
        text = f"coordinators of type {kind} are not known"
        found = [_failed(key, ERROR.INVALID_REQUEST, text) for key in keys]
    else:
        found = await _find(call, kind, keys)
    return {"coordinators": found} if version >= 4 else found[0]


HANDLERS: dict[int, Handler] = {FIND_COORDINATOR: find_coordinator}
