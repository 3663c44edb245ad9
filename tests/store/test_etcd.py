"""What only etcd has: certificates, users, several endpoints, a cluster, threads of gRPC."""

from __future__ import annotations

import contextlib
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from metadata_service.store.clock import boottime
from metadata_service.store.contract import (
    Change,
    Compacted,
    Delete,
    Put,
    Snapshot,
    StoreRefused,
    StoreUnavailable,
    Unchanged,
)
from metadata_service.store.etcd import EtcdBackend
from metadata_service.store.etcd_channel import EtcdSettings, Link
from metadata_service.store.open import open_store
from metadata_service.store.opened import OpenedStore, open_backend
from runtime.settings import EtcdStore, SettingsError, TlsClient
from tests.store.cluster import EtcdCluster
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.tls import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

PASSWORD = "s3cret: grün"


@contextlib.asynccontextmanager
async def opened(settings: EtcdSettings, *, deadline: float = 5.0) -> AsyncIterator[OpenedStore]:
    backend = EtcdBackend(settings, deadline=deadline, progress_interval=0.1)
    try:
        yield await open_backend(backend)
    finally:
        await backend.aclose()


def federation() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(etcd_binary: None, authority: Authority) -> Iterator[Etcd]:
    """TLS both ways, and users with passwords."""
    with Etcd(tls=authority, client_certificates=True, user="kfed", password=PASSWORD) as etcd:
        yield etcd


@pytest.fixture
def settings(secured: Etcd, authority: Authority, tmp_path: Path) -> EtcdStore:
    mine = authority.client("machine")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return EtcdStore(
        endpoints=(secured.endpoint,),
        tls=TlsClient(ca=str(authority.ca_file), cert=str(mine.chain), key=str(mine.key)),
        username="kfed",
        password_file=str(tmp_path / "password"),
    )


async def test_tls_and_a_password(settings: EtcdStore) -> None:
    async with open_store(settings, federation(), progress_interval=0.1) as store, store.follow("") as following:
        assert isinstance(await anext(following), Snapshot)
        lease = await store.grant(60)
        done = await store.commit([], [Put("a", b"1", lease.id)])
        change = await anext(following)
        assert isinstance(change, Change)
        assert change.revision == done.revision
        await store.keep_alive(lease.id)
        await store.revoke(lease.id)
        assert (await anext(following)).revision == done.revision + 1


async def test_a_token_that_is_no_longer_known_is_replaced(secured: Etcd, settings: EtcdStore) -> None:
    """etcd keeps tokens in memory: a restart forgets them, as their end would."""
    async with open_store(settings, federation(), progress_interval=0.1) as store, store.follow("") as following:
        await anext(following)
        for number in range(3):
            await trio.to_thread.run_sync(secured.kill)
            await trio.to_thread.run_sync(secured.start)
            # The first may meet the lost connection, of which nobody can say what it carried.
            with contextlib.suppress(StoreUnavailable):
                await store.commit([], [Put("a", b"%d" % number)])
            done = await store.commit([], [Put("b", b"%d" % number)])
            with trio.fail_after(20):
                while following.revision < done.revision:
                    assert isinstance(await anext(following), Change)


async def test_users_that_change_do_not_disturb_others(secured: Etcd, settings: EtcdStore) -> None:
    """Every change of users makes all tokens old ("revision of auth store is old")."""
    async with open_store(settings, federation()) as store:
        for number in range(3):
            await trio.to_thread.run_sync(secured.ctl, "user", "add", f"{federation()}:x")
            assert (await store.commit([], [Put("a", b"%d" % number)])).succeeded
            assert await store.get("a") is not None


def etcd_settings(settings: EtcdStore, prefix: str, user: str, password: Callable[[], str]) -> EtcdSettings:
    tls = settings.tls
    assert tls is not None
    assert tls.ca is not None
    assert tls.cert is not None
    assert tls.key is not None
    return EtcdSettings(
        endpoints=settings.endpoints,
        prefix=prefix,
        ca=Path(tls.ca),
        cert=Path(tls.cert),
        key=Path(tls.key),
        username=user,
        password=password,
    )


