"""Which batches go into which request, and what becomes of their answers."""

from __future__ import annotations

from collections import deque

from kafka_client.topics import Topic
from kafka_wire.codec import Buffer, Message
from kafka_wire.frames import response_frame
from replicator.outlet import REQUEST_BYTES, REQUESTS_IN_FLIGHT, Outlet
from replicator.wire import PRODUCE, Produced

VERSION = 13
DATA, JOURNAL = Topic("orders", bytes(15) + b"\1"), Topic("journal", bytes(15) + b"\2")


class Batches:
    """A lane that gives batches of one size."""

    def __init__(self, topic: Topic, partition: int, size: int, count: int) -> None:
        self.place = topic, partition
        self.left = deque(memoryview(bytes(size)) for _ in range(count))
        self.told: list[object] = []

    def next(self, _: int) -> memoryview | None:
        return self.left.popleft() if self.left else None

    def landed(self, base_offset: int, log_start: int, _: int) -> None:
        self.told.append((base_offset, log_start))

    def answered(self, answer: Produced, _: int) -> None:
        self.told.append(answer.error)

    def lost(self, reason: str) -> None:
        self.told.append(reason)


class Socket:
    """Takes every request, by the sizes of its batches."""

    due = unsent = False

    def __init__(self) -> None:
        self.requests: list[list[int]] = []

    def put(self, _: bytearray, parts: list[Buffer]) -> None:
        self.requests.append([len(one) for one in parts[::2]])

    def flush(self) -> bool:
        return True


def outlet(*lanes: Batches, leased: bool = True) -> tuple[Outlet, Socket]:
    made, sock = Outlet(None, 1, lambda: leased), Socket()  # type: ignore[arg-type]
    for lane in lanes:
        made.offer(lane)
    made._send(sock, VERSION)  # type: ignore[arg-type]
    return made, sock


def answer(topics: dict[Topic, list[tuple[int, int, int]]]) -> memoryview:
    """(partition, error, base offset) of each topic."""
    message: Message = {
        "responses": [
            {
                "topic_id": topic.id,
                "partition_responses": [
                    {"index": index, "error_code": error, "base_offset": base, "log_start_offset": 3}
                    for index, error, base in parts
                ],
            }
            for topic, parts in topics.items()
        ]
    }
    return memoryview(response_frame(PRODUCE, VERSION, 1, message))[4:]


def test_partitions_that_are_behind_leave_room_for_the_others() -> None:
    """However much waits elsewhere, a batch is in one of the next requests: lanes take turns."""
    behind = [Batches(DATA, number, 1 << 20, 100) for number in range(20)]
    live = Batches(DATA, 99, 100, 1)
    made, sock = outlet(*behind)
    before = len(sock.requests)
    assert all(sum(sizes) <= REQUEST_BYTES for sizes in sock.requests)
    made.offer(live)
    for _ in range(7):  # 21 lanes, four megabytes a request
        made._pending.popleft()
        made._send(sock, VERSION)  # type: ignore[arg-type]
    assert not live.left
    assert sum(100 in sizes for sizes in sock.requests[before:]) == 1


def test_one_batch_of_a_partition_a_request_and_so_many_requests() -> None:
    lanes = [Batches(DATA, 0, 10, 100), Batches(DATA, 1, 10, 2), Batches(JOURNAL, 3, 20, 1), Batches(JOURNAL, 3, 30, 1)]
    made, sock = outlet(*lanes)
    # The two that share a place take turns.
    assert sock.requests[:3] == [[10, 10, 20], [30, 10, 10], [10]]
    assert len(made._pending) == len(sock.requests) == REQUESTS_IN_FLIGHT


def test_answers_go_to_their_lanes_in_any_order() -> None:
    first, second, third = Batches(DATA, 0, 10, 2), Batches(DATA, 1, 10, 2), Batches(JOURNAL, 1, 10, 2)
    made, _ = outlet(first, second, third)
    good = answer({JOURNAL: [(1, 0, 7)], DATA: [(1, 0, 5), (0, 0, 4)]})
    made._answered(VERSION, good, made._pending.popleft(), 0)
    assert (first.told, second.told, third.told) == ([(4, 3)], [(5, 3)], [(7, 3)])
    mixed = answer({DATA: [(1, 45, -1)], JOURNAL: [(1, 0, 8)]})
    made._answered(VERSION, mixed, made._pending.popleft(), 0)
    assert (first.told[1:], second.told[1:], third.told[1:]) == (["an answer without the partition"], [45], [0])


def test_nothing_is_sent_without_the_lease() -> None:
    lane = Batches(DATA, 0, 10, 1)
    made, sock = outlet(lane, leased=False)
    assert not sock.requests and not made._pending
    assert "the lease has run out" in lane.told
