"""Moves of topics for operators: planned by what the clusters say, begun, paused, resumed, given up.

A plan changes nothing. What is begun is one commit for each group of topics that switch together: the migration's
record and the operation's, on the condition that what the plan was made by is still as it was. The controller does the
rest.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import trio

from admin import migration_facts as asked
from admin.contract import Conflict, Document, NotFound, Unavailable, Wrong
from admin.migration_facts import Clients, Copy, Defaults, Disks
from admin.migration_plan import (
    Bypass,
    Chosen,
    Found,
    Move,
    Plan,
    Speed,
    Wish,
    applications,
    bypassing,
    chosen,
    final,
    kinds,
    made,
    speed,
    told,
    wish_of,
)
from admin.mirror_plan import Wrong as WrongWish
from admin.mirrored import seen
from kafka_client import ClientError, ClusterClient, Refused
from metadata_service.failures import DecisionFailed
from metadata_service.member import Member
from metadata_service.models import (
    OPERATIONS,
    OperationRecord,
    StubRecord,
    TopicRecord,
    is_internal,
    stub_key,
    topic_key,
)
from metadata_service.operations.gates import CLOSED
from metadata_service.operations.judging import PlanFacts, Subject
from metadata_service.operations.migration import abortable, take_over
from metadata_service.operations.records import ENDED, MIGRATIONS, MigrationRecord, face, migration_key
from metadata_service.records import decode, encode
from metadata_service.status import Facts
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Condition, Operation, Put, Store, Unchanged
from metadata_service.view import PhysicalTopic
from offset_sync.varints import Damaged
from replicator.prepare import Configs, NoSource, is_closed, judge, replicas_of
from replicator.states import STOPPED

GATHER_SECONDS = 18.0  # for everything that is asked: a request has to be answered in time
AT_ONCE = 8
TRIES = 5
KIND = "migrate"
FLOOR = "min.insync.replicas"
BEGUN = "migrations/begun"  # written whenever one is begun: what may be moved depends on the others


@dataclass(slots=True)
class _Known:
    """What a plan is judged by, and the revisions of it. `topics`, `stubs` by key."""

    revision: int  # of the store, when it was read
    begun: int
    migrations: dict[str, MigrationRecord] = field(default_factory=dict)
    migrated: dict[str, int] = field(default_factory=dict)
    topics: dict[str, TopicRecord] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)  # of the topics' and stubs' keys, 0: not there
    stubs: dict[tuple[str, str], StubRecord] = field(default_factory=dict)


async def _read(store: Store, targets: Mapping[str, str]) -> _Known:
    """From the store itself. Raises StoreError."""
    begun = await store.get(BEGUN)
    found = await store.range(MIGRATIONS)
    known = _Known(found.revision, begun.mod_revision if begun is not None else 0)
    for one in found.items:
        migration = decode(MigrationRecord, one.value)
        known.migrations[migration.id] = migration
        known.migrated[migration.id] = one.mod_revision
    for name, target in targets.items():
        topic = await store.get(topic_key(name))
        if topic is not None:
            known.topics[name] = decode(TopicRecord, topic.value)
        known.revisions[topic_key(name)] = topic.mod_revision if topic is not None else 0
        stub = await store.get(stub_key(target, name))
        if stub is not None:
            known.stubs[target, name] = decode(StubRecord, stub.value)
        known.revisions[stub_key(target, name)] = stub.mod_revision if stub is not None else 0
    return known


@dataclass(slots=True)
class _Cluster:
    """What one cluster has said."""

    client: ClusterClient
    brokers: int = 0
    topics: dict[str, PhysicalTopic] = field(default_factory=dict)
    configs: dict[str, Configs] = field(default_factory=dict)
    disks: Disks = field(default_factory=lambda: Disks({}, -1))
    clients: Clients = field(default_factory=Clients)
    defaults: Defaults = field(default_factory=lambda: Defaults({}, 1))
    problem: str = ""


class Planning:
    """One plan being made. `facts` are what is known outside the view: who reads, how fast mirrors are."""

    def __init__(self, member: Member, facts: Facts, wish: Wish, follow_acls: bool = True) -> None:
        self._member = member
        self._facts = facts
        self._wish = wish
        self._follow_acls = follow_acls
        self._view = member.view
        self._chosen = Chosen()
        self._clusters: dict[str, _Cluster] = {}
        self.known = _Known(0, 0)

    async def plan(self) -> Plan:
        """Raises WrongWish, StoreError."""
        self._wish.check(self._view)
        self._chosen = chosen(self._view, self._wish)
        targets = self._chosen.targets
        self.known = await _read(self._member.store, targets)
        for name in [name for name in targets if name not in self.known.topics]:
            self._chosen.problems.append(f"{name}: it has just been deleted")
            del targets[name]
        found: list[Found] = []
        with trio.move_on_after(GATHER_SECONDS) as scope:
            await self._ask_clusters()
            found = await self._look()
        if scope.cancelled_caught:
            self._chosen.problems.append(
                f"the clusters did not answer within {GATHER_SECONDS:.0f} s; see kfed clusters, or move fewer at once"
            )
            return Plan([], self._chosen.problems, self._chosen.left_out)
        return Plan(self._judged(found), self._chosen.problems, self._chosen.left_out)

    def _judged(self, found: list[Found]) -> list[Move]:
        facts_of = {}
        for target in {one.target for one in found}:
            there = self._clusters.get(target)
            cluster = self._view.clusters.get(target)
            facts_of[target] = PlanFacts(
                subjects=(),
                target=target,
                target_known=cluster is not None and cluster.record.state == "active",
                target_reachable=there is not None and not there.problem,
                target_brokers=max(there.brokers, 1) if there is not None else 1,
                room=there.disks.room if there is not None else -1,
            )
        running = [one for one in self.known.migrations.values() if one.step not in ENDED]
        served = applications(self._view.topics, self._view.groups)
        speeds = {(one.source, one.target): self._speed(one.source, one.target) for one in found}
        return made(found, running, facts_of, speeds, self._wish.allow, served)

    def _speed(self, source: str, target: str) -> Speed:
        link = self._view.links.get((source, target))
        rates = (one.rate for (to, _, come), one in seen(self._facts).items() if (come, to) == (source, target))
        return speed(link.rate if link is not None else 0.0, sum(rates))

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask_clusters(self) -> None:
        targets = self._chosen.targets
        from_: dict[str, set[str]] = {}
        to: dict[str, set[str]] = {}
        for name, target in targets.items():
            from_.setdefault(self.known.topics[name].cluster, set()).add(name)
            to.setdefault(target, set()).add(name)
        async with trio.open_nursery() as nursery:
            for name in {*from_, *to}:
                client = self._member.clients.get(name)
                if client is None:
                    continue
                self._clusters[name] = _Cluster(client)
                nursery.start_soon(self._ask, name, from_.get(name, set()), to.get(name, set()))

    async def _ask(self, name: str, served: set[str], coming: set[str]) -> None:
        one = self._clusters[name]
        try:
            one.brokers = len(await one.client.refresh(asked.TIMEOUT))
            names = served | coming
            one.topics = await asked.topics_of(one.client, names)
            one.configs = await asked.settings(one.client, one.topics)
            one.disks = await asked.disks(one.client, one.topics)
            if coming:
                one.defaults = await asked.defaults(one.client)
            if served:
                physical = {topic: one.topics[topic] for topic in served if topic in one.topics}
                everything = {topic for topic, each in self._view.topics.items() if each.cluster == name}
                one.clients = await asked.clients(one.client, physical, everything)
        except (ClientError, DecisionFailed) as error:
            one.problem = str(error)

    async def _look(self) -> list[Found]:
        room = trio.CapacityLimiter(AT_ONCE)
        out: dict[str, Found] = {}

        async def look(name: str, target: str) -> None:
            async with room:
                out[name] = await self._found(self.known.topics[name], target)

        async with trio.open_nursery() as nursery:
            for name, target in self._chosen.targets.items():
                nursery.start_soon(look, name, target)
        return [out[name] for name in self._chosen.targets]

    async def _found(self, record: TopicRecord, target: str) -> Found:
        name = record.name
        here, there = self._clusters.get(record.cluster), self._clusters.get(target)
        mirrors = tuple(one for one in self._view.mirrors_of(name) if one.state != "removing")
        stub = self.known.stubs.get((target, name))
        bare = Subject(record, mirrors=mirrors, stub=stub)
        if is_internal(name) or record.cluster == target:
            return Found(bare, target)
        for cluster, one in ((record.cluster, here), (target, there)):
            if one is None or one.problem:
                why = one.problem if one is not None else "it is not an active cluster, or was not reached yet"
                return Found(bare, target, problems=(f"{name}: {cluster}: {why}; see kfed clusters",))
        assert here is not None and there is not None
        physical = here.topics.get(name)
        if physical is None or name not in here.configs:
            return Found(bare, target, problems=(f"{name}: {record.cluster} does not have it; see kfed doctor",))
        problems: list[str] = []
        shipped = next((one for one in mirrors if one.target == target and one.mode == "ship"), None)
        copy: Copy | None = None
        would_be: Mapping[str, str | None] = there.defaults.values
        try:
            if name in there.topics:
                configs_there = would_be = there.configs[name].values if name in there.configs else {}
                if is_closed(would_be):  # it is opened for the mirror
                    would_be = {**would_be, **{key: there.defaults.values.get(key) for key in CLOSED}}
                if shipped is None:
                    migrations = self.known.migrations.values()
                    present = there.topics[name]
                    copy = await asked.copy(
                        here.client, there.client, record, present, configs_there, migrations, self.known.revision
                    )
                    problems += [copy.problem] if copy.problem else []
            if shipped is None:
                judged = await judge(here.client, there.client, name, ship=True, trial=True)
                floor = int(here.configs[name].values.get(FLOOR) or 1)
                problems += [
                    f"{name}: on {target} {problem}"
                    for problem in judged.problems
                    if problem.setting != FLOOR or floor <= there.brokers  # else the plan says it, with the way out
                ]
            ids = [one for one, topics in here.clients.ids.items() if name in topics]
            followed, leave = self._follow_acls, self._wish.options.leave_acls
            found = await asked.lacking(here.client, there.client, name, ids, followed=followed, leave_acls=leave)
            problems += [f"{name}: {one}" for one in found]
        except NoSource:
            problems.append(f"{name}: {record.cluster} does not have it; see kfed doctor")
        except (Refused, ClientError, Damaged) as error:
            problems.append(f"{name}: {error}")
        if shipped is not None:
            problems += self._mirror_problems(name, record.cluster, target)
        return self._described(record, target, physical, here, there, copy, would_be, problems)

    def _mirror_problems(self, topic: str, source: str, target: str) -> list[str]:
        """Why the standby that is to be the topic would not be complete."""
        one = seen(self._facts).get((target, topic, source))
        stopped = [part.condition for part in one.partitions.values() if part.condition in STOPPED] if one else []
        link = self._view.links.get((source, target))
        out = [f"{topic}: its mirror to {target} is {word}; see kfed mirrors {topic}" for word in stopped[:1]]
        if link is not None and link.state == "paused":
            out.append(f"{topic}: the link {source} -> {target} is paused; resume it first")
        return out

    def _described(
        self,
        record: TopicRecord,
        target: str,
        physical: PhysicalTopic,
        here: _Cluster,
        there: _Cluster,
        copy: Copy | None,
        would_be: Mapping[str, str | None],
        problems: Sequence[str],
    ) -> Found:
        name, view, now = record.name, self._view, time.time()
        configs = here.configs[name]
        mirrors = tuple(one for one in view.mirrors_of(name) if one.state != "removing")
        wanted = final(configs.values, configs.changed, would_be or configs.values)
        apps = applications(view.topics, view.groups)
        ids = {
            each: topics
            for each, topics in here.clients.ids.items()
            if name in topics and (home := view.transactions.get(each)) is not None and home.cluster == record.cluster
        }
        share = here.clients.share.get(name, ())
        direct = [Bypass(number, last) for number, last in here.clients.direct(name).items()]
        adopted = record.created if record.adopted else 0.0
        writing, gone = bypassing(direct, adopted, now)
        size = here.disks.of(name)
        standby = any(one.target == target and one.mode == "ship" for one in mirrors)
        goes_on = standby or (copy is not None and (copy.standing.left or copy.standing.clean_end))
        replicas = max((len(one.replicas) for one in physical.partitions), default=1)
        use = self._facts.inventory.get(name)
        existing = there.topics.get(name)
        will_be = max((len(one.replicas) for one in existing.partitions), default=1) if existing else None
        subject = Subject(
            record,
            kinds(configs.values, transactional=bool(ids), share=bool(share), streams=name in apps),
            size=max(0, size - there.disks.of(name)) if goes_on else size,
            replicas=replicas,
            source_config=configs.values,
            wanted_config={**would_be, **wanted},
            log_start=copy.log_start if copy is not None else {},
            bypassing=len(writing),
            named=told(writing) if writing else "",
            ids=ids,
            mirrors=mirrors,
            stub=self.known.stubs.get((target, name)),
            standing=copy.standing if copy is not None else None,
            waits_for=copy.waits_for if copy is not None else 0,
        )
        described = self._notes(record, target, ids, here.clients, gone, share)
        to_be = will_be if will_be is not None else replicas_of(replicas, there.defaults.replicas, there.brokers)
        if to_be < replicas:
            described.append(
                f"{to_be} replica{'s' if to_be > 1 else ''} on {target} instead of {replicas}: "
                + (
                    f"it has {there.brokers} brokers"
                    if there.brokers < replicas
                    else "as the topic there has; reassign its partitions to change that"
                )
            )
        floor = int(wanted.get("min.insync.replicas") or would_be.get("min.insync.replicas") or 1)
        more = list(problems)
        if to_be < floor <= min(replicas, there.brokers):
            more.append(
                f"{name}: min.insync.replicas {floor} cannot be met with {to_be} replicas on {target}: every write "
                "with acks=all would fail; lower it on the topic" + f", or reassign the partitions on {target}"
            )
        return Found(
            subject,
            target,
            size=size,
            replicas=to_be,
            final=wanted,
            groups=use.groups if use is not None else {},
            producers=len([n for n in here.clients.writers.get(name, {}) if n not in here.clients.own]),
            last_write=max((one.last for one in here.clients.writers.get(name, {}).values()), default=0.0),
            bypassing=(*writing, *gone),
            application=apps.get(name, ""),
            settings={
                key: (default, value)
                for key, value in wanted.items()
                if (default := there.defaults.values.get(key)) not in (None, value)
            },
            problems=tuple(more),
            notes=tuple(described),
        )

    def _notes(
        self,
        record: TopicRecord,
        target: str,
        ids: Mapping[str, object],
        clients: Clients,
        gone: Sequence[Bypass],
        share: Sequence[str],
    ) -> list[str]:
        """What is worth knowing, and refuses nothing."""
        out = []
        if gone:
            out.append(f"{told(gone)} wrote past the endpoint once, and not of late")
        if share:
            out.append(f"read by the share group{'s' if len(share) > 1 else ''} {', '.join(share)}")
        for each in sorted(set(ids) & clients.committing):
            out.append(
                f"transactional id {each!r} also commits positions of a group: that group's home has to be {target} "
                f"too, since a transaction has one home; kfed groups NAME --move-home {target} --apply, while the "
                "application has no transaction open"
            )
        return out


# -- beginning --------------------------------------------------------------------------------------------------------


async def begin(member: Member, facts: Facts, wish: Wish, by: str, follow_acls: bool = True) -> Plan:
    """Plan, and begin every migration of it. With problems nothing is done.

    Raises:
        WrongWish, StoreError. Conflict: what the plan was made by is changed by others, again and again.
    """
    backoff = Backoff(0.05, 0.5)
    begun: list[Move] = []
    for _ in range(TRIES):
        planning = Planning(member, facts, wish, follow_acls)
        plan = await planning.plan()
        done = not plan.all_problems() and await _commit(member.store, planning.known, plan, wish, by)
        new = [one for one in plan.moves if one.id]
        if done or plan.all_problems() or not plan.moves:
            plan.moves, plan.applied = [*begun, *plan.moves], bool(begun or new)
            ids = {one.id for one in plan.moves if one.id}
            await member.following.wait_for(lambda view, ids=ids: ids <= view.migrations.keys())  # type: ignore[misc]
            return plan
        begun += new
        if new:  # the others are judged again, as they are now
            wish = replace(wish, topics=tuple(each.name for one in plan.moves if not one.id for each in one.found))
        await backoff.pause()
    raise Conflict(
        "topics are being changed by others; look at the plan again"
        + (f" (begun: {', '.join(one.id for one in begun)})" if begun else "")
    )


async def _commit(store: Store, known: _Known, plan: Plan, wish: Wish, by: str) -> bool:
    """One commit for each migration, the first on the condition that no other was begun since. False: nothing of what
    is left may be begun any longer as it was planned."""
    changed = known.begun
    for move in plan.moves:
        if move.id:
            continue
        identifier = f"m-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        record = move.record(identifier, wish.options)
        state, step = face(record)
        operation = OperationRecord(
            id=identifier, kind=KIND, state=state, step=step, started=time.time(), by=by, plan=_short(move, wish)
        )
        conditions: list[Condition] = [
            Unchanged(BEGUN, changed),
            Unchanged(migration_key(identifier), 0),
            Unchanged(OPERATIONS + identifier, 0),
        ]
        steps: list[Operation] = [
            Put(BEGUN, b"{}"),
            Put(migration_key(identifier), encode(record)),
            Put(OPERATIONS + identifier, encode(operation)),
        ]
        for name in record.topics:
            for key in (topic_key(name), stub_key(record.target, name)):
                conditions.append(Unchanged(key, known.revisions[key]))
        for earlier in sorted(move.takes_over()):
            taken = take_over(known.migrations[earlier], identifier)
            conditions.append(Unchanged(migration_key(earlier), known.migrated[earlier]))
            if taken.commit is not None:
                steps.append(Put(migration_key(earlier), encode(taken.commit.record)))
        done = await store.commit(conditions, steps)
        if not done.succeeded:
            return False
        move.id = identifier
        changed = done.revision
    return True


def _short(move: Move, wish: Wish) -> dict[str, object]:
    """Of a plan, as much as the operation's record keeps."""
    return {
        "source": move.source,
        "target": move.target,
        "topics": [one.name for one in move.found],
        "partitions": sum(one.subject.record.partitions for one in move.found),
        "bytes": sum(one.size for one in move.found),
        "to_copy": sum(one.subject.size for one in move.found),
        "rollback": wish.rollback,
        "transactional_ids": sorted({name for one in move.found for name in one.subject.ids}),
        "takes_over": sorted(move.takes_over()),
        "warnings": [str(one) for one in move.judgement.warnings],
    }


