"""ACLs of ships' targets kept like their source's, and what differs shown: the calls around `rules`.

Each cluster is asked once in a round, whatever the number of mirrors. A cluster without an authorizer has no rules to
follow, nor takes any.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from kafka_client import ClientError, ClusterClient, Refused
from kafka_client.rights import lacking
from kafka_wire.acls import every_acl
from kafka_wire.errors import ERROR
from replicator.rules import TOPIC, Acl, Quotas, acls_of, compare, creations, quota_words, quotas_of

DESCRIBE_ACLS, CREATE_ACLS, DESCRIBE_QUOTAS = 29, 30, 48
FRESH_SECONDS = 10.0  # what a cluster said is used again for so long
CREATED_AT_ONCE = 200
SHOWN = 50  # differences of a kind


@dataclass(frozen=True, slots=True)
class Followed:
    """How a target's rules stand against its source's. Everything but `created` is for people to decide."""

    created: tuple[str, ...] = ()  # now, or in a dry run: what would be
    extra: tuple[str, ...] = ()  # the target allows or denies what the source does not
    missing: tuple[str, ...] = ()  # wider rules that only the source has
    quotas: tuple[str, ...] = ()
    error: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """In words, `SHOWN` at most of each kind."""
        return (
            *((f"ACLs are not followed: {self.error}",) if self.error else ()),
            *(f"only on the target: {one}" for one in self.extra[:SHOWN]),
            *(f"only on the source, and wider than the topic: {one}" for one in self.missing[:SHOWN]),
            *self.quotas[:SHOWN],
        )


@dataclass(slots=True)
class _Rules:
    """What one cluster has. `acls` is None where it has no authorizer."""

    at: float
    acls: frozenset[Acl] | None = None
    quotas: Quotas | None = None  # None: it does not tell
    error: str = ""


@dataclass
class Following:
    """Asks clusters, and remembers for a short while what they said."""

    _known: dict[ClusterClient, _Rules] = field(default_factory=dict)

    async def follow(self, source: ClusterClient, target: ClusterClient, topic: str, *, dry: bool = False) -> Followed:
        """Create on the target what is missing there; `dry`: say only what would be. Never raises for a cluster."""
        theirs, ours = await self._rules(source), await self._rules(target)
        quotas: tuple[str, ...] = ()
        if theirs.quotas is not None and ours.quotas is not None:
            quotas = tuple(quota_words(source.name, theirs.quotas, target.name, ours.quotas))
        error = theirs.error or ours.error
        if error or theirs.acls is None or ours.acls is None:
            return Followed(quotas=quotas, error=error)
        found = compare(topic, theirs.acls, ours.acls)
        if found.create and not dry:
            try:
                await self._create(target, found.create)
            except ClientError as failure:
                error = str(failure)
        return Followed(
            () if error else tuple(str(one) for one in found.create),
            tuple(str(one) for one in (*found.extra, *found.wider_extra)),
            tuple(str(one) for one in found.wider_missing),
            quotas,
            error,
        )

    async def _create(self, target: ClusterClient, acls: tuple[Acl, ...]) -> None:
        for first in range(0, len(acls), CREATED_AT_ONCE):
            part = acls[first : first + CREATED_AT_ONCE]
            answer = await target.call(CREATE_ACLS, {"creations": creations(part)}, retry=True)
            for one, result in zip(part, answer["results"], strict=True):
                if code := result["error_code"]:
                    right = lacking(code, "ALTER on the cluster")
                    raise Refused(f"{target.name}: creating the ACL {one}{right}", code, result["error_message"])
        known = self._known[target]
        assert known.acls is not None
        known.acls |= set(acls)  # the brokers show them a moment later

    async def _rules(self, client: ClusterClient) -> _Rules:
        known = self._known.get(client)
        now = trio.current_time()
        if known is not None and now - known.at < FRESH_SECONDS:
            return known
        made = _Rules(now)
        for old in [one for one, rules in self._known.items() if now - rules.at > 60 * FRESH_SECONDS]:
            del self._known[old]
        try:
            answer = await client.call(DESCRIBE_ACLS, every_acl(TOPIC), retry=True)
            if (code := answer["error_code"]) == ERROR.SECURITY_DISABLED:
                pass
            elif code:
                right = lacking(code, "DESCRIBE on the cluster")
                made.error = str(Refused(f"{client.name}: its ACLs{right}", code, answer["error_message"]))
            else:
                made.acls = acls_of(answer)
            told = await client.call(DESCRIBE_QUOTAS, {"components": [], "strict": False}, retry=True)
            made.quotas = None if told["error_code"] else quotas_of(told)
        except ClientError as failure:
            made.error = str(failure)
        self._known[client] = made
        return made
