"""`CallerPool` as sessions want it: principals and hosts as text, failures in the words of the API contract."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kafka_client import ClientError, UnsupportedApi
from kafka_wire.errors import ERROR
from proxy.apis.contract import ClusterAway, Refused
from proxy.identity.acl import Operation, Resource
from proxy.identity.acl_cache import AuthorityUnknown
from proxy.identity.callers import CallerPool, IdentityRefused, RulesUnknown
from proxy.identity.principal import Principal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka_wire.codec import Message

log = logging.getLogger(__name__)


class Asking:
    """`proxy.session.surroundings.Identity` over a pool. Reasons go to the log: they name physical addresses."""

    def __init__(self, pool: CallerPool, timeout: float = 30.0) -> None:
        self._pool = pool
        self._timeout = timeout

    async def ask_as(
        self, principal: str, host: str, cluster: str, key: int, request: Message, *, broker: int | None = None
    ) -> Message:
        """A request as `principal` (`User:alice`), who connects from `host`.

        Raises:
            Refused: the identity rules do not allow it; with the code a broker gives for what is denied.
            ClusterAway: no answer, or the cluster's rules cannot be read at the moment.
        """
        try:
            return await self._pool.ask_as(
                Principal.parse(principal), cluster, key, request, broker, host=host, timeout=self._timeout
            )
        except RulesUnknown as error:
            log.warning("%s", error)
            raise ClusterAway(cluster, "its rules cannot be read") from None
        except IdentityRefused as error:
            log.info("refused: %s", error)
            code = error.denied[0].code if error.denied else ERROR.CLUSTER_AUTHORIZATION_FAILED
            raise Refused(int(code)) from None
        except UnsupportedApi as error:
            log.info("%s", error)
            raise Refused(int(ERROR.UNSUPPORTED_VERSION)) from None
        except ClientError as error:
            log.warning("%s: %s", cluster, error)
            raise ClusterAway(cluster, type(error).__name__) from None
        except KeyError:
            raise ClusterAway(cluster, "no such cluster") from None

    async def decidable(self, cluster: str) -> bool:
        """Whether the cluster's rules are known, so that every operation can be judged here. Raises ClusterAway."""
        try:
            authority = await self._pool.acls.authority(cluster)
        except (AuthorityUnknown, ClientError, KeyError) as error:
            log.warning("%s: %s", cluster, error)
            raise ClusterAway(cluster, "its rules cannot be read") from None
        return authority.kind != "other"

    async def visible(
        self, principal: str, host: str, cluster: str, operation: int, resource_type: int, names: Iterable[str]
    ) -> set[str]:
        """Those of `names` on which the principal may do `operation`; none where that cannot be known for good.

        Raises:
            ClusterAway: the cluster's rules cannot be read at the moment.
        """
        try:
            return set(
                await self._pool.visible(
                    Principal.parse(principal), host, cluster, Resource(resource_type), names, Operation(operation)
                )
            )
        except RulesUnknown as error:
            log.warning("%s", error)
            raise ClusterAway(cluster, "its rules cannot be read") from None
        except IdentityRefused as error:
            log.info("hidden: %s", error)
            return set()
        except ClientError as error:
            log.warning("%s: %s", cluster, error)
            raise ClusterAway(cluster, type(error).__name__) from None
        except KeyError:
            raise ClusterAway(cluster, "no such cluster") from None
