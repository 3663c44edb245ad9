"""Metrics: counted as plain Python numbers on the hot path, turned into Prometheus text when they are scraped.

A process has one `Metrics`. Its parts are ordinary objects whose attributes are added to (`api.requests += 1`); there
are no locks, no label look-ups and no library calls per request. `Metrics.render()` collects everything, and every
sample carries the process's own labels (`instance`, `worker`), so that the texts of several workers can be joined.
"""

from __future__ import annotations

import resource
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from runtime.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram's buckets, in seconds."""


@dataclass(frozen=True)
class Described:
    """A metric as the reference documents it. `labels` are besides `instance` and `worker`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class ApiCounters:
    """One API on one cluster. Add to the attributes; a session keeps the object, so that counting is one addition."""

    __slots__ = ("buckets", "errors", "request_bytes", "requests", "response_bytes", "seconds")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0  # answered by the federation itself with an error, instead of by a broker
        self.request_bytes = 0
        self.response_bytes = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)

    def observe(self, seconds: float) -> None:
        """The time from a request's first byte to its response's last."""
        self.buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.seconds += seconds


class ListenerCounters:
    """The client connections of one listener."""

    __slots__ = ("accepted", "closed")

    def __init__(self) -> None:
        self.accepted = 0
        self.closed = 0

    @property
    def open(self) -> int:
        return self.accepted - self.closed


class ClusterCounters:
    """What one cluster's brokers are asked by this process. `reachable` is None until it was tried."""

    __slots__ = ("connect_failures", "connects", "disconnects", "reachable")

    def __init__(self) -> None:
        self.connects = 0
        self.connect_failures = 0
        self.disconnects = 0
        self.reachable: bool | None = None


class FenceCounters:
    """What a worker did with writes to topics while they moved."""

    __slots__ = ("buckets", "forwarded", "refused", "seconds")

    def __init__(self) -> None:
        self.forwarded = 0
        self.refused = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)

    def observe(self, seconds: float) -> None:
        """How long a write was held."""
        self.buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.seconds += seconds


Gauge = Callable[[], float | None]
Sample = tuple[str, tuple[str, ...], float]
"""(a name of `METRICS`, its own labels, the value)"""

