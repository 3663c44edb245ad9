"""Transactions and producer ids.

InitProducerId 22 (0-6), AddPartitionsToTxn 24 (0-3 for clients; 4 and 5 are spoken between brokers), AddOffsetsToTxn 25
(0-4), EndTxn 26 (0-5), TxnOffsetCommit 28 (0-5), DescribeTransactions 65 (0), ListTransactions 66 (0-2).

A transaction lives on one cluster, the home of its transactional id. Until an id has written something, the first
topic it names decides. A write to a topic elsewhere is answered TRANSACTION_ABORTABLE (AddPartitionsToTxn 3),
TOPIC_AUTHORIZATION_FAILED before that: what most libraries recover from by an abort. What else the request names goes
on. The abort that follows meets a coordinator that knows of no transaction if everything was refused; that is a
success for the client.

Producer ids of idempotent producers come from this connection's broker, and the number of the cluster is added in
bits 40 to 51: ids of different clusters would collide, and a broker takes a colliding write for a duplicate.
A transactional producer's id is never touched: its coordinator compares it (49, 90).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import OWN_TRANSACTIONS
from metadata_service.view import View
from proxy.apis.contract import Call, ClusterAway, Handler
from proxy.apis.group_state import in_order, prepared
from proxy.apis.homes import group_home, require_group, require_transaction, split_by_home, transaction_home
from proxy.apis.mapping import forward
from proxy.apis.metadata import find
from proxy.apis.permissions import GROUP, READ, permitted
from proxy.apis.refusals import refusal

INIT, ADD_PARTITIONS, ADD_OFFSETS, END = 22, 24, 25, 26
COMMIT_OFFSETS, DESCRIBE, LIST, FIND_COORDINATOR = 28, 65, 66, 10
ABORTABLE_FROM = {ADD_PARTITIONS: 3, ADD_OFFSETS: 4}  # versions whose clients know TRANSACTION_ABORTABLE (KIP-890)
CLIENT_VERSIONS = 3  # of AddPartitionsToTxn
CLUSTER_BIT = 40  # producer id + ((cluster index + 1) << 40)
PLACEMENT_BIT = 52  # + (placement epoch << 52), added on the way to a cluster that held the topic before
NEW_TIMEOUT = 60_000  # ms; clients' default for transactions, the producer's own is not told here
LIMIT = 20_000  # refused transactions remembered

NOBODY: Message = {"producer_id": -1, "producer_epoch": -1}

# What is answered to a producer of an id that a coordinator knows otherwise.
STRANGERS = frozenset((ERROR.PRODUCER_FENCED, ERROR.INVALID_PRODUCER_EPOCH, ERROR.INVALID_PRODUCER_ID_MAPPING))
_NOT_NOW = frozenset((ERROR.NOT_COORDINATOR, ERROR.COORDINATOR_NOT_AVAILABLE, ERROR.COORDINATOR_LOAD_IN_PROGRESS))
_refused: OrderedDict[str, None] = OrderedDict()


def note_refused(transactional_id: str) -> None:
    """Something this transaction named was refused here: its abort may find no transaction, and is to succeed."""
    _refused[transactional_id] = None
    _refused.move_to_end(transactional_id)
    while len(_refused) > LIMIT:
        _refused.popitem(last=False)


def note_written(transactional_id: str) -> None:
    """Its coordinator knows of the transaction: it judges the abort."""
    _refused.pop(transactional_id, None)


def tag(view: View, cluster: str, producer_id: int) -> int:
    """An idempotent producer's id as clients hold it; -1 passes."""
    known = view.clusters.get(cluster)
    return producer_id if producer_id < 0 or known is None else producer_id + (known.record.index + 1 << CLUSTER_BIT)


def untag(producer_id: int) -> int:
    """The id as its broker gave it."""
    return producer_id if producer_id < 0 else producer_id & ((1 << CLUSTER_BIT) - 1)


def without_placement(producer_id: int) -> int:
    """An id found in a log, as the producer that wrote it knows it."""
    return producer_id if producer_id < 0 else producer_id & ((1 << PLACEMENT_BIT) - 1)


