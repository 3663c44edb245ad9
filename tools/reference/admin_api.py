"""The admin API's reference, out of its table of routes."""

from __future__ import annotations

from admin import guard
from admin.routes import PREFIX, ROUTES


def page() -> str:
    """docs/reference/admin-api.md."""
    lines = [
        "# Admin API",
        "",
        "Made from the code by `python -m tools.reference`. The running process describes itself at",
        f"`{PREFIX}/openapi.json` (OpenAPI 3.1).",
        "",
        'Answers are JSON objects; an error is `{"error": TEXT}` with a fitting status: 400 the request cannot be',
        "meant, 401 no valid token, 403 not allowed here, 404 no such thing, 409 the state has changed since the plan,",
        "413 and 408 too large and too slow, 503 the store is away, 504 no answer in time.",
        "",
        "A bearer token (`Authorization: Bearer TOKEN`) is required unless the API is bound to loopback and",
        "`admin.token_file` is not set. Without a token, requests with a foreign `Host` or `Origin` are refused, so",
        "that web pages cannot use it. POST bodies are JSON objects with `Content-Type: application/json`, at most",
        f"{guard.MAX_BODY >> 20} MiB (an import {guard.MAX_IMPORT >> 20} MiB). `X-Kfed-User` says who asks, for the",
        "history.",
        "",
        "`kfed serve proxy` serves the same questions and refuses what changes something.",
        "",
        "| | |",
        "| --- | --- |",
        "| `GET /healthz` | The process is alive. No token needed. |",
        "| `GET /readyz` | 200 when clients can be served, else 503 with `reasons`. No token needed. |",
        "| `GET /metrics` | Prometheus metrics of this process and its workers. |",
    ]
    lines += [f"| `{route.method} {PREFIX}{route.path}` | {route.summary} |" for route in ROUTES]
    for route in ROUTES:
        parts = [("Query", route.query), ("Body", route.takes), ("Answer", route.gives)]
        if not any(keys for _, keys in parts):
            continue
        lines += ["", f"## `{route.method} {PREFIX}{route.path}`", "", f"{route.summary}."]
        for title, keys in parts:
            if keys:
                lines += [
                    "",
                    f"| {title} | |",
                    "| --- | --- |",
                    *(f"| `{key}` | {text} |" for key, text in keys.items()),
                ]
    return "\n".join(lines) + "\n"
