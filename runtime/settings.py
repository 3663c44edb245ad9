"""The configuration file: what its keys mean, and errors that name the key to change.

The file seeds the store once (`clusters`, `placement`); the rest (`store`, `proxy`, `replicator`, `admin`, `log`)
belongs to the process that reads it. Passwords may be given as `password`, or better as `password_file`, which is
re-read when it changes.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

import msgspec
import yaml

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class SettingsError(ValueError):
    """The configuration is wrong; the message names the key and what to change."""


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __repr__(self) -> str:
        """Without passwords: settings end up in tracebacks and logs."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        if values.get("password") is not None:
            values["password"] = "***"  # noqa: S105
        return f"{type(self).__name__}({', '.join(f'{name}={one!r}' for name, one in values.items())})"


class TlsClient(_Settings, frozen=True):
    """TLS towards brokers or etcd. Files are PEM and are re-read for new connections when they change."""

    ca: str | None = None  # authorities to trust; without it, the system's
    cert: str | None = None  # a client certificate, with its chain
    key: str | None = None  # its key, where `cert` does not hold it
    verify_hostname: bool = True  # false: any name, but still a trusted certificate


class Sasl(_Settings, frozen=True):
    """The service's own credentials on a cluster, for what it asks for itself."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    username: str | None = None
    password: str | None = None
    password_file: str | None = None  # a file that holds the password alone
    token_file: str | None = None  # OAUTHBEARER: a file that holds the token, kept fresh by others


class EmbeddedStore(_Settings, frozen=True, tag_field="kind", tag="embedded"):
    """A durable store of one machine, shared by its processes over a Unix socket. `path` is a directory."""

    path: str  # a directory, made where it does not exist; mode 0700


class EtcdStore(_Settings, frozen=True, tag_field="kind", tag="etcd"):
    """etcd: `endpoints` are URLs; a change of `password_file` applies to the next authentication."""

    endpoints: tuple[str, ...]  # `"http://HOST:2379"` or `"https://..."`
    tls: TlsClient | None = None
    username: str | None = None
    password: str | None = None
    password_file: str | None = None


class Cluster(_Settings, frozen=True):
    """One physical cluster, as a Kafka client would reach it."""

    bootstrap: tuple[str, ...]  # `"HOST:PORT"`, of any brokers
    tls: TlsClient | None = None  # without it, plain text
    sasl: Sasl | None = None  # for what the federation asks itself; clients log in as themselves
    # How this cluster decides who may do what, for calls that reach it on behalf of a client of another cluster
    # where delegation tokens are switched off: `auto` asks the cluster; `other` (a custom authorizer) refuses them.
    authorizer: Literal["auto", "none", "standard", "other"] = "auto"
    super_users: tuple[str, ...] = ()  # as the brokers' super.users: `"User:admin"`
    allow_everyone: bool = False  # as the brokers' allow.everyone.if.no.acl.found


class Rule(_Settings, frozen=True):
    """Places new topics, groups or transactional ids whose whole name matches; the first match decides."""

    cluster: str  # where they go
    topics: str | None = None  # a regular expression for the whole name; never matches internal topics
    groups: str | None = None  # likewise
    transactional_ids: str | None = None  # likewise
    standbys: tuple[str, ...] = ()  # clusters that get a copy of each of these topics, kept up to date
    writes: Literal["available", "leased"] = "available"  # whether writes go on while the store is away (recorded)


class Placement(_Settings, frozen=True):
    """Where new topics, groups and transactional ids go; what exists is never moved by a rule."""

    default: str  # the cluster for everything that no rule names
    standbys: tuple[str, ...] = ()  # clusters that get a copy of each of these topics, kept up to date
    rules: tuple[Rule, ...] = ()


class TlsServer(_Settings, frozen=True):
    """TLS towards clients. `client_ca` asks for client certificates and maps their subject to a principal."""

    cert: str  # with its chain
    key: str
    client_ca: str | None = None  # the authorities whose client certificates are accepted, and needed


class Listener(_Settings, frozen=True):
    """An address clients connect to, with a port per virtual broker out of `broker_ports` (`"9301-9399"`).

    `sni` instead names virtual brokers by host behind the one port (needs `tls`): a pattern with `{cluster}` and
    `{broker}`, for example `"b{broker}.{cluster}.kafka.example.org"`.
    """

    name: str = "main"  # addresses are kept under it: renaming gives new ones
    bind: str = "127.0.0.1"
    port: int = 9300  # the bootstrap port
    advertised: str | None = None  # the name or address clients are told; the same for all instances
    broker_ports: str | None = None  # one port for each physical broker, given once and kept
    sni: str | None = None  # instead of broker_ports
    tls: TlsServer | None = None  # without it, plain text


class Limits(_Settings, frozen=True):
    """Bounds of one proxy worker. Sizes in bytes, times in seconds."""

    max_request_bytes: int = 104857600  # socket.request.max.bytes of a broker
    max_response_bytes: int = 1073741824  # of one response from a broker
    buffered_bytes: int = 268435456  # of frames that must be held whole, over all connections of a worker
    connections: int = 20000  # of clients
    connections_per_address: int = 5000  # of clients with one IP address
    first_bytes_timeout: float = 30.0  # until a new connection's first whole request header
    frame_timeout: float = 60.0  # for the rest of a frame once it has begun
    write_timeout: float = 120.0  # a peer that does not read for so long is dropped
    connect_timeout: float = 5.0  # to a broker, TLS included
    idle_timeout: float = 660.0  # a little above the 9 and 10 minutes of clients and brokers
    drain_timeout: float = 8.0  # after SIGTERM; the parent kills what has not ended a second later


class Proxy(_Settings, frozen=True):
    """The listeners of a proxy, and how many worker processes share them."""

    listeners: tuple[Listener, ...] = (Listener(broker_ports="9301-9399"),)
    workers: int = 1  # processes; about one for each core that the proxy may use
    # The federation answers for topics that do not exist as these brokers' auto.create.topics.enable would.
    auto_create_topics: bool = False
    limits: Limits = Limits()


class Replicator(_Settings, frozen=True):
    """Processes that copy between clusters. They share the mirrors' work with those of other instances."""

    workers: int = 1  # processes; `kfed run` starts them with the first mirror, and 0 leaves copying to others
    follow_acls: bool = True  # create a ship's topic ACLs on the target where they are missing; never delete any


