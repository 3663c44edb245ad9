"""`python -m proxy ...`: one proxy worker, started by its parent (`metadata_service.worker_process`)."""

from __future__ import annotations

import sys

from metadata_service.worker_process import main
from proxy.worker import Worker

if __name__ == "__main__":
    sys.exit(main("proxy", lambda settings, instance, number: Worker(settings, instance, number).run))
