"""`python -m replicator --config FILE --instance NAME --worker N [--endpoint SOCKET]`: one worker, started by its
parent."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import trio

from metadata_service.store.contract import StoreReplaced
from replicator.service import Service
from runtime import logging, process
from runtime.settings import SettingsError, load

log = logging.get(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m replicator", description=__doc__)
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
    logging.configure(settings.log, instance=given.instance, replicator=given.worker)
    status = 0
    try:
        trio.run(partial(Service(settings, given.instance, given.worker).run, given.endpoint))
    except* StoreReplaced as group:
        # The parent starts it again, and it opens the store as it is now.
        log.warning("starting again: the store was replaced", error=str(process.first_cause(group)))
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
