"""Produce requests that repeat: the head of one is compared with the last one's, instead of being parsed again.

A producer's requests for a topic begin with the same bytes (client id, transactional id, acks, timeout, topic) and
their answers have the same length and the same beginning, as long as nothing is wrong. At a few hundred requests a
second what counts is how much code runs cold between two system calls.
"""

from __future__ import annotations

from kafka_wire.codec import encode

FLEXIBLE_FROM = 9
TOPIC_IDS_FROM = 13
_FIRST = 12  # size, key, version, correlation id


class RepeatedProduce:
    """What a Produce with one partition looks like, and its answer when all is well.

    `head` is what lies between the correlation id and the partition's index; `answer_size` (with the size prefix) and
    `answer_head` describe an answer without any error. An answer of that size with error 0 has no room for a leader
    hint or a message.
    """

    __slots__ = ("answer_head", "answer_size", "error_at", "generation", "head", "head_end", "kind", "version")

    def __init__(self, frame: memoryview, partition_at: int, version: int, topic: str | bytes) -> None:
        """`frame` without its size prefix; `partition_at` is where the partition's index lies in it."""
        self.version = version
        self.kind = b"\0\0" + version.to_bytes(2, "big")
        self.head = bytes(frame[_FIRST - 4 : partition_at])
        self.head_end = _FIRST + len(self.head)
        key = "topic_id" if version >= TOPIC_IDS_FROM else "name"
        answer = {"responses": [{key: topic, "partition_responses": [{"index": 0}]}]}
        body = encode("response", 0, version, answer)
        header = 5 if version >= FLEXIBLE_FROM else 4
        self.answer_size = 4 + header + len(body)
        tail = 4 + 2 + 8 + 8 + (8 if version >= 5 else 0)  # index, error, base offset, append time, log start
        if version >= 8:
            tail += 2 if version >= FLEXIBLE_FROM else 6  # record errors, error message
        tail += 4  # throttle time
        if version >= FLEXIBLE_FROM:
            tail += 3  # tags of partition, topic and response
        index_at = self.answer_size - tail
        self.error_at = index_at + 4
        self.answer_head = bytes(4 if header == 4 else 5)[4:] + bytes(body[: index_at - 4 - header])
        self.generation = -1  # of the view that let it pass

    def repeats(self, window: memoryview, generation: int) -> bool:
        """Whether `window` (with its size prefix) is one whole frame with the same head, and the view the same."""
        return (
            generation == self.generation
            and window[_FIRST : self.head_end] == self.head
            and window[4:8] == self.kind
            and int.from_bytes(window[:4], "big") == len(window) - 4
        )

    def fine(self, window: memoryview, size: int) -> bool:
        """Whether the answer at the start of `window` (with its size prefix, `size` without) says just: stored."""
        at = self.error_at
        return (
            size + 4 == self.answer_size
            and window[8 : 8 + len(self.answer_head)] == self.answer_head
            and not window[at]
            and not window[at + 1]
        )
