"""Wrong configurations: every message names the key to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.settings import Sasl, SettingsError, broker_ports, load, parse

GOOD = """
federation: demo
store: {kind: embedded, path: ./state}
clusters:
  east: {bootstrap: ["127.0.0.1:19092"]}
  west: {bootstrap: ["127.0.0.1:29092"]}
placement:
  default: east
  rules: [{topics: "orders.*|.*-two", cluster: west, standbys: [east]}]
proxy:
  listeners: [{name: main, bind: 127.0.0.1, port: 9300, advertised: 127.0.0.1, broker_ports: "9301-9399"}]
  workers: 2
admin: {bind: 127.0.0.1, port: 9380}
"""


def test_the_design_s_example_is_right() -> None:
    settings = parse(GOOD)
    assert settings.placement.rules[0].standbys == ("east",)
    assert settings.proxy.workers == 2


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("federation: demo", "federation: Demo!", "federation"),
        ("federation: demo", "", "federation"),
        ("federation: demo", "federation: demo\nsurprise: 1", "surprise"),
        ("kind: embedded", "kind: zookeeper", "store"),
        ('{bootstrap: ["127.0.0.1:29092"]}', "{bootstrap: []}", "clusters.west.bootstrap"),
        ('["127.0.0.1:29092"]', '["127.0.0.1"]', "clusters.west.bootstrap"),
        ("  west:", "  We st:", "clusters.We st"),
        (
            '{bootstrap: ["127.0.0.1:29092"]}',
            '{bootstrap: ["w:1"], sasl: {mechanism: PLAIN, username: u}}',
            "clusters.west.sasl",
        ),
        (
            '{bootstrap: ["127.0.0.1:29092"]}',
            '{bootstrap: ["w:1"], sasl: {mechanism: OAUTHBEARER}}',
            "clusters.west.sasl.token_file",
        ),
        (
            'broker_ports: "9301-9399"',
            'broker_ports: "9301-9399", tls: {cert: c, key: k, client_ca: a}',
            "proxy.listeners[0].tls.client_ca",
        ),
        ("default: east", "default: north", "placement.default"),
        ("cluster: west", "cluster: north", "placement.rules[0].cluster"),
        ("standbys: [east]", "standbys: [north]", "placement.rules[0].standbys"),
        ("orders.*|", "orders(|", "placement.rules[0].topics"),
        ('topics: "orders.*|.*-two", ', "", "placement.rules[0]"),
        ("workers: 2", "workers: 0", "proxy.workers"),
        ("workers: 2", "workers: two", "proxy.workers"),
        ('"9301-9399"', '"9399-9301"', "proxy.listeners[0].broker_ports"),
        ('"9301-9399"', '"9300-9399"', "proxy.listeners[0].broker_ports"),
        ("port: 9380", "port: 9300", "proxy.listeners[0].port"),
        (', broker_ports: "9301-9399"', "", "proxy.listeners[0]"),
        ('broker_ports: "9301-9399"', "sni: b.example.org", "proxy.listeners[0].sni"),
        ("bind: 127.0.0.1, port: 9300, advertised: 127.0.0.1", "bind: 0.0.0.0", "proxy.listeners[0].advertised"),
        ("workers: 2", "workers: 2\n  limits: {drain_timeout: 60}", "proxy.limits.drain_timeout"),
        ("port: 9300", "port: 99999", "proxy.listeners[0].port"),
        ("bind: 127.0.0.1, port: 9380", "bind: 0.0.0.0, port: 9380", "admin.token_file"),
        ("port: 9380", "port: 99999", "admin.port"),
        ("workers: 2", "workers: 2\n  limits: {connections: 0}", "proxy.limits.connections"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(old: str, new: str, key: str) -> None:
    assert old in GOOD
    with pytest.raises(SettingsError) as caught:
        parse(GOOD.replace(old, new))
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "just text", "{federation: {}}"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_file_s_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kfed.yaml"
    with pytest.raises(SettingsError, match=r"kfed\.yaml: No such file"):
        load(file)
    file.write_text(GOOD.replace("default: east", "default: north"))
    with pytest.raises(SettingsError, match=r"kfed\.yaml: placement\.default"):
        load(file)


def test_virtual_brokers_are_not_given_the_admin_port() -> None:
    settings = parse(GOOD)
    ports = broker_ports(settings, settings.proxy.listeners[0])
    assert ports[0] == 9301
    assert ports[-1] == 9399
    assert 9380 not in ports


def test_a_password_does_not_show() -> None:
    assert "geheim" not in repr(Sasl(mechanism="PLAIN", username="u", password="geheim"))
