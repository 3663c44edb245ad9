"""kfed's replicator in a process of its own: `python -m tools.bench.mirror_process SETTINGS`, as JSON.

Says `copying` once every partition is. Then a line in, a line of JSON out: `stats`; `behind TOPIC` for how many of its
partitions are not known to be at the end; `translate TOPIC PARTITION OFFSET` for the target's offset of a source's
record. It ends with its input.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import trio

from kafka_client import ClusterClient
from replicator.service import COLLECT_AFTER
from replicator.states import Condition
from replicator.worker import Mirror, Replicator

SOURCE, TARGET = "source", "target"


def _answer(replicator: Replicator, line: str) -> Any:
    link = replicator.links[SOURCE, TARGET]
    word, *more = line.split()
    if word == "stats":
        counters = link.counters
        return {
            "bytes": counters.bytes,
            "batches": counters.batches,
            "records": counters.records,
            "failures": counters.failures,
            "produce_requests": sum(one.requests for one in link._outlets.values()),
            "fetch_requests": sum(one.requests for one in link._feeders.values()),
        }
    if word == "behind":
        return sum(not 0 <= one.end <= one.position for mirror, _, one in replicator.statuses() if mirror.topic in more)
    topic, partition, offset = more[0], int(more[1]), int(more[2])
    for session in link.sessions.values():
        if session.assignment.topic == topic and partition in session.lanes:
            return session.lanes[partition].partition.table.physical(offset)
    return None


def _starting(replicator: Replicator) -> bool:
    return any(one.condition is Condition.STARTING for _, _, one in replicator.statuses())


async def main(settings: dict[str, Any]) -> None:
    async with (
        ClusterClient(SOURCE, settings[SOURCE]) as source,
        ClusterClient(TARGET, settings[TARGET]) as target,
        trio.open_nursery() as nursery,
    ):
        replicator = Replicator({SOURCE: source, TARGET: target})
        nursery.start_soon(replicator.run)
        for topic in settings["topics"]:
            progress = await replicator.add(Mirror(topic, SOURCE, TARGET))
            if progress.problems or progress.error:
                raise SystemExit(f"{topic}: {progress.error or progress.problems}")
        while _starting(replicator):  # noqa: ASYNC110 - statuses tell nobody that they change
            await trio.sleep(0.02)
        # As the replicator's own service does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
        print("copying", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(_answer(replicator, line)), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
