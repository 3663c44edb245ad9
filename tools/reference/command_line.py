"""The command-line reference, out of the grammar in cli/arguments.py."""

from __future__ import annotations

import argparse

from cli import arguments


def page() -> str:
    """docs/reference/cli.md."""
    top = arguments.parser()
    lines = [
        "# Command line",
        "",
        "Made from the code by `python -m tools.reference`.",
        "",
        "Every command but `run`, `serve`, `config check` and `version` asks the admin API: the one that `--admin` (or",
        "`KFED_ADMIN`) names, else the one of the configuration file. A command that changes something prints its",
        "plan, and changes nothing without `--apply`. The token of an admin API comes from `--token-file`,",
        "`KFED_TOKEN`, or the file that the configuration names.",
        "",
        "Exit status: 0 done, 1 failed, 2 wrong usage or configuration.",
        "",
        "## Options of every command",
        "",
        "They may stand anywhere, before or after the command and its arguments.",
        "",
        *_options(top),
    ]
    lines += _commands("kfed", top)
    return "\n".join(lines) + "\n"


def _commands(prefix: str, parser: argparse.ArgumentParser) -> list[str]:
    lines: list[str] = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {one.dest: one.help or "" for one in action._choices_actions}
        for name, command in action.choices.items():
            inner = _commands(f"{prefix} {name}", command)
            if inner:
                lines += inner
                continue
            positionals = [_placeholder(one) for one in command._actions if not one.option_strings]
            lines += ["", f"## `{' '.join([prefix, name, *positionals])}`", ""]
            text = command.description or helps[name]
            lines.append(text[0].upper() + text[1:].rstrip(".") + ".")
            options = _options(command)
            if options:
                lines += ["", *options]
    return lines


def _placeholder(action: argparse.Action) -> str:
    name = str(action.metavar) if action.metavar else "|".join(action.choices or [action.dest.upper()])
    return f"[{name}]" if action.nargs == "?" else name


def _options(parser: argparse.ArgumentParser) -> list[str]:
    rows = [
        (", ".join(f"`{one}{f' {action.metavar}' if action.metavar else ''}`" for one in action.option_strings), action)
        for action in parser._actions
        if action.option_strings and "--help" not in action.option_strings
    ]
    if not rows:
        return []
    return ["| option | |", "| --- | --- |", *(f"| {names} | {action.help} |" for names, action in rows)]
