"""Measurements, never tests: machines are noisy. `python -m tools.bench` is the proxy next to a direct connection."""
