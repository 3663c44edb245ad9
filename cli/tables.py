"""The admin API's documents as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cli.output import Column, Row, fields, table, text, when

Document = Mapping[str, Any]


def _ports(row: Row) -> str:
    return text([port for port in row["ports"].values() if port is not None])


def _firsts(first: Mapping[str, int]) -> str | None:
    """Where an epoch begins, by partition."""
    shown = [f"{number}: {offset}" for number, offset in sorted(first.items(), key=lambda one: int(one[0]))]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") if shown else None


def few(names: list[str]) -> str:
    return text(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _seconds(value: object) -> str:
    return f"{value:.1f} s" if isinstance(value, int | float) else "-"


CLUSTERS: tuple[Column, ...] = (
    ("cluster", "name"),
    ("index", "index"),
    ("state", "state"),
    ("brokers", lambda row: len(row["brokers"])),
    ("topics", "topics"),
    ("groups", "groups"),
    ("stubs", "stubs"),
    ("reason", "reason"),
    ("bootstrap", "bootstrap"),
)
BROKERS: tuple[Column, ...] = (
    ("broker", "broker"),
    ("node", "node"),
    ("ports", _ports),
    ("address", "address"),
    ("rack", "rack"),
    ("error", "error"),
)
TOPICS: tuple[Column, ...] = (
    ("topic", "name"),
    ("cluster", "cluster"),
    ("partitions", "partitions"),
    ("epoch", "epoch"),
    ("groups", "groups"),
    ("producers", "producers"),
    ("standbys", "standbys"),
    ("also on", "conflict"),
)
PARTITIONS: tuple[Column, ...] = (
    ("partition", "partition"),
    ("leader", "leader"),
    ("replicas", "replicas"),
    ("in sync", "isr"),
)
TIMELINE: tuple[Column, ...] = (
    ("epoch", "epoch"),
    ("cluster", "cluster"),
    ("topic id", "topic_id"),
    ("from offset", lambda row: _firsts(row["first_offsets"])),
)
GROUPS: tuple[Column, ...] = (
    ("group", "name"),
    ("home", "home"),
    ("state", "state"),
    ("type", "type"),
    ("lag", "lag"),
    ("topics", "topics"),
    ("counts on", "carry"),
    ("conflict", "conflict"),
)
LAGS: tuple[Column, ...] = (("name", "name"), ("lag", "lag"), ("partitions", "partitions"), ("state", "state"))
PROXIES: tuple[Column, ...] = (
    ("instance", "instance"),
    ("worker", "worker"),
    ("pid", "pid"),
    ("alive", "alive"),
    ("connections", "connections"),
    ("revision", "acknowledged"),
    ("behind", "behind"),
    ("restarts", "restarts"),
    ("started", lambda row: when(row["started"])),
    ("host", "host"),
    ("version", "version"),
)
OPERATIONS: tuple[Column, ...] = (
    ("id", "id"),
    ("kind", "kind"),
    ("state", "state"),
    ("step", "step"),
    ("from", "source"),
    ("to", "target"),
    ("topics", lambda row: few(row.get("topics", []))),
    ("started", lambda row: when(row["started"])),
    ("by", "by"),
)
HISTORY: tuple[Column, ...] = (
    ("when", lambda row: when(row["at"])),
    ("who", "by"),
    ("what", "what"),
    ("result", "result"),
)
TARGETS: Mapping[str, str] = {
    "create": "is created",
    "use": "is there, and used",
    "reopen": "a closed stand-in, is opened",
    "exists": "the mirror exists",
}
MIRROR_PLAN: tuple[Column, ...] = (
    ("topic", "topic"),
    ("from", "source"),
    ("to", "target"),
    ("mode", "mode"),
    ("partitions", "partitions"),
    ("target", lambda row: TARGETS.get(row.get("target_topic", ""), row.get("target_topic"))),
    ("partitions become", "expand_to"),
    ("copy", "copy"),
    ("state", lambda row: _turn(row.get("state"))),
    ("copied again", lambda row: row.get("again")),
    ("notes", "notes"),
)
MIRRORS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("mirror", lambda row: f"{row['source']} -> {row['target']}"),
    ("mode", "mode"),
    ("condition", "condition"),
    ("lag", "lag.records"),
    ("lag bytes", lambda row: size(row["lag"]["bytes"])),
    ("lag seconds", "lag.seconds"),
    ("rate", lambda row: speed(row["rate"])),
    ("worker", "workers"),
    ("made by", lambda row: None if row["made_by"] == "operator" else row["made_by"]),
    ("problems", "problems"),
)
MIRROR_PARTITIONS: tuple[Column, ...] = (
    ("mirror", "mirror"),
    ("partition", "partition"),
    ("condition", "condition"),
    ("position", "position"),
    ("end", "end"),
    ("lag", "lag.records"),
    ("lag bytes", lambda row: size(row["lag"]["bytes"])),
    ("lag seconds", "lag.seconds"),
    ("foreign", lambda row: row["foreign"] or None),
    ("overtaken", lambda row: row["overtaken"] or None),
    ("detail", "detail"),
)
FINDINGS: tuple[Column, ...] = (
    ("severity", "severity"),
    ("kind", "kind"),
    ("subject", "subject"),
    ("what is wrong", "what"),
    ("mend it with", "mend"),
)
CHANGES: tuple[Column, ...] = (("key", "key"), ("change", "action"), ("from", "from"), ("to", "to"))


def show(command: str, document: Document, *, one: bool) -> None:
    """The document of a command, `one`: of a single thing."""
    (_SINGLE if one else _LISTS)[command](document)


def changes(document: Document) -> None:
    """A plan, or what was done."""
    rows = [row for one in document["changes"] for row in _leaves(one["key"], one["action"], one["from"], one["to"])]
    table(CHANGES, rows, empty="The store says what the file says.", fold=True)
    if document["applied"] and document["changes"]:
        print("\nDone.")


def home(document: Document) -> None:
    """Where a group is at home: a plan, or what was done."""
    titles = (("home", "home"), ("conflict", "waits on"), ("carry", "counts on"))
    table(CHANGES, [{"key": title, "action": "", **document[key]} for key, title in titles])
    print("\nDone." if document["applied"] else "\nNothing was changed; do it with --apply.")


def mirror_plan(document: Document) -> None:
    """Mirrors to be created or removed: a plan, or what was done."""
    table(MIRROR_PLAN, document["mirrors"], empty="no mirrors", fold=True)
    alike: dict[tuple[tuple[str, object], ...], list[str]] = {}
    for one in document["mirrors"]:
        if one.get("configuration"):
            alike.setdefault(tuple(one["configuration"].items()), []).append(f"{one['topic']} on {one['target']}")
    for settings, targets in alike.items():
        more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
        print(f"\nconfiguration of {text(targets[:3])}{more}")
        table((("setting", "setting"), ("value", "value")), [{"setting": name, "value": one} for name, one in settings])
    for one in document.get("links", []):
        if "state" in one:
            print(f"link {one['source']} -> {one['target']}: {_turn(one['state'])}")
    rates = [one for one in document.get("links", []) if "rate" in one and one["rate"]["from"] != one["rate"]["to"]]
    for one in rates:
        before, after = (speed(value) or "no limit" for value in (one["rate"]["from"], one["rate"]["to"]))
        print(f"\nrate of {one['source']} -> {one['target']}: {before} becomes {after}")
    if document["problems"]:
        print("\nNothing is done, because of this:")
        for problem in document["problems"]:
            print(f"- {text(problem)}")
    elif document.get("waiting"):
        print("\nIt is recorded and goes on by itself, but is not done yet (kfed mirrors, kfed doctor):")
        for name, why in document["waiting"].items():
            print(f"- {name}: {text(why)}")
    else:
        print("\nDone." if document["applied"] else "\nNothing was changed; do it with --apply.")


def _turn(state: Mapping[str, str] | None) -> str | None:
    return None if state is None else f"{state['from']} becomes {state['to']}"


def size(value: object) -> str | None:
    """Bytes as people read them."""
    if not isinstance(value, int | float):
        return None
    size = float(value)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def speed(value: object) -> str | None:
    return f"{size(value)}/s" if isinstance(value, int | float) and value else None


def _leaves(key: str, action: str, before: object, after: object) -> Iterator[Row]:
    """What differs, as deep as both sides have it."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys([*before, *after]):
            yield from _leaves(f"{key}.{name}", action, before.get(name), after.get(name))
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and any(isinstance(one, Mapping) for one in (*before, *after))
    ):
        for n in range(max(len(before), len(after))):
            pair = (one[n] if n < len(one) else None for one in (before, after))
            yield from _leaves(f"{key}[{n}]", action, *pair)
    elif before != after:
        yield {"key": key, "action": action, "from": _set(before), "to": _set(after)}