METRICS = (
    Described(
        "kfed_requests_total",
        "counter",
        ("api", "cluster"),
        "Requests of clients, by API and by the cluster that they went to (`-`: answered by the proxy).",
    ),
    Described(
        "kfed_request_errors_total",
        "counter",
        ("api", "cluster"),
        "Requests that the federation itself answered with an error.",
    ),
    Described("kfed_request_bytes_total", "counter", ("api", "cluster"), "Bytes of requests, headers included."),
    Described("kfed_response_bytes_total", "counter", ("api", "cluster"), "Bytes of responses, headers included."),
    Described(
        "kfed_request_seconds",
        "histogram",
        ("api", "cluster"),
        "From a request's first byte until its response was handed to the client's socket.",
    ),
    Described("kfed_in_flight_requests", "gauge", (), "Requests that were read and are not answered yet."),
    Described("kfed_connections", "gauge", ("listener",), "Open client connections."),
    Described("kfed_connections_accepted_total", "counter", ("listener",), "Client connections since the start."),
    Described("kfed_upstream_connects_total", "counter", ("cluster",), "Connections opened to brokers."),
    Described("kfed_upstream_connect_failures_total", "counter", ("cluster",), "Connections to brokers that failed."),
    Described("kfed_upstream_disconnects_total", "counter", ("cluster",), "Connections that a broker closed or broke."),
    Described("kfed_cluster_reachable", "gauge", ("cluster",), "1: the last attempt to reach the cluster succeeded."),
    Described(
        "kfed_refusals_total",
        "counter",
        ("reason",),
        "Connections and requests that the federation refused, by reason.",
    ),
    Described("kfed_buffered_bytes", "gauge", (), "Bytes of frames that are held whole at this moment."),
    Described(
        "kfed_translated_partitions",
        "gauge",
        (),
        "Partitions of moved topics whose offset tables this process keeps.",
    ),
    Described("kfed_held_write_seconds", "histogram", (), "How long writes to topics that were being moved were held."),
    Described(
        "kfed_forwarded_writes_total",
        "counter",
        (),
        "Writes that came to a moved topic's old place and were forwarded to its new one, by partition.",
    ),
    Described(
        "kfed_closed_source_refusals_total",
        "counter",
        (),
        "Writes answered NOT_LEADER because their topic is closed while it moves, or may be.",
    ),
    Described("kfed_view_revision", "gauge", (), "The store revision that the view has applied."),
    Described("kfed_view_age_seconds", "gauge", (), "Seconds since the view was last known to be the newest."),
    Described("kfed_store_lag_seconds", "gauge", (), "Seconds since the store was last heard from."),
    Described("kfed_store_connected", "gauge", (), "1: connected to the store."),
    Described("kfed_leader", "gauge", (), "1: this process is the elected controller."),
    Described("kfed_log_events_suppressed_total", "counter", (), "Log events left out: they repeated too often."),
    Described(
        "kfed_mirror_lag_records",
        "gauge",
        ("source", "target", "topic", "partition"),
        "Offsets of the source, up to its last stable one, that are not on the target yet.",
    ),
    Described(
        "kfed_mirror_lag_bytes",
        "gauge",
        ("source", "target", "topic", "partition"),
        "The same in bytes, estimated from the mean size of the records that were copied.",
    ),
    Described(
        "kfed_mirror_lag_seconds",
        "gauge",
        ("source", "target", "topic", "partition"),
        "For how long there has been something to copy; 0 when the mirror has caught up.",
    ),
    Described(
        "kfed_mirror_records_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Records copied by this process.",
    ),
    Described(
        "kfed_mirror_bytes_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Bytes of record batches copied by this process.",
    ),
    Described(
        "kfed_mirror_foreign_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Records that others wrote into a ship's target.",
    ),
    Described(
        "kfed_mirror_overtaken_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Offsets that retention removed at the source before they were copied.",
    ),
    Described(
        "kfed_mirror_guard_evicted_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Producers whose last batches were forgotten early: a partition has more than the guard keeps.",
    ),
    Described(
        "kfed_mirror_restarts_total",
        "counter",
        ("source", "target", "topic", "partition"),
        "Sessions of the partition's unit that ended and were begun anew.",
    ),
    Described(
        "kfed_mirror_condition",
        "gauge",
        ("source", "target", "topic", "partition", "condition"),
        "1 for the condition the partition is in: starting, copying, caught_up, or one that waits for an operator.",
    ),
    Described(
        "kfed_mirror_rule_differences",
        "gauge",
        ("source", "target", "topic"),
        "ACLs of a ship's topic, and client quotas, that differ between the clusters and are left to people.",
    ),
    Described("kfed_migrations", "gauge", ("state",), "Migrations of topics by state, past ones included."),
    Described(
        "kfed_migration_step",
        "gauge",
        ("operation", "source", "target", "step"),
        "1 for the step that a migration is at; of those that have ended the newest are shown.",
    ),
    Described(
        "kfed_migration_attempts",
        "gauge",
        ("operation", "source", "target"),
        "How often a migration has begun to hold writes.",
    ),
    Described(
        "kfed_migration_lag_records",
        "gauge",
        ("operation", "source", "target"),
        "Offsets that a migration's mirrors have not copied yet, while it waits for them.",
    ),
    Described(
        "kfed_migration_held_seconds",
        "gauge",
        ("operation", "source", "target"),
        "For how long writes were held at the switch.",
    ),
    Described("kfed_replicator_units", "gauge", (), "Units that this process holds."),
    Described("kfed_children_restarts_total", "counter", ("child",), "Child processes started again after they ended."),
    Described("kfed_child_up", "gauge", ("child",), "1: the child process is ready."),
    Described("kfed_worker_scraped", "gauge", ("child",), "1: the worker answered this scrape."),
    Described("kfed_process_cpu_seconds_total", "counter", (), "CPU time of this process, user and system."),
    Described("kfed_process_resident_bytes", "gauge", (), "Resident memory."),
    Described("kfed_process_open_files", "gauge", (), "Open file descriptors."),
    Described("kfed_process_start_seconds", "gauge", (), "When the process started, in seconds since 1970."),
    Described("kfed_build_info", "gauge", ("version",), "Always 1."),
)
_DESCRIBED = {one.name: one for one in METRICS}


