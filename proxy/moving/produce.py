"""A Produce request that names topics which are being moved: split, and answered when its parts are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.frames import parse_response
from kafka_wire.produce_view import TOPIC_IDS_FROM
from proxy.apis.contract import CloseConnection, Refused
from proxy.apis.data import ABORTABLE_FROM, Split, split_produce
from proxy.apis.refusals import refusal
from proxy.apis.transactions import note_refused
from proxy.session.session import Kind, Session, Slot

if TYPE_CHECKING:
    from proxy.moving.writes import Request
    from proxy.session.call import SessionCall

PRODUCE = 0
IMPLICIT_FROM = 12  # a transactional Produce adds its partitions to the transaction by itself (KIP-890)


async def fenced_produce(session: Session, call: SessionCall, slot: Slot, request: Message) -> None:
    """Take the request on. Its answer is made later, in its turn; the next request need not wait for it.

    Raises:
        Refused, DecisionFailed, StoreError: the whole request is refused. CloseConnection: so ends acks=0.
    """
    moving = session.around.moving
    assert moving is not None
    version = slot.version
    field = "topic_id" if version >= TOPIC_IDS_FROM else "name"
    mine = [topic for topic in request["topic_data"] if moving.concerned(topic[field])]
    others = [topic for topic in request["topic_data"] if not moving.concerned(topic[field])]
    codes: dict[str | bytes, int] = {}
    begins: frozenset[str | bytes] = frozenset()
    home: str | None = None
    if (transactional_id := request["transactional_id"]) is not None:
        # Its transaction lives where its home is, and so must the topic by now; the old place forwards what it gets.
        home = await call.federation.transaction_writes(transactional_id, moving.cluster_of(mine[0][field]))
        away = [topic[field] for topic in mine if moving.cluster_of(topic[field]) != home]
        if away:
            note_refused(transactional_id)
            abort = ERROR.TRANSACTION_ABORTABLE if version >= ABORTABLE_FROM else ERROR.TOPIC_AUTHORIZATION_FAILED
            codes = dict.fromkeys(away, int(abort))
        if version >= IMPLICIT_FROM:
            # Also of those that still come to the place before, and are forwarded.
            names = {topic[field]: moving.name(topic[field]) for topic in mine if topic[field] not in away}
            waiting = await moving.begun(home, request, names.values())
            begins = frozenset(key for key, name in names.items() if name in waiting)
    split = await split_produce(call, version, {**request, "topic_data": others}) if others else None
    await session.room()
    silent = request["acks"] == 0
    sent: Slot | None = None
    if split is not None and split.asked is not None:
        if silent:
            await call.forward_unanswered(split.asked)
        else:
            sent = await session.ask(PRODUCE, version, split.asked)
    slot.kind = Kind.LATER
    order = [topic[field] for topic in request["topic_data"]]
    one = moving.begin(
        session, version, {**request, "topic_data": mine}, None if silent else slot, order, codes, begins, home
    )
    if split is None or sent is None:
        if split is not None and not silent:
            one.rest = split.joined({"responses": []})
        one.settled()
        if split is not None and silent and split.refused:
            raise CloseConnection("acks=0 to a topic that is not served here")
        if session.ended is not None:
            raise CloseConnection(session.ended)
        return
    session.nursery.start_soon(_rest, call, one, split, sent)


async def _rest(call: SessionCall, one: Request, split: Split, sent: Slot) -> None:
    """The answer for the topics that are not being moved."""
    assert sent.done is not None
    await sent.done.wait()
    if sent.answer is None:
        return  # the session has ended
    response = parse_response(PRODUCE, sent.version, sent.answer)[1]
    try:
        one.rest = split.joined(call.clean_produce(response))
    except Refused as error:
        one.rest = refusal(PRODUCE, sent.version, split.request, error.code, error.text)
    one.settled()
