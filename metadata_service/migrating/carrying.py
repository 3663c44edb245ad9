"""Commands carried out: what one decision asks for, as calls to brokers and to the store.

What changes something goes first, then what asks, all brokers at the same time. Results go into `Seen` as they come;
those of a record that is past go nowhere, since its `Seen` is not looked at any longer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import trio

from kafka_client import ClientError
from kafka_client.topics import TopicInfo, describe
from kafka_wire.acls import TOPIC, TRANSACTIONAL_ID
from metadata_service.failures import DecisionFailed, Undecided
from metadata_service.member import Member
from metadata_service.migrating import asking, changing, mirrors, rights, switches
from metadata_service.migrating.asking import LeaderEpochs
from metadata_service.migrating.gathering import Seen
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.leaders import Leaders
from metadata_service.migrating.ledger import Ledger
from metadata_service.migrating.strangers import make_strangers
from metadata_service.mirroring import Cyclic
from metadata_service.operations import commands as asked
from metadata_service.operations.commands import Command
from metadata_service.operations.facts import Known, Part
from metadata_service.operations.gates import CLOSED, SETTLED_LOOKS, looks_closed
from metadata_service.operations.records import MigrationRecord, parts
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import StoreError, Unchanged
from runtime import logging

log = logging.get(__name__)

PROBE_FOR = 0.5  # seconds a change of configuration may take to come to all leaders, before it is asked for again
CONNECTIONS = 3  # questions to a broker at the same moment
MAX_MESSAGE, DEFAULT_MAX_MESSAGE = "max.message.bytes", 1_048_588

Changing = asked.OpenCopy | asked.Close | asked.CloseCopy | asked.Reopen | asked.SetFinal


class Carrying:
    """For one migration. `tell` is called whenever something new has been seen."""

    def __init__(
        self, member: Member, ledger: Ledger, hands: Hands, guard: Unchanged | None, tell: Callable[[], None]
    ) -> None:
        """`guard`: of the controller; None for a worker, which carries out nothing but Reopen and Probe."""
        self._member = member
        self._ledger = ledger
        self._hands = hands
        self._guard = guard
        self._tell = tell
        self._leaders: dict[str, Leaders] = {}
        self._epochs = LeaderEpochs()
        self._switches: dict[str, TopicInfo] = {}
        self.prepared = False
        self.lacks = ""  # rights without which no hold begins, in words

    # -- before a hold --------------------------------------------------------------------------------------------

    async def prepare(self, record: MigrationRecord) -> None:
        """Find out, and make, beforehand what a hold shall not have to wait for. Raises ClientError, Undecided."""
        everything = parts(record)

        async def source() -> None:
            leaders = self.leaders(record.source)
            leaders.forget(record.topics)
            if added := await self._added(record, await leaders.of(record.topics)):
                raise Undecided(record.source, f"partitions were added to {', '.join(added)}")
            placements = {name: one.value.timeline[-1] for name in record.topics if (one := self._ledger.topic(name))}
            await self._epochs.complete(leaders, [one for one in everything if one[0] in placements], placements)
            await self._connect(leaders)

        async def target() -> None:
            leaders = self.leaders(record.target)
            leaders.forget(record.topics)
            await leaders.of(record.topics)
            await self._connect(leaders)

        async def note(cluster: str) -> None:
            self._switches[cluster] = await switches.ensure(self._member.clients.active(cluster))

        async def ids() -> None:
            clients = self._member.clients.active(record.source), self._member.clients.active(record.target)
            await make_strangers(*clients, record.options.transactional_ids)

        await _together(source, target, partial(note, record.source), partial(note, record.target), ids)
        self.lacks = await self._rights(record)
        self.prepared = not self.lacks

    async def _rights(self, record: MigrationRecord) -> str:
        """What the service would miss during the hold, or clients after it. Raises ClientError, Undecided."""
        source, target = self._member.clients.active(record.source), self._member.clients.active(record.target)
        found = await rights.own(source, rights.ON_SOURCE, record.topics)
        found += await rights.own(target, rights.ON_TARGET, record.topics)
        if not record.options.leave_acls:
            ids = [(TRANSACTIONAL_ID, one) for one in record.options.transactional_ids]
            missing = await rights.of_clients(source, target, [*((TOPIC, one) for one in sorted(record.topics)), *ids])
            found += [rights.words(source.name, target.name, missing)] if missing else []
        return "; ".join(found)

    async def _added(self, record: MigrationRecord, found: Mapping[str, TopicInfo]) -> list[str]:
        """Topics that have got partitions at their cluster without the endpoint: those are recorded first. What is
        in them would else be behind no end. Raises Undecided."""
        out = []
        for name, info in sorted(found.items()):
            known = self._ledger.topic(name)
            if known is not None and len(info.partitions) > known.value.partitions:
                out.append(name)
        if out:
            log.warning("partitions were added past the endpoint", operation=record.id, topics=out)
            try:
                await self._member.federation.partitions_created(out)
            except (DecisionFailed, StoreError) as error:
                raise Undecided(record.source, f"added partitions are not recorded: {error}") from error
        return out

    async def _connect(self, leaders: Leaders) -> None:
        """As many connections to each broker as there will be questions at once."""

        async def touch(broker: int) -> None:
            try:
                await leaders.client.call(18, {}, broker=broker, timeout=asking.TIMEOUT)
            except ClientError:
                pass  # it is asked when it is needed, and its absence shows then

        async with trio.open_nursery() as nursery:
            for broker in leaders.client.brokers:
                for _ in range(CONNECTIONS):
                    nursery.start_soon(touch, broker)

    # -- commands -------------------------------------------------------------------------------------------------

    async def carry(self, known: Known[MigrationRecord], commands: Iterable[Command], seen: Seen) -> None:
        """All of them, in their order. What fails is logged, and asked for again by the next decision."""
        record = known.value
        first: list[Callable[[], Awaitable[None]]] = []
        alters: dict[str, dict[str, Mapping[str, str | None]]] = {}
        copies: list[asked.CloseCopy] = []
        then: list[Callable[[], Awaitable[None]]] = []
        for one in commands:
            match one:
                case asked.Close():
                    alters.setdefault(one.cluster, {})[one.topic] = dict(CLOSED)
                case asked.Reopen():
                    alters.setdefault(one.cluster, {})[one.topic] = one.saved
                case asked.OpenCopy():
                    first.append(partial(self._open_copy, record.source, one))
                case asked.CloseCopy():
                    copies.append(one)
                case asked.SetFinal():
                    then.append(partial(self._set_final, one, seen))
                case asked.CreateMirror():
                    first.append(partial(self._create, one))
                case asked.FinishMirror():
                    then.append(partial(mirrors.finish, self._member.store, self._guarded(), one))
                case asked.RemoveMirror():
                    pass  # with its CloseCopy
                case asked.EndTransactions():
                    client = self._member.clients.active(one.cluster)
                    ids, topics = one.transactional_ids, tuple(record.topics)
                    first.append(partial(changing.end_transactions, self._hands, client, ids, topics))
                case asked.Empty():
                    then.append(partial(self._empty, one, seen))
                case asked.AskSettings():
                    then.append(partial(self.settings, record, seen))
                case asked.Probe():
                    then.append(partial(self._probe, one, record, seen))
                case asked.AskOffsets():
                    then.append(partial(self._offsets, one, record, seen))
                case asked.AskTransactions():
                    then.append(partial(self._transactions, one, seen))
                case asked.WriteSwitch():
                    then += [partial(self._write_switch, cluster, record, seen) for cluster in one.clusters]
        for cluster, values in alters.items():
            first.append(partial(self._alter, cluster, values))
        await self._all(record, first)
        for copy in copies:
            await self._all(record, [partial(self._leave_copy, record, copy, seen)])
        await self._all(record, then)

    async def _all(self, record: MigrationRecord, work: list[Callable[[], Awaitable[None]]]) -> None:
        async def one(do: Callable[[], Awaitable[None]]) -> None:
            try:
                await do()
            except (ClientError, Undecided, StoreError, Cyclic) as error:
                log.warning("a step has to be done again", operation=record.id, step=record.step, error=str(error))
            self._tell()

        async with trio.open_nursery() as nursery:
            for do in work:
                nursery.start_soon(one, do)

    # -- one by one -----------------------------------------------------------------------------------------------

    def leaders(self, cluster: str) -> Leaders:
        """Raises Undecided."""
        client = self._member.clients.active(cluster)
        known = self._leaders.get(cluster)
        if known is None or known.client is not client:
            known = self._leaders[cluster] = Leaders(client)
        return known

    def _guarded(self) -> Unchanged:
        if self._guard is None:
            raise ValueError("only the controller carries this out")
        return self._guard

    async def _alter(self, cluster: str, values: Mapping[str, Mapping[str, str | None]]) -> None:
        await changing.alter(self._hands, self._member.clients.active(cluster), values)

    async def _open_copy(self, source: str, one: asked.OpenCopy) -> None:
        """A copy takes what its source does: where that takes more than is usual, it has to be said."""
        client = self._member.clients.active(one.cluster)
        found = (await asking.settings(client, [one.topic])).get(one.topic)
        if found is not None and looks_closed(found):
            theirs = (
                (await asking.settings(self._member.clients.active(source), [one.topic]))
                .get(one.topic, {})
                .get(MAX_MESSAGE)
            )
            more = theirs is not None and int(theirs) > DEFAULT_MAX_MESSAGE
            values = {**dict.fromkeys(CLOSED), MAX_MESSAGE: theirs if more else None}
            await changing.alter(self._hands, client, {one.topic: values})

    async def _create(self, one: asked.CreateMirror) -> None:
        await mirrors.create(self._member.store, self._guarded(), self._member.view, one)

    async def _leave_copy(self, record: MigrationRecord, one: asked.CloseCopy, seen: Seen) -> None:
        """End the mirror, and close the copy once nobody writes there."""
        remove = asked.RemoveMirror(one.topic, record.source, one.cluster, record.id)
        known = self._ledger.topic(one.topic)
        topic = None if known is None else known.value
        if topic is not None and topic.timeline[-1].topic_id != record.topics[one.topic].source_id:
            topic = None  # a new one of that name
        gone = await mirrors.remove(self._member.store, self._guarded(), remove, topic)
        target = any(each.target == one.cluster for each in self._member.view.mirrors_of(one.topic))
        if not gone or target:
            return
        if topic is None:  # whatever there is of that name is a topic of its own
            seen.closed_copies.add(one.topic)
            return
        client = self._member.clients.active(one.cluster)
        found = (await asking.settings(client, [one.topic])).get(one.topic)
        if found is not None and not looks_closed(found):
            await changing.alter(self._hands, client, {one.topic: dict(CLOSED)})
        seen.closed_copies.add(one.topic)

    async def _set_final(self, one: asked.SetFinal, seen: Seen) -> None:
        if not await self.final(one.topic, one.cluster, one.settings, seen):
            log.debug(
                "a target gets its final settings", topic=one.topic, cluster=one.cluster, names=sorted(one.settings)
            )
            await changing.alter(self._hands, self._member.clients.active(one.cluster), {one.topic: one.settings})
            seen.final_set.add(one.topic)

    async def final(self, topic: str, cluster: str, wanted: Mapping[str, str], seen: Seen) -> bool:
        """Whether the target's topic has its final configuration already. Raises ClientError."""
        found: Mapping[str, str | None] | None = {}
        if wanted:
            found = (await asking.settings(self._member.clients.active(cluster), [topic], wanted, own=False)).get(topic)
        if found is None or any(found.get(key) != value for key, value in wanted.items()):
            return False
        seen.final_set.add(topic)
        return True

    async def _empty(self, one: asked.Empty, seen: Seen) -> None:
        if await changing.delete_records(self._hands, self.leaders(one.cluster), one.topic, one.ends):
            seen.emptied.add(one.topic)

    async def settings(self, record: MigrationRecord, seen: Seen) -> None:
        """The source's. Raises ClientError, Undecided."""
        seen.settings = await asking.settings(self._member.clients.active(record.source), sorted(record.topics))

    async def target_ids(self, record: MigrationRecord, seen: Seen) -> None:
        """The target's topics, as far as they are there. Raises ClientError."""
        found = await describe(self._member.clients.active(record.target), sorted(record.topics))
        seen.target_ids = {name: one.topic.id.hex() for name, one in found.items()}

    async def _probe(self, one: asked.Probe, record: MigrationRecord, seen: Seen) -> None:
        """Until all leaders answer as they shall: a changed configuration comes to them some ten milliseconds later."""
        wanted = "open" if record.hold == "lifted" else "closed"
        small = frozenset(name for name in record.topics if _limit(record.saved.get(name, {})) < len(asking.WRONG))
        backoff = Backoff(0.002, 0.02)
        left: list[Part] = list(one.parts)
        with trio.move_on_after(PROBE_FOR):
            while left:
                seen.probes.update(await asking.probe(self.leaders(one.cluster), left, small))
                left = [each for each in left if seen.probes.get(each) != wanted]
                if left:
                    await backoff.pause()

    async def _offsets(self, one: asked.AskOffsets, record: MigrationRecord, seen: Seen) -> None:
        leaders = self.leaders(one.cluster)
        if one.cluster != record.source:
            seen.target_ends = await asking.log_ends(leaders, one.parts)
            return
        placements = {
            name: found.value.timeline[-1]
            for name in record.topics
            if (found := self._ledger.topic(name)) is not None and found.value.cluster == one.cluster
        }
        mine = [each for each in one.parts if each[0] in placements]
        if record.step != "settle":
            seen.ends = await asking.ends(leaders, mine, placements, self._epochs, seen.ends)
            return
        # All is closed now: a partition that is not there yet gets no records. One that is, and is not recorded, lifts.
        present: dict[str, TopicInfo] = {}
        ends = seen.ends

        async def look() -> None:
            present.update(await describe(leaders.client, sorted(placements)))

        async def ask() -> None:
            nonlocal ends
            for _ in range(SETTLED_LOOKS):
                ends = await asking.ends(leaders, mine, placements, self._epochs, ends)

        await _together(look, ask)
        if not await self._added(record, present):
            seen.ends = ends

    async def _transactions(self, one: asked.AskTransactions, seen: Seen) -> None:
        seen.transactions = await asking.transactions(self._member.clients.active(one.cluster), frozenset(one.topics))

    async def _write_switch(self, cluster: str, record: MigrationRecord, seen: Seen) -> None:
        client = self._member.clients.active(cluster)
        if cluster not in self._switches:
            self._switches[cluster] = await switches.ensure(client)
        known = {name: found.value for name in record.topics if (found := self._ledger.topic(name)) is not None}
        epochs = {name: one.epoch for name, one in known.items() if one.cluster == record.target}
        try:
            await switches.write(
                client,
                self._switches[cluster],
                switches.notes(record, epochs, {name: one.id for name, one in known.items()}),
            )
        except ClientError:
            del self._switches[cluster]  # its leader may be another one now
            raise
        seen.written.add(cluster)


def _limit(saved: Mapping[str, str | None]) -> int:
    value = saved.get("max.message.bytes")
    return int(value) if value is not None else 1 << 20


async def _together(*work: Callable[[], Awaitable[None]]) -> None:
    """All at the same time; raises one of their ClientErrors after all have ended."""
    failed: list[Exception] = []

    async def one(do: Callable[[], Awaitable[None]]) -> None:
        try:
            await do()
        except (ClientError, Undecided) as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for do in work:
            nursery.start_soon(one, do)
    if failed:
        raise failed[0]
