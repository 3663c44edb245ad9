"""`python -m tools.local_cluster --names east,west`: clusters for trying things out, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tools.kafka.get import MissingProgram
from tools.local_cluster.cluster import running
from tools.local_cluster.spec import ADMIN, ADMIN_PASSWORD, ClusterSpec, secured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.local_cluster", description=__doc__)
    parser.add_argument("--names", default="east,west", help="comma-separated (%(default)s)")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="nodes of each (%(default)s)")
    parser.add_argument(
        "--secured", action="store_true", help=f"SASL, ACLs, tokens; log in as {ADMIN}/{ADMIN_PASSWORD}"
    )
    parser.add_argument("--auto-create", action="store_true", help="brokers create topics at first use")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a server property; repeatable"
    )
    parser.add_argument("--directory", type=Path, help="keep data and logs here (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    overrides = dict(item.split("=", 1) for item in options.set)
    if options.auto_create:
        overrides["auto.create.topics.enable"] = "true"
    specs = []
    for name in options.names.split(","):
        made = secured(name, {}) if options.secured else ClusterSpec(name=name)
        specs.append(replace(made, brokers=options.brokers, overrides=overrides))
    signals = {signal.SIGINT, signal.SIGTERM}
    # While clusters start, SIGTERM is a Ctrl-C: both leave through `running`, which cleans up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(*specs, directory=options.directory) as clusters:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            if options.json:
                print(json.dumps({name: cluster.bootstrap() for name, cluster in clusters.items()}), flush=True)
            else:
                for name, cluster in clusters.items():
                    print(f"{name:12} {cluster.bootstrap()}", flush=True)
            signal.sigwait(signals)
    except MissingProgram as missing:
        sys.exit(str(missing))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
