"""A group's positions written to another cluster in one transaction, and fenced.

The transaction's id belongs to (group, cluster). Whoever copies takes it over first: what a predecessor had begun is
aborted, and where the new epoch has written, the coordinator's log refuses what the old one still sends. So a
controller that was paused in the middle of a copy, and wakes up later, sets nobody's position back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import TRANSACTION, backoff
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_name
from metadata_service.asking import GROUP, Position, Positions, Versions, committed
from metadata_service.failures import Undecided
from metadata_service.models import OWN_TRANSACTIONS

INIT, ADD_OFFSETS, END, COMMIT, DELETE_GROUPS = 22, 25, 26, 28, 42
# The versions in front of KIP-890: later ones add partitions by themselves, and raise the epoch with every transaction.
ADD_OFFSETS_VERSION, END_VERSION, COMMIT_VERSION = 3, 3, 4
TIMEOUT = 10.0
TRANSACTION_TIMEOUT_MS = 30_000
AT_ONCE = 2_000  # partitions in a request
_BUSY = {
    ERROR.CONCURRENT_TRANSACTIONS,
    ERROR.COORDINATOR_LOAD_IN_PROGRESS,
    ERROR.COORDINATOR_NOT_AVAILABLE,
    ERROR.NOT_COORDINATOR,
    ERROR.REQUEST_TIMED_OUT,
}


class Denied(Undecided):
    """The service may not use the transactional id."""


def transaction_of(group: str) -> str:
    """One id a group, of bounded length, that no client may use."""
    return f"{OWN_TRANSACTIONS}home.{hashlib.sha256(group.encode()).hexdigest()[:32]}"


async def write_positions(client: ClusterClient, group: str, positions: Positions, versions: Versions) -> None:
    """All of them, or none; returns when the cluster tells them. `versions`: what it speaks.

    Raises:
        Undecided: it does not answer, refuses, or somebody else has taken the copy over. They may come true, until the
            id is taken over again (`fence`).
    """
    identity = await fence(client, group)
    if positions:
        items = sorted(positions.items())
        await _ask(client, group, ADD_OFFSETS, {**identity, "group_id": group}, ADD_OFFSETS_VERSION)
        for start in range(0, len(items), AT_ONCE):
            part = dict(items[start : start + AT_ONCE])
            await _ask(client, group, COMMIT, {**identity, **_offsets(group, part)}, COMMIT_VERSION, GROUP)
        await _ask(client, group, END, {**identity, "committed": True}, END_VERSION)
    with trio.move_on_after(TIMEOUT):
        failures = 0
        while True:
            try:  # the end of a transaction reaches the group a moment later
                found = await committed(client, group, versions, stable=True)
            except Undecided:
                found = {}
            if all(found.get(key) == position for key, position in positions.items()):
                return
            failures += 1
            await trio.sleep(min(backoff(failures), 0.1))
    raise Undecided(client.name, f"group {group!r} does not show the positions that were written")


async def fence(client: ClusterClient, group: str) -> Message:
    """Takes the transaction over; what was open is aborted. Raises Undecided, Denied."""
    message: Message = {
        "transactional_id": transaction_of(group),
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "producer_id": -1,
        "producer_epoch": -1,
    }
    answer = await _ask(client, group, INIT, message, None)
    return {
        "transactional_id": transaction_of(group),
        "producer_id": answer["producer_id"],
        "producer_epoch": answer["producer_epoch"],
    }


async def delete_group(client: ClusterClient, group: str) -> None:
    """With all its positions; none is no failure. Raises Undecided, also where it has members."""
    try:
        answer = await client.call_coordinator(
            GROUP, group, DELETE_GROUPS, {"groups_names": [group]}, timeout=TIMEOUT, retry=True
        )
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    code = answer["results"][0]["error_code"]
    if code not in (ERROR.NONE, ERROR.GROUP_ID_NOT_FOUND):
        raise Undecided(client.name, f"group {group!r} cannot be deleted: {error_name(code)}")


def _offsets(group: str, positions: Mapping[tuple[str, int], Position]) -> Message:
    topics: dict[str, list[Message]] = {}
    for (topic, index), position in positions.items():
        topics.setdefault(topic, []).append(
            {
                "partition_index": index,
                "committed_offset": position.offset,
                "committed_leader_epoch": position.epoch,
                "committed_metadata": position.metadata,
            }
        )
    return {
        "group_id": group,
        "generation_id": -1,
        "member_id": "",
        "group_instance_id": None,
        "topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()],
    }


async def _ask(
    client: ClusterClient, group: str, key: int, message: Message, version: int | None, kind: int = TRANSACTION
) -> Message:
    """One step, again while a coordinator is busy. Raises Undecided."""
    name = group if kind == GROUP else transaction_of(group)
    deadline = trio.current_time() + TIMEOUT
    failures = 0
    while True:
        left = max(deadline - trio.current_time(), 0.1)
        try:
            answer = await client.call_coordinator(kind, name, key, message, version, left, retry=True)
        except ClientError as error:
            raise Undecided(client.name, str(error)) from error
        codes = {answer.get("error_code", 0)} | {
            one["error_code"] for topic in answer.get("topics", ()) for one in topic["partitions"]
        }
        codes.discard(0)
        if not codes:
            return answer
        if ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED in codes:
            raise Denied(client.name, f"the service needs WRITE on transactional id {name!r}")
        if not codes <= _BUSY or trio.current_time() >= deadline:
            raise Undecided(client.name, f"copying the positions of {group!r}: {error_name(max(codes))}")
        failures += 1
        await trio.sleep(min(backoff(failures), 0.1))
