"""The admin API's answers and changes, over an opened store and its view. Every change is recorded in the history."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import msgspec
import trio

from admin import ejects, home_moves, migrated, migrations, mirror_states, mirrored, mirrors, processes
from admin.contract import Conflict, Document, NotFound, Unavailable, Wrong
from admin.core import Core
from admin.offsets import Offsets
from admin.verification import Verification
from admin.workers import Workers
from metadata_service import deciding, doctor, models, seeding
from metadata_service import status as documents
from metadata_service.failures import DecisionFailed, SettingsRefused
from metadata_service.member import Member
from metadata_service.records import decode
from metadata_service.status import Facts, read_facts
from metadata_service.store import transfer
from metadata_service.store.contract import StoreError
from metadata_service.store.opened import OpenedStore
from runtime import logging
from runtime.metrics import Metrics, join
from runtime.settings import Cluster, Placement, Settings, SettingsError, check

log = logging.get(__name__)

REOPEN = 30.0  # seconds after an import until the store is open again


class FederationOffice:
    """`admin.contract.Office` for one instance."""

    def __init__(
        self,
        settings: Settings,
        instance: str,
        core: Core,
        workers: Workers,
        metrics: Metrics,
        reasons: Callable[[], list[str]],
        *,
        replicators: Workers,
        read_only: bool,
    ) -> None:
        self.read_only = read_only
        self._settings = settings
        self._instance = instance
        self._core = core
        self._workers = workers
        self._replicators = replicators
        self._metrics = metrics
        self._reasons = reasons
        self._known: Facts | None = None
        self._verification = Verification()
        self._offsets = Offsets()
        for name in ("kfed_view_age_seconds", "kfed_store_lag_seconds"):
            metrics.gauge(name, self._of_member(lambda member: member.following.age()))
        metrics.gauge("kfed_leader", lambda: float(core.controller is not None and core.controller.leading))
        metrics.gauge("kfed_view_revision", self._of_member(lambda member: float(member.view.revision)))
        metrics.sources.append(lambda: migrated.samples(self._known) if self._known is not None else ())
        metrics.gauge(
            "kfed_store_connected", lambda: float(core.member is not None and core.member.following.connected)
        )

    def _of_member(self, get: Callable[[Member], float | None]) -> Callable[[], float | None]:
        return lambda: get(self._core.member) if self._core.member is not None else None

    def _open(self) -> tuple[Member, OpenedStore]:
        if self._core.member is None or self._core.store is None:
            raise Unavailable(self._core.why)
        return self._core.member, self._core.store

    def not_ready(self) -> list[str]:
        return self._reasons()

    async def metrics(self) -> bytes:
        if self._core.member is not None and self._core.member.view.migrations:
            await self._facts()
        texts = [*await self._workers.metrics(), *await self._replicators.metrics()]
        return join([self._metrics.render(), *texts])

    # -- documents ------------------------------------------------------------------------------------------------

    async def _facts(self) -> Facts:
        """As of now; while the store is away, what lies outside the view is as it was last read."""
        member, store = self._open()
        following = member.following
        if following.connected:
            try:
                self._known = await read_facts(store, following.view, following.age())
                return self._known
            except StoreError as error:
                log.debug("the store is away", error=str(error))
        if self._known is None:
            self._known = Facts(following.view, store=store.description)
        return dataclasses.replace(self._known, view=following.view, age=following.age())

    def _findings(self, facts: Facts) -> list[doctor.Finding]:
        clusters = {name: one.record for name, one in facts.view.clusters.items()}
        placement = facts.view.placement
        rules = models.PlacementRecord(placement=placement) if placement is not None else None
        differences = seeding.differences(self._settings, clusters, rules)
        return doctor.findings(facts, differences, [*migrated.findings(facts), *mirrored.findings(facts, time.time())])

    async def status(self) -> Document:
        facts = await self._facts()
        return documents.status(facts, doctor.document(self._findings(facts))["findings"])  # type: ignore[arg-type]

    async def clusters(self) -> Document:
        return documents.clusters(await self._facts())

    async def topics(self) -> Document:
        return documents.topics(await self._facts())

    async def topic(self, name: str) -> Document:
        return _found(documents.topic(await self._facts(), name), f"no topic {name!r}")

    async def groups(self) -> Document:
        return documents.groups(await self._facts())

    async def group(self, name: str) -> Document:
        return _found(documents.group(await self._facts(), name), f"no group {name!r}")

    async def group_home_plan(self, name: str, cluster: str) -> Document:
        return {**(await self._home_plan(name, cluster)).document(), "applied": False}

    async def _home_plan(self, name: str, cluster: str) -> deciding.Plan:
        member, _ = self._open()
        if name not in member.view.groups:
            raise NotFound(f"no group {name!r}")
        try:
            return await deciding.plan_home(member, name, cluster)
        except deciding.CannotDecide as error:
            raise Conflict(f"group {name!r}: {error}") from None
        except DecisionFailed as error:
            raise Unavailable(str(error)) from None

    async def group_home(self, name: str, cluster: str, by: str) -> Document:
        plan = await self._home_plan(name, cluster)
        member, _ = self._open()
        try:
            with _store_errors():
                await deciding.decide_home(member, plan)
        except deciding.CannotDecide as error:
            raise Conflict(f"group {name!r}: {error}") from None
        except DecisionFailed as error:
            raise Unavailable(str(error)) from None
        await self._record(by, "group home", plan.document(), {"home": cluster})
        return {**plan.document(), "applied": True}

    async def group_move(self, name: str, cluster: str, apply: bool, by: str) -> Document:
        facts = await self._facts()
        member, _ = self._open()
        with _store_errors():
            if not apply:
                plan, identifier = await home_moves.plan_move(member, facts, name, cluster), None
            else:
                plan, identifier = await home_moves.begin_move(member, facts, name, cluster, by)
        plan.lag = (documents.group(facts, name) or {}).get("lag")
        document = plan.document(identifier)
        if identifier is not None:
            await self._record(by, "group move home", home_moves.short(document), {"operation": identifier})
        return document

    async def eject(self, name: str, undo: bool, apply: bool, by: str) -> Document:
        facts = await self._facts()
        member, _ = self._open()
        with _store_errors():
            if undo:
                document = await ejects.take_back(member, name, apply)
                if apply:
                    await self._record(by, "eject undo", {"topic": name}, document)
                return document
            if not apply:
                return (await ejects.plan_eject(member, facts, name)).document()
            plan, identifier = await ejects.begin_eject(member, facts, name, by)
        document = plan.document(identifier)
        if identifier is not None:
            await self._record(by, "eject", document, {"operation": identifier})
        return document

    async def proxies(self) -> Document:
        """The registered workers; of this instance's own also what they say themselves at this moment."""
        document = documents.proxies(await self._facts())
        own = {one["worker"]: one for one in await self._workers.status()}
        for line in cast(list[dict[str, object]], document["proxies"]):
            if line["instance"] == self._instance and (mine := own.get(line["worker"])) is not None:
                line |= {"state": mine["state"], "restarts": mine["restarts"], "live": mine["live"]}
        return document

    async def doctor(self) -> Document:
        facts = await self._facts()
        return doctor.document(self._findings(facts))

    # -- operations and history -----------------------------------------------------------------------------------

    async def operations(self) -> Document:
        facts = await self._facts()
        lines = cast(list[Document], documents.operations(facts)["operations"])
        return {"operations": [{**one, **migrated.line(facts.view, str(one["id"]))} for one in lines]}

    async def operation(self, identifier: str) -> Document:
        facts = await self._facts()
        document = _found(documents.operation(facts, identifier), f"no operation {identifier!r}")
        return {**document, "migration": migrated.progress(facts, identifier)}

    async def operation_change(self, identifier: str, action: str, by: str) -> Document:
        member, _ = self._open()
        with _store_errors():
            document = await migrations.want(member, identifier, action)
        await self._record(by, f"operations {identifier} --{action}", {"operation": identifier}, document)
        return document

    async def migrate(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        facts = await self._facts()
        member, _ = self._open()
        with _store_errors():
            follow_acls = self._settings.replicator.follow_acls
            told = partial(self._record, by)
            return await migrations.migrate_asked(member, facts, asked, apply, by, told, follow_acls)

    async def process_dead(self, name: str, apply: bool, by: str) -> Document:
        facts = await self._facts()
        member, _ = self._open()
        with _store_errors():
            document = await processes.dead(member.store, facts, name, apply)
        if document["applied"]:
            await self._record(by, f"proxies --dead {name}", document, {"removed": name})
        return document

    async def history(self, limit: int) -> Document:
        _, store = self._open()
        with _store_errors():
            found = await store.range(models.HISTORY)
        changes = [decode(models.ChangeRecord, one.value) for one in found.items]
        changes.sort(key=lambda one: -one.at)
        return {"history": [logging.redact(one) for one in changes[:limit]], "total": len(changes)}

    async def _record(self, by: str, what: str, plan: Mapping[str, object], result: Mapping[str, object]) -> None:
        """A change that was made is not undone because its record cannot be written: that is logged."""
        log.info("changed", by=by, what=what, result=dict(result))
        try:
            member, _ = self._open()
            await member.federation.record_change(by, what, plan, result)
        except (Unavailable, StoreError, DecisionFailed) as error:
            log.error("a change could not be recorded", by=by, what=what, error=str(error))

    # -- mirrors ---------------------------------------------------------------------------------------------------

    async def verify(self, asked: Mapping[str, object]) -> Document:
        member, _ = self._open()
        return await self._verification.verify(member, asked)

    async def mirrors(self, topic: str | None = None) -> Document:
        document = mirrored.document(await self._facts(), topic)
        return _found(document if document["mirrors"] or topic is None else None, f"no mirror of a topic {topic!r}")

    async def mirror_create(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        member, _ = self._open()
        with _store_errors():
            follow_acls = self._settings.replicator.follow_acls
            return await mirrors.create_asked(member, asked, apply, partial(self._record, by), follow_acls)

    async def mirror_remove(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        member, _ = self._open()
        with _store_errors():
            return await mirrors.remove_asked(member, asked, apply, partial(self._record, by))

    async def mirror_state(self, action: str, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        member, _ = self._open()
        for known in mirror_states.ACTIONS:
            if known == action:
                with _store_errors():
                    return await mirror_states.asked(member, known, asked, apply, partial(self._record, by))
        raise NotFound(f"mirror {action}")

    async def offset(self, topic: str, partition: int, offset: int, source: str, target: str) -> Document:
        member, _ = self._open()
        return await self._offsets.answer(member, topic, partition, offset, source, target)

    # -- configuration --------------------------------------------------------------------------------------------

    async def config(self) -> Document:
        _, store = self._open()
        with _store_errors():
            clusters, placement = await seeding.stored_configuration(store)
        return {
            "federation": self._settings.federation,
            "clusters": {
                name: {"index": one.index, "state": one.state, **_builtins(one.settings)}
                for name, one in sorted(clusters.items(), key=lambda item: item[1].index)
            },
            "placement": _builtins(placement.placement) if placement is not None else None,
            "placement_version": placement.version if placement is not None else 0,
            "process": {
                "instance": self._instance,
                "store": _builtins(self._settings.store),
                "proxy": _builtins(self._settings.proxy),
                "replicator": _builtins(self._settings.replicator),
                "admin": _builtins(self._settings.admin),
                "log": _builtins(self._settings.log),
            },
        }

    def _wanted(self, wanted: Mapping[str, object]) -> Settings:
        """The file's part that the store keeps, joined with this process's own."""
        for key in ("clusters", "placement"):
            if key not in wanted:
                raise Wrong(f"{key}: missing")
        try:
            settings = msgspec.structs.replace(
                self._settings,
                federation=msgspec.convert(wanted.get("federation", self._settings.federation), str),
                clusters=msgspec.convert(wanted["clusters"], dict[str, Cluster]),
                placement=msgspec.convert(wanted["placement"], Placement),
            )
            check(settings)
        except (msgspec.ValidationError, SettingsError) as error:
            raise Wrong(str(error)) from None
        if settings.federation != self._settings.federation:
            raise Wrong(f"federation: this is {self._settings.federation!r}, the file says {settings.federation!r}")
        return settings

    async def _differences(self, settings: Settings) -> tuple[list[seeding.Difference], int]:
        """The differences, and the store revision of the newest record that was compared."""
        _, store = self._open()
        with _store_errors():
            clusters = await store.range(models.CLUSTERS)
            placement = await store.get(models.PLACEMENT)
        records = {one.key[len(models.CLUSTERS) :]: decode(models.ClusterRecord, one.value) for one in clusters.items}
        rules = decode(models.PlacementRecord, placement.value) if placement is not None else None
        found = seeding.differences(settings, records, rules)
        newest = max([0, *(one.mod_revision for one in (*clusters.items, *([placement] if placement else [])))])
        return found, newest

    async def config_diff(self, wanted: Mapping[str, object]) -> Document:
        return documents.config_diff(*await self._differences(self._wanted(wanted)))

    async def config_apply(self, wanted: Mapping[str, object], revision: int | None, by: str) -> Document:
        settings = self._wanted(wanted)
        found, now = await self._differences(settings)
        if revision is not None and revision != now:
            raise Conflict("the configuration in the store has changed since the plan: look at the plan again")
        plan = documents.config_diff(found, now)
        _, store = self._open()
        try:
            with _store_errors():
                applied = await seeding.apply(store, settings)
        except (SettingsRefused, Unavailable) as error:
            await self._record(by, "config apply", plan, {"error": str(error)})
            if isinstance(error, SettingsRefused):
                raise Wrong(str(error)) from None
            raise
        _, after = await self._differences(settings)
        await self._record(by, "config apply", plan, {"changed": [one.key for one in applied]})
        return {**documents.config_diff(applied, after), "applied": True}

    # -- the store ------------------------------------------------------------------------------------------------

    async def store_export(self, by: str) -> Document:
        _, store = self._open()
        with _store_errors():
            document = await transfer.export(store)
        log.info("the store was exported", by=by, keys=len(document["items"]))
        return document

    async def store_import_plan(self, exported: Mapping[str, object]) -> Document:
        _, store = self._open()
        items = exported.get("items")
        if exported.get("format") != transfer.FORMAT or not isinstance(items, list):
            raise Wrong("export: this is no export of a store")
        with _store_errors():
            now = await store.range("")
        return {
            "applied": False,
            "keys": len(items),
            "replaces": sum(not one.lease for one in now.items),
            "exported_at_revision": exported.get("revision"),
            "same_store": exported.get("store") == store.record.store,
        }

    async def store_import(self, exported: Mapping[str, object], by: str) -> Document:
        plan = await self.store_import_plan(exported)
        _, store = self._open()
        try:
            with _store_errors():
                keys = await transfer.import_(store, exported, replace=True)
        except ValueError as error:
            raise Wrong(f"export: {error}") from None
        with trio.move_on_after(REOPEN):
            await self._core.reopened(other_than=store)
        await self._record(by, "store import", plan, {"keys": keys})
        return {**plan, "applied": True, "keys": keys}


class _store_errors:  # noqa: N801 (reads as a statement)
    """The store's failures as the API's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, StoreError):
            raise Unavailable(str(error)) from error


def _builtins(value: msgspec.Struct) -> dict[str, Any]:
    """As JSON, without passwords."""
    shown: Any = logging.redact(msgspec.to_builtins(value))
    return dict(shown)


def _found(document: Document | None, otherwise: str) -> Document:
    if document is None:
        raise NotFound(otherwise)
    return document
