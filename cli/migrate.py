"""`kfed migrate`, and what is done with one operation: paused, resumed, aborted, waited for."""

from __future__ import annotations

import argparse
import sys
import time
import urllib.parse
from typing import Any

from cli import moves, output, tables
from cli.api import ApiError
from cli.show import ask
from cli.usage import DONE, FAILED, Usage

POLL = 0.2
AWAY = 60.0  # seconds the admin API may be away while a move is waited for: it goes on without it
LINE_EVERY = 5.0  # seconds between two lines that differ in numbers alone
_ENDED = frozenset({"done", "failed", "aborted"})


def run(options: argparse.Namespace) -> int:
    """`migrate TOPIC...`, or `operations ID` with something to be done."""
    return _migrate(options) if options.command == "migrate" else _operation(options)


def _migrate(options: argparse.Namespace) -> int:
    if not options.target and not options.rollback:
        raise Usage("migrate: --to CLUSTER is needed (or --rollback, back to where the topics came from)")
    body = {
        "topics": options.topics,
        "to": options.target,
        "rollback": options.rollback,
        "close_out_bypass": options.close_out_bypass,
        "leave_ids": options.leave_ids,
        "leave_acls": options.leave_acls,
        "abort_transactions": options.abort_transactions,
        "drain_wait": options.drain_wait,
        "max_lag": options.max_lag,
        "budget": options.budget,
        "redirect": options.redirect,
        "apply": options.apply,
    }
    result = ask(options, "migrate", "POST", body)
    if not options.json:
        moves.plan(result)
    status = FAILED if result["problems"] else DONE
    identifiers = [one["id"] for one in result["migrations"] if one["id"]]
    if identifiers and options.wait:
        documents = _wait(options, identifiers)
        result["operations"] = documents
        if not all(one["migration"]["served"] for one in documents):
            status = FAILED
    elif identifiers and not options.json:
        print(f"Begun; see how far it is: kfed operations {identifiers[0]}{' ...' * (len(identifiers) > 1)}")
    if options.json:
        output.document(result)
    return status


def _operation(options: argparse.Namespace) -> int:
    if options.id is None:
        raise Usage("operations: name the ID of one")
    path = f"operations/{urllib.parse.quote(options.id, safe='')}"
    action = next((one for one in ("pause", "resume", "abort") if getattr(options, one)), None)
    if action is not None:
        changed = ask(options, path, "POST", {"action": action})
        if not options.wait:
            if options.json:
                output.document(changed)
            else:
                print(
                    f"{changed['id']}: {changed['wanted']} is recorded; it is {changed['state']} at {changed['step']}"
                )
            return DONE
    document = ask(options, path)
    if document.get("migration") is None:
        raise Usage(f"operations {options.id}: nothing to wait for, it is {document['state']}")
    (document,) = _wait(options, [options.id], rests=action == "pause", gives_up=action == "abort")
    if options.json:
        output.document(document)
    wanted = document["migration"]["served"]
    if action == "pause":
        wanted = document["state"] == "paused"
    elif action == "abort":
        wanted = document["state"] == "aborted"
    return DONE if wanted else FAILED


def _wait(
    options: argparse.Namespace, identifiers: list[str], *, rests: bool = False, gives_up: bool = False
) -> list[dict[str, Any]]:
    """Until clients are served by the new cluster, or it has ended otherwise; `rests`: also when it is paused."""
    shown = _Shown(quiet=options.json, named=len(identifiers) > 1)
    documents: dict[str, dict[str, Any]] = {}
    away_since: float | None = None
    while len(documents) < len(identifiers):
        for identifier in identifiers:
            if identifier in documents:
                continue
            try:
                now = ask(options, f"operations/{urllib.parse.quote(identifier, safe='')}")
            except ApiError as error:
                if error.status not in (0, 503, 504):
                    raise
                away_since = away_since if away_since is not None else time.monotonic()
                if time.monotonic() - away_since > AWAY:
                    raise
                continue
            away_since = None
            if _over(now, rests, gives_up):
                documents[identifier] = now
                shown.last(identifier, now)
            else:
                shown.now(identifier, now)
        if len(documents) < len(identifiers):
            time.sleep(POLL)
    return [documents[one] for one in identifiers]


def _over(document: dict[str, Any], rests: bool, gives_up: bool) -> bool:
    if document["state"] in _ENDED or (rests and document["state"] == "paused"):
        return True
    return bool(document["migration"]["served"]) and not gives_up


class _Shown:
    """What is shown while something is waited for: one line that changes on a terminal, else a line a change."""

    def __init__(self, *, quiet: bool, named: bool) -> None:
        self._quiet = quiet
        self._named = named
        self._tty = sys.stdout.isatty()
        self._lines: dict[str, str] = {}
        self._width = 0
        self._steps: dict[str, tuple[object, ...]] = {}
        self._at: dict[str, float] = {}

    def now(self, identifier: str, document: dict[str, Any]) -> None:
        if self._quiet:
            return
        migration = document["migration"]
        line = (f"{identifier}: " if self._named else "") + moves.told(document)
        if self._tty:
            self._lines[identifier] = line
            text = " | ".join(self._lines.values())
            print("\r" + text.ljust(self._width), end="", flush=True)
            self._width = len(text)
            return
        step = (migration["step"], migration["wanted"], migration["reason"], migration["attempt"])
        old = self._lines.get(identifier)
        due = time.monotonic() - self._at.get(identifier, 0.0) > LINE_EVERY
        if line != old and (self._steps.get(identifier) != step or due):
            print(line, flush=True)
            self._lines[identifier], self._steps[identifier] = line, step
            self._at[identifier] = time.monotonic()

    def last(self, identifier: str, document: dict[str, Any]) -> None:
        if self._quiet:
            return
        if self._tty:
            self._lines.pop(identifier, None)
            print("\r" + " " * self._width + "\r", end="")
            self._width = 0
        now = document["migration"]
        names = tables.few([one["topic"] for one in now["topics"]])
        if now["served"]:
            held = moves.held(now)
            print(
                f"{names}: served by {now['target']}" + (f"; writes were held for {held}" if held else ""), flush=True
            )
        else:
            reason = f": {now['reason']}" if now["reason"] else ""
            print(f"{names}: {document['state']}{reason}; served by {now['serving']}", flush=True)