# -- pausing, resuming, giving up -------------------------------------------------------------------------------------

_WANTED = {"pause": "pause", "resume": "run", "abort": "abort"}


async def want(member: Member, identifier: str, action: str) -> Document:
    """Pause, resume or abort a migration. Returns what was recorded.

    Raises:
        Wrong: no such action. NotFound: no such migration. Conflict: it cannot be at this step. StoreError.
    """
    wanted = _WANTED.get(action)
    if wanted is None:
        raise Wrong("action: pause, resume or abort")
    store = member.store
    backoff = Backoff(0.01, 0.2)
    for _ in range(4 * TRIES):
        found = await store.get(migration_key(identifier))
        shown = await store.get(OPERATIONS + identifier)
        if found is None or shown is None:
            raise NotFound(f"no migration {identifier!r}")
        record, operation = decode(MigrationRecord, found.value), decode(OperationRecord, shown.value)
        possible(record, action)
        after = msgspec.structs.replace(record, wanted=wanted)
        state, step = face(after)
        shown_as = msgspec.structs.replace(operation, state=state, step=step)
        if after == record and shown_as == operation:
            return {"id": identifier, "wanted": record.wanted, "state": operation.state, "step": operation.step}
        done = await store.commit(
            (
                Unchanged(migration_key(identifier), found.mod_revision),
                Unchanged(OPERATIONS + identifier, shown.mod_revision),
            ),
            (Put(migration_key(identifier), encode(after)), Put(OPERATIONS + identifier, encode(shown_as))),
        )
        if done.succeeded:
            return {"id": identifier, "wanted": wanted, "state": state, "step": step}
        await backoff.pause()
    raise Conflict(f"operation {identifier} is going on at this moment; try again")


