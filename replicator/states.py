"""What a mirrored partition can be in, and the figures it shows. A state that stops copying waits for an operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Condition(StrEnum):
    """Where a partition stands; those in `STOPPED` copy nothing until somebody decides."""

    STARTING = "starting"
    COPYING = "copying"
    CAUGHT_UP = "caught_up"
    DENIED = "denied"  # the service lacks a right; it is tried again until somebody gives it
    UNFIT = "unfit"  # the target's configuration has come to change or drop records; it goes on once that is mended
    TRUNCATED = "truncated"  # the source lost records that were copied (unclean election)
    RECREATED = "recreated"  # the source's topic was deleted and created anew
    MISSING = "missing"  # the source's topic or partition is gone
    OCCUPIED = "occupied"  # the target held records of others before the mirror began
    INCOMPLETE = "incomplete"  # the target is a former copy that lacks what the source still has
    TARGET_LOST = "target_lost"  # the target's log ends before what it had acknowledged, or contradicts the journal
    CORRUPT = "corrupt"  # a batch of the source has a wrong CRC
    REFUSED = "refused"  # the target does not take a batch: too large, a timestamp out of bounds


STOPPED = frozenset(
    {
        Condition.TRUNCATED,
        Condition.RECREATED,
        Condition.MISSING,
        Condition.OCCUPIED,
        Condition.INCOMPLETE,
        Condition.TARGET_LOST,
        Condition.CORRUPT,
        Condition.REFUSED,
    }
)

WAY_OUT = {
    Condition.DENIED: "give the service the right that is named",
    Condition.UNFIT: "give the target's topic back the settings that are named",
    Condition.TRUNCATED: "the target holds records that the source lost: keep them and stop the mirror, or rebuild it",
    Condition.RECREATED: "remove the mirror and create it again; the target keeps the old topic's records till then",
    Condition.MISSING: "remove the mirror, or create the source's topic",
    Condition.OCCUPIED: "choose an empty target, or rebuild it in place",
    Condition.INCOMPLETE: "rebuild it in place: it is emptied, and everything is copied again",
    Condition.TARGET_LOST: "rebuild the copy: with its topic deleted, it is made and filled anew",
    Condition.CORRUPT: "let the source's replicas be repaired; deleting records up to the batch goes on behind it",
    Condition.REFUSED: "widen the target's limits (max.message.bytes, message.timestamp.*.max.ms)",
}


class Stop(Exception):
    """A partition must not go on."""

    def __init__(self, condition: Condition, detail: str) -> None:
        super().__init__(f"{condition}: {detail}")
        self.condition = condition
        self.detail = detail


@dataclass(slots=True)
class Status:
    """A partition's figures. Offsets are the source's, physical; times are Unix seconds, 0 for never."""

    condition: Condition = Condition.STARTING
    detail: str = ""
    position: int = -1
    end: int = -1  # the source's last stable offset
    records: int = 0  # copied in all
    bytes: int = 0  # copied by this process
    left_out: int = 0  # batches: control, aborted, mirrored
    foreign: int = 0  # target offsets written by others into a ship's target
    evicted: int = 0  # producers that the guard forgot early, for want of room
    overtaken: int = 0  # source offsets that retention removed before they were copied
    last_copied: float = 0.0
    behind_since: float = 0.0
    restarts: int = 0
    retry_at: float = 0.0  # REFUSED: when it is tried again

    @property
    def lag(self) -> int:
        """Offsets of the source that are not on the target yet."""
        return max(self.end - self.position, 0) if self.end >= 0 and self.position >= 0 else -1

    @property
    def lag_bytes(self) -> int:
        """An estimate: the lag at the mean size of what was copied. -1 where nothing was."""
        if self.lag <= 0:
            return self.lag
        return self.lag * self.bytes // self.records_here if self.records_here else -1

    records_here: int = 0  # copied by this process

    def lag_seconds(self, now: float) -> float:
        """For how long there has been something to copy."""
        return max(now - self.behind_since, 0.0) if self.lag > 0 and self.behind_since else 0.0
