"""A process's private endpoint: answers what it has, and is bounded."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from runtime import endpoint, private


async def test_it_answers_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def broken() -> tuple[str, bytes]:
        raise ValueError("broken")

    paths = {"/metrics": lambda: ("text/plain", b"x" * 300_000), "/status": endpoint.json_of(lambda: {"a": 1})}
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.serve, path, {**paths, "/broken": broken})
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await endpoint.fetch(path, "/metrics") == b"x" * 300_000
            assert await endpoint.fetch(path, "/status?x=1") == b'{"a":1}'
            for missing, status in (("/other", "404"), ("/broken", "500")):
                with pytest.raises(endpoint.EndpointError, match=status):
                    await endpoint.fetch(path, missing)
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(b"\x00" * 20_000)
                assert await stream.receive_some() == b""
            assert await endpoint.fetch(path, "/status") == b'{"a":1}'
            nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(endpoint.EndpointError):
        await endpoint.fetch(tmp_path / "none", "/metrics")


async def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    with listening:
        await listening.bind(str(path))
        listening.listen(1)
        with pytest.raises(endpoint.EndpointError):
            await endpoint.fetch(path, "/metrics", timeout=0.1)


def test_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "kfed-process-left").mkdir()
    (tmp_path / "other").mkdir()
    with private.directory() as first:
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        assert not (tmp_path / "kfed-process-left").exists()
        with private.directory() as second:
            assert first.exists()
            assert second != first
    assert [one.name for one in tmp_path.iterdir()] == ["other"]
