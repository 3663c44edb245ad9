"""Connections to brokers, for clients: TCP or TLS, without a word of ours on them."""

from __future__ import annotations

import socket
import ssl

import trio

from proxy.transport.channel import Channel, ChannelClosed, PlainChannel, tls_handshake


async def connect(host: str, port: int, context: ssl.SSLContext | None, timeout: float) -> Channel:
    """A channel to a broker within `timeout` seconds. Raises ChannelClosed with the reason."""
    peer = f"{host}:{port}"
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise ChannelClosed(f"no connection to {peer} within {timeout:g} s") from None
    except OSError as error:
        cause = error.__cause__ or error
        raise ChannelClosed(f"no connection to {peer}: {getattr(cause, 'strerror', None) or cause}") from None
    plain = socket.socket(fileno=stream.socket.detach())
    # trio keeps at most 16 KiB unsent on its streams; a frame of a megabyte would then take dozens of wake-ups.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    if context is None:
        return PlainChannel(plain, peer)
    # The name is sent in any case (SNI); whether the certificate must bear it is the context's business.
    channel, _ = await tls_handshake(plain, context, peer, server_side=False, hostname=host, timeout=timeout)
    return channel
