"""Fixtures come from tests/fixtures; this loads them, and says which examples property tests try.

The same ones every time, so that a verdict on a commit is about that commit; `KFED_TEST_RANDOM=1` (set by `make soak`)
looks for new ones, and prints what is needed to try a finding again.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("new", print_blob=True)
settings.load_profile("new" if os.environ.get("KFED_TEST_RANDOM") else "same")

pytest_plugins = [
    "tests.fixtures.clusters",
    "tests.fixtures.federation",
    "tests.fixtures.java",
    "tests.fixtures.names",
    "tests.fixtures.sides",
    "tests.fixtures.security",
]
