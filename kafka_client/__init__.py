"""A small trio client for Kafka brokers: raw frames and typed calls, over TLS and SASL.

`connection` is one connection, `cluster` is a cluster's brokers with pooled connections. Messages are the dicts of
`kafka_wire.codec`. Nothing here is shared between threads or event loops, and nothing runs in the background.
"""

from kafka_client.cluster import Broker, ClusterClient, Features, Health
from kafka_client.connection import Connection, open_connection
from kafka_client.failures import (
    AuthenticationFailed,
    BrokerUnavailable,
    CallTimeout,
    ClientError,
    ClusterMismatch,
    Refused,
    UnsupportedApi,
)
from kafka_client.security import Sasl, Secret, SecretFile, SecretValue, Security, Tls

__all__ = [
    "AuthenticationFailed",
    "Broker",
    "BrokerUnavailable",
    "CallTimeout",
    "ClientError",
    "ClusterClient",
    "ClusterMismatch",
    "Connection",
    "Features",
    "Health",
    "Refused",
    "Sasl",
    "Secret",
    "SecretFile",
    "SecretValue",
    "Security",
    "Tls",
    "UnsupportedApi",
    "open_connection",
]
