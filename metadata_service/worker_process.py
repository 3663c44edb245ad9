"""A worker's process, as its parent starts it: `python -m proxy --config FILE --instance NAME --worker N
[--endpoint SOCKET]`, and the same for `replicator`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import trio

from metadata_service.store.contract import StoreReplaced
from runtime import logging, process
from runtime.settings import Settings, SettingsError, load

log = logging.get(__name__)

Serve = Callable[[str | None], Awaitable[None]]
"""Serves until the process is to end; takes the socket on which the parent asks, None where it does not."""


def main(role: Literal["proxy", "replicator"], make: Callable[[Settings, str, int], Serve]) -> int:
    """The exit status. `make` gets the settings, the instance's name and the worker's number."""
    parser = argparse.ArgumentParser(prog=f"python -m {role}", description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--instance", required=True)
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--endpoint")
    given = parser.parse_args()
    try:
        settings = load(given.config)
    except SettingsError as error:
        print(f"kfed: {error}", file=sys.stderr)
        return process.WRONG_CONFIGURATION
    number = {"worker" if role == "proxy" else role: given.worker}
    logging.configure(settings.log, instance=given.instance, **number)
    status = 0
    try:
        trio.run(partial(make(settings, given.instance, given.worker), given.endpoint))
    except* SettingsError as group:
        print(f"kfed: {process.first_cause(group)}", file=sys.stderr)
        status = process.WRONG_CONFIGURATION
    except* StoreReplaced as group:
        # The parent starts it again, and it opens the store as it is now.
        log.warning("starting again: the store was replaced", error=str(process.first_cause(group)))
        status = 1
    return status
