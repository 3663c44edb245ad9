"""The version of this program, and of what it runs on."""

from __future__ import annotations

import importlib.metadata
import platform

VERSION = "0.1.0"


def versions() -> dict[str, str]:
    """Names and versions for bug reports: kfed, Python and the libraries that matter."""
    system = f"{platform.system()} {platform.release()}"
    found = {"kfed": VERSION, "python": platform.python_version(), "system": system}
    for package in ("trio", "msgspec", "starlette", "hypercorn", "grpcio", "structlog"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found
