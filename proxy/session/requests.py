"""From the client: frames are read, judged, and passed on or handled, one after the other."""

from __future__ import annotations

import struct
import time

import trio

from kafka_wire.codec import DecodeError, Message, UnknownMessage, decode, encode, is_flexible
from kafka_wire.errors import ERROR
from kafka_wire.frames import RequestHeader, parse_request, response_frame, response_from_body
from kafka_wire.produce_repeat import RepeatedProduce
from kafka_wire.produce_view import NeedMore, ProduceHead, produce_head
from kafka_wire.schema import by_key
from metadata_service.failures import DecisionFailed
from metadata_service.store.contract import StoreError
from metadata_service.view import ServedTopic
from proxy.apis.contract import ClusterAway, Refused
from proxy.apis.refusals import away_code, refusal
from proxy.moving.produce import fenced_produce
from proxy.session.call import SessionCall
from proxy.session.judge import FETCH, PRODUCE, decode_produce, fetch_passes, head_passes, produce_passes
from proxy.session.session import Kind, Session, Slot
from proxy.session.translated import patch_fetch, patch_produce
from proxy.transport.channel import SCRATCH, Channel, TornFrame
from proxy.transport.splice import move
from runtime import logging

log = logging.get(__name__)

_SIZE = struct.Struct(">i")
_START = struct.Struct(">ihhi")  # size, key, version, correlation id
SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 17, 18, 36
TOKENS_AFTER_HANDSHAKE_V0 = {"PLAIN": 1, "SCRAM-SHA-256": 2, "SCRAM-SHA-512": 2}
LARGE = 131072  # frames above this are read with a small first read, so that most of the body can be spliced
MAX_REPEATED = 64
HEAD = 4096  # holds any header with a client id of sane length, and the first topic


async def read_requests(session: Session) -> None:
    """Until the client sends no more. Raises ChannelClosed or CloseConnection."""
    try:
        await _read_requests(session)
    except TornFrame:
        raise session.refuse("truncated_request") from None


async def _read_requests(session: Session) -> None:
    inbox = session.inbox
    limits = session.around.limits
    at_least = 4
    while True:
        window = await inbox.window(at_least)
        if len(window) < at_least:
            if len(window):
                session.refuse("truncated_request")  # the requests before it are still answered
            return
        if not session.around.accepting:
            return  # what has been read so far was passed on to nobody: the client asks elsewhere
        upstream = session.upstream
        if upstream is not None and 0 < upstream.login_due < time.monotonic():
            inbox.keep(window)
            await session.log_in_again()
            continue
        if session.fenced is not None and not session.fenced.admits(window):
            inbox.keep(window)
            await session.fenced.settled()
            continue
        last = session.last_produce
        if (
            last is not None
            and upstream is not None
            and last.repeats(window, session.around.view().generation)
            and len(session.slots) < MAX_REPEATED
        ):
            await _repeat(session, last, window, upstream)
            at_least = 4
            session.frame_since = 0.0
            continue
        if not session.frame_since:
            session.frame_since = time.monotonic()
        (size,) = _SIZE.unpack_from(window)
        lowest = 0 if session.raw_tokens else 8
        if not lowest <= size <= limits.max_request_bytes:
            raise session.refuse("bad_frame_size", size=size)
        session.frame_size = size
        end = 4 + size
        if session.raw_tokens:
            at_least = await _raw_token(session, window, end)
            continue
        if len(window) < 12:
            inbox.keep(window)
            at_least = 12
            continue
        _, key, version, _correlation = _START.unpack_from(window)
        if len(window) >= end:
            inbox.read_size = SCRATCH
            passed = _judge(session, window[4:end], key, version)
            if isinstance(passed, Slot):
                await _pass_run(session, window, end, passed)
            else:
                frame = bytes(window[4:end])
                inbox.keep(window[end:])
                await _handle(session, frame, passed)
                if inbox.pending:  # a thousand requests may have come at once: others want their turn
                    await trio.lowlevel.checkpoint()
            at_least = 4
        elif key == PRODUCE and end > SCRATCH:
            if size > LARGE:
                inbox.read_size = HEAD
            at_least = await _large_produce(session, window, size, version)
        elif end <= SCRATCH:
            inbox.keep(window)
            at_least = end
            continue
        else:
            inbox.keep(window)
            await _large(session, size)
            at_least = 4
        if at_least == 4:
            session.asked = True
            session.frame_since = 0.0
            session.active = time.monotonic()


