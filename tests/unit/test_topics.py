"""Records decided against a view that is behind the store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from metadata_service import models
from metadata_service.clients import Clients
from metadata_service.discovery import Discovery
from metadata_service.following import Following
from metadata_service.models import PlacementRecord
from metadata_service.records import encode
from metadata_service.store.contract import Store
from metadata_service.topics import Topics
from metadata_service.view import View
from metadata_service.view_builder import build
from tests.fixtures.records import cluster, physical, placement, topic


class Behind:
    """A store in which another worker has recorded the topic meanwhile, at revision 7."""

    async def get(self, key: str) -> SimpleNamespace:
        return SimpleNamespace(value=encode(topic("orders", "east", 1)), mod_revision=7)

    async def commit(self, conditions: object, operations: object) -> SimpleNamespace:
        return SimpleNamespace(succeeded=False, revision=7)


async def test_what_another_worker_has_recorded_is_waited_for() -> None:
    """A worker that was cut off from the store must not go on telling that there is no such topic."""
    records = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.PLACEMENT: encode(PlacementRecord(placement=placement("east"))),
    }
    following = SimpleNamespace(view=build(View(), records, {}, 3))
    topics = Topics(
        cast(Store, Behind()), cast(Following, following), cast(Clients, {}), cast(Discovery, SimpleNamespace())
    )
    found = {"orders": {"east": physical("orders", 1)}}
    assert await topics.judge(found, {"orders"}, {"east"}, adopted=True) == 7
