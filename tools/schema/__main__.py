"""`python -m tools.schema JAR_DIRECTORY`: rewrite kafka_wire/messages.json and kafka_wire/errors.json.

Kafka publishes its protocol as JSON definitions inside its own jars (KIP-482 describes the format). They are
turned into one compact document, so that the codec, the API table, the leak test, the fuzzers and the
documentation all derive from what the brokers themselves use, at every version, and a new Kafka release is one
run of this command.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[2] / "kafka_wire"
COORDINATOR_RECORDS = ("OffsetCommitKey", "OffsetCommitValue")
KEPT = ("type", "versions", "nullableVersions", "flexibleVersions", "taggedVersions", "tag", "default", "entityType")
ERRORS_PROGRAM = """
public class Errors { public static void main(String[] a) {
  for (var e : org.apache.kafka.common.protocol.Errors.values())
    System.out.println(e.code() + " " + e.name() + " " + e.message().replace('\\n', ' ')); } }
"""


def snake(name: str) -> str:
    """`TopicId` -> `topic_id`, the spelling the codec uses for message keys."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def field(raw: dict[str, Any], structs: dict[str, Any]) -> dict[str, Any]:
    """One field in compact form; named common structs are expanded in place."""
    out = {"name": snake(raw["name"])} | {k: raw[k] for k in KEPT if k in raw}
    inner = raw.get("fields") or structs.get(raw["type"].removeprefix("[]"))
    if inner:
        out["fields"] = [field(f, structs) for f in inner]
    return out


def definition(text: str) -> dict[str, Any] | None:
    raw = json.loads(re.sub(r"//.*$", "", text, flags=re.M))
    if raw["validVersions"] == "none":
        return None
    structs = {s["name"]: s["fields"] for s in raw.get("commonStructs", [])}
    out = {k: raw[k] for k in ("apiKey", "type", "name", "validVersions", "listeners") if k in raw}
    out["flexibleVersions"] = raw.get("flexibleVersions", "none")
    out["unstable"] = bool(raw.get("latestVersionUnstable", False))
    out["fields"] = [field(f, structs) for f in raw.get("fields", [])]
    return out


def definitions(jars: Path) -> tuple[str, list[dict[str, Any]], dict[str, str]]:
    """(Kafka version, definitions, names of API keys no client may call)."""
    clients = next(jars.glob("kafka-clients-*.jar"))
    found: list[dict[str, Any]] = []
    internal: dict[str, str] = {}
    for jar in (clients, next(jars.glob("kafka-group-coordinator-4*.jar"))):
        with zipfile.ZipFile(jar) as archive:
            for name in sorted(archive.namelist()):
                if not re.fullmatch(r"common/message/\w+\.json", name):
                    continue
                if jar != clients and Path(name).stem not in COORDINATOR_RECORDS:
                    continue
                text = archive.read(name).decode()
                one = definition(text)
                if one is None:
                    removed = json.loads(re.sub(r"//.*$", "", text, flags=re.M))
                    internal[str(removed["apiKey"])] = removed["name"].removesuffix("Request").removesuffix("Response")
                elif one["type"] == "request" and "broker" not in one.get("listeners", []):
                    internal[str(one["apiKey"])] = one["name"].removesuffix("Request")
                else:
                    found.append(one)
    wanted = {d["apiKey"] for d in found if d["type"] == "request"}
    kept = [d for d in found if d["type"] not in ("request", "response") or d["apiKey"] in wanted]
    return clients.stem.removeprefix("kafka-clients-"), kept, internal


def errors(jars: Path) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "Errors.java"
        source.write_text(ERRORS_PROGRAM)
        done = subprocess.run(
            ["java", "-cp", str(jars / "*"), str(source)], check=True, capture_output=True, text=True, timeout=120
        )
    rows = [line.split(" ", 2) for line in done.stdout.splitlines()]
    return {code: [name, text] for code, name, text in rows}


def main() -> None:
    jars = Path(sys.argv[1])
    version, kept, internal = definitions(jars)
    lines = ",\n".join(json.dumps(d, separators=(",", ":")) for d in kept)
    head = json.dumps({"kafka": version, "licence": "Apache-2.0, Apache Kafka", "internal": internal})
    (TARGET / "messages.json").write_text(f'{head[:-1]}, "messages": [\n{lines}\n]}}\n')
    rows = ",\n".join(f"{json.dumps(code)}: {json.dumps(row)}" for code, row in errors(jars).items())
    (TARGET / "errors.json").write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