async def test_a_changed_password_is_read_again(secured: Etcd, settings: EtcdStore) -> None:
    user = federation()

    def make(password: str) -> None:
        secured.ctl("user", "add", f"{user}:{password}")
        secured.ctl("user", "grant-role", user, "root")

    make("one")
    current = "one"
    async with opened(etcd_settings(settings, f"/kfed/{user}/", user, lambda: current)) as store:
        await store.commit([], [Put("a", b"")])
        secured.ctl("user", "delete", user)
        make("two")
        with pytest.raises(StoreRefused):
            await store.get("a")
        current = "two"
        assert await store.get("a") is not None


async def test_wrong_credentials_are_refused_and_not_tried_again(settings: EtcdStore, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(StoreRefused, match="authentication failed"):
        async with open_store(settings, federation()):
            pass
    nobody = EtcdStore(endpoints=settings.endpoints, tls=settings.tls)
    with pytest.raises(StoreRefused):
        async with open_store(nobody, federation()):
            pass


async def test_a_user_of_one_prefix_reaches_no_other(secured: Etcd, settings: EtcdStore) -> None:
    mine, user = federation(), federation()
    secured.ctl("user", "add", f"{user}:mine")
    secured.ctl("role", "add", user)
    secured.ctl("role", "grant-permission", "--prefix=true", user, "readwrite", f"/kfed/{mine}/")
    secured.ctl("user", "grant-role", user, user)
    limited = EtcdStore(endpoints=settings.endpoints, tls=settings.tls, username=user, password="mine")
    async with open_store(limited, mine, progress_interval=0.1) as store, store.follow("") as following:
        await anext(following)
        done = await store.commit([Unchanged("a", 0)], [Put("a", b"")])
        assert (await anext(following)).revision == done.revision
    with pytest.raises(StoreRefused, match="permission denied"):
        async with open_store(limited, federation()):
            pass
    backend = EtcdBackend(etcd_settings(settings, "/kfed/other/", user, lambda: "mine"))
    watch = backend.watch("", 1)
    with trio.fail_after(10), pytest.raises(StoreRefused):
        await watch.receive()
    await watch.aclose()
    await backend.aclose()


async def test_another_authority_is_not_trusted(settings: EtcdStore, tmp_path: Path) -> None:
    stranger = TlsClient(ca=str(Authority(tmp_path / "other").ca_file))
    with pytest.raises(StoreUnavailable):
        async with open_store(EtcdStore(endpoints=settings.endpoints, tls=stranger), "x", deadline=1.0):
            pass


@pytest.mark.parametrize(
    "settings",
    [
        EtcdStore(endpoints=()),
        EtcdStore(endpoints=("127.0.0.1:2379",)),
        EtcdStore(endpoints=("http://127.0.0.1",)),
        EtcdStore(endpoints=("http://127.0.0.1:1",), username="only"),
        EtcdStore(endpoints=("https://127.0.0.1:1",), tls=TlsClient(cert="only")),
        EtcdStore(endpoints=("https://127.0.0.1:1",), tls=TlsClient(verify_hostname=False)),
    ],
)
async def test_settings_that_make_no_sense(settings: EtcdStore) -> None:
    with pytest.raises(SettingsError, match="store"):
        async with open_store(settings, "x"):
            pass


async def test_a_missing_certificate_file_is_named() -> None:
    settings = EtcdStore(endpoints=("https://127.0.0.1:1",), tls=TlsClient(ca="no/such/ca.pem"))
    with pytest.raises(StoreRefused, match=r"no/such/ca\.pem"):
        async with open_store(settings, "x"):
            pass


async def test_endpoints_that_are_dead_or_stalled_are_passed_over(shared_etcd: Etcd) -> None:
    with socket.socket() as stalled, socket.socket() as closed:
        stalled.bind(("127.0.0.1", 0))
        stalled.listen(16)  # accepts connections, and never answers
        closed.bind(("127.0.0.1", 0))
        names = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (stalled, closed)]
        for order in ((*names, shared_etcd.endpoint), (names[1], shared_etcd.endpoint, names[0])):
            async with opened(EtcdSettings(endpoints=order, prefix=f"/kfed/{federation()}/")) as store:
                done = await store.commit([], [Put("a", b"1")])
                async with store.watch("a", done.revision) as watch:
                    with trio.fail_after(20):
                        assert (await anext(watch)).revision == done.revision


