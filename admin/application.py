"""The admin API as an ASGI application: every answer is JSON, errors are `{"error": TEXT}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from admin import openapi
from admin.contract import Conflict, NotFound, Office, Unavailable, Wrong
from admin.guard import Guard, Token
from admin.routes import PREFIX, ROUTES, Asked, Route, body_of
from runtime import logging
from runtime.metrics import CONTENT_TYPE

log = logging.get(__name__)

MAX_BY = 200  # characters of the claimed user that are kept

Endpoint = Callable[[Request], Awaitable[Response]]

_STATUS: dict[type[Exception], int] = {NotFound: 404, Conflict: 409, Wrong: 400, Unavailable: 503}


def json(document: object, status: int = 200) -> Response:
    """A document as a response; never cached, since it is a state."""
    return Response(
        msgspec.json.encode(document) + b"\n",
        status,
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        "application/json",
    )


def application(office: Office, token: Token | None, *, more: tuple[BaseRoute, ...] = ()) -> Guard:
    """The whole ASGI application. `more` are further routes (a console's) behind the same guard."""
    routes: list[BaseRoute] = [
        # A group's name may hold slashes.
        StarletteRoute(
            PREFIX + route.path.replace("{name}", "{name:path}"),
            _endpoint(office, route),
            methods=[route.method],
            name=route.summary,
        )
        for route in ROUTES
    ]

    async def metrics(_request: Request) -> Response:
        return Response(await office.metrics(), media_type=CONTENT_TYPE)

    async def healthz(_request: Request) -> Response:
        return json({"alive": True})

    async def readyz(_request: Request) -> Response:
        reasons = office.not_ready()
        return json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def describe(_request: Request) -> Response:
        return json(openapi.document())

    routes += [
        StarletteRoute("/metrics", metrics),
        StarletteRoute("/healthz", healthz),
        StarletteRoute("/readyz", readyz),
        StarletteRoute(f"{PREFIX}/openapi.json", describe),
        *more,
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _failed})
    return Guard(app, token)


def _endpoint(office: Office, route: Route) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        if route.changes and office.read_only:
            return json({"error": "this process only answers questions: ask a controller's admin API"}, 403)
        try:
            asked = Asked(
                dict(request.path_params), dict(request.query_params), body_of(await request.body()), by(request)
            )
            return json(await route.answer(office, asked))
        except (NotFound, Conflict, Wrong, Unavailable) as error:
            return json({"error": str(error)}, _STATUS[type(error)])

    return endpoint


def by(request: Request) -> str:
    """Who asks, for the history: the user the client names, and where it connected from."""
    claimed = request.headers.get("x-kfed-user", "unnamed")
    named = "".join(one for one in claimed if one.isprintable())[:MAX_BY]
    return f"{named} from {request.client.host if request.client else '?'}"


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json({"error": str(error.detail).lower()}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("an admin request failed", path=request.url.path, exc_info=error)
    return json({"error": "failed; the log says more"}, 500)
