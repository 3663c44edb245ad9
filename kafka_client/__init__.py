"""A small trio client for brokers: raw frames and typed calls."""
