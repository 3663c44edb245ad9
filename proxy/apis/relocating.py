"""Topics that are being moved, as those need to know who would change them meanwhile. Pure.

While a topic moves, what closes it belongs to the move alone: a change of these settings that comes late would open a
closed topic. Other settings, and partition counts, may change as long as no writes are held.
"""

from __future__ import annotations

from metadata_service.operations.gates import CLOSED
from metadata_service.operations.records import BEFORE_SWITCH, ENDED, MigrationRecord
from metadata_service.view import View

WAIT = 8.0  # seconds a change waits for a hold to end: longer than a hold is


def leaving(view: View, topic: str) -> MigrationRecord | None:
    """The migration that is to take a topic away from where it is served; None: it stays, or has been switched."""
    for record in view.migrations.values():
        if topic in record.topics and record.step in BEFORE_SWITCH and record.step not in ENDED:
            return record
    return None


def held(view: View, topic: str) -> bool:
    """Whether it is just being switched: what changes it waits."""
    for record in view.migrations.values():
        if topic in record.topics and record.hold in ("draining", "held", "lifted", "switched"):
            return True
    return False


def saved(view: View, topic: str) -> dict[str, str | None] | None:
    """What a topic had before it was closed by a move (None: no value of its own); None: no move has closed it."""
    for record in view.migrations.values():
        served = view.topics.get(topic)
        if topic in record.saved and served is not None and served.cluster == record.source:
            return dict(record.saved[topic])
    return None


__all__ = ["CLOSED", "WAIT", "held", "leaving", "saved"]