def _set(value: object) -> object:
    """Without the keys that are not set."""
    if isinstance(value, Mapping):
        return {key: _set(one) for key, one in value.items() if one not in (None, [], False)}
    return value


def _status(document: Document) -> None:
    controller = document["controller"]
    fields(
        [
            ("federation", document["federation"]),
            ("cluster id", document["cluster_id"]),
            ("store", document["store"]["where"]),
            ("view", f"revision {document['revision']}, {_seconds(document['store']['view_age'])} old"),
            ("controller", f"{controller['instance']} (pid {controller['pid']})" if controller else None),
            ("topics", document["topics"]),
            ("groups", document["groups"]),
            ("mirrors", _mirrors_line(document["mirrors"])),
            ("proxies", document["proxies"]),
            ("connections", document["connections"]),
            ("conflicts", document["conflicts"]),
            ("doctor", {level: count for level, count in document["findings"].items() if count} or "nothing is wrong"),
        ]
    )
    print()
    table(
        (("cluster", "name"), ("state", "state"), ("since", lambda row: when(row["since"])), ("reason", "reason")),
        document["clusters"],
    )
    if document["operations"]:
        print()
        table(OPERATIONS, document["operations"])


def _clusters(document: Document) -> None:
    table(CLUSTERS, document["clusters"])
    print()
    table(
        BROKERS,
        [
            {**broker, "broker": f"{cluster['name']}/{broker['id']}"}
            for cluster in document["clusters"]
            for broker in cluster["brokers"]
        ],
        empty="no broker is known",
    )


