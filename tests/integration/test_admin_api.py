"""The admin API over real sockets: who may ask, what is bounded, what errors look like, TLS that follows its files."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from admin import guard, server
from admin.application import application
from admin.contract import Conflict, Document, NotFound, Unavailable, Wrong
from cli.main import main
from runtime import tls
from runtime.settings import Admin, SettingsError, TlsServer

TOKEN = "a-secret-of-24-character"


class FakeOffice:
    """Answers with what was asked."""

    read_only = False

    def __init__(self) -> None:
        self.applied: list[tuple[Mapping[str, object], int | None, str]] = []
        self.reasons: list[str] = []

    async def status(self) -> Document:
        return {"federation": "demo"}

    async def clusters(self) -> Document:
        raise Unavailable("the store is away")

    async def topics(self) -> Document:
        await trio.sleep_forever()

    async def topic(self, name: str) -> Document:
        if name == "none":
            raise NotFound(f"no topic {name!r}")
        return {"name": name}

    async def groups(self) -> Document:
        raise ValueError("a bug")

    async def group(self, name: str) -> Document:
        return {"name": name}

    async def proxies(self) -> Document:
        return {"proxies": []}

    async def operations(self) -> Document:
        return {"operations": []}

    async def group_home_plan(self, name: str, cluster: str) -> Document:
        return {"group": name, "home": {"from": "east", "to": cluster}, "applied": False}

    async def group_home(self, name: str, cluster: str, by: str) -> Document:
        if cluster == "nowhere":
            raise Conflict("there is no cluster 'nowhere'")
        return {"group": name, "home": {"from": "east", "to": cluster}, "applied": True}

    async def operation(self, identifier: str) -> Document:
        return {"id": identifier}

    async def config(self) -> Document:
        return {}

    async def doctor(self) -> Document:
        return {"findings": []}

    async def history(self, limit: int) -> Document:
        return {"history": [], "limit": limit}

    async def config_diff(self, wanted: Mapping[str, object]) -> Document:
        return {"changes": [], "wanted": dict(wanted)}

    async def config_apply(self, wanted: Mapping[str, object], revision: int | None, by: str) -> Document:
        if revision == 1:
            raise Conflict("it has changed")
        if "clusters" not in wanted:
            raise Wrong("clusters: missing")
        self.applied.append((wanted, revision, by))
        return {"applied": True}

    async def store_export(self, by: str) -> Document:
        return {"by": by}

    async def store_import_plan(self, exported: Mapping[str, object]) -> Document:
        return {"applied": False}

    async def store_import(self, exported: Mapping[str, object], by: str) -> Document:
        return {"applied": True}

    async def operation_change(self, identifier: str, action: str, by: str) -> Document:
        return {"id": identifier, "wanted": action}

    async def migrate(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        return {"migrations": [], "problems": [], "left_out": [], "applied": apply}

    async def process_dead(self, name: str, apply: bool, by: str) -> Document:
        return {"process": name, "applied": apply}

    async def mirrors(self, topic: str | None = None) -> Document:
        return {"mirrors": [], "topic": topic}

    async def mirror_create(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        return {"mirrors": [], "problems": [], "applied": apply}

    async def mirror_remove(self, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        return {"mirrors": [], "problems": [], "applied": apply}

    async def group_move(self, name: str, cluster: str, apply: bool, by: str) -> Document:
        return {"group": name, "to": cluster, "problems": [], "applied": apply}

    async def eject(self, name: str, undo: bool, apply: bool, by: str) -> Document:
        return {"topic": name, "problems": [], "applied": apply}

    async def mirror_state(self, action: str, asked: Mapping[str, object], apply: bool, by: str) -> Document:
        return {"mirrors": [], "links": [], "problems": [], "applied": apply, "action": action}

    async def offset(self, topic: str, partition: int, offset: int, source: str, target: str) -> Document:
        return {"offset": offset + partition, "exact": True, "topic": topic, "from": source, "to": target}

    async def verify(self, asked: Mapping[str, object]) -> Document:
        return {"pieces": [], "asked": dict(asked), "cursor": None}

    async def metrics(self) -> bytes:
        return b"# HELP a b\n"

    def not_ready(self) -> list[str]:
        return self.reasons


@asynccontextmanager
async def serving(office: FakeOffice, admin: Admin) -> AsyncIterator[str]:
    """The API's base URL."""
    listening = server.bind(admin)
    port = listening.getsockname()[1]
    secure = server.tls_of(admin)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, application(office, guard.token_of(admin)), listening, secure)
            yield f"{'https' if secure else 'http'}://127.0.0.1:{port}"
            nursery.cancel_scope.cancel()