class Admin(_Settings, frozen=True):
    """The admin API, `/metrics`, `/healthz` and `/readyz`. A token is required unless `bind` is loopback.

    `port` 0 switches it off. The token file holds at least 16 characters and is re-read when it changes.
    """

    bind: str = "127.0.0.1"
    port: int = 9380
    token_file: str | None = None  # holds the bearer token
    tls: TlsServer | None = None


class Log(_Settings, frozen=True):
    """Logs go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Settings, frozen=True):
    """The whole file."""

    federation: str
    store: EmbeddedStore | EtcdStore
    clusters: dict[str, Cluster]
    placement: Placement
    proxy: Proxy = Proxy()
    replicator: Replicator = Replicator()
    admin: Admin = Admin()
    log: Log = Log()


def port_range(text: str, key: str) -> range:
    """`"9301-9399"` as a range, or SettingsError naming `key`."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not match or not 0 < int(match[1]) <= int(match[2]) < 65536:
        raise SettingsError(f"{key}: {text!r} is no range of ports; write it like 9301-9399")
    return range(int(match[1]), int(match[2]) + 1)


def check(settings: Settings) -> None:
    """What the types cannot say. Raises SettingsError, which names the key."""

    def known(cluster: str, key: str) -> None:
        if cluster not in settings.clusters:
            names = ", ".join(sorted(settings.clusters))
            raise SettingsError(f"{key}: no cluster {cluster!r} under clusters (there are: {names})")

    if not NAME.fullmatch(settings.federation):
        raise SettingsError("federation: use lower-case letters, digits, '.', '_' and '-'")
    if not settings.clusters:
        raise SettingsError("clusters: name at least one cluster")
    for name, cluster in settings.clusters.items():
        key = f"clusters.{name}"
        if not NAME.fullmatch(name):
            raise SettingsError(f"{key}: use lower-case letters, digits, '.', '_' and '-' in a cluster's name")
        if not cluster.bootstrap:
            raise SettingsError(f"{key}.bootstrap: name at least one HOST:PORT")
        for one in cluster.bootstrap:
            if not re.fullmatch(r".+:\d{1,5}", one):
                raise SettingsError(f"{key}.bootstrap: {one!r} is not HOST:PORT")
        if cluster.sasl:
            check_sasl(cluster.sasl, f"{key}.sasl")
    known(settings.placement.default, "placement.default")
    for one in settings.placement.standbys:
        known(one, "placement.standbys")
    for n, rule in enumerate(settings.placement.rules):
        key = f"placement.rules[{n}]"
        known(rule.cluster, f"{key}.cluster")
        for one in rule.standbys:
            known(one, f"{key}.standbys")
        patterns = {"topics": rule.topics, "groups": rule.groups, "transactional_ids": rule.transactional_ids}
        if not any(patterns.values()):
            raise SettingsError(f"{key}: give topics, groups or transactional_ids")
        for field, pattern in patterns.items():
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise SettingsError(f"{key}.{field}: {pattern!r} is no regular expression: {error}") from None
    _check_listeners(settings)
    _check_process(settings)


