"""`python -m replicator ...`: one replicator worker, started by its parent (`metadata_service.worker_process`)."""

from __future__ import annotations

import sys

from metadata_service.worker_process import main
from replicator.service import Service

if __name__ == "__main__":
    sys.exit(main("replicator", lambda settings, instance, number: Service(settings, instance, number).run))
