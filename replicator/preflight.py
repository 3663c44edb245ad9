"""What a target must be like, so that it neither changes nor drops what is copied. Pure: configurations in, words out.

Configurations are name -> value as DescribeConfigs gives them, defaults included. `now` is Unix ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DAY_MS = 86_400_000
FOREVER = (1 << 63) - 1
DEFAULT_MAX_MESSAGE = 1_048_588

# Followed from the source as they are. Everything about size and time is widened while a ship is under way.
FOLLOWED = (
    "cleanup.policy",
    "delete.retention.ms",
    "file.delete.delay.ms",
    "max.compaction.lag.ms",
    "min.cleanable.dirty.ratio",
    "min.compaction.lag.ms",
    "retention.bytes",
    "retention.ms",
    "segment.bytes",
    "segment.ms",
)
# What a mirror needs of its target, whatever the source has. A closed source has a max.message.bytes of its own that is
# never followed.
SHIPPING = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(FOREVER),
    "message.timestamp.after.max.ms": str(FOREVER),
    "compression.type": "producer",
}


# Settings that change or drop records without an error: nothing is copied while a target has one of them wrong. What
# the others would do shows by itself, as a refused batch.
CHANGES_SILENTLY = frozenset(
    {"message.timestamp.type", "compression.type", "cleanup.policy", "retention.ms", "retention.bytes", "partitions"}
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing about a target. `setting` and `wanted` are the way out; nothing is changed unasked."""

    setting: str
    has: str
    wanted: str
    why: str

    def __str__(self) -> str:
        return f"{self.setting} is {self.has}, needs {self.wanted}: {self.why}"


def _number(configs: Mapping[str, str | None], name: str, default: int) -> int:
    value = configs.get(name)
    return default if value is None else int(value)


def _limit(value: int) -> int:
    """-1 is without limit."""
    return FOREVER if value < 0 else value


def problems(
    source: Mapping[str, str | None],
    target: Mapping[str, str | None],
    *,
    oldest: int | None = None,
    now: int = 0,
    source_replicas: int = 1,
    target_replicas: int = 1,
) -> list[Problem]:
    """What would change or drop records on the target; empty where a mirror may start.

    `oldest` is the timestamp of the source's oldest record (None: it has none). `source_replicas` bounds what
    min.insync.replicas can mean.
    """
    out: list[Problem] = []

    def need(setting: str, has: object, wanted: object, why: str) -> None:
        out.append(Problem(setting, str(has), str(wanted), why))

    if target.get("message.timestamp.type", "CreateTime") != "CreateTime":
        need("message.timestamp.type", "LogAppendTime", "CreateTime", "it would replace every timestamp")
    theirs, ours = (_number(one, "max.message.bytes", DEFAULT_MAX_MESSAGE) for one in (source, target))
    if ours < theirs:
        need("max.message.bytes", ours, theirs, "larger batches would be refused")
    policy = target.get("compression.type") or "producer"
    if policy != "producer":
        need("compression.type", policy, "producer", "the broker would compress every batch anew")
    for name in ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms"):
        default = FOREVER if "before" in name else 3_600_000
        theirs, ours = _number(source, name, default), _number(target, name, default)
        appended = source.get("message.timestamp.type") == "LogAppendTime"
        age = 0 if oldest is None else max(now - oldest, 0)
        # What the source took when it was young is old by now.
        wanted = FOREVER if "before" in name else theirs
        if ours < wanted and not (appended and "after" in name) and (("after" in name) or age >= ours or ours < theirs):
            need(name, ours, wanted, "records with such timestamps would be refused")
    deletes = "delete" in (target.get("cleanup.policy") or "delete")
    for name, default in (("retention.ms", 7 * DAY_MS), ("retention.bytes", -1)):
        theirs, ours = _limit(_number(source, name, default)), _limit(_number(target, name, default))
        if deletes and ours < theirs:
            need(name, ours, -1 if theirs == FOREVER else theirs, "records would be deleted earlier than at the source")
    if deletes and "delete" not in (source.get("cleanup.policy") or "delete"):
        need(
            "cleanup.policy",
            target.get("cleanup.policy") or "delete",
            source["cleanup.policy"],
            "records would be deleted",
        )
    if "compact" in (target.get("cleanup.policy") or "") and "compact" not in (
        source.get("cleanup.policy") or "delete"
    ):
        need("cleanup.policy", target["cleanup.policy"], source.get("cleanup.policy") or "delete", "it would compact")
    floor = min(_number(source, "min.insync.replicas", 1), source_replicas)
    if min(_number(target, "min.insync.replicas", 1), target_replicas) < floor:
        has = _number(target, "min.insync.replicas", 1)
        need("min.insync.replicas", has, floor, "acknowledged records would be on fewer brokers than at the source")
    return out


def creation(
    source: Mapping[str, str | None], changed: set[str], *, max_message: int | None = None, replicas: int = 1
) -> dict[str, str]:
    """The configuration to create a ship's target with: what is followed, where the source `changed` it, and SHIPPING.

    `max_message` is the source's own limit where the topic is closed at the moment. `replicas` bounds what its
    min.insync.replicas can mean, on both sides.
    """
    out = {name: value for name in FOLLOWED if name in changed and (value := source.get(name)) is not None}
    if (floor := min(_number(source, "min.insync.replicas", 1), replicas)) > 1:
        out["min.insync.replicas"] = str(floor)
    size = max_message if max_message is not None else _number(source, "max.message.bytes", DEFAULT_MAX_MESSAGE)
    return {**out, **SHIPPING, "max.message.bytes": str(max(size, DEFAULT_MAX_MESSAGE))}


def joining(source: Mapping[str, str | None], changed: set[str]) -> dict[str, str]:
    """The configuration to create a member of an exchange with: clients write to it as to the source, so it takes what
    that takes."""
    names = {*FOLLOWED, *SHIPPING, "max.message.bytes", "min.insync.replicas"} & changed
    return {name: value for name in sorted(names) if (value := source.get(name)) is not None}


def shipping_drift(target: Mapping[str, str | None]) -> dict[str, str | None]:
    """What to alter on a target that has served, so that it takes what is shipped."""
    return {name: value for name, value in SHIPPING.items() if target.get(name, value) != value}


def drift(source: Mapping[str, str | None], target: Mapping[str, str | None]) -> dict[str, str | None]:
    """What to alter on the target so that it follows the source.

    By what is in force, whoever has set it: a setting taken away at the source goes back to the source's default, and
    clusters whose defaults differ keep records equally long.
    """
    return {
        name: source[name]
        for name in FOLLOWED
        if source.get(name) is not None and name in target and source[name] != target[name]
    }
