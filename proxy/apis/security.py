"""What is the same on every cluster: ACLs, quotas, SCRAM credentials; and delegation tokens.

DescribeAcls 29, CreateAcls 30, DeleteAcls 31 (1-3), DescribeClientQuotas 48, AlterClientQuotas 49 (0-1),
DescribeUserScramCredentials 50, AlterUserScramCredentials 51 (0), CreateDelegationToken 38 (1-3),
RenewDelegationToken 39, ExpireDelegationToken 40 (1-2), DescribeDelegationToken 41 (1-3).

Changes go to all clusters, and the result of each entry is the worst; descriptions are merged without doubles. A
cluster that does not answer makes the merged answer an error that names it: an incomplete list of ACLs read as a
complete one is dangerous. Clusters without an authorizer (54) are left out as long as one has one.

A delegation token is valid on the cluster that made it, while a client needs it on every virtual broker: with
several clusters tokens are refused as a cluster without tokens refuses them (61); with one they are passed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.mapping import active_clusters, ask, ask_clusters, failure
from proxy.apis.refusals import refusal

DESCRIBE_ACLS, CREATE_ACLS, DELETE_ACLS = 29, 30, 31
CREATE_TOKEN, RENEW_TOKEN, EXPIRE_TOKEN, DESCRIBE_TOKEN = 38, 39, 40, 41
DESCRIBE_QUOTAS, ALTER_QUOTAS, DESCRIBE_SCRAM, ALTER_SCRAM = 48, 49, 50, 51

Answers = dict[str, Message | ClusterAway | Refused]


async def _all(call: Call, view: View, key: int, request: Message) -> Answers:
    names = active_clusters(view)
    if not names:
        raise Refused(ERROR.BROKER_NOT_AVAILABLE, "no cluster is known yet")
    return await ask_clusters(call, view, key, {name: dict(request) for name in names})


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _named(cluster: str, text: str | None) -> str | None:
    """A cluster's own words, with its name: the user has to know where."""
    return None if text is None else f"{cluster}: {text}"


def _whole(answers: Answers, ignored: int | None = None) -> tuple[int, str | None, list[tuple[str, Message]]]:
    """(error, text, the answers without one) of answers that have one error for all they say.

    `ignored` is no error as long as some cluster answers otherwise.
    """
    good: list[tuple[str, Message]] = []
    failed: list[tuple[int, str | None]] = []
    left_out: list[tuple[int, str | None]] = []
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            failed.append(failure(answer))
        elif answer["error_code"]:
            one = (answer["error_code"], _named(cluster, answer.get("error_message")))
            (left_out if one[0] == ignored else failed).append(one)
        else:
            good.append((cluster, answer))
    if failed:
        return (*failed[0], good)
    if left_out and not good:
        return (*left_out[0], good)
    return 0, None, good


async def describe_acls(call: Call, version: int, request: Message) -> Message:
    answers = await _all(call, call.view, DESCRIBE_ACLS, request)
    code, text, good = _whole(answers, ERROR.SECURITY_DISABLED)
    merged: dict[tuple[int, str, int], dict[str, Message]] = {}
    for _, answer in good:
        for one in answer["resources"]:
            acls = merged.setdefault((one["resource_type"], one["resource_name"], one["pattern_type"]), {})
            acls.update((_key(acl), acl) for acl in one["acls"])
    resources = [
        {"resource_type": kind, "resource_name": name, "pattern_type": pattern, "acls": list(acls.values())}
        for (kind, name, pattern), acls in merged.items()
    ]
    return {"error_code": code, "error_message": text, "resources": resources}


def _entries(answers: Answers, results: str, count: int) -> list[list[tuple[str, Message]]]:
    """For each entry of the request: (cluster, its result), those without an authorizer only where none has one."""
    out: list[list[tuple[str, Message]]] = []
    for index in range(count):
        mine: list[tuple[str, Message]] = []
        for cluster, answer in answers.items():
            if isinstance(answer, Exception):
                code, text = failure(answer)
                mine.append((cluster, {"error_code": code, "error_message": text}))
            else:
                mine.append((cluster, answer[results][index]))
        able = [one for one in mine if one[1]["error_code"] != ERROR.SECURITY_DISABLED]
        out.append(able or mine)
    return out


def _worst(results: Iterable[tuple[str, Message]]) -> Message:
    """The first result that is an error, with the name of its cluster; else the first."""
    items = list(results)
    for cluster, one in items:
        if one["error_code"]:
            return {**one, "error_message": _named(cluster, one.get("error_message"))}
    return items[0][1]


async def create_acls(call: Call, version: int, request: Message) -> Message:
    answers = await _all(call, call.view, CREATE_ACLS, request)
    return {"results": [_worst(one) for one in _entries(answers, "results", len(request["creations"]))]}


