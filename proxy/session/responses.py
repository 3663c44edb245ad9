"""From the broker: answers are passed back in order, looked at only as far as they can name a physical broker."""

from __future__ import annotations

import struct
import time
from functools import partial

from kafka_wire.codec import DecodeError, Message, decode
from kafka_wire.errors import ERROR, error_text
from kafka_wire.fetch_view import FLEXIBLE_FROM, STALE_LEADER, FetchWalk
from kafka_wire.frames import response_body, response_frame
from kafka_wire.produce_view import TOPIC_IDS_FROM
from metadata_service.models import STRIDE
from metadata_service.view import ServedTopic, View
from offset_sync.timeline import Exhausted
from proxy.apis.contract import CloseConnection
from proxy.session import translated
from proxy.session.session import Kind, Session, Slot, owed
from proxy.session.translated import TranslatingWalk
from proxy.transport.channel import SCRATCH, ChannelClosed, PlainChannel
from proxy.transport.splice import beginning, fill, move, piece

_HEAD = struct.Struct(">ii")  # size, correlation id
HEAD = 8192
SASL_AUTHENTICATE = 36
LARGE = 131072
PIECE = 1 << 18  # of what is sent over TLS at once, which copies it


async def write_responses(session: Session) -> None:
    """Until the broker closes. Raises ChannelClosed or CloseConnection."""
    inbox = session.upstream_inbox
    assert inbox is not None
    slots = session.slots
    while True:
        begun = None
        if inbox.read_size == HEAD and not inbox.pending:
            begun = await beginning(inbox.channel, session.client, session.around.bulk)
        window = await inbox.window(4) if begun is None else begun
        if slots and slots[0].kind is Kind.TOKEN and len(window) >= 4:
            await _token(session, window)
            continue
        if len(window) < 8:
            inbox.keep(window)
            window = await inbox.window(8)
            if len(window) < 8:
                raise ChannelClosed("the broker closed the connection")
        size, correlation = _HEAD.unpack_from(window)
        if not slots or not 4 <= size <= session.around.limits.max_response_bytes:
            raise session.refuse("broker_protocol", error=f"an answer of {size} bytes to {len(slots)} requests")
        slot = slots[0]
        if correlation != slot.correlation or slot.kind is Kind.LATER or slot.kind is Kind.LOCAL:
            slot, window = await _its_turn(session, window, correlation)
        if slot.repeated is not None and len(window) == size + 4 and slot.repeated.fine(window, size):
            await session.client.send(window)
        elif slot.kind is Kind.FETCH:
            await _fetch(session, window, size, slot)
        elif slot.kind is Kind.INNER or slot.kind is Kind.PRODUCE:
            await _whole(session, window, size, slot)
        elif slot.kind is Kind.DROPPED:
            await _drop(session, window, size)
        else:
            if slot.key == SASL_AUTHENTICATE:
                window = await _note_login(session, window, size, slot)
            await _pass(session, window, size)
        if slots[0] is slot:
            slots.popleft()
        else:
            slots.remove(slot)
        if slot.done is not None:
            slot.done.set()
        if slot.kind is not Kind.INNER and slot.kind is not Kind.DROPPED:
            session.answered(slot, size + 4)
        if slots and slots[0].kind is not Kind.PRODUCE and slots[0].kind is not Kind.FETCH:
            await session.flush()  # what was answered here meanwhile and has its turn now
        session.popped()


async def _its_turn(session: Session, window: memoryview, correlation: int) -> tuple[Slot, memoryview]:
    """Whose answer this is, where answers that come before it are still being made here; once it has its turn.

    Answers that no client waits for have it at once. The window is another one then, of owned memory.
    """
    asked = next((one for one in session.slots if one.kind is not Kind.LATER and one.kind is not Kind.LOCAL), None)
    if asked is None or asked.correlation != correlation:
        raise session.refuse("broker_protocol", error="an answer out of order")
    if owed(asked):
        session.passing = asked
        window = memoryview(bytearray(window))
        await session.its_turn(asked)
    return asked, window


async def _drop(session: Session, window: memoryview, size: int) -> None:
    """The answer to a request that was answered here."""
    inbox, end = session.upstream_inbox, size + 4
    assert inbox is not None
    if len(window) >= end:
        inbox.keep(window[end:])
    else:
        await inbox.discard(end - len(window))