def _header(session: Session, frame: memoryview | bytes, key: int, version: int) -> RequestHeader:
    """The header of a known API at a known version, or a refusal to be raised."""
    if key not in session.around.handlers and key not in (SASL_HANDSHAKE, SASL_AUTHENTICATE, PRODUCE, FETCH):
        raise session.refuse("unknown_api", api=key, version=version)
    try:
        # An ApiVersions of the future has a header that can be read all the same, and is answered with what we know.
        flexible = True if key == API_VERSIONS and version > 2 else is_flexible(key, version)
        header = parse_request(frame, flexible)
    except UnknownMessage:
        raise session.refuse("unknown_version", api=key, version=version) from None
    except DecodeError as error:
        raise session.refuse("malformed_request", api=key, version=version, error=str(error)) from None
    session.client_id = header.client_id
    return header


def _judge(session: Session, frame: memoryview, key: int, version: int) -> Slot | RequestHeader:
    """A slot where the frame passes as it is; otherwise its header, and it is to be handled."""
    header = _header(session, frame, key, version)
    try:
        if key == PRODUCE:
            return _judge_produce(session, frame, header)
        if key == FETCH:
            return _judge_fetch(session, frame, header)
    except DecodeError as error:
        raise session.refuse("malformed_request", api=key, version=version, error=str(error)) from None
    return header


def _judge_produce(session: Session, frame: memoryview, header: RequestHeader) -> Slot | RequestHeader:
    view, version = session.around.view(), header.version
    head = produce_head(frame, header.body, version, True)
    passes = head_passes(view, session.cluster, head)
    if not passes and not head.single:
        passes = produce_passes(view, session.cluster, version, decode_produce(version, frame, header.body))
    served = None
    if not passes:
        served = patch_produce(session, view, version, frame, head, True)
        if served is None:
            return header
    session.logging_in = False
    slot = _produce_slot(session, head, header, served)
    if served is not None:
        return slot
    if head.single and head.transactional_id is None and head.topic is not None and head.acks:
        session.last_produce = slot.repeated = RepeatedProduce(frame, head.partition_at, version, head.topic)
        session.last_produce.generation = view.generation
    return slot


def _produce_slot(session: Session, head: ProduceHead, header: RequestHeader, moved: ServedTopic | None = None) -> Slot:
    slot = Slot(Kind.PRODUCE, PRODUCE, header.version, header.correlation, session.cluster)
    slot.moved = moved
    if head.acks == 0:
        slot.answer = b""  # none will come
        session.silent = True
    return slot


def _judge_fetch(session: Session, frame: memoryview, header: RequestHeader) -> Slot | RequestHeader:
    view, version = session.around.view(), header.version
    request = decode("request", FETCH, version, frame, header.body)
    generation = view.served_generation.get(session.cluster, 0)
    if request.get("session_epoch", -1) > 0:
        if session.fetch_generation != generation:
            return header  # the session may name a topic that is no longer served here
    else:
        session.fetch_generation = generation
    slot = Slot(Kind.FETCH, FETCH, version, header.correlation, session.cluster)
    slot.epoch = request.get("session_epoch", -1)
    if session.fetches_moved or not fetch_passes(view, session.cluster, version, request):
        if not patch_fetch(session, view, version, frame, header.body, request):
            return header
        session.fetches_moved = True
        slot.moved = view
    return slot


async def _repeat(session: Session, last: RepeatedProduce, window: memoryview, upstream: Channel) -> None:
    """Pass on a Produce that begins as the last one did, which the same view let pass."""
    correlation = int.from_bytes(window[8:12], "big", signed=True)
    slot = Slot(Kind.PRODUCE, PRODUCE, last.version, correlation, session.cluster)
    slot.repeated = last
    session.push(slot)
    await upstream.send(window)
    counters = session.around.api(PRODUCE, session.cluster)
    counters.requests += 1
    counters.request_bytes += len(window)