async def init_producer_id(call: Call, version: int, request: Message) -> Message:
    transactional_id = request["transactional_id"]
    if transactional_id is None:
        asked = {**request, "producer_id": untag(request.get("producer_id", -1))}
        response = await forward(call, call.view, INIT, asked)
        if response["error_code"] == ERROR.NONE:
            response["producer_id"] = tag(call.view, call.cluster, response["producer_id"])
        return response
    await require_transaction(call, transactional_id)
    note_written(transactional_id)
    response = await forward(call, call.view, INIT, request)
    if response["error_code"] in STRANGERS and request.get("producer_id", -1) >= 0:
        try:
            if await _newest_before(call, transactional_id, request["producer_id"], request["producer_epoch"]):
                return await forward(call, call.view, INIT, {**request, **NOBODY})
        except ClusterAway:
            response["error_code"] = int(ERROR.COORDINATOR_NOT_AVAILABLE)  # clients ask again
    return response


def _results(topics: list[Message], codes: dict[str, int]) -> list[Message]:
    return [
        {
            "name": topic["name"],
            "results_by_partition": [
                {"partition_index": index, "partition_error_code": codes[topic["name"]]}
                for index in topic["partitions"]
            ],
        }
        for topic in topics
        if topic["name"] in codes
    ]


async def begins_now(call: Call, transactional_id: str, topics: list[str]) -> bool:
    """Waits where the call would begin a transaction on topics that are about to move; whether it may be made."""
    wait: Callable[[list[str]], Awaitable[bool]] | None = getattr(call, "begins", None)
    held = [name for name in topics if (one := call.view.topics.get(name)) is not None and one.record.hold is not None]
    if wait is None or not held:
        return True
    answer = await call.ask(call.cluster, DESCRIBE, {"transactional_ids": [transactional_id]}, broker=call.broker)
    going_on = {
        topic["topic"]
        for state in answer["transaction_states"]
        if not state["error_code"] and state["transaction_state"] == "Ongoing"
        for topic in state["topics"]
    }
    begun = [name for name in held if name not in going_on]
    return not begun or await wait(begun)


async def add_partitions(call: Call, version: int, request: Message) -> Message:
    if version > CLIENT_VERSIONS:
        return refusal(ADD_PARTITIONS, version, request, ERROR.CLUSTER_AUTHORIZATION_FAILED)
    transactional_id, topics = request["v3_and_below_transactional_id"], request["v3_and_below_topics"]
    await require_transaction(call, transactional_id)
    view = await find(call, [topic["name"] for topic in topics])
    places = {topic["name"]: view.topics[topic["name"]].cluster for topic in topics if topic["name"] in view.topics}
    answer: Message = {"results_by_topic_v3_and_below": []}
    if len(places) < len({topic["name"] for topic in topics}):
        # As a broker: what exists is not attempted either.
        codes: dict[str, int] = {
            topic["name"]: ERROR.OPERATION_NOT_ATTEMPTED
            if topic["name"] in places
            else ERROR.UNKNOWN_TOPIC_OR_PARTITION
            for topic in topics
        }
        answer["results_by_topic_v3_and_below"] = _results(topics, codes)
        return answer
    known = view.transactions.get(transactional_id)
    if topics and (known is None or not known.written):
        home = await call.federation.transaction_writes(transactional_id, places[topics[0]["name"]])
        if home != call.cluster:
            # The id has moved to its first topic's cluster, where its producer id is unknown. Clients abort on 49
            # without EndTxn, and get a new producer id from the coordinator they then look up.
            codes = {topic["name"]: ERROR.INVALID_PRODUCER_ID_MAPPING for topic in topics}
            answer["results_by_topic_v3_and_below"] = _results(topics, codes)
            note_refused(transactional_id)
            return answer
    abortable = version >= ABORTABLE_FROM[ADD_PARTITIONS]
    code = ERROR.TRANSACTION_ABORTABLE if abortable else ERROR.TOPIC_AUTHORIZATION_FAILED
    refused = _results(topics, {name: code for name, cluster in places.items() if cluster != call.cluster})
    here = [topic for topic in topics if places[topic["name"]] == call.cluster]
    if refused:
        note_refused(transactional_id)
    if not here:
        answer["results_by_topic_v3_and_below"] = refused
        return answer
    if not await begins_now(call, transactional_id, [topic["name"] for topic in here]):
        call.view = call.latest()
        await require_transaction(call, transactional_id)  # its home may have moved with the topics
        codes = {topic["name"]: ERROR.CONCURRENT_TRANSACTIONS for topic in topics}  # clients ask again soon
        answer["results_by_topic_v3_and_below"] = _results(topics, codes)
        return answer
    answer = await forward(call, view, ADD_PARTITIONS, {**request, "v3_and_below_topics": here})
    results = answer["results_by_topic_v3_and_below"]
    for one in (each for topic in results for each in topic["results_by_partition"]):
        producer = request["v3_and_below_producer_id"], request["v3_and_below_producer_epoch"]
        one["partition_error_code"] = await _of_moved(call, transactional_id, *producer, one["partition_error_code"])
    if any(not one["partition_error_code"] for topic in results for one in topic["results_by_partition"]):
        note_written(transactional_id)
    answer["results_by_topic_v3_and_below"] = in_order(topics, "name", results, refused)
    return answer