async def _token(session: Session, window: memoryview) -> None:
    """The answer to a raw SASL token: a size and bytes, without a header, possibly none at all (PLAIN)."""
    size = int.from_bytes(window[:4], "big", signed=True)
    if not 0 <= size <= SCRATCH:
        raise session.refuse("broker_protocol", error="no SASL token")
    await _pass(session, window, size)
    session.answered(session.slots.popleft(), size + 4)
    await session.flush()


async def _note_login(session: Session, window: memoryview, size: int, slot: Slot) -> memoryview:
    """How long the broker takes a login for valid (KIP-368); the frame is passed on as it is."""
    inbox, end = session.upstream_inbox, size + 4
    assert inbox is not None
    if len(window) < end <= SCRATCH:
        inbox.keep(window)
        window = await inbox.window(end)
    if len(window) >= end:
        try:
            answer = decode(
                "response", slot.key, slot.version, window[4:end], response_body(slot.key, slot.version, window[4:end])
            )
        except DecodeError as error:
            raise session.refuse("broker_protocol", error=str(error)) from None
        if not answer["error_code"]:
            lifetime = answer.get("session_lifetime_ms", 0)
            session.login_ends = time.monotonic() + lifetime / 1000 if lifetime > 0 else 0.0
    return window


async def _pass(session: Session, window: memoryview, size: int) -> None:
    """The frame at the start of `window`, as it is."""
    inbox = session.upstream_inbox
    assert inbox is not None
    end = size + 4
    if len(window) >= end:
        if len(window) > end:
            inbox.keep(window[end:])
        await session.client.send(window[:end])
        return
    left = end - len(window)
    await session.client.send(window, more=True)
    await move(inbox, session.client, left, session.around.pipes)


async def _whole(session: Session, window: memoryview, size: int, slot: Slot) -> None:
    """A frame that is looked at as a whole: a Produce answer, or one a handler asked for."""
    inbox = session.upstream_inbox
    assert inbox is not None
    end = size + 4
    if len(window) >= end:
        if slot.kind is Kind.INNER:
            slot.answer = bytearray(window[4:end])  # handlers change records where they lie
            inbox.keep(window[end:])
            return
        frame = produce_answer(session, window[:end], slot)
        if len(window) > end:
            inbox.keep(window[end:])
        await session.client.send(frame)
        return
    session.passing = slot
    inbox.keep(window)
    async with session.around.budget.hold(size):
        whole = bytearray(end)
        with memoryview(whole) as view:
            await inbox.whole(view)
            if slot.kind is not Kind.INNER:
                await session.client.send(produce_answer(session, view, slot))
        if slot.kind is Kind.INNER:
            del whole[:4]
            slot.answer = whole


def produce_answer(session: Session, frame: memoryview, slot: Slot) -> bytes | memoryview:
    """The answer to a Produce as the client may see it; `frame` has its size prefix."""
    body = response_body(slot.key, slot.version, frame[4:])
    response = decode("response", slot.key, slot.version, frame[4:], body)
    codes = {part["error_code"] for topic in response["responses"] for part in topic["partition_responses"]}
    if isinstance(slot.moved, ServedTopic):
        translated.produce_answer(response, slot.version, slot.moved)
    elif codes == {0}:
        return frame
    if ERROR.MESSAGE_TOO_LARGE in codes:
        closed_not_too_large(session, slot.version, response)
    if codes & STALE_LEADER:
        session.around.federation.refresh(session.cluster)
    clean(session, response, "partition_responses")
    return response_frame(slot.key, slot.version, slot.correlation, response)


def closed_not_too_large(session: Session, version: int, response: Message) -> None:
    """A closed topic's leader calls every batch too large; clients are told to look for the leader again."""
    moving = session.around.moving
    if moving is None:
        return
    for topic in response["responses"]:
        for part in topic["partition_responses"]:
            named = topic["topic_id" if version >= TOPIC_IDS_FROM else "name"]
            if part["error_code"] == ERROR.MESSAGE_TOO_LARGE and moving.closed(named):
                part["error_code"] = int(ERROR.NOT_LEADER_OR_FOLLOWER)


def nothing_fetched(slot: Slot) -> bytes:
    """An answer to a Fetch that makes the client ask again, at once."""
    code = ERROR.FETCH_SESSION_ID_NOT_FOUND if slot.epoch >= 0 else ERROR.NONE
    answer = {"error_code": int(code), "session_id": 0, "responses": []}
    return response_frame(slot.key, slot.version, slot.correlation, answer)


def clean(session: Session, response: Message, partitions: str) -> None:
    """Take everything that names a physical broker out of a decoded Produce or Fetch answer."""
    rewrite_hints(session, response, partitions)
    for topic in response["responses"]:
        for part in topic[partitions]:
            hide_addresses(part)