async def delete_acls(call: Call, version: int, request: Message) -> Message:
    answers = await _all(call, call.view, DELETE_ACLS, request)
    out = []
    for results in _entries(answers, "filter_results", len(request["filters"])):
        acls: dict[str, Message] = {}
        for _, one in results:
            for acl in one.get("matching_acls") or ():
                what = {name: value for name, value in acl.items() if name not in ("error_code", "error_message")}
                if _key(what) not in acls or acl["error_code"]:
                    acls[_key(what)] = acl
        out.append({**_worst(results), "matching_acls": list(acls.values())})
    return {"filter_results": out}


async def describe_quotas(call: Call, version: int, request: Message) -> Message:
    """Quotas hold on each cluster; where clusters differ, the lowest index that has a value is shown."""
    code, text, good = _whole(await _all(call, call.view, DESCRIBE_QUOTAS, request))
    entities: dict[str, tuple[list[Message], dict[str, float]]] = {}
    for _, answer in good:
        for one in answer["entries"] or ():
            entity = sorted(one["entity"], key=lambda part: part["entity_type"])
            values = entities.setdefault(_key(entity), (one["entity"], {}))[1]
            for value in one["values"]:
                values.setdefault(value["key"], value["value"])
    entries = [
        {"entity": entity, "values": [{"key": key, "value": value} for key, value in values.items()]}
        for entity, values in entities.values()
    ]
    return {"error_code": code, "error_message": text, "entries": None if code else entries}


async def alter_quotas(call: Call, version: int, request: Message) -> Message:
    answers = await _all(call, call.view, ALTER_QUOTAS, request)
    by_entity: dict[str, dict[str, Message]] = {
        cluster: {_key(sorted(one["entity"], key=_key)): one for one in answer["entries"]}
        for cluster, answer in answers.items()
        if not isinstance(answer, Exception)
    }
    out = []
    for entry in request["entries"]:
        mine: list[tuple[str, Message]] = []
        for cluster, answer in answers.items():
            if isinstance(answer, Exception):
                code, text = failure(answer)
                mine.append((cluster, {"error_code": code, "error_message": text}))
            elif (found := by_entity[cluster].get(_key(sorted(entry["entity"], key=_key)))) is not None:
                mine.append((cluster, found))
        result = _worst(mine) if mine else {"error_code": ERROR.UNKNOWN_SERVER_ERROR, "error_message": None}
        out.append({**result, "entity": entry["entity"]})
    return {"entries": out}


async def describe_scram(call: Call, version: int, request: Message) -> Message:
    """A user is unknown (91) only where no cluster knows it; a mechanism is listed once."""
    code, text, good = _whole(await _all(call, call.view, DESCRIBE_SCRAM, request))
    users: dict[str, list[tuple[str, Message]]] = {}
    for cluster, answer in good:
        for one in answer["results"]:
            users.setdefault(one["user"], []).append((cluster, one))
    results = []
    for user, mine in users.items():
        known = [one for one in mine if one[1]["error_code"] != ERROR.RESOURCE_NOT_FOUND]
        infos: dict[int, Message] = {}
        for _, one in known:
            for info in one["credential_infos"]:
                infos.setdefault(info["mechanism"], info)
        results.append({**_worst(known or mine), "user": user, "credential_infos": list(infos.values())})
    return {"error_code": code, "error_message": text, "results": results}


async def alter_scram(call: Call, version: int, request: Message) -> Message:
    answers = await _all(call, call.view, ALTER_SCRAM, request)
    users = dict.fromkeys(one["name"] for kind in ("deletions", "upsertions") for one in request[kind])
    mine: dict[str, list[tuple[str, Message]]] = {user: [] for user in users}
    for cluster, answer in answers.items():
        if isinstance(answer, Exception):
            code, text = failure(answer)
            for user in users:
                mine[user].append((cluster, {"error_code": code, "error_message": text}))
            continue
        for one in answer["results"]:
            mine.setdefault(one["user"], []).append((cluster, one))
    return {"results": [{**_worst(results), "user": user} for user, results in mine.items() if results]}


def _token(key: int) -> Handler:
    async def handler(call: Call, version: int, request: Message) -> Message:
        names = active_clusters(call.view)
        if len(names) != 1:
            return refusal(key, version, request, ERROR.DELEGATION_TOKEN_AUTH_DISABLED)
        return await ask(call, call.view, names[0], key, request)

    return handler


HANDLERS: dict[int, Handler] = {
    DESCRIBE_ACLS: describe_acls,
    CREATE_ACLS: create_acls,
    DELETE_ACLS: delete_acls,
    DESCRIBE_QUOTAS: describe_quotas,
    ALTER_QUOTAS: alter_quotas,
    DESCRIBE_SCRAM: describe_scram,
    ALTER_SCRAM: alter_scram,
    **{key: _token(key) for key in (CREATE_TOKEN, RENEW_TOKEN, EXPIRE_TOKEN, DESCRIBE_TOKEN)},
}
