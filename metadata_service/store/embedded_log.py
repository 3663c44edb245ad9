"""The embedded store on disk: one SQLite file, written by one thread.

WAL with synchronous=FULL: what `save` has returned for survives a kill and a power cut, and a save is found whole or
not at all. All functions block and run in a worker thread.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec

from metadata_service.store.contract import Change, KeyValue, StoreError
from metadata_service.store.embedded_state import FIRST_REVISION, State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMAT = 1
"""Of the tables; kept in SQLite's user_version."""

_TABLES = """
CREATE TABLE progress (revision INTEGER NOT NULL, compacted INTEGER NOT NULL);
CREATE TABLE items (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE history (revision INTEGER PRIMARY KEY, change BLOB NOT NULL);
CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);
"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


class Delta(msgspec.Struct):
    """What a save adds to the file."""

    revision: int
    compacted: int
    changes: list[Change]
    granted: list[tuple[int, int]]
    ended: list[int]


class Log:
    """Use from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises StoreError where it was written by a newer release, sqlite3.Error."""
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise StoreError(f"{path} has format {found}, this release knows {FORMAT}: use a newer release")
            if found == 0:
                self._create()
        except BaseException:
            self._db.close()
            raise

    def _create(self) -> None:
        self._db.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} INSERT INTO progress VALUES ({FIRST_REVISION}, 0); "  # noqa: S608
            f"PRAGMA user_version={FORMAT}; COMMIT"
        )

    def load(self, now: float) -> State:
        revision, compacted = self._db.execute("SELECT revision, compacted FROM progress").fetchone()
        return State(
            revision=revision,
            compacted=compacted,
            items=[
                KeyValue(*row)
                for row in self._db.execute(
                    "SELECT key, value, create_revision, mod_revision, version, lease FROM items"
                )
            ],
            leases=self._db.execute("SELECT id, ttl FROM leases").fetchall(),
            history=[
                _decoder.decode(change)
                for (change,) in self._db.execute("SELECT change FROM history ORDER BY revision")
            ],
            now=now,
        )

    def save(self, delta: Delta) -> None:
        """Returns once all of it is durable. Raises sqlite3.Error, and then nothing of it is in the file."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._write(delta)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write(self, delta: Delta) -> None:
        run = self._db.execute
        newest: dict[str, KeyValue | None] = {}
        for change in delta.changes:
            for event in change.events:
                newest[event.kv.key] = event.kv if event.kind == "put" else None
        self._db.executemany(
            "INSERT OR REPLACE INTO items (key, value, create_revision, mod_revision, version, lease)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
                for kv in newest.values()
                if kv is not None
            ],
        )
        self._many("DELETE FROM items WHERE key = ?", (key for key, kv in newest.items() if kv is None))
        self._db.executemany(
            "INSERT INTO history VALUES (?, ?)",
            [
                (change.revision, _encoder.encode(change))
                for change in delta.changes
                if change.revision > delta.compacted
            ],
        )
        run("DELETE FROM history WHERE revision <= ?", (delta.compacted,))
        self._db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?)", delta.granted)
        self._many("DELETE FROM leases WHERE id = ?", delta.ended)
        run("UPDATE progress SET revision = ?, compacted = ?", (delta.revision, delta.compacted))

    def _many(self, statement: str, values: Iterable[object]) -> None:
        self._db.executemany(statement, [(value,) for value in values])

    def stored_revision(self) -> int:
        (revision,) = self._db.execute("SELECT revision FROM progress").fetchone()
        return int(revision)

    def close(self) -> None:
        self._db.close()
