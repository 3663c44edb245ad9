"""`python -m tools.reference [--check]`: write docs/reference, or say (status 1) which pages are not current."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.reference import admin_api, command_line, configuration, metrics

DIRECTORY = Path("docs/reference")
PAGES = {
    "configuration.md": configuration.page,
    "cli.md": command_line.page,
    "admin-api.md": admin_api.page,
    "metrics.md": metrics.page,
}


def outdated(directory: Path) -> list[str]:
    """The pages whose text is not what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (directory / name).exists() or (directory / name).read_text() != page()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        names = outdated(DIRECTORY)
        for name in names:
            print(f"{DIRECTORY / name} is not current: run python -m tools.reference")
        return 1 if names else 0
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (DIRECTORY / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
