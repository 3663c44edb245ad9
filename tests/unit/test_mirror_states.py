"""What pausing, resuming and rebuilding mirrors would do, by what the federation knows."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from admin.mirror_plan import Wish, Wrong
from admin.mirror_states import StatePlan, plan
from metadata_service.models import LinkRecord, MirrorRecord
from metadata_service.view import View


def mirror(target: str, source: str = "east", topic: str = "orders", **more: object) -> MirrorRecord:
    made = MirrorRecord(topic=topic, source=source, target=target, mode="ship", created=1.0)
    return msgspec.structs.replace(made, **more)


def view(*mirrors: MirrorRecord, links: Mapping[tuple[str, str], LinkRecord] | None = None) -> View:
    return View(mirrors={(one.target, one.topic, one.source): one for one in mirrors}, links=links or {})


def wish(*topics: str, target: str = "west") -> Wish:
    return Wish(topics, "east", (target,))


def changed(made: StatePlan) -> list[str]:
    return [one.topic for one in made.mirrors]


def test_only_what_changes() -> None:
    seen = view(mirror("west"), mirror("west", topic="bills", state="paused"), mirror("south"))
    assert changed(plan(seen, wish("orders", "bills"), "pause")) == ["orders"]
    assert changed(plan(seen, wish(".*"), "resume")) == ["bills"]
    assert sorted(changed(plan(seen, wish(".*"), "rebuild"))) == ["bills", "orders"]
    assert plan(seen, wish("nothing"), "pause").problems == ["nothing: no mirror of it east -> west; see kfed mirrors"]


def test_whole_links() -> None:
    links = {("east", "west"): LinkRecord(source="east", target="west")}
    seen = view(mirror("west"), links=links)
    (link,) = plan(seen, wish(), "pause").links
    assert (link.source, link.target) == ("east", "west")
    assert plan(seen, wish(), "resume").links == []
    assert plan(seen, wish(target="south"), "pause").problems
    with pytest.raises(Wrong):
        plan(seen, wish(), "rebuild")


@pytest.mark.parametrize(
    ("mirrors", "why"),
    [
        ([mirror("west", operation="m1")], "operation m1"),
        ([mirror("west", state="removing")], "removed"),
        ([mirror("west", mode="exchange")], "would be lost"),
        ([mirror("west"), mirror("south", source="west")], "kfed mirror remove orders --from west --to south"),
    ],
)
def test_refused(mirrors: list[MirrorRecord], why: str) -> None:
    (problem,) = plan(view(*mirrors), wish("orders"), "rebuild").problems
    assert why in problem
