"""Why a decision of the federation could not be made. Those of the store are in store.contract."""

from __future__ import annotations


class DecisionFailed(Exception):
    """Nothing was decided, or it is not visible here yet; asking again later is safe and may succeed."""


class Undecided(DecisionFailed):
    """The answer depends on a cluster that does not answer."""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(f"{cluster}: {reason}")
        self.cluster = cluster
        self.reason = reason


class ViewBehind(DecisionFailed):
    """The decision is in the store, but this process's view did not show it within the bound."""


class StubRefused(DecisionFailed):
    """A topic has no stub on a group's home: another topic of that name is in the way, or the cluster refuses it.

    `code` is the Kafka error the cluster answered with, 0 where the federation itself refuses.
    """

    def __init__(self, cluster: str, topic: str, reason: str, code: int = 0) -> None:
        super().__init__(f"no stand-in for topic {topic!r} on {cluster}: {reason}")
        self.cluster = cluster
        self.topic = topic
        self.reason = reason
        self.code = code


class SettingsRefused(Exception):
    """The configuration does not fit what the store holds; the message says what to change."""
