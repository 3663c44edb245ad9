"""Copies record batches between clusters.

Links and their mirrors, the copy loop with its intents and recovery, the assignment of partitions to workers, and the
audit that compares both sides.
"""