@pytest.fixture
def cluster(etcd_binary: None, tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path, 3) as cluster:
        yield cluster


async def test_a_member_may_die_or_stand_still(cluster: EtcdCluster) -> None:
    """Whichever it is: commits go on, and the view misses nothing."""
    prefix = f"/kfed/{federation()}/"
    async with opened(EtcdSettings(endpoints=cluster.endpoints, prefix=prefix), deadline=3.0) as store:
        acknowledged: list[int] = []
        seen: list[int] = []
        async with store.follow("") as following:
            await anext(following)
            for number, member in enumerate(cluster.members):
                for hurt, mend in ((member.kill, member.start), (member.pause, member.resume)):
                    await trio.to_thread.run_sync(hurt)
                    acknowledged += await commit_until(store, 5, f"{number}-{hurt.__name__}")
                    with trio.fail_after(30):
                        while following.revision < acknowledged[-1]:
                            item = await anext(following)
                            assert isinstance(item, Change)
                            seen.append(item.revision)
                    await trio.to_thread.run_sync(mend)
                    await trio.to_thread.run_sync(cluster.wait_ready)
        assert set(acknowledged) <= set(seen)
        assert seen == sorted(set(seen))


async def test_without_a_majority_nothing_is_promised(cluster: EtcdCluster) -> None:
    settings = EtcdSettings(endpoints=cluster.endpoints[:1], prefix=f"/kfed/{federation()}/")
    async with opened(settings, deadline=2.0) as store, store.follow("") as following:
        await anext(following)
        await store.commit([], [Put("a", b"1")])
        await anext(following)
        for member in cluster.members[1:]:
            await trio.to_thread.run_sync(member.kill)
        cut_off_at = boottime()
        with trio.fail_after(20):
            while following.connected:
                with trio.move_on_after(0.1):
                    await anext(following)
        # What one member alone says is no proof.
        assert following.fresh_at is not None
        assert following.fresh_at < cut_off_at
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        with pytest.raises(StoreUnavailable):
            await store.commit([], [Put("b", b"1")])
        for member in cluster.members[1:]:
            await trio.to_thread.run_sync(member.start)
        (revision,) = await commit_until(store, 1, "c")
        with trio.fail_after(20):
            while following.revision < revision:
                await anext(following)


async def commit_until(store: OpenedStore, count: int, value: str) -> list[int]:
    """The revisions of so many acknowledged commits."""
    revisions: list[int] = []
    with trio.fail_after(30):
        while len(revisions) < count:
            try:
                revisions.append((await store.commit([], [Put("k", value.encode())])).revision)
            except StoreUnavailable:
                continue
    return revisions


async def test_a_release_that_reports_progress_and_still_loses_deletes(
    shared_etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.5.8 to 3.5.19: a delete at exactly the compacted revision never comes, and progress is reported past it."""
    monkeypatch.setattr(Link, "reports_progress", True)
    settings = EtcdSettings(endpoints=(shared_etcd.endpoint,), prefix=f"/kfed/{federation()}/")
    async with opened(settings) as store:
        await store.commit([], [Put("a", b"")])
        done = await store.commit([], [Delete("a")])
        await store.compact(done.revision)
        async with store.watch("a", done.revision) as watch:
            with trio.fail_after(10), pytest.raises(Compacted):
                await anext(watch)


async def test_children_can_be_started_while_grpc_is_at_work(shared_etcd: Etcd) -> None:
    settings = EtcdSettings(endpoints=(shared_etcd.endpoint,), prefix=f"/kfed/{federation()}/")
    async with opened(settings) as store, store.follow("") as following:
        await anext(following)
        for number in range(5):
            code = f"print({number})"
            child = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, capture_stderr=True)
            assert (child.stdout, child.stderr) == (f"{number}\n".encode(), b"")
            done = await store.commit([], [Put("a", b"%d" % number)])
            assert (await anext(following)).revision == done.revision