class Metrics:
    """The registry of one process. `labels` are put on every sample, in this order."""

    def __init__(self, **labels: str) -> None:
        self.labels = labels
        self.in_flight = 0
        self.buffered_bytes = 0
        self.fence = FenceCounters()
        self.refusals: defaultdict[str, int] = defaultdict(int)  # by reason: a small, fixed set of words
        self.child_restarts: defaultdict[str, int] = defaultdict(int)
        self.child_up: dict[str, bool] = {}
        self.worker_scraped: dict[str, bool] = {}
        # Asked at scrape; None means "not known", and the sample is left out.
        self.gauges: dict[str, Gauge] = {}
        self.sources: list[Callable[[], Iterable[Sample]]] = []  # asked at scrape as well
        self._apis: dict[tuple[str, str], ApiCounters] = {}
        self._listeners: dict[str, ListenerCounters] = {}
        self._clusters: dict[str, ClusterCounters] = {}
        self._started = time.time()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def api(self, api: str, cluster: str = "-") -> ApiCounters:
        """The counters of an API on a cluster; `-` where the proxy answers itself. Keep the object."""
        counters = self._apis.get((api, cluster))
        if counters is None:
            counters = self._apis[api, cluster] = ApiCounters()
        return counters

    def listener(self, name: str) -> ListenerCounters:
        return self._listeners.setdefault(name, ListenerCounters())

    def cluster(self, name: str) -> ClusterCounters:
        return self._clusters.setdefault(name, ClusterCounters())

    def gauge(self, name: str, value: Gauge) -> None:
        """`value` is called at every scrape. The name must be a gauge of `METRICS` without labels of its own."""
        described = _DESCRIBED[name]
        if described.kind != "gauge" or described.labels:
            raise ValueError(f"{name} is no plain gauge")
        self.gauges[name] = value

    @property
    def connections(self) -> int:
        """Open client connections of all listeners."""
        return sum(one.open for one in self._listeners.values())

    def totals(self) -> dict[str, float]:
        """A few sums for status displays: requests, request_bytes, response_bytes, connections, in_flight, refusals."""
        apis = list(self._apis.values())
        return {
            "requests": sum(one.requests for one in apis),
            "request_bytes": sum(one.request_bytes for one in apis),
            "response_bytes": sum(one.response_bytes for one in apis),
            "connections": self.connections,
            "in_flight": self.in_flight,
            "refusals": sum(self.refusals.values()),
        }

    def render(self) -> bytes:
        """Prometheus' text format (0.0.4)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        apis = sorted(self._apis.items())
        yield self._counter("kfed_requests_total", ((key, one.requests) for key, one in apis))
        yield self._counter("kfed_request_errors_total", ((key, one.errors) for key, one in apis))
        yield self._counter("kfed_request_bytes_total", ((key, one.request_bytes) for key, one in apis))
        yield self._counter("kfed_response_bytes_total", ((key, one.response_bytes) for key, one in apis))
        yield self._histogram("kfed_request_seconds", ((key, one.buckets, one.seconds) for key, one in apis))
        listeners = self._listeners.items()
        yield self._gauge("kfed_connections", (((name,), one.open) for name, one in listeners))
        yield self._counter("kfed_connections_accepted_total", (((name,), one.accepted) for name, one in listeners))
        clusters = self._clusters.items()
        yield self._counter("kfed_upstream_connects_total", (((name,), one.connects) for name, one in clusters))
        yield self._counter(
            "kfed_upstream_connect_failures_total", (((name,), one.connect_failures) for name, one in clusters)
        )
        yield self._counter("kfed_upstream_disconnects_total", (((name,), one.disconnects) for name, one in clusters))
        yield self._gauge(
            "kfed_cluster_reachable",
            (((name,), one.reachable) for name, one in clusters if one.reachable is not None),
        )
        yield self._counter("kfed_refusals_total", (((reason,), count) for reason, count in self.refusals.items()))
        yield self._counter(
            "kfed_children_restarts_total", (((name,), count) for name, count in self.child_restarts.items())
        )
        yield self._gauge("kfed_child_up", (((name,), up) for name, up in self.child_up.items()))
        yield self._gauge("kfed_worker_scraped", (((name,), ok) for name, ok in self.worker_scraped.items()))
        yield self._gauge("kfed_in_flight_requests", [((), self.in_flight)])
        yield self._gauge("kfed_buffered_bytes", [((), self.buffered_bytes)])
        held = self.fence
        yield self._histogram("kfed_held_write_seconds", [((), held.buckets, held.seconds)])
        yield self._counter("kfed_forwarded_writes_total", [((), held.forwarded)])
        yield self._counter("kfed_closed_source_refusals_total", [((), held.refused)])
        for name, value in self.gauges.items():
            if (number := value()) is not None:
                yield self._gauge(name, [((), number)])
        found: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for source in self.sources:
            for name, own, number in source():
                found.setdefault(name, []).append((own, number))
        for name, samples in found.items():
            yield (self._counter if _DESCRIBED[name].kind == "counter" else self._gauge)(name, samples)
        yield from self._process()

    def _process(self) -> Iterator[Metric]:
        from runtime import logging

        usage = resource.getrusage(resource.RUSAGE_SELF)
        yield self._counter("kfed_log_events_suppressed_total", [((), logging.flood.suppressed)])
        yield self._counter("kfed_process_cpu_seconds_total", [((), usage.ru_utime + usage.ru_stime)])
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        except OSError:
            pass
        else:
            yield self._gauge("kfed_process_resident_bytes", [((), pages * resource.getpagesize())])
            yield self._gauge("kfed_process_open_files", [((), files)])
        yield self._gauge("kfed_process_start_seconds", [((), self._started)])
        yield self._gauge("kfed_build_info", [((VERSION,), 1)])

    def _labels(self, described: Described) -> list[str]:
        return [*self.labels, *described.labels]

    def _values(self, own: Iterable[str]) -> list[str]:
        return [*self.labels.values(), *own]

    def _counter(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        described = _DESCRIBED[name]
        family = CounterMetricFamily(name, described.help, labels=self._labels(described))
        for own, value in samples:
            family.add_metric(self._values(own), value)
        return family

    def _gauge(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        described = _DESCRIBED[name]
        family = GaugeMetricFamily(name, described.help, labels=self._labels(described))
        for own, value in samples:
            family.add_metric(self._values(own), float(value))
        return family

    def _histogram(self, name: str, samples: Iterable[tuple[tuple[str, ...], list[int], float]]) -> Metric:
        described = _DESCRIBED[name]
        family = HistogramMetricFamily(described.name, described.help, labels=self._labels(described))
        for own, counts, seconds in samples:
            total = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*LATENCY_BOUNDS, float("inf")), counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else repr(bound), total))
            family.add_metric(self._values(own), buckets, seconds)
        return family


def join(texts: Iterable[bytes]) -> bytes:
    """One exposition out of several whose samples differ in their labels: each family once, with all samples."""
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for text in texts:
        comments: list[bytes] = []
        samples: list[bytes] = []
        for line in text.splitlines():
            if line.startswith(b"# HELP "):
                name = line.split(b" ", 3)[2]
                comments, samples = families.setdefault(name, ([], []))
                if not comments:
                    comments.append(line)
            elif line.startswith(b"# TYPE "):
                if len(comments) == 1:
                    comments.append(line)
            elif line and not line.startswith(b"#"):
                samples.append(line)
    lines = [line for comments, samples in families.values() if samples for line in (*comments, *samples)]
    return b"\n".join(lines) + b"\n" if lines else b""


def labels_of(instance: str, worker: int | str) -> Mapping[str, str]:
    """The labels every process of the federation puts on its samples."""
    return {"instance": instance, "worker": str(worker)}
