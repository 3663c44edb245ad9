"""One instance's process tree. The parent decides nothing on the data path; its children live and end with it.

    kfed run                store server (child, if embedded) + controller + admin API + proxy workers (children),
                            and replicator workers (children) from the first mirror on
    kfed serve proxy        proxy workers (children) + admin API, which only answers questions
    kfed serve controller   controller + admin API
    kfed serve replicator   replicator workers (children) + admin API, which only answers questions

Ending: the workers drain together while everything else goes on, then the rest ends, and the store's server last.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from admin import server
from admin.application import application
from admin.core import Core
from admin.guard import Token
from admin.office import FederationOffice
from admin.workers import Workers, counted
from runtime import logging, process
from runtime.clock import boottime
from runtime.metrics import Metrics, labels_of
from runtime.settings import EmbeddedStore, Settings
from runtime.tls import ServerTls

log = logging.get(__name__)

Role = Literal["all", "proxy", "controller", "replicator"]

STORE_DRAIN = 1.0  # seconds of the drain that are kept for the store's server


class Tree:
    """`run` it; `exit_status` is set afterwards. `directory` is private to this process."""

    def __init__(self, settings: Settings, role: Role, instance: str, directory: Path, configuration: Path) -> None:
        self.settings = settings
        self.role = role
        self.draining = False
        self.metrics = Metrics(**labels_of(instance, "parent"))
        count = settings.proxy.workers if role in ("all", "proxy") else 0
        self.workers = Workers(count, instance, configuration, directory, self.metrics)
        count = settings.replicator.workers if role in ("all", "replicator") else 0
        self.replicators = Workers(count, instance, configuration, directory, self.metrics, "replicator")
        controls = role in ("all", "controller")
        self.core = Core(settings, instance, controls=controls)
        self.office = FederationOffice(
            settings,
            instance,
            self.core,
            self.workers,
            self.metrics,
            self._not_ready,
            replicators=self.replicators,
            read_only=not controls,
        )
        self.store: process.Child | None = None
        if role == "all" and isinstance(settings.store, EmbeddedStore):
            # The socket's place is the default one: `kfed serve` on this machine finds it by the same configuration.
            argv = ["metadata_service.store.embedded_server", settings.store.path]
            self.store = counted(process.Child("store", argv, must_start=True), self.metrics)

    def _not_ready(self) -> list[str]:
        reasons = ["draining"] if self.draining else []
        if self.core.member is None:
            reasons.append(self.core.why)
        if self.workers.children and not self.workers.ready:
            reasons.append("no proxy worker is ready")
        if self.role == "replicator" and not self.replicators.ready:
            reasons.append("no replicator worker is ready")
        return reasons

    def _kill(self) -> None:
        for child in (*self.workers.children, *self.replicators.children, self.store):
            if child is not None:
                child.kill()

    async def run(self, listening: socket.socket | None, token: Token | None, tls: ServerTls | None) -> None:
        """Until a signal; then drains, for at most `process.DRAIN` seconds.

        Raises, in groups:
            CannotStart, SettingsError: it cannot run with this configuration.
        """
        async with trio.open_nursery() as outer:
            stop = await outer.start(partial(process.watch_signals, on_second=self._kill))
            if self.store is not None:
                outer.start_soon(self.store.run)
            async with trio.open_nursery() as inner:
                inner.start_soon(self._start, listening, token, tls)
                await stop.wait()
                deadline = boottime() + process.DRAIN
                self.draining = True
                async with trio.open_nursery() as draining:
                    for some in (self.workers, self.replicators):
                        draining.start_soon(some.drain, deadline - boottime() - STORE_DRAIN)
                inner.cancel_scope.cancel()
            if self.store is not None:
                await self.store.drain(max(STORE_DRAIN, deadline - boottime()))
            outer.cancel_scope.cancel()

    async def _start(self, listening: socket.socket | None, token: Token | None, tls: ServerTls | None) -> None:
        async with trio.open_nursery() as nursery:
            if listening is not None:
                await nursery.start(server.serve, application(self.office, token), listening, tls)
            if self.store is not None:
                await self.store.wait_ready()
            await nursery.start(self.core.run)
            nursery.start_soon(self.workers.run)
            await self.workers.wait_ready()
            if self.role == "replicator":
                nursery.start_soon(self.replicators.run)
                await self.replicators.wait_ready()
            process.say_ready()
            log.info("ready", pid=os.getpid(), workers=len(self.workers.children))
            if self.role == "all" and self.replicators.children:
                await self._first_mirror()
                await self.replicators.run()

    async def _first_mirror(self) -> None:
        """Returns when the federation has a mirror: until then nobody need be there to copy."""
        while True:
            member = self.core.member
            if member is None:
                await trio.sleep(1.0)  # the store is being opened again
                continue
            view = member.view
            if view.mirrors:
                return
            await member.following.changed_or(view, 60.0)
