"""What the federation says of topics that are mirrored, out of this process's view."""

from __future__ import annotations

from metadata_service.member import Member
from metadata_service.operations.records import ENDED
from replicator.placed import Timeline

MAX_MESSAGE = "max.message.bytes"
FRESH_SECONDS = 8.0  # a topic that has moved is emptied at its old place later than that


class ViewPlaces:
    """`replicator.placed.Places`, always by the newest view."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def timeline(self, topic: str) -> Timeline:
        served = self._member.view.topics.get(topic)
        return served.record.timeline if served is not None else ()

    def moving(self, topic: str) -> bool:
        return any(topic in one.topics and one.step not in ENDED for one in self._member.view.migrations.values())

    def limit(self, topic: str) -> int | None:
        for one in self._member.view.migrations.values():
            if one.closing and topic in one.topics:
                value = one.saved.get(topic, {}).get(MAX_MESSAGE)
                if value is not None:
                    return int(value)
        return None

    def fresh(self) -> bool:
        age = self._member.following.age()
        return age is not None and age < FRESH_SECONDS
