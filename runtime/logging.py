"""Logs: structured events on stderr, as text or JSON, without secrets and without floods.

`configure` is called once per process; libraries that use the standard `logging`
come out the same way.

    log = runtime.logging.get(__name__)
    log.warning("connection refused", reason="too many connections", peer="10.0.0.7")

The event is a constant, what varies goes into keys: repetition is counted per (logger, level, event, reason), and
what exceeds a burst of 20 in 10 seconds is left out and counted; the next line of that kind carries `suppressed=N`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO, cast

import msgspec
import structlog

from runtime.settings import Log

BURST = 20
INTERVAL = 10.0  # seconds
KINDS = 2000  # of events that are counted apart; beyond it they are counted together
HIDDEN = "***"

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?$|secret"
    r"|(^|[_.-])(token|hmac|credential|authorization|jaas|api[_-]?key|private[_-]?key)s?$",
    re.I,
)
_SECRET_VALUE = re.compile(
    r"(?P<keep>\b(?:Bearer|Basic)\s+|(?:password|secret|token)\s*[=:]\s*)(?P<hide>[^\s,;@'\"}]+)"
    r"|(?P<url>://[^/\s:@]+:)(?P<word>[^\s/@]+)(?=@)",
    re.I,
)

Event = MutableMapping[str, Any]


def secret_key(key: str) -> bool:
    """Whether a key of this name holds a credential. Names of files that hold one (`token_file`) do not."""
    return _SECRET_KEY.search(key) is not None


def redact(value: object, depth: int = 6) -> object:
    """The value with credentials replaced by `***`: by the names of keys, and by what is recognised inside text.

    Structs become dictionaries. What lies deeper than `depth` containers is replaced as a whole.
    """
    if isinstance(value, str):
        return _SECRET_VALUE.sub(lambda match: (match["keep"] or match["url"]) + HIDDEN, value)
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        if depth == 0:
            return HIDDEN
        return {
            key: HIDDEN if isinstance(key, str) and one is not None and secret_key(key) else redact(one, depth - 1)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return HIDDEN if depth == 0 else [redact(one, depth - 1) for one in value]
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    return value


class Flood:
    """Drops what repeats too often, and counts it.

    `suppressed` is the number of events left out since the start.
    """

    def __init__(
        self, burst: int = BURST, interval: float = INTERVAL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.suppressed = 0
        self._burst = burst
        self._interval = interval
        self._now = now
        self._kinds: dict[tuple[object, ...], list[float]] = {}  # kind -> [window's begin, passed, left out]

    def __call__(self, logger: object, method: str, event: Event) -> Event:
        """A structlog processor. Raises structlog.DropEvent for what is left out."""
        kind: tuple[object, ...] = (event.get("logger"), method, event.get("event"), event.get("reason"))
        if kind not in self._kinds and len(self._kinds) >= KINDS:
            kind = ("...", method)
        window = self._kinds.setdefault(kind, [self._now(), 0, 0])
        now = self._now()
        if now - window[0] >= self._interval:
            left_out = window[2]
            window[:] = [now, 0, 0]
            if left_out:
                event["suppressed"] = int(left_out)
        if window[1] >= self._burst:
            window[2] += 1
            self.suppressed += 1
            raise structlog.DropEvent
        window[1] += 1
        return event


flood = Flood()


def _redacted(_logger: object, _method: str, event: Event) -> Event:
    return {key: HIDDEN if value is not None and secret_key(key) else redact(value) for key, value in event.items()}


def _text(_logger: object, _method: str, event: Event) -> str:
    """`12:30:01.123 warning  proxy  connection refused  reason=...`: one line, values quoted where they need it."""
    parts = [str(event.pop(key, "")) for key in ("timestamp", "level", "logger")]
    message = str(event.pop("event", ""))
    exception = event.pop("exception", None)
    values = " ".join(f"{key}={_quoted(value)}" for key, value in event.items())
    line = f"{parts[0]} {parts[1]:<7} {parts[2]}: {message}" + (f"  {values}" if values else "")
    line = line.replace("\r", "\\r").replace("\n", "\\n")  # what a client sent cannot forge a line
    return f"{line}\n{redact(exception)}" if exception else line


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if not text or re.search(r"[\s\"'=]", text) or not text.isprintable() else text


def configure(settings: Log, *, stream: TextIO | None = None, **context: object) -> None:
    """Set the process's logging up. `context` (instance, worker, role) is added to every event."""
    level = getattr(logging, settings.level.upper())
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        lambda _logger, _method, event: {**event, **{key: value for key, value in context.items() if key not in event}},
    ]
    render: list[Any] = [
        flood,
        structlog.processors.format_exc_info,
        _redacted,
        structlog.processors.TimeStamper(fmt="iso" if settings.format == "json" else "%H:%M:%S.%f", utc=True),
    ]
    if settings.format == "json":
        render.append(structlog.processors.JSONRenderer(default=repr))
    else:
        render.append(_text)

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("hypercorn.access", "grpc", "asyncio", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Drops what the flood guard drops; a closed stderr is no reason to fail."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except structlog.DropEvent:
            return
        except Exception:
            self.handleError(record)
            return
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):
            pass


def get(name: str, **context: object) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module; `context` is added to its events."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.stdlib.get_logger(name, **context))


# Until `configure` is called (tests, small tools): through the standard library, which writes warnings to stderr.
structlog.configure(
    processors=[_redacted, structlog.processors.KeyValueRenderer(key_order=["event"])],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
    cache_logger_on_first_use=False,
)