async def add_offsets(call: Call, version: int, request: Message) -> Message:
    transactional_id, group = request["transactional_id"], request["group_id"]
    await require_transaction(call, transactional_id)
    if not await permitted(call, call.cluster, READ, GROUP, [group]):
        return {"error_code": ERROR.GROUP_AUTHORIZATION_FAILED}
    if await call.federation.tie_transaction_to_group(transactional_id, group) != call.cluster:
        # The id has written nothing yet and goes where the group is; see add_partitions.
        note_refused(transactional_id)
        return {"error_code": ERROR.INVALID_PRODUCER_ID_MAPPING}
    if await group_home(call, group) != call.cluster:
        note_refused(transactional_id)
        abortable = version >= ABORTABLE_FROM[ADD_OFFSETS]
        return {"error_code": ERROR.TRANSACTION_ABORTABLE if abortable else ERROR.GROUP_AUTHORIZATION_FAILED}
    response = await forward(call, call.latest(), ADD_OFFSETS, request)
    producer = request["producer_id"], request["producer_epoch"]
    response["error_code"] = await _of_moved(call, transactional_id, *producer, response["error_code"])
    if response["error_code"] == ERROR.NONE:
        note_written(transactional_id)
    return response


async def end_txn(call: Call, version: int, request: Message) -> Message:
    transactional_id = request["transactional_id"]
    await require_transaction(call, transactional_id)
    if request["committed"]:
        note_written(transactional_id)  # a commit is never made up
    response = await forward(call, call.view, END, request)
    if response["error_code"] == ERROR.INVALID_TXN_STATE and transactional_id in _refused:
        response["error_code"] = ERROR.NONE
    elif not request["committed"]:
        producer = request["producer_id"], request["producer_epoch"]
        if await _of_moved(call, transactional_id, *producer, response["error_code"]) == ERROR.UNKNOWN_PRODUCER_ID:
            await _nothing_to_abort(call, version, request, response)
    return response


def has_moved(view: View, transactional_id: str) -> bool:
    """Whether its home has moved with a topic: its coordinator may not know the producer that uses it."""
    return any(
        transactional_id in one.options.transactional_ids and one.target == view.transactions[transactional_id].cluster
        for one in view.migrations.values()
        if transactional_id in view.transactions
    )


