"""What mirrors a command asks for, and what speaks against them, by what the federation knows."""

from __future__ import annotations

import msgspec
import pytest

from admin.mirror_plan import Edge, Wish, Wrong, choose, refusals, removal_refusals
from admin.mirrors import plan_remove, wish_of
from metadata_service import models
from metadata_service.models import MirrorRecord, StubRecord, link_key, mirror_key
from metadata_service.operations.records import MigrationRecord, Moving, migration_key
from metadata_service.records import encode
from metadata_service.view import View
from metadata_service.view_builder import build
from tests.fixtures.records import cluster, topic, topic_id


def mirror(name: str, source: str, target: str, **more: object) -> MirrorRecord:
    return MirrorRecord(topic=name, source=source, target=target, created=1.0, **{"mode": "ship", **more})  # type: ignore[arg-type]


def view(*mirrors: MirrorRecord, **records: bytes) -> View:
    """orders and orders-2 live on east; clusters east, west, south, and old, which was removed."""
    made: dict[str, bytes | None] = {
        models.CLUSTERS + name: encode(cluster(name, index)) for index, name in enumerate(("east", "west", "south"))
    }
    made[models.CLUSTERS + "old"] = encode(cluster("old", 9, state="removed"))
    for number, name in enumerate(("orders", "orders-2")):
        made[models.topic_key(name)] = encode(topic(name, "east", number + 1))
    for one in mirrors:
        made[mirror_key(one.target, one.topic, one.source)] = encode(one)
        made[link_key(one.source, one.target)] = encode(models.LinkRecord(source=one.source, target=one.target))
    return build(View(), made | records, {}, 1)


def why(seen: View, mode: str, *pairs: tuple[str, str], name: str = "orders") -> str:
    return " ".join(refusals(seen, name, [Edge(name, *pair) for pair in pairs], mode))  # type: ignore[arg-type]


def test_a_topic_that_is_being_moved_gets_no_mirror() -> None:
    moving = MigrationRecord(
        id="m1", topics={"orders": Moving(source_id="")}, source="east", target="west", step="ship"
    )
    lent = mirror("orders", "east", "west")
    seen = view(lent, **{migration_key("m1"): encode(moving)})
    assert "kfed operations m1" in why(seen, "ship", ("east", "south"))
    assert not why(seen, "ship", ("east", "west")) and not why(seen, "ship", ("east", "south"), name="orders-2")
    moved = encode(msgspec.structs.replace(moving, step="redirect"))
    assert not why(view(lent, **{migration_key("m1"): moved}), "ship", ("east", "south"))


def test_a_name_is_itself_and_a_pattern_matches_whole_names() -> None:
    known = {"orders", "orders-2", "my.topic", "mystopic", "__kfed_mirror", "__consumer_offsets"}
    assert choose(["orders"], known).names == ["orders"]
    assert choose(["my.topic"], known).names == ["my.topic"]
    assert choose(["orders.*", "orders"], known).names == ["orders", "orders-2"]
    assert choose(["rders.*", "no.such"], known).nothing == ["rders.*", "no.such"]
    assert choose([".*"], known).names == ["my.topic", "mystopic", "orders", "orders-2"]
    with pytest.raises(Wrong, match="no regular expression"):
        choose(["("], known)


def test_pairs_of_a_ship_and_of_a_full_mesh() -> None:
    ship = Wish(("t",), "east", ("west", "south"))
    assert ship.pairs() == [("east", "west"), ("east", "south")]
    mesh = Wish(("t",), "east", ("west", "south"), both_ways=True)
    assert len(set(mesh.pairs())) == 6 and mesh.mode == "exchange"


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (Wish(("t",), "east", ("east",)), "name another cluster"),
        (Wish(("t",), "east", ("west", "west")), "each cluster once"),
        (Wish(("t",), "nowhere", ("west",)), "there are: east, south, west"),
        (Wish(("t",), "east", ("old",)), "no cluster 'old'"),
        (Wish(("t",), "east", ("west",), rate=-1.0), "--rate"),
        (Wish((), "east", ("west",)), "at least one topic"),
    ],
)
def test_what_cannot_be_meant(wish: Wish, text: str) -> None:
    with pytest.raises(Wrong, match=text):
        wish.check(view())


