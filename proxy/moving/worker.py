"""The fence of one worker, with its surroundings: `metadata_service.operations.fence` decides, this carries it out.

It learns of migrations in the same step in which a view is published, so no request is judged by a view that the fence
does not know. What it says of itself is in the store at once (`HoldReport`), and never names a revision while a request
is still judged by an older one, or something that was passed on before has no answer yet.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import trio

from kafka_client import ClusterClient
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.produce_view import TOPIC_IDS_FROM
from metadata_service.following import Following
from metadata_service.operations.fence import (
    Action,
    Answer,
    CutFetches,
    Fence,
    Forward,
    Lift,
    Limits,
    Pass,
    Write,
    fetch_error,
)
from metadata_service.operations.records import ENDED, MigrationRecord, parts
from metadata_service.registration import Registration
from metadata_service.store.clock import boottime
from metadata_service.store.contract import Store
from metadata_service.view import ServedTopic, View
from offset_sync.guard import Verdict
from proxy.apis.transactions import note_refused
from proxy.moving.contract import UNKNOWN, Guards
from proxy.moving.reporting import Known, Reporting
from proxy.moving.transactions import BeginningCall, OpenTransactions
from proxy.moving.writes import ClientWrites, Part, Request
from proxy.session import responses
from proxy.session.session import Kind, Session, Slot
from runtime import logging
from runtime.metrics import Metrics

log = logging.get(__name__)

RULES_WITHIN = 1.0  # seconds for the target's ACLs to be read anew; a hold does not wait longer for them
LEADERS_WITHIN = 2.0  # ... and so for the leaders of the target's topics
LOOK = 0.2  # seconds at most between two looks at them
TICK = 0.1  # seconds, while anything is held or a hold is recorded
COUNTED = 1.0  # seconds between two reports that differ in nothing but how much was forwarded
JUDGED = frozenset((0, 2, 21, 23, 24, 28))  # APIs that are judged by where topics are: a hold waits for those at work
API_VERSIONS = 18
ABORTABLE_FROM = 11  # of Produce: who speaks it knows TRANSACTION_ABORTABLE (KIP-890)
TOPIC_DENIED = ERROR.TOPIC_AUTHORIZATION_FAILED


class Lifting(Protocol):
    """Ends a hold without a switch, and opens the source again (`proxy.moving.lifting`)."""

    async def lift(self, migration: MigrationRecord, revision: int) -> None: ...


class WorkerFence:
    """`run` it; it may be used before. `sessions`: all of the worker's. `clock` is CLOCK_BOOTTIME."""

    def __init__(
        self,
        store: Store,
        following: Following,
        registration: Registration,
        guards: Guards,
        sessions: Callable[[], Iterable[Session]],
        metrics: Metrics,
        lifting: Lifting | None = None,
        *,
        clients: Callable[[str], ClusterClient | None] = lambda cluster: None,
        renew_rules: Callable[[str], Awaitable[None]] | None = None,
        refresh: Callable[[str], None] = lambda cluster: None,
        limits: Limits | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.fence = Fence(limits or Limits(), self._judge)
        self._store = store
        self._following = following
        self._registration = registration
        self._guards = guards
        self._sessions = sessions
        self._counters = metrics.fence
        self._lifting = lifting
        self._clients = clients
        self._renew_rules = renew_rules
        self._refresh = refresh
        self._open = OpenTransactions()
        self._clock = clock
        self._parts: dict[int, Part] = {}
        self._calls: dict[int, BeginningCall] = {}
        self._known: dict[str, Known] = {}
        self._parked: dict[str, set[tuple[Session, Slot]]] = {}
        self._number = 0
        self._nursery: trio.Nursery | None = None
        self._reports = Reporting(store, registration, self.fence, self._known, self.record, self._oldest_judged)
        registration.on_renewal(self._renewed)
        self._renewed()  # the lease it has already
        following.on_view(self._view_changed)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for identifier in list(self._known):
                self._load(identifier)
            self._nursery.start_soon(self._tick)
            await self._reports.run(self._forget)

    # -- what becomes known ---------------------------------------------------------------------------------------

    def _view_changed(self, view: View) -> None:
        now = self._clock()
        out: list[Action] = []
        for identifier, record in view.migrations.items():
            revision = view.migrations_changed.get(identifier, 0)
            known = self._known.get(identifier)
            if known is None and record.step in ENDED:
                continue
            if known is None:
                known = self._known[identifier] = Known()
            self._note(known, record)
            out += self.fence.learned(record, revision, now)
            self._load(identifier)
        for identifier in [one for one in self._known if one not in view.migrations]:
            self._forget(identifier)
        self.fence.saw(view.revision)
        self._carry(out)
        if self._known:
            self.poke()

    def _note(self, known: Known, record: MigrationRecord) -> None:
        if record.hold in ("draining", "held") and known.attempt != record.attempt:
            known.attempt = record.attempt
            self._watch(known, record)
        if record.hold == "switched" and not known.switched:
            known.switched = time.monotonic()
        if record.hold in ("open", "lifted"):
            known.waits.clear()
            if known.loading is not None:
                known.loading.cancel()
                known.loading = None

    def _watch(self, known: Known, record: MigrationRecord) -> None:
        """What was passed on to the source before this hold counts as on its way until it is answered."""
        known.waits |= self.fence.on_their_way(record)
        for session in self._sessions():
            if session.cluster != record.source:
                continue
            last = next((slot for slot in reversed(session.slots) if slot.kind is Kind.PRODUCE), None)
            if last is not None:
                if last.done is None:
                    last.done = trio.Event()
                known.waits.add(last)
                if self._nursery is not None:
                    self._nursery.start_soon(self._await, known, last, last.done)
            if session.silent and session.upstream is not None and not session.raw_tokens and not session.logging_in:
                session.silent = False
                known.waits.add(session)
                if self._nursery is not None:
                    self._nursery.start_soon(self._barrier, known, session)

    async def _await(self, known: Known, mark: object, done: trio.Event) -> None:
        await done.wait()
        known.waits.discard(mark)
        self.poke()

    async def _barrier(self, known: Known, session: Session) -> None:
        """Nothing answers acks=0; but a broker works a connection off in order."""
        try:
            slot = await session.ask(API_VERSIONS, 0, {}, crowded=True)
            assert slot.done is not None
            await slot.done.wait()
        except Exception as error:  # the connection is gone: nobody was told that anything was stored
            log.debug("a connection ended before what it had sent was done", error=str(error))
        known.waits.discard(session)
        self.poke()

    def _load(self, identifier: str) -> None:
        """See that the target's tables and guards are fetched as soon as there is a hold."""
        known, record = self._known.get(identifier), self.record(identifier)
        if known is None or record is None or self._nursery is None or known.loading is not None:
            return
        if record.hold not in ("open", "lifted") and record.step not in ENDED:
            known.loading = trio.CancelScope()
            self._nursery.start_soon(self._get_ready, record, known.loading)

    async def _get_ready(self, record: MigrationRecord, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._know_rules, record.target)
                nursery.start_soon(self._know_leaders, record)
                await self._guards.ready(record)
            self._carry(self.fence.loaded(record.id, self._clock()))
            self.poke()

    async def _know_rules(self, cluster: str) -> None:
        """What clients may see of the target is judged by the rules that were complete before the hold."""
        if self._renew_rules is not None:
            with trio.move_on_after(RULES_WITHIN):
                await self._renew_rules(cluster)

    async def _know_leaders(self, record: MigrationRecord) -> None:
        """The target may have got its topics a moment ago; what is held is sent to their leaders."""
        with trio.move_on_after(LEADERS_WITHIN):
            while True:
                view = self._following.view
                if all(self._leader(view, record.target, *one) is not None for one in parts(record)):
                    return
                self._refresh(record.target)
                await self._following.changed_or(view, LOOK)

    def _forget(self, identifier: str) -> None:
        known = self._known.pop(identifier)
        if known.loading is not None:
            known.loading.cancel()

    def _renewed(self) -> None:
        self.fence.renewed(self._registration.fresh_until, self._registration.granted)
        self.poke()

    def record(self, identifier: str) -> MigrationRecord | None:
        return self._following.view.migrations.get(identifier)

    def poke(self) -> None:
        """Something may have changed that is to be reported."""
        self._reports.poke()

    @property
    def active(self) -> bool:
        """Whether there is a migration that has not ended."""
        return bool(self._known)

    @property
    def fresh(self) -> bool:
        return self.fence.fresh(self._clock())

    def _oldest_judged(self) -> int | None:
        """The oldest view by which a request is being judged that depends on where topics are."""
        return min(
            (one.handling for one in self._sessions() if one.handling is not None and one.handling_key in JUDGED),
            default=None,
        )

    async def _tick(self) -> None:
        while True:
            self.fence.saw(self._following.complete())
            if self._known:
                self._carry(self.fence.tick(self._clock()))
                self.poke()
            await trio.sleep(TICK)

    # -- writes ---------------------------------------------------------------------------------------------------

    def concerned(self, topic: str | bytes) -> bool:
        """Whether writes to the topic (by name, or by logical id) go through here."""
        return self.fence.concerned(self.name(topic))

    def cluster_of(self, topic: str | bytes) -> str:
        """The cluster that serves a topic; empty where nobody knows it."""
        served = self._following.view.topics.get(self.name(topic))
        return served.cluster if served is not None else ""

    def held(self, topic: str | bytes) -> bool:
        """Whether a write to the topic that is judged now comes here: its record says so while a hold may be. Others
        may take the quick way, and would overtake."""
        served = self._following.view.topics.get(self.name(topic))
        return served is not None and served.record.hold is not None and self.fence.concerned(served.name)

    def name(self, topic: str | bytes) -> str:
        """Of a topic by name, or by logical id; empty where nobody knows it."""
        if isinstance(topic, str):
            return topic
        served = self._following.view.topics_by_id.get(topic)
        return served.name if served is not None else ""

    def concerns(self, version: int, request: Message) -> bool:
        """Whether a Produce request names such a topic."""
        key = "topic_id" if version >= TOPIC_IDS_FROM else "name"
        return any(self.concerned(topic[key]) for topic in request["topic_data"])

    def begin(
        self,
        session: Session,
        version: int,
        request: Message,
        slot: Slot | None,
        order: list[Any],
        codes: Mapping[Any, int],
        begins: frozenset[Any] = frozenset(),
        home: str | None = None,
    ) -> Request:
        """A client's Produce, cut down to such topics: its parts are taken on, in order. Its `rest` is to be given,
        and `settled`, by the caller. `order`: all topics it named; `codes`: those that are refused in any case;
        `begins`: those on which it begins a transaction; `home`: where its transaction lives."""
        if session.fenced is None:
            session.fenced = ClientWrites(session, self)
        writes = session.fenced
        assert isinstance(writes, ClientWrites)
        one = Request(writes, version, request, slot, order, home)
        writes.open.add(one)
        if slot is not None:
            session.push(slot)
        out: list[Action] = []
        now = self._clock()
        view = self._following.view
        for topic in request["topic_data"]:
            name = topic[one.field]
            served = view.topics.get(name) if isinstance(name, str) else view.topics_by_id.get(name)
            for asked in topic["partition_data"]:
                write = self._write(
                    writes, served.name if served is not None else str(name), asked, served, name in begins
                )
                part = Part(one, write, asked, since=now)
                one.parts.append((name, part))
                one.left += 1
                writes.waiting += 1
                self._parts[write.id] = part
                if (code := codes.get(name, 0)) or not self.fence.concerned(write.topic):
                    out.append(Answer(write, code or int(ERROR.NOT_LEADER_OR_FOLLOWER)))
                    continue
                actions = self.fence.write(write, now)
                if not actions:
                    part.held = True
                    self._prepare(writes, write)
                out += actions
        self._carry(out)
        return one

    def _write(
        self, writes: ClientWrites, topic: str, asked: Message, served: ServedTopic | None, begins: bool
    ) -> Write:
        self._number += 1
        limit = 1 << 31
        if served is not None and served.record.hold is not None:
            record = self.record(served.record.hold)
            saved = record.saved.get(topic, {}).get("max.message.bytes") if record is not None else None
            limit = int(saved) if saved else limit
        return Write(
            id=self._number,
            session=writes.id,
            cluster=writes.session.cluster,
            topic=topic,
            partition=asked["index"],
            size=len(asked.get("records") or b""),
            begins=begins,
            leased=served is not None and served.record.writes == "leased",
            limit=limit,
        )

    def _prepare(self, writes: ClientWrites, write: Write) -> None:
        """The target's connection is opened while a write is held, not when it is released."""
        served = self._following.view.topics.get(write.topic)
        record = self.record(served.record.hold) if served is not None and served.record.hold else None
        if record is not None and record.target != writes.session.cluster:
            broker = self.leader(record.target, write)
            if broker is not None:
                writes.prepare(record.target, broker)

    def leader(self, cluster: str, write: Write) -> int | None:
        """The leader of a write's partition on a cluster, None where it is not known."""
        return self._leader(self._following.view, cluster, write.topic, write.partition)

    @staticmethod
    def _leader(view: View, cluster: str, name: str, partition: int) -> int | None:
        known = view.clusters.get(cluster)
        topic = known.snapshot.topics.get(name) if known is not None else None
        found = [one.leader for one in topic.partitions if one.index == partition] if topic is not None else []
        return found[0] if found and found[0] >= 0 else None

    def served(self, topic: str, cluster: str) -> ServedTopic | None:
        """The topic, if `cluster` serves it now."""
        found = self._following.view.topics.get(topic)
        return found if found is not None and found.cluster == cluster else None

    def cleaned(self, session: Session, response: Message, own: bool) -> Message:
        """A broker's answer without anything that names a physical broker. Another cluster's leaders are not named:
        clients are told of them by Metadata, once all of them may go there."""
        if own:
            responses.clean(session, response, "partition_responses")
            return response
        response["node_endpoints"] = []
        for topic in response["responses"]:
            for part in topic["partition_responses"]:
                part.pop("current_leader", None)
                responses.hide_addresses(part)
        return response

    def answered(self, part: Part, code: int, offset: int) -> None:
        """The broker's answer to a part; `offset` is physical."""
        record = self._record_of(part.write.topic)
        if code == ERROR.MESSAGE_TOO_LARGE and not self._may_be_closed(record):
            part.request.writes.passed(part)  # it is too large, or not ours to judge
            self._drop(part)
            return
        self._carry(self.fence.answered(part.write.id, code, self._clock(), offset))
        self.poke()

    def _drop(self, part: Part) -> None:
        """The fence takes the part for answered; its answer has been given."""
        self._parts.pop(part.write.id, None)
        self._carry(self.fence.answered(part.write.id, int(ERROR.UNKNOWN_SERVER_ERROR), self._clock()))
        self.poke()

    def _record_of(self, topic: str) -> MigrationRecord | None:
        served = self._following.view.topics.get(topic)
        return self.record(served.record.hold) if served is not None and served.record.hold else None

    def _may_be_closed(self, record: MigrationRecord | None) -> bool:
        if not self.fresh:
            return True
        return record is not None and (record.closing or record.hold in ("held", "lifted"))

    def closed(self, topic: str | bytes) -> bool:
        """Whether a broker's "too large" may mean that the topic is closed; to be asked when it is passed on."""
        if not self.fresh:
            self._counters.refused += 1
            return True
        shut = self._may_be_closed(self._record_of(self.name(topic)))
        self._counters.refused += shut
        return shut

    def lost(self, part: Part) -> None:
        """The connection a part was sent on is gone, or there is none."""
        if part.write.id in self._parts:
            self._carry(self.fence.lost(part.write.id, self._clock()))
            self.poke()

    def reauthenticating(self, writes: ClientWrites) -> None:
        """A SaslHandshake came behind held writes."""
        self._carry(self.fence.reauthenticating(writes.id))

    def left(self, writes: ClientWrites) -> None:
        """The session has ended."""
        for request in list(writes.open):
            request.done = True
            for _, part in request.parts:
                self._parts.pop(part.write.id, None)
        now = self._clock()
        self.fence.reauthenticating(writes.id)
        out: list[Action] = []
        for request in writes.open:
            for _, part in request.parts:
                if self.fence.flying(part.write.id):
                    out += self.fence.lost(part.write.id, now)
        writes.open.clear()
        self._carry(out)
        self.poke()

    def _judge(self, write: Write, cluster: str) -> Verdict:
        part = self._parts.get(write.id)
        batch = part.batch if part is not None else None
        if batch is None or batch.producer_id < 0:
            return UNKNOWN
        return self._guards.judge(cluster, write.topic, write.partition, batch)

    async def begun(self, cluster: str, request: Message, topics: Iterable[str]) -> frozenset[str]:
        """Those of `topics` on which a transactional Produce begins a transaction (KIP-890: nothing is sent before)."""
        waiting = [one for one in topics if (move := self._record_of(one)) is not None and move.hold == "draining"]
        client = self._clients(cluster)
        if not waiting or client is None:
            return frozenset()
        return await self._open.begun(client, request, waiting)

    # -- calls that begin a transaction ---------------------------------------------------------------------------

    async def begins(self, session: Session, topics: Iterable[str]) -> bool:
        """Wait as long as a call must that would begin a transaction on these topics; whether it may be made now, on
        the connection's own cluster."""
        topics = list(topics)
        calls = [BeginningCall(session, self._following) for _ in topics]
        out: list[Action] = []
        session.handling = None  # while it waits the fence judges it, by what is newest
        for call, topic in zip(calls, topics, strict=True):
            self._number += 1
            write = Write(self._number, -self._number, session.cluster, topic, -1, 0, begins=True)
            self._calls[write.id] = call
            out += self.fence.write(write, self._clock())
        self._carry(out)
        for call in calls:
            await call.decided.wait()
        return all(call.cluster == session.cluster for call in calls)

    # -- reads ----------------------------------------------------------------------------------------------------

    def fetch_code(self, code: int, same: bool) -> int:
        """The error to pass on in a Fetch answer; to be asked when it is passed on."""
        return fetch_error(code, self.fresh, same)

    def ready(self, identifier: str) -> bool:
        """Whether the target's tables are here."""
        return self.fence.ready(identifier)

    def park(self, session: Session, slot: Slot, topics: Iterable[str]) -> None:
        """A fetch of these topics waits at the connection's broker; see `unpark`."""
        for topic in topics:
            self._parked.setdefault(topic, set()).add((session, slot))

    def unpark(self, session: Session, slot: Slot, topics: Iterable[str]) -> None:
        for topic in topics:
            entries = self._parked.get(topic)
            if entries is not None:
                entries.discard((session, slot))
                if not entries:
                    del self._parked[topic]

    def _cut(self, action: CutFetches) -> None:
        for topic in action.topics:
            for session, slot in list(self._parked.get(topic, ())):
                if session.cluster == action.cluster:
                    session.drop(slot)
        since = max(
            (
                known.switched
                for identifier, known in self._known.items()
                if (record := self.record(identifier)) is not None and set(action.topics) & set(record.topics)
            ),
            default=0.0,
        )
        for session in self._sessions():
            if session.cluster != action.cluster:
                continue
            for slot in list(session.slots):
                # Later ones were judged by who serves what after the switch.
                if slot.kind is Kind.FETCH and slot.started <= since:
                    session.cut(slot, responses.nothing_fetched(slot))

    # -- carrying out ---------------------------------------------------------------------------------------------

    def _carry(self, actions: list[Action]) -> None:
        forward: dict[tuple[ClientWrites, str], list[Part]] = {}
        for action in actions:
            if isinstance(action, Forward):
                part = self._parts.get(action.write.id)
                if part is not None and part.request.home not in (None, action.cluster):
                    self._abort(part)
                elif part is not None:
                    forward.setdefault((part.request.writes, action.cluster), []).append(part)
                    if part.held:
                        self._counters.observe(self._clock() - part.since)
                    self._counters.forwarded += action.cluster != action.write.cluster
                elif (call := self._calls.pop(action.write.id, None)) is not None:
                    call.decide(action.cluster)
                    self._carry(self.fence.answered(action.write.id, 0, self._clock()))
            elif isinstance(action, Answer):
                self._answer(action)
            elif isinstance(action, Pass):
                part = self._parts.pop(action.write.id, None)
                if part is not None:
                    part.request.writes.passed(part)
            elif isinstance(action, CutFetches):
                self._cut(action)
            elif self._lifting is not None and self._nursery is not None:
                self._lift(action)
        for (writes, cluster), some in forward.items():
            writes.send(cluster, sorted(some, key=lambda part: part.write.id))

    def _abort(self, part: Part) -> None:
        """A first write of a transaction, held until its topic had moved: its producer's home has moved as well."""
        part.request.writes.answer(part, self.unknown_producer(part.request))
        self._drop(part)

    def unknown_producer(self, request: Request) -> int:
        """The error that ends a transaction whose producer the coordinator at its new home does not know."""
        note_refused(str(request.head["transactional_id"]))
        return int(ERROR.TRANSACTION_ABORTABLE if request.version >= ABORTABLE_FROM else TOPIC_DENIED)

    def _answer(self, action: Answer) -> None:
        part = self._parts.pop(action.write.id, None)
        if part is not None:
            self._counters.refused += bool(action.code)
            if part.held and part.waiting:
                self._counters.observe(self._clock() - part.since)
            part.request.writes.answer(part, int(action.code), action.offset)
        elif (call := self._calls.pop(action.write.id, None)) is not None:
            call.decide("")

    def _lift(self, action: Lift) -> None:
        known, record = self._known.get(action.operation), self.record(action.operation)
        if known is None or record is None or known.lifting:
            return
        known.lifting = True
        assert self._nursery is not None
        self._nursery.start_soon(self._lift_now, known, record, action.revision)

    async def _lift_now(self, known: Known, record: MigrationRecord, revision: int) -> None:
        assert self._lifting is not None
        try:
            await self._lifting.lift(record, revision)
        finally:
            known.lifting = False