def here(**more: object) -> Admin:
    return Admin(bind="127.0.0.1", port=0, **more)  # type: ignore[arg-type]


async def test_documents_and_errors_are_json() -> None:
    async with serving(FakeOffice(), here()) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/api/v1/status")
        assert (answer.status_code, answer.json()) == (200, {"federation": "demo"})
        assert answer.headers["cache-control"] == "no-store"
        assert (await client.get("/api/v1/topics/a%20b")).json() == {"name": "a b"}
        assert (await client.get("/api/v1/groups/a%2Fb%3F")).json() == {"name": "a/b?"}
        assert (await client.get("/api/v1/history?limit=7")).json()["limit"] == 7
        for path, status, words in (
            ("/api/v1/topics/none", 404, "no topic 'none'"),
            ("/api/v1/clusters", 503, "the store is away"),
            ("/api/v1/groups", 500, "the log says more"),
            ("/api/v1/nothing", 404, "not found"),
            ("/api/v1/offsets/orders/0/x?from=a&to=b", 400, "offset"),
            ("/api/v1/offsets/orders/-1/5?from=a&to=b", 400, "partition"),
            ("/api/v1/offsets/orders/0/5?from=a", 400, "to: the name of a cluster"),
            ("/api/v1/history?limit=0", 400, "limit"),
            ("/api/v1/config/apply", 405, "not allowed"),
        ):
            answer = await client.get(path)
            assert answer.status_code == status, path
            assert words in answer.json()["error"], path


async def test_health_readiness_metrics_and_description() -> None:
    office = FakeOffice()
    async with serving(office, here()) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).json() == {"ready": True, "reasons": []}
        office.reasons = ["no proxy worker is ready"]
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["reasons"]) == (503, office.reasons)
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "/api/v1/topics/{name}" in (await client.get("/api/v1/openapi.json")).json()["paths"]


async def test_a_change_is_a_plan_unless_it_says_apply() -> None:
    office = FakeOffice()
    wanted: Document = {"clusters": {}}
    async with serving(office, here()) as url, httpx.AsyncClient(base_url=url) as client:
        path = "/api/v1/config/apply"
        assert (await client.post(path, json={"configuration": wanted})).json()["wanted"] == wanted
        assert not office.applied
        body = {"configuration": wanted, "apply": True, "revision": 5}
        answer = await client.post(path, json=body, headers={"X-Kfed-User": "ada@host\x01"})
        assert answer.json() == {"applied": True}
        assert office.applied == [(wanted, 5, "ada@host from 127.0.0.1")]
        for wrong, status in (
            ({"configuration": wanted, "apply": True, "revision": 1}, 409),
            ({"configuration": {}, "apply": True}, 400),
            ({"configuration": [], "apply": True}, 400),
            ({"configuration": wanted, "apply": "yes"}, 400),
            ({"configuration": wanted, "apply": True, "revision": "x"}, 400),
            ([], 400),
        ):
            assert (await client.post(path, json=wrong)).status_code == status, wrong
        broken = await client.post(path, content=b"{", headers={"Content-Type": "application/json"})
        assert broken.status_code == 400
        assert len(office.applied) == 1


async def test_a_read_only_process_changes_nothing() -> None:
    office = FakeOffice()
    office.read_only = True
    async with serving(office, here()) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/api/v1/config/apply", "/api/v1/store/import", "/api/v1/store/export"):
            answer = await client.post(path, json={"configuration": {"clusters": {}}, "apply": True})
            assert answer.status_code == 403
        assert not office.applied
        assert (await client.post("/api/v1/config/diff", json={"configuration": {}})).status_code == 200


async def test_a_token_is_needed_and_re_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    async with serving(FakeOffice(), here(token_file=str(file))) as url, httpx.AsyncClient(base_url=url) as client:

        async def status(token: str | None, path: str = "/api/v1/status") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
            return (await client.get(path, headers=headers)).status_code

        assert await status(TOKEN) == 200
        for wrong in (None, "x", TOKEN + "x", TOKEN[:-1]):
            assert await status(wrong) == 401
        assert await status(None, "/metrics") == 401
        assert await status(None, "/healthz") == 200
        assert await status(None, "/readyz") == 200
        file.write_text("")  # caught while it is being written
        assert await status(None) == 401
        assert await status(TOKEN) == 200
        file.write_text("another-secret-of-some-length")
        assert await status(TOKEN) == 401
        assert await status("another-secret-of-some-length") == 200


