"""What the admin API needs from the process that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Document = dict[str, object]
"""Something that goes out as one JSON object."""


class NotFound(Exception):
    """There is no such topic, group or operation; answered with 404."""


class Conflict(Exception):
    """What was to be changed is not (any longer) as the caller thought; answered with 409. Nothing was changed."""


class Wrong(Exception):
    """The request cannot be meant; answered with 400. Nothing was changed."""


class Unavailable(Exception):
    """What the answer depends on (the store, a cluster, a worker) is away; answered with 503."""


class Office(Protocol):
    """Where the answers come from: all documents are made here, all changes are made and recorded here.

    Any call may raise NotFound, Conflict, Wrong or Unavailable. Documents hold no credentials, except `store_export`.
    """

    read_only: bool  # this process answers questions, and changes nothing

    async def status(self) -> Document: ...

    async def clusters(self) -> Document: ...

    async def topics(self) -> Document: ...

    async def topic(self, name: str) -> Document: ...

    async def groups(self) -> Document: ...

    async def group(self, name: str) -> Document: ...

    async def group_home_plan(self, name: str, cluster: str) -> Document:
        """What it means that a group is at home on `cluster`. Conflict, where it cannot be without a move."""

    async def group_home(self, name: str, cluster: str, by: str) -> Document:
        """Make it so."""

    async def group_move(self, name: str, cluster: str, apply: bool, by: str) -> Document:
        """What moving a group's home means, or with `apply` and without problems, begin it."""

    async def eject(self, name: str, undo: bool, apply: bool, by: str) -> Document:
        """What it means that a topic leaves the federation, or with `apply`, begin it; `undo`: take it back."""

    async def mirrors(self, topic: str | None = None) -> Document:
        """All mirrors with their partitions, or those of a topic (NotFound: it has none)."""

    async def mirror_create(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        """What creating mirrors would do, or with `apply` and without problems, do it. Returns when they copy."""

    async def mirror_remove(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        """Likewise for removing them. Returns when they are gone."""

    async def mirror_state(self, action: str, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        """Likewise for `pause`, `resume` and `rebuild`; the first two without topics concern the links. Returns at
        once (NotFound: another action)."""

    async def offset(self, topic: str, partition: int, offset: int, source: str, target: str) -> Document:
        """The offset on cluster `target` of the record at an offset on `source`, both physical."""

    async def proxies(self) -> Document: ...

    async def operations(self) -> Document: ...

    async def operation(self, identifier: str) -> Document: ...

    async def operation_change(self, identifier: str, action: str, by: str) -> Document:
        """`pause`, `resume` or `abort` it. Conflict, where that cannot be at its step."""

    async def migrate(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        """What moving topics would do, or with `apply` and without problems, begin it."""

    async def process_dead(self, name: str, apply: bool, by: str) -> Document:
        """What it means that a registered process is dead, or with `apply` take its registration out."""

    async def config(self) -> Document: ...

    async def doctor(self) -> Document: ...

    async def history(self, limit: int) -> Document:
        """The newest `limit` changes, newest first."""

    async def config_diff(self, wanted: Mapping[str, object]) -> Document:
        """What a configuration file (`clusters`, `placement`) says differently from the store; changes nothing."""

    async def config_apply(self, wanted: Mapping[str, object], revision: int | None, by: str) -> Document:
        """Make it so. Conflict, where `revision` is given and the configuration has changed since."""

    async def store_export(self, by: str) -> Document: ...

    async def store_import_plan(self, exported: Mapping[str, object]) -> Document: ...

    async def store_import(self, exported: Mapping[str, object], by: str) -> Document: ...

    async def verify(self, asked: Mapping[str, object]) -> Document:
        """The next piece of an audit of mirrors; it changes nothing."""

    async def metrics(self) -> bytes:
        """Prometheus text of this process and of the workers it answers for."""

    def not_ready(self) -> list[str]:
        """Why clients cannot be served yet; empty when they can."""
