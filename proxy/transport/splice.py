"""Moving the body of a frame from one channel to another, in one of two ways where both are plain TCP.

splice(2) through a pipe: the bytes never enter this process; the cheaper way in CPU. Pipes are pooled; a pipe that
still holds bytes when a transfer fails is thrown away.

Through a buffer that all transfers of the process lend: fewer and larger pieces arrive at the target, which costs its
reader less than the pages of a file one by one (measured: consuming is some 10 % faster). Only as much is read as the
target takes at once, so nothing waits in this process's memory; a target that does not keep up is spliced to.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time

from proxy.transport.channel import Channel, ChannelClosed, Inbox, PlainChannel, TornFrame

PIPE_SIZE = 1 << 20
FALLBACK_PIPE_SIZE = 1 << 16  # what the kernel gives where the user's pipe budget is spent
LOW_WATER = 1 << 18  # while a large body is under way, wake for pieces of this size rather than for every segment
BUFFER = 1 << 20
LEAST = 1 << 16  # a target with less room than this is not keeping up
_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_MORE = 4  # SPLICE_F_MORE


class Pipes:
    """A pool of pipes, one in use per transfer under way.

    A pipe whose reader has stopped stays full, in kernel memory: only the first `large` in use are large ones.
    """

    def __init__(self, keep: int = 16, large: int = 64) -> None:
        self._free: list[tuple[int, int, int]] = []
        self._keep = keep
        self._large = large
        self._in_use = 0

    def take(self) -> tuple[int, int, int]:
        """(read end, write end, capacity)."""
        if self._free:
            self._in_use += 1
            return self._free.pop()
        r, w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._in_use += 1
        size = FALLBACK_PIPE_SIZE
        if self._in_use <= self._large:
            try:
                size = fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError:
                pass
        return r, w, size

    def give(self, pipe: tuple[int, int, int], clean: bool) -> None:
        self._in_use -= 1
        if clean and len(self._free) < self._keep and pipe[2] > FALLBACK_PIPE_SIZE:
            self._free.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])

    def close(self) -> None:
        for r, w, _ in self._free:
            os.close(r)
            os.close(w)
        self._free.clear()
        self._keep = 0


async def _splice(source: PlainChannel, target: PlainChannel, count: int, pipes: Pipes) -> None:
    pipe = pipes.take()
    r, w, capacity = pipe
    held = 0
    low = 1
    clean = False
    src, dst = source.sock, target.sock
    try:
        while count or held:
            if count and held < capacity:
                try:
                    moved = os.splice(src.fileno(), w, min(count, capacity - held), flags=_FLAGS)
                    if not moved:
                        raise TornFrame
                    count -= moved
                    held += moved
                except BlockingIOError:
                    if not held:
                        want = min(count, LOW_WATER)
                        if want != low:
                            src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, want)
                            low = want
                        await source.readable()
                        continue
            try:
                held -= os.splice(r, dst.fileno(), held, flags=_FLAGS | _MORE if count else _FLAGS)
                if target.writing_since:
                    target.writing_since = time.monotonic()
                await target.turn()
            except BlockingIOError:
                await target.writable()
        clean = True
    except OSError as error:
        raise ChannelClosed(error.strerror) from None
    except ValueError:
        raise ChannelClosed("closed here") from None
    finally:
        target.writing_since = 0.0
        if low != 1 and src.fileno() >= 0:
            src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        pipes.give(pipe, clean)


def _room(sock: socket.socket) -> int:
    """Bytes that certainly can be sent now: half of what is free, since the kernel counts its overhead too."""
    queued = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - int(queued)) // 2


async def piece(source: Channel, target: Channel, limit: int, buffer: memoryview) -> memoryview | None:
    """What has arrived at `source`, at most `limit` bytes, in lent memory that is valid until the next `await`.

    At most as much as `target` takes at once. None: it does not keep up, or the two are not both plain TCP.
    """
    if not isinstance(source, PlainChannel) or not isinstance(target, PlainChannel):
        return None
    src = source.sock
    low = 1
    try:
        room = min(limit, len(buffer), _room(target.sock))
        if room < min(limit, LEAST):
            return None
        await source.turn()
        while True:
            try:
                got = src.recv_into(buffer[:room])
            except BlockingIOError:
                low = min(limit, LOW_WATER)
                src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
                await source.readable()
                continue
            if not got:
                raise TornFrame
            return buffer[:got]
    except OSError as error:
        raise ChannelClosed(error.strerror) from None
    except ValueError:
        raise ChannelClosed("closed here") from None
    finally:
        if low != 1 and src.fileno() >= 0:
            src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def beginning(source: Channel, target: Channel, buffer: memoryview) -> memoryview | None:
    """Waits for the next frame, and gives what has arrived of it, at most what `target` takes at once; like `piece`."""
    if not isinstance(source, PlainChannel) or not isinstance(target, PlainChannel):
        return None
    await source.readable()
    src = source.sock
    try:
        head = src.recv(4, socket.MSG_PEEK)
        if len(head) < 4:
            return None
        room = min(4 + int.from_bytes(head, "big"), len(buffer), _room(target.sock))
        if room < LEAST:
            return None
        return buffer[: src.recv_into(buffer[:room])]
    except BlockingIOError:
        return None
    except OSError as error:
        raise ChannelClosed(error.strerror) from None
    except ValueError:
        raise ChannelClosed("closed here") from None


async def fill(source: Inbox, target: memoryview) -> None:
    """`Inbox.whole` of much: waits for large pieces. Nothing may be kept in `source`. Raises ChannelClosed."""
    channel = source.channel
    if not isinstance(channel, PlainChannel):
        await source.whole(target)
        return
    src, low, done = channel.sock, 1, 0
    try:
        while done < len(target):
            try:
                got = src.recv_into(target[done:])
            except BlockingIOError:
                want = min(len(target) - done, LOW_WATER)
                if want != low:
                    src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, want)
                    low = want
                await channel.readable()
                continue
            if not got:
                raise TornFrame
            done += got
            await channel.turn()
    except OSError as error:
        raise ChannelClosed(error.strerror) from None
    except ValueError:
        raise ChannelClosed("closed here") from None
    finally:
        if low != 1 and src.fileno() >= 0:
            src.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def move(source: Inbox, target: Channel, count: int, pipes: Pipes) -> None:
    """`count` bytes that have not been read yet, from `source`'s channel to `target`, in order.

    Nothing may be kept in `source`. Raises ChannelClosed when either side ends; the frame is then torn and both
    connections must be closed.
    """
    channel = source.channel
    if isinstance(channel, PlainChannel) and isinstance(target, PlainChannel):
        await _splice(channel, target, count, pipes)
        return
    while count:
        window = source.scratch[: min(count, len(source.scratch))]
        got = await channel.recv_into(window)
        if not got:
            raise TornFrame
        count -= got
        await target.send(bytes(window[:got]), more=bool(count))
