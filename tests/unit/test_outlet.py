"""Which batches go into which request, and what becomes of their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kafka_client.topics import Topic
from kafka_wire.codec import Buffer, Message
from kafka_wire.frames import response_frame
from replicator.outlet import REQUESTS_IN_FLIGHT, UNSENT_BYTES, WORTH, Outlet
from replicator.wire import ANSWER_BYTES, PRODUCE, Produced

VERSION = 13
DATA, JOURNAL = Topic("orders", bytes(15) + b"\1"), Topic("journal", bytes(15) + b"\2")


class Batches:
    """A lane that gives batches of one size."""

    urgent = False

    def __init__(self, topic: Topic, partition: int, size: int, count: int) -> None:
        self.place = topic, partition
        self.left = deque(memoryview(bytes(size)) for _ in range(count))
        self.told: list[object] = []

    def next(self, _: int, most: int, room: int) -> list[memoryview]:
        out: list[memoryview] = []
        while self.left and len(out) < most and sum(map(len, out)) < room:
            out.append(self.left.popleft())
        return out

    def landed(self, bases: Sequence[int], log_start: int, _: int) -> None:
        self.told += [(base, log_start) for base in bases]

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
    assert all(sum(sizes) <= UNSENT_BYTES for sizes in sock.requests)
    made.offer(live)
    for _ in range(7):  # 21 lanes, four megabytes a request
        made._pending.popleft()
        made._send(sock, VERSION)  # type: ignore[arg-type]
    assert not live.left
    assert sum(100 in sizes for sizes in sock.requests[before:]) == 1


def test_one_batch_of_a_partition_a_request_and_so_many_requests() -> None:
    lanes = [Batches(DATA, 0, 10, 100), Batches(DATA, 1, 10, 2), Batches(JOURNAL, 3, 20, 1), Batches(JOURNAL, 3, 30, 1)]
    made, sock = outlet(*lanes)
    # The two that share a place are in different ones.
    assert sock.requests[:3] == [[10, 10, 20], [10, 10, 30], [10]]
    assert len(made._pending) == len(sock.requests) == REQUESTS_IN_FLIGHT


def test_answers_go_to_their_lanes_in_any_order() -> None:
    first, second, third = Batches(DATA, 0, 10, 2), Batches(DATA, 1, 10, 2), Batches(JOURNAL, 1, 10, 2)
    made, _ = outlet(first, second, third)
    good = answer({JOURNAL: [(1, 0, 7)], DATA: [(1, 0, 5), (0, 0, 4)]})
    made._answers(VERSION, [good], 0)
    assert (first.told, second.told, third.told) == ([(4, 3)], [(5, 3)], [(7, 3)])
    mixed = answer({DATA: [(1, 45, -1)], JOURNAL: [(1, 0, 8)]})
    made._answers(VERSION, [mixed], 0)
    assert (first.told[1:], second.told[1:], third.told[1:]) == (["an answer without the partition"], [45], [0])


def test_answers_that_come_together_are_told_in_order() -> None:
    first, second = Batches(DATA, 0, 10, 4), Batches(DATA, 1, 10, 4)
    made, sock = outlet(first, second)
    assert sock.requests == [[10, 10]] * 4
    good = [answer({DATA: [(0, 0, 4 + n), (1, 0, 9 + n)]}) for n in range(3)]
    made._answers(VERSION, [*good[:2], answer({DATA: [(0, 0, 6), (1, 3, -1)]}), good[2]], 0)
    assert first.told == [(4, 3), (5, 3), 0, (6, 3)]
    assert second.told == [(9, 3), (10, 3), 3, (11, 3)]


def test_what_is_waited_for() -> None:
    """Enough answers to be worth it, but never the last one, and none behind one that others wait for."""
    made, _ = outlet(*(Batches(DATA, number, 10, 5) for number in range(8)))
    assert made._certain(VERSION) == WORTH * ANSWER_BYTES  # four of five
    made._pending.popleft()
    made._pending.popleft()
    assert made._certain(VERSION) == 16 * ANSWER_BYTES
    many, _ = outlet(*(Batches(DATA, number, 10, 5) for number in range(50)))
    assert many._certain(VERSION) == 50 * ANSWER_BYTES
    intents = Batches(JOURNAL, 1, 10, 1)
    intents.urgent = True
    made, _ = outlet(*(Batches(DATA, number, 10, 5) for number in range(8)), intents)
    assert made._certain(VERSION) == 9 * ANSWER_BYTES
    made, _ = outlet(intents)
    made._pending.append({})
    assert made._certain(VERSION) == 1


def test_nothing_is_sent_without_the_lease() -> None:
    lane = Batches(DATA, 0, 10, 1)
    made, sock = outlet(lane, leased=False)
    assert not sock.requests and not made._pending
    assert "the lease has run out" in lane.told
