"""Logical offsets.

Timelines, tables and the translation between logical and physical offsets are pure data and functions here;
carrying committed offsets from one home to another is the part that talks to brokers.
"""