def possible(record: MigrationRecord, action: str) -> None:
    """Raises Conflict, with the way out."""
    if record.step in ENDED:
        raise Conflict(
            f"operation {record.id} has ended: {record.step}{f' ({record.reason})' if record.reason else ''}"
        )
    if action == "abort" and not abortable(record):
        names = " ".join(shlex.quote(one) for one in sorted(record.topics))
        raise Conflict(
            f"operation {record.id} has switched to {record.target}, which cannot be taken back; "
            f"move back instead: kfed migrate {names} --rollback --apply"
        )
    if record.ending and action != "abort":
        raise Conflict(f"operation {record.id} is being given up: {record.reason}")
    if record.wanted == "abort" and action != "abort":
        raise Conflict(f"operation {record.id} is being aborted")


# -- for the office ---------------------------------------------------------------------------------------------------

Record = Callable[[str, Mapping[str, object], Mapping[str, object]], Awaitable[None]]


async def migrate_asked(
    member: Member,
    facts: Facts,
    body: Mapping[str, object],
    apply: bool,
    by: str,
    record: Record,
    follow_acls: bool = True,
) -> Document:
    """`follow_acls`: whether replicators create the source's ACLs on targets. Raises Wrong, Conflict, StoreError."""
    try:
        wish = wish_of(body)
        if not apply:
            return (await Planning(member, facts, wish, follow_acls).plan()).document()
        plan = await begin(member, facts, wish, by, follow_acls)
    except WrongWish as error:
        raise Wrong(str(error)) from None
    except DecisionFailed as error:
        raise Unavailable(str(error)) from None
    if plan.applied:
        short = {"migrations": [_short(one, wish) for one in plan.moves]}
        await record(wish.described(), short, {"operations": [one.id for one in plan.moves]})
    return plan.document()