def hide_addresses(part: Message) -> None:
    """A broker's own words may name addresses; clients get the protocol's sentence for the code instead."""
    if part.get("error_message"):
        part["error_message"] = error_text(part["error_code"])


def rewrite_hints(session: Session, response: Message, partitions: str) -> None:
    """Leader hints (KIP-951) in terms of virtual brokers; those without an address are left out."""
    view = session.around.view()
    cluster = view.clusters.get(session.cluster)
    if cluster is None:
        raise CloseConnection("the cluster is no longer part of the federation")
    for topic in response["responses"]:
        for part in topic[partitions]:
            leader = part.get("current_leader")
            if leader and leader["leader_id"] >= 0:
                part["current_leader"] = leader | {"leader_id": cluster.node(leader["leader_id"])}
    ends = []
    for end in response.get("node_endpoints") or ():
        address = session_address(session, session.cluster, end["node_id"])
        if address:
            ends.append({"node_id": cluster.node(end["node_id"]), "host": address[0], "port": address[1]})
    if "node_endpoints" in response:
        response["node_endpoints"] = ends


def session_address(session: Session, cluster: str, broker: int) -> tuple[str, int] | None:
    """(advertised host, port) of a virtual broker on the session's listener."""
    return session.around.address(session.listener, cluster, broker)


async def _fetch(session: Session, window: memoryview, size: int, slot: Slot) -> None:
    """A Fetch answer: walked, patched in place, its records passed over unread."""
    inbox = session.upstream_inbox
    assert inbox is not None
    session.passing = slot
    cluster = session.around.view().clusters.get(session.cluster)
    if cluster is None:
        raise CloseConnection("the cluster is no longer part of the federation")
    shift, in_range = cluster.record.index * STRIDE, partial(_in_range, session)
    if isinstance(slot.moved, View):
        translating = TranslatingWalk(slot.version, shift, slot.moved, session.cluster, in_range)
        await _fetch_translated(session, window, size, slot.version, translating)
        return
    walk = FetchWalk(slot.version, shift, in_range)
    inbox.read_size = HEAD if size > LARGE else SCRATCH
    end = size + 4
    pos = 8
    if slot.version >= FLEXIBLE_FROM:
        pos = 9
        if len(window) < 9:  # the segment ended there
            inbox.keep(window)
            window = await inbox.window(min(9, end))
        if len(window) < 9 or window[8]:
            raise session.refuse("broker_protocol", error="a response header with tagged fields")
    try:
        if len(window) >= end:
            await _fetch_at_hand(session, window, pos, end, walk, slot)
        else:
            walk.neutralise = True
            await _fetch_in_pieces(session, window, pos, end, walk)
    except DecodeError as error:
        raise session.refuse("broker_protocol", error=f"no Fetch response: {error}") from None
    if walk.stale:
        session.around.federation.refresh(session.cluster)


def _in_range(session: Session, code: int) -> int:
    """The error for an offset that the broker does not have: see `proxy.moving.worker`."""
    moving = session.around.moving
    if moving is None:
        return code
    served = session.around.view().served_generation.get(session.cluster, 0)
    return moving.fetch_code(code, session.fetch_generation == served)


async def _fetch_translated(
    session: Session, window: memoryview, size: int, version: int, walk: TranslatingWalk
) -> None:
    """A Fetch answer with topics that have moved: held whole, since translating may change its size."""
    inbox, end = session.upstream_inbox, size + 4
    assert inbox is not None
    if len(window) >= end:
        pieces = _translated(session, window[:end], version, walk)
        if len(window) > end:
            inbox.keep(window[end:])
        # In one: after a wait the lent memory is somebody else's.
        await session.client.send(pieces[0] if len(pieces) == 1 else b"".join(pieces))
    else:
        inbox.read_size = HEAD if size > LARGE else SCRATCH
        if not session.around.budget.has(size):
            window = memoryview(bytes(window))  # the lent memory is somebody else's after a wait
        async with session.around.budget.hold(size):
            with session.around.frames.lent(end) as frame:
                frame[: len(window)] = window
                await fill(inbox, frame[len(window) :])
                for one in _translated(session, frame, version, walk):
                    await _send_own(session, one)
    if walk.stale:
        session.around.federation.refresh(session.cluster)


