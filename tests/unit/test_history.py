"""The judge of histories sees what must not happen."""

from __future__ import annotations

from tests.history.history import History


def good() -> History:
    history = History()
    for number in range(4):
        value = f"p:{number}"
        history.sent.append(value)
        history.acked(value, 0, number + 10)
        history.read(0, number + 10, value)
    return history


def test_a_clean_history_passes_also_where_something_is_read_again() -> None:
    history = good()
    assert history.judge(again=False) == []
    history.read(0, 11, "p:1")
    assert history.judge() == []
    assert history.judge(again=False) != []


def test_what_was_acknowledged_must_be_read_where_it_was_acknowledged() -> None:
    history = good()
    history.sent.append("p:4")
    history.acked("p:4", 0, 14)
    assert history.missing() == {"p:4"}
    assert len(history.judge()) == 1
    history.read(0, 15, "p:4")
    assert history.missing() == set()
    assert len(history.judge()) == 1


def test_duplicates_reorderings_strangers_and_failures_are_seen() -> None:
    for partition, offset, value in ((0, 14, "p:3"), (0, 14, "p:1"), (0, 13, "p:9"), (0, 14, "x:1")):
        history = good()
        history.read(partition, offset, value)
        assert history.judge() != []
    swapped = History()
    for offset, number in ((0, 1), (1, 0)):
        swapped.sent.append(f"p:{number}")
        swapped.read(0, offset, f"p:{number}")
    assert "stands behind" in swapped.judge()[0]
    failed = good()
    failed.failed.append(("p:4", "timed out"))
    assert failed.judge() != []
    assert failed.judge(failures=1) == []