def check_sasl(sasl: Sasl, key: str) -> None:
    """SettingsError where a mechanism's credentials are incomplete."""
    if sasl.mechanism == "OAUTHBEARER":
        if not sasl.token_file:
            raise SettingsError(f"{key}.token_file: OAUTHBEARER needs a file that holds the token")
    elif not sasl.username or (sasl.password is None) == (sasl.password_file is None):
        raise SettingsError(f"{key}: {sasl.mechanism} needs username and one of password, password_file")


def _check_listeners(settings: Settings) -> None:
    if settings.proxy.workers < 1:
        raise SettingsError("proxy.workers: at least 1")
    if not settings.proxy.listeners:
        raise SettingsError("proxy.listeners: at least one listener")
    names: set[str] = set()
    taken = {(settings.admin.bind, settings.admin.port): "admin.port"} if settings.admin.port else {}
    for n, listener in enumerate(settings.proxy.listeners):
        key = f"proxy.listeners[{n}]"
        if listener.name in names:
            raise SettingsError(f"{key}.name: {listener.name!r} is used twice")
        names.add(listener.name)
        if (listener.sni is None) == (listener.broker_ports is None):
            raise SettingsError(f"{key}: give broker_ports (a port per virtual broker) or sni (a host name pattern)")
        if listener.sni is not None:
            if listener.tls is None:
                raise SettingsError(f"{key}.sni: needs tls, since the name is read from the TLS handshake")
            if "{broker}" not in listener.sni or "{cluster}" not in listener.sni:
                raise SettingsError(f"{key}.sni: the pattern must contain {{cluster}} and {{broker}}")
        if listener.tls is not None and listener.tls.client_ca is not None:
            for name, cluster in settings.clusters.items():
                if cluster.sasl is None:
                    raise SettingsError(
                        f"{key}.tls.client_ca: clients with certificates are served by delegation tokens, which need a "
                        f"login: give clusters.{name}.sasl, or take client_ca away"
                    )
        if not 0 < listener.port < 65536:
            raise SettingsError(f"{key}.port: {listener.port} is no port")
        if listener.advertised is None and listener.bind in ("", "0.0.0.0", "::"):
            raise SettingsError(f"{key}.advertised: needed, since clients cannot connect to bind {listener.bind!r}")
        # The admin port may lie within the range: virtual brokers are then given the others (see broker_ports).
        here = {listener.port: f"{key}.port"}
        if (other := taken.get((listener.bind, listener.port))) is not None:
            raise SettingsError(f"{key}.port: port {listener.port} is already used by {other}")
        if listener.broker_ports is not None:
            for port in port_range(listener.broker_ports, f"{key}.broker_ports"):
                other = here.get(port) or taken.get((listener.bind, port))
                if other is not None and other != "admin.port":
                    raise SettingsError(f"{key}.broker_ports: port {port} is already used by {other}")
                here.setdefault(port, f"{key}.broker_ports")
        for port, what in here.items():
            taken.setdefault((listener.bind, port), what)


def broker_ports(settings: Settings, listener: Listener) -> tuple[int, ...]:
    """The ports that a listener's virtual brokers may be given: its range, without the admin port."""
    if listener.broker_ports is None:
        return ()
    ports = port_range(listener.broker_ports, f"proxy.listeners ({listener.name}).broker_ports")
    return tuple(port for port in ports if port != settings.admin.port)


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reachable from this machine only. Names other than localhost are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_process(settings: Settings) -> None:
    """`admin` and `proxy.limits`."""
    admin = settings.admin
    if not 0 <= admin.port < 65536:
        raise SettingsError(f"admin.port: {admin.port} is no port (0: no admin API)")
    if admin.port and admin.token_file is None and not is_loopback(admin.bind):
        raise SettingsError(
            f"admin.token_file: needed, since admin.bind {admin.bind} is not loopback; write a secret of 16 characters "
            "or more into a file and name it here"
        )
    if not 0 <= settings.replicator.workers <= 64:
        raise SettingsError("replicator.workers: from 0 (none here) to 64")
    limits = settings.proxy.limits
    if limits.drain_timeout > 8.0:
        raise SettingsError("proxy.limits.drain_timeout: at most 8 s, so that a whole process tree ends within 10")
    for name in limits.__struct_fields__:
        if getattr(limits, name) <= 0:
            raise SettingsError(f"proxy.limits.{name}: more than 0")


def parse(text: str) -> Settings:
    """Settings from YAML text.

    Raises:
        SettingsError: not YAML, an unknown or missing key, or a value that cannot be meant.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"not YAML: {' '.join(str(error).split())}") from None
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(str(error).replace(" - at `$.", ": at `").replace(" - at `$", " - at `")) from None
    check(settings)
    return settings


def load(path: str | Path) -> Settings:
    """Settings from a file; relative paths inside it stay relative to the working directory.

    Raises:
        SettingsError: the file cannot be read, or `parse` refuses it.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return parse(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