@pytest.mark.parametrize("text", ["", "short"])
def test_a_token_too_short_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"admin\.token_file"):
        guard.token_of(here(token_file=str(file)))
    with pytest.raises(SettingsError, match=r"admin\.token_file"):
        guard.token_of(here(token_file=str(tmp_path / "none")))


async def test_without_a_token_web_pages_are_refused() -> None:
    office = FakeOffice()
    async with serving(office, here()) as url, httpx.AsyncClient(base_url=url) as client:
        path = "/api/v1/config/apply"
        assert (await client.get("/api/v1/status", headers={"Host": "evil.example"})).status_code == 403
        assert (await client.get("/api/v1/status", headers={"Origin": "http://evil.example"})).status_code == 403
        assert (await client.get("/api/v1/status", headers={"Origin": url})).status_code == 200
        plain = await client.post(path, content=b'{"apply": true}', headers={"Content-Type": "text/plain"})
        assert plain.status_code == 415
        assert not office.applied


async def test_sizes_and_times_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST_TIMEOUT", 1.0)
    monkeypatch.setattr(guard, "BODY_TIMEOUT", 0.2)

    async def raw(url: str, length: int, body: bytes) -> bytes:
        """The status line that a POST of this announced length and this body gets."""
        host, port = url.removeprefix("http://").split(":")
        head = f"POST /api/v1/config/diff HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
            return bytes(await stream.receive_some(4096)).partition(b"\r\n")[0]

    async with serving(FakeOffice(), here()) as url, httpx.AsyncClient(base_url=url) as client:
        assert b" 413 " in await raw(url, guard.MAX_BODY + 1, b"")
        assert b" 408 " in await raw(url, 100, b"{")
        assert (await client.get("/api/v1/topics")).status_code == 504
        assert (await client.get("/api/v1/status")).status_code == 200


async def test_a_port_that_is_taken_names_its_key() -> None:
    with server.bind(here()) as taken, pytest.raises(SettingsError, match=r"admin\.port"):
        server.bind(Admin(bind="127.0.0.1", port=taken.getsockname()[1]))


async def test_a_renewed_certificate_is_served_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_AGAIN", 0.0)
    authorities = [trustme.CA(), trustme.CA()]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    def trusting(authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    write(authorities[0])
    admin = here(tls=TlsServer(cert=str(cert), key=str(key)))

    async def status(url: str, authority: trustme.CA) -> int:
        async with httpx.AsyncClient(base_url=url, verify=trusting(authority)) as client:
            return (await client.get("/api/v1/status")).status_code

    async with (
        serving(FakeOffice(), admin) as url,
        httpx.AsyncClient(base_url=url, verify=trusting(authorities[0])) as old,
    ):
        assert (await old.get("/api/v1/status")).status_code == 200
        key.write_bytes(b"half written")
        assert await status(url, authorities[0]) == 200
        write(authorities[1])
        assert await status(url, authorities[1]) == 200
        assert (await old.get("/api/v1/status")).status_code == 200, "an open connection stays"
        with pytest.raises(httpx.ConnectError):
            await status(url, authorities[0])


async def test_the_command_line_expects_the_configured_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name in ("right", "wrong"):
        issued = trustme.CA().issue_cert("kfed.example")
        paths.append((tmp_path / f"{name}.cert", tmp_path / f"{name}.key"))
        paths[-1][0].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        paths[-1][1].write_bytes(issued.private_key_pem.bytes())
    token = tmp_path / "token"
    token.write_text(TOKEN)
    admin = here(tls=TlsServer(cert=str(paths[0][0]), key=str(paths[0][1])), token_file=str(token))
    async with serving(FakeOffice(), admin) as url:
        for (cert, key), status in zip(paths, (0, 1), strict=True):
            file = tmp_path / "kfed.yaml"
            file.write_text(
                f"""
                federation: demo
                store: {{kind: embedded, path: ./state}}
                clusters: {{east: {{bootstrap: ["h:1"]}}}}
                placement: {{default: east}}
                admin: {{port: {url.rpartition(":")[2]}, token_file: {token}, tls: {{cert: {cert}, key: {key}}}}}
                """
            )
            arguments = ["operations", "--json", "-c", str(file)]
            assert await trio.to_thread.run_sync(main, arguments) == status
        assert '"operations": []' in capsys.readouterr().out


def test_files_that_cannot_be_used_name_their_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"admin\.tls"):
        server.tls_of(here(tls=TlsServer(cert=str(tmp_path / "none"), key=str(tmp_path / "none"))))
