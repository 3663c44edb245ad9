"""A broker that cannot prove its name is not connected to; the name asked for is told to it in any case."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from kafka_client.security import Tls, ssl_context
from proxy.transport.channel import ChannelClosed
from proxy.transport.upstream import connect
from tools.local_cluster.tls import Authority, Certificate


@asynccontextmanager
async def broker(certificate: Certificate, asked: list[str | None] | None = None) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)

    def named(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        if asked is not None:
            asked.append(name)

    context.sni_callback = named

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await trio.SSLStream(stream, context, server_side=True).do_handshake()
            await trio.sleep_forever()
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        serving = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        listeners = await nursery.start(serving)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


async def test_name_and_authority_are_verified(ours: Authority, tmp_path: Path) -> None:
    tls = Tls(str(ours.ca_file))
    async with broker(ours.server("right")) as port:
        (await connect("127.0.0.1", port, ssl_context(tls), 5)).close()
        (await connect("localhost", port, ssl_context(tls), 5)).close()
    async with broker(Authority(tmp_path).server("foreign")) as port:
        for one in (tls, Tls(str(ours.ca_file), verify_hostname=False), Tls()):
            with pytest.raises(ChannelClosed, match="CERTIFICATE_VERIFY_FAILED"):
                await connect("127.0.0.1", port, ssl_context(one), 5)


async def test_another_name_unless_names_do_not_matter(ours: Authority) -> None:
    asked: list[str | None] = []
    async with broker(ours.client("somebody"), asked) as port:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(ChannelClosed, match="certificate is not valid for"):
                await connect(host, port, ssl_context(Tls(str(ours.ca_file))), 5)
            lax = ssl_context(Tls(str(ours.ca_file), verify_hostname=False))
            (await connect(host, port, lax, 5)).close()
    assert asked == [None, None, "localhost", "localhost"]  # addresses are not told (RFC 6066)