def test_ships_are_a_tree_that_begins_where_the_topic_is_served() -> None:
    assert why(view(), "ship", ("east", "west"), ("east", "south")) == ""
    chained = view(mirror("orders", "east", "west"))
    assert why(chained, "ship", ("west", "south")) == ""
    assert why(chained, "ship", ("east", "west")) == ""  # it exists
    assert "ship from east" in why(view(), "ship", ("west", "south"))
    assert "east serves the topic" in why(view(), "ship", ("west", "east"))
    assert "shipped to from east already" in why(chained, "ship", ("south", "west"))
    assert "create it first" in why(view(), "ship", ("east", "west"), name="none")
    assert "not mirrored" in why(view(), "ship", ("east", "west"), name="__consumer_offsets")


def test_ships_and_exchanges_do_not_mix() -> None:
    shipped = view(mirror("orders", "east", "west"))
    mesh = ("east", "west"), ("west", "east")
    text = why(shipped, "exchange", *mesh)
    assert "exists as ship" in text and "kfed mirror remove orders --from east --to west --apply" in text
    exchanged = view(
        mirror("orders", "east", "west", mode="exchange"), mirror("orders", "west", "east", mode="exchange")
    )
    assert "exchanges it with others" in why(exchanged, "ship", ("south", "west"))
    assert why(exchanged, "ship", ("east", "south")) == ""
    assert why(exchanged, "exchange", *mesh) == ""
    assert "has to be one of the members" in why(view(), "exchange", ("west", "south"), ("south", "west"))
    removing = view(mirror("orders", "east", "west", state="removing"))
    assert "just being removed" in why(removing, "ship", ("east", "west"))


def test_removing() -> None:
    first, below = mirror("orders", "east", "west"), mirror("orders", "west", "south")
    seen = view(first, below)
    assert "kfed mirror remove orders --from west --to south" in " ".join(removal_refusals(seen, [first], False))
    assert removal_refusals(seen, [first, below], False) == []
    assert "operation 7" in removal_refusals(seen, [mirror("orders", "east", "west", operation="7")], False)[0]
    plan = plan_remove(seen, Wish(("orders.*",), "west", ("south",)), delete_copy=True)
    assert [one.target for one in plan.mirrors] == ["south"] and plan.problems == []
    assert "is deleted on south" in str(plan.document()["mirrors"])
    assert plan_remove(seen, Wish(("none",), "west", ("south",)), False).problems == [
        "none: no mirror of it west -> south; see kfed mirrors"
    ]
    back = mirror("orders", "west", "east", mode="exchange")
    assert "serves the topic" in removal_refusals(seen, [back], True)[0]


def test_a_copy_that_groups_have_positions_in_is_not_deleted() -> None:
    stub = StubRecord(topic="orders", cluster="west", topic_id=topic_id(9), partitions=3, borrowed=True, mirrored=True)
    shipped = mirror("orders", "east", "west")
    seen = view(shipped, **{models.stub_key("west", "orders"): encode(stub)})
    assert "would be lost" in removal_refusals(seen, [shipped], True)[0]
    assert removal_refusals(seen, [shipped], False) == []


def test_what_a_rule_wants_is_removed_by_the_rule() -> None:
    record = topic("orders", "east", 1, standbys=("west",))
    made = mirror("orders", "east", "west", rule=True)
    seen = view(made, **{models.topic_key("orders"): encode(record)})
    assert "kfed config apply" in removal_refusals(seen, [made], False)[0]
    assert removal_refusals(seen, [made], True) == []  # it is made anew
    assert removal_refusals(view(made), [made], False) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"topics": "t", "from": "east", "to": ["west"]},
        {"topics": ["t"], "from": "east", "to": ["west"], "rate": True},
        {"topics": ["t"], "from": 1, "to": ["west"]},
        {"topics": ["t"], "from": "east", "to": ["west"], "both_ways": 1},
    ],
)
def test_bodies_that_are_no_wish(body: dict[str, object]) -> None:
    with pytest.raises(Wrong):
        wish_of(body)


def test_a_body_is_a_wish() -> None:
    body = {"topics": ["t"], "from": "east", "to": ["west"], "rate": 5}
    assert wish_of(body) == Wish(("t",), "east", ("west",), False, 5.0)
