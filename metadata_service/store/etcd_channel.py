"""Connections to etcd: gRPC calls as trio calls, several endpoints, credentials.

grpcio's Python API is synchronous. A unary call needs no thread of ours: it is started as a future, which wakes the
waiting task. One channel to one endpoint is used until it fails a call; then the next endpoint's turn comes. A new
channel reads the certificate files anew. gRPC's own threads do not survive a fork: start children with subprocess
(which execs), never with os.fork or multiprocessing's fork method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import msgspec
import trio

from metadata_service.store import etcd_wire as wire
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Compacted, LeaseExpired, StoreError, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # pages and fragments bound it
    ("grpc.keepalive_time_ms", 10_000),  # etcd allows no less than 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Otherwise a new channel inherits the reconnect backoff of the one it replaces.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_NEVER_SENT = ("failed to connect to all addresses", "etcdserver: no leader")
_NEW_TOKEN = ("invalid auth token", "revision of auth store is old")
_AUTH_OFF = "authentication is not enabled"


_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
)


class EtcdSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is. `endpoints` are http:// or https:// URLs; `prefix` stands before every key.

    Files are PEM. `password` is called at every authentication, so that a changed one is used.
    """

    endpoints: tuple[str, ...]
    prefix: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password: Callable[[], str] | None = None


class RpcFailed(Exception):
    """A call ended with a gRPC status other than OK."""

    def __init__(self, code: Any, details: str) -> None:
        super().__init__(f"{details or 'no details'} ({code.name.lower()})")
        self.code = code
        self.details = details

    @property
    def passing(self) -> bool:
        """Another try, or another endpoint, may help."""
        return self.code in _PASSING

    @property
    def needs_token(self) -> bool:
        return self.code is grpc.StatusCode.UNAUTHENTICATED or any(text in self.details for text in _NEW_TOKEN)


