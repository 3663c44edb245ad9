"""`Call` of proxy.apis.contract, for one request of a session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.frames import parse_response
from kafka_wire.schema import by_key
from metadata_service.view import View
from proxy.apis.contract import CloseConnection, ClusterAway, Federation, Refused
from proxy.identity.principal import API_CREATE_DELEGATION_TOKEN, PrincipalUnknown, named, question
from proxy.session import responses
from proxy.session.session import Kind, Session

ANONYMOUS = "User:ANONYMOUS"
RULES = 20.0  # seconds for what a cluster allows
AWAY = 3.0  # seconds for a cluster that did not answer lately: whoever waits has more to ask on this connection


class SessionCall:
    """One request's surroundings; lives as long as the request."""

    def __init__(self, session: Session, view: View, key: int, version: int) -> None:
        self._session = session
        self._key = key
        self._version = version
        self.view = view
        self.cluster = session.cluster
        self.broker = session.broker
        self.listener = session.listener
        self.client_id = session.client_id
        self.client_host = session.client.peer.rpartition(":")[0]
        self.federation: Federation = session.around.federation
        self._silent: set[str] = set()  # clusters that were away when this request asked them

    def latest(self) -> View:
        return self._session.around.view()

    def unbind(self) -> None:
        self._session.handling = None

    def address(self, cluster: str, broker: int) -> tuple[str, int] | None:
        return self._session.around.address(self.listener, cluster, broker)

    async def principal(self) -> str:
        session = self._session
        if session.known_principal is None:
            if session.mapped_principal is not None:
                session.known_principal = session.mapped_principal
            elif not session.around.authenticating(session.cluster):
                session.known_principal = ANONYMOUS
            else:
                key = API_CREATE_DELEGATION_TOKEN
                response = await session.inner(key, self._version_on(self.cluster, key), question())
                try:
                    session.known_principal = str(named(response))
                except PrincipalUnknown as error:
                    raise session.refuse("principal_unknown", error=str(error)) from None
        return session.known_principal

    async def forward(self, request: Message, version: int | None = None) -> Message:
        try:
            return await self._session.inner(self._key, self._version if version is None else version, request)
        except ClusterAway as away:
            raise CloseConnection(str(away)) from None

    async def forward_unanswered(self, request: Message) -> None:
        """A Produce with acks=0: nobody answers it."""
        await self._session.inner_unanswered(self._key, self._version, request)

    def fetch_session_is_stale(self) -> bool:
        """Whether a topic stopped being served here since this connection's fetch session began."""
        return self._session.fetch_generation != self.latest().served_generation.get(self.cluster, 0)

    @property
    def parked(self) -> bool:
        """Whether this connection's broker still waits with an answer that nobody waits for any longer."""
        return any(slot.kind is Kind.DROPPED for slot in self._session.slots)

    async def forward_parked(self, request: Message, topics: Iterable[str]) -> Message | None:
        """`forward` of a Fetch that names topics which are being moved; None: it was cut short, they have moved."""
        session, moving = self._session, self._session.around.moving
        if moving is None:
            return await self.forward(request)
        named = list(topics)
        try:
            slot = await session.ask(self._key, self._version, request)
        except ClusterAway as away:
            raise CloseConnection(str(away)) from None
        assert slot.done is not None
        moving.park(session, slot, named)
        try:
            await slot.done.wait()
        finally:
            moving.unpark(session, slot, named)
        return None if slot.answer is None else parse_response(self._key, self._version, slot.answer)[1]

    async def begins(self, topics: list[str]) -> bool:
        """Wait while calls that begin a transaction on these topics are held; whether it may be made here then."""
        moving = self._session.around.moving
        mine = [name for name in topics if moving is not None and moving.concerned(name)]
        return not mine or moving is None or await moving.begins(self._session, mine)

    def ready(self, migration: str) -> bool:
        """Whether the target's tables of a migration are here."""
        moving = self._session.around.moving
        return moving is not None and moving.ready(migration)

    def fetch_code(self, code: int, same: bool) -> int:
        """The error to pass on in a Fetch answer, at the moment it is passed on."""
        moving = self._session.around.moving
        return code if moving is None else moving.fetch_code(code, same)

    def closed_not_too_large(self, response: Message) -> None:
        """MESSAGE_TOO_LARGE of topics that may be closed becomes NOT_LEADER."""
        responses.closed_not_too_large(self._session, self._version, response)

    def clean_produce(self, response: Message) -> Message:
        """A broker's answer with virtual brokers in its leader hints."""
        responses.clean(self._session, response, "partition_responses")
        return response

    def clean_fetch(self, response: Message) -> Message:
        """The same for Fetch, and for the preferred read replica."""
        responses.map_replicas(self._session, response)
        responses.clean(self._session, response, "partitions")
        return response

    def _version_on(self, cluster: str, key: int) -> int:
        known = by_key("request")[key]
        high = known.versions.high - (1 if known.unstable and known.versions.high > known.versions.low else 0)
        seen = self.view.clusters.get(cluster)
        if seen is not None and key in seen.snapshot.versions:
            low, top = seen.snapshot.versions[key]
            if top < known.versions.low or low > high:
                raise Refused(ERROR.UNSUPPORTED_VERSION, f"cluster {cluster} speaks no version of this API known here")
            high = min(high, top)
        return high

    async def ask(
        self, cluster: str, key: int, request: Message, *, broker: int | None = None, timeout: float = 20.0
    ) -> Message:
        session = self._session
        own = cluster == session.cluster
        if not own:
            timeout = self._patience(cluster, timeout)
        try:
            with trio.fail_after(timeout):
                if own and (broker is None or broker == await self._own_broker()):
                    return await session.inner(key, self._version_on(cluster, key), request)
                principal = await self.principal()
                if self._unknown_there(principal, cluster):
                    raise Refused(ERROR.CLUSTER_AUTHORIZATION_FAILED, f"cluster {cluster} asks for a login")
                return await session.around.identity.ask_as(
                    principal, self.client_host, cluster, key, request, broker=broker
                )
        except ClusterAway:
            self._silent.add(cluster)
            raise
        except trio.TooSlowError:
            if own:
                raise CloseConnection(f"the broker did not answer within {timeout:g} s") from None
            self._silent.add(cluster)
            raise ClusterAway(cluster, f"no answer within {timeout:g} s") from None

    def _patience(self, cluster: str, timeout: float) -> float:
        """Seconds to wait for another cluster. Raises ClusterAway: this request has waited for it in vain already."""
        if cluster in self._silent:
            raise ClusterAway(cluster, "it did not answer just now")
        known = self.view.clusters.get(cluster)
        return min(timeout, AWAY) if known is not None and not known.snapshot.reachable else timeout

    def _unknown_there(self, principal: str, cluster: str) -> bool:
        """Whether somebody without a login comes to a cluster that lets nobody in without one."""
        return principal == ANONYMOUS and cluster != self.cluster and self._session.around.authenticating(cluster)

    async def _own_broker(self) -> int:
        if self._session.upstream is None:
            await self._session.open_upstream()
        return self._session.upstream_broker

    async def ask_clusters(
        self, key: int, requests: Mapping[str, Message], *, timeout: float = 20.0
    ) -> dict[str, Message | ClusterAway | Refused]:
        answers: dict[str, Message | ClusterAway | Refused] = {}

        async def one(cluster: str, request: Message) -> None:
            try:
                answers[cluster] = await self.ask(cluster, key, request, timeout=timeout)
            except (ClusterAway, Refused) as failure:
                answers[cluster] = failure

        if len(requests) == 1:
            await one(*next(iter(requests.items())))
        else:
            async with trio.open_nursery() as nursery:
                for cluster, request in requests.items():
                    nursery.start_soon(one, cluster, request)
        return {cluster: answers[cluster] for cluster in requests}

    async def decidable(self, cluster: str) -> bool:
        with self._rules_of(cluster):
            return await self._session.around.identity.decidable(cluster)

    async def visible(self, cluster: str, operation: int, resource_type: int, names: Iterable[str]) -> set[str]:
        wanted = set(names)
        principal = await self.principal()
        if self._unknown_there(principal, cluster):
            return set()
        with self._rules_of(cluster):
            return await self._session.around.identity.visible(
                principal, self.client_host, cluster, operation, resource_type, wanted
            )

    @contextmanager
    def _rules_of(self, cluster: str) -> Iterator[None]:
        """Bounds a question about what a cluster allows. Raises ClusterAway."""
        try:
            with trio.fail_after(self._patience(cluster, RULES)):
                yield
        except ClusterAway:
            self._silent.add(cluster)
            raise
        except trio.TooSlowError:
            self._silent.add(cluster)
            raise ClusterAway(cluster, "its rules cannot be read") from None
