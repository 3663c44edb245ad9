"""`kfed run` and `kfed serve`: prepares what can be wrong before anything starts, then runs the process tree."""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
from pathlib import Path

import trio

from admin import guard, server
from cli.tree import Role, Tree
from cli.usage import DEFAULT_FILE
from runtime import logging, private
from runtime.process import WRONG_CONFIGURATION, CannotStart, first_cause
from runtime.settings import NAME, Settings, SettingsError
from runtime.tls import ServerTls


def instance_name(settings: Settings, given: str | None) -> str:
    """This process's name in the federation: as given, else host and admin port, which survives a restart.

    Raises:
        SettingsError: not a name.
    """
    name = given or f"{socket.gethostname().split('.')[0].lower()}-{settings.admin.port}"
    if not NAME.fullmatch(name):
        raise SettingsError(f"--instance: {name!r} is no name; use lower-case letters, digits, '.', '_' and '-'")
    return name


def check_listeners(settings: Settings) -> None:
    """What every worker would find out for itself, found out once.

    Raises:
        SettingsError: an address cannot be listened on, or a certificate cannot be used.
    """
    for n, listener in enumerate(settings.proxy.listeners):
        key = f"proxy.listeners[{n}]"
        if listener.tls is not None:
            try:
                ServerTls(listener.tls)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"{key}.tls: {error}") from None
        family = socket.AF_INET6 if ":" in listener.bind else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                probe.bind((listener.bind, listener.port))
            except OSError as error:
                text = f"cannot listen on {listener.bind}:{listener.port}: {error.strerror}"
                raise SettingsError(f"{key}.port: {text}") from None


def run(settings: Settings, options: argparse.Namespace) -> int:
    """The exit status of the process tree.

    Raises:
        SettingsError: it cannot run with this configuration.
    """
    role: Role = "all" if options.command == "run" else options.role
    instance = instance_name(settings, options.instance)
    logging.configure(settings.log, instance=instance, role=role)
    if role in ("all", "proxy"):
        check_listeners(settings)
    if role == "replicator" and not settings.replicator.workers:
        raise SettingsError("replicator.workers: at least 1 for kfed serve replicator")
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
            error = first_cause(group)
            if isinstance(error, SettingsError):
                raise error from None
            if isinstance(error, CannotStart):
                if error.status == WRONG_CONFIGURATION:  # the child has said what is wrong
                    return WRONG_CONFIGURATION
                print(f"kfed: {error}", file=sys.stderr)
                return 1
            raise
    return 0
