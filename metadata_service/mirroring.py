"""What mirrors may be, and which topics are theirs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from metadata_service.models import MirrorRecord


class Cyclic(ValueError):
    """These ships cannot be: they would form a cycle, join in one target, or lead into the serving cluster."""


def check_ships(serving: str, ships: set[tuple[str, str]]) -> None:
    """Whether (source, target) ships of one topic form a tree rooted at its serving cluster.

    Raises:
        Cyclic: they do not, and why.
    """
    parents: dict[str, str] = {}
    for source, target in sorted(ships):
        if target == serving:
            raise Cyclic(f"{target} serves the topic; nothing is shipped into it")
        if target in parents:
            raise Cyclic(f"{target} is shipped to from {parents[target]} already")
        parents[target] = source
    for target in parents:
        seen = [target]
        while seen[-1] != serving:
            above = parents.get(seen[-1])
            if above is None:
                raise Cyclic(f"{seen[-1]} neither serves the topic nor is shipped to")
            if above in seen:
                raise Cyclic(f"a cycle: {' <- '.join([*seen, above])}")
            seen.append(above)


def copies(mirrors: Iterable[MirrorRecord], serving: str | None) -> set[str]:
    """Clusters whose topic of this name is a mirror's copy, and nobody else's topic.

    `mirrors`: all of one name; `serving`: the cluster that serves the topic, None where the federation does not know
    it. The members of an exchange are equals: one of them may then become the topic.
    """
    return {
        one.target
        for one in mirrors
        if one.target != serving
        and (one.mode == "ship" or serving is not None)
        and (one.state != "removing" or one.delete_copy)
    }
