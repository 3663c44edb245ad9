"""Channels over real loopback sockets: what is read at once, and what is left where it is."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from proxy.transport.channel import ChannelClosed, Inbox, PlainChannel
from proxy.transport.splice import LEAST, beginning
from tests.fixtures.sessions import pair

LARGE = 200_000


def framed(size: int) -> bytes:
    return size.to_bytes(4, "big") + bytes(size)


def congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


async def test_a_peer_on_this_machine_is_not_paced() -> None:
    near, far = pair()
    with near, far:
        PlainChannel(far, "client")
        assert congestion(far) == b"reno"


@pytest.mark.parametrize("split", [2, 4, 5, LEAST + 4])
async def test_a_frame_begins_in_large_memory_and_the_next_one_is_left(split: int) -> None:
    """Whatever part of the frame has come: never more than the frame is taken."""
    broker, upstream = pair()
    client, peer = pair()
    source, target = PlainChannel(upstream, "broker"), PlainChannel(peer, "client")
    buffer = memoryview(bytearray(1 << 20))
    sent = framed(LARGE) + framed(LARGE)
    got = b""
    with broker, client, upstream, peer:
        broker.setblocking(False)
        broker.send(sent[:split])
        with trio.fail_after(5):
            first = await beginning(source, target, buffer)
            got += bytes(first or b"")
            assert len(got) == (split if split >= 4 else 0)
            async with trio.open_nursery() as nursery:
                out = trio.SocketStream(trio.socket.from_stdlib_socket(broker))
                nursery.start_soon(out.send_all, sent[split:])
                inbox = Inbox(source, memoryview(bytearray(1 << 16)))
                while len(got) < len(framed(LARGE)):
                    window = await inbox.window(1) if got else await beginning(source, target, buffer)
                    got += bytes(window or b"")  # none: not yet four bytes
                while len(got) < len(sent):
                    got += bytes(await inbox.window(1))
    assert got == sent


async def test_a_small_frame_or_an_end_is_left_to_the_common_window() -> None:
    broker, upstream = pair()
    client, peer = pair()
    source, target = PlainChannel(upstream, "broker"), PlainChannel(peer, "client")
    buffer = memoryview(bytearray(1 << 20))
    scratch = memoryview(bytearray(1 << 16))
    with client, upstream, peer, trio.fail_after(5):
        broker.send(framed(100))
        assert await beginning(source, target, buffer) is None
        assert bytes(await Inbox(source, scratch).window(4)) == framed(100)
        broker.close()
        assert await beginning(source, target, buffer) is None
        assert not await Inbox(source, scratch).window(4)
        source.close()
        with pytest.raises(ChannelClosed):
            await beginning(source, target, buffer)


async def test_after_all_was_read_the_next_read_waits_and_gets_what_comes() -> None:
    """The read that is skipped there must never cost a byte."""
    broker, upstream = pair()
    source = PlainChannel(upstream, "broker")
    buffer = memoryview(bytearray(100))
    with broker, upstream, trio.fail_after(5):
        for word in (b"one", b"two", b"x" * 100, b"y" * 100, b"three"):
            broker.send(word)
            assert bytes(buffer[: await source.recv_into(buffer)]) == word
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.recv_into, buffer)
            await trio.testing.wait_all_tasks_blocked()
            assert source.reading_since
            broker.send(b"more")
        assert not source.reading_since
        broker.shutdown(socket.SHUT_WR)
        assert await source.recv_into(buffer) == 0
