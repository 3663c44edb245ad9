"""Invariants over generated input."""
