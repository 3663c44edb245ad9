"""Kafka's own command line tools, by the names people know.

`python -m tools.kafka.console kafka-topics --bootstrap-server ... --list` becomes that tool. Each start is a JVM; tests
that call many tools use the running JVM of tools.java_client instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tools.kafka import jvm

_TOOLS = "org.apache.kafka.tools."
MAIN_CLASSES = {
    "kafka-acls": _TOOLS + "AclCommand",
    "kafka-broker-api-versions": _TOOLS + "BrokerApiVersionsCommand",
    "kafka-client-metrics": _TOOLS + "ClientMetricsCommand",
    "kafka-cluster": _TOOLS + "ClusterTool",
    "kafka-configs": "kafka.admin.ConfigCommand",
    "kafka-console-consumer": _TOOLS + "consumer.ConsoleConsumer",
    "kafka-console-producer": _TOOLS + "ConsoleProducer",
    "kafka-console-share-consumer": _TOOLS + "consumer.ConsoleShareConsumer",
    "kafka-consumer-groups": _TOOLS + "consumer.group.ConsumerGroupCommand",
    "kafka-consumer-perf-test": _TOOLS + "ConsumerPerformance",
    "kafka-delegation-tokens": _TOOLS + "DelegationTokenCommand",
    "kafka-delete-records": _TOOLS + "DeleteRecordsCommand",
    "kafka-dump-log": _TOOLS + "DumpLogSegments",
    "kafka-e2e-latency": _TOOLS + "EndToEndLatency",
    "kafka-features": _TOOLS + "FeatureCommand",
    "kafka-get-offsets": _TOOLS + "GetOffsetShell",
    "kafka-groups": _TOOLS + "GroupsCommand",
    "kafka-leader-election": _TOOLS + "LeaderElectionCommand",
    "kafka-log-dirs": _TOOLS + "LogDirsCommand",
    "kafka-metadata-quorum": _TOOLS + "MetadataQuorumCommand",
    "kafka-producer-perf-test": _TOOLS + "ProducerPerformance",
    "kafka-reassign-partitions": _TOOLS + "reassign.ReassignPartitionsCommand",
    "kafka-replica-verification": _TOOLS + "ReplicaVerificationTool",
    "kafka-share-consumer-perf-test": _TOOLS + "ShareConsumerPerformance",
    "kafka-share-groups": _TOOLS + "consumer.group.ShareGroupCommand",
    "kafka-storage": "kafka.tools.StorageTool",
    "kafka-streams-application-reset": _TOOLS + "StreamsResetter",
    "kafka-streams-groups": _TOOLS + "streams.StreamsGroupCommand",
    "kafka-topics": _TOOLS + "TopicCommand",
    "kafka-transactions": _TOOLS + "TransactionsCommand",
    "kafka-transactional-message-copier": _TOOLS + "TransactionalMessageCopier",
    "kafka-verifiable-consumer": _TOOLS + "VerifiableConsumer",
    "kafka-verifiable-producer": _TOOLS + "VerifiableProducer",
    "kafka-verifiable-share-consumer": _TOOLS + "VerifiableShareConsumer",
}


@dataclass(frozen=True)
class Completed:
    """What a tool printed, and its exit status."""

    code: int
    out: str
    err: str

    def check(self) -> Completed:
        """Itself, if the tool succeeded."""
        if self.code:
            raise ToolFailed(f"exit status {self.code}\n{self.out}{self.err}")
        return self


class ToolFailed(RuntimeError):
    """A command line tool ended with a status other than 0."""


def command(tool: str, *arguments: str, heap: str = "256m", full_jit: bool = False) -> list[str]:
    """The command line that runs `tool` in a JVM of its own."""
    return jvm.command(MAIN_CLASSES[tool], arguments, heap=heap, full_jit=full_jit)


def run(tool: str, *arguments: str, stdin: str = "", timeout: float = 60) -> Completed:
    """Runs `tool` in a JVM of its own and waits for its end."""
    done = subprocess.run(command(tool, *arguments), input=stdin, capture_output=True, text=True, timeout=timeout)
    return Completed(done.returncode, done.stdout, done.stderr)


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in MAIN_CLASSES:
        print("usage: python -m tools.kafka.console TOOL ARGUMENTS...; the tools are:", file=sys.stderr)
        print("".join(f"  {name}\n" for name in MAIN_CLASSES), file=sys.stderr, end="")
        sys.exit(2)
    argv = command(arguments[0], *arguments[1:])
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
