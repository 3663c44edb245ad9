"""Windows over lent memory: every byte once and in order, whatever a reader asks for and however the bytes arrive."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.transport.channel import Inbox, TornFrame
from tests.fixtures.wire import SIZES, cut

SCRATCH = 64


class Scripted:
    """A channel whose bytes arrive in given pieces; other inboxes use the scratch while it waits."""

    writing_since = reading_since = login_due = 0.0
    peer = "scripted"
    descriptor = -1

    def __init__(self, pieces: list[bytes], scratch: memoryview) -> None:
        self.pieces = pieces
        self.scratch = scratch

    async def recv_into(self, buffer: memoryview) -> int:
        assert len(buffer) > 0, "asked for nothing: that looks like the end of the stream"
        await trio.lowlevel.checkpoint()
        self.scratch[:] = b"\xee" * len(self.scratch)
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        got = min(len(piece), len(buffer))
        if got < len(piece):
            self.pieces.insert(0, piece[got:])
        buffer[:got] = piece[:got]
        return got

    async def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        raise AssertionError("nothing is sent")

    def finish(self) -> None:
        raise AssertionError("nothing is sent")

    def close(self) -> None:
        pass


STEP = (
    st.tuples(st.just("window"), st.integers(1, SCRATCH), st.integers(0, SCRATCH))
    | st.tuples(st.just("whole"), st.integers(0, 200), st.just(0))
    | st.tuples(st.just("discard"), st.integers(0, 200), st.just(0))
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 600), SIZES, st.lists(STEP, max_size=30), st.integers(1, SCRATCH))
def test_every_byte_once_and_in_order(
    length: int, sizes: list[int], steps: list[tuple[str, int, int]], read: int
) -> None:
    data = bytes(number % 251 for number in range(length))

    async def run() -> None:
        scratch = memoryview(bytearray(SCRATCH))
        inbox = Inbox(Scripted(list(cut(data, sizes)), scratch), scratch)
        inbox.read_size = read
        at = 0
        for kind, size, used in steps:
            left = len(data) - at
            if kind == "window":
                window = await inbox.window(size)
                assert len(window) >= min(size, left)
                assert bytes(window) == data[at : at + len(window)]
                used = min(used, len(window))
                inbox.keep(window[used:])
                at += used
                continue
            target = bytearray(size)
            try:
                if kind == "whole":
                    await inbox.whole(memoryview(target))
                    assert target == data[at : at + size]
                else:
                    await inbox.discard(size)
            except TornFrame:
                assert size > left
                return
            assert size <= left
            at += size

    trio.run(run)