async def _pass_run(session: Session, window: memoryview, end: int, slot: Slot) -> None:
    """Pass on a frame, and with it every further whole frame of the window that passes."""
    inbox, around = session.inbox, session.around
    start = 0
    if session.upstream is None:
        held = bytes(window)
        inbox.keep(memoryview(held)[end:])
        upstream = await session.open_upstream()
        count = 1
        run = [slot]
        frames: memoryview | bytes = held[:end]
    else:
        upstream = session.upstream
        run = [slot]
        while len(window) - end >= 12 and len(session.slots) + len(run) < 64:
            size, key, version, _ = _START.unpack_from(window, end)
            if key not in (PRODUCE, FETCH) or size < 8 or end + 4 + size > len(window):
                break
            nearby = _judge(session, window[end + 4 : end + 4 + size], key, version)
            if not isinstance(nearby, Slot):
                break
            run.append(nearby)
            end += 4 + size
        count = len(run)
        frames = window[start:end]
        if end < len(window):
            inbox.keep(window[end:])
    if len(session.slots) + count >= 250:
        frames = bytes(frames)
        await session.room()
    for one in run:
        around.api(one.key, one.cluster).requests += 1
        if one.answer is None:
            session.push(one)
    around.api(slot.key, slot.cluster).request_bytes += len(frames)
    await upstream.send(frames)


async def _large_produce(session: Session, window: memoryview, size: int, version: int) -> int:
    """A Produce larger than the window: judged by its beginning and spliced, or held whole. Returns at_least."""
    inbox = session.inbox
    if len(window) < HEAD:
        inbox.keep(window)
        return HEAD  # the frame is longer than that
    header = _header(session, window[4:], PRODUCE, version)
    try:
        head = produce_head(window[4:], header.body, version, False)
    except NeedMore:
        inbox.keep(window)
        if len(window) < SCRATCH:
            return min(2 * len(window), SCRATCH)
        raise session.refuse("malformed_request", api=PRODUCE, error="no record batch in the first 64 KiB") from None
    except DecodeError as error:
        raise session.refuse("malformed_request", api=PRODUCE, version=version, error=str(error)) from None
    if session.upstream is None:
        inbox.keep(window)
        await session.open_upstream()
        return 4 if len(window) >= 12 else 12
    if len(session.slots) >= 64:
        inbox.keep(window)
        await session.room()
        window = await inbox.window(len(window))
    view, served = session.around.view(), None
    if not head_passes(view, session.cluster, head):
        served = patch_produce(session, view, version, window[4:], head, False)
        if served is None:
            inbox.keep(window)
            await _large(session, size)
            return 4
    slot = _produce_slot(session, head, header, served)
    counters = session.around.api(PRODUCE, session.cluster)
    counters.requests += 1
    counters.request_bytes += size + 4
    if slot.answer is None:
        session.push(slot)
    left = size + 4 - len(window)
    await session.upstream.send(window, more=True)
    await move(inbox, session.upstream, left, session.around.pipes)
    return 4


async def _large(session: Session, size: int) -> None:
    """A frame larger than the scratch that must be looked at as a whole: held within the worker's budget."""
    inbox = session.inbox
    async with session.around.budget.hold(size):
        session.holding = True
        try:
            prefix = bytearray(4)
            await inbox.whole(memoryview(prefix))
            frame = bytearray(size)
            await inbox.whole(memoryview(frame))
        finally:
            session.holding = False
        key, version = struct.unpack_from(">hh", frame)
        passed = _judge(session, memoryview(frame), key, version)
        if not isinstance(passed, Slot):
            await _handle(session, frame, passed)
            return
        upstream = await session.open_upstream()
        await session.room()
        counters = session.around.api(key, session.cluster)
        counters.requests += 1
        counters.request_bytes += size + 4
        if passed.answer is None:
            session.push(passed)
        await upstream.send(prefix, more=True)
        await upstream.send(frame)


async def _handle(session: Session, frame: bytes | bytearray, header: RequestHeader) -> None:
    """Decode, have the API's handler answer, encode, answer in turn."""
    session.asked = True
    key, version = header.key, header.version
    around = session.around
    counters = around.api(key, session.cluster)
    counters.requests += 1
    counters.request_bytes += len(frame) + 4
    if key in (SASL_HANDSHAKE, SASL_AUTHENTICATE):
        await _sasl(session, frame, header)
        return
    if 0 < session.login_ends < time.monotonic():
        # As the broker, which may never hear of what is answered here.
        raise session.refuse("login_expired", api=key)
    slot = Slot(Kind.LOCAL, key, version, header.correlation, session.cluster)
    call = SessionCall(session, around.view(), key, version)
    session.handling, session.handling_key = call.view.revision, key
    session.logging_in = False
    try:
        await _answer(session, call, slot, frame, header)
    finally:
        session.handling = None
        if around.moving is not None and around.moving.active:
            around.moving.poke()


