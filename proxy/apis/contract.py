"""What an API's handler may use, and what it must give.

A handler is `async def handler(call, version, request) -> response` over decoded messages (see kafka_wire.codec).
Requests of one connection are handled one at a time, in order, as a broker does it; responses keep that order.
Whatever a handler asks of a cluster is asked as the connection's own principal: on the connection's own broker
over the client's own connection, elsewhere through the identity rules. A handler reads `call.view` once and judges
the whole request by it (I6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from kafka_wire.codec import Message
from metadata_service.models import HomeRecord
from metadata_service.view import View


class ClusterAway(Exception):
    """A cluster (or the one broker asked for) did not answer within the bound, or refused the connection."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(f"{cluster}: {reason}")
        self.cluster = cluster
        self.reason = reason


class Refused(Exception):
    """The whole request is answered with this Kafka error; `refusals.refusal` builds the response."""

    def __init__(self, code: int, text: str | None = None) -> None:
        super().__init__(text or str(code))
        self.code = code
        self.text = text


class CloseConnection(Exception):
    """The connection cannot go on (for example, its broker died in the middle of a request)."""


class Federation(Protocol):
    """Decisions that change the federation's state: each is one compare-and-swap, agreed among all proxies.

    Each waits, bounded, until this worker's view shows the result. StoreUnavailable (metadata_service.store) is
    raised where the store is away: what is known goes on being served, nothing new is decided.
    """

    async def find_topics(self, names: Iterable[str]) -> None:
        """Look names the view does not have up on all clusters (rate-limited) and adopt what is found."""

    async def find_topic_ids(self, ids: Iterable[bytes]) -> None:
        """The same by topic id."""

    def place_topic(self, name: str) -> str:
        """The cluster a new topic of this name goes to, by the rules (nothing is recorded)."""

    async def topics_created(self, cluster: str, names: Iterable[str]) -> None:
        """Record topics just created on their cluster, and wait until the view serves them with all partitions."""

    async def topics_deleted(self, names: Iterable[str]) -> None:
        """Forget topics just deleted on their cluster (stubs with commits stay, without a topic to stand for)."""

    async def partitions_created(self, names: Iterable[str]) -> None:
        """Take over new partition counts; stubs first."""

    async def settings_changed(self, operation: str, topic: str, values: Mapping[str, str | None]) -> None:
        """A topic that is being moved has other settings now (None: its cluster's default)."""

    async def view_changed(self, known: View, timeout: float) -> None:
        """Returns when the newest view is another one than `known`, or after `timeout` seconds."""

    async def expand_stubs(self, counts: Mapping[str, int]) -> None:
        """Expand the stubs of topics to these counts: to be awaited before the topics themselves are expanded."""

    async def group_home(self, group: str, recorded: Callable[[str], Awaitable[bool]]) -> str:
        """The home of a group: recorded, else where its commits are, else by the rules. `recorded(home)` tells
        whether a home that was just decided is to be recorded: it is being used, and not only asked for."""

    async def transaction_home(self, transactional_id: str, recorded: Callable[[str], Awaitable[bool]]) -> str:
        """The same for a transactional id; it is not fixed until it has named a topic."""

    async def transaction_writes(self, transactional_id: str, cluster: str) -> str:
        """It names a topic of `cluster`: fixes the home there if it was not fixed yet. Returns the home."""

    async def tie_transaction_to_group(self, transactional_id: str, group: str) -> str:
        """AddOffsetsToTxn: group and id get one home if neither is fixed elsewhere. Returns the id's home."""

    async def ensure_stubs(self, cluster: str, topics: Iterable[str]) -> None:
        """Each topic that lives elsewhere gets a closed stub with its partition count on `cluster`, known there."""

    async def groups_deleted(self, groups: Iterable[str]) -> None:
        """Forget the homes of deleted groups."""

    async def home_changed(self, group: str, known: HomeRecord, timeout: float) -> None:
        """Returns when the view has another record of the group than `known`, or after `timeout` seconds."""

    def refresh(self, cluster: str) -> None:
        """The cluster's metadata has changed (a NOT_LEADER passed by, a topic was created): read it again soon."""

    async def record_change(self, by: str, what: str, plan: Mapping[str, object], result: Mapping[str, object]) -> None:
        """Append to the history."""


class Call(Protocol):
    """One request's surroundings."""

    view: View
    cluster: str  # the cluster of this connection's broker
    broker: int  # that broker's physical id; -1 on a bootstrap connection (any broker of the cluster)
    listener: str
    client_id: str | None
    client_host: str
    federation: Federation

    def latest(self) -> View:
        """The newest view (after a decision of `federation` was awaited)."""

    def unbind(self) -> None:
        """From here on nothing is judged by `view`: nobody who waits until an older revision is out of use need wait
        for this request. For those that rest at a broker for long; their handlers look at `latest` afterwards."""

    async def principal(self) -> str:
        """Who this connection is, as `"User:alice"`: asked of the broker the first time (never guessed)."""

    async def forward(self, request: Message, version: int | None = None) -> Message:
        """This request's API, to this connection's broker on the client's own connection, in order.

        Raises CloseConnection where that broker is gone. There is no deadline: joins and long polls take their time.
        """

    async def ask(
        self, cluster: str, key: int, request: Message, *, broker: int | None = None, timeout: float = 20.0
    ) -> Message:
        """Any API, any cluster, as this connection's principal, at the highest version we and that broker speak.

        `broker` is a physical id; None: any live broker of the cluster (KRaft brokers forward to the controller).
        `timeout` (seconds) is shortened for a cluster that did not answer lately; the client waits behind it, and gives
        up after 30 seconds by itself.

        Raises:
            ClusterAway: no answer. Refused: the identity rules do not allow asking there for this principal.
        """

    async def ask_clusters(
        self, key: int, requests: Mapping[str, Message], *, timeout: float = 20.0
    ) -> dict[str, Message | ClusterAway | Refused]:
        """`ask` of several clusters at once; failures are values, so that a merge can name them."""

    async def visible(self, cluster: str, operation: int, resource_type: int, names: Iterable[str]) -> set[str]:
        """Those names of a cluster on which this principal may do `operation` (AclOperation / ResourceType codes)."""

    async def decidable(self, cluster: str) -> bool:
        """Whether `visible` can tell for every operation (a custom authorizer's rules are not known).

        Raises:
            ClusterAway: not now.
        """

    def address(self, cluster: str, broker: int) -> tuple[str, int] | None:
        """(advertised host, port) of a virtual broker on this connection's listener, None if none is allocated."""


Handler = Callable[[Call, int, Message], Awaitable[Message]]
