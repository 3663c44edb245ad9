"""What this process has on its way that changes or empties topics: nobody may begin a hold while it may still arrive.

A request whose connection was lost may lie in a paused broker's memory, and be carried out when that wakes up. It
counts as unanswered until its broker has answered others from the loss on for `SETTLED` seconds, looked at again and
again: by then it has read and carried out what it was sent before, or has been started anew and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.failures import BrokerUnavailable
from kafka_wire.codec import Message
from metadata_service.store.clock import Backoff
from runtime import logging
from runtime.clock import boottime

log = logging.get(__name__)

SETTLED = 30.0  # seconds; a broker forwards to the controller for less
PING = 2.0  # seconds between two looks at such a broker
API_VERSIONS = 18


@dataclass(eq=False, slots=True)
class _Sent:
    """One request. `lost`: since when its answer can not come any more; `answering`: since when the broker answers
    others, None while it does not (boottime)."""

    cluster: str
    broker: int
    topics: frozenset[str]
    lost: bool = False
    answering: float | None = None


class Hands:
    """One per process. `run` it, or what was lost is pending for ever."""

    def __init__(self, clients: Callable[[str], ClusterClient | None], *, settled: float = SETTLED) -> None:
        self._clients = clients
        self._settled = settled
        self._sent: set[_Sent] = set()
        self._changed = trio.Event()
        self._lost = trio.Event()

    def pending(self, topics: Iterable[str]) -> bool:
        """Whether something that concerns one of these topics has no answer."""
        wanted = frozenset(topics)
        return any(wanted & one.topics for one in self._sent)

    @property
    def changed(self) -> trio.Event:
        """Set when something less is pending."""
        return self._changed

    async def call(
        self, client: ClusterClient, broker: int, topics: Iterable[str], key: int, message: Message, timeout: float
    ) -> Message:
        """A request that changes something, to one broker. Never repeated here. Raises as `ClusterClient.call`."""
        sent = _Sent(client.name, broker, frozenset(topics))
        self._sent.add(sent)
        answered = False
        try:
            answer = await client.call(key, message, broker=broker, timeout=timeout)
            answered = True
            return answer
        except BrokerUnavailable as error:
            answered = not error.sent
            raise
        except ClientError:
            answered = True  # nothing was sent
            raise
        finally:
            if answered:
                self._drop(sent)
            else:
                sent.lost = True
                log.warning("a change has no answer", cluster=client.name, broker=broker, topics=sorted(sent.topics))
                self._lost.set()

    def _drop(self, sent: _Sent) -> None:
        self._sent.discard(sent)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self) -> None:
        """Finds out which lost requests can not come through any more; until cancelled."""
        backoff = Backoff(PING, PING)
        while True:
            await self._lost.wait()
            self._lost = trio.Event()
            while lost := [one for one in self._sent if one.lost]:
                async with trio.open_nursery() as nursery:
                    for place in {(one.cluster, one.broker) for one in lost}:
                        nursery.start_soon(self._look, *place, lost)
                await backoff.pause()

    async def _look(self, cluster: str, broker: int, lost: list[_Sent]) -> None:
        mine = [one for one in lost if (one.cluster, one.broker) == (cluster, broker)]
        client, began = self._clients(cluster), boottime()
        try:
            if client is None:
                raise BrokerUnavailable(f"{cluster} is no active cluster")
            await client.call(API_VERSIONS, {}, broker=broker, timeout=5.0)
        except ClientError:
            for one in mine:
                one.answering = None
            return
        for one in mine:
            if one.answering is None:
                one.answering = began
            elif boottime() - one.answering >= self._settled:
                self._drop(one)
