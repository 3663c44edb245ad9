"""Certificates for one test run: an authority, server certificates for 127.0.0.1, client certificates by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Certificate:
    """Paths of PEM files. `both` holds key and chain in one file, which is how Kafka reads a PEM key store."""

    chain: Path
    key: Path
    both: Path
    # Who a broker takes its bearer for, without mapping rules.
    principal: str


class Authority:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def server(self, name: str, *hosts: str) -> Certificate:
        return self._write(f"server-{name}", self._ca.issue_cert(*LOCAL_NAMES, *hosts, common_name=name))

    def client(self, name: str) -> Certificate:
        return self._write(f"client-{name}", self._ca.issue_cert(f"{name}.client", common_name=name))

    def _write(self, stem: str, issued: trustme.LeafCert) -> Certificate:
        # Java reads PKCS 8 only.
        key = load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        subject = x509.load_pem_x509_certificate(chain).subject
        made = Certificate(
            chain=self._directory / f"{stem}.chain.pem",
            key=self._directory / f"{stem}.key.pem",
            both=self._directory / f"{stem}.both.pem",
            principal=f"User:{subject.rfc4514_string()}",
        )
        made.chain.write_bytes(chain)
        made.key.write_bytes(key)
        made.both.write_bytes(key + chain)
        return made
