"""Dead processes: an operator's word that one is, so that what waits for it goes on."""

from __future__ import annotations

from admin.contract import Conflict, Document, NotFound
from metadata_service.models import LEASES, WORKERS, WorkerRecord, process_name
from metadata_service.operations.records import ENDED
from metadata_service.records import decode
from metadata_service.status import Facts
from metadata_service.store.contract import Delete, Store, Unchanged


async def dead(store: Store, facts: Facts, name: str, apply: bool) -> Document:
    """Take the registration of `INSTANCE/ROLE-WORKER` out; a process that lives after all registers itself again.

    Raises:
        NotFound: none of that name is registered. Conflict: it lives, or is another one by now. StoreError.
    """
    worker = facts.workers.get(name)
    if worker is None:
        known = ", ".join(sorted(one for one in facts.workers if one not in facts.leases)) or "none"
        raise NotFound(f"no process {name!r} is registered (without a lease: {known})")
    if name in facts.leases:
        raise Conflict(f"{name} (pid {worker.pid} on {worker.host}) is alive: it renews its lease")
    mine = process_name(worker)
    waiting = [
        one.id
        for one in facts.view.migrations.values()
        if mine in (*one.reopeners, *one.retirers) or (one.step not in ENDED and worker.role == "proxy")
    ]
    document: Document = {
        "process": name,
        "role": worker.role,
        "pid": worker.pid,
        "host": worker.host,
        "started": worker.started,
        "waiting": sorted(waiting),
        "applied": False,
    }
    if not apply:
        return document
    key = WORKERS + name
    found = await store.get(key)
    if found is None or decode(WorkerRecord, found.value) != worker:
        raise Conflict(f"{name} has registered itself anew; look again")
    done = await store.commit((Unchanged(key, found.mod_revision), Unchanged(LEASES + name, 0)), (Delete(key),))
    if not done.succeeded:
        raise Conflict(f"{name} has come back to life; look again")
    return {**document, "applied": True}