async def _answer(
    session: Session, call: SessionCall, slot: Slot, frame: bytes | bytearray, header: RequestHeader
) -> None:
    key, version, around = header.key, header.version, session.around
    counters = around.api(key, session.cluster)
    try:
        if key != API_VERSIONS and around.authenticating(session.cluster) and session.known_principal is None:
            await call.principal()
        if (cached := around.encoded.get(key)) is not None:
            body = await cached(call, version, frame, header.body)
            if body is not None:
                await session.answer(slot, response_from_body(key, version, header.correlation, body))
                return
        if key == API_VERSIONS:
            request: Message = decode("request", key, version, frame, header.body) if _readable(version) else {}
        else:
            request = decode("request", key, version, frame, header.body)
    except DecodeError as error:
        raise session.refuse("malformed_request", api=key, version=version, error=str(error)) from None
    try:
        if key == PRODUCE and around.moving is not None and around.moving.concerns(version, request):
            await fenced_produce(session, call, slot, request)
            return
        response = await around.handlers[key](call, version, request)
    except Refused as error:
        counters.errors += 1
        response = refusal(key, version, request, error.code, error.text)
    except ClusterAway as error:
        counters.errors += 1
        response = refusal(key, version, request, ERROR.REQUEST_TIMED_OUT, f"cluster {error.cluster} does not answer")
    except (DecisionFailed, StoreError) as error:
        counters.errors += 1
        response = refusal(key, version, request, away_code(key), "the federation cannot decide this at present")
        log.warning("a decision failed", api=key, error=str(error))
    if key == PRODUCE and request["acks"] == 0:
        return
    answer_version = 0 if key == API_VERSIONS and not _readable(version) else version
    encoded = encode("response", key, answer_version, response)
    await session.answer(slot, response_from_body(key, answer_version, header.correlation, encoded))


def _readable(version: int) -> bool:
    """Whether an ApiVersions request of this version can be read, and answered at that version (KIP-511)."""
    return version in by_key("request")[API_VERSIONS].versions


async def _sasl(session: Session, frame: bytes | bytearray, header: RequestHeader) -> None:
    """SASL is relayed byte for byte; the broker authenticates (KIP-43, KIP-152, KIP-368)."""
    if session.mapped_principal is not None:
        raise session.refuse("sasl_after_client_certificate")
    session.logging_in = True
    session.last_produce = None
    upstream = await session.open_upstream()
    if header.key == SASL_HANDSHAKE and header.version == 0:
        request = decode("request", SASL_HANDSHAKE, 0, frame, header.body)
        tokens = TOKENS_AFTER_HANDSHAKE_V0.get(request["mechanism"], 0)
        if not tokens:
            slot = Slot(Kind.LOCAL, header.key, 0, header.correlation, session.cluster)
            answer = {"error_code": ERROR.UNSUPPORTED_SASL_MECHANISM, "mechanisms": sorted(TOKENS_AFTER_HANDSHAKE_V0)}
            await session.answer(slot, response_frame(SASL_HANDSHAKE, 0, header.correlation, answer))
            return
        slot = Slot(Kind.LOCAL, header.key, 0, header.correlation, session.cluster)
        response = await session.inner(SASL_HANDSHAKE, 0, request)
        if not response["error_code"]:
            session.raw_tokens = tokens
            session.last_produce = None  # what comes next is no request
        await session.answer(slot, response_frame(SASL_HANDSHAKE, 0, header.correlation, response))
        return
    await session.room()
    session.push(Slot(Kind.PASS, header.key, header.version, header.correlation, session.cluster))
    await upstream.send(_SIZE.pack(len(frame)) + frame)


async def _raw_token(session: Session, window: memoryview, end: int) -> int:
    """One raw SASL token after a handshake v0: passed on; its answer is a bare token too."""
    if end > SCRATCH:
        raise session.refuse("bad_frame_size", size=end - 4)
    if len(window) < end:
        session.inbox.keep(window)
        return end
    token = bytes(window[:end])
    session.inbox.keep(window[end:])
    session.raw_tokens -= 1
    session.frame_since = 0.0
    upstream = await session.open_upstream()
    session.push(Slot(Kind.TOKEN, SASL_AUTHENTICATE, 0, 0, session.cluster))
    await upstream.send(token)
    return 4