async def _newest_before(call: Call, transactional_id: str, producer_id: int, epoch: int) -> bool:
    """Whether a producer was the newest of its id where that was at home last: its coordinator now has known the id
    before, and takes the producer for one that was fenced. Raises ClusterAway, Refused."""
    view = call.view
    if not has_moved(view, transactional_id):
        return False
    moves = [one for one in view.migrations.values() if transactional_id in one.options.transactional_ids]
    came = max(moves, key=lambda one: (one.target == call.cluster, one.id)).source
    lookup: Message = {"key": transactional_id, "key_type": 1, "coordinator_keys": [transactional_id]}
    answer = await call.ask(came, FIND_COORDINATOR, lookup)
    found = answer["coordinators"][0] if answer.get("coordinators") else answer
    if found["error_code"]:
        raise ClusterAway(came, f"the coordinator of {transactional_id!r}: {found['error_code']}")
    told = await call.ask(came, DESCRIBE, {"transactional_ids": [transactional_id]}, broker=found["node_id"])
    (state,) = told["transaction_states"]
    if state["error_code"] in _NOT_NOW:
        raise ClusterAway(came, f"the coordinator of {transactional_id!r}: {state['error_code']}")
    return not state["error_code"] and (state["producer_id"], state["producer_epoch"]) == (producer_id, epoch)


async def _of_moved(call: Call, transactional_id: str, producer_id: int, epoch: int, code: int) -> int:
    """A coordinator that does not know the producer: 49 is fatal for newer Java clients, and 47 and 90 for all, where
    it has the same producer id by chance. Upon 59 all of them abort, and get a new producer id from the coordinator
    they have now. Raises ClusterAway, Refused."""
    if code not in STRANGERS or not has_moved(call.view, transactional_id):
        return code
    if code == ERROR.INVALID_PRODUCER_ID_MAPPING or await _newest_before(call, transactional_id, producer_id, epoch):
        return int(ERROR.UNKNOWN_PRODUCER_ID)
    return code


async def _nothing_to_abort(call: Call, version: int, request: Message, response: Message) -> None:
    """The id's home has moved, and this coordinator has never seen its producer: there is nothing to abort, and what
    was open where it came from ends by its timeout. From version 5 on (KIP-890) the answer gives the producer its
    next epoch; here that is what a new coordinator gives it. One that has known the id before compares with what it
    knew then; who is the newest, the coordinator that the id has come from knows. Raises ClusterAway, Refused."""
    if version >= 5:
        asked = {
            "transactional_id": request["transactional_id"],
            "transaction_timeout_ms": NEW_TIMEOUT,
            "producer_id": request["producer_id"],
            "producer_epoch": request["producer_epoch"],
        }
        given = await call.ask(call.cluster, INIT, asked, broker=call.broker)
        if given["error_code"] in STRANGERS and await _newest_before(
            call, request["transactional_id"], request["producer_id"], request["producer_epoch"]
        ):
            given = await call.ask(call.cluster, INIT, asked | NOBODY, broker=call.broker)
        if given["error_code"]:
            response["error_code"] = given["error_code"]
            return
        response |= {"producer_id": given["producer_id"], "producer_epoch": given["producer_epoch"]}
    response["error_code"] = ERROR.NONE


async def commit_offsets(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"], READ)
    view, known, unknown = await prepared(call, request["topics"], by_id=False)
    if not unknown:
        return await forward(call, view, COMMIT_OFFSETS, request)
    response = refusal(COMMIT_OFFSETS, version, {"topics": unknown}, ERROR.UNKNOWN_TOPIC_OR_PARTITION)
    if known:
        committed = await forward(call, view, COMMIT_OFFSETS, {**request, "topics": known})
        response["topics"] = in_order(request["topics"], "name", committed["topics"], response["topics"])
    return response


async def list_transactions(call: Call, version: int, request: Message) -> Message:
    response = await forward(call, call.view, LIST, request)
    homes = call.view.transactions
    response["transaction_states"] = [
        one
        for one in response["transaction_states"]
        if (one["transactional_id"] not in homes or homes[one["transactional_id"]].cluster == call.cluster)
        and not one["transactional_id"].startswith(OWN_TRANSACTIONS)
    ]
    return response


HANDLERS: dict[int, Handler] = {
    INIT: init_producer_id,
    ADD_PARTITIONS: add_partitions,
    ADD_OFFSETS: add_offsets,
    END: end_txn,
    COMMIT_OFFSETS: commit_offsets,
    DESCRIBE: split_by_home(
        DESCRIBE, "transactional_ids", "transaction_states", "transactional_id", home=transaction_home
    ),
    LIST: list_transactions,
}
