"""Where a virtual broker is reached on a listener: a port of its own, or a host name behind one TLS port."""

from __future__ import annotations

import re
from collections.abc import Mapping

from metadata_service.view import View
from runtime.settings import Listener


def advertised(listener: Listener) -> str:
    """The host clients are told."""
    return listener.advertised or listener.bind


def address(
    listeners: Mapping[str, Listener], view: View, name: str, cluster: str, broker: int
) -> tuple[str, int] | None:
    """(host, port) of a virtual broker on listener `name`, None while the store has given it none."""
    listener = listeners[name]
    if listener.sni is not None:
        return listener.sni.format(cluster=cluster, broker=broker), listener.port
    book = view.addresses.get(name)
    port = book.ports.get(f"{cluster}/{broker}") if book is not None else None
    return None if port is None else (advertised(listener), port)


def broker_of_host(pattern: str, host: str) -> tuple[str, int] | None:
    """(cluster, broker) that a host name asked for by TLS SNI stands for; None: no virtual broker's, so bootstrap."""
    expression = (
        re.escape(pattern).replace(r"\{cluster\}", "(?P<cluster>.+?)").replace(r"\{broker\}", r"(?P<broker>\d{1,6})")
    )
    match = re.fullmatch(expression, host, re.IGNORECASE)
    return (match["cluster"].lower(), int(match["broker"])) if match else None
