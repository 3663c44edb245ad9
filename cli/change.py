"""Commands that change something: they print their plan, and do it only with --apply."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec

from cli import output, tables
from cli.show import ask
from cli.usage import DEFAULT_FILE, DONE, FAILED, Usage, settings_of
from runtime.settings import Settings

MIRROR_SECONDS = 90.0  # a mirror may take to begin, or to be removed
MIRROR_PAUSE = 0.5


def run(options: argparse.Namespace) -> int:
    """`config ...`, `store ...`, `mirror ...`, `groups NAME --home CLUSTER` and `proxies --dead PROCESS`."""
    if options.command == "proxies":
        return _dead(options)
    if options.command == "groups":
        return _group_home(options)
    if options.command == "mirror":
        return _mirror(options)
    if options.command == "store":
        return _export(options) if options.action == "export" else _import(options)
    settings = settings_of(options, needed=True)
    assert settings is not None
    if options.action == "check":
        if options.json:
            output.document({"valid": True, "federation": settings.federation})
        else:
            print(f"{options.config or DEFAULT_FILE}: right")
        return DONE
    return _config(options, settings)


def _config(options: argparse.Namespace, settings: Settings) -> int:
    wanted = {
        "federation": settings.federation,
        "clusters": msgspec.to_builtins(settings.clusters),
        "placement": msgspec.to_builtins(settings.placement),
    }
    plan = ask(options, "config/diff", "POST", {"configuration": wanted})
    if options.action == "apply" and options.apply and plan["changes"]:
        body = {"configuration": wanted, "apply": True, "revision": plan["revision"]}
        plan = ask(options, "config/apply", "POST", body)
    if options.json:
        output.document(plan)
    else:
        tables.changes(plan)
        if options.action == "apply" and plan["changes"] and not options.apply:
            print("\nNothing was changed; do it with --apply.")
    return DONE


def _group_home(options: argparse.Namespace) -> int:
    if options.name is None:
        raise Usage("groups --home needs the NAME of a group")
    path = f"groups/{urllib.parse.quote(options.name, safe='')}/home"
    result = ask(options, path, "POST", {"cluster": options.home, "apply": options.apply})
    if options.json:
        output.document(result)
    else:
        tables.home(result)
    return DONE


def _dead(options: argparse.Namespace) -> int:
    path = f"processes/{urllib.parse.quote(options.dead, safe='')}/dead"
    result = ask(options, path, "POST", {"apply": options.apply})
    if options.json:
        output.document(result)
    else:
        output.fields((key, output.when(value) if key == "started" else value) for key, value in result.items())
        if not result["applied"]:
            print(
                "\nNothing was changed; do it with --apply, if this process is certainly dead: one that sleeps may wake"
            )
            print("up, and change what it was told to change then.")
    return DONE


def _mirror(options: argparse.Namespace) -> int:
    body = {
        "topics": options.topics,
        "from": options.source,
        "to": options.targets,
        "both_ways": options.both_ways,
        "apply": options.apply,
    }
    if options.action == "create":
        body["rate"] = options.rate
    elif options.action == "remove":
        body["delete_copy"] = options.delete_copy
    result = ask(options, f"mirror/{options.action}", "POST", body)
    if result["applied"] and result["waiting"]:
        _until_done(options, result)
    if options.json:
        output.document(result)
    else:
        tables.mirror_plan(result)
    return FAILED if result["problems"] or result.get("waiting") else DONE


def _until_done(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Look again and again, for MIRROR_SECONDS at most; `waiting` is then what is left."""
    wanted = {(one["topic"], one["source"], one["target"]) for one in result["mirrors"]}
    deadline = time.monotonic() + MIRROR_SECONDS
    while result["waiting"] and time.monotonic() < deadline:
        if any(why.startswith("stopped") for why in result["waiting"].values()):
            return
        time.sleep(MIRROR_PAUSE)
        left: dict[str, str] = {}
        for one in ask(options, "mirrors")["mirrors"]:
            if (one["topic"], one["source"], one["target"]) in wanted:
                name = f"{one['topic']} {one['source']} -> {one['target']}"
                if options.action == "remove":
                    left[name] = f"it is {one['state']}"
                elif one["waiting"]:
                    left[name] = one["waiting"]
        result["waiting"] = left


def _export(options: argparse.Namespace) -> int:
    exported = ask(options, "store/export", "POST")
    text = json.dumps(exported, indent=1) + "\n"
    if options.file == "-":
        sys.stdout.write(text)
        return DONE
    # It holds passwords: readable by its owner alone, and whole or not there.
    target = Path(options.file)
    part = target.with_name(target.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    except OSError as error:
        raise Usage(f"{target}: {error.strerror}") from None
    if options.json:
        output.document({"file": str(target), "keys": len(exported["items"])})
    else:
        print(f"{len(exported['items'])} keys are in {target}; it holds passwords, keep it safe.")
    return DONE


def _import(options: argparse.Namespace) -> int:
    try:
        exported: Any = json.loads(Path(options.file).read_text())
    except OSError as error:
        raise Usage(f"{options.file}: {error.strerror}") from None
    except ValueError as error:
        raise Usage(f"{options.file}: no JSON: {error}") from None
    result = ask(options, "store/import", "POST", {"export": exported, "apply": options.apply})
    if options.json:
        output.document(result)
    else:
        output.fields(result.items())
        if not options.apply:
            print("\nNothing was changed; do it with --apply. Everything the store holds now is replaced.")
    return DONE if result.get("applied") or not options.apply else FAILED
