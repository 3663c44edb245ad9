"""Bytes to meaning and back: frames, headers, messages, the API table, record-batch headers.

No I/O and no event loop: everything here is a function over bytes and values. Messages are plain dicts whose
keys are the protocol's field names in snake_case (`msg["topics"][0]["name"]`); see `codec`.
"""
