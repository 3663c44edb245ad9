"""Who leads the partitions of a cluster's topics, remembered until somebody says otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.topics import TopicInfo, describe
from metadata_service.operations.facts import Part


class Leaders:
    """Of one cluster; used by one migration."""

    def __init__(self, client: ClusterClient) -> None:
        self.client = client
        self._known: dict[str, TopicInfo] = {}

    async def of(self, names: Iterable[str]) -> Mapping[str, TopicInfo]:
        """The topics as last seen; those that are not there are left out. Raises ClientError."""
        wanted = sorted(set(names))
        missing = [one for one in wanted if one not in self._known]
        if missing:
            self._known.update(await describe(self.client, missing))
        return {one: self._known[one] for one in wanted if one in self._known}

    def forget(self, names: Iterable[str]) -> None:
        """A broker has said that it does not lead one of them (any longer)."""
        for one in names:
            self._known.pop(one, None)

    async def by_broker(self, parts: Iterable[Part]) -> dict[int, list[Part]]:
        """The partitions by their leader; those that have none now are left out. Raises ClientError."""
        wanted = list(parts)
        found = await self.of(name for name, _ in wanted)
        out: dict[int, list[Part]] = {}
        for name, index in wanted:
            info = found[name].partitions.get(index) if name in found else None
            if info is None or info.leader < 0:
                self.forget([name])
            else:
                out.setdefault(info.leader, []).append((name, index))
        return out

    def epoch(self, part: Part) -> int:
        """The leader epoch last seen, -1 where none is known."""
        info = self._known.get(part[0])
        one = info.partitions.get(part[1]) if info is not None else None
        return one.leader_epoch if one is not None else -1

    async def ask(self, parts: Iterable[Part], ask: Callable[[int, list[Part]], Awaitable[None]]) -> None:
        """`ask` of every leader at the same time. One that does not answer leaves its partitions unanswered, and the
        leaders are looked up again before the next question."""

        async def one(broker: int, mine: list[Part]) -> None:
            try:
                await ask(broker, mine)
            except ClientError:
                self.forget(name for name, _ in mine)

        async with trio.open_nursery() as nursery:
            for broker, mine in (await self.by_broker(parts)).items():
                nursery.start_soon(one, broker, mine)


def by_topic(parts: Iterable[Part]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for name, index in parts:
        out.setdefault(name, []).append(index)
    return out