class Link:
    """A channel to one endpoint, and the token it uses."""

    def __init__(self, endpoint: str, settings: EtcdSettings) -> None:
        """Raises StoreRefused where a certificate file cannot be read."""
        self.endpoint = endpoint
        url = urlsplit(endpoint)
        target = url.netloc
        if url.scheme == "https":
            self.channel = grpc.secure_channel(target, _credentials(settings), options=_OPTIONS)
        else:
            self.channel = grpc.insecure_channel(target, options=_OPTIONS)
        self.token: str | None = None
        self.version: tuple[int, ...] | None = None
        self.authenticating = trio.Lock()
        self._methods: dict[str, Any] = {}
        self._users = 0
        self._retired = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        # hasleader: a member that is cut off from the others says so, instead of keeping us waiting.
        leader = (("hasleader", "true"),)
        return (*leader, ("token", self.token)) if self.token else leader

    @property
    def reports_progress(self) -> bool:
        """Asked for progress, older releases may answer ahead of changes that they have not sent yet."""
        return self.version is not None and self.version >= (3, 5, 8)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_done()

    def retire(self) -> None:
        """Closes the channel once nobody uses it."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._users:
            self.channel.close()

    def start(self, path: str, request: bytes, timeout: float) -> Any:
        """A unary call as grpc's future."""
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = self.channel.unary_unary(path)
        return method.future(request, timeout=max(timeout, 0.001), metadata=self.metadata)

    async def unary(self, path: str, request: bytes, timeout: float) -> bytes:
        """Raises RpcFailed. Cancelling it cancels the call, which may still be carried out."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def wake(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        with self.used():
            call = self.start(path, request, timeout)
            call.add_done_callback(wake)
            try:
                await done.wait()
            except BaseException:
                call.cancel()
                raise
            result = call_result(call)
            if isinstance(result, RpcFailed):
                raise result
            return result


def call_result(call: Any) -> bytes | RpcFailed:
    """What a finished call ended with."""
    if call.code() is not grpc.StatusCode.OK:
        return RpcFailed(call.code(), call.details() or "")
    answer: bytes = call.result()
    return answer


def _credentials(settings: EtcdSettings) -> Any:
    def content(path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            return path.read_bytes()
        except OSError as error:
            raise StoreRefused(f"{path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        root_certificates=content(settings.ca),
        private_key=content(settings.key),
        certificate_chain=content(settings.cert),
    )


class Links:
    """The current link, and calls over it that survive a lost endpoint."""

    def __init__(self, settings: EtcdSettings, deadline: float) -> None:
        """Raises ValueError where the settings make no sense."""
        if not settings.endpoints:
            raise ValueError("etcd: name at least one endpoint")
        for endpoint in settings.endpoints:
            url = urlsplit(endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.port is None:
                raise ValueError(f"etcd: {endpoint!r} is no endpoint; write it like https://etcd-1:2379")
        if (settings.cert is None) != (settings.key is None):
            raise ValueError("etcd: a client certificate needs both cert and key")
        if (settings.username is None) != (settings.password is None):
            raise ValueError("etcd: username and password go together")
        self.settings = settings
        self.deadline = deadline
        self.description = f"etcd at {', '.join(settings.endpoints)}"
        self._position = 0
        self._current: Link | None = None

    def link(self) -> Link:
        if self._current is None:
            endpoints = self.settings.endpoints
            self._current = Link(endpoints[self._position % len(endpoints)], self.settings)
        return self._current

    def failed(self, link: Link) -> None:
        """Whoever comes next uses the next endpoint. Calls under way on this one go on."""
        if link is self._current:
            self._current = None
            self._position += 1
            link.retire()

    def close(self) -> None:
        if self._current is not None:
            self._current.retire()
            self._current = None

    async def authenticate(self, link: Link, timeout: float, *, refused: str | None = None) -> None:
        """Gets the link a token if it needs one and has none but `refused`. Raises RpcFailed."""
        username, password = self.settings.username, self.settings.password
        if username is None or password is None:
            return
        async with link.authenticating:
            if link.token is not None and link.token != refused:
                return
            request = wire.authenticate_request(username, password())
            link.token = None
            try:
                link.token = wire.read_text(await link.unary(wire.AUTHENTICATE, request, timeout))
            except RpcFailed as error:
                if _AUTH_OFF not in error.details:
                    raise
                link.token = ""

    async def call(self, path: str, request: bytes, *, give_up: float, repeatable: bool = True) -> bytes:
        """The answer, before `give_up` (trio time). A call that is not repeatable is sent once at most.

        Raises StoreUnavailable, StoreRefused, Compacted, LeaseExpired, ValueError.
        """
        backoff = Backoff()
        unknown = False
        trouble = "no answer"
        while (left := give_up - trio.current_time()) > 0 and not unknown:
            link = self.link()
            # A stalled endpoint must leave time for the others.
            timeout = left if not repeatable else min(left, max(0.5, self.deadline / len(self.settings.endpoints)))
            token = link.token
            try:
                if token is None:
                    await self.authenticate(link, timeout)
                    token = link.token
                return await link.unary(path, request, timeout)
            except RpcFailed as error:
                trouble = str(error)
                if error.needs_token and self.settings.username is not None:
                    await self._renew(link, token, timeout)
                elif error.passing:
                    self.failed(link)
                    unknown = not repeatable and not any(text in error.details for text in _NEVER_SENT)
                else:
                    raise self.translated(error) from error
            if not unknown:
                await backoff.pause()
        raise StoreUnavailable(
            f"{self.description} did not answer within {self.deadline:g} s: {trouble}", outcome_unknown=unknown
        )

    async def _renew(self, link: Link, refused: str | None, timeout: float) -> None:
        try:
            await self.authenticate(link, timeout, refused=refused)
        except RpcFailed as error:
            if not error.passing:
                raise self.translated(error) from error
            self.failed(link)

    def translated(self, error: RpcFailed) -> Exception:
        """What a status that will not go away means in the contract."""
        details = error.details
        match error.code:
            case grpc.StatusCode.OUT_OF_RANGE if "compacted" in details:
                return Compacted(0)
            case grpc.StatusCode.NOT_FOUND if "lease" in details:
                return LeaseExpired(details)
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return StoreUnavailable(f"{self.description}: {details}")
            case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
                return StoreRefused(f"{self.description}: {details}")
            case grpc.StatusCode.INVALID_ARGUMENT if "authentication failed" in details or "user name" in details:
                return StoreRefused(f"{self.description}: {details}")
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
                return ValueError(f"{self.description}: {details}")
            case _:
                return StoreError(f"{self.description}: {error}")
