"""`make soak`: the tests with their full counts and with examples nobody has tried yet, and a report of them.

The report is Markdown, in `docs/benchmarks/soak.md` unless `--report` says otherwise: when, what, on which machine,
each test's verdict and time, and what the tests said of themselves (seeds, counts). It is written in any case; the
exit status is 0 only where everything passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tools.bench.__main__ import machine

REPORT = Path("docs/benchmarks/soak.md")
SAID = "soak: "
"""What tests print for the report begins a line with this, or with the name of a seed."""
SEED = "KFED_TEST_SEED="

RUNS = (
    ("Unit and property tests, new examples", ["tests/unit", "tests/property"]),
    ("Long runs", ["-m", "soak", "--timeout", "0", "tests"]),
)


@dataclass(frozen=True)
class Ran:
    """One pytest run: its verdicts by test as (name, verdict, seconds), and what tests said."""

    title: str
    seconds: float
    verdicts: tuple[tuple[str, str, float], ...]
    said: tuple[str, ...]


def verdict(case: ElementTree.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        if case.find(kind) is not None:
            return kind
    return "passed"


def run(title: str, arguments: list[str]) -> Ran:
    """Runs pytest, its output shown as it comes."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rA", f"--junitxml={results}", *arguments]
        environment = {**os.environ, "KFED_TEST_RANDOM": "1"}
        said: dict[str, None] = {}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith("PASSED"):
                    sys.stdout.write(line)
                    sys.stdout.flush()
                if line.startswith((SAID, SEED)):
                    said[line.strip().removeprefix(SAID)] = None
        cases = list(ElementTree.parse(results).iter("testcase")) if results.exists() else []
    found = tuple((case.get("name", "?"), verdict(case), float(case.get("time", "0"))) for case in cases)
    return Ran(title, time.monotonic() - started, found, tuple(said))


def report(runs: list[Ran], when: str, commit: str) -> str:
    lines = [
        "# The last long run",
        "",
        f"{when}, commit {commit}. {machine()}.",
        "Command: `make soak`. A line with a seed is repeated by setting it in the environment.",
    ]
    for one in runs:
        count = {kind: sum(1 for _, each, _ in one.verdicts if each == kind) for kind in ("passed", "failure", "error")}
        bad = count["failure"] + count["error"]
        lines += ["", f"## {one.title}", "", f"{count['passed']} passed, {bad} failed, in {one.seconds:.0f} s."]
        shown = [each for each in one.verdicts if len(one.verdicts) <= 50 or each[1] in ("failure", "error")]
        if shown:
            lines += ["", "| test | verdict | seconds |", "| --- | --- | ---: |"]
            lines += [f"| {name} | {what} | {seconds:.0f} |" for name, what, seconds in shown]
        if one.said:
            lines += ["", *(f"- {line}" for line in one.said)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    when = time.strftime("%Y-%m-%d %H:%M")
    runs = [run(title, arguments) for title, arguments in RUNS]
    given.report.write_text(report(runs, when, commit.stdout.strip() or "unknown"))
    print(f"\nthe report is in {given.report}")
    good = all(one.verdicts and all(what in ("passed", "skipped") for _, what, _ in one.verdicts) for one in runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
