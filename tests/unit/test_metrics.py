"""Metrics: plain numbers in, Prometheus text out, several processes' texts joined."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.metrics import LATENCY_BOUNDS, METRICS, Metrics, join, labels_of


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, labels: Mapping[str, str]) -> float:
    return samples(text)[name, frozenset({"instance": "a", "worker": "0", **labels}.items())]


def test_counting_is_attributes() -> None:
    metrics = Metrics(**labels_of("a", 0))
    produce = metrics.api("Produce", "east")
    produce.requests += 2
    produce.request_bytes += 100
    assert metrics.api("Produce", "east") is produce
    produce.observe(0.0004)
    produce.observe(0.003)
    produce.observe(1000.0)
    metrics.listener("main").accepted += 3
    metrics.listener("main").closed += 1
    metrics.refusals["garbage"] += 1
    metrics.in_flight += 4
    text = metrics.render()
    east = {"api": "Produce", "cluster": "east"}
    assert value(text, "kfed_requests_total", east) == 2
    assert value(text, "kfed_request_bytes_total", east) == 100
    assert value(text, "kfed_request_seconds_bucket", {**east, "le": "0.0005"}) == 1
    assert value(text, "kfed_request_seconds_bucket", {**east, "le": "0.005"}) == 2
    assert value(text, "kfed_request_seconds_bucket", {**east, "le": "+Inf"}) == 3
    assert value(text, "kfed_request_seconds_count", east) == 3
    assert math.isclose(value(text, "kfed_request_seconds_sum", east), 1000.0034)
    assert value(text, "kfed_connections", {"listener": "main"}) == 2
    assert value(text, "kfed_refusals_total", {"reason": "garbage"}) == 1
    assert value(text, "kfed_in_flight_requests", {}) == 4
    assert metrics.totals()["requests"] == 2


def test_gauges_are_asked_at_scrape_and_may_not_know() -> None:
    metrics = Metrics(**labels_of("a", 0))
    age: list[float | None] = [None]
    metrics.gauge("kfed_view_age_seconds", lambda: age[0])
    assert b"kfed_view_age_seconds" not in metrics.render()
    age[0] = 1.5
    assert value(metrics.render(), "kfed_view_age_seconds", {}) == 1.5


@pytest.mark.parametrize("name", ["kfed_requests_total", "kfed_connections", "kfed_made_up"])
def test_only_plain_gauges_of_the_table_can_be_asked(name: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        Metrics().gauge(name, lambda: 0.0)


def test_texts_of_several_workers_join_into_one() -> None:
    texts = []
    for worker in range(2):
        metrics = Metrics(**labels_of("a", worker))
        metrics.api("Fetch", "west").requests += worker + 1
        metrics.api("Fetch", "west").observe(0.1)
        texts.append(metrics.render())
    joined = join(texts)
    lines = joined.decode().splitlines()
    assert lines.count("# TYPE kfed_requests_total counter") == 1
    found = samples(joined)
    fetch = {"api": "Fetch", "cluster": "west", "instance": "a"}
    for worker in range(2):
        assert found["kfed_requests_total", frozenset({**fetch, "worker": str(worker)}.items())] == worker + 1
    # The samples of a family stand together, as the format demands.
    families = [line.split("{")[0] for line in lines if not line.startswith("#")]
    starts = [name for n, name in enumerate(families) if n == 0 or families[n - 1] != name]
    assert len(starts) == len(set(starts)) or all("_seconds" in one for one in starts if starts.count(one) > 1)


def test_nothing_joins_to_nothing() -> None:
    assert join([]) == b""


def test_every_metric_that_comes_out_is_described() -> None:
    metrics = Metrics(**labels_of("a", 0))
    metrics.api("Fetch", "west").observe(0.1)
    metrics.listener("main").accepted += 1
    metrics.cluster("west").reachable = True
    metrics.refusals["x"] += 1
    metrics.child_up["x"] = True
    metrics.child_restarts["x"] += 1
    metrics.worker_scraped["x"] = True
    many = [one for one in METRICS if one.name.startswith(("kfed_mirror_", "kfed_migration"))]
    metrics.sources.append(lambda: ((one.name, one.labels, 1.0) for one in many))
    for one in METRICS:
        if (
            one.kind == "gauge"
            and not one.labels
            and one.name not in ("kfed_in_flight_requests", "kfed_buffered_bytes")
            and not one.name.startswith("kfed_process")
        ):
            metrics.gauge(one.name, lambda: 1.0)
    described = {one.name: one for one in METRICS}
    seen = set()
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            name = sample.name
            if family.type == "histogram":
                name = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            labels = set(sample.labels) - {"instance", "worker", "le"}
            assert labels == set(described[name].labels), name
            seen.add(name)
    assert seen == set(described)


def test_buckets_grow() -> None:
    assert list(LATENCY_BOUNDS) == sorted(set(LATENCY_BOUNDS))
