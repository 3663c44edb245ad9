"""The configuration file and the store: the file fills an empty store once; afterwards the store is the truth.

`seed` at every start, `differences` for `kfed config diff`, `apply` for `kfed config apply`.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from metadata_service.addresses import IndexesExhausted, next_index
from metadata_service.failures import SettingsRefused
from metadata_service.models import (
    CLUSTERS,
    FEATURES,
    FEDERATION,
    PLACEMENT,
    ClusterRecord,
    FeaturesRecord,
    FederationRecord,
    PlacementRecord,
)
from metadata_service.records import decode, encode, read, read_all, settle
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Put, Store, Unchanged
from runtime.settings import Cluster, Placement, Settings


@dataclass(frozen=True, slots=True)
class Difference:
    """Where file and store differ. `key` is the file's; the values are JSON, None where one side has none."""

    key: str
    change: Literal["add", "change", "remove"]
    stored: object
    configured: object


def new_cluster_id() -> str:
    """An id of the form Kafka gives clusters: 22 characters of URL-safe base64."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


async def seed(store: Store, settings: Settings) -> bool:
    """Fill an empty store from the file, in one commit. Returns whether it was this call that did.

    Raises:
        SettingsRefused: the store belongs to another federation, or the file names too many clusters for one commit.
        StoreError.
    """
    existing = await read(store, FEDERATION, FederationRecord)
    if existing is None:
        federation = FederationRecord(name=settings.federation, cluster_id=new_cluster_id(), created=time.time())
        puts = [
            Put(FEDERATION, encode(federation)),
            Put(PLACEMENT, encode(PlacementRecord(placement=settings.placement))),
            Put(FEATURES, encode(FeaturesRecord())),
        ]
        for index, (name, cluster) in enumerate(settings.clusters.items()):
            puts.append(Put(CLUSTERS + name, encode(ClusterRecord(name=name, index=index, settings=cluster))))
        try:
            done = await store.commit((Unchanged(FEDERATION, 0),), puts)
        except ValueError as error:
            raise SettingsRefused(f"clusters: start with fewer and add the others later: {error}") from None
        if done.succeeded:
            return True
        existing = await read(store, FEDERATION, FederationRecord)
    if existing is not None and existing.name != settings.federation:
        raise SettingsRefused(
            f"federation: the store holds the federation {existing.name!r}, the configuration says "
            f"{settings.federation!r}; use its own store, or change the name back"
        )
    return False


async def stored_configuration(store: Store) -> tuple[dict[str, ClusterRecord], PlacementRecord | None]:
    """What the store holds of what the file says."""
    return await read_all(store, CLUSTERS, ClusterRecord), await read(store, PLACEMENT, PlacementRecord)


def differences(
    settings: Settings, clusters: Mapping[str, ClusterRecord], placement: PlacementRecord | None
) -> list[Difference]:
    """What `apply` would change, in the order of the file. Pure."""
    found = []
    for name, wanted in settings.clusters.items():
        record = clusters.get(name)
        if record is None or record.state == "removed":
            found.append(Difference(f"clusters.{name}", "add", None, _plain(wanted)))
        elif record.settings != wanted:
            found.append(Difference(f"clusters.{name}", "change", _plain(record.settings), _plain(wanted)))
    for name, record in clusters.items():
        if record.state == "active" and name not in settings.clusters:
            found.append(Difference(f"clusters.{name}", "remove", _plain(record.settings), None))
    stored = placement.placement if placement is not None else None
    if stored != settings.placement:
        found.append(
            Difference(
                "placement", "change" if stored else "add", stored and _plain(stored), _plain(settings.placement)
            )
        )
    return found


def _plain(value: Cluster | Placement) -> object:
    """JSON without secrets."""
    plain = msgspec.to_builtins(value)
    if isinstance(value, Cluster) and value.sasl is not None and value.sasl.password is not None:
        plain["sasl"]["password"] = "***"  # noqa: S105
    return plain


async def apply(store: Store, settings: Settings) -> list[Difference]:
    """Make the store say what the file says; returns what was changed. May be repeated.

    A removed cluster keeps its record, index and addresses, and gets them back when it returns. New placement rules
    get a new version and move nothing that exists.

    Raises:
        SettingsRefused: more clusters than there are indexes.
        StoreError, Contended.
    """
    clusters, placement = await stored_configuration(store)
    changes = differences(settings, clusters, placement)
    for change in changes:
        if change.key == "placement":
            continue
        name = change.key.removeprefix("clusters.")
        if change.change == "remove":
            await settle(store, CLUSTERS + name, ClusterRecord, _removed)
        else:
            await _put_cluster(store, name, settings.clusters[name])
    # Last: rules name clusters.
    if any(change.key == "placement" for change in changes):

        def replaced(now: PlacementRecord | None) -> PlacementRecord:
            if now is not None and now.placement == settings.placement:
                return now
            return PlacementRecord(placement=settings.placement, version=now.version + 1 if now else 1)

        await settle(store, PLACEMENT, PlacementRecord, replaced)
    return changes


def _removed(now: ClusterRecord | None) -> ClusterRecord | None:
    return now and msgspec.structs.replace(now, state="removed")


async def _put_cluster(store: Store, name: str, wanted: Cluster) -> None:
    backoff = Backoff(0.01, 0.5)
    while True:
        everything = await store.range(CLUSTERS)
        records = {one.key[len(CLUSTERS) :]: decode(ClusterRecord, one.value) for one in everything.items}
        known = records.get(name)
        if known is not None:
            record = msgspec.structs.replace(known, settings=wanted, state="active")
        else:
            try:
                record = ClusterRecord(name=name, index=next_index(records.values()), settings=wanted)
            except IndexesExhausted as error:
                raise SettingsRefused(f"clusters.{name}: {error}") from None
        # The federation's record stands for the list of clusters: two additions at once must not give one index twice.
        guard = await store.get(FEDERATION)
        if guard is None:
            raise SettingsRefused("the store is empty: start the federation first")
        now = {one.key: one.mod_revision for one in everything.items}
        conditions = (
            Unchanged(FEDERATION, guard.mod_revision),
            Unchanged(CLUSTERS + name, now.get(CLUSTERS + name, 0)),
        )
        operations = [Put(CLUSTERS + name, encode(record))]
        if known is None:
            operations.append(Put(FEDERATION, guard.value))
        if (await store.range(CLUSTERS)).items == everything.items and (
            await store.commit(conditions, operations)
        ).succeeded:
            return
        await backoff.pause()
