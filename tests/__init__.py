"""Unit and property tests need nothing; the others start real brokers, see fixtures."""
