"""`kfed run` and `kfed serve`: prepares what can be wrong before anything starts, then runs the process tree."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import trio

from admin import guard, server
from cli.tree import Role, Tree
from cli.usage import DEFAULT_FILE
from runtime import logging, private
from runtime.process import WRONG_CONFIGURATION, CannotStart
from runtime.settings import NAME, Settings, SettingsError


def instance_name(settings: Settings, given: str | None) -> str:
    """This process's name in the federation: as given, else host and admin port, which survives a restart.

    Raises:
        SettingsError: not a name.
    """
    name = given or f"{socket.gethostname().split('.')[0].lower()}-{settings.admin.port}"
    if not NAME.fullmatch(name):
        raise SettingsError(f"--instance: {name!r} is no name; use lower-case letters, digits, '.', '_' and '-'")
    return name


def run(settings: Settings, options: argparse.Namespace) -> int:
    """The exit status of the process tree.

    Raises:
        SettingsError: it cannot run with this configuration.
    """
    role: Role = "all" if options.command == "run" else options.role
    instance = instance_name(settings, options.instance)
    logging.configure(settings.log, instance=instance, role=role)
    token = guard.token_of(settings.admin)
    tls = server.tls_of(settings.admin)
    listening = server.bind(settings.admin) if settings.admin.port else None
    with private.directory() as directory:
        # The workers read what this process has read, also when they are started again after the file was changed.
        copy = directory / "kfed.yaml"
        copy.touch(mode=0o600)
        copy.write_bytes(Path(options.config or DEFAULT_FILE).read_bytes())
        tree = Tree(settings, role, instance, directory, copy)
        try:
            trio.run(tree.run, listening, token, tls)
        except BaseExceptionGroup as group:
            error = _first(group)
            if isinstance(error, SettingsError):
                raise error from None
            if isinstance(error, CannotStart):
                print(f"kfed: {error}", file=sys.stderr)
                return WRONG_CONFIGURATION if error.status == WRONG_CONFIGURATION else 1
            raise
    return 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
