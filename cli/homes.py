"""`groups NAME --move-home CLUSTER`, and `eject TOPIC`: the plan, and how far it is."""

from __future__ import annotations

import argparse
import time
import urllib.parse
from typing import Any

from cli import output
from cli.api import ApiError
from cli.output import Column, table
from cli.show import ask
from cli.usage import DONE, FAILED, Usage

AWAY = 60.0  # seconds the admin API may be away while something is waited for
POLL = 0.2
LONGEST = 300.0  # the operation ends by itself long before
SERVED = ("clean", "done")  # the new home serves
OUT = ("done",)
STEPS = {
    "prepare": "what the new home lacks is made",
    "gather": "members commit and rejoin",
    "close": "every proxy has to know",
    "copy": "positions are copied",
    "undo": "it is given up",
    "clean": "the new home serves; the old one is being emptied",
    "leave": "it leaves the records",
    "wait": "every proxy has to know",
    "commits": "positions are written",
}
MEMBERS: tuple[Column, ...] = (
    ("member", lambda row: row["instance"] or row["member"]),
    ("client", "client"),
    ("host", "host"),
    ("protocol", "protocol"),
)
TOPICS: tuple[Column, ...] = (
    ("topic", "topic"),
    ("on", "cluster"),
    ("partitions", "partitions"),
    ("positions", "positions"),
    ("stand-in", "stand_in"),
)


GROUPS: tuple[Column, ...] = (
    ("group", "group"),
    ("home", "home"),
    ("positions", "positions"),
    ("written", "written"),
    ("below log start", "below_log_start"),
)


def run(options: argparse.Namespace) -> int:
    return _eject(options) if options.command == "eject" else _move(options)


def _eject(options: argparse.Namespace) -> int:
    path = f"topics/{urllib.parse.quote(options.topic, safe='')}/eject"
    result = ask(options, path, "POST", {"undo": options.undo, "apply": options.apply})
    if options.undo:
        if options.json:
            output.document(result)
        elif result["applied"]:
            print(f"{result['topic']}: the federation may have it again, from {', '.join(result['clusters'])}")
        else:
            print(f"{result['topic']}: taken back from {', '.join(result['clusters'])}; do it with --apply.")
        return DONE
    if not options.json:
        output.fields((key, result[key]) for key in ("topic", "cluster", "partitions", "moved"))
        if result["groups"]:
            print()
            table(GROUPS, result["groups"])
        _sentences(result)
    return _begun(options, result, OUT, f"{result['topic']}: an ordinary topic of {result['cluster']} now")


def _move(options: argparse.Namespace) -> int:
    if options.name is None:
        raise Usage("groups --move-home needs the NAME of a group")
    if options.home is not None:
        raise Usage("either --home (decide) or --move-home (move)")
    path = f"groups/{urllib.parse.quote(options.name, safe='')}/move"
    result = ask(options, path, "POST", {"cluster": options.move_home, "apply": options.apply})
    if not options.json:
        _plan(result)
    return _begun(options, result, SERVED, f"{result['group']}: at home on {result['home']['to']}")


def _begun(options: argparse.Namespace, result: dict[str, Any], good: tuple[str, ...], done: str) -> int:
    """Waits where that is wanted; `done` is said at the end, at one of the `good` steps."""
    status = FAILED if result["problems"] else DONE
    if result["applied"] and options.wait:
        ended = _wait(options, result["operation"], good)
        result = {**result, "ended": ended}
        reason = ended["result"].get("reason")
        status = DONE if ended["step"] in good else FAILED
        if not options.json:
            said = done if status == DONE else "It is as it was"
            print(f"\n{said}" + (f": {reason}" if reason else ""))
    elif not options.json and result["applied"]:
        print(f"\nBegun: kfed operations {result['operation']}")
    if options.json:
        output.document(result)
    return status


def _plan(result: dict[str, Any]) -> None:
    home = result["home"]
    output.fields(
        (
            ("group", result["group"]),
            ("home", f"{home['from']} -> {home['to']}"),
            ("kind", result["kind"]),
            ("state", result["state"]),
            ("protocol", result["protocol"]),
            ("positions", result["positions"]),
            ("lag", result["lag"]),
        )
    )
    for title, columns, rows in (("members", MEMBERS, result["members"]), ("topics", TOPICS, result["topics"])):
        if rows:
            print(f"\n{title}")
            table(columns, rows)
    _sentences(result)


def _sentences(result: dict[str, Any]) -> None:
    for title in ("notes", "problems"):
        if result[title]:
            print()
            for one in result[title]:
                print(f"{title[:-1]}: {one}")
    if not result["applied"]:
        print("\nNothing was changed" + ("." if result["problems"] else "; do it with --apply."))


def _wait(options: argparse.Namespace, identifier: str, good: tuple[str, ...]) -> dict[str, Any]:
    """Until it is at one of these steps, or has ended otherwise. Raises ApiError."""
    begun = time.monotonic()
    away_since: float | None = None
    shown = ""
    while True:
        try:
            now: dict[str, Any] = ask(options, f"operations/{urllib.parse.quote(identifier, safe='')}")
        except ApiError as error:
            if error.status not in (0, 503, 504):
                raise
            away_since = time.monotonic() if away_since is None else away_since
            if time.monotonic() - away_since > AWAY:
                raise
        else:
            away_since = None
            if now["step"] in good or now["state"] != "running":
                return now
            if not options.json and now["step"] != shown:
                shown = now["step"]
                print(f"{shown}: {STEPS.get(shown, '')}", flush=True)
        if time.monotonic() - begun > LONGEST:
            raise ApiError(f"operation {identifier} has not ended after {LONGEST:g} s: is a controller active?")
        time.sleep(POLL)
