"""ApiVersions (18): what every cluster of the federation and this proxy speak. Versions 0-4.

Ranges are the intersection over the clusters that were ever reached; what is handled nowhere here, is internal to
brokers, or collects telemetry is not offered. Produce keeps the lowest version brokers advertise: they still name 0,
which none of them serves, because librdkafka takes its absence for the absence of compression (KAFKA-18659).
Finalized features are the federation's, under an epoch that only grows: Java keeps those of the highest epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kafka_wire.api_table import table
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.schema import NEVER
from metadata_service.view import Snapshot, View
from proxy.apis.contract import Call, CloseConnection, Handler

API_VERSIONS, PRODUCE = 18, 0
_SOFTWARE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")
_ALTERED_BELOW = 4  # KAFKA-17011: older clients choke on a supported feature whose lowest level is 0


def _snapshots(view: View) -> list[Snapshot]:
    return [one.snapshot for one in view.clusters.values() if one.record.state == "active" and one.snapshot.versions]


def offered(view: View) -> dict[int, tuple[int, int]]:
    """API key -> (lowest, highest) version clients may use; empty while no cluster was ever reached."""
    snapshots = _snapshots(view)
    out: dict[int, tuple[int, int]] = {}
    if not snapshots:
        return out
    for key, api in table().items():
        if api.offered == NEVER or not all(key in one.versions for one in snapshots):
            continue
        low = max(one.versions[key][0] for one in snapshots)
        high = min(api.offered.high, *(one.versions[key][1] for one in snapshots))
        if key != PRODUCE:
            low = max(low, api.offered.low)
        if low <= high:
            out[key] = (low, high)
    return out


def _supported(snapshots: Iterable[Snapshot], version: int) -> list[Message]:
    """The features every cluster supports, at the levels all of them do."""
    features = [one.features for one in snapshots]
    out = []
    for name in sorted(set.intersection(*(set(one) for one in features)) if features else ()):
        low = max(one[name][0] for one in features)
        high = min(one[name][1] for one in features)
        if version < _ALTERED_BELOW and low == 0:
            low = 1
        if low <= high:
            out.append({"name": name, "min_version": low, "max_version": high})
    return out


def response(view: View, version: int, code: int = ERROR.NONE) -> Message:
    """The answer of the federation as this view knows it.

    Raises:
        CloseConnection: no cluster was ever reached, so nothing true can be said.
    """
    apis = offered(view)
    if not apis:
        raise CloseConnection("no cluster has been reached yet")
    return {
        "error_code": code,
        "api_keys": [{"api_key": key, "min_version": low, "max_version": high} for key, (low, high) in apis.items()],
        "supported_features": _supported(_snapshots(view), version),
        "finalized_features_epoch": view.features.epoch,
        "finalized_features": [
            {"name": name, "max_version_level": level, "min_version_level": level}
            for name, level in sorted(view.features.levels.items())
        ],
    }


async def api_versions(call: Call, version: int, request: Message) -> Message:
    """A version nobody here reads is answered with 35 and what is offered, to be encoded as version 0 (KIP-511)."""
    if version not in table()[API_VERSIONS].versions:
        return response(call.view, 0, ERROR.UNSUPPORTED_VERSION)
    for name in ("client_software_name", "client_software_version"):
        if version >= 3 and not _SOFTWARE.fullmatch(request.get(name, "")):
            return {"error_code": ERROR.INVALID_REQUEST, "api_keys": []}
    return response(call.view, version)


HANDLERS: dict[int, Handler] = {API_VERSIONS: api_versions}
