"""What one proxy worker does with the writes and reads of topics that are being moved. No I/O: events in, commands out.

    fence = Fence(Limits(), judge)
    commands = fence.learned(record, revision, now) | fence.write(one, now) | fence.answered(id, code, now) | ...

`TABLE` is the whole of what is done with a write: by what the worker's view says of the hold, and by the connection's
cluster. Three rules go before it. A worker whose lease is not fresh holds nothing and answers 6, since it would not
learn how the hold ends. What goes to the target waits until its tables and producer guard are here. And the queue's
limits (requests, bytes, seconds) end in 6, for all of a session's held writes of a topic together, so that none of them
overtakes another.

A worker that slept, or is cut off, goes on by what it knew. For writes that is harmless: the source refuses them (10),
and 10 becomes 6. What it must not do is to call an offset invalid that others gave out: see `fetch_error`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from kafka_wire.errors import ERROR
from metadata_service.operations.records import ENDED, Hold, HoldReport, MigrationRecord
from offset_sync.guard import Verdict


class Rule(StrEnum):
    """What is done with a write."""

    SOURCE = "forwarded to the source"
    TARGET = "forwarded to the target"
    HOLD = "held"
    REFUSE = "answered 6"


TABLE: dict[Hold, tuple[Rule, Rule]] = {
    "open": (Rule.SOURCE, Rule.SOURCE),
    "draining": (Rule.SOURCE, Rule.SOURCE),
    "held": (Rule.HOLD, Rule.HOLD),
    "lifted": (Rule.HOLD, Rule.HOLD),
    "switched": (Rule.HOLD, Rule.HOLD),
    "released": (Rule.TARGET, Rule.TARGET),
    "announced": (Rule.TARGET, Rule.TARGET),
    "over": (Rule.REFUSE, Rule.TARGET),
}
"""By hold: what comes on a connection to the source's virtual brokers, and on one to the target's. Before the switch
some still write at the target's: this move took over from one that had only begun to redirect them."""

GAP_WAIT = 1.0  # seconds for the sequences before a gap to arrive


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one worker's queues; `seconds` for each held write."""

    requests: int = 2000
    bytes: int = 64 << 20
    seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Write:
    """One partition's part of a Produce request, or a call that adds the topic to a transaction (`begins`).

    `cluster` is the connection's. `limit` is the topic's real max.message.bytes.
    """

    id: int
    session: int
    cluster: str
    topic: str
    partition: int
    size: int
    begins: bool = False
    leased: bool = False  # the topic's policy is `writes: leased`
    limit: int = 1 << 31


@dataclass(frozen=True, slots=True)
class Forward:
    """Send it to this cluster now, behind what was forwarded before."""

    write: Write
    cluster: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer it here: with an error, or with success and a logical offset."""

    write: Write
    code: int
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass the broker's answer on, translated."""

    write: Write


@dataclass(frozen=True, slots=True)
class Lift:
    """End the hold by compare-and-swap (`migration.lift`), then reopen (`migration.reopened`)."""

    operation: str
    revision: int


@dataclass(frozen=True, slots=True)
class CutFetches:
    """Parked fetches of these topics on connections to this cluster are answered now: NOT_LEADER_OR_FOLLOWER."""

    topics: tuple[str, ...]
    cluster: str


Action = Forward | Answer | Pass | Lift | CutFetches


@dataclass(slots=True)
class _Held:
    write: Write
    since: float


@dataclass(slots=True)
class _Flight:
    write: Write
    cluster: str
    forwarded: bool  # to another cluster than its connection's
    since: float


@dataclass(slots=True)
class _Known:
    record: MigrationRecord
    revision: int
    held_since: float
    ready: bool = False
    forwarded: int = 0


@dataclass(slots=True)
class _Queues:
    held: dict[tuple[str, int], deque[_Held]] = field(default_factory=dict)
    count: int = 0
    size: int = 0

    def add(self, one: _Held) -> None:
        self.held.setdefault((one.write.topic, one.write.partition), deque()).append(one)
        self.count += 1
        self.size += one.write.size

    def take(self, wanted: Callable[[_Held], bool]) -> list[_Held]:
        """Take out all that are wanted, each partition's in order."""
        out = []
        for key, queue in list(self.held.items()):
            taken = [one for one in queue if wanted(one)]
            if taken:
                left = [one for one in queue if not wanted(one)]
                if left:
                    self.held[key] = deque(left)
                else:
                    del self.held[key]
                out += taken
                self.count -= len(taken)
                self.size -= sum(one.write.size for one in taken)
        return out

    def of(self, topic: str) -> Iterator[_Held]:
        for key, queue in self.held.items():
            if key[0] == topic:
                yield from queue


