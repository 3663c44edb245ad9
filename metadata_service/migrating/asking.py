"""What a migration asks brokers: settings, whether leaders take records, where logs end, who has transactions open.

Every question goes to all brokers concerned at the same time. A partition whose leader does not answer is left out of
the answer, and asked for again by whoever wants to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import trio

from kafka_client import ClientError, ClusterClient, UnsupportedApi
from kafka_client.topics import EARLIEST, LATEST, LIST_OFFSETS, OFFSET_FOR_LEADER_EPOCH
from kafka_wire.batches import CRC_FROM
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.records import values_batch
from metadata_service.migrating.leaders import Leaders, by_topic
from metadata_service.models import PlacementEpoch
from metadata_service.operations.facts import Ends, Part, Probe
from metadata_service.operations.gates import CLOSED, looks_closed

PRODUCE, DESCRIBE_CONFIGS, DESCRIBE_TRANSACTIONS, LIST_TRANSACTIONS = 0, 32, 65, 66
TOPIC = 2
TIMEOUT = 3.0  # seconds: a broker that takes longer is asked again, and the hold's budget is what counts
LEADERS_BACK = 64  # leader epochs of a placement that are looked up; consumers ask for the last they have seen
OPEN = ["Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"]
UNKNOWN_EPOCH = -1
_GONE = {ERROR.TRANSACTIONAL_ID_NOT_FOUND}


def _wrong() -> bytes:
    """A batch that nobody appends, larger than a closed topic takes: its checksum is wrong."""
    batch = bytearray(values_batch([(b"", bytes(32))], 0))
    batch[CRC_FROM - 1] ^= 0xFF
    return bytes(batch)


WRONG = _wrong()


async def settings(
    client: ClusterClient,
    topics: Sequence[str],
    names: Iterable[str] | None = CLOSED,
    *,
    broker: int | None = None,
    own: bool = True,
) -> dict[str, dict[str, str | None]]:
    """What is set on each topic itself: a key without a value of its `own` is left out, so giving it back means
    deleting it. Not `own`: what is in force. Topics that are not there are left out. Raises ClientError."""
    keys = None if names is None else sorted(names)
    asked = [{"resource_type": TOPIC, "resource_name": one, "configuration_keys": keys} for one in topics]
    message = {"resources": asked, "include_synonyms": False, "include_documentation": False}
    answer = await client.call(DESCRIBE_CONFIGS, message, broker=broker, timeout=TIMEOUT, retry=broker is None)
    return {
        one["resource_name"]: {
            each["name"]: each["value"] for each in one["configs"] or () if not own or each["config_source"] == 1
        }
        for one in answer["results"]
        if not one["error_code"]
    }


async def probe(leaders: Leaders, parts: Iterable[Part], small: frozenset[str]) -> dict[Part, Probe]:
    """Whether each leader takes records. Of topics that are `small`, whose own limit refuses the probe, the
    configuration as their leader knows it says so. Raises ClientError where nobody can be asked."""
    out: dict[Part, Probe] = {}

    async def ask(broker: int, mine: list[Part]) -> None:
        told = (
            await settings(leaders.client, sorted({n for n, _ in mine if n in small}), broker=broker) if small else {}
        )
        out.update({one: "closed" if looks_closed(told[one[0]]) else "open" for one in mine if one[0] in told})
        found = await leaders.of(name for name, _ in mine)
        data = [
            {
                "name": name,
                "topic_id": found[name].topic.id,
                "partition_data": [{"index": one, "records": memoryview(WRONG)} for one in indexes],
            }
            for name, indexes in by_topic(one for one in mine if one[0] not in small).items()
        ]
        if not data:
            return
        message = {"transactional_id": None, "acks": -1, "timeout_ms": int(TIMEOUT * 1000), "topic_data": data}
        answer = await leaders.client.call(PRODUCE, message, broker=broker, timeout=TIMEOUT)
        names = {found[name].topic.id: name for name, _ in mine}
        for topic in answer["responses"]:
            name = topic.get("name") or names.get(topic.get("topic_id", b""), "")
            for one in topic["partition_responses"]:
                code = one["error_code"]
                if code == ERROR.MESSAGE_TOO_LARGE:
                    out[name, one["index"]] = "closed"
                elif code in (ERROR.CORRUPT_MESSAGE, ERROR.INVALID_RECORD):
                    out[name, one["index"]] = "open"
                else:
                    out[name, one["index"]] = "unknown"
                    leaders.forget([name])

    await leaders.ask(parts, ask)
    return out


async def log_ends(leaders: Leaders, parts: Iterable[Part]) -> dict[Part, int]:
    """Where logs end, physical: acknowledged by their leaders or not. Raises ClientError."""
    wanted = list(parts)
    await leaders.of(name for name, _ in wanted)
    current = {one: leaders.epoch(one) for one in wanted}
    found = await _epoch_ends(leaders, current, current)
    return {one: end for one, (epoch, end) in found.items() if epoch == current[one] and end >= 0}


async def starts(leaders: Leaders, parts: Iterable[Part]) -> dict[Part, int]:
    """Where logs begin, physical. Raises ClientError."""
    return await _list(leaders, list(parts), EARLIEST, committed=False)


async def ends(
    leaders: Leaders,
    parts: Sequence[Part],
    placements: Mapping[str, PlacementEpoch],
    epochs: LeaderEpochs,
    before: Mapping[Part, Ends],
) -> dict[Part, Ends]:
    """The ends of a serving cluster's partitions, all three of each; `before` is what was seen last, for `looks`."""
    found: dict[str, dict[Part, int]] = {}

    async def ask(name: str) -> None:
        if name == "log":
            found[name] = await log_ends(leaders, parts)
        else:
            found[name] = await _list(leaders, parts, LATEST, committed=name == "stable")

    await leaders.of(name for name, _ in parts)
    async with trio.open_nursery() as nursery:
        for name in ("log", "high", "stable"):
            nursery.start_soon(_quietly, ask, name, found)
    await epochs.complete(leaders, parts, placements)
    out = {}
    for one in parts:
        log, high, stable = (found[name].get(one) for name in ("log", "high", "stable"))
        if log is None or high is None or stable is None or one not in epochs.known:
            continue
        known = before.get(one)
        same = known is not None and (known.log_end, known.high_watermark, known.last_stable) == (log, high, stable)
        looks = known.looks + 1 if known is not None and same else 1
        logical = logical_end(placements[one[0]], one[1], log)
        out[one] = Ends(log, high, stable, logical, looks, tuple(epochs.known[one][1]))
    return out