def _topic(document: Document) -> None:
    writers = document["producers"]
    fields(
        [
            ("topic", document["name"]),
            ("id", document["id"]),
            ("cluster", document["cluster"]),
            ("partitions", document["partitions"]),
            ("adopted", document["adopted"]),
            ("also on", document["conflict"]),
            ("stubs", document["stubs"]),
            ("producers", writers),
            ("last write", when(document["last_write"])),
        ]
    )
    print()
    table(TIMELINE, document["timeline"])
    print()
    table(PARTITIONS, document["partition_details"] or [], empty="its cluster does not show it at present")
    print()
    table(
        LAGS, _named(document["groups_lag"]), empty="no group was seen reading it; this is looked at every 15 seconds"
    )


def _group(document: Document) -> None:
    fields(
        [
            ("group", document["name"]),
            ("home", document["home"]),
            ("being moved to", document["moving_to"]),
            ("state", document["state"]),
            ("type", document["type"]),
            ("lag", document["lag"]),
            ("commits count on", document["carry"]),
            ("not asked yet", document["unasked"]),
            ("in conflict with", document["conflict"]),
        ]
    )
    print()
    table(LAGS, _named(document["topic_lags"]), empty="no commits were seen; they are looked at every 15 seconds")


def _named(by_name: Mapping[str, Row]) -> list[Row]:
    """Unknown lags (-1) are shown as such."""
    return [
        {**one, "name": name, "lag": one["lag"] if one["lag"] >= 0 else None} for name, one in sorted(by_name.items())
    ]


def _topic_mirrors(document: Document) -> None:
    table(MIRRORS, document["mirrors"])
    print()
    rows = [
        {**part, "mirror": f"{one['source']} -> {one['target']}"}
        for one in document["mirrors"]
        for part in one["partitions"]
    ]
    table(MIRROR_PARTITIONS, rows, empty="no worker has said anything of its partitions yet", fold=True)


def _mirrors_line(mirrors: Mapping[str, Any]) -> str:
    if not mirrors["count"] or mirrors["lag"] is None:
        return str(mirrors["count"])
    return f"{mirrors['count']}, at most {mirrors['lag']} records behind ({_seconds(mirrors['lag_seconds'])})"


def _operation(document: Document) -> None:
    from cli import moves

    if document.get("migration") is not None:
        moves.operation(document)
        return
    shown = [(key, value) for key, value in document.items() if key != "migration"]
    fields([(key, when(value) if key == "started" else value) for key, value in shown])


def _listed(key: str, columns: tuple[Column, ...], empty: str, fold: bool = False) -> Callable[[Document], None]:
    return lambda document: table(columns, document[key], empty=empty, fold=fold)


_LISTS: Mapping[str, Callable[[Document], None]] = {
    "status": _status,
    "clusters": _clusters,
    "topics": _listed("topics", TOPICS, "no topics"),
    "groups": _listed("groups", GROUPS, "no groups"),
    "mirrors": _listed("mirrors", MIRRORS, "no mirrors"),
    "proxies": _listed("proxies", PROXIES, "no proxy is registered"),
    "operations": _listed("operations", OPERATIONS, "no operations"),
    "history": _listed("history", HISTORY, "nothing was changed yet", fold=True),
    "doctor": _listed("findings", FINDINGS, "Nothing is wrong.", fold=True),
}
_SINGLE: Mapping[str, Callable[[Document], None]] = {
    "topics": _topic,
    "groups": _group,
    "mirrors": _topic_mirrors,
    "operations": _operation,
}
