"""One proxy worker: a process with its own event loop, which shares its ports with the other workers.

It loads the view before it listens, listens on the bootstrap port and on the port of every virtual broker, and
follows the store and the clusters' metadata for as long as it runs.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from kafka_client.security import Tls, ssl_context
from kafka_wire.codec import Message, decode
from metadata_service.failures import ViewBehind
from metadata_service.member import Member, join
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import StoreUnavailable
from metadata_service.store.open import open_store
from metadata_service.store.opened import OpenedStore
from metadata_service.view import ClusterView, View
from proxy.addresses import address, broker_of_host
from proxy.apis import data, translation
from proxy.apis.contract import ClusterAway
from proxy.apis.discretion import discreet
from proxy.apis.metadata import unseen
from proxy.apis.metadata_encoding import encoded_metadata
from proxy.apis.registry import ENCODED, HANDLERS
from proxy.client_certificates import ClientCertificates
from proxy.identity import CallerPool
from proxy.identity.asking import Asking
from proxy.identity.settings import IdentitySettings, ServiceClients
from proxy.moving.lifting import Lifter
from proxy.moving.tables import MovedTables
from proxy.moving.worker import RULES_WITHIN, WorkerFence
from proxy.session.call import SessionCall
from proxy.session.session import Session
from proxy.session.surroundings import Surroundings
from proxy.sweep import overdue
from proxy.transport import listening, upstream
from proxy.transport.channel import Channel, ChannelClosed, PlainChannel, tls_handshake
from runtime import endpoint, logging, process
from runtime.metrics import Metrics, labels_of
from runtime.settings import Listener, Settings, SettingsError
from runtime.tls import ServerTls

log = logging.get(__name__)

METADATA = 3
ADDRESSES_WAIT = 15.0  # seconds a starting worker waits for the controller to give every known broker its port
REBIND = 5.0  # seconds between two attempts at a port that is taken


class Worker:
    """`run` it. `draining` ends when the last busy connection has been answered, or the drain's bound has passed."""

    def __init__(self, settings: Settings, instance: str, number: int) -> None:
        self.settings = settings
        self.instance = instance
        self.number = number
        self.metrics = Metrics(**labels_of(instance, number))
        self.listeners: Mapping[str, Listener] = {one.name: one for one in settings.proxy.listeners}
        self.sessions: set[Session] = set()
        self.ready = False
        self.draining = False
        self._open_to_all = False
        self._bound: dict[tuple[str, int], socket.socket] = {}
        self._tls: dict[str, ServerTls] = {}
        self._names: dict[int, str] = {}
        limits = settings.proxy.limits
        self.doors = listening.Doors(limits.connections, limits.connections_per_address, self._refused)

    def _refused(self, reason: str) -> None:
        self.metrics.refusals[reason] += 1

    # -- what sessions need ---------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        return self.member.following.view

    def _address(self, listener: str, cluster: str, broker: int) -> tuple[str, int] | None:
        return address(self.listeners, self.view, listener, cluster, broker)

    def _authenticating(self, cluster: str) -> bool:
        known = self.view.clusters.get(cluster)
        return known is not None and known.record.settings.sasl is not None

    async def _connect(self, cluster: str, broker: int, principal: str | None = None) -> tuple[Channel, int]:
        """A connection for a client, without credentials of ours: TLS verifies the broker and offers no certificate."""
        known = self.view.clusters.get(cluster)
        if known is None or known.record.state != "active":
            raise ClusterAway(cluster, "it is no longer part of the federation")
        brokers = known.snapshot.brokers
        candidates = list(brokers) if broker < 0 else [broker]
        random.shuffle(candidates)
        counters = self.metrics.cluster(cluster)
        reason = "no broker of it is known"
        for one in candidates[:3]:
            if one not in brokers:
                reason = f"it has no broker {one} at present"
                continue
            try:
                counters.connects += 1
                timeout = self.settings.proxy.limits.connect_timeout
                channel = await upstream.connect(brokers[one].host, brokers[one].port, _tls_of(known), timeout)
                if principal is not None:
                    channel.login_due = await self.certificates.log_in(channel, cluster, one, principal)
                counters.reachable = True
                return channel, one
            except (ChannelClosed, OSError) as error:  # OSError: its TLS files
                counters.connect_failures += 1
                counters.reachable = False
                reason = str(error)
        self.member.federation.refresh(cluster)
        log.info("a broker cannot be reached", cluster=cluster, broker=broker, reason=reason)
        raise ClusterAway(cluster, reason)

    async def _encoded_metadata(self, call: SessionCall, version: int, frame: bytes, body: int) -> bytes | None:
        """Metadata out of cached bytes; without asking for rights where everybody may see everything."""
        if not self._open_to_all:
            return await ENCODED[METADATA](call, version, frame, body)
        request: Message = decode("request", METADATA, version, frame, body)
        if request.get("include_cluster_authorized_operations") or request.get("include_topic_authorized_operations"):
            return None
        topics = request["topics"]
        if topics is None or (version == 0 and not topics):
            return encoded_metadata(self.view, call.listener, version, None, call.address)
        view = self.view
        if any(one["name"] is None or unseen(view, one["name"]) for one in topics):
            return None
        names = tuple(one["name"] for one in topics)
        return encoded_metadata(view, call.listener, version, names, call.address)

    async def _watch_authority(self, pool: CallerPool) -> None:
        """Whether no cluster has an authorizer: then one Metadata answer fits all."""
        while True:
            view = self.view
            kinds: list[str] = []
            for name, cluster in view.clusters.items():
                if cluster.record.state == "active":
                    try:
                        kinds.append((await pool.acls.authority(name)).kind)
                    except Exception:  # not known: then it is not open
                        kinds.append("unknown")
            # Where only some clusters ask for a login, not everybody who is in may see all of them.
            logins = {self._authenticating(one) for one in view.clusters}
            self._open_to_all = bool(kinds) and all(kind == "none" for kind in kinds) and len(logins) == 1
            await self.member.following.changed_or(view, 2.0)
            await trio.sleep(0.05)  # under a storm of changes, often enough

    async def _watch_homes(self, pool: CallerPool) -> None:
        """Members of a group that moves are judged by its new home's rules as they are when the move begins: they were
        compared before."""
        view, known = self.view, set[tuple[str, str]]()
        while True:
            moves = [one for one in view.groups.values() if one.move is not None and not self._open_to_all]
            found = {(one.name, one.move.operation): one.move.to for one in moves if one.move is not None}
            for cluster in {found[key] for key in found.keys() - known}:
                with trio.move_on_after(RULES_WITHIN):
                    await pool.acls.renew(cluster)
            known, groups = set(found), view.groups
            while view.groups is groups:
                view = await self.member.following.changed(view)

    # -- connections ----------------------------------------------------------------------------------------------

    def _bootstrap_cluster(self) -> str:
        """The cluster whose brokers serve a bootstrap connection: the default one while it answers."""
        view = self.view
        active = [one for one in view.clusters.values() if one.record.state == "active"]
        if not active:
            return "-"
        default = view.placement.default if view.placement is not None else active[0].name

        def order(one: ClusterView) -> tuple[bool, bool, int]:
            return (not one.snapshot.reachable, one.name != default, one.record.index)

        return min(active, key=order).name

    async def _accepted(
        self, listener: Listener, place: tuple[str, int] | None, sock: socket.socket, peer: str
    ) -> None:
        channel: Channel
        principal = None
        if listener.name in self._tls:
            try:
                channel, stream = await tls_handshake(
                    sock,
                    self._tls[listener.name].context,
                    peer,
                    server_side=True,
                    hostname=None,
                    timeout=self.settings.proxy.limits.first_bytes_timeout,
                )
            except ChannelClosed as error:
                self._refused("tls_handshake")
                log.info("connection refused", peer=peer, reason="tls_handshake", error=str(error))
                return
            if listener.sni is not None:
                host = self._names.pop(id(stream._ssl_object), "")  # trio has no public way to the handshake's object
                place = broker_of_host(listener.sni, host)
            if listener.tls is not None and listener.tls.client_ca is not None:
                principal = self.certificates.principal(stream.getpeercert())
        else:
            channel = PlainChannel(sock, peer)
        cluster, broker = place if place is not None else (self._bootstrap_cluster(), -1)
        session = Session(self.around, channel, listener.name, cluster, broker)
        session.mapped_principal = principal
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)

    def _bind(self, nursery: trio.Nursery, listener: Listener, port: int, place: tuple[str, int] | None) -> bool:
        """Listen on a port. Raises BindFailed for the bootstrap port; others are tried again later."""
        key = (listener.bind, port)
        if key in self._bound:
            return True
        try:
            sock = listening.bind(listener.bind, port)
        except listening.BindFailed as error:
            if place is None:
                raise
            log.error("a virtual broker's port cannot be opened", error=str(error), cluster=place[0], broker=place[1])
            return False
        self._bound[key] = sock
        nursery.start_soon(listening.accept, sock, self.doors, nursery, partial(self._accepted, listener, place))
        return True

    async def _follow_addresses(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on every port that the store has given to a virtual broker."""
        started = False
        while True:
            seen = self.view
            complete = True
            for listener in self.listeners.values():
                book = seen.addresses.get(listener.name)
                if listener.sni is not None or book is None:
                    continue
                for name, port in book.ports.items():
                    cluster, _, broker = name.rpartition("/")
                    complete &= self._bind(nursery, listener, port, (cluster, int(broker)))
            if not started:
                task_status.started()
                started = True
            await self.member.following.changed_or(seen, 60.0 if complete else REBIND)

    def _every_broker_has_an_address(self, view: View) -> bool:
        return all(
            address(self.listeners, view, listener, cluster.name, broker) is not None
            for listener in self.listeners
            for cluster in view.clusters.values()
            for broker in cluster.snapshot.brokers
        )

    # -- looking after them ---------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        limits = self.settings.proxy.limits
        while True:
            await trio.sleep(1.0)
            now = time.monotonic()
            for session in list(self.sessions):
                reason = overdue(session.waiting(now), limits, now)
                if reason is not None:
                    session.end(reason)

    def _oldest_revision_in_use(self) -> int | None:
        return min((one.handling for one in self.sessions if one.handling is not None), default=None)

    def status(self) -> dict[str, object]:
        """For the parent's status pages."""
        view = self.view
        return {
            "pid": os.getpid(),
            "ready": self.ready,
            "draining": self.draining,
            "revision": view.revision,
            "acknowledged": self.member.registration.acknowledged,
            "view_age": self.member.following.age(),
            "connections": self.doors.open,
            **self.metrics.totals(),
        }

    async def _drain(self) -> None:
        """No new connections, no new requests; each session ends when what it had passed on has been answered."""
        self.draining = True
        self.around.accepting = False
        for sock in self._bound.values():
            trio.lowlevel.notify_closing(sock)
            sock.close()
        with trio.move_on_after(self.settings.proxy.limits.drain_timeout):
            while self.sessions:
                for session in list(self.sessions):
                    if not session.busy:
                        session.end("draining")
                await trio.sleep(0.02)

    # -- the process ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[OpenedStore]:
        """The store; waits, with pauses, as long as it is away."""
        backoff = Backoff(0.2, 5.0)
        async with AsyncExitStack() as stack:
            store: OpenedStore | None = None
            while store is None:
                try:
                    store = await stack.enter_async_context(open_store(self.settings.store, self.settings.federation))
                except StoreUnavailable as error:
                    log.warning("waiting for the store", error=str(error))
                    await backoff.pause()
            yield store

    @asynccontextmanager
    async def _joined(self) -> AsyncIterator[Member]:
        async with (
            self._opened() as store,
            join(
                store,
                instance=self.instance,
                worker=self.number,
                role="proxy",
                connections=lambda: self.doors.open,
                in_use=self._oldest_revision_in_use,
                auto_create_topics=self.settings.proxy.auto_create_topics,
            ) as member,
        ):
            yield member

    def _server_tls(self) -> None:
        for listener in self.listeners.values():
            if listener.tls is None:
                continue

            def named(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None) -> int | None:
                if len(self._names) > 10_000:  # of handshakes that failed after their hello
                    self._names.clear()
                self._names[id(tls)] = name or ""
                return None

            try:
                hook = named if listener.sni is not None else None
                self._tls[listener.name] = ServerTls(listener.tls, server_name=hook)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"proxy.listeners ({listener.name}).tls: {error}") from None

    async def run(self, endpoint_path: str | None = None) -> None:
        """Until SIGTERM, then drains.

        Raises:
            SettingsError: it cannot run with this configuration. StoreReplaced: the store is to be opened again.
        """
        self._server_tls()
        async with trio.open_nursery() as nursery:
            stop = await nursery.start(process.watch_signals)
            # The parts end while the clusters can still be asked: tokens are expired at the end.
            async with self._joined() as self.member, trio.open_nursery() as parts:
                await self._serve(parts, stop, endpoint_path)
                parts.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    async def _serve(self, nursery: trio.Nursery, stop: trio.Event, endpoint_path: str | None) -> None:
        following = self.member.following
        services = ServiceClients(self.member.clients, lambda: self.view)
        pool = CallerPool(services, IdentitySettings(lambda: self.view))
        self.certificates = ClientCertificates(pool)
        self.around = Surroundings(
            view=lambda: following.view,
            federation=self.member.federation,
            identity=Asking(pool),
            handlers={key: discreet(key, one) for key, one in {**HANDLERS, **data.HANDLERS}.items()},
            connect=self._connect,
            log_in_again=self.certificates.renew,
            address=self._address,
            limits=self.settings.proxy.limits,
            metrics=self.metrics,
            authenticating=self._authenticating,
            encoded={METADATA: self._encoded_metadata},
        )
        for gauge, value in (
            ("kfed_view_revision", lambda: float(self.view.revision)),
            ("kfed_view_age_seconds", following.age),
            ("kfed_store_lag_seconds", following.age),
            ("kfed_store_connected", lambda: float(following.connected)),
        ):
            self.metrics.gauge(gauge, value)
        nursery.start_soon(pool.run)
        nursery.start_soon(self._watch_authority, pool)
        nursery.start_soon(self._watch_homes, pool)
        self.tables = MovedTables(self.member.clients.get, lambda: self.view)
        await nursery.start(self.tables.run, following.changed_or)
        translation.install(self.tables, self.tables)
        self.metrics.gauge("kfed_translated_partitions", lambda: float(self.tables.partitions))
        lifter = Lifter(self.member)
        self.around.moving = WorkerFence(
            self.member.store,
            following,
            self.member.registration,
            self.tables,
            lambda: self.sessions,
            self.metrics,
            lifter,
            clients=self.member.clients.get,
            renew_rules=pool.acls.renew,
            refresh=self.member.federation.refresh,
        )
        nursery.start_soon(lifter.run)
        nursery.start_soon(self.around.moving.run)
        if endpoint_path is not None:
            paths = {
                "/metrics": lambda: ("text/plain; version=0.0.4", self.metrics.render()),
                "/status": endpoint.json_of(self.status),
            }
            await nursery.start(partial(endpoint.serve, endpoint_path, paths))
        await self.member.settled()
        for name, listener in self.listeners.items():
            if listener.tls is not None and listener.tls.client_ca is not None:
                active = [one.name for one in self.view.clusters.values() if one.record.state == "active"]
                try:
                    await self.certificates.check({one: self.member.clients.get(one) for one in active})
                except SettingsError as error:
                    raise SettingsError(f"proxy.listeners ({name}).tls.{error}") from None
        try:
            await following.wait_for(self._every_broker_has_an_address, ADDRESSES_WAIT)
        except ViewBehind:
            log.warning("some brokers have no address yet; clients are told of the others")
        async with trio.open_nursery() as connections:
            await connections.start(self._follow_addresses, connections)
            for listener in self.listeners.values():
                try:
                    self._bind(connections, listener, listener.port, None)
                except listening.BindFailed as error:
                    raise SettingsError(f"proxy.listeners ({listener.name}).port: {error}") from None
            connections.start_soon(self._sweep)
            # What is there now stays: the collector need not look at it again and again, least of all under load.
            gc.collect()
            gc.freeze()
            self.ready = True
            process.say_ready()
            log.info("ready", pid=os.getpid(), worker=self.number)
            await stop.wait()
            await self._drain()
            connections.cancel_scope.cancel()


def _tls_of(cluster: ClusterView) -> ssl.SSLContext | None:
    """For clients' connections to a cluster. Raises OSError (ssl.SSLError is one): its files cannot be used."""
    tls = cluster.record.settings.tls
    return None if tls is None else ssl_context(Tls(tls.ca, None, None, tls.verify_hostname))
