"""Logs: no secrets, no floods, one line an event."""

from __future__ import annotations

import io
import json
import logging as standard
from collections.abc import Iterator

import pytest
import structlog

from runtime import logging
from runtime.settings import Log, Sasl


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = standard.getLogger()
    configured = structlog.get_config()
    before = root.handlers[:], root.level, logging.flood.suppressed
    logging.flood._kinds.clear()
    yield io.StringIO()
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)
    logging.flood.suppressed = before[2]
    structlog.configure(**configured)


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "sasl_password",
        "ssl.key.password",
        "client_secret",
        "token",
        "hmac",
        "Authorization",
        "api-key",
        "sasl.jaas.config.jaas",
        "credentials",
        "passphrase",
    ],
)
def test_what_a_key_calls_a_secret_is_one(key: str) -> None:
    assert logging.redact({key: "geheim"}) == {key: "***"}
    assert logging.redact([{"deeper": {key: b"geheim"}}]) == [{"deeper": {key: "***"}}]


@pytest.mark.parametrize("key", ["password_file", "token_file", "tokens_expired", "monkey", "topic"])
def test_other_keys_are_shown(key: str) -> None:
    assert logging.redact({key: "shown"}) == {key: "shown"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("http://u:geheim@host/path", "http://u:***@host/path"),
        ("login with password=geheim, failed", "login with password=***, failed"),
        ("nothing to hide", "nothing to hide"),
        ("listening on http://127.0.0.1:9380 (now)", "listening on http://127.0.0.1:9380 (now)"),
    ],
)
def test_secrets_inside_text_are_recognised(text: str, shown: str) -> None:
    assert logging.redact(text) == shown


def test_settings_and_exceptions_do_not_leak() -> None:
    sasl = Sasl(mechanism="PLAIN", username="u", password="geheim")
    assert "geheim" not in str(logging.redact({"sasl": sasl, "error": ValueError("password: geheim")}))


def test_what_is_too_deep_is_hidden_as_a_whole() -> None:
    value: object = {"password": "geheim"}
    for _ in range(20):
        value = {"a": value}
    assert "geheim" not in str(logging.redact(value))


def test_json_lines(stream: io.StringIO) -> None:
    logging.configure(Log(format="json"), stream=stream, instance="a", worker=1)
    logging.get("proxy").info("opened", password="geheim", peer="10.0.0.7")
    standard.getLogger("library").warning("spoke %s", "too")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["event"] == "opened"
    assert first["password"] == "***"
    assert (first["instance"], first["worker"], first["level"], first["logger"]) == ("a", 1, "info", "proxy")
    assert second["event"] == "spoke too"
    assert second["instance"] == "a"


def test_text_is_one_line_whatever_a_client_sent(stream: io.StringIO) -> None:
    logging.configure(Log(), stream=stream)
    logging.get("proxy").warning("refused\nfake", client_id="a\nb\x1b[31m")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_the_level_holds(stream: io.StringIO) -> None:
    logging.configure(Log(level="warning"), stream=stream)
    logging.get("proxy").info("quiet")
    logging.get("proxy").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_an_exception_shows_its_traceback(stream: io.StringIO) -> None:
    logging.configure(Log(), stream=stream)
    try:
        raise ValueError("token=geheim")
    except ValueError:
        logging.get("proxy").exception("failed")
    assert "Traceback" in stream.getvalue()
    assert "geheim" not in stream.getvalue()


def test_a_flood_is_bounded_and_counted() -> None:
    now = 0.0
    flood = logging.Flood(burst=3, interval=10.0, now=lambda: now)

    def send(reason: str) -> dict[str, object] | None:
        try:
            return dict(flood(None, "warning", {"event": "refused", "reason": reason}))
        except structlog.DropEvent:
            return None

    assert [send("full") is not None for _ in range(100)] == [True] * 3 + [False] * 97
    assert send("garbage") is not None, "another reason is another kind"
    assert flood.suppressed == 97
    now = 10.0
    assert send("full") == {"event": "refused", "reason": "full", "suppressed": 97}
    assert send("full") == {"event": "refused", "reason": "full"}


def test_ever_new_events_do_not_grow_memory() -> None:
    flood = logging.Flood(burst=1)
    passed = 0
    for number in range(3 * logging.KINDS):
        try:
            flood(None, "info", {"event": f"event {number}"})
            passed += 1
        except structlog.DropEvent:
            pass
    assert passed == logging.KINDS + 1
    assert len(flood._kinds) == logging.KINDS + 1
