"""The metrics reference, out of the table in runtime/metrics.py."""

from __future__ import annotations

from runtime.metrics import LATENCY_BOUNDS, METRICS


def page() -> str:
    """docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made from the code by `python -m tools.reference`.",
        "",
        "`/metrics` of the admin port has the metrics of the process and of its proxy workers, in Prometheus' text",
        "format. Every sample carries `instance` and `worker` (`parent`, or the worker's number).",
        "",
        f"Bounds of the latency buckets, in seconds: {', '.join(f'{one:g}' for one in LATENCY_BOUNDS)}.",
        "",
        "| metric | type | labels | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in METRICS
    ]
    return "\n".join(lines) + "\n"