def _translated(session: Session, frame: memoryview, version: int, walk: TranslatingWalk) -> list[memoryview | bytes]:
    """The frame (with its size prefix) as it is sent, in pieces."""
    pos = 9 if version >= FLEXIBLE_FROM else 8
    if version >= FLEXIBLE_FROM and (len(frame) < 9 or frame[8]):
        raise session.refuse("broker_protocol", error="a response header with tagged fields")
    try:
        while not walk.done:
            pos, records = walk.advance(frame, pos)
            if records:
                if pos + records > len(frame):
                    raise DecodeError("records that are longer than their frame")
                walk.records(frame, pos, records)
                pos += records
            elif not walk.done:
                raise DecodeError("it ends early")
    except (DecodeError, Exhausted) as error:
        raise session.refuse("broker_protocol", error=f"no Fetch response: {error}") from None
    return walk.rebuilt(frame) if walk.changed else [frame]


async def _send_own(session: Session, data: memoryview | bytes) -> None:
    client = session.client
    if isinstance(client, PlainChannel):
        await client.send_own(memoryview(data))
    else:
        for at in range(0, len(data), PIECE):
            await client.send(data[at : at + PIECE])


async def _fetch_at_hand(session: Session, window: memoryview, pos: int, end: int, walk: FetchWalk, slot: Slot) -> None:
    inbox = session.upstream_inbox
    assert inbox is not None
    frame = window[:end]
    original = bytes(frame) if end <= 4096 else None
    while not walk.done:
        pos, records = walk.advance(frame, pos)
        pos += records
        if (not records and not walk.done) or pos > end:
            raise DecodeError("it ends early")
    answer: bytes | memoryview = frame
    if walk.hints:
        # Decoded from the original: the walk has already patched the node ids of `frame`.
        source = memoryview(original) if original is not None else frame
        response = decode(
            "response", slot.key, slot.version, source[4:], response_body(slot.key, slot.version, source[4:])
        )
        if original is None:
            response["node_endpoints"] = []
        else:
            map_replicas(session, response)
            clean(session, response, "partitions")
            for topic in response["responses"]:
                for part in topic["partitions"]:
                    if part["error_code"] == ERROR.OFFSET_OUT_OF_RANGE:
                        part["error_code"] = _in_range(session, part["error_code"])
        answer = response_frame(slot.key, slot.version, slot.correlation, response)
    if len(window) > end:
        inbox.keep(window[end:])
    await session.client.send(answer)


def map_replicas(session: Session, response: Message) -> None:
    """Preferred read replicas (KIP-392) as virtual brokers."""
    cluster = session.around.view().clusters[session.cluster]
    for topic in response["responses"]:
        for part in topic["partitions"]:
            if "preferred_read_replica" in part:
                part["preferred_read_replica"] = cluster.node(part["preferred_read_replica"])


async def _fetch_in_pieces(session: Session, window: memoryview, pos: int, end: int, walk: FetchWalk) -> None:
    """A frame larger than what is at hand: walked as it comes, long stretches of records spliced."""
    inbox, client, pipes = session.upstream_inbox, session.client, session.around.pipes
    assert inbox is not None
    data = window
    left = end  # of the frame, from the beginning of `data`
    while True:
        while pos <= len(data):
            pos, records = walk.advance(data, pos)
            if not records:
                break
            pos += records
        if pos > left:
            raise DecodeError("records that are longer than their frame")
        unit = 0  # bytes at hand of a unit that is not complete
        if pos > len(data):  # the records go on behind what is at hand
            await client.send(data, more=True)
            pos -= len(data)
            left -= len(data)
            more = await piece(inbox.channel, client, left, session.around.bulk)
            if more is not None:
                data = more
                continue
            await move(inbox, client, pos, pipes)
            left -= pos
            if not left:
                walk.advance(data[:0], 0)
                break
        elif walk.done:
            break
        elif len(data) >= left:
            raise DecodeError("it ends early")
        else:
            unit = len(data) - pos
            left -= pos
            inbox.keep(data[pos:])
            if pos:
                await client.send(data[:pos], more=True)
        # Twice as much each time: a unit is looked at from its beginning, and there are some of 100 KB (thousands of
        # aborted transactions).
        wanted = min(left, max(2 * unit, 1))
        if wanted > SCRATCH:
            data = memoryview(bytearray(wanted))
            async with session.around.budget.hold(wanted):
                await inbox.whole(data)
        else:
            data = await inbox.window(wanted)
            if len(data) < wanted:
                raise ChannelClosed("the broker closed the connection inside a frame")
            if len(data) > left:
                inbox.keep(data[left:])
                data = data[:left]
        pos = 0
    if not walk.done:
        raise DecodeError("it ends early")
    if left:
        if pos != left:
            raise DecodeError("it goes on behind its end")
        await client.send(data)
