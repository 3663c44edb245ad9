"""Which requests may simply be passed on. Pure functions over a view.

Default deny: a Produce or Fetch passes only where the view places every topic it names on this connection's
cluster and none of them asks for a closer look (a translation, a hold). Everything else is decoded and handled.
"""

from __future__ import annotations

from collections.abc import Iterable

from kafka_wire.codec import Message, decode
from kafka_wire.produce_view import TOPIC_IDS_FROM, ProduceHead
from metadata_service.view import View

PRODUCE, FETCH = 0, 1
FETCH_TOPIC_IDS_FROM = 13


def topic_passes(view: View, cluster: str, topic: str | bytes) -> bool:
    """Whether `cluster` serves the topic (by name, or by logical id) untranslated."""
    served = view.topics.get(topic) if isinstance(topic, str) else view.topics_by_id.get(topic)
    return served is not None and served.cluster == cluster and not served.special


def transaction_passes(view: View, cluster: str, transactional_id: str | None) -> bool:
    """Whether a write of this transactional id (None: no transaction) belongs on `cluster`."""
    if transactional_id is None:
        return True
    home = view.transactions.get(transactional_id)
    return home is not None and home.written and home.cluster == cluster


def head_passes(view: View, cluster: str, head: ProduceHead) -> bool:
    """Whether a Produce request that names one partition may be passed on by its head alone."""
    return (
        head.single
        and head.topic is not None
        and topic_passes(view, cluster, head.topic)
        and transaction_passes(view, cluster, head.transactional_id)
    )


def produce_topics(version: int, request: Message) -> Iterable[str | bytes]:
    """The topics a decoded Produce request names."""
    key = "topic_id" if version >= TOPIC_IDS_FROM else "name"
    return (topic[key] for topic in request["topic_data"])


def produce_passes(view: View, cluster: str, version: int, request: Message) -> bool:
    """The same for a whole, decoded Produce request."""
    return transaction_passes(view, cluster, request["transactional_id"]) and all(
        topic_passes(view, cluster, topic) for topic in produce_topics(version, request)
    )


def fetch_topics(version: int, request: Message) -> Iterable[str | bytes]:
    """The topics a decoded Fetch request names (an incremental one names only what changes in its session)."""
    key = "topic_id" if version >= FETCH_TOPIC_IDS_FROM else "topic"
    return (topic[key] for topic in request["topics"])


def fetch_passes(view: View, cluster: str, version: int, request: Message) -> bool:
    """Whether every topic of a decoded Fetch request may be read here."""
    return all(topic_passes(view, cluster, topic) for topic in fetch_topics(version, request))


def decode_produce(version: int, frame: memoryview, body: int) -> Message:
    """A Produce request with its records left where they are. Raises DecodeError."""
    return decode("request", PRODUCE, version, frame, body)
