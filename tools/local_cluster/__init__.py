"""Real clusters and a real etcd on this machine, for tests, demo and benchmarks."""

from tools.local_cluster.cluster import Broker, Cluster, Setting, running
from tools.local_cluster.ports import Ports
from tools.local_cluster.spec import ADMIN, ADMIN_PASSWORD, ClusterSpec, Listener, Mechanism, secured

__all__ = [
    "ADMIN",
    "ADMIN_PASSWORD",
    "Broker",
    "Cluster",
    "ClusterSpec",
    "Listener",
    "Mechanism",
    "Ports",
    "Setting",
    "running",
    "secured",
]
