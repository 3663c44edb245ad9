"""Commands that only look: each asks the admin API for one document and prints it."""

from __future__ import annotations

import argparse
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
