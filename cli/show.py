"""Commands that only look: each asks the admin API for one document and prints it."""

from __future__ import annotations

import argparse
import sys
import urllib.parse
from typing import Any

from cli import api, output, tables
from cli.usage import DONE, settings_of
from runtime.version import versions


def ask(options: argparse.Namespace, path: str, method: str = "GET", body: object = None) -> Any:
    """The admin API's document. Raises ApiError, SettingsError."""
    settings = settings_of(options, needed=False)
    return api.request(api.address(settings, options.admin, options.token_file), method, path, body)


def version(options: argparse.Namespace) -> int:
    found = versions()
    if options.json:
        output.document({"version": found["kfed"], "versions": found})
    else:
        output.fields(found.items())
    return DONE


def offset(options: argparse.Namespace) -> int:
    """`offsets translate`: the offset alone for people, as scripts like it too."""
    topic = urllib.parse.quote(options.topic, safe="")
    clusters = urllib.parse.urlencode({"from": options.source, "to": options.target})
    found = ask(options, f"offsets/{topic}/{options.partition}/{options.offset}?{clusters}")
    if options.json:
        output.document(found)
    else:
        print(found["offset"])
        if not found["exact"]:
            why = "there is no record there yet; the next one comes" if found["end"] else "no record: the next one's"
            print(f"kfed: offset {options.offset} on {options.source}: {why}", file=sys.stderr)
    return DONE


def run(options: argparse.Namespace) -> int:
    """One of the commands that show something."""
    path = options.command
    name = getattr(options, "name", None) or getattr(options, "id", None)
    if name is not None:
        path = f"{path}/{urllib.parse.quote(name, safe='')}"
    document = ask(options, path)
    if options.json:
        output.document(document)
    else:
        tables.show(options.command, document, one=name is not None)
    return DONE
