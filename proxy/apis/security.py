"""To come."""

from __future__ import annotations

from proxy.apis.contract import Handler

HANDLERS: dict[int, Handler] = {}
