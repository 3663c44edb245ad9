"""Who is asking, and what the clusters would let them do.

`principal` asks a broker who is on a connection, `tokens` lets the service act as that principal on another cluster,
`acl` decides as a broker's StandardAuthorizer would, `needs` says what a request needs, `callers` puts them together,
`asking` gives that to sessions in the words of the API contract.
"""

from proxy.identity.callers import CallerPool, ClusterIdentity, IdentityRefused, RulesUnknown
from proxy.identity.principal import ANONYMOUS, Principal

__all__ = ["ANONYMOUS", "CallerPool", "ClusterIdentity", "IdentityRefused", "Principal", "RulesUnknown"]
