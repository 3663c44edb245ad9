"""How commands end, and the configuration file they go by."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.settings import Settings, load

DEFAULT_FILE = "kfed.yaml"
DONE, FAILED, USAGE = 0, 1, 2


class Usage(Exception):
    """The command cannot be meant like this; the message says what to change."""


def settings_of(options: argparse.Namespace, *, needed: bool) -> Settings | None:
    """The configuration file: `-c`, else `kfed.yaml` in the working directory, where it is or must be.

    Raises:
        SettingsError: it is wrong. Usage: it is needed, and there is none.
    """
    if options.config is not None:
        return load(options.config)
    if needed:
        if not Path(DEFAULT_FILE).exists():
            raise Usage("needs a configuration file: -c FILE")
        return load(DEFAULT_FILE)
    if options.admin is None and Path(DEFAULT_FILE).exists():
        return load(DEFAULT_FILE)
    return None