def logical_end(placement: PlacementEpoch, partition: int, physical: int) -> int:
    """What lies at a physical offset of the serving cluster, at or behind where its placement begins."""
    return placement.first.get(partition, 0) + physical - placement.first_physical.get(partition, 0)


class LeaderEpochs:
    """The leader epochs of the present placement, by partition: (the newest, all with their first logical offsets)."""

    def __init__(self) -> None:
        self.known: dict[Part, tuple[int, list[tuple[int, int]]]] = {}

    async def complete(self, leaders: Leaders, parts: Iterable[Part], placements: Mapping[str, PlacementEpoch]) -> None:
        """Look up what is not known of the leaders as they are now. Raises ClientError where nobody can be asked."""
        missing = [one for one in parts if self.known.get(one, (UNKNOWN_EPOCH,))[0] != leaders.epoch(one)]
        begun: dict[Part, list[tuple[int, int]]] = {one: [] for one in missing}
        current = {one: leaders.epoch(one) for one in missing}
        asked = {one: epoch for one, epoch in current.items() if epoch >= 0}
        for _ in range(LEADERS_BACK):
            if not asked:
                break
            # Where an epoch begins is where the one below it ends.
            found = await _epoch_ends(leaders, current, {one: epoch - 1 for one, epoch in asked.items() if epoch > 0})
            following = {}
            for one, epoch in asked.items():
                if epoch == 0:
                    begun[one].append((0, 0))
                elif one not in found:
                    del begun[one]  # to be asked again
                else:
                    below, start = found[one]
                    if begun[one] and start >= begun[one][-1][1]:
                        continue  # below the first one that is remembered
                    begun[one].append((epoch, max(start, 0)))
                    if below >= 0 and start > 0:
                        following[one] = below
            asked = following
        for one, marks in begun.items():
            if marks:
                self.known[one] = current[one], first_logical(placements[one[0]], one[1], marks)


