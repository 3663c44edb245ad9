"""Every kind of client of three libraries at work on two topics, one of which is written in transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from tests.fixtures.names import Names
from tests.history import producers, readers
from tests.history.checker import Acknowledged, Exempt, faults, undisturbed
from tests.history.producers import Producing
from tests.history.readers import Reading
from tests.history.told import Told
from tools.java_client import Jvm
from tools.local_federation import Federation

PARTITIONS = 3
FIRST, CATCH_UP = 40.0, 60.0  # seconds until everybody works, and until everything has been read
SITTING = 4.0

Work = Callable[[], Awaitable[object]]


@dataclass
class Fleet:
    """Producers and readers by library: librdkafka, aiokafka, java."""

    producing: dict[str, list[Producing]]
    reading: dict[str, list[Reading]]
    told: Told = field(default_factory=Told)
    _sending: int = 0
    _sent: trio.Event = field(default_factory=trio.Event)

    @property
    def all_producers(self) -> list[Producing]:
        return [one for each in self.producing.values() for one in each]

    @property
    def all_readers(self) -> list[Reading]:
        return [one for each in self.reading.values() for one in each]

    @property
    def topics(self) -> list[str]:
        return sorted({one.topic for one in self.all_producers})

    @property
    def seated(self) -> list[str]:
        """Readers that never leave their group: nobody should be assigned anything anew."""
        return [one.name for one in self.all_readers if one.group and not one.sitting]

    @asynccontextmanager
    async def working(self, federation: Federation, jvm: Jvm) -> AsyncIterator[None]:
        """Everybody at work; afterwards what was sent has been read, or CATCH_UP s are over."""
        told, here = self.told, federation
        reading: list[Work] = []
        sending: list[Work] = []
        for one in self.reading.get("librdkafka", ()):
            reading.append(_thread(partial(readers.librdkafka, told, here.librdkafka(), one)))
        for one in self.reading.get("java", ()):
            reading.append(partial(readers.java, told, jvm, here.java(), one))
        if others := self.reading.get("aiokafka"):
            reading.append(_asyncio([partial(readers.aiokafka, told, here.bootstrap(), one) for one in others]))
        for kind in self.producing.get("librdkafka", ()):
            sending.append(_thread(partial(producers.librdkafka, told, here.librdkafka(), kind)))
        for kind in self.producing.get("java", ()):
            sending.append(partial(producers.java, told, jvm, here.java(), kind))
        if more := self.producing.get("aiokafka"):
            sending.append(_asyncio([partial(producers.aiokafka, told, here.bootstrap(), kind) for kind in more]))
        self._sending = len(sending)
        async with trio.open_nursery() as nursery:
            for work in reading:
                nursery.start_soon(work)
            for work in sending:
                nursery.start_soon(self._counted, work)
            try:
                await self.alive(FIRST)
                yield
                told.stopping.set()
                await self._read_everything()
            finally:
                told.stopping.set()
                told.done.set()

    async def _counted(self, work: Work) -> None:
        try:
            await work()
        finally:
            self._sending -= 1
            if not self._sending:
                self._sent.set()

    async def alive(self, seconds: float) -> None:
        """Until everybody has sent, and read, ten further records."""
        begun = {one.name: self.told.sent.get(one.name, 0) for one in self.all_producers}
        had = {one.name: self.told.count(one.name) for one in self.all_readers}
        deadline = trio.current_time() + seconds
        while True:
            late = [name for name, count in begun.items() if self.told.sent.get(name, 0) < count + 10]
            late += [name for name, count in had.items() if self.told.count(name) < count + 10]
            if not late:
                return
            assert trio.current_time() < deadline, f"not alive: {late}; {self.told.reports[-5:]}"
            await trio.sleep(0.05)

    async def _read_everything(self) -> None:
        with trio.move_on_after(producers.PATIENCE + 10):
            await self._sent.wait()
        wanted: dict[str, set[tuple[str, int]]] = {topic: set() for topic in self.topics}
        for ack in self.must_be_there(()):
            wanted[ack.topic].add((ack.producer, ack.number))
        deadline = trio.current_time() + CATCH_UP
        while any(self.told.missing(one.name, wanted[one.topic]) for one in self.all_readers):
            if trio.current_time() > deadline:
                return  # what is missing is for the judge to say
            await trio.sleep(0.1)

    # -- afterwards

    def must_be_there(self, faulty: Sequence[tuple[float, float]]) -> list[Acknowledged]:
        """What was acknowledged, and what was sent without being told (acks=0) while nothing was broken."""
        return self.told.acknowledged[:] + undisturbed(self.told.unanswered[:], faulty)

    def judge(self, faulty: Sequence[tuple[float, float]] = ()) -> list[str]:
        """What is wrong with what was read. `faulty`: when processes were killed or stopped (Unix seconds)."""
        exempt = Exempt()
        if faulty:
            groups = [one.name for one in self.all_readers if one.group]
            retrying = [one.name for one in self.all_producers if not _numbered(one)]
            exempt = Exempt(again=groups, unordered=retrying)
        found = []
        for topic in self.topics:
            mine = [one.name for one in self.all_readers if one.topic == topic]
            told = [one for one in self.must_be_there(faulty) if one.topic == topic]
            read = [one for one in self.told.reads if one.topic == topic]
            aborted, sent = self.told.aborted, self.told.sent
            found += faults(told, read, mine, aborted=aborted, sent=sent, exempt=exempt)
        return found

    def summary(self) -> str:
        acknowledged, read = len(self.told.acknowledged), len(self.told.reads)
        silent, readers = len(self.told.unanswered), len(self.all_readers)
        return f"{acknowledged} records acknowledged, {silent} sent with acks=0, {read} reads by {readers} readers"


def _numbered(kind: Producing) -> bool:
    """Whether brokers know its records by sequence numbers."""
    on = kind.settings.get("enable.idempotence", kind.settings.get("enable_idempotence", False))
    return bool(kind.transactional_id) or str(on).lower() == "true"


def _thread(work: Callable[[], object]) -> Work:
    return partial(trio.to_thread.run_sync, work)


def _asyncio(some: Collection[Callable[[], Coroutine[Any, Any, None]]]) -> Work:
    """All of them in one event loop of a thread of its own."""

    async def together() -> None:
        await asyncio.gather(*(make() for make in some))

    return _thread(lambda: asyncio.run(together()))


def whole(names: Names, per_second: int = 40, *, killed: bool = False) -> Fleet:
    """Every kind of client there is, on two topics of three partitions each. Where processes are `killed`, aiokafka is
    left out with acks=0: its producer does not get over a connection that is reset while it sends (0.14)."""
    orders, ledger = names.topic("orders"), names.topic("ledger")
    plain = {"enable.idempotence": "false", "max.in.flight.requests.per.connection": "5", "acks": "all"}

    def plainly(name: str, acks: str = "all") -> Producing:
        return Producing(name, orders, {**plain, "acks": acks}, per_second)

    def aio(name: str, **settings: str | int | bool) -> Producing:
        return Producing(name, orders, settings, per_second)

    def transactions(name: str) -> Producing:
        return Producing(name, ledger, {}, per_second, names.transactional_id(name))

    def reader(name: str, topic: str = orders, sitting: float = 0.0, **settings: str | bool) -> Reading:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return Reading(name, topic, names.group(name), dotted, sitting, PARTITIONS)

    once = {"enable.idempotence": "true"}
    return Fleet(
        producing={
            "librdkafka": [
                Producing("c-once", orders, once, per_second),
                plainly("c-plain"),
                plainly("c-acks1", "1"),
                plainly("c-acks0", "0"),
                transactions("c-txn"),
            ],
            "aiokafka": [
                aio("a-once", enable_idempotence=True),
                aio("a-plain", acks="all"),
                *([] if killed else [aio("a-acks0", acks=0)]),
            ],
            "java": [
                Producing("j-once", orders, once, per_second),
                plainly("j-plain"),
                plainly("j-acks1", "1"),
                plainly("j-acks0", "0"),
                transactions("j-txn"),
            ],
        },
        reading={
            "librdkafka": [
                reader("c-classic"),
                reader(
                    "c-static",
                    group__instance__id=names("static"),
                    partition__assignment__strategy="cooperative-sticky",
                ),
                reader("c-848", group__protocol="consumer"),
                reader("c-sittings", sitting=SITTING),
                Reading("c-assigned", orders, None, {}, SITTING, PARTITIONS),
                reader("c-committed", ledger, isolation__level="read_committed"),
            ],
            "aiokafka": [reader("a-classic")],
            "java": [
                reader("j-classic"),
                reader("j-848", protocol="consumer"),
                Reading("j-assigned", orders, None, {}, 0.0, PARTITIONS),
                reader("j-committed", ledger, protocol="consumer", read_committed=True),
            ],
        },
    )


def few(names: Names) -> Fleet:
    """One producer and one reader of librdkafka."""
    topic = names.topic("orders")
    return Fleet(
        producing={"librdkafka": [Producing("c-once", topic, {"enable.idempotence": "true"})]},
        reading={"librdkafka": [Reading("c-classic", topic, names.group("g"), partitions=PARTITIONS)]},
    )
