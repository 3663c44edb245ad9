"""`groups NAME --move-home CLUSTER`: the plan, and how far it is."""

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
SERVED = ("clean", "done")
STEPS = {
    "prepare": "what the new home lacks is made",
    "gather": "members commit and rejoin",
    "close": "every proxy has to know",
    "copy": "positions are copied",
    "undo": "it is given up",
    "clean": "the new home serves; the old one is being emptied",
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


def run(options: argparse.Namespace) -> int:
    if options.name is None:
        raise Usage("groups --move-home needs the NAME of a group")
    if options.home is not None:
        raise Usage("either --home (decide) or --move-home (move)")
    path = f"groups/{urllib.parse.quote(options.name, safe='')}/move"
    result = ask(options, path, "POST", {"cluster": options.move_home, "apply": options.apply})
    if not options.json:
        _plan(result)
    status = FAILED if result["problems"] else DONE
    if result["applied"] and options.wait:
        ended = _wait(options, result["operation"])
        result = {**result, "ended": ended}
        status = DONE if ended["step"] in SERVED else FAILED
        if not options.json:
            _ended(result, ended)
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
    for title in ("notes", "problems"):
        if result[title]:
            print()
            for one in result[title]:
                print(f"{title[:-1]}: {one}")
    if not result["applied"]:
        print("\nNothing was changed" + ("." if result["problems"] else "; do it with --apply."))


def _ended(result: dict[str, Any], ended: dict[str, Any]) -> None:
    reason = ended["result"].get("reason")
    if ended["step"] in SERVED:
        print(f"\n{result['group']}: at home on {result['home']['to']}" + (f"; but {reason}" if reason else ""))
    else:
        print(f"\n{result['group']}: still at home on {result['home']['from']}: {reason or ended['state']}")


def _wait(options: argparse.Namespace, identifier: str) -> dict[str, Any]:
    """Until the new home serves, or it has ended otherwise. Raises ApiError."""
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
            if now["step"] in SERVED or now["state"] != "running":
                return now
            if not options.json and now["step"] != shown:
                shown = now["step"]
                print(f"{shown}: {STEPS.get(shown, '')}", flush=True)
        if time.monotonic() - begun > LONGEST:
            raise ApiError(f"operation {identifier} has not ended after {LONGEST:g} s: is a controller active?")
        time.sleep(POLL)
