"""The OpenAPI document, made from the table of routes."""

from __future__ import annotations

import re

from admin.routes import PREFIX, ROUTES, Route
from runtime.version import VERSION

_ERRORS = {
    "400": "The request cannot be meant",
    "401": "A bearer token is needed",
    "404": "No such thing",
    "409": "The state has changed since the plan",
    "503": "The store is away",
}


def document() -> dict[str, object]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, object]] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    for path, summary in (
        ("/healthz", "The process is alive"),
        ("/readyz", "Clients can be served: 200, or 503 with the reasons"),
        ("/metrics", "Prometheus metrics of this process and its workers"),
    ):
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": summary}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "kfed admin API", "version": VERSION},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
            },
        },
        "security": [{"token": []}, {}],
        "paths": paths,
    }


def _operation(route: Route) -> dict[str, object]:
    parameters: list[dict[str, object]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in route.query.items()
    ]
    answer = {"type": "object", "properties": {key: {"description": text} for key, text in route.gives.items()}}
    responses: dict[str, object] = {
        "200": {"description": route.summary, "content": {"application/json": {"schema": answer}}}
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, text in _ERRORS.items():
        if (status == "404" and "{" not in route.path) or (status in ("400", "409") and route.method == "GET"):
            continue
        responses[status] = {"description": text, "content": error}
    operation: dict[str, object] = {"summary": route.summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if route.method == "POST":
        properties = {key: {"description": text} for key, text in route.takes.items()}
        schema = {"type": "object", "properties": properties}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation
