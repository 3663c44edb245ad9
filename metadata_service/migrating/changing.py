"""What a migration changes on brokers. Every request goes through `Hands`, to one broker, and is never repeated by
itself: who asks looks at what is, and asks again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

import trio

from kafka_client import ClientError, ClusterClient, Refused
from kafka_client.cluster import TRANSACTION
from kafka_client.failures import BrokerUnavailable
from kafka_client.rights import lacking, on_topic
from kafka_client.topics import DELETE_RECORDS, EARLIEST, RETRIABLE
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.migrating.asking import TOPIC, starts
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.leaders import Leaders
from metadata_service.store.clock import Backoff
from runtime import logging

log = logging.get(__name__)

INIT_PRODUCER_ID, ALTER_CONFIGS = 22, 44
SET, DELETE = 0, 1
TIMEOUT = 10.0
TRANSACTION_MS = 60_000
ENDING = frozenset({ERROR.CONCURRENT_TRANSACTIONS, ERROR.COORDINATOR_LOAD_IN_PROGRESS})


async def alter(hands: Hands, client: ClusterClient, values: Mapping[str, Mapping[str, str | None]]) -> None:
    """Set values of topics, or with None go back to the default: all settings of a topic in one step.

    Raises:
        Refused: a topic's values are not taken; one that is not there (any longer) is passed over.
        ClientError: no answer.
    """
    if not values:
        return
    resources = [
        {
            "resource_type": TOPIC,
            "resource_name": name,
            "configs": [
                {"name": key, "config_operation": DELETE if value is None else SET, "value": value}
                for key, value in sorted(settings.items())
            ],
        }
        for name, settings in sorted(values.items())
    ]
    message = {"resources": resources, "validate_only": False}
    answer = await hands.call(client, await _any(client), values, ALTER_CONFIGS, message, TIMEOUT)
    for one in answer["responses"]:
        code = one["error_code"]
        if code and code != ERROR.UNKNOWN_TOPIC_OR_PARTITION:
            right = lacking(code, on_topic("ALTER_CONFIGS", one["resource_name"]))
            raise Refused(f"{client.name}: altering {one['resource_name']}{right}", code, one["error_message"])


async def delete_records(hands: Hands, leaders: Leaders, topic: str, ends: Mapping[int, int]) -> bool:
    """Delete a topic's records up to these physical offsets. Whether all is deleted; a topic that is gone holds
    nothing. Raises ClientError where nobody can be asked."""
    parts = [(topic, index) for index in ends]
    if topic not in await leaders.of([topic]):
        return True

    async def one(broker: int, mine: list[tuple[str, int]]) -> None:
        asked = [{"partition_index": index, "offset": ends[index]} for _, index in mine]
        message: Message = {"topics": [{"name": topic, "partitions": asked}], "timeout_ms": int(TIMEOUT * 1000)}
        answer = await hands.call(leaders.client, broker, [topic], DELETE_RECORDS, message, TIMEOUT)
        for each in answer["topics"][0]["partitions"]:
            if each["error_code"] in RETRIABLE:
                leaders.forget([topic])
            elif each["error_code"] not in (0, ERROR.OFFSET_OUT_OF_RANGE):
                right = lacking(each["error_code"], on_topic("DELETE", topic))
                raise Refused(f"{leaders.client.name}: deleting records of {topic}{right}", each["error_code"])

    begin = await starts(leaders, parts)
    left = [part for part in parts if begin.get(part, -1) < ends[part[1]]]
    if not left:
        return True
    await leaders.ask(left, one)
    begin = await starts(leaders, parts)
    return all(begin.get(part, -1) >= ends[part[1]] for part in parts)


async def end_transactions(hands: Hands, client: ClusterClient, ids: Collection[str], topics: Collection[str]) -> None:
    """Abort what these ids have open, by giving each a higher producer epoch. What fails is logged."""

    async def end(name: str) -> None:
        message = {"transactional_id": name, "transaction_timeout_ms": TRANSACTION_MS}
        backoff = Backoff(0.02, 0.5)
        try:
            with trio.move_on_after(TIMEOUT):
                while True:
                    broker = await client.coordinator(TRANSACTION, name)
                    answer = await hands.call(client, broker, topics, INIT_PRODUCER_ID, message, TIMEOUT)
                    code = answer["error_code"]
                    if code not in ENDING:
                        break
                    await backoff.pause()
                if code:
                    client.forget_coordinator(TRANSACTION, name)
                    raise Refused(f"{client.name}: ending the transaction of {name!r}", code)
                log.warning("an open transaction was aborted", cluster=client.name, transactional_id=name)
        except ClientError as error:
            client.forget_coordinator(TRANSACTION, name)
            log.warning("a transaction could not be aborted", transactional_id=name, error=str(error))

    async with trio.open_nursery() as nursery:
        for name in ids:
            nursery.start_soon(end, name)


async def _any(client: ClusterClient) -> int:
    """A broker to send to, one that answered last where there is one. Raises BrokerUnavailable."""
    if not client.brokers:
        await client.refresh(TIMEOUT)
    good = [one for one in client.brokers if one in client.health.reachable] or list(client.brokers)
    if not good:
        raise BrokerUnavailable(f"{client.name} has no brokers")
    return random.choice(good)  # noqa: S311 - spreads load


__all__ = ["EARLIEST", "alter", "delete_records", "end_transactions"]
