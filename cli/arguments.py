"""The command line's grammar. Nothing here does any work, so that the reference can be generated from it.

Options that every command takes may stand anywhere, before or after the command and its arguments; `parse` moves
them to the front, since argparse alone does not allow that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

VALUED = ("-c", "--config", "--admin", "--token-file")
FLAGS = ("--json", "--apply", "--wait")


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = argparse.ArgumentParser(
        prog="kfed",
        description="One logical Kafka cluster over many physical ones.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage or configuration.",
        allow_abbrev=False,
    )
    common(top)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())

    run = command(
        "run",
        "run everything in one process tree: the store (if embedded), controller, proxies, replicators and admin API",
        more="Prints `ready` on stdout once clients can connect. SIGTERM drains for at most 10 seconds.",
    )
    _instance(run)
    serve = command("serve", "run one role", more="Several machines share the federation through etcd.")
    serve.add_argument("role", choices=("proxy", "controller", "replicator"), help="what to run")
    _instance(serve)

    command("status", "the federation at a glance")
    command("clusters", "the physical clusters, and whether they are reachable")
    topics = command("topics", "the logical topics, or one of them in detail")
    topics.add_argument("name", metavar="NAME", nargs="?", help="a topic")
    groups = command("groups", "the groups and their homes, or one of them in detail")
    groups.add_argument("name", metavar="NAME", nargs="?", help="a group")
    groups.add_argument(
        "--home",
        metavar="CLUSTER",
        help="decide where NAME is at home, if it has members on no other cluster; a plan without --apply",
    )
    groups.add_argument(
        "--move-home",
        metavar="CLUSTER",
        help="move NAME's home there with its commits, while it is in use; with --wait it returns when the new home "
        "serves; a plan without --apply",
    )
    eject = command(
        "eject",
        "let a topic leave the federation: its groups' positions become physical ones; a plan without --apply",
        more="With --wait it returns when the topic is an ordinary one of its cluster.",
    )
    eject.add_argument("topic", metavar="TOPIC", help="its name")
    eject.add_argument("--undo", action="store_true", help="take an ejected topic back; at once, with --apply")
    mirrors = command("mirrors", "the mirrors with their lag, or those of a topic by partition")
    mirrors.add_argument("name", metavar="TOPIC", nargs="?", help="a topic")
    mirror = command("mirror", "create, pause, rebuild or remove mirrors of topics between clusters")
    actions = mirror.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create", help="copy topics from now on; returns when they copy; a plan without --apply"
    )
    _mirror(create)
    create.add_argument(
        "--rate",
        metavar="BYTES",
        type=float,
        help="at most so many bytes a second for everything on each of these links, 0 for no limit (default: as it is)",
    )
    remove = actions.add_parser("remove", help="copy topics no longer; a plan without --apply")
    _mirror(remove)
    remove.add_argument("--delete-copy", action="store_true", help="delete the targets' topics, with their records")
    for action, what in (
        ("pause", "let mirrors rest, or without a TOPIC whole links; a plan without --apply"),
        ("resume", "let them go on; a plan without --apply"),
        ("rebuild", "have copies emptied and filled anew; a plan without --apply"),
    ):
        _mirror(actions.add_parser(action, help=what), several="+" if action == "rebuild" else "*")
    proxies = command("proxies", "the proxy workers, what they hold and what they have acknowledged")
    proxies.add_argument(
        "--dead",
        metavar="PROCESS",
        help="state that a process (INSTANCE/ROLE-WORKER, as kfed doctor names it) is dead and will never wake up, so "
        "that no move waits for it; a plan without --apply",
    )
    _migrate(
        command(
            "migrate",
            "move topics to another cluster while they are in use; a plan without --apply",
            more="With --wait it shows how far it is, and returns when clients are served by the new cluster.",
        )
    )
    operations = command("operations", "operations, running and past, or one of them in detail")
    operations.add_argument(
        "id", metavar="ID", nargs="?", help="an operation; with --wait: how far it is, until it is done"
    )
    change = operations.add_mutually_exclusive_group()
    change.add_argument("--pause", action="store_true", help="let it rest where clients notice nothing; at once")
    change.add_argument("--resume", action="store_true", help="let it go on; at once")
    change.add_argument("--abort", action="store_true", help="give it up, as long as the old cluster serves; at once")
    command("history", "who changed what, when, and what came of it")

    config = command("config", "compare the configuration file with the store, apply it, or check it alone")
    actions = config.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("diff", help="what the file (-c) says differently from the store")
    actions.add_parser("apply", help="bring the store to what the file says; a plan without --apply")
    actions.add_parser("check", help="whether the file is right, without asking anybody")

    store = command("store", "save the store's content to a file, or bring it back")
    actions = store.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="write everything the store holds, passwords included")
    export.add_argument("file", metavar="FILE", nargs="?", default="-", help="where to; - is stdout (the default)")
    import_ = actions.add_parser("import", help="replace what the store holds; a plan without --apply")
    import_.add_argument("file", metavar="FILE", help="an export")

    offsets = command("offsets", "offsets of the very same record on different clusters")
    actions = offsets.add_subparsers(dest="action", metavar="ACTION", required=True)
    translate = actions.add_parser("translate", help="where the record at an offset on one cluster lies on another")
    translate.add_argument("topic", metavar="TOPIC", help="a topic that is mirrored")
    translate.add_argument("partition", metavar="PARTITION", type=int, help="its partition")
    translate.add_argument("offset", metavar="OFFSET", type=int, help="the offset; past a hole, the next record's")
    translate.add_argument("--from", dest="source", metavar="CLUSTER", required=True, help="where that offset counts")
    translate.add_argument("--to", dest="target", metavar="CLUSTER", required=True, help="where its like is wanted")

    verify = command(
        "verify",
        "compare what both sides of mirrors hold, record by record, while traffic flows",
        more="Exit status: 0 identical, 1 something differs or could not be compared, 2 wrong usage.",
    )
    verify.add_argument("topics", metavar="TOPIC", nargs="+", help="a topic that is mirrored")
    verify.add_argument("--from", dest="source", metavar="CLUSTER", help="only mirrors from this cluster")
    verify.add_argument("--to", dest="target", metavar="CLUSTER", help="only mirrors to this cluster")
    verify.add_argument(
        "--bucket", metavar="TIME", default="1h", help="count records together by 15m, 1h (the default), 1d, ..."
    )
    verify.add_argument("--rate", metavar="BYTES_PER_S", help="read no faster, on both sides together: 500k, 20M, ...")
    verify.add_argument(
        "--since", metavar="TIME", help="begin with the first record of that time: 2h (ago), or 2026-11-20T14:00"
    )

    command("doctor", "what is wrong, and the command that mends it")
    command("version", "the version of kfed and of what it runs on")
    return top


def common(into: argparse.ArgumentParser) -> None:
    """The options that may stand anywhere."""
    into.add_argument("-c", "--config", metavar="FILE", help="the configuration file (default: ./kfed.yaml if there)")
    into.add_argument("--admin", metavar="URL", help="the admin API (default: as in the configuration file)")
    into.add_argument("--token-file", metavar="FILE", help="holds the admin API's token (default: as configured)")
    into.add_argument("--json", action="store_true", help="print one JSON document")
    into.add_argument("--apply", action="store_true", help="do it; without, a command that changes prints its plan")
    into.add_argument(
        "--wait",
        action="store_true",
        help="return when it is done, where a command does not anyway (migrate, operations ID)",
    )


def _migrate(into: argparse.ArgumentParser) -> None:
    into.add_argument(
        "topics", metavar="TOPIC", nargs="+", help="a name, or a regular expression for whole names ('orders.*')"
    )
    into.add_argument("--to", dest="target", metavar="CLUSTER", help="where to; needed unless --rollback")
    into.add_argument("--rollback", action="store_true", help="back to the cluster that each topic came from")
    into.add_argument("--drain-wait", metavar="SECONDS", type=float, help="how long open transactions have to end (60)")
    into.add_argument(
        "--abort-transactions",
        action="store_true",
        help="abort those that do not end in time: their producers get error 120",
    )
    into.add_argument(
        "--max-lag", metavar="RECORDS", type=int, help="how much each topic may lack when writes are held (1000)"
    )
    into.add_argument(
        "--budget",
        metavar="SECONDS",
        type=float,
        help="how long writes may be held before they go on where they were (3)",
    )
    into.add_argument(
        "--redirect", metavar="SECONDS", type=float, help="how long producers have to follow by themselves (600)"
    )
    into.add_argument(
        "--close-out-bypass",
        action="store_true",
        help="also where producers write past the endpoint: they are refused then, with acks=0 silently",
    )
    into.add_argument(
        "--leave-ids",
        action="store_true",
        help="also where a transactional id that writes these topics writes others, which stay: it is refused there",
    )
    into.add_argument(
        "--leave-acls",
        action="store_true",
        help="also where the target lacks ACLs of the source: whose they are gain or lose rights",
    )


def _mirror(into: argparse.ArgumentParser, several: str = "+") -> None:
    into.add_argument(
        "topics", metavar="TOPIC", nargs=several, help="a name, or a regular expression for whole names ('orders.*')"
    )
    into.add_argument("--from", dest="source", metavar="CLUSTER", required=True, help="where they come from")
    into.add_argument(
        "--to", dest="targets", metavar="CLUSTER", action="append", required=True, help="where to; may be repeated"
    )
    into.add_argument(
        "--both-ways", action="store_true", help="an exchange: each of the clusters named has everybody's records"
    )


def _instance(into: argparse.ArgumentParser) -> None:
    into.add_argument(
        "--instance", metavar="NAME", help="this process's name in the federation (default: HOST-ADMINPORT)"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Exits with status 2 and one line of usage where the arguments are wrong, as argparse does."""
    front: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left:
        one = left.pop(0)
        if one == "--":
            rest += [one, *left]
            break
        if one in FLAGS or one.partition("=")[0] in VALUED[1:]:
            front.append(one)
            if one in VALUED and left:
                front.append(left.pop(0))
        elif one.startswith("-c") and not one.startswith("--"):
            front.append(one)
            if one == "-c" and left:
                front.append(left.pop(0))
        else:
            rest.append(one)
    return parser().parse_args([*front, *rest])
