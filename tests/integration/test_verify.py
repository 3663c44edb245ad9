"""`kfed verify` against the admin API over real clusters: several mirrors, in many pieces, from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from admin import verification
from admin.contract import Document
from admin.verification import Verification
from cli.main import main
from metadata_service.models import MirrorRecord
from metadata_service.view import View
from replicator.auditor import Auditor
from tests.fixtures.audits import audited_when
from tests.fixtures.mirrors import create
from tests.fixtures.names import Names
from tests.integration.test_admin_api import FakeOffice, here, serving
from tests.integration.test_mirror_cases import batch, caught_up, clients, mirrored, write
from tools.local_cluster import Cluster


class Verifying(FakeOffice):
    """An office that knows some mirrors."""

    def __init__(self, member: SimpleNamespace) -> None:
        super().__init__()
        self.member = member
        self.verification = Verification()
        self.pieces = 0

    async def verify(self, asked: Mapping[str, object]) -> Document:
        self.pieces += 1
        if self.pieces == 2:
            self.verification = Verification()  # another process answers: the cursor is enough
        return await self.verification.verify(self.member, asked)  # type: ignore[arg-type]


async def test_mirrors_are_verified_from_the_command_line(
    east: Cluster, west: Cluster, names: Names, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, bills, absent = names.topic("orders"), names.topic("bills"), names.topic("absent")
    for cluster in (east, west):
        await create(cluster, orders, 3)
        await create(cluster, bills, 1)
    monkeypatch.setattr(verification, "Auditor", partial(Auditor, read_bytes=2000))  # a batch each time
    monkeypatch.setattr(verification, "BUDGET", 0.0)
    async with clients(east, west) as (there, target):
        async with mirrored(there, target, orders, 3) as first, mirrored(there, target, bills) as second:
            for number in range(12):
                await write(there, orders, batch(b"%d" % number * 2000, b"x"), partition=number % 3)
            await write(there, bills, batch(b"1", b"2"))
            await caught_up(first, orders, 3)
            await caught_up(second, bills)
            (at,) = await write(target, orders, batch(b"stranger"), partition=1)
            for topic, count in ((orders, 24), (bills, 2)):
                await audited_when(there, target, topic, count)
        records = [
            MirrorRecord(topic=topic, source="east", target="west", mode="ship", created=0)
            for topic in (orders, bills, absent)
        ]
        by_name = {one.name: one for one in (there, target)}
        member = SimpleNamespace(
            view=View(mirrors={(one.target, one.topic, one.source): one for one in records}),
            clients=SimpleNamespace(get=by_name.get),
        )
        office = Verifying(member)
        async with serving(office, here()) as url:

            async def kfed(*line: str) -> tuple[int, str]:
                status = await trio.to_thread.run_sync(main, ["verify", *line, "--admin", url])
                return status, capsys.readouterr().out

            status, text = await kfed(bills)
            assert (status, text.splitlines()[-1]) == (0, "Identical.")
            status, text = await kfed(orders, bills, "--json", "--rate", "10M")
            found: dict[str, Any] = json.loads(text)
            assert status == 1 and not found["identical"] and office.pieces > 12
            assert [(one["topic"], one["partition"], one["records"]["identical"]) for one in found["partitions"]] == [
                *sorted([(bills, 0, 2), *((orders, n, 8) for n in range(3))])
            ]
            assert [
                (one["topic"], one["partition"], each["kind"], each["source"], each["target"])
                for one in found["partitions"]
                for each in one["findings"]
            ] == [(orders, 1, "extra", None, [at, at])]
            buckets = [each for one in found["partitions"] if one["topic"] == bills for each in one["buckets"]]
            assert buckets and all(one["source_digest"] == one["target_digest"] for one in buckets)
            status, text = await kfed(orders)
            assert status == 1 and f"{orders}-1 east -> west: extra: 1 record: of no mirror, west {at}" in text
            status, text = await kfed(absent)
            assert status == 1 and f"{absent} east -> west: east has no topic '{absent}'" in text
            assert (await kfed("unheard-of"))[0] == 1
