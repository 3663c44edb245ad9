"""The command line's grammar: common options anywhere, and one clear way to be wrong."""

from __future__ import annotations

import pytest

from cli import arguments
from cli.main import main


@pytest.mark.parametrize(
    "line",
    [
        "-c f.yaml --json topics orders",
        "topics -c f.yaml orders --json",
        "topics orders --json -c f.yaml",
        "topics --json orders --config f.yaml",
        "topics orders --config=f.yaml --json",
        "topics -cf.yaml orders --json",
    ],
)
def test_common_options_may_stand_anywhere(line: str) -> None:
    options = arguments.parse(line.split())
    assert (options.command, options.name, options.config, options.json) == ("topics", "orders", "f.yaml", True)


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "clusters",
        "topics",
        "topics x",
        "groups",
        "groups x",
        "mirrors",
        "mirrors x",
        "mirror create x y --from east --to west --rate 5",
        "mirror create orders.* --from east --to west --to south --both-ways",
        "mirror remove x --from east --to west --delete-copy",
        "proxies",
        "operations",
        "operations 7",
        "history",
        "config diff",
        "config apply",
        "config check",
        "store export",
        "store export f",
        "store import f",
        "doctor",
        "version",
        "run",
        "serve proxy",
        "serve controller",
        "serve replicator",
        "serve proxy --instance a",
    ],
)
def test_every_command_takes_every_common_option(line: str) -> None:
    words = line.split()
    common = ["--admin", "http://h:1", "--json", "--apply", "--wait", "--token-file", "t", "-c", "f"]
    for options in (arguments.parse([*common, *words]), arguments.parse([*words, *common])):
        assert options.command == words[0]
        assert (options.admin, options.config, options.token_file) == ("http://h:1", "f", "t")
        assert options.json
        assert options.apply
        assert options.wait


def test_a_name_that_looks_like_an_option() -> None:
    assert arguments.parse(["topics", "--", "--json"]).name == "--json"
    assert not arguments.parse(["topics", "--", "--json"]).json


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "migrate --to west",
        "operations x --pause --resume",
        "topics a b",
        "config",
        "config nonsense",
        "store import",
        "serve",
        "serve everything",
        "status --nonsense",
        "status -c",
        "--jso status",
    ],
)
def test_wrong_usage_is_status_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    assert "usage: kfed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["run -c none.yaml", "serve proxy -c none.yaml", "serve replicator -c none.yaml", "status -c none.yaml"]
)
def test_a_wrong_configuration_is_one_line_and_status_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err == "kfed: none.yaml: No such file or directory\n"


def test_an_unreachable_admin_api_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--admin", "http://127.0.0.1:1"]) == 1
    error = capsys.readouterr().err
    assert "start kfed run -c ... or give --admin" in error
    assert error.count("\n") == 1


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert '"version": "0.1.0"' in capsys.readouterr().out
