"""Fixtures come from tests/fixtures; this only loads them."""

pytest_plugins = [
    "tests.fixtures.clusters",
    "tests.fixtures.federation",
    "tests.fixtures.java",
    "tests.fixtures.names",
    "tests.fixtures.sides",
    "tests.fixtures.security",
]
