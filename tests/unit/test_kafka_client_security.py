"""Credentials: the exchanges' published examples, files that change, nothing that shows a secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import ssl
from pathlib import Path

import pytest
import trustme

from kafka_client import AuthenticationFailed, Sasl, SecretFile, SecretValue, Tls
from kafka_client.cluster import backoff, error_codes, parse_address
from kafka_client.sasl import OAuthBearer, Plain, Scram, exchange
from kafka_client.security import ssl_context


def test_scram_is_rfc_7677s_example() -> None:
    scram = Scram("sha256", "user", "pencil", nonce="rOprNGfwEbeRWgbNEkqO")
    assert scram.start() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    proof = scram.answer(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
    assert proof == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert not scram.finished
    assert scram.answer(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") is None
    assert scram.finished


def test_scram_names_are_escaped_and_token_logins_marked() -> None:
    scram = Scram("sha512", "a=b,c", "x", token_auth=True, nonce="N")
    assert scram.start() == b"n,,n=a=3Db=2Cc,r=N,tokenauth=true"


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"\xff",
        b"r=other,s=AAAA,i=4096",
        b"r=N,s=AAAA,i=4096",
        b"r=Nx,s=AAAA,i=1",
        b"r=Nx,s=AAAA,i=99999999",
        b"r=Nx,s=AAAA,i=many",
        b"r=Nx,s=!,i=4096",
        b"r=Nx,i=4096",
    ],
)
def test_scram_refuses_challenges_that_are_wrong(challenge: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        Scram("sha256", "user", "pencil", nonce="N").answer(challenge)


@pytest.mark.parametrize("final", [b"e=invalid-proof", b"v=AAAA", b"", b"x"])
def test_scram_wants_the_brokers_proof(final: bytes) -> None:
    scram = Scram("sha256", "user", "pencil", nonce="N")
    scram.answer(b"r=Nx,s=AAAA,i=4096")
    with pytest.raises(AuthenticationFailed):
        scram.answer(final)
    assert not scram.finished


def test_scram_computes_what_a_broker_verifies() -> None:
    """RFC 5802, section 3, from the other side."""
    scram = Scram("sha512", "u", "secret", nonce="N")
    first = b"r=Nserver,s=" + base64.b64encode(b"salt") + b",i=5000"
    proof = scram.answer(first)
    assert proof is not None
    without, _, given = proof.rpartition(b",p=")
    salted = hashlib.pbkdf2_hmac("sha512", b"secret", b"salt", 5000)
    client_key = hmac.digest(salted, b"Client Key", "sha512")
    signed = b"n=u,r=N," + first + b"," + without
    signature = hmac.digest(hashlib.sha512(client_key).digest(), signed, "sha512")
    assert bytes(a ^ b for a, b in zip(base64.b64decode(given), signature, strict=True)) == client_key


def test_plain_and_oauthbearer() -> None:
    plain = Plain("ann", "pw")
    assert plain.start() == b"\0ann\0pw"
    assert plain.answer(b"") is None
    assert plain.finished
    bearer = OAuthBearer("tok", (("traceId", "7"),))
    assert bearer.start() == b"n,,\x01auth=Bearer tok\x01traceId=7\x01\x01"
    assert bearer.answer(b'{"status":"invalid_token"}') == b"\x01"
    assert not bearer.finished
    assert bearer.answer(b"") is None
    assert bearer.finished


def test_no_secret_is_shown() -> None:
    sasl = Sasl("PLAIN", "ann", SecretValue("hunter2"), SecretValue("hunter2"))
    assert "hunter2" not in repr(sasl)
    assert "hunter2" not in str(sasl)


def test_a_password_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("first\n")
    sasl = Sasl("PLAIN", "ann", SecretFile(str(path)))
    assert exchange(sasl).start() == b"\0ann\0first"
    fresh = tmp_path / "fresh"
    fresh.write_text("other")
    fresh.rename(path)
    assert exchange(sasl).start() == b"\0ann\0other"
    path.unlink()
    with pytest.raises(AuthenticationFailed, match="FileNotFoundError") as failed:
        exchange(sasl)
    assert str(path) not in str(failed.value) or "other" not in str(failed.value)


def test_tls_files_are_read_again_and_a_half_done_rotation_keeps_the_old(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))

    def issue() -> tuple[bytes, bytes]:
        leaf = authority.issue_cert("127.0.0.1")
        return leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()

    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # the clock of files is coarse

    one, two = issue(), issue()
    write(cert, one[0])
    write(key, one[1])
    tls = Tls(str(ca), str(cert), str(key), verify_hostname=False)
    first = ssl_context(tls)
    assert ssl_context(tls) is first
    assert first.verify_mode == ssl.CERT_REQUIRED
    assert not first.check_hostname
    write(cert, two[0])  # not its key yet
    assert ssl_context(tls) is first
    assert "keeping the former TLS files" in caplog.text
    write(key, two[1])
    second = ssl_context(tls)
    assert second is not first
    ca.unlink()
    assert ssl_context(tls) is second
    with pytest.raises(OSError, match="No such file"):
        ssl_context(Tls(str(tmp_path / "none.pem")))


def test_addresses() -> None:
    assert parse_address("kafka.example:9092") == ("kafka.example", 9092)
    assert parse_address("[::1]:9092") == ("::1", 9092)
    for wrong in ("kafka", ":9092", "kafka:", "kafka:x", "kafka:0", "kafka:70000"):
        with pytest.raises(ValueError, match="host:port"):
            parse_address(wrong)


def test_backoff_is_bounded_and_spread() -> None:
    for failures in (1, 2, 5, 1000):
        pauses = {backoff(failures) for _ in range(50)}
        assert len(pauses) > 40
        assert all(0.025 <= pause <= 2.0 for pause in pauses)
    assert min(backoff(1000) for _ in range(50)) >= 1.0


def test_error_codes_are_found_at_any_depth() -> None:
    answer = {"error_code": 3, "topics": [{"error_code": 5, "partitions": [{"error_code": 6}]}], "names": ["x"]}
    assert sorted(error_codes(answer)) == [3, 5, 6]
