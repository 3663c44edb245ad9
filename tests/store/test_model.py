"""Commit semantics against the simplest model there is: a dict, over the embedded server's whole stack."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_service.store.contract import (
    Condition,
    Delete,
    DeletePrefix,
    Exists,
    KeyValue,
    Operation,
    Put,
    Snapshot,
    Unchanged,
    check_commit,
)
from metadata_service.store.embedded import EmbeddedBackend
from metadata_service.store.embedded_server import default_socket, serve
from metadata_service.store.opened import OpenedStore, open_backend

KEYS = st.sampled_from(["a", "a/", "a/b", "a/c", "b", "b/c", "é", "é/b"])
OPERATIONS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=2)),
    st.builds(Delete, KEYS),
    st.builds(DeletePrefix, st.sampled_from(["", "a", "a/", "b", "z"])),
)
# A condition on a key's age: how many of the model's revisions back it was last written; or that it does not exist.
CONDITIONS = st.one_of(
    st.builds(Exists, KEYS),
    st.tuples(KEYS, st.sampled_from(["current", "stale", "none"])),
)
Planned = tuple[list[Any], list[Operation], list[Operation]]
COMMITS = st.tuples(
    st.lists(CONDITIONS, max_size=2), st.lists(OPERATIONS, max_size=4), st.lists(OPERATIONS, max_size=2)
)
RESTART = "restart"


class Model:
    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.items: dict[str, KeyValue] = {}

    def condition(self, planned: Any) -> Condition:
        if isinstance(planned, Exists):
            return planned
        key, age = planned
        current = self.items[key].mod_revision if key in self.items else 0
        return Unchanged(key, {"current": current, "stale": max(1, current - 1), "none": 0}[age])

    def holds(self, condition: Condition) -> bool:
        if isinstance(condition, Exists):
            return condition.key in self.items
        return condition.mod_revision == (self.items[condition.key].mod_revision if condition.key in self.items else 0)

    def commit(self, conditions: list[Condition], operations: list[Operation], otherwise: list[Operation]) -> bool:
        succeeded = all(map(self.holds, conditions))
        before = dict(self.items)
        for step in operations if succeeded else otherwise:
            if isinstance(step, Put):
                old = self.items.get(step.key)
                created, version = (self.revision + 1, 1) if old is None else (old.create_revision, old.version + 1)
                self.items[step.key] = KeyValue(step.key, step.value, created, self.revision + 1, version)
            else:
                for key in [key for key in self.items if self.deletes(step, key)]:
                    del self.items[key]
        self.revision += before != self.items
        return succeeded

    def deletes(self, step: Delete | DeletePrefix, key: str) -> bool:
        return key.startswith(step.prefix) if isinstance(step, DeletePrefix) else key == step.key

    @property
    def sorted(self) -> tuple[KeyValue, ...]:
        return tuple(self.items[key] for key in sorted(self.items))


async def compare(plan: list[Planned], directory: Path) -> None:
    backend = EmbeddedBackend(default_socket(directory), progress_interval=0.01)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, directory)
        store = await open_backend(backend)
        start = (await store.range("")).revision
        model = Model(start)
        states = {start: model.sorted}
        for step in plan:
            conditions = [model.condition(planned) for planned in step[0]]
            try:
                check_commit(conditions, step[1], step[2])
            except ValueError:
                continue
            done = await store.commit(conditions, step[1], step[2])
            assert done.succeeded == model.commit(conditions, step[1], step[2])
            assert done.revision == model.revision
            assert (await store.range("")).items == model.sorted
            states[model.revision] = model.sorted
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, directory)
        found = await store.range("")
        assert (found.revision, found.items) == (model.revision, model.sorted)
        await check_history(store, start, states)
        nursery.cancel_scope.cancel()
    await backend.aclose()


async def check_history(store: OpenedStore, start: int, states: dict[int, tuple[KeyValue, ...]]) -> None:
    """The changes lead from each state to the next, with the right previous values."""
    items: dict[str, KeyValue] = {}
    async with store.watch("", start + 1) as watch:
        for revision in range(start + 1, max(states) + 1):
            change = await anext(watch)
            assert change.revision == revision
            for event in change.events:
                assert event.previous == items.pop(event.kv.key, None)
                if event.kind == "put":
                    items[event.kv.key] = event.kv
            assert tuple(items[key] for key in sorted(items)) == states[revision]
    async with store.follow("") as following:
        snapshot = await anext(following)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.items == states[max(states)]


@settings(deadline=None, max_examples=60)
@given(st.lists(COMMITS, max_size=12))
def test_commits_do_what_a_dict_would(plan: list[Planned]) -> None:
    """... and after a restart everything is as it was, the history included."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(compare, plan, Path(directory))
