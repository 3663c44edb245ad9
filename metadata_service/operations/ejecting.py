"""A topic leaves the federation: its groups' positions become physical ones, on the cluster that serves it. Pure.

It leaves the records first, in one commit with the mark that keeps it from being adopted again. Clients of the
endpoint then hear that there is no such topic. Once every registered proxy knows, no commit for it is on its way any
more; the positions are read at the groups' homes, translated and written. Its stubs stay until then. Up to the last
step the topic can come back as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIND = "eject"  # of its OperationRecord

Step = Literal["leave", "wait", "commits", "done", "failed"]
Does = Literal["leave", "write", "finish", "restore"]

BUDGETS: dict[str, float] = {"leave": 15.0, "wait": 15.0, "commits": 60.0}  # seconds
ENDED: frozenset[str] = frozenset({"done", "failed"})


@dataclass(frozen=True, slots=True)
class Facts:
    """`served`: its record is as the plan saw it. `marked`: it is out of the records, with this operation's mark.
    `behind`: registered proxies that have not acknowledged that. `written`: all positions, by this process.
    `refusal`: why it cannot go on. `trouble`: what the last command failed with."""

    served: bool
    marked: bool
    behind: tuple[str, ...] = ()
    written: bool = False
    refusal: str = ""
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    """`does` (None: wait), with the step that it leads to."""

    does: Does | None = None
    step: Step | None = None
    reason: str = ""


def advance(step: str, facts: Facts, waited: float) -> Advance:
    """The next thing to do at `step`; `waited`: seconds since the caller first saw the step."""
    late = waited > BUDGETS.get(step, 0.0)
    if step == "leave":
        if not facts.served:
            return Advance("finish", "failed", "it has changed since the plan was made")
        return Advance("leave", "wait")
    if not facts.marked:
        return Advance("finish", "failed", "it was changed by somebody else")
    if facts.refusal:
        return Advance("restore", "failed", facts.refusal)
    if step == "wait":
        if not facts.behind:
            return Advance("finish", "commits")
        return Advance("restore", "failed", f"not heard from: {', '.join(facts.behind)}") if late else Advance()
    if step == "commits":
        if facts.written:
            return Advance("finish", "done")
        if late:
            return Advance("restore", "failed", f"positions could not be written in time ({facts.trouble})")
        return Advance("write")
    return Advance()