class Fence:
    """One worker's. `judge` is the producer guard of the cluster that a write is about to go to: asked for every write
    to a cluster that took the topic over, in this move or an earlier one. A duplicate is one, whatever that cluster's
    leader knows: a later batch of that producer may have got there first, while this one's acknowledgement was lost.
    All else is `unknown` where the leader has state for the producer: then the broker judges."""

    def __init__(self, limits: Limits, judge: Callable[[Write, str], Verdict]) -> None:
        self._fresh_until = 0.0
        self._granted = self._seen = 0
        self._limits = limits
        self._judge = judge
        self._known: dict[str, _Known] = {}
        self._by_topic: dict[str, str] = {}
        self._queues = _Queues()
        self._flying: dict[int, _Flight] = {}

    # -- what becomes known ---------------------------------------------------------------------------------------

    def learned(self, record: MigrationRecord, revision: int, now: float) -> list[Action]:
        """The view has this record now. Older ones than known are ignored."""
        before = self._known.get(record.id)
        if before is not None and before.revision >= revision:
            return []
        begun = before is None or (before.record.hold, before.record.attempt) != (record.hold, record.attempt)
        same = before is not None and before.record.attempt == record.attempt
        known = _Known(record, revision, now if begun or before is None else before.held_since)
        if before is not None and same:
            known.ready, known.forwarded = before.ready, before.forwarded
        self._known[record.id] = known
        for topic in record.topics:
            # One that was taken over tells of its end later than the one that took over begins.
            if topic not in self._by_topic or not (record.taken_over or record.step in ENDED):
                self._by_topic[topic] = record.id
        out = self._flush(known, now)
        if record.hold in ("announced", "over") and (before is None or before.record.hold != record.hold):
            out.append(CutFetches(tuple(sorted(record.topics)), record.source))
        self._forget(known)
        return out

    def loaded(self, operation: str, now: float) -> list[Action]:
        """The target's tables and guard are here, up to the settled end."""
        known = self._known.get(operation)
        if known is None:
            return []
        known.ready = True
        return self._flush(known, now)

    def renewed(self, fresh_until: float, granted: int) -> None:
        """The lease was renewed: fresh until then, counted from before the renewal was sent. `granted`: the store's
        revision when this lease was granted."""
        self._fresh_until, self._granted = fresh_until, granted

    def saw(self, revision: int) -> None:
        """The view has everything up to this revision."""
        self._seen = max(self._seen, revision)

    def fresh(self, now: float) -> bool:
        """Whether nothing that waits for this worker can have gone past it.

        A new lease does not make it so at once: while there was none, nobody waited, and the view may still lack what
        was decided then.
        """
        return now < self._fresh_until and self._seen >= self._granted

    def concerned(self, topic: str) -> bool:
        """Whether this topic's writes must come here; others are judged by the view alone."""
        return topic in self._by_topic

    def ready(self, operation: str) -> bool:
        """Whether the target's tables and guard are here."""
        known = self._known.get(operation)
        return known is not None and known.ready

    def on_their_way(self, record: MigrationRecord) -> set[int]:
        """The writes to the source that have been sent, and have no answer yet."""
        return {
            number
            for number, each in self._flying.items()
            if each.write.topic in record.topics and each.cluster == record.source
        }

    def flying(self, write: int) -> bool:
        """Whether it was forwarded, and has no answer yet."""
        return write in self._flying

    # -- writes ---------------------------------------------------------------------------------------------------

    def write(self, one: Write, now: float) -> list[Action]:
        """A client's write of a topic that is being moved."""
        known = self._known[self._by_topic[one.topic]]
        rule = self._rule(known, one, now)
        if rule is Rule.REFUSE:
            return [Answer(one, ERROR.NOT_LEADER_OR_FOLLOWER)]
        held = _Held(one, now)
        if rule is not Rule.HOLD and not self._behind(one):
            action = self._try(known, held, now)
            if action is not None:
                return [action]
        if self._queues.count >= self._limits.requests or self._queues.size + one.size > self._limits.bytes:
            return [Answer(one, ERROR.NOT_LEADER_OR_FOLLOWER)]
        self._queues.add(held)
        return []

    def answered(self, write: int, code: int, now: float, offset: int = -1) -> list[Action]:
        """The broker's answer to a forwarded write; `offset` is physical. Its translation is the caller's."""
        flight = self._flying.pop(write)
        one = flight.write
        known = self._known.get(self._by_topic.get(one.topic, ""))
        after: list[Action] = [] if known is None else self._flush(known, now)
        if code == ERROR.MESSAGE_TOO_LARGE and one.size <= one.limit:
            code = ERROR.NOT_LEADER_OR_FOLLOWER  # closed, not too large
        elif code == 0 and one.leased and not self.fresh(now):
            code = ERROR.NOT_LEADER_OR_FOLLOWER  # another cluster may have been promoted meanwhile
        elif code == 0 and known is not None and flight.cluster == known.record.source:
            ends = known.record.ends.get(one.topic, {})
            if known.record.hold in ("switched", "released", "announced", "over") and offset >= ends.get(
                one.partition, 1 << 62
            ):
                code = ERROR.NOT_LEADER_OR_FOLLOWER  # behind the end of its epoch: nobody will ever read it
        else:
            return [Pass(one), *after]
        return [Answer(one, code) if code else Pass(one), *after]

    def lost(self, write: int, now: float) -> list[Action]:
        """The connection it was forwarded on is gone; the client's is closed by the caller, or answered 6."""
        flight = self._flying.pop(write)
        known = self._known.get(self._by_topic.get(flight.write.topic, ""))
        return [Answer(flight.write, ERROR.NOT_LEADER_OR_FOLLOWER), *(self._flush(known, now) if known else [])]

    def reauthenticating(self, session: int) -> list[Action]:
        """A SaslHandshake came behind held writes: they may belong to another principal soon, and are refused."""
        return [
            Answer(each.write, ERROR.NOT_LEADER_OR_FOLLOWER)
            for each in self._queues.take(lambda held: held.write.session == session)
        ]

    def tick(self, now: float) -> list[Action]:
        """What time brings; to be called several times a second while anything is held."""
        out: list[Action] = []
        for known in list(self._known.values()):
            out += self._flush(known, now)
            self._forget(known)
            record = known.record
            waited = now - known.held_since
            over = record.hold == "held" and waited >= record.options.budget
            drained = record.hold == "draining" and waited >= 2 * record.options.drain_wait + record.options.budget
            if (over or drained) and self.fresh(now):
                out.append(Lift(record.id, known.revision))
        return out

    def report(self, operation: str) -> HoldReport | None:
        """What to say in the store; None where the migration is not known here."""
        known = self._known.get(operation)
        if known is None:
            return None
        record = known.record
        flying = [one for one in self._flying.values() if one.write.topic in record.topics]
        held = sum(1 for name in record.topics for _ in self._queues.of(name))
        count, known.forwarded = known.forwarded, 0
        return HoldReport(
            attempt=record.attempt,
            revision=known.revision,
            drained=not any(one.cluster == record.source for one in flying),
            ready=known.ready,
            unanswered=held + sum(1 for one in flying if one.forwarded),
            forwarded=count,
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _rule(self, known: _Known, one: Write, now: float) -> Rule:
        record = known.record
        if one.cluster == record.source:
            rule = TABLE[record.hold][0]
        elif one.cluster == record.target:
            rule = TABLE[record.hold][1]
        else:
            return Rule.REFUSE
        if record.hold == "draining" and one.begins:
            rule = Rule.HOLD
        if record.hold == "lifted" and not record.closing and rule is Rule.HOLD:
            rule = Rule.SOURCE  # nobody can have closed it
        if (rule is Rule.HOLD or one.leased) and not self.fresh(now):
            rule = Rule.REFUSE
        return rule

    def _behind(self, one: Write) -> bool:
        """Whether writes of its session to this partition are still held: it must not overtake them."""
        queue = self._queues.held.get((one.topic, one.partition), ())
        return any(each.write.session == one.session for each in queue)

    def _send(self, one: Write, cluster: str, now: float) -> Forward:
        self._flying[one.id] = _Flight(one, cluster, cluster != one.cluster, now)
        return Forward(one, cluster)

    def _forget(self, known: _Known) -> None:
        """A migration that has ended, once nothing is held on its account."""
        record = known.record
        if record.step not in ENDED or any(True for name in record.topics for _ in self._queues.of(name)):
            return
        self._known.pop(record.id, None)
        for topic in record.topics:
            if self._by_topic.get(topic) == record.id:
                del self._by_topic[topic]

    def _flush(self, known: _Known, now: float) -> list[Action]:
        """Everything held that need not be any longer, in order."""
        out: list[Action] = []
        late = {
            (each.write.session, each.write.topic)
            for name in known.record.topics
            for each in self._queues.of(name)
            if now - each.since >= self._limits.seconds or self._rule(known, each.write, now) is Rule.REFUSE
        }
        if late:
            taken = self._queues.take(lambda held: (held.write.session, held.write.topic) in late)
            out += [Answer(each.write, ERROR.NOT_LEADER_OR_FOLLOWER) for each in taken]
        blocked: set[tuple[int, str, int]] = set()
        gone: set[int] = set()
        for name in known.record.topics:
            for each in self._queues.of(name):
                one = each.write
                key = (one.session, one.topic, one.partition)
                if key in blocked:
                    continue
                action = self._try(known, each, now)
                if action is None:
                    blocked.add(key)
                else:
                    out.append(action)
                    gone.add(one.id)
        if gone:
            self._queues.take(lambda held: held.write.id in gone)
        return out

    def _try(self, known: _Known, each: _Held, now: float) -> Action | None:
        one, record = each.write, known.record
        rule = self._rule(known, one, now)
        if rule is Rule.SOURCE:
            cluster = record.source
        elif rule is Rule.TARGET and known.ready:
            cluster = record.target
        else:
            return None
        if one.cluster == cluster and self._forwarding(one):
            return None  # what was sent to the old place comes first
        verdict = self._judge(one, cluster)
        if verdict.kind == "duplicate":
            return Answer(one, 0, verdict.offset)
        if verdict.kind == "fenced":
            return Answer(one, ERROR.INVALID_PRODUCER_EPOCH)
        if verdict.kind == "gap":
            if self._ahead(one, cluster, each.since) or now - each.since < GAP_WAIT:
                return None
            return Answer(one, ERROR.OUT_OF_ORDER_SEQUENCE_NUMBER)
        if one.cluster != cluster:
            known.forwarded += 1
        return self._send(one, cluster, now)

    def _forwarding(self, one: Write) -> bool:
        """Whether writes to this partition that came to the old place are held or on their way to the new one."""
        place = (one.topic, one.partition)
        queue = self._queues.held.get(place, ())
        return any(each.write.cluster != one.cluster for each in queue) or any(
            each.forwarded and (each.write.topic, each.write.partition) == place for each in self._flying.values()
        )

    def _ahead(self, one: Write, cluster: str, since: float) -> bool:
        """Whether something that was sent before is on its way to this partition: the leader may know more soon."""
        place = (one.topic, one.partition)
        return any(
            (each.write.topic, each.write.partition) == place and each.cluster == cluster and each.since <= since
            for each in self._flying.values()
        )


# -- reads ------------------------------------------------------------------------------------------------------------


class Read(StrEnum):
    """What is done with a fetch of one partition."""

    OLD = "served by the source, up to the cut"
    SERVE = "served by the connection's cluster"
    MOVED = "answered 6"


def named(record: MigrationRecord) -> str:
    """The cluster that Metadata names: the old one until all held writes are answered."""
    return record.target if record.hold in ("announced", "over") else record.source


def read(record: MigrationRecord, cluster: str, topic: str, partition: int, offset: int, ready: bool) -> Read:
    """A fetch at a logical offset, on a connection to `cluster`, by what this worker's view says.

    `ready`: the target's tables are here. Below the cut both hold the same, and the old place goes on serving it until
    it is retired. At the cut a fetch may wait at the old place until the announcement.
    """
    before = TABLE[record.hold][0] is not Rule.REFUSE and record.hold not in ("switched", "released", "announced")
    if before:
        return Read.SERVE if cluster == record.source else Read.MOVED
    if cluster == record.target:
        return Read.SERVE if ready and record.hold != "switched" else Read.MOVED
    if cluster != record.source or record.hold == "over":
        return Read.MOVED
    cut = record.cut.get(topic, {}).get(partition)
    if cut is None or offset > cut or (offset == cut and record.hold == "announced"):
        return Read.MOVED
    return Read.OLD


def fetch_error(code: int, fresh: bool, same: bool) -> int:
    """The error to pass on; to be judged when the answer is passed on, not when the question came.

    Upon OFFSET_OUT_OF_RANGE clients reset their positions, and an offset beyond one log may be valid elsewhere. So it
    is passed on only by a worker that is `fresh`, and where the topic is by now what it was when the question was
    judged (`same`); else it becomes NOT_LEADER.
    """
    return code if code != ERROR.OFFSET_OUT_OF_RANGE or (fresh and same) else ERROR.NOT_LEADER_OR_FOLLOWER