def first_logical(placement: PlacementEpoch, partition: int, marks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(physical epoch, first logical offset) of a placement, growing, from (physical epoch, first physical offset).

    Epochs that ended before this placement began are left out, all but the last; the first one begins where the
    placement does.
    """
    own = placement.first_physical.get(partition, 0)
    out: list[tuple[int, int]] = []
    for epoch, start in sorted(marks):
        logical = logical_end(placement, partition, max(start, own))
        if out and out[-1][1] == logical:
            out.pop()  # it has no record of this placement
        out.append((epoch, logical))
    if out:
        out[0] = (out[0][0], placement.first.get(partition, 0))
    return out


async def transactions(client: ClusterClient, topics: frozenset[str]) -> frozenset[str] | None:
    """The transactional ids whose open transactions name one of the topics; None: a coordinator does not say.

    A transaction that is being ended counts until all its markers are written.
    """
    found: dict[int, list[str]] = {}
    unknown = False

    async def one(broker: int) -> None:
        nonlocal unknown
        message = {"state_filters": OPEN, "producer_id_filters": [], "duration_filter": -1}
        try:
            answer = await client.call(LIST_TRANSACTIONS, message, broker=broker, timeout=TIMEOUT)
            ids = [each["transactional_id"] for each in answer["transaction_states"]]
            if answer["error_code"]:
                unknown = True
            elif ids:
                told = await client.call(
                    DESCRIBE_TRANSACTIONS, {"transactional_ids": ids}, broker=broker, timeout=TIMEOUT
                )
                found[broker] = [each["transactional_id"] for each in told["transaction_states"] if _names(each)]
        except UnsupportedApi:
            return  # before Kafka 3.0: the last stable offset alone must do
        except ClientError:
            unknown = True

    def _names(state: Message) -> bool:
        nonlocal unknown
        if state["error_code"] and state["error_code"] not in _GONE:
            unknown = True
        return any(each["topic"] in topics for each in state["topics"])

    if not client.brokers:
        await client.refresh(TIMEOUT)
    async with trio.open_nursery() as nursery:
        for broker in client.brokers:
            nursery.start_soon(one, broker)
    return None if unknown else frozenset(name for mine in found.values() for name in mine)


# -- inside -----------------------------------------------------------------------------------------------------------


async def _quietly(ask: Any, name: str, found: dict[str, dict[Part, int]]) -> None:
    try:
        await ask(name)
    except ClientError:
        found[name] = {}


async def _list(leaders: Leaders, parts: Sequence[Part], timestamp: int, *, committed: bool) -> dict[Part, int]:
    out: dict[Part, int] = {}

    async def ask(broker: int, mine: list[Part]) -> None:
        topics = [
            {
                "name": name,
                "partitions": [
                    {
                        "partition_index": one,
                        "current_leader_epoch": leaders.epoch((name, one)),
                        "timestamp": timestamp,
                    }
                    for one in indexes
                ],
            }
            for name, indexes in by_topic(mine).items()
        ]
        message = {"replica_id": -1, "isolation_level": int(committed), "topics": topics, "timeout_ms": 2000}
        answer = await leaders.client.call(LIST_OFFSETS, message, broker=broker, timeout=TIMEOUT)
        for topic in answer["topics"]:
            for one in topic["partitions"]:
                if one["error_code"]:
                    leaders.forget([topic["name"]])
                else:
                    out[topic["name"], one["partition_index"]] = one["offset"]

    await leaders.ask(parts, ask)
    return out


async def _epoch_ends(
    leaders: Leaders, current: Mapping[Part, int], asked: Mapping[Part, int]
) -> dict[Part, tuple[int, int]]:
    """(the largest epoch not above the asked one, where it ends), by the leaders of the `current` epochs."""
    out: dict[Part, tuple[int, int]] = {}

    async def ask(broker: int, mine: list[Part]) -> None:
        topics = [
            {
                "topic": name,
                "partitions": [
                    {
                        "partition": one,
                        "current_leader_epoch": current[name, one],
                        "leader_epoch": asked[name, one],
                    }
                    for one in indexes
                ],
            }
            for name, indexes in by_topic(mine).items()
        ]
        message = {"replica_id": -1, "topics": topics}
        answer = await leaders.client.call(OFFSET_FOR_LEADER_EPOCH, message, broker=broker, timeout=TIMEOUT)
        for topic in answer["topics"]:
            for one in topic["partitions"]:
                if one["error_code"]:
                    leaders.forget([topic["topic"]])
                else:
                    out[topic["topic"], one["partition"]] = one["leader_epoch"], one["end_offset"]

    if asked:
        await leaders.ask(asked, ask)
    return out
