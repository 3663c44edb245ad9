"""The configuration reference: every key with its type, default and meaning, out of runtime/settings.py.

A key's meaning is the comment behind or above it; a section's is its class's docstring.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from runtime import settings
from runtime.settings import Settings

SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("The file", Settings),
    ("store (embedded)", settings.EmbeddedStore),
    ("store (etcd)", settings.EtcdStore),
    ("clusters.NAME", settings.Cluster),
    ("placement", settings.Placement),
    ("placement.rules[]", settings.Rule),
    ("proxy", settings.Proxy),
    ("proxy.listeners[]", settings.Listener),
    ("proxy.limits", settings.Limits),
    ("replicator", settings.Replicator),
    ("admin", settings.Admin),
    ("log", settings.Log),
    ("TLS to brokers and etcd (`tls` of a cluster or the store)", settings.TlsClient),
    ("TLS to clients (`tls` of a listener or `admin`)", settings.TlsServer),
    ("SASL (`sasl` of a cluster)", settings.Sasl),
)

EXAMPLE = """\
federation: demo
store: {kind: embedded, path: ./state}
clusters:
  east: {bootstrap: ["127.0.0.1:19092"]}
  west: {bootstrap: ["127.0.0.1:29092"]}
placement:
  default: east
  rules: [{topics: "orders.*|.*-two", cluster: west}]
proxy:
  listeners: [{name: main, bind: 127.0.0.1, port: 9300, advertised: 127.0.0.1, broker_ports: "9301-9399"}]
  workers: 2
admin: {bind: 127.0.0.1, port: 9380}
"""


def page() -> str:
    """docs/reference/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Made from the code by `python -m tools.reference`.",
        "",
        inspect.cleandoc(settings.__doc__ or ""),
        "",
        "A mistake is answered at the start, and by `kfed config check`, with one line that names the key. Relative",
        "paths are relative to the working directory.",
        "",
        "```yaml",
        EXAMPLE.rstrip(),
        "```",
    ]
    for title, struct in SECTIONS:
        lines += ["", f"## {title}", "", _paragraph(struct), "", *_table(struct)]
    return "\n".join(lines) + "\n"


def _paragraph(struct: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(struct.__doc__ or "")


def _table(struct: type[msgspec.Struct]) -> list[str]:
    meanings = _meanings(struct)
    hints = get_type_hints(struct, include_extras=True)
    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    if (tag := struct.__struct_config__.tag) is not None:
        lines.append(f"| `{struct.__struct_config__.tag_field}` | `{tag}` | needed | |")
    for field in msgspec.structs.fields(struct):
        if field.default is not msgspec.NODEFAULT:
            default = _value(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _value(field.default_factory())
        else:
            default = "needed"
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {default} | {meanings.get(field.name, '')} |")
    return lines


def _value(value: object) -> str:
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, msgspec.Struct):
        return "see below"
    if isinstance(value, tuple):
        return "see below" if any(isinstance(one, msgspec.Struct) for one in value) else f"`{list(value)}`"
    return f"`{value}`"


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"{_type(arguments[0])} to {_type(arguments[1])}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint.__name__
    names: Mapping[type, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names[hint]


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What stands as a comment behind a field, or on its own lines above it."""
    source = textwrap.dedent(inspect.getsource(struct)).splitlines()
    body = ast.parse("\n".join(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above: list[str] = []
        line = node.lineno - 2
        while line >= 0 and source[line].strip().startswith("# "):
            above.insert(0, source[line].strip()[2:])
            line -= 1
        behind = source[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].strip().removeprefix("# ")
        text = " ".join([*above, behind]).strip()
        found[node.target.id] = text.replace("|", "\\|")
    return found
