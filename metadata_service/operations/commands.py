"""What a migration asks for, as values. Each may be carried out any number of times; `late` says what an old one does
that is carried out by a process which slept meanwhile. Everything that goes to the store is a `Commit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from metadata_service.operations.facts import Part
from metadata_service.operations.records import MigrationRecord


@dataclass(frozen=True, slots=True)
class CreateMirror:
    """See that this ship is there and running. By compare-and-swap in the store. Late: refused there."""

    topic: str
    source: str
    target: str
    operation: str
    rebuild: bool


@dataclass(frozen=True, slots=True)
class FinishMirror:
    """Copy up to exactly these physical ends of the source, write the last control records, and stop. Late: refused in
    the store, or it finishes early, and is begun again by CreateMirror."""

    topic: str
    source: str
    target: str
    operation: str
    ends: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class RemoveMirror:
    """End this operation's ship; the copy stays, closed. Late: nothing, the ship is another operation's."""

    topic: str
    source: str
    target: str
    operation: str


@dataclass(frozen=True, slots=True)
class OpenCopy:
    """Let the target's former copy or stub be written by the mirror. Only for who is a recorded reopener. Late: it
    would open a topic that serves again by then, and is being closed."""

    topic: str
    cluster: str


@dataclass(frozen=True, slots=True)
class CloseCopy:
    """Close a copy that is no mirror's target any longer. Only for who is a recorded reopener. Late: it would close a
    topic that serves by then."""

    topic: str
    cluster: str


@dataclass(frozen=True, slots=True)
class AskSettings:
    """Read the source's settings: those that closing changes."""

    cluster: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Make all leaders refuse records. `saved` is what it had (recorded already). Only for who is a recorded reopener.
    Late, of a process that was declared dead: a closed topic without a closing operation, which is reopened."""

    topic: str
    cluster: str
    saved: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Reopen:
    """Give back the saved settings. Only for who is a recorded reopener. Late: that is why it is recorded, and why no
    new close starts until each has confirmed."""

    topic: str
    cluster: str
    saved: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask every leader whether it takes records."""

    cluster: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class AskOffsets:
    """Read log ends, and of a source high watermarks, last stable offsets and leader epochs too."""

    cluster: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class AskTransactions:
    """Ask all coordinators of the cluster for transactions that name one of the topics."""

    cluster: str
    topics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndTransactions:
    """Abort these ids' open transactions, by a higher producer epoch. Late: a client's transaction is aborted."""

    cluster: str
    transactional_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetFinal:
    """Give the target's topic settings it shall serve with. Before the release only for who is a recorded reopener,
    since those that closing changes are among them: late, as Reopen, in a later move away from the target. What is
    set after the release (`gates.LATER`) closing does not touch: late, a mirror that finds them on its target mends
    them."""

    topic: str
    cluster: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WriteSwitch:
    """Write the switch to the clusters' internal topics, for workers that do not hear the store."""

    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Empty:
    """Delete the old copy's records up to these physical ends; only for who is a recorded retirer. Late: it would take
    records from a copy that is in use again, so no later move of the topic starts until each retirer has confirmed."""

    topic: str
    cluster: str
    ends: Mapping[int, int]


Command = (
    CreateMirror
    | FinishMirror
    | RemoveMirror
    | OpenCopy
    | CloseCopy
    | AskSettings
    | Close
    | Reopen
    | Probe
    | AskOffsets
    | AskTransactions
    | EndTransactions
    | SetFinal
    | WriteSwitch
    | Empty
)


@dataclass(frozen=True, slots=True)
class Change:
    """One more key of a commit. `revision`: what it was decided on, 0 where it must not exist. None deletes."""

    key: str
    record: msgspec.Struct | None
    revision: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Write `record`, the OperationRecord's face and `also`, all or nothing, on the condition that every one of these
    keys is as it was when the facts were gathered, and that this process still is the controller.

    An unknown outcome needs no thought: read again, and go on with what is recorded.
    """

    kind: Literal["step", "hold", "lift", "confirm", "switch", "release", "announce", "end"]
    record: MigrationRecord
    also: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """First the commit, if there is one; then look again. Without one: the commands, in this order, then look again.
    `waits` says to people what it waits for."""

    commit: Commit | None = None
    commands: tuple[Command, ...] = ()
    waits: str = ""
