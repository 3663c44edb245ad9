"""`python -m tools.bench.tables`: what offset tables cost in memory, in the journal, to look up and to load.

No brokers: the journal's records are made as a mirror makes them, checkpoint by checkpoint, and read as a follower
reads them. Prints Markdown; docs/benchmarks/mirror.md keeps the figures.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Callable

from offset_sync.guard import Guard
from offset_sync.journal import Pair, State, Stream, checkpoint_pairs
from offset_sync.kept import Keeper, Kept
from offset_sync.runs import CHUNK
from offset_sync.table import Table

STREAM = Stream(bytes(16), 0)
LOOKUPS = 200_000
CHECKPOINTS = 20_000  # runs to a checkpoint while the tables are made: what a busy mirror makes in a second
ROUNDS = 3


def made(runs: int, shape: str) -> tuple[Table, dict[bytes, bytes]]:
    """A table with about so many runs, and what a compacted journal holds of it.

    `transactions`: a marker after every few records, on the source alone; `exchange`: other clusters' records in
    between, in both logs.
    """
    chance = random.Random(1)
    table, guard, journal = Table(), Guard(), dict[bytes, bytes]()
    logical = physical = 0

    def checkpoint(number: int) -> None:
        state = State(number=number, position=logical, scanned=physical)
        _keep(journal, checkpoint_pairs(STREAM, state, table, guard))

    for number in range(runs):
        count = chance.randrange(1, 200)
        table.append(logical, physical, count)
        logical, physical = logical + count + 1, physical + count
        if shape == "exchange":
            logical += chance.randrange(200)
            physical += chance.randrange(1, 200)
        if number % CHECKPOINTS == 0:
            checkpoint(number)
    checkpoint(runs)
    return table, journal


def _keep(journal: dict[bytes, bytes], pairs: list[Pair]) -> None:
    for key, value in pairs:
        if value is None:
            journal.pop(key, None)
        else:
            journal[key] = value


def load(journal: dict[bytes, bytes]) -> Kept:
    keeper, kept = Keeper(), Kept(STREAM)
    keeper.add(kept)
    keeper.feed(list(journal.items()))
    kept.settle()
    return kept


def best(call: Callable[[], object]) -> float:
    """CPU seconds of the quickest round: others use this machine too."""
    out = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        started = time.process_time()
        call()
        out = min(out, time.process_time() - started)
    return out


def memory(journal: dict[bytes, bytes]) -> int:
    """Bytes that a loaded table keeps, whatever holds them."""
    gc.collect()
    tracemalloc.start()
    kept = load(journal)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(kept.table.runs)
    return size


def row(runs: int, shape: str) -> str:
    table, journal = made(runs, shape)
    chance = random.Random(2)
    end = table.runs.end
    assert end is not None and len(table.runs) == runs
    logical = [chance.randrange(end.logical) for _ in range(LOOKUPS)]
    physical = [chance.randrange(end.physical) for _ in range(LOOKUPS)]
    empty = best(lambda: [-one for one in logical]) / LOOKUPS
    there = best(lambda: [table.physical(one) for one in logical]) / LOOKUPS - empty
    back = best(lambda: [table.logical(one) for one in physical]) / LOOKUPS - empty
    loading = best(lambda: load(journal))
    stored = sum(len(key) + len(value) for key, value in journal.items())
    last = {key: value for key, value in journal.items() if key == STREAM.key(b"C", table.runs.chunk_of_last())}
    follower = load(journal)
    keeper = Keeper()
    keeper.add(follower)
    change = [*last.items(), (STREAM.key(b"S"), State(number=runs, scanned=end.physical).encode())]
    following = best(lambda: keeper.feed(change))
    return (
        f"| {shape} | {runs:,} | {memory(journal) / runs:.1f} | {stored / runs:.1f} | {len(journal):,} "
        f"| {there * 1e6:.2f} / {back * 1e6:.2f} | {loading:.2f} | {following * 1e6:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.tables", description=__doc__)
    parser.add_argument("--runs", type=int, nargs="*", default=[1_000, 100_000, 1_000_000], help="sizes of tables")
    options = parser.parse_args()
    print(f"Runs to a stored record: {CHUNK}. Python {sys.version.split()[0]}, one thread.\n")
    print(
        "| runs from | runs | bytes a run in memory | bytes a run in the journal | records in the journal "
        "| lookup, µs (to physical / to logical) | load, CPU s | follow a checkpoint, µs |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in ("transactions", "exchange"):
        for runs in options.runs:
            print(row(runs, shape), flush=True)


if __name__ == "__main__":
    main()
