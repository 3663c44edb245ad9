"""Every handler by API key, each behind one net: what could not be decided or asked becomes the API's own error."""

from __future__ import annotations

from functools import wraps

from kafka_wire.api_table import api_name
from kafka_wire.codec import Message
from metadata_service.failures import DecisionFailed
from metadata_service.store.contract import StoreError
from proxy.apis import (
    api_versions,
    cluster_admin,
    configs,
    find_coordinator,
    group_state,
    groups,
    metadata,
    offsets,
    security,
    share_groups,
    topics,
    transactions,
)
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.mapping import clean_text
from proxy.apis.refusals import away_code, refusal

FAMILIES = (
    api_versions,
    metadata,
    find_coordinator,
    groups,
    group_state,
    share_groups,
    transactions,
    offsets,
    topics,
    configs,
    security,
    cluster_admin,
)


def _guarded(key: int, handler: Handler) -> Handler:
    @wraps(handler)
    async def answer(call: Call, version: int, request: Message) -> Message:
        try:
            return await handler(call, version, request)
        except Refused as error:
            return refusal(key, version, request, error.code, error.text)
        except ClusterAway as error:
            return refusal(key, version, request, away_code(key), f"cluster {error.cluster} does not answer")
        except (DecisionFailed, StoreError) as error:
            reason = clean_text(call.view, "-", str(error))  # it may quote the addresses of brokers
            text = f"{api_name(key)} needs a decision that cannot be made now: {reason}"
            return refusal(key, version, request, away_code(key), text)

    return answer


def _merged() -> dict[int, Handler]:
    out: dict[int, Handler] = {}
    for family in FAMILIES:
        for key, handler in family.HANDLERS.items():
            assert key not in out, f"two handlers for {api_name(key)}"
            out[key] = _guarded(key, handler)
    return out


HANDLERS: dict[int, Handler] = _merged()

# Answers from cached bytes: `await ENCODED[key](call, version, frame, position)` is a body, or None: ask the handler.
ENCODED = {3: metadata.encoded}
